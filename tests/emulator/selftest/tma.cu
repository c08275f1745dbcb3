// Bulk and tensor copies (sm_90): every mode against a plain formula.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../../../csrc/cuda/cluster.cuh"
#include "../../../csrc/cuda/tma.cuh"
#include "selftest.h"

namespace fastnn::selftest {
namespace {

using namespace fastnn::cuda;

struct Coordinates {
  int at[5];
};

__device__ void start_barrier(Mbarrier* barrier) {
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
}

// --- bulk copies ---

struct alignas(16) Line {
  int words[4];
};

// Through a ring of two stages in, and one tile out.
__global__ void bulk_kernel(const int* x, int* y, int tiles) {
  FASTNN_SHARED(Line, in, 2 * 32);
  FASTNN_SHARED(Line, out, 32);
  FASTNN_SHARED(Mbarrier, full, 2);
  constexpr uint32_t kBytes = 32 * sizeof(Line);
  const int i = static_cast<int>(threadIdx.x);
  const auto load = [&](int tile) {
    if (i != 0 || tile >= tiles) return;
    mbarrier_arrive_expect_tx(&full[tile % 2], kBytes);
    bulk_load(&in[tile % 2 * 32], x + tile * 128, kBytes, &full[tile % 2]);
  };
  if (i == 0) {
    mbarrier_init(&full[0], 1);
    mbarrier_init(&full[1], 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  load(0);
  for (int tile = 0; tile < tiles; ++tile) {
    load(tile + 1);
    mbarrier_wait(&full[tile % 2], tile / 2 % 2);
    Line line = in[tile % 2 * 32 + 31 - i];
    for (int& word : line.words) word += 5;
    if (i == 0) bulk_wait_group_read<0>();  // the tile before has left
    __syncthreads();
    out[i] = line;
    fence_proxy_async();
    __syncthreads();  // also: all have read stage tile % 2
    if (i == 0) {
      bulk_store(y + tile * 128, &out[0], kBytes);
      bulk_commit_group();
    }
  }
  if (i == 0) bulk_wait_group<0>();
}

FASTNN_CORRECT(bulk_copies_both_ways) {
  constexpr int kTiles = 5;
  DeviceArray<int> x(kTiles * 128), y(kTiles * 128);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<int>(i);
  FASTNN_RUN("bulk_kernel", bulk_kernel, dim3(1), dim3(32), 0, nullptr, x.data(), y.data(), kTiles);
  for (int i = 0; i < kTiles * 128; ++i) {
    const int expected = i / 128 * 128 + (31 - i % 128 / 4) * 4 + i % 4 + 5;
    FASTNN_EXPECT(y[i] == expected, "[%d] is %d instead of %d", i, y[i], expected);
  }
  return nullptr;
}

__global__ void bulk_reduce_kernel(float* sums) {
  FASTNN_SHARED(float4, values, 16);
  float* const floats = reinterpret_cast<float*>(&values[0]);
  floats[threadIdx.x] = static_cast<float>(threadIdx.x * (blockIdx.x + 1));
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_reduce_add(sums, floats, 256);
    bulk_commit_group();
    bulk_wait_group_read<0>();
  }
}

FASTNN_CORRECT(bulk_reductions) {
  DeviceArray<float> sums(64, 0.5f);
  FASTNN_RUN("bulk_reduce_kernel", bulk_reduce_kernel, dim3(10), dim3(64), 0, nullptr, sums.data());
  for (int i = 0; i < 64; ++i) {
    FASTNN_EXPECT(sums[i] == 0.5f + 55.0f * i, "[%d] is %g", i, static_cast<double>(sums[i]));
  }
  return nullptr;
}

// Each block sends its values to the next of the cluster; block 0's load goes to all.
__global__ void cluster_kernel(const int* x, int* y) {
  FASTNN_SHARED(Line, own, 32);
  FASTNN_SHARED(Line, inbox, 32);
  FASTNN_SHARED(Line, common, 32);
  FASTNN_SHARED(Mbarrier, arrived, 1);
  const int i = static_cast<int>(threadIdx.x);
  const unsigned rank = cluster_rank(), size = cluster_size();
  for (int j = 0; j < 4; ++j) own[i].words[j] = static_cast<int>(rank) * 1000 + 4 * i + j;
  fence_proxy_async();
  if (i == 0) {
    mbarrier_init(arrived, 1);
    fence_mbarrier_init();
  }
  cluster_sync();
  if (i == 0) {
    mbarrier_arrive_expect_tx(arrived, 2 * 512);
    bulk_copy_to_rank(&inbox[0], &own[0], 512, arrived, (rank + 1) % size);
    if (rank == 0) bulk_load_multicast(&common[0], x, 512, arrived, static_cast<uint16_t>((1u << size) - 1));
  }
  mbarrier_wait(arrived, 0);
  for (int j = 0; j < 4; ++j) y[blockIdx.x * 128 + 4 * i + j] = inbox[i].words[j] + common[31 - i].words[j];
  cluster_sync();  // nobody leaves while its memory is read
}

FASTNN_CORRECT(bulk_copies_in_a_cluster) {
  DeviceArray<int> x(128), y(8 * 128);
  for (int i = 0; i < 128; ++i) x[i] = 1000000 * i;
  FASTNN_RUN_WITH(launch_cluster, "cluster_kernel", cluster_kernel, dim3(8), dim3(4), dim3(32), 0, nullptr,
                  x.data(), y.data());
  for (int i = 0; i < 8 * 128; ++i) {
    const int rank = i / 128 % 4, place = i % 128;
    const int expected = (rank + 3) % 4 * 1000 + place + 1000000 * ((31 - place / 4) * 4 + place % 4);
    FASTNN_EXPECT(y[i] == expected, "[%d] is %d instead of %d", i, y[i], expected);
  }
  return nullptr;
}

// --- tiled tensor copies ---

// What lies in shared memory after the load of one box, as bytes.
template <int kRank>
__global__ void tiled_load_kernel(const __grid_constant__ TensorMap map, Coordinates start, unsigned* out,
                                  uint32_t bytes) {
  FASTNN_DYNAMIC_SHARED_ALIGNED(unsigned, tile, 1024);
  FASTNN_SHARED(Mbarrier, full, 1);
  int coordinates[kRank];
  for (int i = 0; i < kRank; ++i) coordinates[i] = start.at[i];
  if (threadIdx.x == 0) prefetch_tensor_map(&map);
  start_barrier(full);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(full, bytes);
    tensor_load(tile, &map, coordinates, full);
  }
  mbarrier_wait(full, 0);
  for (uint32_t i = threadIdx.x; i < bytes / 4; i += blockDim.x) out[i] = tile[i];
}

// Stores a tile of bytes (or adds it) to one box.
template <int kRank, bool kAdd>
__global__ void tiled_store_kernel(const __grid_constant__ TensorMap map, Coordinates start, const unsigned* x,
                                   uint32_t bytes) {
  FASTNN_DYNAMIC_SHARED_ALIGNED(unsigned, tile, 1024);
  int coordinates[kRank];
  for (int i = 0; i < kRank; ++i) coordinates[i] = start.at[i];
  for (uint32_t i = threadIdx.x; i < bytes / 4; i += blockDim.x) tile[i] = x[i];
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    if constexpr (kAdd) {
      tensor_reduce_add(&map, coordinates, tile);
    } else {
      tensor_store(&map, coordinates, tile);
    }
    bulk_commit_group();
    bulk_wait_group<0>();
  }
}

struct TiledCase {
  int rank;
  uint64_t sizes[5];
  uint32_t box[5];
  int start[5];
  TensorSwizzle swizzle = TensorSwizzle::kNone;
  uint32_t strides[5] = {1, 1, 1, 1, 1};  // 0 is as 1
};

// Of int32 tensors, dense but for eight elements after each row.
struct TiledProblem {
  explicit TiledProblem(const TiledCase& c)
      : tensor{.type = TensorType::kInt32, .rank = c.rank, .data = nullptr} {
    size_t count = 1;
    for (int i = 0; i < 5; ++i) {
      tensor.sizes[i] = i < c.rank ? c.sizes[i] : 1;
      box.sizes[i] = i < c.rank ? c.box[i] : 1;
      box.element_strides[i] = std::max(c.strides[i], 1u);
      if (i == 1) count = (count + 11) / 4 * 4;
      tensor.strides[i] = count * 4;
      count *= tensor.sizes[i];
      // Dimension 0 is dense whatever is asked for.
      const uint32_t step = i == 0 ? 1 : box.element_strides[i];
      counts[i] = (box.sizes[i] + step - 1) / step;
      elements *= counts[i];
      start.at[i] = i < c.rank ? c.start[i] : 0;
    }
    elements_of_tensor = (count + 3) / 4 * 4;
    box.swizzle = c.swizzle;
  }

