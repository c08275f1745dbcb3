// What csrc/cuda/tma.cuh declares, for the emulator: see there. Loads move their bytes when a thread waits for
// the phase of their mbarrier, stores at the wait that lets shared memory be used again; both at the last
// moment that is allowed.
#pragma once

#include <cstdint>

#include "mbarrier.h"
#include "tensor_map.h"

namespace fastnn::emulator {

// Ranks of the cluster as a mask; 0 is the own block alone, without multicast.
struct LoadTarget {
  void* destination;
  Mbarrier* barrier;
  uint16_t mask;
};

void bulk_load(const LoadTarget& target, const void* source, uint32_t bytes, Where where);
void bulk_copy_to_rank(void* destination, const void* source, uint32_t bytes, Mbarrier* barrier, uint32_t rank,
                       Where where);
void bulk_store(void* destination, const void* source, uint32_t bytes, bool add, Where where);
void bulk_commit_group();
void bulk_wait_group(unsigned pending, bool read_only);

void tensor_load(const LoadTarget& target, const TensorMap* map, int rank, const int* coordinates, Where where);
void tensor_load_im2col(const LoadTarget& target, const TensorMap* map, int rank, const int* coordinates,
                        const int* offsets, Where where);
void tensor_store(const TensorMap* map, int rank, const int* coordinates, const void* source, bool add,
                  Where where);
void prefetch_tensor_map(const TensorMap* map, Where where);

}  // namespace fastnn::emulator

namespace fastnn::cuda {

inline void bulk_load(void* shared_destination, const void* global_source, uint32_t bytes, Mbarrier* barrier,
                      FASTNN_EMULATOR_HERE) {
  emulator::bulk_load({shared_destination, barrier, 0}, global_source, bytes, where);
}
inline void bulk_load_multicast(void* shared_destination, const void* global_source, uint32_t bytes,
                                Mbarrier* barrier, uint16_t ranks, FASTNN_EMULATOR_HERE) {
  if (ranks == 0) emulator::fail(where, "starts a multicast to no block");
  emulator::bulk_load({shared_destination, barrier, ranks}, global_source, bytes, where);
}
inline void bulk_copy_to_rank(void* destination, const void* source, uint32_t bytes, Mbarrier* barrier,
                              uint32_t rank, FASTNN_EMULATOR_HERE) {
  emulator::bulk_copy_to_rank(destination, source, bytes, barrier, rank, where);
}
inline void bulk_store(void* global_destination, const void* shared_source, uint32_t bytes,
                       FASTNN_EMULATOR_HERE) {
  emulator::bulk_store(global_destination, shared_source, bytes, false, where);
}
inline void bulk_reduce_add(float* global_destination, const float* shared_source, uint32_t bytes,
                            FASTNN_EMULATOR_HERE) {
  emulator::bulk_store(global_destination, shared_source, bytes, true, where);
}
inline void bulk_commit_group() { emulator::bulk_commit_group(); }
template <int kPending>
inline void bulk_wait_group() {
  static_assert(kPending >= 0);
  emulator::bulk_wait_group(kPending, false);
}
template <int kPending>
inline void bulk_wait_group_read() {
  static_assert(kPending >= 0);
  emulator::bulk_wait_group(kPending, true);
}

template <int kRank>
inline void tensor_load(void* shared_destination, const TensorMap* map, const int (&coordinates)[kRank],
                        Mbarrier* barrier, FASTNN_EMULATOR_HERE) {
  static_assert(kRank >= 1 && kRank <= 5);
  emulator::tensor_load({shared_destination, barrier, 0}, map, kRank, &coordinates[0], where);
}
template <int kRank>
inline void tensor_load_multicast(void* shared_destination, const TensorMap* map,
                                  const int (&coordinates)[kRank], Mbarrier* barrier, uint16_t ranks,
                                  FASTNN_EMULATOR_HERE) {
  static_assert(kRank >= 1 && kRank <= 5);
  if (ranks == 0) emulator::fail(where, "starts a multicast to no block");
  emulator::tensor_load({shared_destination, barrier, ranks}, map, kRank, &coordinates[0], where);
}
template <int kRank>
inline void tensor_load_im2col(void* shared_destination, const TensorMap* map, const int (&coordinates)[kRank],
                               const int (&offsets)[kRank - 2], Mbarrier* barrier, FASTNN_EMULATOR_HERE) {
  static_assert(kRank >= 3 && kRank <= 5);
  emulator::tensor_load_im2col({shared_destination, barrier, 0}, map, kRank, &coordinates[0], &offsets[0],
                               where);
}
template <int kRank>
inline void tensor_load_im2col_multicast(void* shared_destination, const TensorMap* map,
                                         const int (&coordinates)[kRank], const int (&offsets)[kRank - 2],
                                         Mbarrier* barrier, uint16_t ranks, FASTNN_EMULATOR_HERE) {
  static_assert(kRank >= 3 && kRank <= 5);
  if (ranks == 0) emulator::fail(where, "starts a multicast to no block");
  emulator::tensor_load_im2col({shared_destination, barrier, ranks}, map, kRank, &coordinates[0], &offsets[0],
                               where);
}
template <int kRank>
inline void tensor_store(const TensorMap* map, const int (&coordinates)[kRank], const void* shared_source,
                         FASTNN_EMULATOR_HERE) {
  static_assert(kRank >= 1 && kRank <= 5);
  emulator::tensor_store(map, kRank, &coordinates[0], shared_source, false, where);
}
template <int kRank>
inline void tensor_reduce_add(const TensorMap* map, const int (&coordinates)[kRank], const void* shared_source,
                              FASTNN_EMULATOR_HERE) {
  static_assert(kRank >= 1 && kRank <= 5);
  emulator::tensor_store(map, kRank, &coordinates[0], shared_source, true, where);
}
inline void prefetch_tensor_map(const TensorMap* map, FASTNN_EMULATOR_HERE) {
  emulator::prefetch_tensor_map(map, where);
}

}  // namespace fastnn::cuda
