// Convolution on the CPU: forward, data gradient, weight gradient, bias gradient.
//
//   y[n, k, o] = bias[k] + sum over r, c of x[n, c, o * stride + r * dilation - pad] * w[k, c, r]
//
// Each of the first three is an implicit matrix product (conv_product.h) of two patch matrices
// (conv_patches.h), computed a panel at a time by one register micro-kernel (conv_gemm.h), which reads
// activations in place where it can (conv_in_place.h); per group:
//
//   forward      [K x R C] [R C x positions of y]
//   grad_input   [C x R K] [R K x positions of x], once for each residue of the position modulo the stride:
//                the positions of one residue see the same taps, and see grad_y at stride 1, so nothing is
//                multiplied by the zeros between strides
//   grad_weight  [K x positions of y] [positions of y x R C], the reduction cut in parts by the shape alone
//
// Which operand is rows (broadcast) and which is columns (vectors) follows the memory format, so that reading
// in place, or packing, sees runs and results are stored as runs: channels-first has positions as columns,
// channels-last has channels there. grad_weight has patches as rows, in place in either format.
//
// FLOPs: 2 N K (C / groups) R |out| for each direction; bound by multiply-adds. With few channels packing
// patches would cost as much: such convolutions read rows of the image that are copied with their padding
// (conv_staged_gather.h, conv_staged_grad_weight.h). Depthwise convolutions (one channel and one filter a
// group) are bound by loads and have kernels of their own (conv_depthwise.h).
//
// Error: sums of at most 256 products, then a chain over those sums and the bias, all in acc_t; an element of y
// lies within (256 + R C / groups / 256 + 1) * eps(acc_t) * sum |x w| of the exact one, plus one rounding to
// scalar_t; the same for grad_input with K for C, and for grad_weight with the number of positions for R C. The
// depthwise kernels and the bias gradient state their own.
//
// Bits do not depend on the number of threads. A sample's do not depend on its batch in forward and grad_input.
#include "../ops/conv.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "conv_depthwise_channels.h"
#include "conv_depthwise_channels_grad.h"
#include "conv_depthwise_planes.h"
#include "conv_depthwise_planes_grad.h"
#include "conv_grad_bias.h"
#include "conv_patches.h"
#include "conv_product.h"
#include "conv_staged_gather.h"
#include "conv_staged_grad_weight.h"
#include "dispatch.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND {
namespace {

// Parts in which grad_weight cuts its reduction: long ones, so that the partial sums are a small share of the
// traffic; few, since beyond that the tiles of the output occupy the threads; and within 16 MB of partial sums
// (float32) in all.
constexpr int64_t kMinSplitLength = 8 * kDepthBlock;
constexpr int64_t kMaxSplits = 32;
constexpr int64_t kMaxPartialSums = int64_t{1} << 22;

int64_t volume(const int64_t (&size)[kSpatialDims]) { return size[0] * size[1] * size[2]; }

// Axis of n and the spatial dimensions of an activation; the element strides are those of [N, C, D, H, W].
Axis position_axis(int64_t N, const int64_t (&size)[kSpatialDims], const ConvStrides& strides,
                   const int64_t (&step)[kSpatialDims]) {
  return {{N, size[0], size[1], size[2]},
          {strides[0], strides[2] * step[0], strides[3] * step[1], strides[4] * step[2]}};
}

Axis plain_axis(int64_t size, int64_t stride) { return {{1, 1, 1, size}, {0, 0, 0, stride}}; }

constexpr int64_t kOnes[kSpatialDims] = {1, 1, 1};

// Patches of x as forward sees them: positions of y; taps and the channels of one group.
template <typename scalar_t>
PatchMatrix<scalar_t> input_patches(const ConvGeometry& g, const void* x, const ConvStrides& strides) {
  PatchMatrix<scalar_t> m{};
  m.data = static_cast<const scalar_t*>(x);
  m.positions = position_axis(g.N, g.out, strides, g.stride);
  m.depth.size[3] = g.C / g.groups;
  m.depth.stride[3] = strides[1];
  for (int i = 0; i < kSpatialDims; ++i) {
    m.depth.size[i] = g.kernel[i];
    m.depth.stride[i] = g.dilation[i] * strides[2 + i];
    m.step[i] = g.stride[i];
    m.tap_step[i] = g.dilation[i];
    m.origin[i] = -g.pad[i];
    m.extent[i] = g.in[i];
    m.origin_offset -= g.pad[i] * strides[2 + i];
  }
  m.simplify();
  return m;
}

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

// Whether neighbouring elements of an activation are channels, as in channels-last memory, rather than
// positions.
bool channels_contiguous(const int64_t (&size)[kSpatialDims], const ConvStrides& strides) {
  Axis positions = position_axis(1, size, strides, kOnes);
  positions.merge();
  return strides[1] == 1 && positions.stride[3] != 1;
}

// Which kernel computes a convolution.
enum class Variant { kProduct, kStaged, kDepthwiseByChannels, kDepthwiseByPlanes };

// Channels (in grad_input: filters) up to which a convolution of planes reads staged rows. Beyond, runs of the
// reduction are long enough to be addressed in place, and a band of rows would outgrow its buffer.
constexpr int64_t kMaxStagedChannels = 16;

template <typename acc_t>
bool reads_staged_rows(const ConvGeometry& g, bool grad_input) {
  if (!std::is_same_v<acc_t, float> || g.groups != 1) return false;
  if (g.in[0] != 1 || g.kernel[0] != 1 || g.out[0] != 1) return false;
  if (grad_input && (g.stride[1] != 1 || g.stride[2] != 1)) return false;
  const PlaneGeometry planes = grad_input ? grad_input_geometry(g) : plane_geometry(g);
  return planes.channels <= kMaxStagedChannels && staged_rows_fit(planes);
}

// y_strides: of the activation on the output's side, which grad_input reads.
template <typename acc_t>
Variant choose_variant(const ConvGeometry& g, const ConvStrides& x_strides, const ConvStrides& y_strides,
                       bool grad_input) {
  if (reads_staged_rows<acc_t>(g, grad_input)) return Variant::kStaged;
  if (g.C != g.groups || g.K != g.groups || g.groups == 1 || volume(g.kernel) > kMaxTaps)
    return Variant::kProduct;
  if (grad_input && *std::max_element(g.stride, g.stride + kSpatialDims) > kMaxResidues)
    return Variant::kProduct;
  const bool x_by_channels = channels_contiguous(g.in, x_strides);
  if (x_by_channels && channels_contiguous(g.out, y_strides)) return Variant::kDepthwiseByChannels;
  const auto columns_contiguous = [](const int64_t (&size)[kSpatialDims], const ConvStrides& strides) {
    return strides[4] == 1 || size[2] <= 1;
  };
  if (x_by_channels || !columns_contiguous(g.in, x_strides) || !columns_contiguous(g.out, y_strides)) {
    return Variant::kProduct;
  }
  const auto make = grad_input ? DepthwiseDim::grad_input : DepthwiseDim::forward;
  const DepthwiseDim dim[] = {make(g, 0), make(g, 1), make(g, 2)};
  return PlanePlan<acc_t>(dim, g.C, false).fits ? Variant::kDepthwiseByPlanes : Variant::kProduct;
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
    p.rows_group_stride = patches_group_stride;
    p.out_rows = out_positions;
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
    p.prepacked = Prepacked::kRows;
  }
  return p;
}