  // Element e of the box: its place in the tensor, -1 outside, and in the tile.
  int64_t source(uint32_t e) const {
    uint64_t offset = 0;
    for (int i = 0; i < 5; ++i) {
      const int64_t at =
          start.at[i] + static_cast<int64_t>(e % counts[i]) * (i == 0 ? 1 : box.element_strides[i]);
      e /= counts[i];
      if (at < 0 || at >= static_cast<int64_t>(tensor.sizes[i])) return -1;
      offset += static_cast<uint64_t>(at) * (i == 0 ? 4 : tensor.strides[i]);
    }
    return static_cast<int64_t>(offset / 4);
  }
  // The 16-byte columns of a row of 32, 64 or 128 bytes change places from line to line.
  uint32_t place(uint32_t e) const {
    if (box.swizzle == TensorSwizzle::kNone) return e;
    const uint32_t columns = 1u << static_cast<int>(box.swizzle);
    const uint32_t line = e / 32, column = e / 4 % columns;
    return e - column * 4 + (column ^ line % columns) * 4;
  }

  GlobalTensor tensor;
  TiledBox box{};
  uint32_t counts[5];
  uint32_t elements = 1;
  size_t elements_of_tensor;
  Coordinates start;
};

template <typename Kernels>
const char* launch_rank(const char* name, const Kernels& kernels, const TiledProblem& problem,
                        const TensorMap& map, unsigned* memory) {
  FASTNN_RUN(name, kernels[problem.tensor.rank - 1], dim3(1), dim3(64), problem.elements * 4, nullptr, map,
             problem.start, memory, problem.elements * 4);
  return nullptr;
}

const char* check_tiled(const TiledCase& c) {
  TiledProblem problem(c);
  DeviceArray<unsigned> x(problem.elements_of_tensor), tile(problem.elements),
      stored(problem.elements_of_tensor);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<unsigned>(i + 1);
  problem.tensor.data = x.data();
  TensorMap map;
  Status status = encode_tiled(map, problem.tensor, problem.box);
  FASTNN_EXPECT(status.ok(), "%s", status.message);
  using Load = void (*)(TensorMap, Coordinates, unsigned*, uint32_t);
  constexpr Load kLoads[] = {tiled_load_kernel<1>, tiled_load_kernel<2>, tiled_load_kernel<3>,
                             tiled_load_kernel<4>, tiled_load_kernel<5>};
  if (const char* said = launch_rank("tiled_load_kernel", kLoads, problem, map, tile.data())) return said;
  for (uint32_t e = 0; e < problem.elements; ++e) {
    const int64_t source = problem.source(e);
    const unsigned expected = source < 0 ? 0 : x[source], got = tile[problem.place(e)];
    FASTNN_EXPECT(got == expected, "rank %d, swizzle %d: element %u is %u instead of %u", c.rank,
                  static_cast<int>(c.swizzle), e, got, expected);
  }
  if (*std::min_element(&problem.start.at[0], &problem.start.at[5]) < 0) return nullptr;
  problem.tensor.data = stored.data();
  status = encode_tiled(map, problem.tensor, problem.box);
  FASTNN_EXPECT(status.ok(), "%s", status.message);
  using Store = void (*)(TensorMap, Coordinates, const unsigned*, uint32_t);
  constexpr Store kStores[] = {tiled_store_kernel<1, false>, tiled_store_kernel<2, false>,
                               tiled_store_kernel<3, false>, tiled_store_kernel<4, false>,
                               tiled_store_kernel<5, false>};
  constexpr Store kSums[] = {tiled_store_kernel<1, true>, tiled_store_kernel<2, true>,
                             tiled_store_kernel<3, true>, tiled_store_kernel<4, true>,
                             tiled_store_kernel<5, true>};
  if (const char* said = launch_rank("tiled_store_kernel", kStores, problem, map, tile.data())) return said;
  if (const char* said = launch_rank("tiled_store_kernel", kSums, problem, map, tile.data())) return said;
  std::vector<unsigned> expected(stored.size());
  for (uint32_t e = 0; e < problem.elements; ++e) {
    if (const int64_t source = problem.source(e); source >= 0) expected[source] = 2 * x[source];
  }
  for (size_t i = 0; i < stored.size(); ++i) {
    FASTNN_EXPECT(stored[i] == expected[i], "rank %d: stored [%zu] is %u instead of %u", c.rank, i, stored[i],
                  expected[i]);
  }
  return nullptr;
}

FASTNN_CORRECT(tensor_copies_of_every_rank) {
  const TiledCase cases[] = {
      {1, {100}, {32}, {8}},
      {2, {40, 20}, {16, 7}, {4, 3}},
      {3, {40, 10, 6}, {8, 3, 4}, {12, 2, 1}},
      {4, {24, 6, 5, 4}, {8, 3, 2, 2}, {3, 1, 2, 1}},
      {5, {12, 4, 5, 4, 3}, {4, 2, 3, 2, 2}, {5, 1, 1, 2, 1}},
  };
  for (const TiledCase& c : cases) {
    if (const char* said = check_tiled(c)) return said;
  }
  return nullptr;
}

FASTNN_CORRECT(tensor_copies_of_every_swizzle) {
  for (const TensorSwizzle swizzle : {TensorSwizzle::k32B, TensorSwizzle::k64B, TensorSwizzle::k128B}) {
    const uint32_t row = 4u << static_cast<int>(swizzle);
    if (const char* said = check_tiled({2, {row + 6, 50}, {row, 40}, {5, 3}, swizzle})) return said;
    if (const char* said = check_tiled({3, {row, 7, 9}, {row, 5, 7}, {0, 4, 3}, swizzle})) return said;
  }
  return nullptr;
}

FASTNN_CORRECT(tensor_copies_beyond_every_side) {
  for (int dimension = 0; dimension < 3; ++dimension) {
    for (const int at : {-1, -3, -9, 1, 6, 13, 40}) {
      TiledCase c{3, {12, 10, 7}, {8, 6, 5}, {2, 2, 1}};
      c.start[dimension] = at;
      if (const char* said = check_tiled(c)) return said;
    }
  }
  return check_tiled({2, {40, 12}, {32, 16}, {-6, -2}, TensorSwizzle::k128B});
}

FASTNN_CORRECT(tensor_copies_with_element_strides) {
  for (const int start : {0, 1, -3}) {
    if (const char* said = check_tiled({3, {16, 23, 9}, {8, 12, 7}, {4, start, 2}, {}, {1, 3, 2}})) return said;
  }
  return check_tiled({2, {16, 40}, {8, 32}, {0, 4}, TensorSwizzle::k32B, {1, 8}});
}

// --- fills and types ---

FASTNN_CORRECT(tensor_loads_fill_with_nan) {
  DeviceArray<float> x(8, 1.0f), tile(16);
  TensorMap map;
  const Status status = encode_tiled(
      map, {.type = TensorType::kFloat32, .rank = 1, .data = x.data(), .sizes = {8}, .strides = {}},
      {.sizes = {16}, .fill = TensorFill::kNaN});
  FASTNN_EXPECT(status.ok(), "%s", status.message);
  FASTNN_RUN("tiled_load_kernel", tiled_load_kernel<1>, dim3(1), dim3(32), 64, nullptr, map, Coordinates{{-3}},
             reinterpret_cast<unsigned*>(tile.data()), 64u);
  for (int i = 0; i < 16; ++i) {
    const bool inside = i >= 3 && i < 11;
    FASTNN_EXPECT(inside ? tile[i] == 1 : std::isnan(tile[i]), "[%d] is %g", i, static_cast<double>(tile[i]));
  }
  return nullptr;
}

FASTNN_CORRECT(tensor_loads_round_to_tf32) {
  DeviceArray<float> x(64), tile(64);
  for (int i = 0; i < 64; ++i) x[i] = (1.0f + static_cast<float>(i) * 0x1.03p-7f) * (i % 2 == 0 ? 1.0f : -8.0f);
  TensorMap map;
  const Status status = encode_tiled(
      map, {.type = TensorType::kTFloat32, .rank = 1, .data = x.data(), .sizes = {64}, .strides = {}},
      {.sizes = {64}});
  FASTNN_EXPECT(status.ok(), "%s", status.message);
  FASTNN_RUN("tiled_load_kernel", tiled_load_kernel<1>, dim3(1), dim3(32), 256, nullptr, map, Coordinates{{0}},
             reinterpret_cast<unsigned*>(tile.data()), 256u);
  for (int i = 0; i < 64; ++i) {
    unsigned bits;
    std::memcpy(&bits, &tile[i], 4);
    FASTNN_EXPECT((bits & 0x1fff) == 0 && std::abs(tile[i] - x[i]) <= std::abs(x[i]) * 0x1p-11f, "[%d] is %.9g",
                  i, static_cast<double>(tile[i]));
  }
  return nullptr;
}

// Of 0 to 2047.
uint16_t half_bits(unsigned value) {
  unsigned exponent = 0;
  while (value >> exponent > 1) ++exponent;
  return static_cast<uint16_t>(value == 0 ? 0 : (exponent + 15) << 10 | (value << (10 - exponent) & 0x3ff));
}

FASTNN_CORRECT(tensor_reductions_of_halves) {
  DeviceArray<uint16_t> x(64, half_bits(1000)), tile(64);
  for (unsigned i = 0; i < 64; ++i) tile[i] = half_bits(i);
  TensorMap map;
  const Status status = encode_tiled(
      map, {.type = TensorType::kFloat16, .rank = 1, .data = x.data(), .sizes = {64}, .strides = {}},
      {.sizes = {64}});
  FASTNN_EXPECT(status.ok(), "%s", status.message);
  FASTNN_RUN("tiled_store_kernel", (tiled_store_kernel<1, true>), dim3(1), dim3(32), 128, nullptr, map,
             Coordinates{{4}}, reinterpret_cast<const unsigned*>(tile.data()), 128u);
  for (unsigned i = 0; i < 64; ++i) {
    FASTNN_EXPECT(x[i] == half_bits(i < 4 ? 1000 : 1000 + i - 4), "[%u] is 0x%x", i, x[i]);
  }
  return nullptr;
}

// --- multicast ---

__global__ void multicast_kernel(const __grid_constant__ TensorMap map, int* y) {
  FASTNN_DYNAMIC_SHARED_ALIGNED(int, tile, 1024);
  FASTNN_SHARED(Mbarrier, full, 1);
  const unsigned rank = cluster_rank();
  start_barrier(full);
  cluster_sync();
  // Each block loads half of the box for both; two boxes of 16 x 4.
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(full, 512);
    tensor_load_multicast(tile + 64 * rank, &map, {0, static_cast<int>(blockIdx.x / 2 * 8 + rank * 4)}, full,
                          3);
  }
  mbarrier_wait(full, 0);
  for (unsigned i = threadIdx.x; i < 128; i += blockDim.x) y[blockIdx.x * 128 + i] = tile[i];
  cluster_sync();
}

