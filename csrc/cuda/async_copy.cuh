// cp.async (sm_80): copies of 4, 8 or 16 bytes from global to shared memory that a thread starts and that go on
// while it computes (PTX ISA, "cp.async"). They are collected in groups; a wait returns when all but the newest
// groups have landed, and only the thread that issued them knows: others see the bytes after a barrier that
// follows the wait.
//
//   for (int s = 0; s < kStages - 1; ++s) { load(s); cp_async_commit_group(); }
//   for (int k = 0; k < n; ++k) {
//     cp_async_wait_group<kStages - 2>();   // stage k has landed, for this thread
//     __syncthreads();                      // for all; and all are done with stage k - 1
//     load(k + kStages - 1);                // into the stage of k - 1; nothing when there is no such k
//     cp_async_commit_group();              // also when empty: the count of groups must go on
//     compute(k);
//   }
//
// No register is held by a copy under way, which is what makes deep pipelines possible.
#pragma once

#include "mbarrier.cuh"

#if defined(FASTNN_EMULATOR)

#include "intrinsics/async_copy.h"

#else

namespace fastnn::cuda {

// Which caches a copy goes through. Data that the block reads once from global memory gains nothing from L1.
enum class CopyCache { kL1, kL2 };

// Copies kBytes, 4, 8 or 16, both addresses being multiples of kBytes. Past L1 (CopyCache::kL2) only 16 bytes
// can go.
template <int kBytes, CopyCache kCache = kBytes == 16 ? CopyCache::kL2 : CopyCache::kL1>
__device__ __forceinline__ void cp_async(void* shared_destination, const void* global_source) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  static_assert(kCache == CopyCache::kL1 || kBytes == 16, "cp.async.cg copies 16 bytes");
  if constexpr (kCache == CopyCache::kL2) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address_of(shared_destination)),
                 "l"(__cvta_generic_to_global(global_source))
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address_of(shared_destination)),
                 "l"(__cvta_generic_to_global(global_source)), "n"(kBytes)
                 : "memory");
  }
}

// As that, but only source_bytes, 0 to kBytes, are read; the rest becomes zero. With 0 the source is not
// touched and may be any multiple of kBytes.
template <int kBytes, CopyCache kCache = kBytes == 16 ? CopyCache::kL2 : CopyCache::kL1>
__device__ __forceinline__ void cp_async_zero_fill(void* shared_destination, const void* global_source,
                                                   uint32_t source_bytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  static_assert(kCache == CopyCache::kL1 || kBytes == 16, "cp.async.cg copies 16 bytes");
  if constexpr (kCache == CopyCache::kL2) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address_of(shared_destination)),
                 "l"(__cvta_generic_to_global(global_source)), "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address_of(shared_destination)),
                 "l"(__cvta_generic_to_global(global_source)), "n"(kBytes), "r"(source_bytes)
                 : "memory");
  }
}

// The thread's copies since the last call become its newest group.
__device__ __forceinline__ void cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all of the thread's groups but the newest kPending.
template <int kPending>
__device__ __forceinline__ void cp_async_wait_group() {
  static_assert(kPending >= 0);
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Waits for all copies of the thread, committed or not.
__device__ __forceinline__ void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Arrives at the mbarrier once all copies that the thread has issued have landed. The arrival is one of those
// that mbarrier_init() was told of (.noinc); it makes known the copies, and nothing else that the thread did.
__device__ __forceinline__ void cp_async_mbarrier_arrive(Mbarrier* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address_of(barrier)) : "memory");
}

}  // namespace fastnn::cuda

#endif
