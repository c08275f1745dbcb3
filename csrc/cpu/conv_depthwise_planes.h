// Depthwise convolution with contiguous columns: vectors of columns (conv_depthwise.h has the formulas).
//
// A strip of rows of one channel's plane is copied to a scratch in L1: widened to the accumulation type, with
// zeros where the filter looks outside, and with a stride the columns dealt out to one run for each residue.
// There every tap of neighbouring outputs is one contiguous load. Planes that are smaller share the scratch, so
// that no load waits for the store just before it.
//
//   3x3 filters   kRowGroup rows of outputs share what they load: 18 loads, two thirds of them across a cache
//                 line, for 36 multiply-adds at stride 1. Two rows of a plane at most half a vector wide (7x7
//                 with 16 lanes) are one vector.
//   others        a list of taps, one load for each multiply-add; for grad_input one list for each residue of
//                 the position modulo the stride, whose results are interleaved in registers. A row that is
//                 alone, as in one dimension, has kColumnGroup vectors at a time.
//
// Floor: as for channels; the copy adds a load and a store for each input vector, about a quarter of the
// multiply-adds' time at nine taps.
//
// Error: sums of as many terms as there are taps. conv_depthwise_planes_grad.h has grad_weight.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "conv_depthwise.h"
#include "conv_depthwise_rows.h"
#include "parallel.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {

inline constexpr int64_t kScratchSize = 8192;  // elements: 32 KB of floats
inline constexpr int64_t kPlaneSegment = 256;  // columns
inline constexpr int64_t kLineSegment = 2048;  // of planes of one row, as a 1-D convolution has
inline constexpr int64_t kMaxPlanes = 16;      // that share the scratch
inline constexpr int kRowGroup = 4;
inline constexpr int kColumnGroup = 4;  // vectors of a row that has no others beside it
inline constexpr int64_t kMaxPairedRows = 64;

// Two short rows as the halves of a vector, and back: the lanes [0, count) and [W / 2, W / 2 + count) from and
// to [0, 2 * count).
#if defined(CPU_CAPABILITY_AVX512)
inline constexpr bool kCanPair = true;
inline Vec<float> split_pair(const Vec<float>& v, int64_t count) {
  return _mm512_maskz_expand_ps(static_cast<__mmask16>(((1u << count) - 1) * 0x101u), v);
}
inline Vec<double> split_pair(const Vec<double>& v, int64_t count) {
  return _mm512_maskz_expand_pd(static_cast<__mmask8>(((1u << count) - 1) * 0x11u), v);
}
inline Vec<float> join_pair(const Vec<float>& v, int64_t count) {
  return _mm512_maskz_compress_ps(static_cast<__mmask16>(((1u << count) - 1) * 0x101u), v);
}
inline Vec<double> join_pair(const Vec<double>& v, int64_t count) {
  return _mm512_maskz_compress_pd(static_cast<__mmask8>(((1u << count) - 1) * 0x11u), v);
}
#else
// Without such an instruction a row of its own costs less.
inline constexpr bool kCanPair = false;
template <typename V>
V split_pair(const V& v, int64_t) {
  return v;
}
template <typename V>
V join_pair(const V& v, int64_t) {
  return v;
}
#endif

// Columns of a tile of the output, in steps of the residues.
inline int64_t segment_columns(const DepthwiseDim (&dim)[kSpatialDims]) {
  const auto& [d, h, w] = dim;
  int64_t reach = 0;
  for (int64_t r = 0; r < w.residues; ++r) reach = std::max(reach, w.taps[r].count * w.taps[r].move);
  const bool line = d.size == 1 && h.size == 1 && d.extent == 1 && h.extent == 1;
  return line && reach <= kLineSegment ? std::max(kPlaneSegment, kLineSegment / w.step) : kPlaneSegment;
}

// Where a strip of outputs finds its input in the scratch: the same for every channel and image.
template <typename acc_t>
struct PlaneTile {
  static constexpr int64_t W = kLanes<acc_t>;