// ---- forward ----

template <typename scalar_t>
Product<scalar_t, scalar_t> forward_product(const ConvForwardParams& params) {
  const ConvGeometry& g = params.geometry;
  const int64_t filters = g.K / g.groups, channels = g.C / g.groups;
  Axis out_positions = position_axis(g.N, g.out, params.y_strides, kOnes);
  out_positions.merge();
  Product<scalar_t, scalar_t> p =
      oriented(filter_patches<scalar_t>(g, params.w, params.w_strides), filters * params.w_strides[0],
               plain_axis(filters, params.y_strides[1]), input_patches<scalar_t>(g, params.x, params.x_strides),
               channels * params.x_strides[1], out_positions, channels_contiguous(g.out, params.y_strides));
  p.groups = g.groups;
  p.out = static_cast<scalar_t*>(params.y);
  p.out_group_stride = filters * params.y_strides[1];
  p.bias = static_cast<const scalar_t*>(params.bias);
  p.bias_on_columns = p.prepacked == Prepacked::kColumns;
  p.bias_group_stride = filters;
  return p;
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
                                               const int64_t (&residue)[kSpatialDims]) {
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
  Axis out_positions = position_axis(g.N, positions, params.grad_x_strides, g.stride);
  out_positions.merge();
  patches.simplify();
  weights.simplify();

  Product<scalar_t, scalar_t> p = oriented(
      weights, filters * params.w_strides[0], plain_axis(channels, params.grad_x_strides[1]), patches,
      filters * params.grad_y_strides[1], out_positions, channels_contiguous(g.in, params.grad_x_strides));
  p.groups = g.groups;
  p.out = static_cast<scalar_t*>(params.grad_x) + out_offset;
  p.out_group_stride = channels * params.grad_x_strides[1];
  return p;
}

