// Depthwise convolution with contiguous channels: vectors of channels (conv_depthwise.h has the formulas).
//
// For a row of the output and one vector of channels, kColumns neighbouring positions are summed in registers.
// A tap's filter is loaded once for all of them, and three neighbouring taps share what they load: kColumns + 2
// + 3 loads for 3 * kColumns multiply-adds; 3x3 filters at stride 1 take two rows at once, 33 loads for 72. The
// columns whose taps fall outside are apart, and rows outside are skipped: nothing is multiplied by padding.
//
// Floor: 2 * taps FLOPs and 8 bytes (float32, stride 1) for each output element. At nine taps a core's
// multiply-adds take less time than the bytes do from memory or L3, and more than they do from L2.
//
// Error: sums of as many terms as there are taps. conv_depthwise_channels_grad.h has grad_weight.
#pragma once

#include "cache_hints.h"
#include "conv_depthwise.h"
#include "parallel.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {

// Positions that are summed at once: six chains hide the latency of the multiply-add, leave registers for three
// filters even where there are sixteen, and divide the usual widths (54, 12; 56, 28 and 14 less two) well.
inline constexpr int kColumns = 6;

// Vectors of channels that are summed at once for a position at the edge, which has no neighbours of its kind.
inline constexpr int kEdgeVecs = 4;

// A strip's columns, and its bytes: the rows of all channels in a part of L2, of some vectors of them in L1.
inline constexpr int64_t kSegment = 128;
inline constexpr int64_t kGatherStripBytes = 64 << 10;
inline constexpr int64_t kMaxStripRows = 32;

// A vector of channels, or the last `count` ones.
template <typename scalar_t, bool whole>
struct ChannelLanes {
  using acc_t = acc_type<scalar_t>;
  int64_t count;
  bool stream = false;  // stores go past the caches
  Vec<acc_t> load(const scalar_t* p) const {
    if constexpr (whole) {
      return load_acc(p);
    } else {
      return load_acc(p, count);
    }
  }
  void store(scalar_t* p, const Vec<acc_t>& v) const {
    if constexpr (whole) {
      if (kVectorIsLine<scalar_t> && stream) return store_stream(p, v);
      store_acc(p, v);
    } else {
      store_acc(p, v, count);
    }
  }
};

// Calls f(c, lanes) for the vectors of channels [first, last); f is inlined twice.
template <typename scalar_t, typename F>
inline __attribute__((always_inline)) void for_each_channel_vector(int64_t first, int64_t last, bool stream,
                                                                   const F& f) {
  constexpr int64_t W = kLanes<acc_type<scalar_t>>;
  int64_t c = first;
  for (; c + W <= last; c += W) f(c, ChannelLanes<scalar_t, true>{W, stream});
  if (c < last) f(c, ChannelLanes<scalar_t, false>{last - c});
}

// One row of the output: what its taps read.
template <typename scalar_t>
struct ChannelRow {
  using acc_t = acc_type<scalar_t>;
  const scalar_t* in;  // at the first tap's depth and row, column coordinate 0, channel 0
  int64_t in_depth, in_row, in_column;
  const acc_t* w;  // at the first tap's depth and row, column 0
  int64_t w_depth, w_row, w_column;
  int64_t depths, rows;  // taps
  scalar_t* out;         // at column 0
  int64_t out_column;
};

// The columns of one residue: position j is column j * residues + residue.
struct ColumnSpan {
  DimTaps taps;
  int64_t step, extent, residue, residues;
  // The positions [first, last) of a segment; those of [inner_first, inner_last) have all taps inside.
  int64_t first, inner_first, inner_last, last;

  ColumnSpan() = default;
  ColumnSpan(const DepthwiseDim& dim, const DimTaps& taps, int64_t residue, int64_t begin, int64_t end)
      : taps(taps),
        step(dim.step),
        extent(dim.extent),
        residue(residue),
        residues(dim.residues),
        first(std::min(begin, taps.positions)),
        last(std::min(end, taps.positions)) {
    const int64_t room = dim.extent - 1 - taps.origin - std::max<int64_t>(0, taps.count - 1) * taps.move;
    inner_first = taps.origin >= 0 ? 0 : ceil_div(-taps.origin, dim.step);
    inner_last = room < 0 ? 0 : room / dim.step + 1;
    if (taps.count == 0) {
      inner_first = first;
      inner_last = last;
    }
    inner_first = std::clamp(inner_first, first, last);
    inner_last = std::clamp(inner_last, inner_first, last);
  }
};

