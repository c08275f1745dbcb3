// Bulk and tensor copies with one mistake each.
#include "../../../csrc/cuda/tma.cuh"
#include "selftest.h"

namespace fastnn::selftest {
namespace {

using namespace fastnn::cuda;

enum class Mistake {
  kNone,
  kTooFewBytes,
  kTooManyBytes,
  kNoExpectation,
  kNoWait,
  kWrongParity,
  kNoInitFence,
  kReusedTooSoon,
  kOddSize,
  kMisaligned,
  kNotWaitedFor
};

constexpr uint32_t kBytes = 512;

// Adds up tiles that are loaded one after another into one place.
template <Mistake kMistake>
__global__ void load_kernel(const int* x, int* sums, int tiles) {
  FASTNN_SHARED(uint4, tile, 33);
  FASTNN_SHARED(Mbarrier, full, 1);
  int* const words = reinterpret_cast<int*>(&tile[0]);
  const int i = static_cast<int>(threadIdx.x);
  if (i == 0) {
    mbarrier_init(full, 1);
    if (kMistake != Mistake::kNoInitFence) fence_mbarrier_init();
  }
  __syncthreads();
  int sum = 0;
  for (int round = 0; round < tiles; ++round) {
    if (i == 0) {
      const uint32_t expected = kMistake == Mistake::kTooFewBytes    ? kBytes / 2
                                : kMistake == Mistake::kTooManyBytes ? kBytes + 16
                                                                     : kBytes;
      if (kMistake == Mistake::kNoExpectation) {
        mbarrier_arrive(full);
      } else {
        mbarrier_arrive_expect_tx(full, expected);
      }
      if (kMistake == Mistake::kOddSize) {
        bulk_load(tile, x + round * 128, kBytes - 4, full);
      } else {
        bulk_load(kMistake == Mistake::kMisaligned ? words + 2 : words, x + round * 128, kBytes / 2, full);
        bulk_load(words + 64, x + round * 128 + 64, kBytes / 2, full);
      }
    }
    if (kMistake == Mistake::kNotWaitedFor) return;
    const uint32_t parity = kMistake == Mistake::kWrongParity ? round % 2 ^ 1 : round % 2;
    if (kMistake != Mistake::kNoWait) mbarrier_wait(full, parity);
    // The barrier should come when all have read.
    if (kMistake == Mistake::kReusedTooSoon) __syncthreads();
    sum += words[127 - i];
    if (kMistake != Mistake::kReusedTooSoon) __syncthreads();
  }
  sums[i] = sum;
}

template <Mistake kMistake>
const char* run_load() {
  constexpr int kTiles = 3;
  DeviceArray<int> x(kTiles * 128), sums(128);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<int>(i);
  FASTNN_RUN("load_kernel", load_kernel<kMistake>, dim3(1), dim3(128), 0, nullptr, x.data(), sums.data(),
             kTiles);
  for (int i = 0; i < 128; ++i) FASTNN_EXPECT(sums[i] == 3 * (127 - i) + 3 * 128, "sum %d is %d", i, sums[i]);
  return nullptr;
}

FASTNN_CORRECT(bulk_loads_in_turn) { return run_load<Mistake::kNone>(); }
FASTNN_FAULTY(bulk_load_of_more_than_expected, "racecheck",
              R"re(load_kernel: .*too few bytes expected|^sum)re") {
  return run_load<Mistake::kTooFewBytes>();
}
FASTNN_FAULTY(bulk_load_of_less_than_expected, "hangs",
              R"re(load_kernel: .*phase 0 \(0 of 1 arrivals missing, 528 bytes expected, 512 under way)re") {
  return run_load<Mistake::kTooManyBytes>();
}
FASTNN_FAULTY(bulk_load_that_nobody_expects, "racecheck",
              R"re(load_kernel: .*(too few bytes|before any wait)|^sum)re") {
  return run_load<Mistake::kNoExpectation>();
}
FASTNN_FAULTY(bulk_load_read_before_the_wait, "racecheck", R"re(load_kernel: .*(race|uninitialised)|^sum)re") {
  return run_load<Mistake::kNoWait>();
}
FASTNN_FAULTY(bulk_load_wrong_parity, "racecheck", R"re(load_kernel: .*(race|uninitialised)|^sum)re") {
  return run_load<Mistake::kWrongParity>();
}
FASTNN_FAULTY(bulk_load_to_an_unpublished_mbarrier, "none",
              R"re(load_kernel: .*fence_mbarrier_init\(\) is missing)re") {
  return run_load<Mistake::kNoInitFence>();
}
FASTNN_FAULTY(bulk_load_into_a_tile_still_read, "racecheck",
              R"re(load_kernel: .*(race|uninitialised)|^sum)re") {
  return run_load<Mistake::kReusedTooSoon>();
}
FASTNN_FAULTY(bulk_load_of_an_odd_size, "memcheck", R"re(load_kernel: .*of 508 bytes: it takes)re") {
  return run_load<Mistake::kOddSize>();
}
FASTNN_FAULTY(bulk_load_to_a_misaligned_address, "memcheck", R"re(load_kernel: .*misaligned)re") {
  return run_load<Mistake::kMisaligned>();
}
FASTNN_FAULTY(bulk_load_left_behind, "memcheck",
              R"re(load_kernel: .*exit, while a copy to its shared memory)re") {
  return run_load<Mistake::kNotWaitedFor>();
}

// --- stores ---

enum class StoreMistake { kNone, kNoProxyFence, kOverwritten, kNoBarrier, kNoWait, kNotCommitted };

template <StoreMistake kMistake>
__global__ void store_kernel(int* y, int* sums) {
  FASTNN_SHARED(uint4, tile, 32);
  int* const words = reinterpret_cast<int*>(&tile[0]);
  const int i = static_cast<int>(threadIdx.x);
  for (int round = 0; round < 2; ++round) {
    words[i] = round * 1000 + i;
    if (kMistake != StoreMistake::kNoProxyFence) fence_proxy_async();
    if (kMistake != StoreMistake::kNoBarrier) __syncthreads();
    if (i == 0) {
      bulk_store(y + round * 128, tile, kBytes);
      if (kMistake != StoreMistake::kNotCommitted) bulk_commit_group();
      if (kMistake != StoreMistake::kOverwritten && kMistake != StoreMistake::kNoWait)
        bulk_wait_group_read<0>();
    }
    if (kMistake == StoreMistake::kNoWait) return;
    __syncthreads();
  }
  if (i == 0) bulk_wait_group<0>();
  sums[i] = words[i];
}

template <StoreMistake kMistake>
const char* run_store() {
  DeviceArray<int> y(256), sums(128);
  FASTNN_RUN("store_kernel", store_kernel<kMistake>, dim3(1), dim3(128), 0, nullptr, y.data(), sums.data());
  for (int i = 0; i < 256; ++i) FASTNN_EXPECT(y[i] == i / 128 * 1000 + i % 128, "[%d] is %d", i, y[i]);
  return nullptr;
}

FASTNN_CORRECT(bulk_stores_in_turn) { return run_store<StoreMistake::kNone>(); }
FASTNN_FAULTY(bulk_store_without_proxy_fence, "none", R"re(store_kernel: .*fence\.proxy\.async|^\[)re") {
  return run_store<StoreMistake::kNoProxyFence>();
}
FASTNN_FAULTY(bulk_store_overwritten_too_soon, "racecheck", R"re(store_kernel: .*(race|uninitialised)|^\[)re") {
  return run_store<StoreMistake::kOverwritten>();
}
FASTNN_FAULTY(bulk_store_without_barrier, "racecheck", R"re(store_kernel: .*(race|uninitialised)|^\[)re") {
  return run_store<StoreMistake::kNoBarrier>();
}
FASTNN_FAULTY(bulk_store_left_behind, "none", R"re(store_kernel: .*exits while a bulk store .*waited)re") {
  return run_store<StoreMistake::kNoWait>();
}
FASTNN_FAULTY(bulk_store_never_committed, "none", R"re(store_kernel: .*(race|never committed)|^\[)re") {
  return run_store<StoreMistake::kNotCommitted>();
}

// --- tensor copies ---

enum class TensorMistake { kNone, kMisaligned, kOtherKind, kOtherRank, kNegativeStore };

template <TensorMistake kMistake>
__global__ void tensor_kernel(const __grid_constant__ TensorMap map, int* out) {
  FASTNN_DYNAMIC_SHARED_ALIGNED(int, tile, 128);
  FASTNN_SHARED(Mbarrier, full, 1);
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  int* const place = kMistake == TensorMistake::kMisaligned ? tile + 16 : tile;
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(full, 128);
    if constexpr (kMistake == TensorMistake::kOtherKind) {
      tensor_load_im2col(place, &map, {0, 0, 0}, {0}, full);
    } else if constexpr (kMistake == TensorMistake::kOtherRank) {
      tensor_load(place, &map, {0, 0, 0}, full);
    } else {
      tensor_load(place, &map, {0, 2}, full);
    }
  }
  mbarrier_wait(full, 0);
  out[threadIdx.x] = place[threadIdx.x];
  if constexpr (kMistake == TensorMistake::kNegativeStore) {
    if (threadIdx.x == 0) {
      tensor_store(&map, {0, -1}, place);
      bulk_commit_group();
      bulk_wait_group<0>();
    }
  }
}

template <TensorMistake kMistake>
const char* run_tensor() {
  DeviceArray<int> x(16 * 8), out(32);
  for (int i = 0; i < 128; ++i) x[i] = i;
  TensorMap map;
  const Status status = encode_tiled(
      map, {.type = TensorType::kInt32, .rank = 2, .data = x.data(), .sizes = {16, 8}, .strides = {0, 64}},
      {.sizes = {16, 2}});
  FASTNN_EXPECT(status.ok(), "%s", status.message);
  FASTNN_RUN("tensor_kernel", tensor_kernel<kMistake>, dim3(1), dim3(32), 256, nullptr, map, out.data());
  for (int i = 0; i < 32; ++i) FASTNN_EXPECT(out[i] == 32 + i, "[%d] is %d", i, out[i]);
  return nullptr;
}

FASTNN_CORRECT(tensor_load_of_two_rows) { return run_tensor<TensorMistake::kNone>(); }
FASTNN_FAULTY(tensor_load_to_a_misaligned_tile, "memcheck", R"re(tensor_kernel: .*misaligned)re") {
  return run_tensor<TensorMistake::kMisaligned>();
}
FASTNN_FAULTY(tensor_map_of_another_kind, "memcheck", R"re(tensor_kernel: .*was encoded tiled)re") {
  return run_tensor<TensorMistake::kOtherKind>();
}
FASTNN_FAULTY(tensor_map_of_another_rank, "none", R"re(tensor_kernel: .*of rank 2 for a copy of rank 3)re") {
  return run_tensor<TensorMistake::kOtherRank>();
}
FASTNN_FAULTY(tensor_store_from_a_negative_coordinate, "none", R"re(tensor_kernel: .*may not be negative)re") {
  return run_tensor<TensorMistake::kNegativeStore>();
}

}  // namespace
}  // namespace fastnn::selftest
