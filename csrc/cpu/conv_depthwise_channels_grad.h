// Weight gradient of a depthwise convolution with contiguous channels (conv_depthwise.h has the formula).
//
// For a strip of rows and one vector of channels the sums stay in registers: nine of them for 3x3 filters, four
// columns at a time sharing what they load, 22 loads for 36 multiply-adds at stride 1; one tap at a time for
// others. Rows and columns that a tap does not reach are skipped.
//
// Error: sums of at most kMaxTermsPerSum terms, a chain over those, and the splits.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv_depthwise_channels.h"
#include "parallel.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {

// The rows of x and grad_y of a strip, for one vector of channels, stay in L1.
inline constexpr int64_t kGradStripBytes = 24 << 10;

// Tasks of grad_weight: enough for many threads; more splits mean more sums to keep and to add.
inline constexpr int64_t kGradTasks = 32;
inline constexpr int64_t kGradBlockVecs = 8;  // vectors of channels of one task
inline constexpr int64_t kMinSplitPositions = 1024;

// How grad_weight is cut: a function of the shape alone.
template <typename acc_t>
struct ChannelsGradPlan {
  int64_t taps, pitch, block, blocks;    // block: channels of one task
  int64_t segments, strip_rows, strips;  // strips of one image, depth and segment
  int64_t units, splits, split_units;    // units: strips in all

  explicit ChannelsGradPlan(const ConvGeometry& g) {
    taps = g.kernel[0] * g.kernel[1] * g.kernel[2];
    pitch = round_up(g.C, kLanes<acc_t>);
    block = kGradBlockVecs * kLanes<acc_t>;
    blocks = ceil_div(g.C, block);
    segments = ceil_div(g.out[2], kSegment);
    const int64_t columns = std::max<int64_t>(1, std::min(g.out[2], kSegment));
    const int64_t row_bytes =
        columns * (1 + g.stride[1] * g.stride[2]) * kLanes<acc_t> * static_cast<int64_t>(sizeof(acc_t));
    strip_rows = std::clamp<int64_t>(kGradStripBytes / row_bytes, 1, kMaxStripRows);
    strips = ceil_div(g.out[1], strip_rows);
    units = g.N * g.out[0] * segments * strips;
    const int64_t positions = g.N * g.out[0] * g.out[1] * g.out[2];
    splits = std::max<int64_t>(1, std::min({kGradTasks / blocks, positions / kMinSplitPositions, units}));
    split_units = ceil_div(units, splits);
  }
  // [split][tap][padded channels]
  int64_t bytes() const { return splits * taps * pitch * static_cast<int64_t>(sizeof(acc_t)); }
};

// The rows of grad_y in a strip, or those of them that a row of taps reaches, for one vector of channels.
template <typename scalar_t>
struct ChannelGradRows {
  const scalar_t* g;  // at the first row, column 0
  const scalar_t* x;  // at the row that it reads, column coordinate 0
  int64_t rows;
  int64_t g_row, g_column, x_row, x_column;
  int64_t x_tap_row;  // from a row of taps to the next
};

