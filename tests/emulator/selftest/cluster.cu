// Threads that wait for each other in larger and smaller groups than a block: named barriers, clusters with
// their shared memory, cooperative grids.
#include "../../../csrc/cuda/cluster.cuh"
#include "selftest.h"

namespace fastnn::selftest {
namespace {

using namespace cuda;

// --- named barriers ---

// Warp 0 fills a buffer of two, warp 1 reads it: barriers 1 and 2 say that a half is full, 3 and 4 that it is
// empty.
enum Pairs { kPairsRight, kPairsNoEmpty, kPairsWrongCount, kPairsMissing };
__global__ void warp_pairs_kernel(Pairs fault, int* out) {
  FASTNN_SHARED(int, buffer, 64);
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (threadIdx.x < 32) {
    for (int r = 0; r < 6; ++r) {
      const int half = r % 2;
      if (r >= 2 && fault != kPairsNoEmpty) named_barrier_sync(3 + half, 64);
      buffer[half * 32 + lane] = 100 * r + lane;
      if (fault != kPairsMissing || r < 5) named_barrier_arrive(1 + half, fault == kPairsWrongCount ? 32 : 64);
    }
  } else {
    int sum = 0;
    for (int r = 0; r < 6; ++r) {
      const int half = r % 2;
      named_barrier_sync(1 + half, 64);
      sum += buffer[half * 32 + (31 - lane)];
      if (r < 4 && fault != kPairsNoEmpty) named_barrier_arrive(3 + half, 64);
    }
    out[lane] = sum;
  }
}
const char* run_pairs(Pairs fault) {
  DeviceArray<int> out(32);
  FASTNN_RUN("warp_pairs_kernel", warp_pairs_kernel, dim3(1), dim3(64), 0, nullptr, fault, out.data());
  for (int i = 0; i < 32; ++i) FASTNN_EXPECT(out[i] == 1500 + 6 * (31 - i), "out[%d] is %d", i, out[i]);
  return nullptr;
}
FASTNN_CORRECT(warps_in_pairs) { return run_pairs(kPairsRight); }
FASTNN_FAULTY(named_barrier_that_says_empty_is_missing, "racecheck", R"re(a race)re") {
  return run_pairs(kPairsNoEmpty);
}
FASTNN_FAULTY(named_barrier_with_two_counts, "hangs", R"re(barrier 1 for 64 threads .* for 32|deadlock)re") {
  return run_pairs(kPairsWrongCount);
}
FASTNN_FAULTY(named_barrier_never_arrived_at, "hangs",
              R"re(deadlock.*: waits at barrier 2 for 64 threads, of which 32 have arrived)re") {
  return run_pairs(kPairsMissing);
}

__global__ void named_barrier_kernel(int id, int threads) { named_barrier_sync(id, threads); }
FASTNN_FAULTY(named_barrier_of_part_of_a_warp, "synccheck",
              R"re(for 40 threads, which is no multiple of 32)re") {
  FASTNN_RUN("named_barrier_kernel", named_barrier_kernel, dim3(1), dim3(64), 0, nullptr, 1, 40);
  return nullptr;
}
FASTNN_FAULTY(named_barrier_16, "none", R"re(names barrier 16 of 16)re") {
  FASTNN_RUN("named_barrier_kernel", named_barrier_kernel, dim3(1), dim3(64), 0, nullptr, 16, 64);
  return nullptr;
}

// --- clusters ---

enum Cluster {
  kClusterRight,
  kClusterNoFirst,
  kClusterNoLast,
  kClusterBadRank,
  kClusterSplit,
  kClusterSplitEarly
};
__global__ void ring_of_blocks_kernel(Cluster fault, int* out) {
  FASTNN_SHARED(int, mine, 32);
  const unsigned rank = cluster_rank(), size = cluster_size();
  mine[threadIdx.x] = static_cast<int>(100 * blockIdx.x + threadIdx.x);
  const unsigned next = fault == kClusterBadRank ? size : (rank + 1) % size;
  if (fault == kClusterSplit || fault == kClusterSplitEarly) {
    cluster_arrive();
    if (fault == kClusterSplitEarly) mine[threadIdx.x] += 1;
    cluster_wait();
  } else if (fault != kClusterNoFirst) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  const int* const theirs = map_shared_rank(mine, next);
  out[blockIdx.x * 32 + threadIdx.x] = theirs[31 - threadIdx.x];
  if (fault != kClusterNoLast) cluster_sync();
}
const char* run_ring(Cluster fault) {
  DeviceArray<int> out(8 * 32);
  FASTNN_RUN_WITH(launch_cluster, "ring_of_blocks_kernel", ring_of_blocks_kernel, dim3(8), dim3(4), dim3(32), 0,
                  nullptr, fault, out.data());
  for (int b = 0; b < 8; ++b) {
    for (int i = 0; i < 32; ++i) {
      const int expected = 100 * (b / 4 * 4 + (b + 1) % 4) + 31 - i;
      FASTNN_EXPECT(out[b * 32 + i] == expected, "block %d, thread %d: %d", b, i, out[b * 32 + i]);
    }
  }
  return nullptr;
}
FASTNN_CORRECT(cluster_ring) { return run_ring(kClusterRight); }
FASTNN_CORRECT(cluster_arrives_and_waits) { return run_ring(kClusterSplit); }
FASTNN_FAULTY(cluster_memory_before_the_first_sync, "racecheck", R"re(uninitialised|a race|out of bounds)re") {
  return run_ring(kClusterNoFirst);
}
FASTNN_FAULTY(cluster_memory_written_after_the_arrival, "racecheck", R"re(a race)re") {
  return run_ring(kClusterSplitEarly);
}
FASTNN_FAULTY(cluster_memory_after_its_block, "memcheck",
              R"re(whose block has exited|cluster_sync\(\) is missing at the end)re") {
  return run_ring(kClusterNoLast);
}
FASTNN_FAULTY(cluster_rank_too_large, "memcheck", R"re(names block 4 of a cluster of 4)re") {
  return run_ring(kClusterBadRank);
}
FASTNN_FAULTY(cluster_that_does_not_divide_the_grid, "none", R"re(a grid of \(6, 1, 1\) is no multiple)re") {
  DeviceArray<int> out(6 * 32);
  FASTNN_RUN_WITH(launch_cluster, "ring_of_blocks_kernel", ring_of_blocks_kernel, dim3(6), dim3(4), dim3(32), 0,
                  nullptr, kClusterRight, out.data());
  return nullptr;
}

// Every block stores its number into the memory of all, round after round: two copies take turns, so that one
// meeting a round is enough.
enum Rounds { kRoundsRight, kRoundsOneCopy, kRoundsNoLast };
__global__ void rounds_of_stores_kernel(Rounds fault, int rounds, int* out) {
  FASTNN_SHARED(int, given, 2 * 4);
  const unsigned rank = cluster_rank(), size = cluster_size();
  if (threadIdx.x < 2 * size) given[threadIdx.x] = 1;
  cluster_sync();
  for (int r = 0; r < rounds; ++r) {
    int sum = 0;
    const int from = fault == kRoundsOneCopy ? 0 : r % 2, to = fault == kRoundsOneCopy ? 0 : 1 - from;
    for (unsigned k = 0; k < size; ++k) sum += given[from * 4 + static_cast<int>(k)];
    if (threadIdx.x < size) {
      *map_shared_rank(given + to * 4 + rank, threadIdx.x) = sum + static_cast<int>(rank);
    }
    if (threadIdx.x == 0 && r == rounds - 1) out[blockIdx.x] = sum;
    cluster_arrive();
    if (fault != kRoundsNoLast || r < rounds - 1) cluster_wait();
  }
}
const char* run_rounds(Rounds fault) {
  DeviceArray<int> out(8);
  FASTNN_RUN_WITH(launch_cluster, "rounds_of_stores_kernel", rounds_of_stores_kernel, dim3(8), dim3(4),
                  dim3(32), 0, nullptr, fault, 3, out.data());
  // 4 ones; each 4 + rank, 22 in all; each 22 + rank, 94 in all.
  for (const int v : out) FASTNN_EXPECT(v == 94, "the sum is %d", v);
  return nullptr;
}
FASTNN_CORRECT(cluster_rounds_of_stores) { return run_rounds(kRoundsRight); }
FASTNN_FAULTY(cluster_rounds_of_one_copy, "racecheck", R"re(a race)re") { return run_rounds(kRoundsOneCopy); }
FASTNN_FAULTY(cluster_stores_after_its_block, "memcheck",
              R"re(whose block has exited|cluster_sync\(\) is missing at the end|a race)re") {
  return run_rounds(kRoundsNoLast);
}

// Sums over a cluster of (2, 2): every block adds into the first one's memory.
__global__ void cluster_sum_kernel(int* out) {
  FASTNN_SHARED(int, sum, 1);
  if (threadIdx.x == 0) sum[0] = 0;
  cluster_sync();
  atomicAdd(map_shared_rank(sum, 0), static_cast<int>(threadIdx.x));
  cluster_sync();
  if (cluster_rank() == 0 && threadIdx.x == 0) out[blockIdx.y / 2 * gridDim.x / 2 + blockIdx.x / 2] = sum[0];
}
FASTNN_CORRECT(cluster_atomics) {
  DeviceArray<int> out(6);
  FASTNN_RUN_WITH(launch_cluster, "cluster_sum_kernel", cluster_sum_kernel, dim3(6, 4), dim3(2, 2), dim3(64), 0,
                  nullptr, out.data());
  for (const int v : out) FASTNN_EXPECT(v == 4 * 64 * 63 / 2, "the sum is %d", v);
  return nullptr;
}

// --- cooperative grids ---

enum Grid { kGridRight, kGridOneBarrier, kGridRelaxed };
__global__ void jacobi_kernel(Grid fault, int rounds, unsigned* barrier, float* x, float* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  for (int r = 0; r < rounds; ++r) {
    float* const from = r % 2 == 0 ? x : y;
    float* const to = r % 2 == 0 ? y : x;
    if (i < n) to[i] = 0.5f * (from[(i + 1) % n] + from[(i + n - 1) % n]);
    if (fault == kGridRelaxed) {
      __syncthreads();
      if (threadIdx.x == 0) {
        const unsigned target = (static_cast<unsigned>(r) + 1) * gridDim.x;
        atomicAdd(barrier, 1u);
        while (*static_cast<volatile unsigned*>(barrier) < target) __nanosleep(20);
      }
      __syncthreads();
    } else if (fault == kGridRight || r % 2 == 0) {
      grid_sync(barrier);
    }
  }
}
const char* run_jacobi(Grid fault) {
  constexpr int kCount = 4 * 64 - 3, kRounds = 6;
  DeviceArray<float> x(kCount), y(kCount);
  DeviceArray<unsigned> barrier(1);
  for (int i = 0; i < kCount; ++i) x[i] = static_cast<float>(i * 37 % 64);
  std::vector<float> expected(x.begin(), x.end()), next(kCount);
  for (int r = 0; r < kRounds; ++r) {
    for (int i = 0; i < kCount; ++i) {
      next[i] = 0.5f * (expected[(i + 1) % kCount] + expected[(i + kCount - 1) % kCount]);
    }
    expected.swap(next);
  }
  FASTNN_RUN_WITH(launch_cooperative, "jacobi_kernel", jacobi_kernel, dim3(4), dim3(64), 0, nullptr, fault,
                  kRounds, barrier.data(), x.data(), y.data(), kCount);
  for (int i = 0; i < kCount; ++i) FASTNN_EXPECT(x[i] == expected[i], "x[%d] is %g", i, x[i]);
  return nullptr;
}
FASTNN_CORRECT(grid_barrier) { return run_jacobi(kGridRight); }
FASTNN_FAULTY(grid_barrier_left_out, "none", R"re(a race)re") { return run_jacobi(kGridOneBarrier); }
FASTNN_FAULTY(grid_barrier_without_fences, "none", R"re(a race)re") { return run_jacobi(kGridRelaxed); }

FASTNN_FAULTY(grid_barrier_in_a_common_launch, "none", R"re(livelock: .*unless the launch is cooperative)re") {
  DeviceArray<float> x(2048), y(2048);
  DeviceArray<unsigned> barrier(1);
#if defined(FASTNN_EMULATOR)
  FASTNN_RUN("jacobi_kernel", jacobi_kernel, dim3(2048), dim3(1), 0, nullptr, kGridRight, 1, barrier.data(),
             x.data(), y.data(), 2048);
  return nullptr;
#else
  return "livelock: not tried on a device, unless the launch is cooperative";
#endif
}
FASTNN_FAULTY(cooperative_grid_too_large, "none", R"re(cooperative grid of 5000 blocks|too many blocks)re") {
  DeviceArray<float> x(5000), y(5000);
  DeviceArray<unsigned> barrier(1);
  FASTNN_RUN_WITH(launch_cooperative, "jacobi_kernel", jacobi_kernel, dim3(5000), dim3(1024), 0, nullptr,
                  kGridRight, 1, barrier.data(), x.data(), y.data(), 5000);
  return nullptr;
}

// A block after the other, by a flag.
__global__ void relay_kernel(bool release, unsigned* flag, int* value) {
  if (threadIdx.x == 0) {
    while (load_acquire(flag) != blockIdx.x) __nanosleep(20);
    value[0] += 1;
    if (release) {
      store_release(flag, blockIdx.x + 1);
    } else {
      *static_cast<volatile unsigned*>(flag) = blockIdx.x + 1;
    }
  }
}
FASTNN_CORRECT(relay_by_release_and_acquire) {
  DeviceArray<unsigned> flag(1);
  DeviceArray<int> value(1);
  FASTNN_RUN_WITH(launch_cooperative, "relay_kernel", relay_kernel, dim3(8), dim3(32), 0, nullptr, true,
                  flag.data(), value.data());
  FASTNN_EXPECT(value[0] == 8, "the value is %d", value[0]);
  return nullptr;
}
FASTNN_FAULTY(relay_without_release, "none",
              R"re(of global memory at byte 0 of 4, which thread .* writes .* a race)re") {
  DeviceArray<unsigned> flag(1);
  DeviceArray<int> value(1);
  FASTNN_RUN_WITH(launch_cooperative, "relay_kernel", relay_kernel, dim3(8), dim3(32), 0, nullptr, false,
                  flag.data(), value.data());
  return nullptr;
}
FASTNN_FAULTY(flag_that_nobody_sets, "hangs", R"re(livelock: threads spin)re") {
  DeviceArray<unsigned> flag(1, 7);
  DeviceArray<int> value(1);
  FASTNN_RUN_WITH(launch_cooperative, "relay_kernel", relay_kernel, dim3(2), dim3(32), 0, nullptr, true,
                  flag.data(), value.data());
  return nullptr;
}

}  // namespace
}  // namespace fastnn::selftest
