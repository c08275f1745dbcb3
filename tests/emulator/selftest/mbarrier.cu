// mbarriers without copies: producers and consumers in rounds, and what can go wrong between them.
#include <algorithm>

#include "../../../csrc/cuda/cluster.cuh"
#include "../../../csrc/cuda/mbarrier.cuh"
#include "selftest.h"

namespace fastnn::selftest {
namespace {

using namespace fastnn::cuda;

constexpr int kStages = 2, kRounds = 7;

enum class Mistake {
  kNone,
  kNoInit,
  kNoBarrierAfterInit,
  kWrongParity,
  kProducerDoesNotWait,
  kArriveTwice,
  kMissingArrival
};

// Warp 0 writes, warp 1 adds up: through a ring of two stages, each with a barrier for "full" and one for
// "empty".
template <Mistake kMistake>
__global__ void ring_kernel(int* out) {
  FASTNN_SHARED(int, ring, kStages * 32);
  FASTNN_SHARED(Mbarrier, full, kStages);
  FASTNN_SHARED(Mbarrier, empty, kStages);
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(&empty[stage], 32);
      if (kMistake != Mistake::kNoInit) mbarrier_init(&full[stage], 32);
    }
  }
  if (kMistake != Mistake::kNoBarrierAfterInit) __syncthreads();
  int sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    const int stage = round % kStages;
    const uint32_t parity = round / kStages % 2;
    int* const mine = &ring[stage * 32 + lane];
    if (threadIdx.x < 32) {
      // On a fresh barrier parity 1 is that of the phase before the first: complete.
      if (kMistake != Mistake::kProducerDoesNotWait) mbarrier_wait(&empty[stage], parity ^ 1);
      *mine = round * 100 + lane;
      if (kMistake == Mistake::kMissingArrival && round == 3 && lane == 5) continue;
      mbarrier_arrive(&full[stage]);
      if (kMistake == Mistake::kArriveTwice && lane == 5) mbarrier_arrive(&full[stage]);
    } else {
      mbarrier_wait(&full[stage], kMistake == Mistake::kWrongParity ? parity ^ 1 : parity);
      sum += ring[stage * 32 + 31 - lane];
      mbarrier_arrive(&empty[stage]);
    }
  }
  if (threadIdx.x >= 32) out[lane] = sum;
}

template <Mistake kMistake>
const char* run_ring() {
  DeviceArray<int> out(32);
  FASTNN_RUN("ring_kernel", ring_kernel<kMistake>, dim3(1), dim3(64), 0, nullptr, out.data());
  for (int i = 0; i < 32; ++i) {
    const int expected = kRounds * (31 - i) + 100 * (kRounds * (kRounds - 1) / 2);
    FASTNN_EXPECT(out[i] == expected, "sum %d is %d", i, out[i]);
  }
  return nullptr;
}

FASTNN_CORRECT(mbarrier_ring) { return run_ring<Mistake::kNone>(); }
FASTNN_FAULTY(mbarrier_not_initialised, "none", R"re(ring_kernel: .*there is no mbarrier)re") {
  return run_ring<Mistake::kNoInit>();
}
FASTNN_FAULTY(mbarrier_initialised_without_a_barrier_after, "none",
              R"re(ring_kernel: .*(race|there is no mbarrier))re") {
  return run_ring<Mistake::kNoBarrierAfterInit>();
}
FASTNN_FAULTY(mbarrier_wait_for_the_wrong_parity, "hangs",
              R"re(ring_kernel: .*(race|uninitialised|deadlock)|^sum)re") {
  return run_ring<Mistake::kWrongParity>();
}
FASTNN_FAULTY(mbarrier_producer_does_not_wait, "racecheck",
              R"re(ring_kernel: .*(race|uninitialised|before any wait)|^sum)re") {
  return run_ring<Mistake::kProducerDoesNotWait>();
}
FASTNN_FAULTY(mbarrier_one_arrival_too_many, "synccheck",
              R"re(ring_kernel: .*(too many arrive|more arrivals|race|uninitialised)|^sum)re") {
  return run_ring<Mistake::kArriveTwice>();
}
FASTNN_FAULTY(
    mbarrier_one_arrival_too_few, "hangs",
    R"re(ring_kernel: .*mbarrier at shared address 0x[0-9a-f]+, phase 1 \(1 of 32 arrivals missing)re") {
  return run_ring<Mistake::kMissingArrival>();
}