  int64_t first_row, rows;        // of the output
  int64_t first_column, columns;  // of the output
  int64_t first_j, vector_columns;
  int64_t slices, in_depth, depth_move;         // depths of the input that some tap reads
  int64_t in_rows, in_row, row_begin, row_end;  // rows of a slice, coordinate of the first, those inside
  int64_t column_step, column_begin, column_end, in_column;  // coordinates inside, that of index 0
  int64_t phase_pitch, row_pitch, slice_pitch, plane_size;
  int64_t even, odd;  // where the first column inside lies in its row of the scratch, and the one after it
  bool paired;        // two rows make a vector
  // Taps of (residue of the row, residue of the column): [list[r], list[r + 1]).
  int64_t list[kMaxResidues * kMaxResidues + 1];
  int64_t offset[kMaxTaps];  // relative to the output's place in the scratch
  int64_t tap[kMaxTaps][3];  // of the filter

  // Extent of what the taps of a dimension read, over its residues.
  struct Reach {
    int64_t low = INT64_MAX, high = INT64_MIN;
    explicit Reach(const DepthwiseDim& dim) {
      for (int64_t r = 0; r < dim.residues; ++r) {
        const DimTaps& taps = dim.taps[r];
        if (taps.count == 0) continue;
        low = std::min(low, taps.origin);
        high = std::max(high, taps.origin + (taps.count - 1) * taps.move);
      }
      if (high < low) low = high = 0;
    }
  };

  static bool three_by_three(const DepthwiseDim (&dim)[kSpatialDims]) {
    const auto& [d, h, w] = dim;
    // With rows at stride 1 the columns' taps are taken for neighbours (NineTaps).
    const bool columns_fit = h.step == 2 || (h.step == 1 && w.step == 1 && w.taps[0].move == 1);
    const bool one_depth = d.size == 1 && d.extent == 1 && d.taps[0].count == 1 && d.taps[0].origin == 0;
    return one_depth && h.residues == 1 && w.residues == 1 && h.taps[0].count == 3 && w.taps[0].count == 3 &&
           h.taps[0].move == 1 && columns_fit;
  }

  // Whether the tile at another depth differs from this one in where its input lies alone; it is that one then.
  bool move_to_depth(const DepthwiseDim& d, int64_t from, int64_t to) {
    if (d.residues != 1) return false;
    const auto before = d.taps[0].inside(from, d.step, d.extent), now = d.taps[0].inside(to, d.step, d.extent);
    if (before.first != now.first || before.last != now.last) return false;
    in_depth += (to - from) * d.step;
    return true;
  }

