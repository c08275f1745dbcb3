// Where blocks meet: barriers of a part of a block, of a cluster and of a grid, the shared memory of a
// cluster's other blocks, and loads and stores of global memory that order what is around them. PTX under nvcc;
// the emulator has the same functions. A cluster exists from sm_90 on: below, its functions trap.
//
// (PTX ISA: bar, barrier.cluster, mapa, fence, ld.acquire, st.release, atom.acq_rel, red.release.)
#pragma once

#include <cstdint>

#include "platform.cuh"

namespace fastnn::cuda {

// Whether what is being compiled can run in clusters: kernels that live by them need no code for older devices.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool kHasClusters = false;
#else
inline constexpr bool kHasClusters = true;
#endif

}  // namespace fastnn::cuda

#if defined(FASTNN_EMULATOR)

#include "intrinsics/cluster.h"

#else

namespace fastnn::cuda {

// Barrier `id` of the block, 0 to 15, of which 0 is __syncthreads(): `threads` of them, in whole warps, meet;
// memory is ordered among those who wait. Whoever arrives goes on, and is ordered before those who wait.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define FASTNN_NEEDS_SM_90 __trap()
#else
#define FASTNN_NEEDS_SM_90 static_cast<void>(0)
#endif

// Of this block within its cluster.
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank = 0;
  FASTNN_NEEDS_SM_90;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}
__device__ __forceinline__ unsigned cluster_size() {
  unsigned size = 0;
  FASTNN_NEEDS_SM_90;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  return size;
}

// All threads of the cluster, those of a warp together or one by one. Memory, shared and global, is ordered
// from before an arrival to after a wait. Shared memory of another block may be touched only between the first
// barrier of all and the last.
__device__ __forceinline__ void cluster_arrive() {
  FASTNN_NEEDS_SM_90;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
  FASTNN_NEEDS_SM_90;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// The address at which the block of that rank has what this one has at `address`, in shared memory.
template <typename T>
__device__ __forceinline__ T* map_shared_rank(T* address, unsigned rank) {
  uint64_t mapped = 0;
  FASTNN_NEEDS_SM_90;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(reinterpret_cast<uint64_t>(address)), "r"(rank));
#endif
  return reinterpret_cast<T*>(mapped);
}
#undef FASTNN_NEEDS_SM_90

// *address, before whatever follows in this thread and, through a barrier, in its block (device scope).
__device__ __forceinline__ unsigned load_acquire(const unsigned* address) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
__device__ __forceinline__ void store_release(unsigned* address, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
__device__ __forceinline__ unsigned atomic_add_acq_rel(unsigned* address, unsigned value) {
  unsigned old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(address), "r"(value)
               : "memory");
  return old;
}
// Returns nothing, so nobody waits for the memory's answer.
__device__ __forceinline__ void add_release(unsigned* address, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

}  // namespace fastnn::cuda

#endif

namespace fastnn::cuda {

// A barrier of all blocks of a grid that launch_cooperative() has made resident, on a counter in global memory
// that the host has set to 0 once: it returns to a multiple of 2^31, so that it serves again, in this launch
// and in later ones. Every thread of every block calls it; memory is ordered from before to after. One atomic
// operation a block and one word that all blocks watch: some 2 microseconds on a whole device, paid per call.
//
// The first block adds what is missing to 2^31 and every other block 1; when all have arrived bit 31 has
// changed.
__device__ __forceinline__ void grid_sync(unsigned* counter) {
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
    const bool first = blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0;
    const unsigned old = atomic_add_acq_rel(counter, first ? 0x80000000u - (blocks - 1) : 1u);
    while (((old ^ load_acquire(counter)) & 0x80000000u) == 0) __nanosleep(20);
  }
  __syncthreads();
}

// The same of some blocks of such a grid, on a counter of their own that was 0 when the kernel began: returns
// when `arrivals` calls have been made by all of them together. Memory is ordered from before to after.
__device__ __forceinline__ void meet(unsigned* counter, unsigned arrivals) {
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    atomic_add_acq_rel(counter, 1);
    while (load_acquire(counter) < arrivals) __nanosleep(20);
  }
  __syncthreads();
}

// meet() in two halves: between them a block may do what needs nothing of the others.
__device__ __forceinline__ void meet_arrive(unsigned* counter) {
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) add_release(counter, 1);
}
__device__ __forceinline__ void meet_wait(unsigned* counter, unsigned arrivals) {
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    while (load_acquire(counter) < arrivals) __nanosleep(20);
  }
  __syncthreads();
}

}  // namespace fastnn::cuda