// --- states, counts, polling ---

// As __syncthreads(), by states; thread 0 polls.
__global__ void states_kernel(int* out) {
  FASTNN_SHARED(int, values, 64);
  FASTNN_SHARED(Mbarrier, barrier, 1);
  const int i = static_cast<int>(threadIdx.x);
  if (i == 0) mbarrier_init(barrier, 64);
  __syncthreads();
  int value = i;
  for (int round = 0; round < 5; ++round) {
    values[i] = value;
    const uint64_t written = mbarrier_arrive(barrier);
    if (i == 0) {
      while (!mbarrier_test_wait_state(barrier, written)) {
      }
    } else {
      mbarrier_wait_state(barrier, written);
    }
    value = values[(i + 1) % 64];
    mbarrier_wait_state(barrier, mbarrier_arrive(barrier));
  }
  out[blockIdx.x * 64 + i] = value;
}

FASTNN_CORRECT(mbarrier_waits_for_states) {
  DeviceArray<int> out(3 * 64);
  FASTNN_RUN("states_kernel", states_kernel, dim3(3), dim3(64), 0, nullptr, out.data());
  for (int i = 0; i < 3 * 64; ++i) FASTNN_EXPECT(out[i] == (i + 5) % 64, "[%d] is %d", i, out[i]);
  return nullptr;
}

// One warp's lane arrives for all of it; the memory then serves another barrier.
__global__ void counts_kernel(int* out, unsigned count) {
  FASTNN_SHARED(int, values, 64);
  FASTNN_SHARED(Mbarrier, barrier, 1);
  const int i = static_cast<int>(threadIdx.x);
  for (int round = 0; round < 3; ++round) {
    if (i == 0) mbarrier_init(barrier, 64);
    __syncthreads();
    if (i < 32) {
      values[i] = round + i;
      __syncwarp();
      if (i == 0) mbarrier_arrive(barrier, count);
    } else {
      values[i] = round + i;
      mbarrier_arrive(barrier);
    }
    while (!mbarrier_try_wait(barrier, 0)) {
    }
    out[i] = values[63 - i];
    __syncthreads();
    if (i == 0) mbarrier_invalidate(barrier);
    __syncthreads();
  }
}

const char* run_counts(unsigned count) {
  DeviceArray<int> out(64);
  FASTNN_RUN("counts_kernel", counts_kernel, dim3(1), dim3(64), 0, nullptr, out.data(), count);
  for (int i = 0; i < 64; ++i) FASTNN_EXPECT(out[i] == 2 + 63 - i, "[%d] is %d", i, out[i]);
  return nullptr;
}
FASTNN_CORRECT(mbarrier_counts_and_reuse) { return run_counts(32); }
FASTNN_FAULTY(mbarrier_arrival_of_zero, "none", R"re(counts_kernel: .*arrives 0 times at once)re") {
  return run_counts(0);
}
FASTNN_FAULTY(mbarrier_arrival_of_too_many, "none", R"re(counts_kernel: .*more arrivals than expected)re") {
  return run_counts(65);
}

__global__ void init_kernel(unsigned count, int offset, bool twice, bool late) {
  FASTNN_SHARED(Mbarrier, barriers, 2);
  Mbarrier* const barrier = reinterpret_cast<Mbarrier*>(reinterpret_cast<char*>(&barriers[0]) + offset);
  mbarrier_init(barrier, count);
  if (twice) mbarrier_init(barrier, count);
  if (late) mbarrier_invalidate(barrier);
  mbarrier_arrive(barrier);
}

const char* run_init(unsigned count, int offset, bool twice, bool late) {
  FASTNN_RUN("init_kernel", init_kernel, dim3(1), dim3(1), 0, nullptr, count, offset, twice, late);
  return nullptr;
}
FASTNN_CORRECT(mbarrier_with_the_largest_count) { return run_init((1u << 20) - 1, 8, false, false); }
FASTNN_FAULTY(mbarrier_for_no_arrival, "none", R"re(init_kernel: .*for 0 arrivals)re") {
  return run_init(0, 0, false, false);
}
FASTNN_FAULTY(mbarrier_for_too_many_arrivals, "none", R"re(init_kernel: .*for 1048576 arrivals)re") {
  return run_init(1u << 20, 0, false, false);
}
FASTNN_FAULTY(mbarrier_misaligned, "memcheck", R"re(init_kernel: .*misaligned)re") {
  return run_init(1, 4, false, false);
}
FASTNN_FAULTY(mbarrier_initialised_twice, "none", R"re(init_kernel: .*is in use)re") {
  return run_init(1, 0, true, false);
}
FASTNN_FAULTY(mbarrier_used_after_invalidation, "none", R"re(init_kernel: .*there is no mbarrier)re") {
  return run_init(1, 0, false, true);
}

