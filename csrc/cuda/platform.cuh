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

#if defined(FASTNN_EMULATOR)

#include "emulator.h"

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// T name[count] in shared memory, uninitialised; count is a constant.
#define FASTNN_SHARED(T, name, count) __shared__ T name[count]
// T* name: the block's dynamic shared memory, aligned to 16 bytes.
#define FASTNN_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char fastnn_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(fastnn_dynamic_shared)

namespace fastnn::cuda {

using float16_t = __half;
using bfloat16_t = __nv_bfloat16;

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

// Puts a kernel on a stream and reports what the runtime says of the launch. Never synchronises. An empty
// grid is no launch.
template <typename... KernelArgs, typename... Args>
Status launch(const char* name, void (*kernel)(KernelArgs...), dim3 grid, dim3 block,
              size_t dynamic_shared_bytes, Stream stream, const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return Status::success();
  if (dynamic_shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(dynamic_shared_bytes));
    if (error != cudaSuccess) return Status::error(cudaGetErrorString(error), name);
  }
  kernel<<<grid, block, dynamic_shared_bytes, stream>>>(static_cast<KernelArgs>(args)...);
  const cudaError_t error = cudaGetLastError();  // takes the error with it: no later call sees it
  return error == cudaSuccess ? Status::success() : Status::error(cudaGetErrorString(error), name);
}

}  // namespace fastnn::cuda

#endif
