// Forward and grad_input as products (conv_product.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../ops/conv.h"
#include "conv_channels_innermost.h"
#include "conv_operands.h"
#include "conv_pairs_product.h"
#include "conv_patches.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND {

// Filters of one group as positions; taps and channels.
template <typename scalar_t>
PatchMatrix<scalar_t> filter_patches(const ConvGeometry& g, const void* w, const ConvStrides& strides) {
  PatchMatrix<scalar_t> m{};
  m.data = static_cast<const scalar_t*>(w);
  m.positions = plain_axis(g.K / g.groups, strides[0]);
  m.depth = {{g.kernel[0], g.kernel[1], g.kernel[2], g.C / g.groups},
             {strides[2], strides[3], strides[4], strides[1]}};
  std::fill_n(m.extent, kSpatialDims, 1);
  m.simplify();
  return m;
}

// Puts filters and patches on their sides. Positions are the columns, unless channels are contiguous in both
// activations and there are enough of them: with fewer filters than half a vector more lanes are wasted than
// gathering positions costs, and patches in runs of one to three channels cost more to pack than to gather.
template <typename scalar_t>
Product<scalar_t, scalar_t> oriented(const PatchMatrix<scalar_t>& filters, int64_t filters_group_stride,
                                     const Axis& out_filters, const PatchMatrix<scalar_t>& patches,
                                     int64_t patches_group_stride, const Axis& out_positions,
                                     bool out_channels_contiguous) {
  const int64_t num_filters = out_filters.length();
  const bool channels_are_columns = out_channels_contiguous && num_filters > 1 &&
                                    2 * num_filters >= kLanes<acc_type<scalar_t>> &&
                                    patches.depth.stride[3] == 1 && patches.depth.size[3] >= 4;
  Product<scalar_t, scalar_t> p{};
  if (channels_are_columns) {
    p.rows = patches;
    // With 8 samples innermost a panel's rows see the same taps, and those outside are left out.
    p.rows.samples_innermost = patches.has_outside() && patches.positions.size[0] % kMaxRows == 0 &&
                               patches.depth.size[3] >= kMinAddressedRun &&
                               std::is_same_v<scalar_t, acc_type<scalar_t>>;
    if (p.rows.samples_innermost && p.rows.positions.put_samples_innermost(kMaxRows)) p.rows.step[0] = 0;
    p.rows_group_stride = patches_group_stride;
    p.out_rows = out_positions;
    if (p.rows.samples_innermost) p.out_rows.put_samples_innermost(kMaxRows);
    p.out_rows.merge();
    p.columns = filters;
    p.columns_group_stride = filters_group_stride;
    p.out_columns = out_filters;
    p.prepacked = Prepacked::kColumns;
  } else {
    p.rows = filters;
    p.rows_group_stride = filters_group_stride;
    p.out_rows = out_filters;
    p.columns = patches;
    p.columns_group_stride = patches_group_stride;
    p.out_columns = out_positions;
    p.out_columns.merge();
    p.prepacked = Prepacked::kRows;
  }
  return p;
}

// ---- forward ----

template <typename scalar_t>
bool forward_reads_channels_innermost(const ConvForwardParams& params) {
  const ConvGeometry& g = params.geometry;
  return reads_channels_innermost<scalar_t>(g, {g.N, g.C, g.in, params.x_strides},
                                            {g.N, g.K, g.out, params.y_strides});
}

// by_channels: has vectors of channels, whatever the memory format of y.
template <typename scalar_t>
Product<scalar_t, scalar_t> forward_product(const ConvForwardParams& params, bool by_channels = false) {
  const ConvGeometry& g = params.geometry;
  const int64_t filters = g.K / g.groups, channels = g.C / g.groups;
  const Axis out_positions = position_axis(g.N, g.out, params.y_strides, kOnes);
  Product<scalar_t, scalar_t> p =
      oriented(filter_patches<scalar_t>(g, params.w, params.w_strides), filters * params.w_strides[0],
               plain_axis(filters, params.y_strides[1]), input_patches<scalar_t>(g, params.x, params.x_strides),
               channels * params.x_strides[1], out_positions,
               by_channels || channels_contiguous(g.out, params.y_strides));
  p.sums_apart = by_channels;
  p.groups = g.groups;
  p.out = static_cast<scalar_t*>(params.y);
  p.out_group_stride = filters * params.y_strides[1];
  p.bias = static_cast<const scalar_t*>(params.bias);
  p.bias_on_columns = p.prepacked == Prepacked::kColumns;
  p.bias_group_stride = filters;
  p.activation = params.activation;
  return p;
}

