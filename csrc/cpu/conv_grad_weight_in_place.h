// The weight gradient as a product (conv_product.h) of patches in place and grad_y.
//
// For channels-first images, whose rows are the runs that the micro-kernel follows, and for few channels, which
// would leave most lanes empty as columns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../ops/conv.h"
#include "conv_grad_weight.h"
#include "conv_operands.h"
#include "conv_pairs_product.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND {

struct WeightGradient {
  int64_t splits;
  int64_t size;  // of grad_w
};

inline WeightGradient plan_grad_weight(const ConvGeometry& g) {
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
inline Axis grad_weight_places(const ConvGradWeightParams& params) {
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
inline constexpr int64_t kFilterBlock = 32, kChannelBlock = 16;

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

template <typename scalar_t>
int64_t grad_weight_in_place_bytes(const ConvGradWeightParams& params) {
  return partial_sums_bytes<scalar_t>(params.geometry) + product_bytes(grad_weight_product<scalar_t>(params));
}

template <typename scalar_t>
void grad_weight_in_place(const ConvGradWeightParams& params) {
  using acc_t = acc_type<scalar_t>;
  auto product = grad_weight_product<scalar_t>(params);
  product.out = static_cast<acc_t*>(params.workspace);
  char* const workspace = static_cast<char*>(params.workspace) + partial_sums_bytes<scalar_t>(params.geometry);
  run_product(product, workspace);
  if (patches_are_rows<scalar_t>(params)) {
    add_splits_by_places<scalar_t>(params, product);
  } else {
    add_splits_by_filters<scalar_t>(params, product);
  }
}

}  // namespace fastnn::FASTNN_BACKEND
