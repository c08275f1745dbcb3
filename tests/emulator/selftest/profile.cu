// Kernels whose sectors and wavefronts are known by counting on paper. What the profile must say of each is in
// tests/test_memory_efficiency.py.
#include "../../../csrc/cuda/vec.cuh"
#include "selftest.h"

namespace fastnn::selftest {
namespace {

constexpr int kThreads = 128, kBlocks = 2, kCount = kThreads * kBlocks;

__device__ int global_thread() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

DeviceArray<float> counting(size_t count) {
  DeviceArray<float> x(count);
  for (size_t i = 0; i < count; ++i) x[i] = static_cast<float>(i);
  return x;
}

// --- global memory ---

template <typename T>
__global__ void strided_copy_kernel(const T* x, T* y, int stride, int shift, int count) {
  const int i = global_thread();
  if (i < count) y[i] = x[i * stride + shift];
}

const char* run_strided_copy(int stride, int shift, int count) {
  const DeviceArray<float> x = counting(static_cast<size_t>(kCount) * stride + shift + 1);
  DeviceArray<float> y(kCount, -1.0f);
  FASTNN_RUN("strided_copy_kernel", strided_copy_kernel<float>, dim3(kBlocks), dim3(kThreads), 0, nullptr,
             x.data(), y.data(), stride, shift, count);
  for (int i = 0; i < kCount; ++i) {
    FASTNN_EXPECT(y[i] == (i < count ? static_cast<float>(i * stride + shift) : -1.0f), "y[%d] is %g", i, y[i]);
  }
  return nullptr;
}

FASTNN_CORRECT(profile_coalesced) { return run_strided_copy(1, 0, kCount); }
FASTNN_CORRECT(profile_stride_2) { return run_strided_copy(2, 0, kCount); }
FASTNN_CORRECT(profile_stride_32) { return run_strided_copy(32, 0, kCount); }
FASTNN_CORRECT(profile_broadcast) { return run_strided_copy(0, 5, kCount); }
FASTNN_CORRECT(profile_misaligned_by_4_bytes) { return run_strided_copy(1, 1, kCount); }
FASTNN_CORRECT(profile_partial_warp) { return run_strided_copy(1, 0, 100); }

FASTNN_CORRECT(profile_8_bytes) {
  const DeviceArray<double> x(kCount, 2.5);
  DeviceArray<double> y(kCount);
  FASTNN_RUN("strided_copy_kernel", strided_copy_kernel<double>, dim3(kBlocks), dim3(kThreads), 0, nullptr,
             x.data(), y.data(), 1, 0, kCount);
  for (const double v : y) FASTNN_EXPECT(v == 2.5, "y has %g", v);
  return nullptr;
}

__global__ void vector_copy_kernel(const float* x, float* y, bool aligned) {
  const int i = 4 * global_thread();
  cuda::store_vec(y + i, cuda::load_vec<4>(x + i, aligned), aligned);
}

const char* run_vector_copy(bool aligned) {
  const DeviceArray<float> x = counting(4 * kCount);
  DeviceArray<float> y(4 * kCount);
  FASTNN_RUN("vector_copy_kernel", vector_copy_kernel, dim3(kBlocks), dim3(kThreads), 0, nullptr, x.data(),
             y.data(), aligned);
  for (int i = 0; i < 4 * kCount; ++i) FASTNN_EXPECT(y[i] == static_cast<float>(i), "y[%d] is %g", i, y[i]);
  return nullptr;
}

FASTNN_CORRECT(profile_vector) { return run_vector_copy(true); }
FASTNN_CORRECT(profile_vector_by_element) { return run_vector_copy(false); }

// Odd and even lanes take turns: what they do is one request a turn because the warp meets between.
__global__ void turns_kernel(const float* x, float* y) {
  const int lane = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int turn = 0; turn < 4; ++turn) {
    if ((lane + turn) % 2 == 0) sum += x[32 * turn + lane];
    __syncwarp();
  }
  y[lane] = sum;
}

FASTNN_CORRECT(profile_turns) {
  const DeviceArray<float> x = counting(128);
  DeviceArray<float> y(32);
  FASTNN_RUN("turns_kernel", turns_kernel, dim3(1), dim3(32), 0, nullptr, x.data(), y.data());
  for (int lane = 0; lane < 32; ++lane) {
    const auto expected = static_cast<float>(2 * lane + (lane % 2 == 0 ? 64 : 128));
    FASTNN_EXPECT(y[lane] == expected, "y[%d] is %g", lane, y[lane]);
  }
  return nullptr;
}

// More blocks than are profiled, all alike.
FASTNN_CORRECT(profile_many_blocks) {
  constexpr int kMany = 1000;
  const DeviceArray<float> x = counting(kMany * 32);
  DeviceArray<float> y(kMany * 32);
  FASTNN_RUN("strided_copy_kernel", strided_copy_kernel<float>, dim3(kMany), dim3(32), 0, nullptr, x.data(),
             y.data(), 1, 0, kMany * 32);
  for (int i = 0; i < kMany * 32; ++i) FASTNN_EXPECT(y[i] == static_cast<float>(i), "y[%d] is %g", i, y[i]);
  return nullptr;
}

// --- shared memory: one warp a block ---

template <typename T>
__global__ void strided_shared_kernel(int stride, T* y) {
  FASTNN_SHARED(T, values, 33 * 32);
  const int lane = static_cast<int>(threadIdx.x);
  values[lane * stride] = static_cast<T>(lane);
  __syncthreads();
  y[lane] = values[lane * stride];
}

template <typename T>
const char* run_strided_shared(int stride) {
  DeviceArray<T> y(32);
  FASTNN_RUN("strided_shared_kernel", strided_shared_kernel<T>, dim3(1), dim3(32), 0, nullptr, stride,
             y.data());
  for (int lane = 0; lane < 32; ++lane) FASTNN_EXPECT(y[lane] == static_cast<T>(lane), "y[%d] is wrong", lane);
  return nullptr;
}

FASTNN_CORRECT(profile_shared_conflict_free) { return run_strided_shared<float>(1); }
FASTNN_CORRECT(profile_shared_2_way) { return run_strided_shared<float>(2); }
FASTNN_CORRECT(profile_shared_32_way) { return run_strided_shared<float>(32); }
FASTNN_CORRECT(profile_shared_odd_stride) { return run_strided_shared<float>(33); }
FASTNN_CORRECT(profile_shared_2_bytes) { return run_strided_shared<short>(1); }
FASTNN_CORRECT(profile_shared_8_bytes) { return run_strided_shared<double>(1); }
FASTNN_CORRECT(profile_shared_8_bytes_2_way) { return run_strided_shared<double>(2); }

__global__ void shared_broadcast_kernel(float* y) {
  FASTNN_SHARED(float, values, 32);
  const int lane = static_cast<int>(threadIdx.x);
  values[lane] = static_cast<float>(lane);
  __syncthreads();
  y[lane] = values[lane / 16 * 7];
}

FASTNN_CORRECT(profile_shared_broadcast) {
  DeviceArray<float> y(32);
  FASTNN_RUN("shared_broadcast_kernel", shared_broadcast_kernel, dim3(1), dim3(32), 0, nullptr, y.data());
  for (int lane = 0; lane < 32; ++lane)
    FASTNN_EXPECT(y[lane] == (lane < 16 ? 0 : 7), "y[%d] is %g", lane, y[lane]);
  return nullptr;
}

__global__ void shared_vector_kernel(int stride, float* y) {
  FASTNN_SHARED(float, values, 8 * 32);
  const int lane = static_cast<int>(threadIdx.x);
  cuda::Vec<float, 4> v;
  for (int k = 0; k < 4; ++k) v.v[k] = static_cast<float>(4 * lane + k);
  cuda::store_vec(values + lane * stride, v, true);
  __syncthreads();
  cuda::store_vec(y + 4 * lane, cuda::load_vec<4>(values + lane * stride, true), true);
}

const char* run_shared_vector(int stride) {
  DeviceArray<float> y(128);
  FASTNN_RUN("shared_vector_kernel", shared_vector_kernel, dim3(1), dim3(32), 0, nullptr, stride, y.data());
  for (int i = 0; i < 128; ++i) FASTNN_EXPECT(y[i] == static_cast<float>(i), "y[%d] is %g", i, y[i]);
  return nullptr;
}

FASTNN_CORRECT(profile_shared_vector) { return run_shared_vector(4); }
FASTNN_CORRECT(profile_shared_vector_2_way) { return run_shared_vector(8); }

template <int kPitch>
__global__ void transpose_kernel(const float* x, float* y) {
  FASTNN_SHARED(float, tile, 32 * kPitch);
  const int column = static_cast<int>(threadIdx.x), first_row = static_cast<int>(threadIdx.y);
  for (int row = first_row; row < 32; row += 8) tile[row * kPitch + column] = x[row * 32 + column];
  __syncthreads();
  for (int row = first_row; row < 32; row += 8) y[row * 32 + column] = tile[column * kPitch + row];
}

template <int kPitch>
const char* run_transpose() {
  const DeviceArray<float> x = counting(1024);
  DeviceArray<float> y(1024);
  FASTNN_RUN("transpose_kernel", transpose_kernel<kPitch>, dim3(1), dim3(32, 8), 0, nullptr, x.data(),
             y.data());
  for (int i = 0; i < 1024; ++i) {
    FASTNN_EXPECT(y[i] == static_cast<float>(i % 32 * 32 + i / 32), "y[%d] is %g", i, y[i]);
  }
  return nullptr;
}

FASTNN_CORRECT(profile_transpose) { return run_transpose<32>(); }
FASTNN_CORRECT(profile_transpose_padded) { return run_transpose<33>(); }

}  // namespace
}  // namespace fastnn::selftest