// The product of x with its channels innermost, copied to the beginning of the workspace.
template <typename scalar_t>
Product<scalar_t, scalar_t> forward_product_of_copy(ConvForwardParams params) {
  const ConvGeometry& g = params.geometry;
  use_channels_innermost({g.N, g.C, g.in, params.x_strides}, params.workspace, params.x, params.x_strides);
  return forward_product<scalar_t>(params, true);
}

template <typename scalar_t>
void run_forward_product(const ConvForwardParams& params) {
  if (!forward_reads_channels_innermost<scalar_t>(params)) {
    run_product(forward_product<scalar_t>(params), params.workspace);
    return;
  }
  const ConvGeometry& g = params.geometry;
  const Activation x{g.N, g.C, g.in, params.x_strides};
  copy_channels_innermost<scalar_t>(x, params.x, params.workspace);
  run_product(forward_product_of_copy<scalar_t>(params),
              static_cast<char*>(params.workspace) + channels_innermost_bytes<scalar_t>(x));
}

template <typename scalar_t>
int64_t forward_product_bytes(const ConvForwardParams& params) {
  if (!forward_reads_channels_innermost<scalar_t>(params))
    return product_bytes(forward_product<scalar_t>(params));
  const ConvGeometry& g = params.geometry;
  return channels_innermost_bytes<scalar_t>({g.N, g.C, g.in, params.x_strides}) +
         product_bytes(forward_product_of_copy<scalar_t>(params));
}

// ---- grad_input ----

// The taps that reach the positions i of x with i % stride == residue, in one dimension: first, first + step,
// ... For i = residue + j * stride, tap number t reads grad_y at j + origin - t * out_step.
struct ResidueTaps {
  int64_t first = 0, step = 1, count = 0;
  int64_t origin = 0, out_step = 0;
  int64_t positions;

  ResidueTaps(const ConvGeometry& g, int dim, int64_t residue) {
    const int64_t stride = g.stride[dim], dilation = g.dilation[dim], shifted = residue + g.pad[dim];
    positions = residue < g.in[dim] ? ceil_div(g.in[dim] - residue, stride) : 0;
    for (int64_t r = 0; r < g.kernel[dim]; ++r) {
      if ((shifted - r * dilation) % stride != 0) continue;
      if (count == 0) {
        first = r;
        origin = (shifted - r * dilation) / stride;
      } else if (count == 1) {
        step = r - first;
        out_step = step * dilation / stride;
      }
      ++count;
    }
  }
};

template <typename scalar_t>
Product<scalar_t, scalar_t> grad_input_product(const ConvGradInputParams& params,
                                               const ResidueTaps (&taps)[kSpatialDims],
                                               const int64_t (&residue)[kSpatialDims], bool by_channels) {
  const ConvGeometry& g = params.geometry;
  const int64_t filters = g.K / g.groups, channels = g.C / g.groups;

  PatchMatrix<scalar_t> patches{};
  patches.data = static_cast<const scalar_t*>(params.grad_y);
  patches.depth.size[3] = filters;
  patches.depth.stride[3] = params.grad_y_strides[1];
  PatchMatrix<scalar_t> weights{};
  weights.data = static_cast<const scalar_t*>(params.w);
  weights.positions = plain_axis(channels, params.w_strides[1]);
  weights.depth.size[3] = filters;
  weights.depth.stride[3] = params.w_strides[0];

  int64_t positions[kSpatialDims];
  int64_t out_offset = 0;
  for (int i = 0; i < kSpatialDims; ++i) {
    const int64_t stride = params.grad_y_strides[2 + i];
    positions[i] = taps[i].positions;
    out_offset += residue[i] * params.grad_x_strides[2 + i];
    patches.depth.size[i] = taps[i].count;
    patches.depth.stride[i] = -taps[i].out_step * stride;
    patches.step[i] = 1;
    patches.tap_step[i] = -taps[i].out_step;
    patches.origin[i] = taps[i].origin;
    patches.extent[i] = g.out[i];
    patches.origin_offset += taps[i].origin * stride;
    weights.depth.size[i] = taps[i].count;
    weights.depth.stride[i] = taps[i].step * params.w_strides[2 + i];
    weights.extent[i] = 1;
    weights.origin_offset += taps[i].first * params.w_strides[2 + i];
  }
  patches.positions = position_axis(g.N, positions, params.grad_y_strides, kOnes);
  const Axis out_positions = position_axis(g.N, positions, params.grad_x_strides, g.stride);
  patches.simplify();
  weights.simplify();

  Product<scalar_t, scalar_t> p =
      oriented(weights, filters * params.w_strides[0], plain_axis(channels, params.grad_x_strides[1]), patches,
               filters * params.grad_y_strides[1], out_positions,
               by_channels || channels_contiguous(g.in, params.grad_x_strides));
  // Every other position is no run either.
  p.sums_apart = by_channels || (p.prepacked == Prepacked::kRows && p.out_columns.stride[3] != 1);
  p.groups = g.groups;
  p.out = static_cast<scalar_t*>(params.grad_x) + out_offset;
  p.out_group_stride = channels * params.grad_x_strides[1];
  p.bias = static_cast<const scalar_t*>(params.bias);
  p.bias_on_columns = p.prepacked == Prepacked::kColumns;
  p.bias_group_stride = channels;
  return p;
}