// total[r][t] += the sums for kTapRows rows of three neighbouring taps, positions kStep apart, over the columns
// of `span`; at the two edges, at most one column wide, one tap is outside. Four columns share what they load.
template <int kTapRows, int kStep, typename scalar_t, typename Lanes>
inline __attribute__((always_inline)) void add_three_taps(const ChannelGradRows<scalar_t>& part,
                                                          const ColumnSpan& span, acc_type<scalar_t>* total,
                                                          int64_t total_step, const Lanes& lanes) {
  using V = Vec<acc_type<scalar_t>>;
  const int64_t width = span.inner_last - span.inner_first;
  const bool left = span.first < span.inner_first, right = span.inner_last < span.last;
  const int64_t block_rows = std::max<int64_t>(1, kMaxTermsPerSum / (width + 2));
  for (int64_t row = 0; row < part.rows;) {
    V sum[kTapRows][3];
    for (int r = 0; r < kTapRows; ++r) {
      for (int t = 0; t < 3; ++t) sum[r][t] = V(0);
    }
    // The products of kCount columns with the taps [first_tap, last_tap).
    const auto add = [&]<int kCount, int first_tap, int last_tap>(const scalar_t* g, const scalar_t* x)
                         __attribute__((always_inline)) {
                           V grad[kCount];
#pragma GCC unroll 4
                           for (int i = 0; i < kCount; ++i) grad[i] = lanes.load(g + i * part.g_column);
#pragma GCC unroll 3
                           for (int r = 0; r < kTapRows; ++r) {
#pragma GCC unroll 16
                             for (int k = first_tap; k < (kCount - 1) * kStep + last_tap; ++k) {
                               const V value = lanes.load(x + r * part.x_tap_row + k * part.x_column);
#pragma GCC unroll 3
                               for (int t = first_tap; t < last_tap; ++t) {
                                 if (k >= t && (k - t) % kStep == 0 && (k - t) / kStep < kCount) {
                                   sum[r][t] = at::vec::fmadd(value, grad[(k - t) / kStep], sum[r][t]);
                                 }
                               }
                             }
                           }
                         };
    for (const int64_t end = std::min(part.rows, row + block_rows); row < end; ++row) {
      const scalar_t* g = part.g + row * part.g_row + span.inner_first * part.g_column;
      const scalar_t* x =
          part.x + row * part.x_row + (span.inner_first * kStep + span.taps.origin) * part.x_column;
      if (left) add.template operator()<1, 1, 3>(g - part.g_column, x - kStep * part.x_column);
      int64_t j = 0;
      for (; j + 4 <= width; j += 4, g += 4 * part.g_column, x += 4 * kStep * part.x_column) {
        add.template operator()<4, 0, 3>(g, x);
      }
      for (; j < width; ++j, g += part.g_column, x += kStep * part.x_column) {
        add.template operator()<1, 0, 3>(g, x);
      }
      if (right) add.template operator()<1, 0, 2>(g, x);
    }
    for (int r = 0; r < kTapRows; ++r) {
      for (int t = 0; t < 3; ++t) {
        acc_type<scalar_t>* const at = total + (r * 3 + t) * total_step;
        (V::loadu(at) + sum[r][t]).store(at);
      }
    }
  }
}

// total += the sum for one tap, which reads coordinate j * span.step + `origin`, over the columns of `span`'s
// inner part. Four chains hide the latency.
template <typename scalar_t, typename Lanes>
inline __attribute__((always_inline)) void add_one_tap(const ChannelGradRows<scalar_t>& part,
                                                       const ColumnSpan& span, acc_type<scalar_t>* total,
                                                       const Lanes& lanes) {
  using V = Vec<acc_type<scalar_t>>;
  const int64_t width = span.inner_last - span.inner_first, step = span.step;
  if (width <= 0) return;
  const int64_t block_rows = std::max<int64_t>(1, kMaxTermsPerSum / width);
  for (int64_t row = 0; row < part.rows;) {
    V sum[4] = {V(0), V(0), V(0), V(0)};
    for (const int64_t end = std::min(part.rows, row + block_rows); row < end; ++row) {
      const scalar_t* g = part.g + row * part.g_row + span.inner_first * part.g_column;
      const scalar_t* x =
          part.x + row * part.x_row + (span.inner_first * step + span.taps.origin) * part.x_column;
      int64_t j = 0;
      for (; j + 4 <= width; j += 4, g += 4 * part.g_column, x += 4 * step * part.x_column) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          sum[i] = at::vec::fmadd(lanes.load(x + i * step * part.x_column), lanes.load(g + i * part.g_column),
                                  sum[i]);
        }
      }
      for (; j < width; ++j, g += part.g_column, x += step * part.x_column) {
        sum[0] = at::vec::fmadd(lanes.load(x), lanes.load(g), sum[0]);
      }
    }
    (V::loadu(total) + ((sum[0] + sum[1]) + (sum[2] + sum[3]))).store(total);
  }
}

