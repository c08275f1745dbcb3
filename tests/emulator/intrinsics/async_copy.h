// What csrc/cuda/async_copy.cuh declares, for the emulator: see there. A copy reads and writes at the wait that
// its thread makes for it, or at one on an mbarrier that tracks it; what is never waited for never lands.
#pragma once

#include <cstdint>

#include "mbarrier.h"

namespace fastnn::emulator {

void cp_async(void* destination, const void* source, uint32_t bytes, uint32_t source_bytes, Where where);
void cp_async_commit_group();
void cp_async_wait_group(unsigned pending);
void cp_async_wait_all();
void cp_async_mbarrier_arrive(Mbarrier* barrier, Where where);

}  // namespace fastnn::emulator

namespace fastnn::cuda {

enum class CopyCache { kL1, kL2 };

template <int kBytes, CopyCache kCache = kBytes == 16 ? CopyCache::kL2 : CopyCache::kL1>
inline void cp_async(void* shared_destination, const void* global_source, FASTNN_EMULATOR_HERE) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  static_assert(kCache == CopyCache::kL1 || kBytes == 16, "cp.async.cg copies 16 bytes");
  emulator::cp_async(shared_destination, global_source, kBytes, kBytes, where);
}
template <int kBytes, CopyCache kCache = kBytes == 16 ? CopyCache::kL2 : CopyCache::kL1>
inline void cp_async_zero_fill(void* shared_destination, const void* global_source, uint32_t source_bytes,
                               FASTNN_EMULATOR_HERE) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  static_assert(kCache == CopyCache::kL1 || kBytes == 16, "cp.async.cg copies 16 bytes");
  emulator::cp_async(shared_destination, global_source, kBytes, source_bytes, where);
}
inline void cp_async_commit_group() { emulator::cp_async_commit_group(); }
template <int kPending>
inline void cp_async_wait_group() {
  static_assert(kPending >= 0);
  emulator::cp_async_wait_group(kPending);
}
inline void cp_async_wait_all() { emulator::cp_async_wait_all(); }
inline void cp_async_mbarrier_arrive(Mbarrier* barrier, FASTNN_EMULATOR_HERE) {
  emulator::cp_async_mbarrier_arrive(barrier, where);
}

}  // namespace fastnn::cuda
