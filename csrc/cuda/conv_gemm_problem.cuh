// The three directions of convolution written as one product of matrices (conv_implicit_gemm.cuh has the
// formula and the kernel), the tiles that the kernel comes in, and the choice among them. Host code.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../ops/conv.h"
#include "conv_index.cuh"

namespace fastnn::cuda {
namespace {

// kBlocks: blocks that a multiprocessor's registers must have room for in float32; half of it in float64.
template <int kM, int kN, int kK, int kTM, int kTN, int kBlocks>
struct GemmTile {
  static constexpr int kBlockM = kM, kBlockN = kN, kBlockK = kK;
  static constexpr int kThreadM = kTM, kThreadN = kTN;
  static constexpr int kThreadsM = kM / kTM, kThreadsN = kN / kTN;
  static constexpr int kThreads = kThreadsM * kThreadsN;
  static constexpr int kLoadsA = kM * kK / kThreads, kLoadsB = kN * kK / kThreads;
  // Four more than the tile: lines stay aligned for 16-byte reads, and of 16 threads that store along k, one to
  // a line, only two meet in a bank.
  static constexpr int kPitchA = kM + 4, kPitchB = kN + 4;
  static constexpr int min_blocks(int acc_size) { return kBlocks * 4 / acc_size; }
  static constexpr int kBufferSize = kK * (kPitchA + kPitchB);

  static_assert(kTM % 4 == 0 && kTN % 4 == 0, "fragments lie in runs of four");
  static_assert(kM * kK % kThreads == 0 && kN * kK % kThreads == 0);
  static_assert(kThreads % kM == 0 && kThreads % kN == 0 && kThreads % kK == 0);
  // The epilogue passes slices of the tile through the buffers.
  static_assert(kThreadsM * kPitchB <= 2 * kBufferSize && kThreadsN * kPitchA <= 2 * kBufferSize);
};

// Four by four a thread: eight by eight would need 128 registers for the sums alone in float64.
using MediumTile = GemmTile<64, 64, 16, 4, 4, 2>;
// For groups of few filters: wastes at most 15 rows of work, not 63.
using FewRowsTile = GemmTile<16, 128, 16, 4, 4, 3>;

enum class TileChoice { kMedium, kFewRows };

// A split shorter than this costs more to write, read and add than it saves.
constexpr int64_t kMinSplitDepth = 256;

// Forward and the data gradient sum k in chunks of this, of their own each, and then add the chunks' sums in
// order, whether one block has all of them or each its own. So the bits of a sample do not depend on the batch
// that it is in, which decides whether k has to be split. What that costs where it is not split: one more
// addition and two accesses to shared memory for each 512 multiply-adds.
constexpr int64_t kChunkDepth = 512;

// Strides in elements. Arrays of four: lead digit, depth, height, width.
struct ConvGemm {
  int64_t groups, rows;
  IndexRange cols, depth;
  int64_t a_group, a_row, a_depth[4];
  int64_t b_group, b_col_lead, b_depth_lead, b_spatial[kSpatialDims];
  int64_t col_step[kSpatialDims], depth_step[kSpatialDims], origin[kSpatialDims];
  int64_t limit[kSpatialDims];  // spatial size of B's tensor
  int64_t out_group, out_row, out_col[4];
  bool a_rows_first, b_cols_first, out_rows_first;  // which index consecutive threads run along
  bool wide;                                        // coordinates need 64 bits
  bool sums_batch;                                  // k runs over the batch: the weight gradient
  ConvActivation activation;                        // of out
  int64_t filter_leads;  // of tensor-core products: leads that A has, zeros at the end included
  // Residue classes of the data gradient: in a dimension with taps[].stride > 1, cols.spatial and depth.spatial
  // are the largest class's, origin is unused, and col and depth count single positions and taps of one class.
  int64_t classes[kSpatialDims];
  TapDimension taps[kSpatialDims];  // stride 1 in the other directions
  int64_t positions[kSpatialDims];  // spatial size of x
};

struct GemmPlan {
  TileChoice tile;
  int64_t tiles_m, tiles_n;
  int64_t splits, split_depth;
  int64_t chunk_depth;  // of the chunks that a block adds in shared memory; 0 where it has one alone
  int64_t blocks;

