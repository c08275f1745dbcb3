// Which tile of which product a block of an implicit GEMM has: its rows and columns, its group, its part of k
// and its residue class, and what the class changes of the problem (conv_implicit_gemm.cuh says what classes
// are).
#pragma once

#include <cstdint>

#include "conv_gemm_problem.cuh"
#include "conv_index.cuh"
#include "platform.cuh"

namespace fastnn::cuda {
namespace {

// What a block's residue class changes of the problem; the problem itself where there is one class.
struct ClassView {
  IndexRange cols, depth;
  int64_t origin[kSpatialDims];
  int64_t a_shift[kSpatialDims], out_shift[kSpatialDims];
};

// Fills dimension `dim` of the view; lead digits and order are the problem's own.
__device__ __forceinline__ void view_dimension(const ConvGemm& p, int dim, int64_t residue, ClassView& view) {
  if (p.taps[dim].stride == 1) {
    view.cols.spatial[dim] = p.cols.spatial[dim];
    view.depth.spatial[dim] = p.depth.spatial[dim];
    view.origin[dim] = p.origin[dim];
    view.a_shift[dim] = view.out_shift[dim] = 0;
    return;
  }
  const TapDimension& t = p.taps[dim];
  const TapsOfPosition taps = taps_of_position(t, residue);
  view.cols.spatial[dim] = quotient(p.positions[dim] - 1 - residue, t.stride) + 1;
  view.depth.spatial[dim] = taps.count;
  view.origin[dim] = taps.origin;
  // One step of k is tap_step taps, one step of col is `stride` positions: undo both for a single one.
  view.a_shift[dim] = taps.first * (p.a_depth[1 + dim] / t.tap_step);
  view.out_shift[dim] = residue * (p.out_col[1 + dim] / t.stride);
}

// One index of k: what it adds to the offsets and coordinates of the operands.
template <typename coord_t>
struct alignas(16) DepthEntry {
  int64_t a, b;
  coord_t d, h, w;
};

template <typename coord_t>
__device__ __forceinline__ DepthEntry<coord_t> depth_entry(const ConvGemm& p, const Digits<coord_t>& k) {
  const int64_t d = k.d * p.depth_step[0], h = k.h * p.depth_step[1], w = k.w * p.depth_step[2];
  return {k.lead * p.a_depth[0] + k.d * p.a_depth[1] + k.h * p.a_depth[2] + k.w * p.a_depth[3],
          k.lead * p.b_depth_lead + d * p.b_spatial[0] + h * p.b_spatial[1] + w * p.b_spatial[2],
          static_cast<coord_t>(d), static_cast<coord_t>(h), static_cast<coord_t>(w)};
}

// One column: what it adds to B's offset and coordinates.
template <typename coord_t>
struct alignas(16) ColEntry {
  int64_t b;
  coord_t d, h, w;
};

template <typename coord_t>
__device__ __forceinline__ ColEntry<coord_t> col_entry(const ConvGemm& p, const ClassView& view,
                                                       int64_t index) {
  const auto col = digits_of<int64_t>(index, view.cols);
  const int64_t d = col.d * p.col_step[0] + view.origin[0];
  const int64_t h = col.h * p.col_step[1] + view.origin[1];
  const int64_t w = col.w * p.col_step[2] + view.origin[2];
  return {col.lead * p.b_col_lead + d * p.b_spatial[0] + h * p.b_spatial[1] + w * p.b_spatial[2],
          static_cast<coord_t>(d), static_cast<coord_t>(h), static_cast<coord_t>(w)};
}

__device__ __forceinline__ int64_t out_col_offset(const ConvGemm& p, const ClassView& view, int64_t index) {
  const auto col = digits_of<int64_t>(index, view.cols);
  return col.lead * p.out_col[0] + col.d * p.out_col[1] + col.h * p.out_col[2] + col.w * p.out_col[3];
}

// The place of this block. All its threads build one together; `view` is shared memory.
struct TilePlace {
  int64_t row0, col0, group, split;
  int64_t cols;  // of the class
  int rows_here, cols_here;
  bool empty;  // a class with fewer tiles than the largest

  // Rows fastest: blocks that run together share columns of B, the operand that costs most to fetch.
  __device__ __forceinline__ TilePlace(const ConvGemm& p, ClassView& view, int64_t tiles_m, int64_t tiles_n,
                                       int64_t splits, int block_m, int block_n) {
    uint32_t rest = blockIdx.x;
    const auto take = [&rest](int64_t count) {
      const uint32_t n = static_cast<uint32_t>(count), q = rest / n, digit = rest - q * n;
      rest = q;
      return digit;
    };
    row0 = static_cast<int64_t>(take(tiles_m)) * block_m;
    col0 = static_cast<int64_t>(take(tiles_n)) * block_n;
    split = take(splits);
    group = take(p.groups);
    const int64_t residue[kSpatialDims] = {take(p.classes[0]), take(p.classes[1]), take(p.classes[2])};

    const int t = threadIdx.x;
    if (t < kSpatialDims) view_dimension(p, t, t == 0 ? residue[0] : t == 1 ? residue[1] : residue[2], view);
    if (t == 0) {
      view.cols.lead = p.cols.lead;
      view.cols.lead_fastest = p.cols.lead_fastest;
      view.depth.lead = p.depth.lead;
      view.depth.lead_fastest = p.depth.lead_fastest;
    }
    __syncthreads();
    cols = view.cols.size();
    empty = col0 >= cols;
    rows_here = static_cast<int>(p.rows - row0 < block_m ? p.rows - row0 : block_m);
    cols_here = static_cast<int>(cols - col0 < block_n ? cols - col0 : block_n);
  }
};

}  // namespace
}  // namespace fastnn::cuda