// Calls f(product) for each residue of the position modulo the stride. Every position of x belongs to one.
template <typename scalar_t, typename F>
void for_each_residue(const ConvGradInputParams& params, F&& f) {
  const ConvGeometry& g = params.geometry;
  int64_t residue[kSpatialDims];
  const auto last = [&](int dim) { return std::min(g.stride[dim], g.in[dim]); };
  for (residue[0] = 0; residue[0] < last(0); ++residue[0]) {
    for (residue[1] = 0; residue[1] < last(1); ++residue[1]) {
      for (residue[2] = 0; residue[2] < last(2); ++residue[2]) {
        const ResidueTaps taps[] = {{g, 0, residue[0]}, {g, 1, residue[1]}, {g, 2, residue[2]}};
        f(grad_input_product<scalar_t>(params, taps, residue));
      }
    }
  }
}

// ---- grad_weight ----

struct WeightGradient {
  int64_t splits;
  int64_t size;  // of grad_w
};

WeightGradient plan_grad_weight(const ConvGeometry& g) {
  const int64_t size = g.K * (g.C / g.groups) * volume(g.kernel);
  const int64_t by_length = g.N * volume(g.out) / kMinSplitLength;
  const int64_t by_memory = kMaxPartialSums / std::max<int64_t>(1, size);
  return {std::max<int64_t>(1, std::min({by_length, by_memory, kMaxSplits})), size};
}

// grad_y as patches of one tap: positions, and the filters of one group.
template <typename scalar_t>
PatchMatrix<scalar_t> grad_output_patches(const ConvGradWeightParams& params) {
  const ConvGeometry& g = params.geometry;
  PatchMatrix<scalar_t> m{};
  m.data = static_cast<const scalar_t*>(params.grad_y);
  m.positions = position_axis(g.N, g.out, params.grad_y_strides, kOnes);
  m.depth = plain_axis(g.K / g.groups, params.grad_y_strides[1]);
  std::fill_n(m.extent, kSpatialDims, 1);
  m.simplify();
  return m;
}

// Where grad_w has the taps and channels of one filter, in the order in which patches have them.
Axis grad_weight_places(const ConvGradWeightParams& params) {
  const ConvGeometry& g = params.geometry;
  const ConvStrides& strides = params.grad_w_strides;
  Axis places = {{g.kernel[0], g.kernel[1], g.kernel[2], g.C / g.groups},
                 {strides[2], strides[3], strides[4], strides[1]}};
  places.merge();
  return places;
}

// Whether grad_weight has patches as rows, which are in place if a panel of them is channels of one tap.
// Otherwise both operands are packed, and patches, which outweigh grad_y by the number of taps, must be packed
// in runs.
template <typename scalar_t>
bool patches_are_rows(const ConvGradWeightParams& params) {
  const ConvGeometry& g = params.geometry;
  return (std::is_same_v<scalar_t, acc_type<scalar_t>> && g.C / g.groups % kMaxRows == 0) ||
         !channels_contiguous(g.in, params.x_strides);
}