// One strip, one depth of the filter and one vector of channels.
template <typename scalar_t, typename Lanes>
inline __attribute__((always_inline)) void add_channel_grads(const ChannelGradRows<scalar_t>& strip,
                                                             const DepthwiseDim& row_dim, int64_t row,
                                                             int64_t row_end, const DepthwiseDim& column_dim,
                                                             int64_t begin, int64_t end,
                                                             acc_type<scalar_t>* total, int64_t pitch,
                                                             const Lanes& lanes) {
  const DimTaps &row_taps = row_dim.taps[0], &taps = column_dim.taps[0];
  const ColumnSpan span(column_dim, taps, 0, begin, end);
  // At stride 2 and two columns of padding the column at an edge has two taps outside.
  const bool edges_fit =
      (span.inner_first == span.first || (span.inner_first - 1) * span.step + taps.origin == -1) &&
      (span.inner_last == span.last || span.inner_last * span.step + taps.origin + 2 == span.extent);
  const bool three = taps.count == 3 && taps.move == 1 && span.inner_first - span.first <= 1 &&
                     span.last - span.inner_last <= 1 && span.inner_first < span.inner_last && span.step <= 2 &&
                     edges_fit;
  // strip.g and strip.x are at row 0 and at coordinate 0.
  const auto part = [&](int64_t from, int64_t to, int64_t tap_row) {
    ChannelGradRows<scalar_t> p = strip;
    p.rows = to - from;
    p.g += from * p.g_row;
    p.x += from * p.x_row + (row_taps.origin + tap_row * row_taps.move) * p.x_tap_row;
    return p;
  };
  ColumnSpan inner(row_dim, row_taps, 0, row, row_end);
  if (three && row_taps.count == 3 && row_taps.move == 1) {
    if (span.step == 1) {
      add_three_taps<3, 1>(part(inner.inner_first, inner.inner_last, 0), span, total, pitch, lanes);
    } else {
      add_three_taps<3, 2>(part(inner.inner_first, inner.inner_last, 0), span, total, pitch, lanes);
    }
  } else {
    inner.inner_last = inner.inner_first;
  }
  for (int64_t h = 0; h < row_taps.count; ++h) {
    DimTaps one = row_taps;
    one.origin += h * row_taps.move;
    one.count = 1;
    const ColumnSpan rows(row_dim, one, 0, row, row_end);
    const int64_t edges[2][2] = {{rows.inner_first, std::min(rows.inner_last, inner.inner_first)},
                                 {std::max(rows.inner_first, inner.inner_last), rows.inner_last}};
    acc_type<scalar_t>* const row_total = total + h * taps.count * pitch;
    for (const auto& [from, to] : edges) {
      if (from >= to) continue;
      if (three && span.step == 1) {
        add_three_taps<1, 1>(part(from, to, h), span, row_total, pitch, lanes);
      } else if (three) {
        add_three_taps<1, 2>(part(from, to, h), span, row_total, pitch, lanes);
      } else {
        for (int64_t t = 0; t < taps.count; ++t) {
          DimTaps column = taps;
          column.origin += t * taps.move;
          column.count = 1;
          add_one_tap(part(from, to, h), ColumnSpan(column_dim, column, 0, begin, end), row_total + t * pitch,
                      lanes);
        }
      }
    }
  }
}