// Sums kCount positions from j on, all of whose taps are inside. kNeighbours: three taps at neighbouring
// coordinates, positions kNeighbours apart; 0 for any others.
template <int kCount, int kNeighbours, typename scalar_t, typename Lanes>
inline __attribute__((always_inline)) void gather_columns(const ChannelRow<scalar_t>& row,
                                                          const ColumnSpan& span, int64_t j, int64_t c,
                                                          const Vec<acc_type<scalar_t>>& bias,
                                                          const Lanes& lanes) {
  using V = Vec<acc_type<scalar_t>>;
  const int64_t pitch = row.in_column, step = kNeighbours > 0 ? kNeighbours : span.step;
  const int64_t w_step = span.taps.stride * row.w_column;
  V sum[kCount];
  for (int i = 0; i < kCount; ++i) sum[i] = bias;
  for (int64_t d = 0; d < row.depths; ++d) {
    const scalar_t* x = row.in + d * row.in_depth + (j * step + span.taps.origin) * pitch + c;
    const acc_type<scalar_t>* w = row.w + d * row.w_depth + span.taps.first * row.w_column + c;
    for (int64_t r = 0; r < row.rows; ++r, x += row.in_row, w += row.w_row) {
      if constexpr (kNeighbours > 0) {
        const V filter[3] = {V::loadu(w), V::loadu(w + w_step), V::loadu(w + 2 * w_step)};
#pragma GCC unroll 32
        for (int k = 0; k < (kCount - 1) * kNeighbours + 3; ++k) {
          const V value = lanes.load(x + k * pitch);
#pragma GCC unroll 3
          for (int t = 0; t < 3; ++t) {
            if (k >= t && (k - t) % kNeighbours == 0 && (k - t) / kNeighbours < kCount) {
              V& s = sum[(k - t) / kNeighbours];
              s = at::vec::fmadd(value, filter[t], s);
            }
          }
        }
      } else {
        for (int64_t t = 0; t < span.taps.count; ++t) {
          const V filter = V::loadu(w + t * w_step);
          const scalar_t* const at = x + t * span.taps.move * pitch;
#pragma GCC unroll 8
          for (int i = 0; i < kCount; ++i) {
            sum[i] = at::vec::fmadd(lanes.load(at + i * step * pitch), filter, sum[i]);
          }
        }
      }
    }
  }
  scalar_t* const out = row.out + (j * span.residues + span.residue) * row.out_column + c;
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) lanes.store(out + i * span.residues * row.out_column, sum[i]);
}

// The positions whose taps are all inside.
template <int kNeighbours, typename scalar_t, typename Lanes>
inline __attribute__((always_inline)) void gather_inner(const ChannelRow<scalar_t>& row, const ColumnSpan& span,
                                                        int64_t c, const Vec<acc_type<scalar_t>>& bias,
                                                        const Lanes& lanes) {
  const int64_t last = span.inner_last;
  int64_t j = span.inner_first;
  for (; j + kColumns <= last; j += kColumns)
    gather_columns<kColumns, kNeighbours>(row, span, j, c, bias, lanes);
  switch (last - j) {
    case 5:
      return gather_columns<5, kNeighbours>(row, span, j, c, bias, lanes);
    case 4:
      return gather_columns<4, kNeighbours>(row, span, j, c, bias, lanes);
    case 3:
      return gather_columns<3, kNeighbours>(row, span, j, c, bias, lanes);
    case 2:
      return gather_columns<2, kNeighbours>(row, span, j, c, bias, lanes);
    case 1:
      return gather_columns<1, kNeighbours>(row, span, j, c, bias, lanes);
  }
}

