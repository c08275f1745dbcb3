// The weight gradient: a blocked matrix product of filters and channels of taps, reduced over positions.
//
//   grad_w[k][t][c] = sum over positions p of grad_y[p][k] * x[p seen by tap t][c]
//
// A task owns a rectangle of the result (and, of long reductions, one split). It walks the positions in blocks
// of kDepthBlock: packs grad_y's rows for the block, then, a panel of channels of one tap after the other, x;
// the micro-kernel adds each pair of panels to the result. Both are packed since a step from one position to
// the next is even in neither: a panel of x costs 3 loads and stores a position for 3 multiply-adds a filter.
//
// Positions are in the order (place in the image, sample). So the positions at which a tap is inside are a few
// long runs (13 * 8 of 14 * 8 for a batch of 8), and the padding costs nothing: 9 % of a 3x3 filter's work at
// 14 x 14, 18 % at 7 x 7.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../ops/conv.h"
#include "conv_gemm.h"
#include "conv_patches.h"
#include "conv_plan.h"
#include "conv_prefetch.h"
#include "conv_sums.h"
#include "conv_transpose.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND {

// Filters whose rows a task packs at once: a block of them (256 KB) stays in L2, and is most of the workspace.
inline constexpr int64_t kGradWeightRowTile = 256;

// Parts in which the reduction is cut: long ones, so that the partial sums are a small share of the traffic;
// few, since beyond that the tiles of the result occupy the threads; and within 1 MB of partial sums (float32)
// in all.
inline constexpr int64_t kMinSplitLength = 8 * kDepthBlock;
inline constexpr int64_t kMaxSplits = 32;
inline constexpr int64_t kMaxPartialSums = int64_t{1} << 18;

// From this length on rows of the image are the runs of positions, without other samples in between, and x
// stays in place.
inline constexpr int64_t kLongRow = 28;

// What packing a vector of x, or an element of grad_y, costs for one position, in multiply-adds of vectors.
inline constexpr double kImagePackCost = 10, kGradientPackCost = 0.5;

// Calls f(first, count, d, h, w) for each run of places of one row of the image in [first, last).
template <typename F>
void for_each_row_of_places(const int64_t (&size)[kSpatialDims], int64_t first, int64_t last, F&& f) {
  while (first < last) {
    const int64_t w = first % size[2], line = first / size[2];
    const int64_t count = std::min(size[2] - w, last - first);
    f(first, count, line / size[1], line % size[1], w);
    first += count;
  }
}

// dst[i * dst_pitch + j] = src[i * step + j * channel_stride] for i < count, j < channels, j innermost in dst.
template <typename scalar_t>
void copy_channels(const scalar_t* src, int64_t step, int64_t channel_stride, int64_t count, int64_t channels,
                   acc_type<scalar_t>* dst, int64_t dst_pitch) {
  if (channel_stride != 1 && step == 1) {
    copy_transposed(src, channel_stride, channels, count, dst, dst_pitch);
    return;
  }
  if (channel_stride == 1 && channels % kLanes<acc_type<scalar_t>> == 0) {
    constexpr int64_t lanes = kLanes<acc_type<scalar_t>>;
    for (int64_t i = 0; i < count; ++i, src += step, dst += dst_pitch) {
      for (int64_t c = 0; c < channels; c += lanes) load_as_acc(src + c).store(dst + c);
    }
    return;
  }
  if constexpr (std::is_same_v<scalar_t, acc_type<scalar_t>>) {
    if (channel_stride == 1 && channels == kMaxRows) {  // a panel of rows
      for (int64_t i = 0; i < count; ++i, src += step, dst += dst_pitch) {
        std::memcpy(dst, src, kMaxRows * sizeof(scalar_t));
      }
      return;
    }
  }
  for (int64_t i = 0; i < count; ++i) copy_run(dst + i * dst_pitch, src + i * step, channel_stride, channels);
}

