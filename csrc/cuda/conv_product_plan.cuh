// Which convolutions are pipelined products (conv_product.cuh), with which loader, tile and split, on tensor
// cores or not. Host code; everything here follows from the parameters and the strides, and of pointers from
// their alignment alone, which chooses among loaders that give the same bits.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv_filter_pack.cuh"
#include "conv_gemm_problem.cuh"
#include "conv_index.cuh"
#include "conv_multiply.cuh"
#include "conv_product_tiles.cuh"
#include "conv_variant.h"

namespace fastnn::cuda {
namespace {

// kWarpsM x kWarpsN warps share the tile. kBlocks: blocks that a multiprocessor's registers must have room for.
template <int kRows, int kCols, int kWarpRows, int kWarpCols, int kBlocks>
struct MmaTile {
  static constexpr int kM = kRows, kN = kCols;
  static constexpr int kWarpsM = kWarpRows, kWarpsN = kWarpCols;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarpSize;
  static constexpr int kMinBlocks = kBlocks;
  static constexpr int kFragmentsM = kM / kWarpsM / 16;  // m16 of a warp
  static constexpr int kFragmentsN = kN / kWarpsN / 8;   // n8 of a warp
  // Three steps of copies under way: 1,500 cycles of multiplications, beyond the latency of device memory.
  static constexpr int kStages = 4;
  static constexpr bool kTensorCores = true;
  static_assert(kFragmentsN % 2 == 0, "fragments of B are read two at a time");
  template <typename scalar_t, typename OperandA, typename OperandB>
  using Multiplier = TensorCoreMultiplier<scalar_t, MmaTile, OperandA, OperandB>;
};

// Two sums of 64 elements a thread, of the chunk and of all chunks before it, leave room for one block. Of each
// step a warp reads 6 KB of fragments for 64 x 32 x 32 multiply-adds: 24 cycles of shared memory for 32 of an
// A100's tensor cores.
using LargeMmaTile = MmaTile<128, 128, 2, 4, 1>;
// A quarter of it for products that cannot fill the device with the large one: 32 x 32 a warp, half as many
// multiply-adds a byte of shared memory.
using SmallMmaTile = MmaTile<64, 64, 2, 2, 3>;

// kThreadsM x kThreadsN threads share the tile.
template <int kRows, int kCols, int kBlocks>
struct FmaTile {
  static constexpr int kM = kRows, kN = kCols;
  static constexpr int kThreadsM = kM / 8, kThreadsN = kN / 8;
  static constexpr int kThreads = kThreadsM * kThreadsN;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  // ptxas needs a few registers more for sm_80.
  static constexpr int kMinBlocks = kBlocks - 1;
#else
  static constexpr int kMinBlocks = kBlocks;
#endif
  // A step takes the blocks of a multiprocessor 3,000 cycles.
  static constexpr int kStages = 3;
  static constexpr bool kTensorCores = false;
  static_assert(kThreadsM % 8 == 0 && kThreadsN % 4 == 0, "a warp has 8 x 4 of them");
  template <typename scalar_t, typename OperandA, typename OperandB>
  using Multiplier = CudaCoreMultiplier<FmaTile, OperandA, OperandB>;
};

// 128 x 64 x 16 multiply-adds for 12 KB of a step, 1,024 cycles of a multiprocessor: 12 bytes a cycle from L2,
// which gives some 20 to each.
using LargeFmaTile = FmaTile<128, 64, 3>;
using SmallFmaTile = FmaTile<64, 64, 4>;

// Steps of k whose products are summed on their own. The sum of the chunks' sums does not depend on how many
// blocks share the chunks, so the bits of a sample do not depend on the batch that it is in; and where a tensor
// core cuts off digits at each addition, toward zero, it does so at most 64 times in a row.
constexpr int kChunkSteps = 32;

enum class ProductLoader {
  kChannels,            // activations' channels side by side, filters along k
  kChannelsFilterRows,  // the same, filters along rows; by tensor cores alone, the others would lack registers
  kPlanes,              // activations with any strides, tap by tap
  kElements,            // the same, each (tap, lead) on its own
  kPositionVectors,     // weight gradient of channels side by side
  kPositionElements,    // weight gradient with any strides
};

struct ProductPlan {
  bool tensor_cores;  // else CUDA cores, in float32
  bool large;
  int64_t tiles_m, tiles_n;
  int64_t splits, split_steps;  // blocks that share k, and steps of each, whole chunks
  int64_t blocks;
  bool adds_chunks;  // whether a block has more than one chunk
  // The runs of out along rows or columns, whichever is contiguous, are whole aligned vectors.
  bool out_vectors;
  int way, ways;  // which of how many tiles and splits
};

struct ProductConv {
  ConvGemm problem;
  ProductLoader loader;
  FilterPack pack;
  bool packs;
  ProductPlan plan;
};

// Below this a product of few leads is mostly the zeros that fill a step of each tap.
constexpr int64_t kMinLeadsOfTap = 24;
// Below this most rows of the smallest tile are not there, and the CUDA cores do as well.
constexpr int64_t kMinProductRows = 8;
constexpr int64_t kMinProductDepth = 16;
constexpr int64_t kMaxPackGroups = 65535;  // the grid's z

inline bool is_multiple(std::initializer_list<int64_t> values, int64_t of) {
  return std::all_of(values.begin(), values.end(), [of](int64_t v) { return v % of == 0; });
}

// A multiprocessor takes its tiles one after the other, however few other ones have. On tensor cores a large
// tile is the work of four small ones and takes as long as three of them, since they wait more for shared
// memory; on CUDA cores it is the work and the time of two.
inline bool large_tile_is_faster(int64_t large_blocks, int64_t small_blocks, bool tensor_cores) {
  const int64_t small_waves = ceil_div(small_blocks, kFullGrid);
  return ceil_div(large_blocks, kFullGrid) * (tensor_cores ? 3 : 2) <= small_waves;
}

// The tile, and whether k is split; `way` as of way_of().
template <typename Large, typename Small>
ProductPlan choose_product_plan(const ConvGemm& p, int64_t steps, int way) {
  ProductPlan plan{};
  const int64_t cols = p.cols.size();
  const int64_t classes = p.classes[0] * p.classes[1] * p.classes[2];
  const auto blocks = [&](int block_m, int block_n) {
    return ceil_div(p.rows, block_m) * ceil_div(cols, block_n) * p.groups * classes;
  };
  const int64_t large = blocks(Large::kM, Large::kN), small = blocks(Small::kM, Small::kN);
  const int64_t chunks = ceil_div(steps, kChunkSteps);
  const bool has_large = p.rows > Small::kM;
  // Classes are many blocks already, and their depths differ. Where there are many anyway, splitting costs
  // memory and gains nothing.
  const bool has_splits = classes == 1 && chunks > 1 && small > 0 && small <= 4 * kFullGrid * Small::kMinBlocks;
  plan.ways = (has_large ? 2 : 1) * (has_splits ? 2 : 1);
  const bool asked = way >= 0 && way < plan.ways;
  plan.large = has_large && (asked ? way % 2 == 1 : large_tile_is_faster(large, small, Large::kTensorCores));
  const int block_m = plan.large ? Large::kM : Small::kM;
  const int block_n = plan.large ? Large::kN : Small::kN;
  plan.tiles_m = ceil_div(p.rows, block_m);
  plan.tiles_n = ceil_div(cols, block_n);
  plan.blocks = plan.large ? large : small;
  plan.splits = 1;
  plan.split_steps = std::max<int64_t>(steps, 1);
  const int64_t wave = kFullGrid * (plan.large ? Large::kMinBlocks : Small::kMinBlocks);
  const bool split = has_splits && (asked ? way >= (has_large ? 2 : 1) : plan.blocks * 2 <= wave);
  plan.way = (plan.large ? 1 : 0) + (split ? (has_large ? 2 : 1) : 0);
  if (split) {
    // Where the bits must not depend on how k is shared, a chunk is a block's whole part or none is.
    const int64_t wanted = p.sums_batch ? std::min(chunks, std::max<int64_t>(wave / plan.blocks, 2)) : chunks;
    const int64_t chunks_each = ceil_div(chunks, wanted);
    plan.split_steps = chunks_each * kChunkSteps;
    plan.splits = ceil_div(chunks, chunks_each);
    plan.blocks *= plan.splits;
  }
  plan.adds_chunks = plan.split_steps > kChunkSteps;
  return plan;
}

inline ProductPlan choose_product_plan(const ConvGemm& p, int64_t steps, bool tensor_cores, int way) {
  ProductPlan plan = tensor_cores ? choose_product_plan<LargeMmaTile, SmallMmaTile>(p, steps, way)
                                  : choose_product_plan<LargeFmaTile, SmallFmaTile>(p, steps, way);
  plan.tensor_cores = tensor_cores;
  return plan;
}

// Whether out can be written by vectors of `vec` along its contiguous index.
inline bool out_is_vectors(const ConvGemm& p, const void* out, int64_t vec) {
  if (reinterpret_cast<uintptr_t>(out) % kVecBytes != 0 || p.classes[0] * p.classes[1] * p.classes[2] != 1) {
    return false;
  }
  const auto& c = p.out_col;
  if (p.out_rows_first) {
    return p.out_row == 1 && is_multiple({p.rows, p.out_group, c[0], c[1], c[2], c[3]}, vec);
  }
  const auto& s = p.cols.spatial;
  const bool dense = c[3] == 1 && (s[1] == 1 || c[2] == s[2]) && (s[0] == 1 || c[1] == s[1] * s[2]);
  return dense && !p.cols.lead_fastest &&
         is_multiple({s[0] * s[1] * s[2], p.out_row, p.out_group, p.cols.lead > 1 ? c[0] : 0}, vec);
}

// The loader of forward and of the data gradient, whose filters have strides `w` of (row, lead, d, h, w).
template <typename scalar_t>
ProductConv plan_taps(ConvGemm p, const FilterPack& filters, const void* w, const void* b, const void* out,
                      bool tensor_cores, int way) {
  constexpr int64_t kVec = kVecSize<scalar_t>;
  ProductConv c{};
  const bool one_class = p.classes[0] * p.classes[1] * p.classes[2] == 1;
  const int64_t leads = p.depth.lead;
  const bool flat = leads < kMinLeadsOfTap && one_class && filters.tap_count() > 1;
  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % kVecBytes == 0;
  };
  const bool channels =
      !flat && p.b_depth_lead == 1 && aligned(b) &&
      is_multiple({leads, p.b_group, p.b_col_lead, p.b_spatial[0], p.b_spatial[1], p.b_spatial[2]}, kVec);
  const int64_t a_strides[] = {p.a_depth[1], p.a_depth[2], p.a_depth[3]};
  const bool in_place =
      !flat && aligned(w) && is_multiple({p.a_group, a_strides[0], a_strides[1], a_strides[2]}, kVec);
  c.pack = filters;
  c.packs = false;
  if (in_place && p.a_depth[0] == 1 && is_multiple({leads, p.a_row}, kVec)) {
    c.loader = channels ? ProductLoader::kChannels : ProductLoader::kPlanes;
    p.filter_leads = leads;
  } else if (in_place && channels && tensor_cores && p.a_row == 1 &&
             is_multiple({p.rows, p.a_depth[0]}, kVec)) {
    c.loader = ProductLoader::kChannelsFilterRows;
    p.filter_leads = leads;
  } else {
    c.loader = flat ? ProductLoader::kElements : channels ? ProductLoader::kChannels : ProductLoader::kPlanes;
    c.packs = true;
    c.pack.flat = flat;
    c.pack.pitch = ceil_div(flat ? leads * filters.tap_count() : leads, kVec) * kVec;
    p.filter_leads = c.pack.pitch;
    // A step of a tap digit is tap_step taps of the filter.
    int64_t stride = c.pack.pitch;
    for (int d = kSpatialDims - 1; d >= 0; --d) {
      const int64_t tap_step = p.taps[d].stride == 1 ? 1 : p.taps[d].tap_step;
      p.a_depth[1 + d] = flat ? 0 : tap_step * stride;
      stride *= filters.taps[d];
    }
    p.a_depth[0] = 1;
    p.a_row = c.pack.row_pitch();
    p.a_group = p.rows * p.a_row;
  }
  p.depth.lead_fastest = true;
  const int64_t taps = p.depth.spatial[0] * p.depth.spatial[1] * p.depth.spatial[2];
  const int64_t steps =
      flat ? ceil_div(leads * taps, kStepDepth<scalar_t>) : taps * ceil_div(leads, kStepDepth<scalar_t>);
  c.plan = choose_product_plan(p, steps, tensor_cores, way);
  c.plan.out_vectors = out_is_vectors(p, out, kVec);
  c.problem = p;
  return c;
}

// The filters of a problem as A has them; `lead` is the stride of what k runs along.
inline FilterPack filters_of(const ConvGeometry& g, const ConvStrides& w, bool rows_are_filters) {
  FilterPack f{};
  f.groups = g.groups;
  f.rows = (rows_are_filters ? g.K : g.C) / g.groups;
  f.leads = (rows_are_filters ? g.C : g.K) / g.groups;
  f.group_stride = g.K / g.groups * w[0];
  f.row_stride = rows_are_filters ? w[0] : w[1];
  f.lead_stride = rows_are_filters ? w[1] : w[0];
  for (int d = 0; d < kSpatialDims; ++d) {
    f.taps[d] = g.kernel[d];
    f.tap_strides[d] = w[2 + d];
  }
  const auto tap = std::find_if(f.taps, f.taps + kSpatialDims, [](int64_t n) { return n > 1; });
  const int64_t line_stride = tap == f.taps + kSpatialDims
                                  ? f.row_stride
                                  : *std::min_element(f.tap_strides, f.tap_strides + kSpatialDims);
  f.reads_leads = magnitude(f.lead_stride) < magnitude(line_stride);
  return f;
}

inline bool product_takes(const ConvGemm& p) {
  const int64_t taps = p.depth.spatial[0] * p.depth.spatial[1] * p.depth.spatial[2];
  return !p.wide && p.groups <= kMaxPackGroups && p.rows >= kMinProductRows &&
         p.depth.lead * taps >= kMinProductDepth;
}

template <typename Params>
bool uses_tensor_cores(const Params& p) {
  return p.dtype != DType::kFloat32 || p.allow_tf32;
}

template <typename scalar_t>
ProductConv product_conv(const ConvForwardParams& params) {
  return plan_taps<scalar_t>(forward_problem(params), filters_of(params.geometry, params.w_strides, true),
                             params.w, params.x, params.y, uses_tensor_cores(params),
                             way_of(params.variant, ConvKernels::kProduct));
}

template <typename scalar_t>
ProductConv product_conv(const ConvGradInputParams& params) {
  return plan_taps<scalar_t>(grad_input_problem(params), filters_of(params.geometry, params.w_strides, false),
                             params.w, params.grad_y, params.grad_x, uses_tensor_cores(params),
                             way_of(params.variant, ConvKernels::kProduct));
}

template <typename scalar_t>
ProductConv product_conv(const ConvGradWeightParams& params) {
  constexpr int64_t kVec = kVecSize<scalar_t>;
  ProductConv c{};
  ConvGemm p = grad_weight_problem(params);
  p.cols.lead_fastest = true;
  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % kVecBytes == 0;
  };
  const bool vectors =
      p.a_row == 1 && p.b_col_lead == 1 && aligned(params.grad_y) && aligned(params.x) &&
      is_multiple({p.rows, p.cols.lead, p.a_group, p.b_group, p.b_depth_lead, p.a_depth[0], p.a_depth[1],
                   p.a_depth[2], p.a_depth[3], p.b_spatial[0], p.b_spatial[1], p.b_spatial[2]},
                  kVec);
  c.loader = vectors ? ProductLoader::kPositionVectors : ProductLoader::kPositionElements;
  c.plan = choose_product_plan(p, ceil_div(p.depth.size(), kStepDepth<scalar_t>), uses_tensor_cores(params),
                               way_of(params.variant, ConvKernels::kProduct));
  c.plan.out_vectors = out_is_vectors(p, params.grad_w, kVec);
  c.problem = p;
  return c;
}

}  // namespace
}  // namespace fastnn::cuda
