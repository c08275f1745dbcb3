// What csrc/cuda/mbarrier.cuh declares, for the emulator: see there. The 8 bytes in shared memory hold nothing;
// the state is the emulator's. Errors: use of what is no mbarrier (never initialised, or invalidated), counts
// out of range, more arrivals or bytes than the phase expects, an arrival in a phase before any wait saw the
// phase before it complete (PTX ISA, "Phase of the mbarrier object"), and waits that never end.
#pragma once

#include <cstdint>

#include "../runtime.h"

namespace fastnn::cuda {

struct alignas(8) Mbarrier {
  uint64_t opaque;
};

}  // namespace fastnn::cuda

namespace fastnn::emulator {

using cuda::Mbarrier;

void mbarrier_init(Mbarrier* barrier, uint32_t count, Where where);
void mbarrier_invalidate(Mbarrier* barrier, Where where);
// Expects `bytes` more, then arrives `count` times; 0 of either is none.
uint64_t mbarrier_arrive(Mbarrier* barrier, uint32_t count, uint32_t bytes, Where where);
void mbarrier_expect_tx(Mbarrier* barrier, uint32_t bytes, Where where);
void mbarrier_arrive_remote(Mbarrier* barrier, uint32_t rank, Where where);
bool mbarrier_test(Mbarrier* barrier, uint32_t parity, Where where);
void mbarrier_wait(Mbarrier* barrier, uint32_t parity, Where where);
bool mbarrier_test_state(Mbarrier* barrier, uint64_t state, Where where);
void mbarrier_wait_state(Mbarrier* barrier, uint64_t state, Where where);
// Makes known to copies the mbarriers that the thread has initialised, or those of the block: a proxy fence
// does so too by whoever knows of the initialisation.
void mbarrier_publish_init(bool of_all_threads);

}  // namespace fastnn::emulator

namespace fastnn::cuda {

inline void mbarrier_init(Mbarrier* barrier, uint32_t count, FASTNN_EMULATOR_HERE) {
  emulator::mbarrier_init(barrier, count, where);
}
inline void mbarrier_invalidate(Mbarrier* barrier, FASTNN_EMULATOR_HERE) {
  emulator::mbarrier_invalidate(barrier, where);
}
inline uint64_t mbarrier_arrive(Mbarrier* barrier, FASTNN_EMULATOR_HERE) {
  return emulator::mbarrier_arrive(barrier, 1, 0, where);
}
inline uint64_t mbarrier_arrive(Mbarrier* barrier, uint32_t count, FASTNN_EMULATOR_HERE) {
  return emulator::mbarrier_arrive(barrier, count, 0, where);
}
inline uint64_t mbarrier_arrive_expect_tx(Mbarrier* barrier, uint32_t bytes, FASTNN_EMULATOR_HERE) {
  return emulator::mbarrier_arrive(barrier, 1, bytes, where);
}
inline void mbarrier_expect_tx(Mbarrier* barrier, uint32_t bytes, FASTNN_EMULATOR_HERE) {
  emulator::mbarrier_expect_tx(barrier, bytes, where);
}
inline bool mbarrier_test_wait(Mbarrier* barrier, uint32_t parity, FASTNN_EMULATOR_HERE) {
  return emulator::mbarrier_test(barrier, parity, where);
}
inline bool mbarrier_try_wait(Mbarrier* barrier, uint32_t parity, FASTNN_EMULATOR_HERE) {
  return emulator::mbarrier_test(barrier, parity, where);
}
inline void mbarrier_wait(Mbarrier* barrier, uint32_t parity, FASTNN_EMULATOR_HERE) {
  emulator::mbarrier_wait(barrier, parity, where);
}
inline void mbarrier_wait_cluster(Mbarrier* barrier, uint32_t parity, FASTNN_EMULATOR_HERE) {
  emulator::mbarrier_wait(barrier, parity, where);
}
inline bool mbarrier_test_wait_state(Mbarrier* barrier, uint64_t state, FASTNN_EMULATOR_HERE) {
  return emulator::mbarrier_test_state(barrier, state, where);
}
inline void mbarrier_wait_state(Mbarrier* barrier, uint64_t state, FASTNN_EMULATOR_HERE) {
  emulator::mbarrier_wait_state(barrier, state, where);
}
inline void mbarrier_arrive_remote(Mbarrier* barrier, uint32_t rank, FASTNN_EMULATOR_HERE) {
  emulator::mbarrier_arrive_remote(barrier, rank, where);
}
inline void fence_mbarrier_init() { emulator::mbarrier_publish_init(false); }
inline void fence_proxy_async() {
  emulator::mbarrier_publish_init(true);
  emulator::proxy_fence();
}
inline void fence_proxy_async_global() { emulator::proxy_fence(); }

}  // namespace fastnn::cuda