  PlaneTile() = default;
  PlaneTile(const DepthwiseDim (&dim)[kSpatialDims], int64_t depth, int64_t segment, int64_t row_from,
            int64_t row_count, bool may_pair) {
    const auto& [d, h, w] = dim;
    first_row = row_from;
    rows = row_count;
    const DimTaps& depth_taps = d.taps[depth % d.residues];
    const int64_t j_depth = depth / d.residues;
    const auto depths = depth_taps.inside(j_depth, d.step, d.extent);
    slices = depths.last - depths.first;
    in_depth = j_depth * d.step + depth_taps.origin + depths.first * depth_taps.move;
    depth_move = depth_taps.move;

    const Reach row_reach(h);
    in_row = first_row / h.residues * h.step + row_reach.low;
    in_rows = (ceil_div(rows, h.residues) - 1) * h.step + row_reach.high - row_reach.low + 1;
    row_begin = std::clamp<int64_t>(-in_row, 0, in_rows);
    row_end = std::clamp<int64_t>(h.extent - in_row, row_begin, in_rows);

    const Reach reach(w);
    first_j = segment * segment_columns(dim);
    first_column = first_j * w.residues;
    columns = std::min(w.size - first_column, segment_columns(dim) * w.residues);
    vector_columns = ceil_div(columns, w.residues);
    column_step = w.step;
    in_column = first_j * w.step + reach.low;
    const int64_t span = (vector_columns - 1) * w.step + reach.high - reach.low + 1;
    column_begin = std::clamp<int64_t>(in_column, 0, w.extent);
    column_end = std::clamp<int64_t>(in_column + span, column_begin, w.extent);
    // The first element inside is aligned: the stores of the copy and a third of the loads cross no cache line.
    const int64_t lead = w.step == 1 ? (W - (column_begin - in_column) % W) % W : 0;
    in_column -= lead;
    const int64_t last_offset = (reach.high - reach.low) / w.step + lead;
    phase_pitch = round_up(std::max(vector_columns, W) + last_offset, W) + W;

    const int64_t before = column_begin - in_column - lead, length = column_end - column_begin;
    paired = kCanPair && may_pair && three_by_three(dim) && h.size <= kMaxPairedRows && h.step == 1 &&
             w.step == 1 && w.taps[0].move == 1 && length == w.extent && columns <= W / 2 &&
             before + length <= W / 2 && columns + 2 - W / 2 <= before;
    // A row's left padding is the end of the row before, and rows begin at a half of a vector.
    const int64_t pair_lead = W / 2 - before;
    if (paired) {
      in_column += lead - pair_lead;
      phase_pitch = W / 2;
      in_rows = round_up(rows, 2 * kRowGroup) + 4;
    }
    row_pitch = phase_pitch * w.step;
    const int64_t u = column_begin - in_column;
    even = u % w.step * phase_pitch + u / w.step;
    odd = (u + 1) % w.step * phase_pitch + (u + 1) / w.step;
    slice_pitch = in_rows * row_pitch;
    plane_size = round_up(slices * slice_pitch, W);

    int64_t count = 0, number = 0;
    for (int64_t ry = 0; ry < h.residues; ++ry) {
      for (int64_t rx = 0; rx < w.residues; ++rx) {
        list[number++] = count;
        const DimTaps &row_taps = h.taps[ry], &column_taps = w.taps[rx];
        for (int64_t i = 0; i < slices; ++i) {
          for (int64_t t = 0; t < row_taps.count; ++t) {
            for (int64_t u = 0; u < column_taps.count; ++u, ++count) {
              const int64_t at = column_taps.origin - reach.low + u * column_taps.move;
              offset[count] = i * slice_pitch +
                              (row_taps.origin - row_reach.low + t * row_taps.move) * row_pitch +
                              at % w.step * phase_pitch + at / w.step + (paired ? pair_lead : lead);
              tap[count][0] = depth_taps.first + (depths.first + i) * depth_taps.stride;
              tap[count][1] = row_taps.first + t * row_taps.stride;
              tap[count][2] = column_taps.first + u * column_taps.stride;
            }
          }
        }
      }
    }
    list[number] = count;
  }

  // Where loads can be masked, whole vectors are stored: the zeros behind the row fall on padding, or on the
  // next row before that is written.
  template <typename scalar_t>
  static void copy_row(const scalar_t* src, int64_t length, acc_t* dst) {
#if defined(CPU_CAPABILITY_AVX512)
    for_each_vector<acc_t>(0, length,
                           [&](int64_t c, int64_t count) { load_acc(src + c, count).store(dst + c); });
#else
    if (std::is_same_v<scalar_t, acc_t> || length >= W) {
      copy_run(dst, src, length);
    } else {
      store_acc(dst, load_acc(src, length), length);
    }
#endif
  }

  // Copies what is inside; the zeros around it are there already.
  template <typename scalar_t>
  void copy(const scalar_t* plane, const int64_t* strides, acc_t* scratch) const {
    const int64_t length = column_end - column_begin;
    if (length <= 0) return;
    for (int64_t i = 0; i < slices; ++i) {
      acc_t* const slice = scratch + i * slice_pitch + row_begin * row_pitch;
      const scalar_t* src = plane + (in_depth + i * depth_move) * strides[2] +
                            (in_row + row_begin) * strides[3] + column_begin * strides[4];
      acc_t* dst = slice + even;
      if (paired) {
        // Two dense rows at a time; what is stored behind the last one is 0 as well.
        const int64_t count = (row_end - row_begin) * length;
        for (int64_t c = 0; c < count; c += 2 * length, dst += W) {
          split_pair(load_acc(src + c, std::min(2 * length, count - c)), length).store(dst);
        }
      } else if (column_step == 1) {
        for (int64_t r = row_begin; r < row_end; ++r, src += strides[3], dst += row_pitch) {
          copy_row(src, length, dst);
        }
      } else if (column_step == 2) {
        acc_t* odd_dst = slice + odd;
        for (int64_t r = row_begin; r < row_end;
             ++r, src += strides[3], dst += row_pitch, odd_dst += row_pitch) {
          int64_t c = 0;
          for (; c + 2 * W <= length; c += 2 * W) {
            const auto [a, b] = at::vec::deinterleave2(load_acc(src + c), load_acc(src + c + W));
            a.store(dst + c / 2);
            b.store(odd_dst + c / 2);
          }
          // Pitches leave room for whole vectors.
          if (c < length) {
            const int64_t left = length - c;
            const auto [a, b] =
                at::vec::deinterleave2(load_acc(src + c, std::min(left, W)),
                                       left > W ? load_acc(src + c + W, left - W) : Vec<acc_t>(acc_t(0)));
            a.store(dst + c / 2);
            b.store(odd_dst + c / 2);
          }
        }
      } else {
        for (int64_t r = row_begin; r < row_end; ++r, src += strides[3]) {
          acc_t* const row = scratch + i * slice_pitch + r * row_pitch;
          const int64_t u = column_begin - in_column;
          for (int64_t c = 0; c < length; ++c) {
            row[(u + c) % column_step * phase_pitch + (u + c) / column_step] = static_cast<acc_t>(src[c]);
          }
        }
      }
    }
  }
};