// The product's output is dense and in acc_t: [split][group][row][column], the rows and columns being filters
// and patch places, or the other way round.
template <typename scalar_t>
Product<scalar_t, acc_type<scalar_t>> grad_weight_product(const ConvGradWeightParams& params) {
  using acc_t = acc_type<scalar_t>;
  const ConvGeometry& g = params.geometry;
  const int64_t filters = g.K / g.groups, channels = g.C / g.groups;
  const int64_t places = channels * volume(g.kernel);

  const PatchMatrix<scalar_t> patches = input_patches<scalar_t>(g, params.x, params.x_strides);
  const PatchMatrix<scalar_t> grad_y = grad_output_patches<scalar_t>(params);
  Product<scalar_t, acc_t> p{};
  p.reduce_positions = true;
  p.prepacked = Prepacked::kNone;
  p.groups = g.groups;
  p.splits = plan_grad_weight(g).splits;
  p.out_group_stride = filters * places;
  p.out_split_stride = g.groups * filters * places;
  if (!patches_are_rows<scalar_t>(params)) {
    p.rows = grad_y;
    p.rows_group_stride = filters * params.grad_y_strides[1];
    p.columns = patches;
    p.columns_group_stride = channels * params.x_strides[1];
    p.out_rows = plain_axis(filters, places);
    p.out_columns = plain_axis(places, 1);
  } else {
    p.rows = patches;
    p.rows_group_stride = channels * params.x_strides[1];
    p.columns = grad_y;
    p.columns_group_stride = filters * params.grad_y_strides[1];
    p.out_rows = plain_axis(places, filters);
    p.out_columns = plain_axis(filters, 1);
  }
  return p;
}

// Filters and channels of a block of grad_w that is written at once: its lines (32 filters of 16 channels and
// nine taps, 20 KB) stay in L1 while they fill up, in whatever order memory has taps and channels.
constexpr int64_t kFilterBlock = 32, kChannelBlock = 16;

// grad_w = sum over the splits, in order, of [split][group][place][filter].
template <typename scalar_t>
void add_splits_by_places(const ConvGradWeightParams& params,
                          const Product<scalar_t, acc_type<scalar_t>>& product) {
  using acc_t = acc_type<scalar_t>;
  const ConvGeometry& g = params.geometry;
  const int64_t filters = g.K / g.groups, channels = g.C / g.groups, taps = volume(g.kernel);
  const ConvStrides& strides = params.grad_w_strides;
  const Axis tap_axis = {{1, g.kernel[0], g.kernel[1], g.kernel[2]}, {0, strides[2], strides[3], strides[4]}};
  const int64_t filter_blocks = ceil_div(filters, kFilterBlock),
                channel_blocks = ceil_div(channels, kChannelBlock);
  scalar_t* const grad_w = static_cast<scalar_t*>(params.grad_w);

  const int64_t block_size = kFilterBlock * kChannelBlock * taps * product.splits;
  const int64_t grain = std::max<int64_t>(1, kMinPackPerThread / block_size);
  parallel_for(g.groups * channel_blocks * filter_blocks, grain, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t k0 = task % filter_blocks * kFilterBlock, k1 = std::min(filters, k0 + kFilterBlock);
      const int64_t c0 = task / filter_blocks % channel_blocks * kChannelBlock;
      const int64_t group = task / filter_blocks / channel_blocks;
      AxisCursor tap(tap_axis, 0);
      for (int64_t t = 0; t < taps; ++t, tap.advance(1)) {
        for (int64_t c = c0; c < std::min(channels, c0 + kChannelBlock); ++c) {
          const acc_t* part = product.out + group * product.out_group_stride + (t * channels + c) * filters;
          acc_t sum[kFilterBlock];
          std::copy(part + k0, part + k1, sum);
          for (int64_t split = 1; split < product.splits; ++split) {
            part += product.out_split_stride;
            for (int64_t k = k0; k < k1; ++k) sum[k - k0] += part[k];
          }
          scalar_t* const place = grad_w + tap.offset() + c * strides[1] + group * filters * strides[0];
          for (int64_t k = k0; k < k1; ++k) place[k * strides[0]] = static_cast<scalar_t>(sum[k - k0]);
        }
      }
    }
  });
}

