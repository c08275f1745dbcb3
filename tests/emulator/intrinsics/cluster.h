// Barriers and shared memory of a cluster, named barriers of a block, loads and
// stores that order: the host meanings of csrc/cuda/cluster.cuh, whose comments hold for them.
#pragma once

#include <type_traits>

#include "../runtime.h"
#include "atomics.h"
#include "synchronization.h"

namespace fastnn::emulator {

void named_barrier(unsigned id, unsigned threads, bool wait, Where where);
unsigned blocks_of_cluster(Where where);
void gang_arrive(Where where);
void gang_wait(Where where);
void gang_sync(Where where);

}  // namespace fastnn::emulator

namespace fastnn::cuda {

inline void named_barrier_sync(int id, int threads, FASTNN_EMULATOR_HERE) {
  emulator::named_barrier(static_cast<unsigned>(id), static_cast<unsigned>(threads), true, where);
}
inline void named_barrier_arrive(int id, int threads, FASTNN_EMULATOR_HERE) {
  emulator::named_barrier(static_cast<unsigned>(id), static_cast<unsigned>(threads), false, where);
}

inline unsigned cluster_rank() { return emulator::current_thread().rank; }
inline unsigned cluster_size(FASTNN_EMULATOR_HERE) { return emulator::blocks_of_cluster(where); }
inline void cluster_arrive(FASTNN_EMULATOR_HERE) { emulator::gang_arrive(where); }
inline void cluster_wait(FASTNN_EMULATOR_HERE) { emulator::gang_wait(where); }
inline void cluster_sync(FASTNN_EMULATOR_HERE) { emulator::gang_sync(where); }
template <typename T>
T* map_shared_rank(T* address, unsigned rank, FASTNN_EMULATOR_HERE) {
  return static_cast<T*>(emulator::map_shared(
      const_cast<const std::remove_const_t<std::remove_volatile_t<T>>*>(address), rank, where));
}

inline unsigned load_acquire(const unsigned* address) {
  const unsigned value = *const_cast<const volatile unsigned*>(address);
  emulator::fence_acquire(emulator::FenceScope::kDevice);
  return value;
}
inline void store_release(unsigned* address, unsigned value) {
  emulator::fence_release(emulator::FenceScope::kDevice);
  *const_cast<volatile unsigned*>(address) = value;
}
inline unsigned atomic_add_acq_rel(unsigned* address, unsigned value) {
  emulator::fence_release(emulator::FenceScope::kDevice);
  const unsigned old = atomicAdd(address, value);
  emulator::fence_acquire(emulator::FenceScope::kDevice);
  return old;
}
inline void add_release(unsigned* address, unsigned value) {
  emulator::fence_release(emulator::FenceScope::kDevice);
  atomicAdd(address, value);
}

}  // namespace fastnn::cuda