// The same weight gradient with positions in one row, where activations are plain matrices.
inline ConvGradWeightParams flattened(ConvGradWeightParams params) {
  ConvGeometry& g = params.geometry;
  const auto merges = [&g](const int64_t (&size)[kSpatialDims], const ConvStrides& strides) {
    Axis positions = {{g.N, size[0], size[1], size[2]}, {strides[0], strides[2], strides[3], strides[4]}};
    positions.merge();
    return positions.size[0] * positions.size[1] * positions.size[2] == 1 && positions.stride[3] == strides[4];
  };
  for (int i = 0; i < kSpatialDims; ++i) {
    if (g.kernel[i] != 1 || g.stride[i] != 1 || g.pad[i] != 0 || g.in[i] != g.out[i]) return params;
  }
  if (!merges(g.in, params.x_strides) || !merges(g.out, params.grad_y_strides)) return params;
  const int64_t length = g.N * g.out[0] * g.out[1] * g.out[2];
  g.N = 1;
  for (int i = 0; i < kSpatialDims; ++i) g.in[i] = g.out[i] = i < 2 ? 1 : length;
  return params;
}

template <typename acc_t>
struct GradWeightPlan {
  int64_t filters, channels, taps, length;
  // The order of positions: so many samples innermost, outside of them places of the image; all other samples
  // count as depth.
  int64_t samples, places[kSpatialDims];
  bool columns_in_place;
  int64_t splits, split_length, depth_block;
  int64_t panel_height, row_panels, row_tile, row_panel_size;
  int64_t panel_vecs, panel_width, tap_panels, column_panels;
  int64_t row_parts, column_parts, tasks, workers;
  int64_t size, partial_sums, worker_size;  // elements
  bool direct;                              // into grad_w

  // params: flattened().
  GradWeightPlan(const ConvGradWeightParams& params, bool same_type) {
    const ConvGeometry& g = params.geometry;
    filters = g.K / g.groups;
    channels = g.C / g.groups;
    taps = g.kernel[0] * g.kernel[1] * g.kernel[2];
    length = g.N * g.out[0] * g.out[1] * g.out[2];
    size = g.K * channels * taps;
    const int64_t most_splits =
        std::min({length / kMinSplitLength, kMaxPartialSums / std::max<int64_t>(1, size), kMaxSplits});
    splits = 1;  // a power of two, so that threads have equally many
    while (2 * splits <= most_splits) splits *= 2;
    split_length = ceil_div(length, splits);
    depth_block = split_length == 0 ? 0 : ceil_div(split_length, ceil_div(split_length, kDepthBlock));
    panel_height = panel_rows(filters);
    row_panels = ceil_div(filters, panel_height);
    std::copy_n(g.out, kSpatialDims, places);
    const bool long_rows = g.out[2] >= kLongRow;
    samples = long_rows ? 1 : std::max<int64_t>(1, g.N);
    if (long_rows) places[0] *= g.N;
    columns_in_place = same_type && long_rows && params.x_strides[1] == 1 && channels % kLanes<acc_t> == 0 &&
                       row_panels <= kMaxInPlacePanels;
    const int64_t vecs = ceil_div(channels, kLanes<acc_t>);
    panel_vecs = ceil_div(vecs, ceil_div(vecs, kMaxVecs));
    panel_width = panel_vecs * kLanes<acc_t>;
    tap_panels = ceil_div(channels, panel_width);
    column_panels = taps * tap_panels;
    const PartCosts costs{kImagePackCost, kGradientPackCost};
    const Parts parts = cut_in_parts<acc_t>(g.groups * splits, filters, row_panels, panel_height, taps * vecs,
                                            column_panels, split_length, costs);
    row_parts = parts.by_rows;
    column_parts = parts.by_columns;
    tasks = parts.tasks;
    workers = parts.workers;
    row_tile =
        std::min(ceil_div(row_panels, row_parts), std::max<int64_t>(1, kGradWeightRowTile / panel_height));
    // A line more than a power of two, so that writing to several panels by turns meets different sets of L1.
    row_panel_size = panel_height * depth_block + 64 / static_cast<int64_t>(sizeof(acc_t));
    worker_size = round_up(row_tile * row_panel_size, 64 / static_cast<int64_t>(sizeof(acc_t)));
    Axis places = {{g.kernel[0], g.kernel[1], g.kernel[2], channels},
                   {params.grad_w_strides[2], params.grad_w_strides[3], params.grad_w_strides[4],
                    params.grad_w_strides[1]}};
    places.merge();
    direct = same_type && splits == 1 && places.size[3] == taps * channels && places.stride[3] == 1;
    partial_sums = direct ? 0 : round_up(splits * size, 64 / static_cast<int64_t>(sizeof(acc_t)));
  }