// kCount positions of two rows, the second one row of the input below the first: 3x3 neighbouring taps, in the
// order of gather_columns. The rows share what they load. Of the four rows of the input that they see,
// [kFirst, kLast) are inside, and row.in and row.w are at the first of those.
template <int kCount, int kFirst, int kLast, typename scalar_t, typename Lanes>
inline __attribute__((always_inline)) void gather_two_rows(const ChannelRow<scalar_t>& row, scalar_t* second,
                                                           const ColumnSpan& span, int64_t j, int64_t c,
                                                           const Vec<acc_type<scalar_t>>& bias,
                                                           const Lanes& lanes) {
  using V = Vec<acc_type<scalar_t>>;
  const int64_t pitch = row.in_column;
  const int64_t w_step = span.taps.stride * row.w_column;
  const scalar_t* const x = row.in + (j + span.taps.origin) * pitch + c;
  const acc_type<scalar_t>* const w = row.w - kFirst * row.w_row + span.taps.first * row.w_column + c;
  V filter[9], sum[2][kCount];
  for_each_constant<9>([&](auto i) __attribute__((always_inline)) {
    filter[i] = V::loadu(w + i / 3 * row.w_row + i % 3 * w_step);
  });
  for_each_constant<2 * kCount>([&](auto i)
                                    __attribute__((always_inline)) { sum[i / kCount][i % kCount] = bias; });
  for_each_constant<(kLast - kFirst) * (kCount + 2)>([&](auto i) __attribute__((always_inline)) {
    constexpr int r = kFirst + i / (kCount + 2), k = i % (kCount + 2);
    const V value = lanes.load(x + (r - kFirst) * row.in_row + k * pitch);
    for_each_constant<3>([&](auto t) __attribute__((always_inline)) {
      if constexpr (k >= t && k - t < kCount) {
        if constexpr (r < 3) sum[0][k - t] = at::vec::fmadd(value, filter[r * 3 + t], sum[0][k - t]);
        if constexpr (r > 0) sum[1][k - t] = at::vec::fmadd(value, filter[(r - 1) * 3 + t], sum[1][k - t]);
      }
    });
  });
  for_each_constant<kCount>([&](auto i) __attribute__((always_inline)) {
    lanes.store(row.out + (j + i) * row.out_column + c, sum[0][i]);
    lanes.store(second + (j + i) * row.out_column + c, sum[1][i]);
  });
}

template <int kFirst, int kLast, typename scalar_t, typename Lanes>
inline __attribute__((always_inline)) void gather_inner_two_rows(const ChannelRow<scalar_t>& row,
                                                                 scalar_t* second, const ColumnSpan& span,
                                                                 int64_t c, const Vec<acc_type<scalar_t>>& bias,
                                                                 const Lanes& lanes) {
  int64_t j = span.inner_first;
  for (; j + 4 <= span.inner_last; j += 4)
    gather_two_rows<4, kFirst, kLast>(row, second, span, j, c, bias, lanes);
  if (j + 2 <= span.inner_last) {
    gather_two_rows<2, kFirst, kLast>(row, second, span, j, c, bias, lanes);
    j += 2;
  }
  if (j < span.inner_last) gather_two_rows<1, kFirst, kLast>(row, second, span, j, c, bias, lanes);
}

// grad_input of three taps at stride 2: positions 2 j and 2 j + 1 for kCount values of j. The even ones see one
// tap, the odd ones that tap's coordinate and the next.
template <int kCount, typename scalar_t, typename Lanes>
inline __attribute__((always_inline)) void gather_even_odd(const ChannelRow<scalar_t>& row,
                                                           const ColumnSpan& even, const ColumnSpan& odd,
                                                           int64_t j, int64_t c,
                                                           const Vec<acc_type<scalar_t>>& bias,
                                                           const Lanes& lanes) {
  using V = Vec<acc_type<scalar_t>>;
  const int64_t pitch = row.in_column;
  V even_sum[kCount], odd_sum[kCount];
  for_each_constant<kCount>([&](auto i) __attribute__((always_inline)) { even_sum[i] = odd_sum[i] = bias; });
  for (int64_t d = 0; d < row.depths; ++d) {
    for (int64_t r = 0; r < row.rows; ++r) {
      const scalar_t* const x = row.in + d * row.in_depth + r * row.in_row + (j + odd.taps.origin) * pitch + c;
      const acc_type<scalar_t>* const w = row.w + d * row.w_depth + r * row.w_row + c;
      const V even_filter = V::loadu(w + even.taps.first * row.w_column);
      const V odd_filter[2] = {V::loadu(w + odd.taps.first * row.w_column),
                               V::loadu(w + (odd.taps.first + odd.taps.stride) * row.w_column)};
      for_each_constant<kCount + 1>([&](auto k) __attribute__((always_inline)) {
        const V value = lanes.load(x + k * pitch);
        if constexpr (k > 0) odd_sum[k - 1] = at::vec::fmadd(value, odd_filter[1], odd_sum[k - 1]);
        if constexpr (k < kCount) {
          even_sum[k] = at::vec::fmadd(value, even_filter, even_sum[k]);
          odd_sum[k] = at::vec::fmadd(value, odd_filter[0], odd_sum[k]);
        }
      });
    }
  }
  scalar_t* const out = row.out + 2 * j * row.out_column + c;
  for_each_constant<kCount>([&](auto i) __attribute__((always_inline)) {
    lanes.store(out + 2 * i * row.out_column, even_sum[i]);
    lanes.store(out + (2 * i + 1) * row.out_column, odd_sum[i]);
  });
}

