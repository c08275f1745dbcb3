// Weight gradient of a depthwise convolution with contiguous channels (conv_depthwise.h has the formula).
//
// For a strip of rows and one vector of channels the sums stay in registers: nine of them for 3x3 filters, four
// columns at a time sharing what they load, 22 loads for 36 multiply-adds at stride 1; one tap at a time for
// others. Rows and columns that a tap does not reach are skipped.
//
// Error: sums of at most kMaxTermsPerSum terms, a chain over those, and the splits.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "cache_hints.h"
#include "conv_depthwise_channels.h"
#include "parallel.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {

// Bytes of x and grad_y that a strip of rows takes of L2, where its rows are gone through for one vector of
// channels after the other and the next strip's are fetched meanwhile.
inline constexpr int64_t kGradStripBytes = 128 << 10;

// Positions are split among at most this many sums, and no further than the sums take kGradSumBytes or, since
// torch converts its own in two more copies, twice the gradient's own size.
inline constexpr int64_t kMaxGradSplits = 32;
inline constexpr int64_t kGradSumBytes = 64 << 10;
inline constexpr int64_t kMinSplitPositions = 64;
inline constexpr int64_t kGradBlockVecs = 8;  // vectors of channels of one task

// How grad_weight is cut: a function of the shape alone. A thread that gets neighbouring blocks of one split
// takes them together.
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
        columns * (1 + g.stride[1] * g.stride[2]) * g.C * static_cast<int64_t>(sizeof(acc_t));
    const int64_t positions = g.N * g.out[0] * g.out[1] * g.out[2];
    const int64_t most = std::min(kMaxGradSplits, positions / kMinSplitPositions);
    const int64_t room = std::max(2 * split_bytes(), kGradSumBytes) / split_bytes();
    // A power of two: as many threads share the work evenly.
    splits = std::bit_floor(static_cast<uint64_t>(std::max<int64_t>(1, std::min(most, room))));
    strip_rows = std::clamp<int64_t>(kGradStripBytes / row_bytes, 1, kMaxStripRows);
    const int64_t rows = g.N * g.out[0] * segments * g.out[1];
    strip_rows = std::min(strip_rows, std::max<int64_t>(1, rows / splits));
    strips = ceil_div(g.out[1], strip_rows);
    strip_rows = ceil_div(std::max<int64_t>(1, g.out[1]), std::max<int64_t>(1, strips));
    strips = ceil_div(g.out[1], strip_rows);
    units = g.N * g.out[0] * segments * strips;
    splits = std::clamp<int64_t>(splits, 1, std::max<int64_t>(1, units));
    split_units = ceil_div(units, splits);
  }
  int64_t split_bytes() const { return taps * pitch * static_cast<int64_t>(sizeof(acc_t)); }
  // [split][tap][padded channels]
  int64_t bytes() const { return splits * split_bytes(); }
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

