// Forward of max pooling, channels first, where loads can be masked: the common square windows, without
// indices. max_pool.cpp says when each variant is taken.
//
// A vector is 16 neighbouring outputs. A window's rows come first, each from left to right, and then their
// maxima from top to bottom, so that the first of equals and the last NaN are those of the window in its own
// order. What lies outside of x is -inf.
#pragma once

#if defined(CPU_CAPABILITY_AVX512)

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "cache_hints.h"
#include "max_pool_bytes.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND::pool {

// The outputs of one call, 16 at a time. Those that lie behind `limit`, the end of what a thread owns, are not
// written; what a vector leaves behind a row's end, the next row overwrites.
template <typename scalar_t, bool kTrack>
struct ByteOutputs {
  scalar_t* y;
  uint8_t* offsets;
  int64_t limit;

  ByteOutputs(const MaxPoolForwardParams& p, int64_t limit)
      : y(static_cast<scalar_t*>(p.y)), offsets(static_cast<uint8_t*>(p.offsets)), limit(limit) {}

  void store(int64_t at, const ByteBest& best) const {
    store_best<kTrack>(y + at, offsets + at, best, limit - at);
  }
};

// ---- 3x3 windows, one at each position ----

// Positions whose rows' maxima are kept at a time: 20 KiB with their places.
inline constexpr int64_t kSameSizeChunk = 4096;
// Rows of more are taken along their own length, where the rows' maxima above and below would take more than
// these.
inline constexpr int64_t kSameSizeRow = 256;

// For each position of a plane one bit. The lanes of 16 positions from any one on, the plane after this one
// following it, are bits in a row.
class PlaneBits {
 public:
  template <typename F>
  PlaneBits(int64_t plane, const F& bit) : words_((plane + 64) / 8 + 8, 0) {
    for (int64_t i = 0; i < plane + 32; ++i) {
      if (bit(i % plane)) words_[static_cast<size_t>(i / 8)] |= static_cast<uint8_t>(1 << i % 8);
    }
  }
  __mmask16 lanes(int64_t at) const {
    uint32_t bits;
    std::memcpy(&bits, words_.data() + at / 8, sizeof(bits));
    return static_cast<__mmask16>(bits >> (at % 8));
  }

 private:
  std::vector<uint8_t> words_;
};

// y has the shape of x: the whole tensor is one row of positions, whatever the size of a plane. Masks stand for
// the borders: of a row's first and last column, and of a plane's first and last row.
//
// Rows' maxima are kept for a chunk of positions and a row on each side, so that 4 steps an output are left
// of 8.
template <typename scalar_t, bool kTrack>
void max_pool_forward_same_size(const MaxPoolForwardParams& p) {
  constexpr int64_t W = 16;
  const PoolGeometry& g = p.geometry;
  const int64_t row = g.in[2], plane = g.in[1] * g.in[2], total = g.N * g.C * volume(g.in);
  const scalar_t* const x = static_cast<const scalar_t*>(p.x);
  const PlaneBits first_column(plane, [&](int64_t i) { return i % row == 0; });
  const PlaneBits last_column(plane, [&](int64_t i) { return i % row == row - 1; });
  const PlaneBits first_row(plane, [&](int64_t i) { return i < row; });
  const PlaneBits last_row(plane, [&](int64_t i) { return i >= plane - row; });
  const auto wrapped = [&](int64_t& at) {
    while (at >= plane) at -= plane;
  };

  parallel_for(ceil_div(total, W), grain(W * 9), [&](int64_t begin, int64_t end) {
    alignas(64) float values[kSameSizeChunk + 2 * kSameSizeRow + W];
    alignas(64) uint8_t places[kSameSizeChunk + 2 * kSameSizeRow + W];
    const int64_t limit = std::min(total, end * W);
    const ByteOutputs<scalar_t, kTrack> out(p, limit);
    for (int64_t chunk = begin * W; chunk < limit; chunk += kSameSizeChunk) {
      const int64_t chunk_end = std::min(limit, chunk + kSameSizeChunk);
      // Position i's row maximum is kept at i - origin.
      const int64_t origin = std::max<int64_t>(0, chunk - row), last = std::min(total, chunk_end + row);
      int64_t at = origin % plane;
      for (int64_t i = origin; i < last; i += W, at += W) {
        wrapped(at);
        const __mmask16 first = first_column.lanes(at);
        const __mmask16 there = first_lanes(total - i), next = first_lanes(total - i - 1);
        const __m512 taps[3] = {
            load_or_lowest(x + i - 1, static_cast<__mmask16>(~first & first_lanes(total - i + 1))),
            load_or_lowest(x + i, there),
            load_or_lowest(x + i + 1, static_cast<__mmask16>(~last_column.lanes(at) & next))};
        const __m128i one = _mm_set1_epi8(1);
        const __m128i columns[3] = {_mm_maskz_mov_epi8(first, one), one, _mm_set1_epi8(2)};
        const ByteBest best = best_of<kTrack, 3>(taps, columns);
        _mm512_storeu_ps(values + i - origin, best.value);
        if constexpr (kTrack) _mm_storeu_si128(reinterpret_cast<__m128i*>(places + i - origin), best.place);
      }
      at = chunk % plane;
      for (int64_t i = chunk; i < chunk_end; i += W, at += W) {
        wrapped(at);
        const __mmask16 first = first_row.lanes(at);
        const int64_t kept = i - origin;
        const __mmask16 above = static_cast<__mmask16>(~first),
                        below = static_cast<__mmask16>(~last_row.lanes(at));
        const __m512 rows[3] = {load_or_lowest(values + kept - row, above), _mm512_loadu_ps(values + kept),
                                load_or_lowest(values + kept + row, below)};
        const auto place = [&](int64_t from, int kh, __mmask16 lanes) {
          return _mm_add_epi8(_mm_maskz_loadu_epi8(lanes, places + from),
                              _mm_set1_epi8(static_cast<char>(3 * kh)));
        };
        __m128i row_places[3] = {};
        if constexpr (kTrack) {
          row_places[1] = place(kept, 1, 0xffff);
          row_places[2] = place(kept + row, 2, below);
          row_places[0] = _mm_mask_mov_epi8(place(kept - row, 0, above), first, row_places[1]);
        }
        out.store(i, best_of<kTrack, 3>(rows, row_places));
      }
    }
  });
}