template <typename scalar_t>
void channels_grad_weight(const ConvGradWeightParams& params) {
  using acc_t = acc_type<scalar_t>;
  const ConvGeometry& geometry = params.geometry;
  const ChannelsGradPlan<acc_t> plan(geometry);
  const DepthwiseDim dim[] = {DepthwiseDim::forward(geometry, 0), DepthwiseDim::forward(geometry, 1),
                              DepthwiseDim::forward(geometry, 2)};
  const auto& [depth_dim, row_dim, column_dim] = dim;
  const int64_t C = geometry.C;
  const int64_t* const x_strides = params.x_strides;
  const int64_t* const g_strides = params.grad_y_strides;
  acc_t* const sums = static_cast<acc_t*>(params.workspace);
  const int64_t split_size = plan.taps * plan.pitch;

  const int64_t task_work =
      std::max<int64_t>(1, plan.split_units * plan.strip_rows * std::min(kSegment, column_dim.size) *
                               std::min(C, plan.block) * plan.taps);
  const int64_t grain = std::max<int64_t>(1, kMinDepthwisePerThread / task_work);
  parallel_for(plan.splits * plan.blocks, grain, [&](int64_t first_task, int64_t last_task) {
    for (int64_t task = first_task; task < last_task; ++task) {
      const int64_t split = task / plan.blocks;
      const int64_t c_first = task % plan.blocks * plan.block, c_last = std::min(C, c_first + plan.block);
      acc_t* const total = sums + split * split_size;
      for (int64_t t = 0; t < plan.taps; ++t) {
        std::fill(total + t * plan.pitch + c_first,
                  total + t * plan.pitch + std::min(plan.pitch, c_first + plan.block), acc_t(0));
      }
      const int64_t last_unit = std::min(plan.units, (split + 1) * plan.split_units);
      for (int64_t unit = split * plan.split_units; unit < last_unit; ++unit) {
        const int64_t outer = unit / plan.strips, row = unit % plan.strips * plan.strip_rows;
        const int64_t row_end = std::min(row_dim.size, row + plan.strip_rows);
        const int64_t begin = outer % plan.segments * kSegment, depth = outer / plan.segments % depth_dim.size;
        const int64_t n = outer / plan.segments / depth_dim.size;
        for (int64_t d = 0; d < depth_dim.taps[0].count; ++d) {
          const int64_t x_depth =
              depth * depth_dim.step + depth_dim.taps[0].origin + d * depth_dim.taps[0].move;
          if (!inside(x_depth, depth_dim.extent)) continue;
          for_each_channel_vector<scalar_t>(c_first, c_last, [&](int64_t c, const auto& lanes) {
            const ChannelGradRows<scalar_t> rows{
                static_cast<const scalar_t*>(params.grad_y) + c + n * g_strides[0] + depth * g_strides[2],
                static_cast<const scalar_t*>(params.x) + c + n * x_strides[0] + x_depth * x_strides[2],
                row_end - row,
                g_strides[3],
                g_strides[4],
                row_dim.step * x_strides[3],
                x_strides[4],
                x_strides[3]};
            add_channel_grads(rows, row_dim, row, row_end, column_dim, begin, begin + kSegment,
                              total + d * row_dim.taps[0].count * column_dim.taps[0].count * plan.pitch + c,
                              plan.pitch, lanes);
          });
        }
      }
    }
  });

  const int64_t* const w_strides = params.grad_w_strides;
  const acc_t* total = sums;
  for (int64_t d = 0; d < geometry.kernel[0]; ++d) {
    for (int64_t h = 0; h < geometry.kernel[1]; ++h) {
      for (int64_t w = 0; w < geometry.kernel[2]; ++w, total += plan.pitch) {
        scalar_t* const grad_w =
            static_cast<scalar_t*>(params.grad_w) + d * w_strides[2] + h * w_strides[3] + w * w_strides[4];
        for (int64_t c = 0; c < C; ++c) {
          acc_t sum = total[c];
          for (int64_t split = 1; split < plan.splits; ++split) sum += total[split * split_size + c];
          grad_w[c * w_strides[0]] = static_cast<scalar_t>(sum);
        }
      }
    }
  }
}

}  // namespace fastnn::FASTNN_BACKEND