// How the output's planes are cut: into strips of rows, and blocks of planes that share the scratch.
template <typename acc_t>
struct PlanePlan {
  int64_t segments, strip_rows, strips, planes;
  bool fits;

  PlanePlan(const DepthwiseDim (&dim)[kSpatialDims], int64_t C, bool may_pair) {
    const auto& [d, h, w] = dim;
    segments = std::max<int64_t>(1, ceil_div(w.size, segment_columns(dim) * w.residues));
    const auto size = [&](int64_t rows) {
      int64_t largest = 0;
      // Any depth in the middle sees the most slices.
      for (int64_t depth = 0; depth < std::min<int64_t>(d.size, 64); ++depth) {
        largest = std::max(largest, PlaneTile<acc_t>(dim, depth, 0, 0, rows, may_pair).plane_size);
      }
      return largest;
    };
    const int64_t one = size(h.residues), two = size(2 * h.residues);
    fits = one <= kScratchSize;
    // Sizes grow evenly with the rows, but for pairs, which are small.
    const int64_t growth = std::max<int64_t>(1, two - one);
    const int64_t groups = fits ? 1 + (kScratchSize - one) / growth : 1;
    const int64_t all = std::max<int64_t>(1, ceil_div(h.size, h.residues));
    strips = ceil_div(all, groups);
    strip_rows = ceil_div(all, strips) * h.residues;
    strips = std::max<int64_t>(1, ceil_div(h.size, strip_rows));
    const int64_t plane = std::max<int64_t>(1, size(std::min(strip_rows, std::max<int64_t>(1, h.size))));
    planes = strips > 1 ? 1 : std::clamp<int64_t>(kScratchSize / plane, 1, std::min(kMaxPlanes, C));
  }
};

// Where the taps of a 3x3 filter lie in the scratch, relative to the first: with constants where they are
// known, which leaves the address registers to the rows.
template <bool neighbours, int64_t pitch = 0>
struct NineTaps {
  int64_t row_pitch;
  int64_t columns[3];

  template <typename acc_t>
  explicit NineTaps(const PlaneTile<acc_t>& tile)
      : row_pitch(pitch > 0 ? pitch : tile.row_pitch),
        columns{0, tile.offset[1] - tile.offset[0], tile.offset[2] - tile.offset[0]} {}
  int64_t row(int64_t r) const { return r * (pitch > 0 ? pitch : row_pitch); }
  int64_t column(int t) const { return neighbours ? t : columns[t]; }
};

// sum[a] += the nine taps, for outputs kRowStep rows of the scratch apart.
template <int kRows, int kRowStep, typename acc_t, typename Taps>
inline __attribute__((always_inline)) void add_nine_taps(const acc_t* at, const Taps& taps,
                                                         const Vec<acc_t> (&filter)[9],
                                                         Vec<acc_t> (&sum)[kRows]) {
#pragma GCC unroll 16
  for (int k = 0; k < (kRows - 1) * kRowStep + 3; ++k) {
    const acc_t* const row = at + taps.row(k);
#pragma GCC unroll 3
    for (int t = 0; t < 3; ++t) {
      const Vec<acc_t> value = Vec<acc_t>::loadu(row + taps.column(t));
#pragma GCC unroll 4
      for (int a = 0; a < kRows; ++a) {
        const int r = k - a * kRowStep;
        if (r >= 0 && r < 3) sum[a] = at::vec::fmadd(value, filter[r * 3 + t], sum[a]);
      }
    }
  }
}

