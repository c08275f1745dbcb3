// What a kernel file needs of CUDA, under two compilers: nvcc, for the device; and g++ with the emulator of
// tests/emulator, which runs grid, block, warp and thread on the CPU. This is the only place that tells them
// apart. Rules that keep every kernel runnable under both:
//   - launch through launch();
//   - shared memory through FASTNN_SHARED and FASTNN_DYNAMIC_SHARED (the emulator poisons it with NaN);
//   - PTX only inside named functions here or in mma.cuh, each with a host meaning;
//   - float16_t and bfloat16_t are storage: convert with to_acc() and from_acc(), no arithmetic on them.
#pragma once

#include <cstdint>

#include "../ops/dtype.h"
#include "../ops/status.h"
#include "../ops/stream.h"
#include "device_limits.h"

#if defined(FASTNN_EMULATOR)

#include "emulator.h"

#define FASTNN_NOINLINE __attribute__((noinline))

#else

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <atomic>

// Of a device function that is called, not copied to where it is called.
#define FASTNN_NOINLINE __noinline__
// T name[count] in shared memory, uninitialised; count is a constant.
#define FASTNN_SHARED(T, name, count) __shared__ T name[count]
// T* name: the block's dynamic shared memory, aligned to 16 bytes, or to `alignment` where copies by a tensor
// map or swizzled tiles need more. A kernel has one.
#define FASTNN_DYNAMIC_SHARED(T, name) FASTNN_DYNAMIC_SHARED_ALIGNED(T, name, 16)
#define FASTNN_DYNAMIC_SHARED_ALIGNED(T, name, alignment) \
  extern __shared__ __align__(alignment)                  \
  unsigned char fastnn_dynamic_shared_##alignment[];      \
  T* const name = reinterpret_cast<T*>(fastnn_dynamic_shared_##alignment)

namespace fastnn::cuda {

using float16_t = __half;
using bfloat16_t = __nv_bfloat16;
using float16x2_t = __half2;
using bfloat16x2_t = __nv_bfloat162;

__device__ __forceinline__ double to_acc(double v) { return v; }
__device__ __forceinline__ float to_acc(float v) { return v; }
__device__ __forceinline__ float to_acc(float16_t v) { return __half2float(v); }
__device__ __forceinline__ float to_acc(bfloat16_t v) { return __bfloat162float(v); }

// Rounds to nearest even.
template <typename scalar_t>
__device__ __forceinline__ scalar_t from_acc(double v) {
  return static_cast<scalar_t>(v);
}
template <typename scalar_t>
__device__ __forceinline__ scalar_t from_acc(float v) {
  return static_cast<scalar_t>(v);
}
template <>
__device__ __forceinline__ float16_t from_acc<float16_t>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ bfloat16_t from_acc<bfloat16_t>(float v) {
  return __float2bfloat16_rn(v);
}

// To the nearest number of tf32, ties away from zero. A tensor core cuts off what a plain float has beyond
// tf32: this halves that error and makes it unbiased.
__device__ __forceinline__ float round_to_tf32(float v) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return __uint_as_float(bits);
}

// The compiler holds nothing that memory has in registers across this: what a loop reads anew in every round it
// may not read once before it, for want of registers.
__device__ __forceinline__ void compiler_barrier() { asm volatile("" ::: "memory"); }

namespace detail {

// Never synchronises. An empty grid is no launch.
template <typename... KernelArgs, typename... Args>
Status launch_with(const char* name, void (*kernel)(KernelArgs...), dim3 grid, dim3 block,
                   size_t dynamic_shared_bytes, Stream stream, cudaLaunchAttribute* attributes,
                   unsigned attribute_count, const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return Status::success();
  if (dynamic_shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(dynamic_shared_bytes));
    if (error != cudaSuccess) return Status::error(cudaGetErrorString(error), name);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = attribute_count;
  cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<KernelArgs>(args)...);
  if (error == cudaSuccess) {
    error = cudaGetLastError();
  } else {
    cudaGetLastError();  // takes the error with it: no later call sees it
  }
  return error == cudaSuccess ? Status::success() : Status::error(cudaGetErrorString(error), name);
}

}  // namespace detail