FASTNN_CORRECT(tensor_loads_for_a_cluster) {
  DeviceArray<int> x(16 * 16), y(4 * 128);
  for (int i = 0; i < 256; ++i) x[i] = i;
  TensorMap map;
  const Status status = encode_tiled(
      map, {.type = TensorType::kInt32, .rank = 2, .data = x.data(), .sizes = {16, 16}, .strides = {0, 64}},
      {.sizes = {16, 4}});
  FASTNN_EXPECT(status.ok(), "%s", status.message);
  FASTNN_RUN_WITH(launch_cluster, "multicast_kernel", multicast_kernel, dim3(4), dim3(2), dim3(32), 1024,
                  nullptr, map, y.data());
  for (int i = 0; i < 512; ++i) {
    FASTNN_EXPECT(y[i] == i / 256 * 128 + i % 128, "[%d] is %d", i, y[i]);
  }
  return nullptr;
}

// --- what the host refuses ---

FASTNN_CORRECT(tensor_maps_that_cannot_be) {
  DeviceArray<float> x(1024);
  const GlobalTensor good{
      .type = TensorType::kFloat32, .rank = 3, .data = x.data(), .sizes = {8, 8, 8}, .strides = {0, 32, 256}};
  const TiledBox box{.sizes = {4, 2, 2}};
  const Im2colBox pixels{.lower = {-1}, .upper = {-1}, .channels = 4, .pixels = 8};
  struct Refusal {
    const char* word;
    GlobalTensor tensor;
    TiledBox tiled;
    Im2colBox im2col;
  };
  std::vector<Refusal> refusals;
  const auto refuse = [&](const char* word, auto change) {
    Refusal refusal{word, good, box, pixels};
    change(refusal);
    refusals.push_back(refusal);
  };
  refuse("rank", [](Refusal& r) { r.tensor.rank = 6; });
  refuse("data", [](Refusal& r) { r.tensor.data = static_cast<float*>(r.tensor.data) + 1; });
  refuse("sizes", [](Refusal& r) { r.tensor.sizes[1] = 0; });
  refuse("strides", [](Refusal& r) { r.tensor.strides[2] = 264; });
  refuse("strides", [](Refusal& r) { r.tensor.strides[1] = uint64_t{1} << 40; });
  refuse("element_strides", [](Refusal& r) { r.tiled.element_strides[1] = r.im2col.element_strides[1] = 9; });
  refuse("fill", [](Refusal& r) {
    r.tensor.type = TensorType::kInt32;
    r.tiled.fill = r.im2col.fill = TensorFill::kNaN;
  });
  refuse("16 bytes", [](Refusal& r) { r.tiled.sizes[0] = r.im2col.channels = 3; });
  refuse("swizzle", [](Refusal& r) { r.tiled.swizzle = r.im2col.swizzle = TensorSwizzle::k64B; });
  for (const Refusal& refusal : refusals) {
    TensorMap map;
    for (const Status status : {encode_tiled(map, refusal.tensor, refusal.tiled),
                                encode_im2col(map, refusal.tensor, refusal.im2col)}) {
      FASTNN_EXPECT(!status.ok() && std::strstr(status.message, refusal.word) != nullptr,
                    "%s is accepted or '%s'", refusal.word, status.ok() ? "" : status.message);
    }
  }
  TensorMap map;
  const auto tiled = [&](int dimension, uint32_t size) {
    TiledBox other = box;
    other.sizes[dimension] = size;
    return encode_tiled(map, good, other).ok();
  };
  FASTNN_EXPECT(tiled(1, 256) && !tiled(1, 257) && !tiled(2, 0), "box sizes");
  const auto im2col = [&](int lower, int upper, uint32_t channels, uint32_t count) {
    return encode_im2col(map, good, {.lower = {lower}, .upper = {upper}, .channels = channels, .pixels = count})
        .ok();
  };
  FASTNN_EXPECT(im2col(-32768, 32767, 256, 1024), "the largest box is refused");
  FASTNN_EXPECT(!im2col(-32769, 0, 4, 8) && !im2col(0, 32768, 4, 8) && !im2col(0, -8, 4, 8), "corners");
  FASTNN_EXPECT(!im2col(0, 0, 260, 8) && !im2col(0, 0, 4, 1025) && !im2col(0, 0, 4, 0), "channels or pixels");
  return nullptr;
}

}  // namespace
}  // namespace fastnn::selftest