// One channel of a strip.
template <typename scalar_t>
struct PlaneRow {
  using acc_t = acc_type<scalar_t>;
  const acc_t* scratch;
  const acc_t* filter;  // a value for each entry of the tile's list
  acc_t bias;
  scalar_t* out;  // at the strip's first row and column
  int64_t out_row;
};

// Calls f.operator()<n>(row) for groups of rows that cover [0, rows). The last group overlaps the one before:
// the same sums are stored twice.
template <typename F>
inline __attribute__((always_inline)) void for_each_row_group(int64_t rows, const F& f) {
  if (rows >= kRowGroup) {
    for (int64_t r = 0; r < rows; r += kRowGroup) {
      f.template operator()<kRowGroup>(std::min(r, rows - kRowGroup));
    }
  } else {
    for (int64_t r = 0; r < rows; ++r) f.template operator()<1>(r);
  }
}

template <int kRowStep, typename scalar_t>
void gather_nine_taps(const PlaneTile<acc_type<scalar_t>>& tile, const PlaneRow<scalar_t>& plane) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t W = kLanes<acc_t>;
  Vec<acc_t> filter[9];
  for (int t = 0; t < 9; ++t) filter[t] = Vec<acc_t>(plane.filter[t]);
  const NineTaps<kRowStep == 1> taps(tile);
  for_each_row_group(tile.rows, [&]<int kRows>(int64_t row) {
    const acc_t* const at = plane.scratch + tile.offset[0] + row * kRowStep * tile.row_pitch;
    scalar_t* const out = plane.out + row * plane.out_row;
    for (int64_t c = 0; c < tile.columns; c += W) {
      const int64_t first = tile.columns >= W ? std::min(c, tile.columns - W) : 0;
      Vec<acc_t> sum[kRows];
      for (int a = 0; a < kRows; ++a) sum[a] = Vec<acc_t>(plane.bias);
      add_nine_taps<kRows, kRowStep>(at + first, taps, filter, sum);
      if (tile.columns >= W) {
#pragma GCC unroll 4
        for (int a = 0; a < kRows; ++a) store_acc(out + a * plane.out_row + first, sum[a]);
      } else {
#pragma GCC unroll 4
        for (int a = 0; a < kRows; ++a) store_acc(out + a * plane.out_row, sum[a], tile.columns);
      }
    }
  });
}

// Two rows of the output in each vector; the rows are dense.
template <typename scalar_t>
void gather_nine_taps_paired(const PlaneTile<acc_type<scalar_t>>& tile, const PlaneRow<scalar_t>& plane) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t pitch = kLanes<acc_t> / 2;
  Vec<acc_t> filter[9];
  for (int t = 0; t < 9; ++t) filter[t] = Vec<acc_t>(plane.filter[t]);
  const NineTaps<true, pitch> taps(tile);
  for (int64_t row = 0; row < tile.rows; row += 2 * kRowGroup) {
    Vec<acc_t> sum[kRowGroup];
    for (int a = 0; a < kRowGroup; ++a) sum[a] = Vec<acc_t>(plane.bias);
    add_nine_taps<kRowGroup, 2>(plane.scratch + tile.offset[0] + row * pitch, taps, filter, sum);
    const int64_t size = 2 * tile.columns, left = (tile.rows - row) * tile.columns;
    scalar_t* const out = plane.out + row * tile.columns;
#pragma GCC unroll 4
    for (int a = 0; a < kRowGroup; ++a) {
      if (left > a * size)
        store_acc(out + a * size, join_pair(sum[a], tile.columns), std::min(size, left - a * size));
    }
  }
}