// Puts a kernel on a stream and reports what the runtime says of the launch.
template <typename... KernelArgs, typename... Args>
Status launch(const char* name, void (*kernel)(KernelArgs...), dim3 grid, dim3 block,
              size_t dynamic_shared_bytes, Stream stream, const Args&... args) {
  return detail::launch_with(name, kernel, grid, block, dynamic_shared_bytes, stream, nullptr, 0, args...);
}

// The same in clusters of blocks, which see each other's shared memory (sm_90; cluster.cuh). `cluster` divides
// `grid` and has at most 8 blocks, 16 where the kernel allows it.
template <typename... KernelArgs, typename... Args>
Status launch_cluster(const char* name, void (*kernel)(KernelArgs...), dim3 grid, dim3 cluster, dim3 block,
                      size_t dynamic_shared_bytes, Stream stream, const Args&... args) {
  if (cluster.x * cluster.y * cluster.z > 8) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return Status::error(cudaGetErrorString(error), name);
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster.x;
  attribute.val.clusterDim.y = cluster.y;
  attribute.val.clusterDim.z = cluster.z;
  return detail::launch_with(name, kernel, grid, block, dynamic_shared_bytes, stream, &attribute, 1, args...);
}

// The same with all blocks resident at once, so that grid_sync() of cluster.cuh may be used. The grid has at
// most max_cooperative_blocks().
template <typename... KernelArgs, typename... Args>
Status launch_cooperative(const char* name, void (*kernel)(KernelArgs...), dim3 grid, dim3 block,
                          size_t dynamic_shared_bytes, Stream stream, const Args&... args) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  return detail::launch_with(name, kernel, grid, block, dynamic_shared_bytes, stream, &attribute, 1, args...);
}

// Of the current device; zeros where none answers.
inline DeviceLimits device_limits() {
  int device = 0, major = 0, minor = 0;
  DeviceLimits limits{};
  const bool known =
      cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
          cudaSuccess &&
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess;
  if (!known) {
    cudaGetLastError();
    return {};
  }
  limits.compute_capability = 10 * major + minor;
  return limits;
}

// How many clusters of so many blocks the current device runs at once, each block with all the shared memory of
// a multiprocessor; 0 where it launches none so large. A device is asked once.
template <int kBlocks, typename... KernelArgs>
int resident_clusters(void (*kernel)(KernelArgs...), int threads) {
  constexpr int kDevices = 64, kUnknown = -1;
  static std::atomic<int> known[kDevices];  // the answer + 1
  int device = 0;
  const DeviceLimits limits = device_limits();
  if (!limits.clusters() || cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return 0;
  int count = known[device].load(std::memory_order_relaxed) - 1;
  if (count != kUnknown) return count;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {kBlocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kBlocks);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(limits.shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  const auto* const function = reinterpret_cast<const void*>(kernel);
  const bool answered =
      cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
      cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, limits.shared_bytes) ==
          cudaSuccess &&
      cudaOccupancyMaxActiveClusters(&count, function, &config) == cudaSuccess;
  if (!answered) {
    cudaGetLastError();
    count = 0;
  }
  known[device].store(count + 1, std::memory_order_relaxed);
  return count;
}

template <typename... KernelArgs>
Status max_cooperative_blocks(void (*kernel)(KernelArgs...), int threads, size_t dynamic_shared_bytes,
                              int* blocks) {
  int device = 0, multiprocessors = 0, of_each = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess && dynamic_shared_bytes > 48 * 1024) {
    error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(dynamic_shared_bytes));
  }
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_each, kernel, threads, dynamic_shared_bytes);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();
    return Status::error(cudaGetErrorString(error), "max_cooperative_blocks");
  }
  *blocks = multiprocessors * of_each;
  return Status::success();
}

}  // namespace fastnn::cuda

#endif