// ---- windows at a distance of 2 ----

// The columns of one row of x that 16 neighbouring windows see, by their place in the window.
template <int kKernel>
struct RowTaps {
  __m512 column[kKernel];
};

// even, odd: columns 2 j and 2 j + 1 of the windows j; edge: the column before them with padding, or behind
// them without.
template <int kKernel, int kPad>
RowTaps<kKernel> taps_of(__m512 even, __m512 odd, __m512 edge) {
  if constexpr (kKernel == 2) {
    return {{even, odd}};
  } else if constexpr (kPad == 1) {
    return {{shift_in_first(odd, edge), even, odd}};
  } else {
    return {{even, odd, shift_in_last(even, edge)}};
  }
}

// The maxima of windows of which rows [top, kKernel) and columns are given; with `left`, lanes whose first
// column is padding.
template <bool kTrack, int kKernel>
ByteBest best_window(const RowTaps<kKernel> (&rows)[kKernel], int top, __mmask16 left) {
  __m512 all[kKernel * kKernel];
  for (int i = 0; i < kKernel * kKernel; ++i) all[i] = rows[i / kKernel].column[i % kKernel];
  const int first = top * kKernel;
  __m128i places[kKernel * kKernel];
  for (int i = 0; i < kKernel * kKernel; ++i) places[i] = _mm_set1_epi8(static_cast<char>(i));
  // Where everything is -inf, the first place inside.
  places[0] = _mm_mask_mov_epi8(_mm_set1_epi8(static_cast<char>(first)), left,
                                _mm_set1_epi8(static_cast<char>(first + 1)));
  return best_of<kTrack, kKernel * kKernel>(all, places);
}

// How far ahead of the rows in use memory is fetched: the time of a few hundred ns at a core's rate.
inline constexpr int64_t kRowsAhead = 4 << 10;

// A thread owns rows of outputs.
template <typename scalar_t, bool kTrack, int kKernel, int kPad>
void max_pool_forward_row_pairs(const MaxPoolForwardParams& p) {
  constexpr int64_t W = 16;
  const PoolGeometry& g = p.geometry;
  const scalar_t* const x = static_cast<const scalar_t*>(p.x);
  const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());

  parallel_for(
      g.N * g.C * g.in[0] * g.out[1], grain(g.out[2] * kKernel * kKernel), [&](int64_t begin, int64_t end) {
        const ByteOutputs<scalar_t, kTrack> out(p, end * g.out[2]);
        FetchAhead ahead;
        int64_t plane = begin / g.out[1], oh = begin % g.out[1];
        for (int64_t line = begin; line < end; ++line) {
          const scalar_t* rows[kKernel];
          bool there[kKernel];
          for (int kh = 0; kh < kKernel; ++kh) {
            const int64_t ih = 2 * oh - kPad + kh;
            there[kh] = ih >= 0 && ih < g.in[1];
            rows[kh] = x + (plane * g.in[1] + (there[kh] ? ih : 0)) * g.in[2];
          }
          const scalar_t* const rows_end = rows[kKernel - 1] + g.in[2];
          ahead.plan(rows[0], rows_end, rows_end + kRowsAhead / sizeof(scalar_t), ceil_div(g.out[2], W));
          for (int64_t j = 0; j < g.out[2]; j += W) {
            ahead.next();
            const int64_t column = 2 * j, rest = g.in[2] - column;
            const __mmask16 low = first_lanes(rest), high = first_lanes(rest - W);
            const bool has_edge = kPad == 1 ? j > 0 : rest > 2 * W;
            RowTaps<kKernel> taps[kKernel];
            for (int kh = 0; kh < kKernel; ++kh) {
              const scalar_t* const from = rows[kh] + column;
              const auto [even, odd] =
                  at::vec::deinterleave2(Vec<float>(load_or_lowest(from, there[kh] ? low : 0)),
                                         Vec<float>(load_or_lowest(from + W, there[kh] ? high : 0)));
              __m512 edge = lowest;
              if (kKernel == 3 && has_edge && there[kh]) {
                edge = _mm512_set1_ps(static_cast<float>(from[kPad == 1 ? -1 : 2 * W]));
              }
              taps[kh] = taps_of<kKernel, kPad>(even, odd, edge);
            }
            out.store(line * g.out[2] + j,
                      best_window<kTrack, kKernel>(taps, there[0] ? 0 : 1, kPad == 1 && j == 0 ? 1 : 0));
          }
          if (++oh == g.out[1]) {
            oh = 0;
            ++plane;
          }
        }
      });
}