  int64_t bytes() const { return (partial_sums + workers * worker_size) * static_cast<int64_t>(sizeof(acc_t)); }
};

template <typename scalar_t>
class GradWeightRunner {
 public:
  using acc_t = acc_type<scalar_t>;
  using Sums = TileSums<acc_t, acc_t>;

  explicit GradWeightRunner(const ConvGradWeightParams& params)
      : params_(flattened(params)),
        geometry_(params_.geometry),
        plan_(params_, std::is_same_v<scalar_t, acc_t>) {
    workspace_ = static_cast<acc_t*>(params.workspace);
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      if (plan_.direct) sums_ = static_cast<acc_t*>(params.grad_w);
    }
    if (sums_ == nullptr) sums_ = workspace_;
    const int64_t columns = plan_.taps * plan_.channels;
    row_axis_ = {{1, 1, 1, plan_.filters}, {0, 0, 0, plan_.direct ? params.grad_w_strides[0] : columns}};
    column_axis_ = {{1, 1, 1, columns}, {0, 0, 0, 1}};
    const ConvGeometry& g = geometry_;
    const auto axis = [&](const ConvStrides& strides, const int64_t (&step)[kSpatialDims]) {
      Axis axis = {{g.N, g.out[0], g.out[1], g.out[2]},
                   {strides[0], strides[2] * step[0], strides[3] * step[1], strides[4] * step[2]}};
      if (plan_.samples > 1) axis.rotate();
      return axis;
    };
    constexpr int64_t ones[kSpatialDims] = {1, 1, 1};
    grad_y_in_runs_ = params_.grad_y_strides[1] == 1;
    x_in_runs_ = params_.x_strides[1] == 1 && plan_.taps == 1;
    grad_y_axis_ = axis(params_.grad_y_strides, ones);
    x_axis_ = axis(params_.x_strides, g.stride);
  }

  void run() const {
    if (plan_.tasks > 0) {
      parallel_for(plan_.workers, 1, [&](int64_t first_worker, int64_t last_worker) {
        for (int64_t worker = first_worker; worker < last_worker; ++worker) {
          acc_t* const buffer = workspace_ + plan_.partial_sums + worker * plan_.worker_size;
          const int64_t end = cut(plan_.tasks, plan_.workers, worker + 1);
          for (int64_t task = cut(plan_.tasks, plan_.workers, worker); task < end; ++task)
            compute_part(task, buffer);
        }
      });
    }
    if (!plan_.direct) add_splits();
  }

 private:
  struct Part {
    int64_t group, split_end, i0, i1, first_panel, last_panel;
    acc_t* row_panels;
    const Sums* sums;
  };

  void compute_part(int64_t task, acc_t* buffer) const {
    const int64_t column_part = task % plan_.column_parts;
    const int64_t row_part = task / plan_.column_parts % plan_.row_parts;
    const int64_t split = task / plan_.column_parts / plan_.row_parts % plan_.splits;
    const int64_t group = task / plan_.column_parts / plan_.row_parts / plan_.splits;
    const int64_t row_begin = cut(plan_.row_panels, plan_.row_parts, row_part),
                  row_count = cut(plan_.row_panels, plan_.row_parts, row_part + 1) - row_begin,
                  row_tiles = ceil_div(row_count, plan_.row_tile);
    const int64_t split_begin = split * plan_.split_length,
                  split_end = std::min(plan_.length, split_begin + plan_.split_length);
    acc_t* const out = sums_ + split * plan_.size + group * plan_.filters * row_axis_.stride[3];
    for (int64_t tile = 0; tile < row_tiles; ++tile) {
      const auto row = [&](int64_t i) {
        return std::min(plan_.filters, (row_begin + cut(row_count, row_tiles, i)) * plan_.panel_height);
      };
      const int64_t i0 = row(tile), i1 = row(tile + 1);
      const Sums sums(out, row_axis_, column_axis_, nullptr, 0, i0, i1, 0, 0);
      const Part part{group,
                      split_end,
                      i0,
                      i1,
                      cut(plan_.column_panels, plan_.column_parts, column_part),
                      cut(plan_.column_panels, plan_.column_parts, column_part + 1),
                      buffer,
                      &sums};
      int64_t k0 = split_begin;
      do {  // once where there are no positions, to write zeros
        const int64_t k1 = std::min(split_end, k0 + plan_.depth_block);
        multiply_block(part, k0, k1, k0 > split_begin);
        k0 = k1;
      } while (k0 < split_end);
    }
  }

  void multiply_block(const Part& part, int64_t k0, int64_t k1, bool accumulate) const {
    // While it multiplies, a block of grad_y and a panel of x are fetched that are next.
    const int64_t next_k1 = std::min(part.split_end, k1 + plan_.depth_block);
    const int64_t row_calls = ceil_div(part.i1 - part.i0, kMaxRows);
    PrefetchAlong<scalar_t> grad_y_ahead(rows_at(part.group, part.i0), grad_y_axis_, k1,
                                         grad_y_in_runs_ ? next_k1 : k1, part.i1 - part.i0,
                                         row_calls * (part.last_panel - part.first_panel));
    for (int64_t i = part.i0; i < part.i1; i += plan_.panel_height) {
      pack_rows(part.group, i, std::min(part.i1, i + plan_.panel_height), k0, k1,
                part.row_panels + (i - part.i0) / plan_.panel_height * plan_.row_panel_size);
    }
    alignas(64) acc_t panel[kDepthBlock * kMaxVecs * kLanes<acc_t>];
    Segment<acc_t> segments[kDepthBlock];
    for (int64_t p = part.first_panel; p < part.last_panel; ++p) {
      const int64_t tap = p / plan_.tap_panels, c0 = p % plan_.tap_panels * plan_.panel_width;
      const int64_t count = std::min(plan_.panel_width, plan_.channels - c0);
      const int64_t vecs = ceil_div(count, kLanes<acc_t>);
      const int64_t num_segments =
          pack_columns(part.group, tap, c0, count, vecs * kLanes<acc_t>, k0, k1, panel, segments);
      const int64_t j = tap * plan_.channels + c0;
      const typename Sums::Columns columns = part.sums->columns(j, j + count);
      const bool last_panel = p + 1 == part.last_panel;
      const int64_t next_c0 = (last_panel ? part.first_panel : p + 1) % plan_.tap_panels * plan_.panel_width;
      PrefetchAlong<scalar_t> x_ahead(columns_at(part.group, next_c0), x_axis_, last_panel ? k1 : k0,
                                      !x_in_runs_  ? 0
                                      : last_panel ? next_k1
                                                   : k1,
                                      std::min(plan_.panel_width, plan_.channels - next_c0), row_calls);
      int64_t height = kMaxRows;
      for (int64_t i = part.i0; i < part.i1; i += height) {
        while (height > part.i1 - i) height /= 2;
        const int64_t row = i - part.i0;
        const acc_t* const first =
            part.row_panels + row / plan_.panel_height * plan_.row_panel_size + row % plan_.panel_height;
        const acc_t* address[kMaxRows];
        for (int64_t m = 0; m < height; ++m) address[m] = first + m;
        grad_y_ahead.advance();
        x_ahead.advance();
        const MicroKernel<acc_t> kernel = select_micro_kernel<acc_t, false>(height, vecs);
        part.sums->add(part.sums->rows(i, height), columns, accumulate, [&](acc_t* c, int64_t pitch, bool add) {
          kernel(segments, num_segments, {address, 0, plan_.panel_height}, c, pitch, add);
        });
      }
    }
  }

  const scalar_t* rows_at(int64_t group, int64_t filter) const {
    return static_cast<const scalar_t*>(params_.grad_y) +
           (group * plan_.filters + filter) * params_.grad_y_strides[1];
  }
  const scalar_t* columns_at(int64_t group, int64_t channel) const {
    return static_cast<const scalar_t*>(params_.x) + (group * plan_.channels + channel) * params_.x_strides[1];
  }

  // Positions [k0, k1) of sample n are the places [first, last).
  int64_t first_place(int64_t k, int64_t n) const {
    return ceil_div(std::max<int64_t>(0, k - n), plan_.samples);
  }

  // Packs grad_y of the filters [i0, i1): [position][filter].
  void pack_rows(int64_t group, int64_t i0, int64_t i1, int64_t k0, int64_t k1, acc_t* panel) const {
    const ConvStrides& strides = params_.grad_y_strides;
    const scalar_t* const src = rows_at(group, i0);
    const int64_t samples = plan_.samples, height = plan_.panel_height;
    for (int64_t n = 0; n < samples; ++n) {
      const int64_t first = first_place(k0, n), last = first_place(k1, n);
      for_each_row_of_places(
          plan_.places, first, last, [&](int64_t place, int64_t count, int64_t line_d, int64_t h, int64_t w) {
            const int64_t outer = line_d / geometry_.out[0], d = line_d % geometry_.out[0];
            copy_channels(src + (outer + n) * strides[0] + d * strides[2] + h * strides[3] + w * strides[4],
                          strides[4], strides[1], count, i1 - i0, panel + (place * samples + n - k0) * height,
                          samples * height);
          });
    }
  }

  // Packs x as the tap sees it, channels [c0, c0 + count) in rows of `width`, at the positions where it is
  // inside: [position][channel]. Returns the number of runs of those.
  int64_t pack_columns(int64_t group, int64_t tap, int64_t c0, int64_t count, int64_t width, int64_t k0,
                       int64_t k1, acc_t* panel, Segment<acc_t>* segments) const {
    const ConvGeometry& g = geometry_;
    const ConvStrides& strides = params_.x_strides;
    const int64_t samples = plan_.samples;
    const int64_t tap_at[kSpatialDims] = {tap / g.kernel[2] / g.kernel[1], tap / g.kernel[2] % g.kernel[1],
                                          tap % g.kernel[2]};
    int64_t shift[kSpatialDims];
    for (int i = 0; i < kSpatialDims; ++i) shift[i] = tap_at[i] * g.dilation[i] - g.pad[i];
    const InsideRange range(g.stride[2], shift[2], g.in[2]);
    const scalar_t* const src = columns_at(group, c0);
    int64_t num_segments = 0;
    const int64_t first = k0 / samples, last = ceil_div(k1, samples);
    for_each_row_of_places(
        plan_.places, first, last, [&](int64_t place, int64_t places, int64_t line_d, int64_t h, int64_t w) {
          const int64_t outer = line_d / g.out[0], d = line_d % g.out[0];
          const int64_t in_d = d * g.stride[0] + shift[0], in_h = h * g.stride[1] + shift[1];
          const int64_t begin = std::max(w, range.first), end = std::min(w + places, range.last);
          if (begin >= end || !inside(in_d, g.in[0]) || !inside(in_h, g.in[1])) return;
          place += begin - w;
          const int64_t from = std::max(k0, place * samples),
                        to = std::min(k1, (place + end - begin) * samples);
          if (from >= to) return;
          const scalar_t* const line = src + outer * strides[0] + in_d * strides[2] + in_h * strides[3] +
                                       (begin * g.stride[2] + shift[2]) * strides[4];
          const int64_t step = g.stride[2] * strides[4];
          Segment<acc_t> segment = packed_segment<acc_t>(from - k0, to - from, panel, width);
          segment.row_offset = segment.begin * plan_.panel_height;
          if constexpr (std::is_same_v<scalar_t, acc_t>) {
            if (plan_.columns_in_place) {
              segment.columns = line + (from - place) * step;
              segment.column_pitch = step;
              segments[num_segments++] = segment;
              return;
            }
          }
          Segment<acc_t>* const previous = num_segments > 0 ? &segments[num_segments - 1] : nullptr;
          if (previous != nullptr && previous->begin + previous->count == segment.begin) {
            previous->count += segment.count;
          } else {
            segments[num_segments++] = segment;
          }
          for (int64_t n = 0; n < samples; ++n) {
            const int64_t p0 = std::max(place, first_place(k0, n)),
                          p1 = std::min(place + end - begin, first_place(k1, n));
            if (p0 >= p1) continue;
            copy_channels(line + n * strides[0] + (p0 - place) * step, step, strides[1], p1 - p0, count,
                          panel + (p0 * samples + n - k0) * width, samples * width);
          }
          if (count < width) {
            for (int64_t p = from - k0; p < to - k0; ++p) fill_zero(panel + p * width + count, width - count);
          }
        });
    return num_segments;
  }

  // grad_w = sum over the splits, in order, of [split][group][filter][tap][channel].
  void add_splits() const {
    const int64_t columns = plan_.taps * plan_.channels;
    const ConvStrides& strides = params_.grad_w_strides;
    const int64_t (&kernel)[kSpatialDims] = geometry_.kernel;
    Axis places = {{kernel[0], kernel[1], kernel[2], plan_.channels},
                   {strides[2], strides[3], strides[4], strides[1]}};
    places.merge();
    scalar_t* const grad_w = static_cast<scalar_t*>(params_.grad_w);
    const int64_t grain =
        std::max<int64_t>(1, kMinPackPerThread / std::max<int64_t>(1, columns * plan_.splits));
    parallel_for(columns == 0 ? 0 : geometry_.K, grain, [&](int64_t first, int64_t last) {
      for (int64_t filter = first; filter < last; ++filter) {
        acc_t* const sum = sums_ + filter * columns;
        for (int64_t split = 1; split < plan_.splits; ++split) {
          const acc_t* const part = sum + split * plan_.size;
          for (int64_t j = 0; j < columns; ++j) sum[j] += part[j];
        }
        if constexpr (std::is_same_v<scalar_t, acc_t>) {
          if (places.size[0] * places.size[1] == 1 && places.stride[2] == 1 &&
              places.stride[3] == places.size[2]) {
            copy_transposed(sum, plan_.channels, plan_.taps, plan_.channels, grad_w + filter * strides[0],
                            plan_.taps);
            continue;
          }
        }
        store_along(AxisCursor(places, 0), columns, sum, grad_w + filter * strides[0]);
      }
    });
  }

  const ConvGradWeightParams params_;
  const ConvGeometry& geometry_;
  const GradWeightPlan<acc_t> plan_;
  acc_t* workspace_;
  acc_t* sums_ = nullptr;
  Axis row_axis_, column_axis_;      // of the result
  Axis grad_y_axis_, x_axis_;        // positions in their order
  bool grad_y_in_runs_, x_in_runs_;  // of channels: worth fetching ahead
};

}  // namespace fastnn::FASTNN_BACKEND