// One strip and one depth of the filter, for the channels [c_first, c_last). strip.g and strip.x are at row 0
// and at coordinate 0, channel 0, and so is total. Calls fetch() once a vector of channels.
template <typename scalar_t, typename Fetch>
void add_channel_grads(const ChannelGradRows<scalar_t>& strip, const DepthwiseDim& row_dim, int64_t row,
                       int64_t row_end, const DepthwiseDim& column_dim, int64_t begin, int64_t end,
                       acc_type<scalar_t>* total, int64_t pitch, int64_t c_first, int64_t c_last,
                       const Fetch& fetch) {
  const DimTaps &row_taps = row_dim.taps[0], &taps = column_dim.taps[0];
  const ColumnSpan span(column_dim, taps, 0, begin, end);
  // At stride 2 and two columns of padding the column at an edge has two taps outside.
  const bool edges_fit =
      (span.inner_first == span.first || (span.inner_first - 1) * span.step + taps.origin == -1) &&
      (span.inner_last == span.last || span.inner_last * span.step + taps.origin + 2 == span.extent);
  const bool three = taps.count == 3 && taps.move == 1 && span.inner_first - span.first <= 1 &&
                     span.last - span.inner_last <= 1 && span.inner_first < span.inner_last && span.step <= 2 &&
                     edges_fit;
  // f(rows, total, lanes) for the rows [from, to) and one row of taps or three, for each vector of channels.
  const auto for_each_part = [&](int64_t from, int64_t to, int64_t tap_row,
                                 const auto& f) __attribute__((always_inline)) {
    if (from >= to) return;
    ChannelGradRows<scalar_t> rows = strip;
    rows.rows = to - from;
    rows.g += from * rows.g_row;
    rows.x += from * rows.x_row + (row_taps.origin + tap_row * row_taps.move) * rows.x_tap_row;
    acc_type<scalar_t>* const row_total = total + tap_row * taps.count * pitch;
    for_each_channel_vector<scalar_t>(c_first, c_last, false, [&](int64_t c, const auto& lanes) {
      ChannelGradRows<scalar_t> part = rows;
      part.g += c;
      part.x += c;
      f(part, row_total + c, lanes);
    });
  };
  ColumnSpan inner(row_dim, row_taps, 0, row, row_end);
  if (!three || row_taps.count != 3 || row_taps.move != 1) inner.inner_last = inner.inner_first;
  for_each_part(inner.inner_first, inner.inner_last, 0, [&](const auto& part, auto* sums, const auto& lanes) {
    fetch();
    if (span.step == 1) {
      add_three_taps<3, 1>(part, span, sums, pitch, lanes);
    } else {
      add_three_taps<3, 2>(part, span, sums, pitch, lanes);
    }
  });
  for (int64_t h = 0; h < row_taps.count; ++h) {
    DimTaps one = row_taps;
    one.origin += h * row_taps.move;
    one.count = 1;
    const ColumnSpan rows(row_dim, one, 0, row, row_end);
    const int64_t edges[2][2] = {{rows.inner_first, std::min(rows.inner_last, inner.inner_first)},
                                 {std::max(rows.inner_first, inner.inner_last), rows.inner_last}};
    for (const auto& [from, to] : edges) {
      if (three) {
        for_each_part(from, to, h, [&](const auto& part, auto* sums, const auto& lanes) {
          if (span.step == 1) {
            add_three_taps<1, 1>(part, span, sums, pitch, lanes);
          } else {
            add_three_taps<1, 2>(part, span, sums, pitch, lanes);
          }
        });
        continue;
      }
      for (int64_t t = 0; t < taps.count; ++t) {
        DimTaps column = taps;
        column.origin += t * taps.move;
        column.count = 1;
        const ColumnSpan columns(column_dim, column, 0, begin, end);
        for_each_part(from, to, h, [&](const auto& part, auto* sums, const auto& lanes) {
          add_one_tap(part, columns, sums + t * pitch, lanes);
        });
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
  const bool dense = x_strides[4] == C && x_strides[3] == column_dim.extent * C && g_strides[4] == C &&
                     g_strides[3] == column_dim.size * C;

  const int64_t task_work =
      std::max<int64_t>(1, plan.split_units * plan.strip_rows * std::min(kSegment, column_dim.size) *
                               std::min(C, plan.block) * plan.taps);
  const int64_t grain = std::max<int64_t>(1, kMinDepthwisePerThread / task_work);
  parallel_for(plan.splits * plan.blocks, grain, [&](int64_t first_task, int64_t last_task) {
    FetchAhead x_ahead, g_ahead;
    for (int64_t task = first_task; task < last_task;) {
      const int64_t split = task / plan.blocks, block = task % plan.blocks;
      const int64_t taken = std::min(plan.blocks - block, last_task - task);
      task += taken;
      const int64_t c_first = block * plan.block, c_last = std::min(C, c_first + taken * plan.block);
      acc_t* const total = sums + split * split_size;
      for (int64_t t = 0; t < plan.taps; ++t) {
        std::fill(total + t * plan.pitch + c_first,
                  total + t * plan.pitch + std::min(plan.pitch, c_first + taken * plan.block), acc_t(0));
      }
      const int64_t last_unit = std::min(plan.units, (split + 1) * plan.split_units);
      for (int64_t unit = split * plan.split_units; unit < last_unit; ++unit) {
        const int64_t outer = unit / plan.strips, row = unit % plan.strips * plan.strip_rows;
        const int64_t row_end = std::min(row_dim.size, row + plan.strip_rows);
        const int64_t begin = outer % plan.segments * kSegment, depth = outer / plan.segments % depth_dim.size;
        const int64_t n = outer / plan.segments / depth_dim.size;
        const scalar_t* const g =
            static_cast<const scalar_t*>(params.grad_y) + n * g_strides[0] + depth * g_strides[2];
        for (int64_t d = 0; d < depth_dim.taps[0].count; ++d) {
          const int64_t x_depth =
              depth * depth_dim.step + depth_dim.taps[0].origin + d * depth_dim.taps[0].move;
          if (!inside(x_depth, depth_dim.extent)) continue;
          const scalar_t* const x =
              static_cast<const scalar_t*>(params.x) + n * x_strides[0] + x_depth * x_strides[2];
          if (dense) {
            const int64_t calls = ceil_div(c_last - c_first, kLanes<acc_t>);
            const auto x_row = [&](int64_t r) {
              return x + std::clamp<int64_t>(r * row_dim.step + row_dim.taps[0].origin, 0, row_dim.extent) *
                             x_strides[3];
            };
            const int64_t halo = geometry.kernel[1] * geometry.dilation[1];
            const scalar_t* const x_end = x_row(row_end) + halo * x_strides[3];
            x_ahead.plan(x_row(row), x_end, x_end + plan.strip_rows * row_dim.step * x_strides[3], calls);
            const scalar_t* const g_end = g + row_end * g_strides[3];
            g_ahead.plan(g + row * g_strides[3], g_end, g_end + plan.strip_rows * g_strides[3], calls);
          }
          const ChannelGradRows<scalar_t> rows{g,
                                               x,
                                               row_end - row,
                                               g_strides[3],
                                               g_strides[4],
                                               row_dim.step * x_strides[3],
                                               x_strides[4],
                                               x_strides[3]};
          add_channel_grads(rows, row_dim, row, row_end, column_dim, begin, begin + kSegment,
                            total + d * row_dim.taps[0].count * column_dim.taps[0].count * plan.pitch,
                            plan.pitch, c_first, c_last, [&]() __attribute__((always_inline)) {
                              x_ahead.next();
                              g_ahead.next();
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