// The same of [split][group][filter][place]; sums in place.
template <typename scalar_t>
void add_splits_by_filters(const ConvGradWeightParams& params,
                           const Product<scalar_t, acc_type<scalar_t>>& product) {
  using acc_t = acc_type<scalar_t>;
  const ConvGeometry& g = params.geometry;
  const int64_t filters = g.K / g.groups;
  const Axis place_axis = grad_weight_places(params);
  const int64_t places = place_axis.length();
  scalar_t* const grad_w = static_cast<scalar_t*>(params.grad_w);

  const int64_t grain = std::max<int64_t>(1, kMinPackPerThread / std::max<int64_t>(1, places * product.splits));
  parallel_for(places == 0 ? 0 : g.K, grain, [&](int64_t first, int64_t last) {
    for (int64_t filter = first; filter < last; ++filter) {
      acc_t* const sum = product.out + filter * places;
      for (int64_t split = 1; split < product.splits; ++split) {
        const acc_t* const part = sum + split * product.out_split_stride;
        for (int64_t j = 0; j < places; ++j) sum[j] += part[j];
      }
      store_along(AxisCursor(place_axis, 0), places, sum, grad_w + filter * params.grad_w_strides[0]);
    }
  });
}

template <typename scalar_t>
int64_t partial_sums_bytes(const ConvGeometry& g) {
  const WeightGradient plan = plan_grad_weight(g);
  return round_up(plan.splits * plan.size * static_cast<int64_t>(sizeof(acc_type<scalar_t>)), 64);
}

}  // namespace

Status conv_forward(const ConvForwardParams& params, Stream) {
  return dispatch_dtype(params.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = acc_type<scalar_t>;
    switch (choose_variant<acc_t>(params.geometry, params.x_strides, params.y_strides, false)) {
      case Variant::kStaged:
        StagedGatherRunner<scalar_t>(staged_forward<scalar_t>(params)).run(params.workspace);
        break;
      case Variant::kDepthwiseByChannels:
        channels_gather(depthwise_forward<scalar_t>(params), params.workspace);
        break;
      case Variant::kDepthwiseByPlanes:
        planes_gather(depthwise_forward<scalar_t>(params));
        break;
      case Variant::kProduct:
        ProductRunner<scalar_t, scalar_t>(forward_product<scalar_t>(params), params.workspace).run();
        break;
    }
    return Status::success();
  });
}

int64_t conv_forward_workspace(const ConvForwardParams& params) {
  int64_t bytes = 0;
  dispatch_dtype(params.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = acc_type<scalar_t>;
    switch (choose_variant<acc_t>(params.geometry, params.x_strides, params.y_strides, false)) {
      case Variant::kStaged:
        bytes = StagedGatherRunner<scalar_t>(staged_forward<scalar_t>(params)).workspace_bytes();
        break;
      case Variant::kDepthwiseByChannels:
        bytes = channels_gather_bytes<acc_t>(volume(params.geometry.kernel), params.geometry.C);
        break;
      case Variant::kDepthwiseByPlanes:
        break;
      case Variant::kProduct:
        bytes = ProductPlan<acc_t>(forward_product<scalar_t>(params)).bytes();
        break;
    }
    return Status::success();
  });
  return bytes;
}

Status conv_grad_input(const ConvGradInputParams& params, Stream) {
  return dispatch_dtype(params.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = acc_type<scalar_t>;
    switch (choose_variant<acc_t>(params.geometry, params.grad_x_strides, params.grad_y_strides, true)) {
      case Variant::kStaged:
        StagedGatherRunner<scalar_t>(staged_grad_input<scalar_t>(params)).run(params.workspace);
        break;
      case Variant::kDepthwiseByChannels:
        channels_gather(depthwise_grad_input<scalar_t>(params), params.workspace);
        break;
      case Variant::kDepthwiseByPlanes:
        planes_gather(depthwise_grad_input<scalar_t>(params));
        break;
      case Variant::kProduct:
        for_each_residue<scalar_t>(params, [&](const Product<scalar_t, scalar_t>& product) {
          ProductRunner<scalar_t, scalar_t>(product, params.workspace).run();
        });
        break;
    }
    return Status::success();
  });
}

