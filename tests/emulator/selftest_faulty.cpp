// Kernels with one mistake each: every case returns what showed it, and null when nothing did.
#include <stdexcept>
#include <vector>

#include "selftest.h"

namespace fastnn::emulator::selftest {
namespace {

constexpr unsigned kFullMask = 0xffffffffu;

__global__ void missing_barrier_kernel(float* out) {
  FASTNN_SHARED(float, values, 64);
  values[threadIdx.x] = 1;
  out[threadIdx.x] = values[63 - threadIdx.x];
}

FASTNN_SELFTEST(missing_barrier) {
  std::vector<float> out(64);
  FASTNN_RUN("missing_barrier_kernel", missing_barrier_kernel, dim3(1), dim3(64), 0, nullptr, out.data());
  for (int i = 0; i < 64; ++i)
    FASTNN_EXPECT(out[i] == 1, "out[%d] is %s", i, isnan(out[i]) ? "NaN" : "another number");
  return nullptr;
}

// --- barriers ---

__global__ void barrier_after_exit_kernel() {
  if (threadIdx.x == 5) return;
  __syncthreads();
}
FASTNN_SELFTEST(barrier_after_exit) {
  FASTNN_RUN("barrier_after_exit_kernel", barrier_after_exit_kernel, dim3(2, 3), dim3(64), 0, nullptr);
  return nullptr;
}

__global__ void barrier_in_branch_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
FASTNN_SELFTEST(barrier_in_each_branch) {
  FASTNN_RUN("barrier_in_branch_kernel", barrier_in_branch_kernel, dim3(1), dim3(64), 0, nullptr);
  return nullptr;
}

__global__ void barrier_count_kernel() {
  const int rounds = threadIdx.x == 40 ? 4 : 3;
  for (int i = 0; i < rounds; ++i) __syncthreads();
}
FASTNN_SELFTEST(barrier_once_too_often) {
  FASTNN_RUN("barrier_count_kernel", barrier_count_kernel, dim3(1), dim3(64), 0, nullptr);
  return nullptr;
}

__global__ void barrier_and_shuffle_kernel(int* out) {
  if (threadIdx.x == 31) __syncthreads();
  out[threadIdx.x] = __shfl_sync(kFullMask, 1, 0);
  if (threadIdx.x != 31) __syncthreads();
}
FASTNN_SELFTEST(lane_at_the_barrier_instead) {
  int out[32];
  FASTNN_RUN("barrier_and_shuffle_kernel", barrier_and_shuffle_kernel, dim3(1), dim3(32), 0, nullptr, &out[0]);
  return nullptr;
}

// --- masks ---

__global__ void exited_lane_kernel(unsigned first_to_exit) {
  if (threadIdx.x >= first_to_exit && threadIdx.x < first_to_exit + 3) return;
  __syncwarp();
}
FASTNN_SELFTEST(mask_names_lane_that_exited_before) {
  FASTNN_RUN("exited_lane_kernel", exited_lane_kernel, dim3(1), dim3(32), 0, nullptr, 0u);
  return nullptr;
}
FASTNN_SELFTEST(mask_names_lane_that_exits_later) {
  FASTNN_RUN("exited_lane_kernel", exited_lane_kernel, dim3(1), dim3(32), 0, nullptr, 29u);
  return nullptr;
}

__global__ void own_lane_kernel() { __ballot_sync(0x0000fffeu, 1); }
FASTNN_SELFTEST(mask_without_own_lane) {
  FASTNN_RUN("own_lane_kernel", own_lane_kernel, dim3(1), dim3(32), 0, nullptr);
  return nullptr;
}

__global__ void different_masks_kernel() { __syncwarp(threadIdx.x < 16 ? kFullMask : 0xffff8000u); }
FASTNN_SELFTEST(lanes_with_different_masks) {
  FASTNN_RUN("different_masks_kernel", different_masks_kernel, dim3(1), dim3(32), 0, nullptr);
  return nullptr;
}

__global__ void different_operations_kernel() {
  if (threadIdx.x % 2 == 0) {
    __any_sync(kFullMask, 1);
  } else {
    __all_sync(kFullMask, 1);
  }
}
FASTNN_SELFTEST(lanes_with_different_operations) {
  FASTNN_RUN("different_operations_kernel", different_operations_kernel, dim3(1), dim3(32), 0, nullptr);
  return nullptr;
}

__global__ void width_kernel() { __shfl_xor_sync(kFullMask, 1, 1, 24); }
FASTNN_SELFTEST(shuffle_of_odd_width) {
  FASTNN_RUN("width_kernel", width_kernel, dim3(1), dim3(32), 0, nullptr);
  return nullptr;
}

// --- shared memory ---

__global__ void overrun_kernel(int index, int dynamic_index) {
  FASTNN_SHARED(float, tile, 64);
  FASTNN_DYNAMIC_SHARED(float, dynamic);
  if (threadIdx.x == 0) {
    float* volatile fixed = tile;  // so that the compiler does not judge the index
    fixed[index] = 1;
    dynamic[dynamic_index] = 1;
  }
}
FASTNN_SELFTEST(overrun_above) {
  FASTNN_RUN("overrun_kernel", overrun_kernel, dim3(1), dim3(32), 64, nullptr, 64, 0);
  return nullptr;
}
FASTNN_SELFTEST(overrun_below) {
  FASTNN_RUN("overrun_kernel", overrun_kernel, dim3(1), dim3(32), 64, nullptr, -1, 0);
  return nullptr;
}
FASTNN_SELFTEST(overrun_of_dynamic) {
  FASTNN_RUN("overrun_kernel", overrun_kernel, dim3(1), dim3(32), 64, nullptr, 0, 17);
  return nullptr;
}
FASTNN_SELFTEST(dynamic_that_was_not_asked_for) {
  FASTNN_RUN("overrun_kernel", overrun_kernel, dim3(1), dim3(32), 0, nullptr, 0, 0);
  return nullptr;
}

__global__ void read_beyond_kernel(float* out) {
  FASTNN_DYNAMIC_SHARED(float, values);
  values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x + 1];
}
FASTNN_SELFTEST(read_beyond_the_end) {
  std::vector<float> out(32);
  FASTNN_RUN("read_beyond_kernel", read_beyond_kernel, dim3(1), dim3(32), 32 * sizeof(float), nullptr,
             out.data());
  FASTNN_EXPECT(!isnan(out[31]), "out[31] is NaN");
  return nullptr;
}

__global__ void large_static_kernel() {
  FASTNN_SHARED(double, first, 4096);
  FASTNN_SHARED(double, second, 2049);
  first[0] = second[0] = 0;
}
FASTNN_SELFTEST(static_beyond_48_kb) {
  FASTNN_RUN("large_static_kernel", large_static_kernel, dim3(1), dim3(32), 0, nullptr);
  return nullptr;
}

__global__ void large_total_kernel() {
  FASTNN_SHARED(float, small, 257);
  small[0] = 0;
}
FASTNN_SELFTEST(static_and_dynamic_beyond_227_kb) {
  FASTNN_RUN("large_total_kernel", large_total_kernel, dim3(1), dim3(32), 226 * 1024, nullptr);
  return nullptr;
}

// --- launches ---

__global__ void nothing_kernel() {}
FASTNN_SELFTEST(dynamic_beyond_227_kb) {
  FASTNN_RUN("nothing_kernel", nothing_kernel, dim3(1), dim3(32), 227 * 1024 + 1, nullptr);
  return nullptr;
}
FASTNN_SELFTEST(too_many_threads) {
  FASTNN_RUN("nothing_kernel", nothing_kernel, dim3(1), dim3(32, 33), 0, nullptr);
  return nullptr;
}
FASTNN_SELFTEST(block_too_deep) {
  FASTNN_RUN("nothing_kernel", nothing_kernel, dim3(1), dim3(1, 1, 65), 0, nullptr);
  return nullptr;
}
FASTNN_SELFTEST(block_without_threads) {
  FASTNN_RUN("nothing_kernel", nothing_kernel, dim3(1), dim3(32, 0), 0, nullptr);
  return nullptr;
}
FASTNN_SELFTEST(grid_too_high) {
  FASTNN_RUN("nothing_kernel", nothing_kernel, dim3(1, 65536), dim3(1), 0, nullptr);
  return nullptr;
}
FASTNN_SELFTEST(grid_too_wide) {
  FASTNN_RUN("nothing_kernel", nothing_kernel, dim3(1u << 31), dim3(1), 0, nullptr);
  return nullptr;
}

// --- threads that fail ---

__global__ void throwing_kernel() {
  __syncthreads();
  if (threadIdx.x == 3) throw std::runtime_error("never seen by the launcher");
  __syncthreads();
}
FASTNN_SELFTEST(exception_in_a_thread) {
  FASTNN_RUN("throwing_kernel", throwing_kernel, dim3(1), dim3(32), 0, nullptr);
  return nullptr;
}

__global__ void trap_kernel() {
  if (blockIdx.x >= 5 && threadIdx.x == 1) __trap();
}
FASTNN_SELFTEST(first_block_that_fails_is_named) {
  FASTNN_RUN("trap_kernel", trap_kernel, dim3(300), dim3(64), 0, nullptr);
  return nullptr;
}

}  // namespace
}  // namespace fastnn::emulator::selftest