inline bool is_even_odd(const DepthwiseDim& dim) {
  const DimTaps &even = dim.taps[0], &odd = dim.taps[1];
  return dim.residues == 2 && even.count == 1 && odd.count == 2 && odd.move == 1 && even.origin == odd.origin;
}

template <typename scalar_t, typename Lanes>
inline __attribute__((always_inline)) void gather_inner_even_odd(const ChannelRow<scalar_t>& row,
                                                                 const ColumnSpan (&spans)[kMaxResidues],
                                                                 int64_t c, const Vec<acc_type<scalar_t>>& bias,
                                                                 const Lanes& lanes) {
  const ColumnSpan &even = spans[0], &odd = spans[1];
  int64_t j = odd.inner_first;
  for (; j + 4 <= odd.inner_last; j += 4) gather_even_odd<4>(row, even, odd, j, c, bias, lanes);
  for (; j < odd.inner_last; ++j) gather_even_odd<1>(row, even, odd, j, c, bias, lanes);
  // A last column of grad_y reaches no odd position that has both taps inside.
  for (; j < even.inner_last; ++j) gather_columns<1, 0>(row, even, j, c, bias, lanes);
}

// Sums the taps [range.first, range.last) of position j for kVecs vectors of channels.
template <int kVecs, typename scalar_t, typename Lanes>
inline __attribute__((always_inline)) void gather_edge(const ChannelRow<scalar_t>& row, const ColumnSpan& span,
                                                       int64_t j, const DimTaps::Range& range, int64_t c,
                                                       const scalar_t* bias, const Lanes& lanes) {
  using V = Vec<acc_type<scalar_t>>;
  constexpr int64_t W = kLanes<acc_type<scalar_t>>;
  V sum[kVecs];
  for (int v = 0; v < kVecs; ++v) {
    sum[v] = bias == nullptr ? V(acc_type<scalar_t>(0)) : lanes.load(bias + c + v * W);
  }
  const int64_t at = j * span.step + span.taps.origin;
  for (int64_t d = 0; d < row.depths; ++d) {
    for (int64_t r = 0; r < row.rows; ++r) {
      for (int64_t t = range.first; t < range.last; ++t) {
        const scalar_t* const x =
            row.in + d * row.in_depth + r * row.in_row + (at + t * span.taps.move) * row.in_column + c;
        const acc_type<scalar_t>* const w = row.w + d * row.w_depth + r * row.w_row +
                                            (span.taps.first + t * span.taps.stride) * row.w_column + c;
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          sum[v] = at::vec::fmadd(lanes.load(x + v * W), V::loadu(w + v * W), sum[v]);
        }
      }
    }
  }
  scalar_t* const out = row.out + (j * span.residues + span.residue) * row.out_column + c;
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) lanes.store(out + v * W, sum[v]);
}

// The positions on both sides of the inner ones, for all channels.
template <typename scalar_t>
void gather_edges(const ChannelRow<scalar_t>& row, const ColumnSpan& span, int64_t channels,
                  const scalar_t* bias, bool stream) {
  constexpr int64_t W = kLanes<acc_type<scalar_t>>;
  for (int64_t j = span.first; j < span.last; ++j) {
    if (j == span.inner_first) j = span.inner_last;
    if (j == span.last) break;
    const DimTaps::Range range = span.taps.inside(j, span.step, span.extent);
    int64_t c = 0;
    for (; c + kEdgeVecs * W <= channels; c += kEdgeVecs * W) {
      gather_edge<kEdgeVecs>(row, span, j, range, c, bias, ChannelLanes<scalar_t, true>{W, stream});
    }
    for_each_channel_vector<scalar_t>(c, channels, stream, [&](int64_t first, const auto& lanes) {
      gather_edge<1>(row, span, j, range, first, bias, lanes);
    });
  }
}

// Workspace of channels_gather: the filters as [tap][padded channels].
template <typename acc_t>
int64_t channels_gather_bytes(int64_t taps, int64_t channels) {
  return taps * round_up(channels, kLanes<acc_t>) * static_cast<int64_t>(sizeof(acc_t));
}