// Any taps. With a residue for each column, their results are interleaved.
template <typename scalar_t>
void gather_listed_taps(const DepthwiseDim (&dim)[kSpatialDims], const PlaneTile<acc_type<scalar_t>>& tile,
                        const PlaneRow<scalar_t>& plane) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t W = kLanes<acc_t>;
  const int64_t row_residues = dim[1].residues, residues = dim[2].residues;
  const int64_t row_step = dim[1].step * tile.row_pitch, out_step = row_residues * plane.out_row;
  for (int64_t ry = 0; ry < std::min(row_residues, tile.rows); ++ry) {
    for_each_row_group(ceil_div(tile.rows - ry, row_residues), [&]<int kRows>(int64_t j) {
      scalar_t* const out = plane.out + (j * row_residues + ry) * plane.out_row;
      const auto sum_taps = [&](int64_t rx, int64_t first, Vec<acc_t>(&sum)[kRows]) {
        const acc_t* const at = plane.scratch + j * row_step + first;
        for (int a = 0; a < kRows; ++a) sum[a] = Vec<acc_t>(plane.bias);
        const int64_t number = ry * residues + rx;
        for (int64_t i = tile.list[number]; i < tile.list[number + 1]; ++i) {
          const Vec<acc_t> filter(plane.filter[i]);
#pragma GCC unroll 4
          for (int a = 0; a < kRows; ++a) {
            sum[a] = at::vec::fmadd(Vec<acc_t>::loadu(at + tile.offset[i] + a * row_step), filter, sum[a]);
          }
        }
      };
      for (int64_t c = 0; c < tile.vector_columns; c += W) {
        if (kRows == 1 && residues == 1 && c + kColumnGroup * W <= tile.columns) {
          // One chain of sums would wait for itself.
          const acc_t* const at = plane.scratch + j * row_step + c;
          Vec<acc_t> sum[kColumnGroup];
          for (auto& each : sum) each = Vec<acc_t>(plane.bias);
          for (int64_t i = tile.list[ry]; i < tile.list[ry + 1]; ++i) {
            const Vec<acc_t> filter(plane.filter[i]);
            for_each_constant<kColumnGroup>([&](auto k) __attribute__((always_inline)) {
              sum[k] = at::vec::fmadd(Vec<acc_t>::loadu(at + tile.offset[i] + k * W), filter, sum[k]);
            });
          }
          for_each_constant<kColumnGroup>(
              [&](auto k) __attribute__((always_inline)) { store_acc(out + c + k * W, sum[k]); });
          c += (kColumnGroup - 1) * W;
        } else if (residues == 1) {
          const int64_t first = tile.columns >= W ? std::min(c, tile.columns - W) : 0;
          Vec<acc_t> sum[kRows];
          sum_taps(0, first, sum);
          for (int a = 0; a < kRows; ++a) store_acc(out + a * out_step + first, sum[a], tile.columns);
        } else if (residues == 2) {
          Vec<acc_t> even[kRows], odd[kRows];
          sum_taps(0, c, even);
          sum_taps(1, c, odd);
          const int64_t left = tile.columns - 2 * c;
          for (int a = 0; a < kRows; ++a) {
            const auto [low, high] = at::vec::interleave2(even[a], odd[a]);
            scalar_t* const dst = out + a * out_step + 2 * c;
            store_acc(dst, low, left);
            if (left > W) store_acc(dst + W, high, left - W);
          }
        } else {
          for (int64_t rx = 0; rx < residues; ++rx) {
            Vec<acc_t> sum[kRows];
            sum_taps(rx, c, sum);
            for (int a = 0; a < kRows; ++a) {
              alignas(64) acc_t lane[W];
              sum[a].store(lane);
              for (int64_t i = 0; i < W && (c + i) * residues + rx < tile.columns; ++i) {
                out[a * out_step + (c + i) * residues + rx] = static_cast<scalar_t>(lane[i]);
              }
            }
          }
        }
      }
    });
  }
}

template <typename scalar_t>
void planes_gather(const DepthwiseGather<scalar_t>& conv) {
  using acc_t = acc_type<scalar_t>;
  using Tile = PlaneTile<acc_t>;
  const auto& [depth_dim, row_dim, column_dim] = conv.dim;
  const int64_t* const out_strides = conv.out_strides;
  if (conv.N * conv.C * depth_dim.size * row_dim.size * column_dim.size == 0) return;
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<acc_t, float>) {
    if (fits_rows(conv.dim)) return rows_gather(conv);
  }