// Calls f(product) for each residue of the position modulo the stride. Every position of x belongs to one.
template <typename scalar_t, typename F>
void for_each_residue(const ConvGradInputParams& params, bool by_channels, F&& f) {
  const ConvGeometry& g = params.geometry;
  int64_t residue[kSpatialDims];
  const auto last = [&](int dim) { return std::min(g.stride[dim], g.in[dim]); };
  for (residue[0] = 0; residue[0] < last(0); ++residue[0]) {
    for (residue[1] = 0; residue[1] < last(1); ++residue[1]) {
      for (residue[2] = 0; residue[2] < last(2); ++residue[2]) {
        const ResidueTaps taps[] = {{g, 0, residue[0]}, {g, 1, residue[1]}, {g, 2, residue[2]}};
        f(grad_input_product<scalar_t>(params, taps, residue, by_channels));
      }
    }
  }
}

// Zeros, of a tensor without gaps.
template <typename scalar_t>
void zero(const ConvGeometry& g, scalar_t* x) {
  const int64_t grain = kMinPackPerThread;
  parallel_for(g.N * g.C * volume(g.in), grain, [&](int64_t first, int64_t last) {
    std::memset(static_cast<void*>(x + first), 0, (last - first) * sizeof(scalar_t));
  });
}

inline bool without_gaps(const ConvGeometry& g, const ConvStrides& strides) {
  const int64_t last = (g.N - 1) * strides[0] + (g.C - 1) * strides[1] + (g.in[0] - 1) * strides[2] +
                       (g.in[1] - 1) * strides[3] + (g.in[2] - 1) * strides[4];
  return last + 1 == g.N * g.C * volume(g.in);
}

// Elements of the filters from which a copy of them pays; and of the reduction of a position, from which a copy
// of grad_x does.
inline constexpr int64_t kManyFilters = 1 << 15, kMinReductionOfCopy = 64;