  int64_t block_elements() const {
    return tile == TileChoice::kMedium ? MediumTile::kBlockM * MediumTile::kBlockN
                                       : FewRowsTile::kBlockM * FewRowsTile::kBlockN;
  }
};

// The tile and the split for a problem: a function of its shape and of nothing else.
//   FewRows  at most 16 rows a group: grouped convolutions and first layers with few filters
//   Medium   otherwise, and with 64-bit coordinates
// Then, where the tiles are fewer than the multiprocessors, k is split: by chunks, or in the weight gradient
// until there are about kSplitGrid blocks.
inline GemmPlan choose_plan(const ConvGemm& p) {
  const int64_t cols = p.cols.size(), depth = p.depth.size();
  const int64_t classes = p.classes[0] * p.classes[1] * p.classes[2];
  const bool few_rows = !p.wide && p.rows <= FewRowsTile::kBlockM;
  GemmPlan plan{};
  plan.tile = few_rows ? TileChoice::kFewRows : TileChoice::kMedium;
  plan.tiles_m = ceil_div(p.rows, few_rows ? FewRowsTile::kBlockM : MediumTile::kBlockM);
  plan.tiles_n = ceil_div(cols, few_rows ? FewRowsTile::kBlockN : MediumTile::kBlockN);
  plan.splits = 1;
  plan.split_depth = std::max<int64_t>(depth, 1);
  plan.blocks = plan.tiles_m * plan.tiles_n * p.groups * classes;
  // Classes are many blocks already, and their depths differ.
  const bool splits = plan.blocks > 0 && plan.blocks < kFullGrid && classes == 1;
  if (!p.sums_batch) {
    if (depth > kChunkDepth && splits) {
      plan.split_depth = kChunkDepth;
      plan.splits = ceil_div(depth, kChunkDepth);
    } else if (depth > kChunkDepth) {
      plan.chunk_depth = kChunkDepth;
    }
  } else if (splits) {
    const int64_t wanted = std::min(ceil_div(kSplitGrid, plan.blocks), depth / kMinSplitDepth);
    if (wanted > 1) {
      constexpr int64_t kRound = MediumTile::kBlockK;  // a multiple of every tile's kBlockK
      plan.split_depth = ceil_div(ceil_div(depth, wanted), kRound) * kRound;
      plan.splits = ceil_div(depth, plan.split_depth);
    }
  }
  plan.blocks *= plan.splits;
  return plan;
}

// Bytes in which the splits leave their sums: [splits, groups, rows, cols] of acc_t.
inline int64_t gemm_workspace(const ConvGemm& p, bool float64) {
  const GemmPlan plan = choose_plan(p);
  if (plan.splits == 1) return 0;
  return plan.splits * p.groups * p.rows * p.cols.size() * (float64 ? sizeof(double) : sizeof(float));
}

constexpr int64_t magnitude(int64_t v) { return v < 0 ? -v : v; }

// Coalescing along an index of four digits: that of its fastest digit that is more than one value.
inline double coalescing_along(const IndexRange& range, int64_t lead, const int64_t (&spatial)[kSpatialDims]) {
  if (range.lead_fastest && range.lead > 1) return coalescing(range.lead, lead);
  for (int d = kSpatialDims - 1; d >= 0; --d) {
    if (range.spatial[d] > 1) return coalescing(range.spatial[d], spatial[d]);
  }
  return range.lead > 1 ? coalescing(range.lead, lead) : 0;
}

// Whether channels lie closer together in memory than neighbouring positions.
inline bool channels_are_fastest(const ConvStrides& strides, const int64_t (&spatial)[kSpatialDims]) {
  for (int d = kSpatialDims - 1; d >= 0; --d) {
    if (spatial[d] > 1) return magnitude(strides[1]) < magnitude(strides[2 + d]);
  }
  return true;
}

// Which index consecutive threads run along, from the strides. Columns win a tie: their table reads are
// cheaper.
inline void choose_access(ConvGemm& p) {
  const auto times = [&p](const int64_t (&step)[kSpatialDims], int64_t (&result)[kSpatialDims]) {
    for (int d = 0; d < kSpatialDims; ++d) result[d] = step[d] * p.b_spatial[d];
  };
  int64_t b_col[kSpatialDims], b_depth[kSpatialDims];
  times(p.col_step, b_col);
  times(p.depth_step, b_depth);
  const int64_t a_depth[] = {p.a_depth[1], p.a_depth[2], p.a_depth[3]};
  const int64_t out_col[] = {p.out_col[1], p.out_col[2], p.out_col[3]};
  p.a_rows_first = coalescing(p.rows, p.a_row) > coalescing_along(p.depth, p.a_depth[0], a_depth);
  p.b_cols_first =
      coalescing_along(p.cols, p.b_col_lead, b_col) >= coalescing_along(p.depth, p.b_depth_lead, b_depth);
  p.out_rows_first = coalescing(p.rows, p.out_row) > coalescing_along(p.cols, p.out_col[0], out_col);
}

inline ConvGemm forward_problem(const ConvForwardParams& params) {
  const ConvGeometry& g = params.geometry;
  const auto &x = params.x_strides, &w = params.w_strides, &y = params.y_strides;
  ConvGemm p{};
  p.groups = g.groups;
  p.rows = g.K / g.groups;
  p.cols = {g.N, {g.out[0], g.out[1], g.out[2]}, false};
  p.depth = {g.C / g.groups, {g.kernel[0], g.kernel[1], g.kernel[2]}, channels_are_fastest(x, g.in)};
  p.a_group = p.rows * w[0];
  p.a_row = w[0];
  p.b_group = p.depth.lead * x[1];
  p.b_col_lead = x[0];
  p.b_depth_lead = x[1];
  p.out_group = p.rows * y[1];
  p.out_row = y[1];
  p.a_depth[0] = w[1];
  p.out_col[0] = y[0];
  for (int d = 0; d < kSpatialDims; ++d) {
    p.a_depth[1 + d] = w[2 + d];
    p.b_spatial[d] = x[2 + d];
    p.out_col[1 + d] = y[2 + d];
    p.col_step[d] = g.stride[d];
    p.depth_step[d] = g.dilation[d];
    p.origin[d] = -g.pad[d];
    p.limit[d] = g.in[d];
    p.classes[d] = p.taps[d].stride = 1;
  }
  p.wide = needs_wide_coordinates(g);
  p.activation = params.activation;
  choose_access(p);
  return p;
}

inline ConvGemm grad_input_problem(const ConvGradInputParams& params) {
  const ConvGeometry& g = params.geometry;
  const auto &grad_y = params.grad_y_strides, &w = params.w_strides, &grad_x = params.grad_x_strides;
  ConvGemm p{};
  p.groups = g.groups;
  p.rows = g.C / g.groups;
  p.cols.lead = g.N;
  p.depth.lead = g.K / g.groups;
  p.depth.lead_fastest = channels_are_fastest(grad_y, g.out);
  p.a_group = p.depth.lead * w[0];
  p.a_row = w[1];
  p.b_group = p.depth.lead * grad_y[1];
  p.b_col_lead = grad_y[0];
  p.b_depth_lead = grad_y[1];
  p.out_group = p.rows * grad_x[1];
  p.out_row = grad_x[1];
  p.a_depth[0] = w[0];
  p.out_col[0] = grad_x[0];
  for (int d = 0; d < kSpatialDims; ++d) {
    const TapDimension& t = p.taps[d] = make_tap_dimension(g, d);
    p.cols.spatial[d] = ceil_div(g.in[d], t.stride);
    p.depth.spatial[d] = ceil_div(t.kernel, t.tap_step);
    p.positions[d] = g.in[d];
    p.classes[d] = std::max<int64_t>(std::min(t.stride, g.in[d]), 1);  // residues that some position has
    p.a_depth[1 + d] = t.tap_step * w[2 + d];
    p.b_spatial[d] = grad_y[2 + d];
    p.out_col[1 + d] = t.stride * grad_x[2 + d];
    p.col_step[d] = 1;
    p.depth_step[d] = -t.output_step;
    p.origin[d] = t.pad;
    p.limit[d] = g.out[d];
  }
  p.wide = needs_wide_coordinates(g);
  choose_access(p);
  return p;
}

inline ConvGemm grad_weight_problem(const ConvGradWeightParams& params) {
  const ConvGeometry& g = params.geometry;
  const auto &x = params.x_strides, &grad_y = params.grad_y_strides, &grad_w = params.grad_w_strides;
  ConvGemm p{};
  p.groups = g.groups;
  p.rows = g.K / g.groups;
  p.cols = {g.C / g.groups, {g.kernel[0], g.kernel[1], g.kernel[2]}, channels_are_fastest(x, g.in)};
  p.depth = {g.N, {g.out[0], g.out[1], g.out[2]}, false};
  p.a_group = p.rows * grad_y[1];
  p.a_row = grad_y[1];
  p.b_group = p.cols.lead * x[1];
  p.b_col_lead = x[1];
  p.b_depth_lead = x[0];
  p.sums_batch = true;
  p.out_group = p.rows * grad_w[0];
  p.out_row = grad_w[0];
  p.a_depth[0] = grad_y[0];
  p.out_col[0] = grad_w[1];
  for (int d = 0; d < kSpatialDims; ++d) {
    p.a_depth[1 + d] = grad_y[2 + d];
    p.b_spatial[d] = x[2 + d];
    p.out_col[1 + d] = grad_w[2 + d];
    p.col_step[d] = g.dilation[d];
    p.depth_step[d] = g.stride[d];
    p.origin[d] = -g.pad[d];
    p.limit[d] = g.in[d];
    p.classes[d] = p.taps[d].stride = 1;
  }
  p.wide = needs_wide_coordinates(g);
  choose_access(p);
  return p;
}

}  // namespace
}  // namespace fastnn::cuda