#endif
  const bool may_pair = conv.in_strides[3] == column_dim.extent && out_strides[3] == column_dim.size;
  const PlanePlan<acc_t> plan(conv.dim, conv.C, may_pair);
  const int64_t blocks = ceil_div(conv.C, plan.planes);
  const int64_t tiles = depth_dim.size * plan.segments * plan.strips;
  const bool nine = Tile::three_by_three(conv.dim);

  const int64_t work = plan.planes * std::min(plan.strip_rows, row_dim.size) *
                       std::min(column_dim.size, segment_columns(conv.dim) * column_dim.residues) * conv.taps();
  const int64_t grain = std::max<int64_t>(1, kMinDepthwisePerThread / work);
  parallel_for(conv.N * blocks * tiles, grain, [&](int64_t begin, int64_t end) {
    alignas(64) acc_t scratch[kScratchSize];
    // Tiles of one plane are neighbours, but where there is one alone it is set up once.
    int64_t current = -1;
    int64_t w_offset[kMaxTaps];
    Tile tile;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t number = task % tiles, block = task / tiles % blocks, n = task / tiles / blocks;
      const int64_t of_depth = plan.strips * plan.segments;
      if (number != current && current >= 0 && number % of_depth == current % of_depth &&
          tile.move_to_depth(depth_dim, current / of_depth, number / of_depth)) {
        current = number;
      }
      if (number != current) {
        const int64_t strip = number % plan.strips, segment = number / plan.strips % plan.segments;
        const int64_t row = strip * plan.strip_rows;
        tile = Tile(conv.dim, number / plan.strips / plan.segments, segment, row,
                    std::min(plan.strip_rows, row_dim.size - row), may_pair);
        std::fill(scratch, scratch + plan.planes * tile.plane_size, acc_t(0));
        for (int64_t i = 0; i < tile.list[row_dim.residues * column_dim.residues]; ++i) {
          w_offset[i] = conv.w_offset(tile.tap[i][0], tile.tap[i][1], tile.tap[i][2]);
        }
        current = number;
      }
      const int64_t depth = number / plan.strips / plan.segments;
      const int64_t c_first = block * plan.planes, c_last = std::min(conv.C, c_first + plan.planes);
      for (int64_t c = c_first; c < c_last; ++c) {
        tile.copy(conv.in + n * conv.in_strides[0] + c * conv.in_strides[1], conv.in_strides,
                  scratch + (c - c_first) * tile.plane_size);
      }
      for (int64_t c = c_first; c < c_last; ++c) {
        if (tiles == 1) {
          prefetch_plane(conv.in + n * conv.in_strides[0] + (c + plan.planes) * conv.in_strides[1],
                         row_dim.extent, conv.in_strides[3]);
        }
        acc_t filter[kMaxTaps];
        const scalar_t* const w = conv.w + c * conv.w_strides[0];
        const int64_t count = tile.list[row_dim.residues * column_dim.residues];
        for (int64_t i = 0; i < count; ++i) filter[i] = static_cast<acc_t>(w[w_offset[i]]);
        PlaneRow<scalar_t> plane;
        plane.scratch = scratch + (c - c_first) * tile.plane_size;
        plane.filter = filter;
        plane.bias = conv.bias == nullptr ? acc_t(0) : static_cast<acc_t>(conv.bias[c]);
        plane.out = conv.out + n * out_strides[0] + c * out_strides[1] + depth * out_strides[2] +
                    tile.first_row * out_strides[3] + tile.first_column * out_strides[4];
        plane.out_row = out_strides[3];
        if (tile.paired) {
          gather_nine_taps_paired(tile, plane);
        } else if (nine && row_dim.step == 1) {
          gather_nine_taps<1>(tile, plane);
        } else if (nine) {
          gather_nine_taps<2>(tile, plane);
        } else {
          gather_listed_taps(conv.dim, tile, plane);
        }
        if (conv.activate) conv.activate.run(plane.out, tile.rows, plane.out_row, tile.columns, 1);
      }
    }
  });
}

}  // namespace fastnn::FASTNN_BACKEND