template <typename scalar_t>
void channels_gather(const DepthwiseGather<scalar_t>& conv, void* workspace) {
  using acc_t = acc_type<scalar_t>;
  const int64_t C = conv.C, pitch = round_up(C, kLanes<acc_t>);
  const auto& [depth_dim, row_dim, column_dim] = conv.dim;
  const int64_t* const in_strides = conv.in_strides;
  const int64_t* const out_strides = conv.out_strides;
  const int64_t segments = ceil_div(column_dim.size, kSegment * column_dim.residues);
  const int64_t total_rows = conv.N * depth_dim.size * segments * row_dim.size;
  if (total_rows * C == 0) return;

  acc_t* const filters = static_cast<acc_t*>(workspace);
  // Blocks of channels whose filters stay in L1 while their taps are dealt out.
  for (int64_t first = 0; first < pitch; first += kLanes<acc_t>) {
    const int64_t last = std::min(C, first + kLanes<acc_t>);
    acc_t* filter = filters + first;
    for (int64_t d = 0; d < conv.kernel[0]; ++d) {
      for (int64_t h = 0; h < conv.kernel[1]; ++h) {
        for (int64_t w = 0; w < conv.kernel[2]; ++w, filter += pitch) {
          const scalar_t* const src = conv.w + conv.w_offset(d, h, w) + first * conv.w_strides[0];
          for (int64_t c = 0; c < last - first; ++c) filter[c] = static_cast<acc_t>(src[c * conv.w_strides[0]]);
          for (int64_t c = last - first; c < kLanes<acc_t>; ++c) filter[c] = acc_t(0);
        }
      }
    }
  }

  const int64_t columns = std::min(column_dim.size, kSegment * column_dim.residues);
  const int64_t row_bytes = columns * C * static_cast<int64_t>(sizeof(scalar_t)) *
                            std::max<int64_t>(1, row_dim.step * column_dim.step);
  // An even number, for pairs of rows.
  const int64_t strip_rows = std::clamp<int64_t>(kGatherStripBytes / row_bytes / 2 * 2, 2, kMaxStripRows);
  const auto neighbours = [](const DepthwiseDim& dim) {
    return dim.residues == 1 && dim.step == 1 && dim.taps[0].count == 3 && dim.taps[0].move == 1;
  };
  const bool nine_neighbours = neighbours(row_dim) && neighbours(column_dim);
  const bool even_odd = is_even_odd(column_dim);
  const bool dense_in = in_strides[4] == C && in_strides[3] == column_dim.extent * C;
  const bool dense_out = out_strides[4] == C && out_strides[3] == column_dim.size * C;
  // The next strip's new rows, and those that the first strip of an image has besides.
  const int64_t rows_ahead = ceil_div(strip_rows * row_dim.step, row_dim.residues) + conv.kernel[1];
  const bool stream = !conv.activate && streams_lines(conv.out, total_rows * columns * C) &&
                      std::all_of(out_strides, out_strides + 5,
                                  [](int64_t stride) { return stride == 1 || stride % kLanes<acc_t> == 0; });
  const int64_t grain = std::max<int64_t>(1, kMinDepthwisePerThread / (columns * C * conv.taps()));
  parallel_for(total_rows, grain, [&](int64_t begin, int64_t end) {
    FetchAhead inputs, outputs;
    for_each_strip(begin, end, depth_dim.size, segments, row_dim.size, strip_rows, [&](const Strip& strip) {
      ChannelRow<scalar_t> rows[kMaxStripRows];
      const int64_t w_row = conv.kernel[2] * pitch, w_depth = conv.kernel[1] * w_row;
      const DimTaps& depth_taps = depth_dim.taps[strip.depth % depth_dim.residues];
      const int64_t j_depth = strip.depth / depth_dim.residues;
      const auto depths = depth_taps.inside(j_depth, depth_dim.step, depth_dim.extent);
      const int64_t depth = j_depth * depth_dim.step + depth_taps.origin + depths.first * depth_taps.move;
      for (int64_t i = 0; i < strip.rows; ++i) {
        const int64_t y = strip.row + i, j = y / row_dim.residues;
        const DimTaps& taps = row_dim.taps[y % row_dim.residues];
        const auto range = taps.inside(j, row_dim.step, row_dim.extent);
        ChannelRow<scalar_t>& row = rows[i];
        row.depths = depths.last - depths.first;
        row.rows = range.last - range.first;
        row.in = conv.in + strip.n * in_strides[0] + depth * in_strides[2] +
                 (j * row_dim.step + taps.origin + range.first * taps.move) * in_strides[3];
        row.in_depth = depth_taps.move * in_strides[2];
        row.in_row = taps.move * in_strides[3];
        row.in_column = in_strides[4];
        row.w = filters + (depth_taps.first + depths.first * depth_taps.stride) * w_depth +
                (taps.first + range.first * taps.stride) * w_row;
        row.w_depth = depth_taps.stride * w_depth;
        row.w_row = taps.stride * w_row;
        row.w_column = pitch;
        row.out = conv.out + strip.n * out_strides[0] + strip.depth * out_strides[2] + y * out_strides[3];
        row.out_column = out_strides[4];
      }
      ColumnSpan spans[kMaxResidues];
      for (int64_t i = 0; i < column_dim.residues; ++i) {
        spans[i] = ColumnSpan(column_dim, column_dim.taps[i], i, strip.segment * kSegment,
                              (strip.segment + 1) * kSegment);
      }
      // One row of the input and the next lie behind each other, and so do images.
      const DimTaps& last_taps = row_dim.taps[(strip.row + strip.rows - 1) % row_dim.residues];
      const int64_t last_row = (strip.row + strip.rows - 1) / row_dim.residues * row_dim.step +
                               last_taps.origin + std::max<int64_t>(0, last_taps.count - 1) * last_taps.move;
      const scalar_t* const now_end =
          conv.in + strip.n * in_strides[0] + depth * in_strides[2] +
          (std::clamp<int64_t>(last_row, 0, row_dim.extent - 1) + 1) * in_strides[3];
      const int64_t calls = ceil_div(strip.rows, nine_neighbours ? 2 : 1) * ceil_div(C, kLanes<acc_t>);
      if (dense_in) inputs.plan(rows[0].in, now_end, now_end + rows_ahead * in_strides[3], calls);
      if (dense_out && !stream) {
        scalar_t* const out_end = rows[0].out + strip.rows * out_strides[3];
        outputs.plan(rows[0].out, out_end, out_end + strip_rows * out_strides[3], calls);
      }
      for (int64_t i = 0; i < strip.rows; ++i) {
        // At the upper or the lower border one of two rows sees a row of padding.
        const bool two = nine_neighbours && i + 1 < strip.rows && rows[i].depths == 1 &&
                         rows[i].rows + rows[i + 1].rows >= 5;
        for_each_channel_vector<scalar_t>(0, C, stream, [&](int64_t c, const auto& lanes) {
          inputs.next();
          outputs.next();
          const Vec<acc_t> bias = conv.bias == nullptr ? Vec<acc_t>(acc_t(0)) : lanes.load(conv.bias + c);
          if (two) {
            scalar_t* const second = rows[i + 1].out;
            if (rows[i].rows == 2)
              return gather_inner_two_rows<1, 4>(rows[i], second, spans[0], c, bias, lanes);
            if (rows[i + 1].rows == 2)
              return gather_inner_two_rows<0, 3>(rows[i], second, spans[0], c, bias, lanes);
            return gather_inner_two_rows<0, 4>(rows[i], second, spans[0], c, bias, lanes);
          }
          if (even_odd) return gather_inner_even_odd(rows[i], spans, c, bias, lanes);
          for (int64_t residue = 0; residue < column_dim.residues; ++residue) {
            const ColumnSpan& span = spans[residue];
            const bool neighbours = span.taps.count == 3 && span.taps.move == 1;
            if (neighbours && span.step == 1) {
              gather_inner<1>(rows[i], span, c, bias, lanes);
            } else if (neighbours && span.step == 2) {
              gather_inner<2>(rows[i], span, c, bias, lanes);
            } else {
              gather_inner<0>(rows[i], span, c, bias, lanes);
            }
          }
        });
        i += two;
      }
      for (int64_t i = 0; i < strip.rows; ++i) {
        for (int64_t residue = 0; residue < column_dim.residues; ++residue) {
          gather_edges(rows[i], spans[residue], C, conv.bias, stream);
        }
      }
      if (conv.activate) {
        const int64_t first = strip.segment * columns, last = std::min(column_dim.size, first + columns);
        for (int64_t i = 0; i < strip.rows; ++i) {
          conv.activate.run(rows[i].out + first * out_strides[4], last - first, out_strides[4], C, 1);
        }
      }
    });
    if (stream) end_stream();
  });
}

}  // namespace fastnn::FASTNN_BACKEND