// The phase completes again and again, and nobody looks.
__global__ void unwatched_kernel() {
  FASTNN_SHARED(Mbarrier, barrier, 1);
  mbarrier_init(barrier, 1);
  mbarrier_arrive(barrier);
  mbarrier_arrive(barrier);
}
FASTNN_FAULTY(mbarrier_phase_that_nobody_saw, "synccheck", R"re(unwatched_kernel: .*a wait is missing)re") {
  FASTNN_RUN("unwatched_kernel", unwatched_kernel, dim3(1), dim3(1), 0, nullptr);
  return nullptr;
}

// --- in a cluster ---

// Every block writes into its right neighbour's memory and says so there.
template <bool kWait>
__global__ void neighbours_kernel(int* out) {
  FASTNN_SHARED(int, inbox, 32);
  FASTNN_SHARED(Mbarrier, full, 1);
  const unsigned lane = threadIdx.x, rank = cluster_rank(), right = (rank + 1) % cluster_size();
  if (lane == 0) {
    mbarrier_init(full, 32);
    fence_mbarrier_init();
  }
  cluster_sync();
  *map_shared_rank(&inbox[lane], right) = static_cast<int>(1000 * rank + lane);
  mbarrier_arrive_remote(full, right);
  if constexpr (kWait) mbarrier_wait_cluster(full, 0);
  out[blockIdx.x * 32 + lane] = inbox[31 - lane];
  cluster_sync();
}

template <bool kWait>
const char* run_neighbours() {
  DeviceArray<int> out(4 * 32);
  FASTNN_RUN_WITH(launch_cluster, "neighbours_kernel", neighbours_kernel<kWait>, dim3(4), dim3(2), dim3(32), 0,
                  nullptr, out.data());
  for (int i = 0; i < 4 * 32; ++i) {
    const int rank = i / 32 % 2;
    FASTNN_EXPECT(out[i] == 1000 * (1 - rank) + 31 - i % 32, "[%d] is %d", i, out[i]);
  }
  return nullptr;
}
FASTNN_CORRECT(mbarrier_of_another_block) { return run_neighbours<true>(); }
FASTNN_FAULTY(mbarrier_of_another_block_not_waited_for, "racecheck",
              R"re(neighbours_kernel: .*(race|uninitialised)|^\[\d+\] is)re") {
  return run_neighbours<false>();
}

// All lanes of a warp read a word, each in another step of its own, and tell a second warp, which writes it; or
// all but the first that reads.
template <bool kAllTell>
__global__ void readers_apart_kernel(int* out) {
  FASTNN_SHARED(int, word, 1);
  FASTNN_SHARED(Mbarrier, before, 1);
  FASTNN_SHARED(Mbarrier, after, 1);
  if (threadIdx.x == 0) {
    word[0] = 7;
    mbarrier_init(before, 31);
    mbarrier_init(after, kAllTell ? 32 : 31);
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    if (threadIdx.x > 0) mbarrier_arrive(before);
    out[threadIdx.x] = word[0];
    if (kAllTell || threadIdx.x > 0) mbarrier_arrive(after);
  } else if (threadIdx.x == 32) {
    mbarrier_wait(after, 0);
    word[0] = 8;
  }
}

template <bool kAllTell>
const char* run_readers_apart() {
  DeviceArray<int> out(32);
  FASTNN_RUN("readers_apart_kernel", readers_apart_kernel<kAllTell>, dim3(1), dim3(64), 0, nullptr, out.data());
  FASTNN_EXPECT(std::count(out.begin(), out.end(), 7) == 32, "a lane has read another number");
  return nullptr;
}
FASTNN_CORRECT(readers_apart) { return run_readers_apart<true>(); }
FASTNN_FAULTY(one_of_the_readers_apart_is_not_waited_for, "racecheck",
              R"re(readers_apart_kernel: .*a race|another number)re") {
  return run_readers_apart<false>();
}

}  // namespace
}  // namespace fastnn::selftest