// The same for as many whole rows of windows as a vector holds (has_short_rows()): each row of x is one masked
// load, dealt out to the lanes of its windows.
template <typename scalar_t, bool kTrack, int kKernel, int kPad>
void max_pool_forward_short_rows(const MaxPoolForwardParams& p) {
  constexpr int64_t W = 16;
  const PoolGeometry& g = p.geometry;
  const int64_t size = g.out[2], lines = g.out[1], group = W / size;
  const scalar_t* const x = static_cast<const scalar_t*>(p.x);
  const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  const __mmask16 row_columns = first_lanes(2 * size);
  // Of each row of windows, its lanes and where their even columns lie; and the lanes at the left and right
  // border.
  __mmask16 row_lanes[W], left = 0, right = 0;
  alignas(64) int32_t sources[W][W];
  for (int64_t row = 0; row < group; ++row) {
    row_lanes[row] = static_cast<__mmask16>(first_lanes(size) << (row * size));
    left |= static_cast<__mmask16>(1u << (row * size));
    right |= static_cast<__mmask16>(1u << (row * size + size - 1));
    for (int64_t i = 0; i < W; ++i) sources[row][i] = static_cast<int32_t>((i - row * size) * 2 & (W - 1));
  }

  parallel_for(g.N * g.C * g.in[0] * lines, grain(size * kKernel * kKernel), [&](int64_t begin, int64_t end) {
    const ByteOutputs<scalar_t, kTrack> out(p, end * size);
    int64_t line = begin % lines;
    for (int64_t unit = begin; unit < end; unit += group) {
      const int64_t rows = std::min(group, end - unit);
      // The rows of windows that have no row of x above them, or none below.
      __mmask16 outside = 0;
      if constexpr (kKernel == 3) {
        for (int64_t row = kPad == 1 ? (line == 0 ? 0 : lines - line) : lines - 1 - line; row < rows;
             row += lines) {
          outside |= row_lanes[row];
        }
        line = (line + rows) % lines;
      }
      RowTaps<kKernel> taps[kKernel];
      for (int kh = 0; kh < kKernel; ++kh) {
        __m512 even = lowest, odd = lowest;
        const bool beside = kKernel == 3 && kh == (kPad == 1 ? 0 : 2);
        for (int64_t row = 0; row < rows; ++row) {
          if (beside && (outside & row_lanes[row]) != 0) continue;
          const scalar_t* const from = x + (2 * (unit + row) - kPad + kh) * 2 * size;
          const __m512 values = load_lanes(from, row_columns);
          const __m512i source = _mm512_load_si512(sources[row]);
          even = _mm512_mask_permutexvar_ps(even, row_lanes[row], source, values);
          odd = _mm512_mask_permutexvar_ps(odd, row_lanes[row], _mm512_add_epi32(source, _mm512_set1_epi32(1)),
                                           values);
        }
        taps[kh] = taps_of<kKernel, kPad>(even, odd, lowest);
        if constexpr (kKernel == 3) {
          __m512& border = taps[kh].column[kPad == 1 ? 0 : 2];
          border = _mm512_mask_mov_ps(border, kPad == 1 ? left : right, lowest);
        }
      }
      const int64_t at = unit * size;
      if (kPad == 1 && outside != 0) {
        // Without a row above, the first place inside lies in the middle row.
        const ByteBest with = best_window<kTrack, kKernel>(taps, 0, left);
        const ByteBest without = best_window<kTrack, kKernel>(taps, 1, left);
        out.store(at, {with.value, _mm_mask_mov_epi8(with.place, outside, without.place)});
      } else {
        out.store(at, best_window<kTrack, kKernel>(taps, 0, kPad == 1 ? left : 0));
      }
    }
  });
}

}  // namespace fastnn::FASTNN_BACKEND::pool

#endif