// What a data gradient is computed from and to: copies in the workspace where the tensors' own strides cost
// more.
template <typename scalar_t>
class GradInputCopies {
 public:
  explicit GradInputCopies(const ConvGradInputParams& params) : given_(params), params_(params) {
    constexpr bool kCopies = std::is_same_v<scalar_t, acc_type<scalar_t>>;
    const ConvGeometry& g = params.geometry;
    const Activation y = grad_y(), x = grad_x(), w = filters();
    const int64_t stride = *std::max_element(g.stride, g.stride + kSpatialDims);
    by_channels_ = reads_channels_innermost<scalar_t>(g, y, x);
    // With a stride the positions of one residue are no runs: channels innermost are, and planes are made at
    // the end.
    copies_x_ = kCopies && stride > 1 && !channels_innermost(x) && x.has_planes() &&
                (y.has_planes() || channels_innermost(y)) && y.C / g.groups >= kMinAddressedRun &&
                x.C / g.groups >= kLanes<acc_type<scalar_t>> &&
                volume(g.kernel) * y.C / g.groups >= kMinReductionOfCopy * volume(g.stride);
    copies_y_ = by_channels_ || copies_x_;
    // Filters are reduced over, and of a tap at a time: two strides, each of whole cache lines.
    copies_w_ = kCopies && !channels_innermost(w) && w.has_planes() && volume(g.kernel) > 1 &&
                w.C >= kLanes<acc_type<scalar_t>> && w.N * w.C * w.plane() >= kManyFilters;
    char* at = static_cast<char*>(params.workspace);
    const auto take = [&](bool copies, const Activation& in, const void*& image, ConvStrides& strides) {
      if (!copies) return;
      use_channels_innermost(in, at, image, strides);
      at += channels_innermost_bytes<scalar_t>(in);
      bytes_ += channels_innermost_bytes<scalar_t>(in);
    };
    take(copies_y_, y, params_.grad_y, params_.grad_y_strides);
    take(copies_w_, w, params_.w, params_.w_strides);
    const void* image = params_.grad_x;
    take(copies_x_, x, image, params_.grad_x_strides);
    params_.grad_x = const_cast<void*>(image);
    params_.workspace = at;
  }

  const ConvGradInputParams& params() const { return params_; }  // of the copies; the workspace behind them
  bool by_channels() const { return by_channels_ && !copies_x_; }
  int64_t bytes() const { return bytes_; }

  void copy_in() const {
    auto* const workspace = static_cast<char*>(given_.workspace);
    if (copies_y_) copy_channels_innermost<scalar_t>(grad_y(), given_.grad_y, workspace);
    if (!copies_w_) return;
    const int64_t before = copies_y_ ? channels_innermost_bytes<scalar_t>(grad_y()) : 0;
    copy_channels_innermost<scalar_t>(filters(), given_.w, workspace + before);
  }
  void copy_out() const {
    if (copies_x_) copy_to_planes<scalar_t>(grad_x(), params_.grad_x, given_.grad_x);
  }

 private:
  Activation grad_y() const {
    const ConvGeometry& g = given_.geometry;
    return {g.N, g.K, g.out, given_.grad_y_strides};
  }
  Activation grad_x() const {
    const ConvGeometry& g = given_.geometry;
    return {g.N, g.C, g.in, given_.grad_x_strides};
  }
  Activation filters() const {
    const ConvGeometry& g = given_.geometry;
    return {g.K, g.C / g.groups, g.kernel, given_.w_strides};
  }

  const ConvGradInputParams& given_;
  ConvGradInputParams params_;
  bool by_channels_, copies_x_, copies_y_, copies_w_;
  int64_t bytes_ = 0;
};

// Positions that no tap reaches, three of four where a 1x1 filter has stride 2, are zeroed all at once: they
// are no runs in memory.
template <typename scalar_t>
void grad_input_by_residues(const ConvGradInputParams& params, bool by_channels, void* workspace) {
  const bool without = without_gaps(params.geometry, params.grad_x_strides);
  bool unreached = false;
  for_each_residue<scalar_t>(params, by_channels, [&](const Product<scalar_t, scalar_t>& product) {
    unreached |= product.rows.depth.length() == 0;
  });
  const bool zeroed = unreached && without && params.bias == nullptr;
  if (zeroed) zero(params.geometry, static_cast<scalar_t*>(params.grad_x));
  for_each_residue<scalar_t>(params, by_channels, [&](const Product<scalar_t, scalar_t>& product) {
    if (zeroed && product.rows.depth.length() == 0) return;
    run_product(product, workspace);
  });
}

template <typename scalar_t>
void run_grad_input_products(const ConvGradInputParams& params) {
  const GradInputCopies<scalar_t> copies(params);
  copies.copy_in();
  grad_input_by_residues<scalar_t>(copies.params(), copies.by_channels(), copies.params().workspace);
  copies.copy_out();
}

template <typename scalar_t>
int64_t grad_input_products_bytes(const ConvGradInputParams& params) {
  const GradInputCopies<scalar_t> copies(params);
  int64_t bytes = 0;
  for_each_residue<scalar_t>(
      copies.params(), copies.by_channels(),
      [&](const Product<scalar_t, scalar_t>& product) { bytes = std::max(bytes, product_bytes(product)); });
  return copies.bytes() + bytes;
}

}  // namespace fastnn::FASTNN_BACKEND
