// mbarriers: barriers in shared memory on which threads arrive without waiting, and which also count the bytes
// of asynchronous copies (PTX ISA, "mbarrier"). A phase is complete when all expected arrivals were made and
// the bytes expected have landed; the next phase begins at once. A wait names the phase by its parity: it
// returns when the phase with that parity, the current or the one before it, is complete. So on a fresh
// mbarrier, in phase 0, a wait for parity 1 returns at once: the idiom of producers, to whom all buffers are
// empty at first.
//
//   one thread:   mbarrier_init(&full, 1);  fence_mbarrier_init();
//   all threads:  __syncthreads();
//   producer:     mbarrier_arrive_expect_tx(&full, bytes);  bulk_load(tile, global, bytes, &full);
//   consumers:    mbarrier_wait(&full, round & 1);
//
// On sm_80 there are mbarrier_init, _invalidate, _arrive without a count and the waits; the rest needs sm_90
// and traps on older devices.
//
// Before an arrival in a phase some wait must have seen the phase before it complete.
#pragma once

#include "platform.cuh"

#if defined(FASTNN_EMULATOR)

#include "intrinsics/mbarrier.h"

#else

namespace fastnn::cuda {

// In shared memory; only the functions below may touch it.
struct alignas(8) Mbarrier {
  uint64_t opaque;
};

// A pointer to shared memory as the 32-bit address that PTX takes.
__device__ __forceinline__ uint32_t shared_address_of(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Makes it expect `count` arrivals a phase, 1 to 2^20 - 1. Other threads may use it after a barrier, and
// asynchronous copies after a fence_mbarrier_init() by this thread too.
__device__ __forceinline__ void mbarrier_init(Mbarrier* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address_of(barrier)), "r"(count) : "memory");
}

// Its memory may be used for something else now.
__device__ __forceinline__ void mbarrier_invalidate(Mbarrier* barrier) {
  asm volatile("mbarrier.inval.shared.b64 [%0];" ::"r"(shared_address_of(barrier)) : "memory");
}

// Arrives; what the thread did before is seen by whoever waits. Returns the phase arrived at, for the waits by
// state.
__device__ __forceinline__ uint64_t mbarrier_arrive(Mbarrier* barrier) {
  uint64_t state;
  asm volatile("mbarrier.arrive.shared.b64 %0, [%1];"
               : "=l"(state)
               : "r"(shared_address_of(barrier))
               : "memory");
  return state;
}

// Arrives `count` times.
__device__ __forceinline__ uint64_t mbarrier_arrive(Mbarrier* barrier, uint32_t count) {
#if __CUDA_ARCH__ >= 900
  uint64_t state;
  asm volatile("mbarrier.arrive.shared.b64 %0, [%1], %2;"
               : "=l"(state)
               : "r"(shared_address_of(barrier)), "r"(count)
               : "memory");
  return state;
#else
  __trap();
  return 0;
#endif
}

// Makes the phase wait for this many more bytes of asynchronous copies, then arrives.
__device__ __forceinline__ uint64_t mbarrier_arrive_expect_tx(Mbarrier* barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  uint64_t state;
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 %0, [%1], %2;"
               : "=l"(state)
               : "r"(shared_address_of(barrier)), "r"(bytes)
               : "memory");
  return state;
#else
  __trap();
  return 0;
#endif
}

// As that, without the arrival.
__device__ __forceinline__ void mbarrier_expect_tx(Mbarrier* barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address_of(barrier)),
               "r"(bytes)
               : "memory");
#else
  __trap();
#endif
}

// Whether the phase with this parity is complete; if so, what was done before the arrivals is seen, and copies
// have landed.
__device__ __forceinline__ bool mbarrier_test_wait(Mbarrier* barrier, uint32_t parity) {
  uint32_t complete;
  asm volatile(
      "{\n\t.reg .pred p;\n\t"
      "mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, p;\n\t}"
      : "=r"(complete)
      : "r"(shared_address_of(barrier)), "r"(parity)
      : "memory");
  return complete != 0;
}

// As that, but the thread may sleep a while before the answer is no.
__device__ __forceinline__ bool mbarrier_try_wait(Mbarrier* barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
  uint32_t complete;
  asm volatile(
      "{\n\t.reg .pred p;\n\t"
      "mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, p;\n\t}"
      : "=r"(complete)
      : "r"(shared_address_of(barrier)), "r"(parity)
      : "memory");
  return complete != 0;
#else
  return mbarrier_test_wait(barrier, parity);
#endif
}

// Waits until the phase with this parity is complete.
__device__ __forceinline__ void mbarrier_wait(Mbarrier* barrier, uint32_t parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

// As mbarrier_wait(), after arrivals of other blocks of the cluster, whose plain stores it makes seen; the
// price is that L1 forgets all it has. Copies by those blocks need only mbarrier_wait().
__device__ __forceinline__ void mbarrier_wait_cluster(Mbarrier* barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
  uint32_t complete;
  do {
    asm volatile(
        "{\n\t.reg .pred p;\n\t"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
        "selp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(complete)
        : "r"(shared_address_of(barrier)), "r"(parity)
        : "memory");
  } while (complete == 0);
#else
  __trap();
#endif
}

// Whether the phase that an arrival of this thread returned is complete; it must be the current one or the one
// before.
__device__ __forceinline__ bool mbarrier_test_wait_state(Mbarrier* barrier, uint64_t state) {
  uint32_t complete;
  asm volatile(
      "{\n\t.reg .pred p;\n\t"
      "mbarrier.test_wait.shared.b64 p, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, p;\n\t}"
      : "=r"(complete)
      : "r"(shared_address_of(barrier)), "l"(state)
      : "memory");
  return complete != 0;
}

// Waits until that phase is complete.
__device__ __forceinline__ void mbarrier_wait_state(Mbarrier* barrier, uint64_t state) {
  while (!mbarrier_test_wait_state(barrier, state)) {
  }
}

// Arrives at the mbarrier that block `rank` of the cluster has where this block has `barrier`. That block waits
// with mbarrier_wait_cluster() and must still be running.
__device__ __forceinline__ void mbarrier_arrive_remote(Mbarrier* barrier, uint32_t rank) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n\t.reg .b32 remote;\n\t"
      "mapa.shared::cluster.u32 remote, %0, %1;\n\t"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n\t}" ::"r"(shared_address_of(barrier)),
      "r"(rank)
      : "memory");
#else
  __trap();
#endif
}

// Makes mbarriers that this thread has initialised known to asynchronous copies and, after a cluster barrier,
// to the other blocks of the cluster.
__device__ __forceinline__ void fence_mbarrier_init() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  __trap();
#endif
}

// Between plain accesses of this thread and asynchronous ones (bulk and tensor copies, wgmma) that come after
// it: those go another way to memory and do not wait for its stores (PTX ISA, "Async proxy"). This one is for
// the block's shared memory.
__device__ __forceinline__ void fence_proxy_async() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  __trap();
#endif
}

// As that, for global memory that the same kernel has written with plain stores.
__device__ __forceinline__ void fence_proxy_async_global() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.global;" ::: "memory");
#else
  __trap();
#endif
}

}  // namespace fastnn::cuda

#endif