int64_t conv_grad_input_workspace(const ConvGradInputParams& params) {
  int64_t bytes = 0;
  dispatch_dtype(params.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = acc_type<scalar_t>;
    switch (choose_variant<acc_t>(params.geometry, params.grad_x_strides, params.grad_y_strides, true)) {
      case Variant::kStaged:
        bytes = StagedGatherRunner<scalar_t>(staged_grad_input<scalar_t>(params)).workspace_bytes();
        break;
      case Variant::kDepthwiseByChannels:
        bytes = channels_gather_bytes<acc_t>(volume(params.geometry.kernel), params.geometry.C);
        break;
      case Variant::kDepthwiseByPlanes:
        break;
      case Variant::kProduct:
        for_each_residue<scalar_t>(params, [&](const Product<scalar_t, scalar_t>& product) {
          bytes = std::max(bytes, ProductPlan<acc_t>(product).bytes());
        });
        break;
    }
    return Status::success();
  });
  return bytes;
}

Status conv_grad_weight(const ConvGradWeightParams& params, Stream) {
  return dispatch_dtype(params.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = acc_type<scalar_t>;
    const ConvGeometry& g = params.geometry;
    switch (choose_variant<acc_t>(g, params.x_strides, params.grad_y_strides, false)) {
      case Variant::kStaged:
        StagedGradWeight<scalar_t>(params).run();
        break;
      case Variant::kDepthwiseByChannels:
        channels_grad_weight<scalar_t>(params);
        break;
      case Variant::kDepthwiseByPlanes:
        planes_grad_weight<scalar_t>(params);
        break;
      case Variant::kProduct: {
        auto product = grad_weight_product<scalar_t>(params);
        product.out = static_cast<acc_t*>(params.workspace);
        char* const workspace = static_cast<char*>(params.workspace) + partial_sums_bytes<scalar_t>(g);
        ProductRunner<scalar_t, acc_t>(product, workspace).run();
        if (patches_are_rows<scalar_t>(params)) {
          add_splits_by_places<scalar_t>(params, product);
        } else {
          add_splits_by_filters<scalar_t>(params, product);
        }
        break;
      }
    }
    return Status::success();
  });
}

int64_t conv_grad_weight_workspace(const ConvGradWeightParams& params) {
  int64_t bytes = 0;
  dispatch_dtype(params.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = acc_type<scalar_t>;
    const ConvGeometry& g = params.geometry;
    switch (choose_variant<acc_t>(g, params.x_strides, params.grad_y_strides, false)) {
      case Variant::kStaged:
        bytes = StagedGradWeight<scalar_t>(params).workspace_bytes();
        break;
      case Variant::kDepthwiseByChannels:
        bytes = ChannelsGradPlan<acc_t>(g).bytes();
        break;
      case Variant::kDepthwiseByPlanes: {
        const DepthwiseDim dim[] = {DepthwiseDim::forward(g, 0), DepthwiseDim::forward(g, 1),
                                    DepthwiseDim::forward(g, 2)};
        bytes = PlanesGradPlan<acc_t>(g, dim, dense_rows(params)).bytes(g.C);
        break;
      }
      case Variant::kProduct:
        bytes =
            partial_sums_bytes<scalar_t>(g) + ProductPlan<acc_t>(grad_weight_product<scalar_t>(params)).bytes();
        break;
    }
    return Status::success();
  });
  return bytes;
}

Status conv_grad_bias(const ConvGradBiasParams& params, Stream) {
  return dispatch_dtype(params.dtype, [&](auto tag) {
    grad_bias<typename decltype(tag)::type>(params);
    return Status::success();
  });
}

}  // namespace fastnn::FASTNN_BACKEND
