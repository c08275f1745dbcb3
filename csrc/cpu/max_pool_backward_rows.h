// Backward of max pooling, channels first, along rows; max_pool.cpp says when each variant is taken. A vector
// is W positions of grad_x that the same taps of W neighbouring windows reach: grad_y is added where the offset
// names the tap, windows in ascending order.
#pragma once

#include <algorithm>
#include <array>

#include "cache_hints.h"
#include "max_pool_bytes.h"
#include "max_pool_vectors.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND::pool {

// ---- 3x3 windows, one at each position ----

// y has the shape of x, so that a tap is one distance in memory, whatever row a vector begins in. Where a tap
// leaves the row or the plane it meets a window of another one, whose offset names no place outside of its own:
// no border needs code of its own, and planes of any size fill their vectors. Nine compare-and-adds of two
// instructions, with loads that mostly cross a cache line: 27 cycles a vector.
template <typename scalar_t>
void max_pool_backward_same_size(const MaxPoolBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t W = kLanes<acc_t>;
  constexpr int kKernel = 3;
  const PoolGeometry& g = p.geometry;
  const int64_t row = g.in[2], total = g.N * g.C * volume(g.in), reach = row + 1;
  const scalar_t* const grad_y = static_cast<const scalar_t*>(p.grad_y);
  const uint8_t* const offsets = static_cast<const uint8_t*>(p.offsets);
  scalar_t* const grad_x = static_cast<scalar_t*>(p.grad_x);
  const bool stream = streams_lines(grad_x, total);

  parallel_for(ceil_div(total, W), grain(W * kKernel * kKernel), [&](int64_t begin, int64_t end) {
    // Calls f(where the window is, the tap) for the windows over position i.
    const auto for_each_window = [&](int64_t i, const auto& f) __attribute__((always_inline)) {
#pragma GCC unroll 3
      for (int kh = kKernel - 1; kh >= 0; --kh) {
#pragma GCC unroll 3
        for (int kw = kKernel - 1; kw >= 0; --kw) f(i + (1 - kh) * row + 1 - kw, kh * kKernel + kw);
      }
    };
    const int64_t last = std::min(total, end * W);
    for (int64_t i = begin * W; i < last;) {
      if (i < reach || i + W + reach > total) {
        // Near an end of the tensor not all windows exist.
        for (const int64_t stop = std::min(i + W, last); i < stop; ++i) {
          acc_t sum(0);
          for_each_window(i, [&](int64_t at, int place) {
            if (at >= 0 && at < total && offsets[at] == place) sum += static_cast<acc_t>(grad_y[at]);
          });
          grad_x[i] = static_cast<scalar_t>(sum);
        }
        continue;
      }
      Vec<acc_t> sum(0);
      for_each_window(i, [&](int64_t at, int place) __attribute__((always_inline)) {
        sum = add_where_chosen<acc_t>(sum, offsets + at, W, place, load_acc(grad_y + at));
      });
      if (stream) {
        store_stream(grad_x + i, sum);
      } else {
        store_acc(grad_x + i, sum);
      }
      i += W;
    }
    if (stream) end_stream();
  });
}

#if defined(CPU_CAPABILITY_AVX512)

// ---- 2x2 and 3x3 windows at a distance of 2, where loads can be masked ----

// Neighbouring windows of one row: their gradients and offsets, 0 in lanes of windows that are not there.
struct WindowLanes {
  __m512 grad;
  __m128i offset;

  template <typename scalar_t>
  WindowLanes(const scalar_t* grads, const uint8_t* offsets, int64_t at, __mmask16 lanes)
      : grad(load_lanes(grads + at, lanes)), offset(_mm_maskz_loadu_epi8(lanes, offsets + at)) {}

  // sum + gradient where the offset names the tap.
  __m512 add_to(__m512 sum, int place) const {
    const __mmask16 chosen = _mm_cmpeq_epi8_mask(offset, _mm_set1_epi8(static_cast<char>(place)));
    return _mm512_mask_add_ps(sum, chosen, sum, grad);
  }
};

// The windows that reach a vector of cells of 2 x 2 positions, or what of them is there. With kPad padding, one
// of the two rows of a cell (and one of its columns) sees one tap of a window, the other two taps of
// neighbouring windows: the window before without padding, the one behind with padding.
template <int kKernel, int kPad>
struct CellWindows {
  static_assert(kKernel == 3 || (kKernel == 2 && kPad == 0));
  static constexpr int kNeighbour = kPad == 0 ? -1 : 1;

  // Lanes whose window is there: in the cell's row and column, in the neighbouring column, row, and both.
  struct Lanes {
    __mmask16 here, column, row, both;
  };

  // sums[row][column] of the cells whose windows begin at `at`; rows of windows are `line` apart.
  template <typename scalar_t>
  static void sum(const scalar_t* grads, const uint8_t* offsets, int64_t at, int64_t line, const Lanes& lanes,
                  __m512 (&sums)[2][2]) {
    const __m512 zero = _mm512_setzero_ps();
    const WindowLanes a(grads, offsets, at, lanes.here);
    if constexpr (kKernel == 2) {
      for (int i = 0; i < 4; ++i) sums[i / 2][i % 2] = a.add_to(zero, i);
      return;
    }
    const int64_t beside = at + kNeighbour * line;
    const WindowLanes a_next(grads, offsets, at + kNeighbour, lanes.column);
    const WindowLanes b(grads, offsets, beside, lanes.row);
    const WindowLanes b_next(grads, offsets, beside + kNeighbour, lanes.both);
    for (auto& row : sums) row[0] = row[1] = zero;
    add_row(sums[1 - kPad], a, a_next, 1);
    if constexpr (kPad == 0) {
      add_row(sums[0], b, b_next, 2);
      add_row(sums[0], a, a_next, 0);
    } else {
      add_row(sums[1], a, a_next, 2);
      add_row(sums[1], b, b_next, 0);
    }
  }

 private:
  // Adds the row kh of the windows of one line.
  static void add_row(__m512 (&row)[2], const WindowLanes& at, const WindowLanes& next, int kh) {
    __m512 &twice = row[kPad], &once = row[1 - kPad];
    twice = (kPad == 0 ? next : at).add_to(twice, kh * 3 + 2);
    twice = (kPad == 0 ? at : next).add_to(twice, kh * 3);
    once = at.add_to(once, kh * 3 + 1);
  }
};

// A thread owns pairs of rows of grad_x, of which W windows reach 2 x 2 W positions. 3x3: 8 loads and 9
// compare-and-adds for 4 vectors; 2x2: 2 and 4.
template <typename scalar_t, int kKernel, int kPad>
void max_pool_backward_row_pairs(const MaxPoolBackwardParams& p) {
  using Cell = CellWindows<kKernel, kPad>;
  constexpr int64_t W = 16;
  constexpr int kNeighbour = Cell::kNeighbour;
  constexpr __mmask16 kAll = 0xffff;
  const PoolGeometry& g = p.geometry;
  const int64_t pairs = ceil_div(g.in[1], 2), columns = ceil_div(g.in[2], 2), last = (columns - 1) / W * W;
  const __mmask16 last_here = first_lanes(g.out[2] - last);
  const __mmask16 last_column = first_lanes(g.out[2] - last - kNeighbour);
  const scalar_t* const grad_y = static_cast<const scalar_t*>(p.grad_y);
  const uint8_t* const offsets = static_cast<const uint8_t*>(p.offsets);
  scalar_t* const grad_x = static_cast<scalar_t*>(p.grad_x);
  const bool stream = streams_lines(grad_x, g.N * g.C * volume(g.in)) && g.in[2] % W == 0;

  parallel_for(g.N * g.C * g.in[0] * pairs, grain(g.in[2] * 4), [&](int64_t begin, int64_t end) {
    int64_t plane = begin / pairs, pair = begin % pairs;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t neighbour = pair + kNeighbour, line = (plane * g.out[1] + pair) * g.out[2];
      const __mmask16 row_there = pair < g.out[1] ? kAll : 0;
      const __mmask16 neighbour_there = neighbour >= 0 && neighbour < g.out[1] ? kAll : 0;
      scalar_t* const first = grad_x + (plane * g.in[1] + 2 * pair) * g.in[2];
      // Of an odd number of rows the last one has none below it.
      const bool has_second = 2 * pair + 1 < g.in[1];

      for (int64_t j = 0; j < columns; j += W) {
        const __mmask16 here = j == last ? last_here : kAll;
        __mmask16 column = j == last ? last_column : kAll;
        if (kNeighbour < 0 && j == 0) column &= 0xfffe;
        __m512 sums[2][2];
        Cell::sum(
            grad_y, offsets, line + j, g.out[2],
            {static_cast<__mmask16>(here & row_there), static_cast<__mmask16>(column & row_there),
             static_cast<__mmask16>(here & neighbour_there), static_cast<__mmask16>(column & neighbour_there)},
            sums);
        const int64_t rest = g.in[2] - 2 * j;
        const auto store = [&](scalar_t* to, __m512(&row)[2]) __attribute__((always_inline)) {
          const auto [low, high] = at::vec::interleave2(Vec<float>(row[0]), Vec<float>(row[1]));
          if (stream) {
            store_stream(to, low);
            if (rest > W) store_stream(to + W, high);
          } else if (rest >= 2 * W) {
            store_acc(to, low);
            store_acc(to + W, high);
          } else {
            store_acc(to, low, std::min(W, rest));
            if (rest > W) store_acc(to + W, high, rest - W);
          }
        };
        store(first + 2 * j, sums[0]);
        if (has_second) store(first + g.in[2] + 2 * j, sums[1]);
      }
      if (++pair == pairs) {
        pair = 0;
        ++plane;
      }
    }
    if (stream) end_stream();
  });
}

// The same for as many whole rows of windows as a vector holds: each row of grad_x is one permutation and one
// store, of a whole vector, whose lanes behind the row's end the next row overwrites.
template <typename scalar_t, int kKernel, int kPad>
void max_pool_backward_short_rows(const MaxPoolBackwardParams& p) {
  using Cell = CellWindows<kKernel, kPad>;
  constexpr int64_t W = 16;
  constexpr int kNeighbour = Cell::kNeighbour;
  const PoolGeometry& g = p.geometry;
  const int64_t size = g.out[2], lines = g.out[1], group = W / size;
  const scalar_t* const grad_y = static_cast<const scalar_t*>(p.grad_y);
  const uint8_t* const offsets = static_cast<const uint8_t*>(p.offsets);
  scalar_t* const grad_x = static_cast<scalar_t*>(p.grad_x);
  // Lanes with a window in the neighbouring column; of each row, those of its windows and from where its
  // positions come: even ones from the first vector, odd ones from the second.
  __mmask16 column_lanes = 0, row_lanes[W];
  alignas(64) int32_t sources[W][W];
  for (int64_t row = 0; row < group; ++row) {
    row_lanes[row] = static_cast<__mmask16>(first_lanes(size) << (row * size));
    column_lanes |=
        static_cast<__mmask16>((kNeighbour < 0 ? row_lanes[row] << 1 : row_lanes[row] >> 1) & row_lanes[row]);
    for (int64_t i = 0; i < W; ++i) {
      sources[row][i] = static_cast<int32_t>((row * size + i / 2) % W + i % 2 * W);
    }
  }

  parallel_for(g.N * g.C * g.in[0] * lines, grain(size * 8), [&](int64_t begin, int64_t end) {
    const scalar_t* const limit = grad_x + end * 4 * size;
    int64_t line = begin % lines;
    for (int64_t unit = begin; unit < end; unit += group) {
      const int64_t rows = std::min(group, end - unit);
      const __mmask16 here = first_lanes(rows * size);
      __mmask16 beside = here;
      if constexpr (kKernel == 3) {
        // The first row of windows of a plane has none before it, the last one none behind it.
        for (int64_t row = kNeighbour < 0 ? (line == 0 ? 0 : lines - line) : lines - 1 - line; row < rows;
             row += lines) {
          beside &= static_cast<__mmask16>(~row_lanes[row]);
        }
        line = (line + rows) % lines;
      }
      __m512 sums[2][2];
      Cell::sum(grad_y, offsets, unit * size, size,
                {here, static_cast<__mmask16>(here & column_lanes), beside,
                 static_cast<__mmask16>(beside & column_lanes)},
                sums);
      scalar_t* to = grad_x + unit * 4 * size;
      for (int64_t row = 0; row < rows; ++row) {
        const __m512i source = _mm512_load_si512(sources[row]);
        for (int i = 0; i < 2; ++i, to += 2 * size) {
          const Vec<float> values = _mm512_permutex2var_ps(sums[i][0], source, sums[i][1]);
          store_acc(to, values, to + W <= limit ? W : 2 * size);
        }
      }
    }
  });
}

#else

// ---- square windows of 2 or 3, with rows kept in a ring ----

// Output rows that the rows of grad_x being made need, widened: grad_y, and offsets as numbers. A power of two.
inline constexpr int64_t kBackwardRing = 4;
// The ring lies on the stack. The size of an L1 data cache.
inline constexpr int64_t kBackwardRingBytes = 32 * 1024;

// Layout of a ring row: kLead outputs that are not there, the row's, and as many as the last vector reaches
// past it. What is not there has the gradient 0, and whatever its offset, adds nothing.
template <typename acc_t>
struct BackwardRing {
  static constexpr int64_t W = kLanes<acc_t>;
  static constexpr int64_t kLead = W;
  static constexpr int64_t kRowSize = kBackwardRingBytes / (2 * kBackwardRing) / sizeof(acc_t);
  // The last vector begins less than W behind the row's last output, and its taps reach 1 further.
  static constexpr int64_t kMaxOutputs = kRowSize - kLead - 2 * W;

  alignas(64) acc_t grads[kBackwardRing][kRowSize];
  alignas(64) kept_offset_t<acc_t> offsets[kBackwardRing][kRowSize];
  int64_t held[kBackwardRing];  // which output row, of all planes, each holds

  explicit BackwardRing(int64_t outputs) {
    for (int64_t row = 0; row < kBackwardRing; ++row) {
      std::fill(grads[row], grads[row] + kLead + outputs + 2 * W, acc_t(0));
      std::fill(offsets[row], offsets[row] + kLead + outputs + 2 * W, kept_offset_t<acc_t>(0));
      held[row] = -1;
    }
  }
};

// A thread owns rows of grad_x, a vector W positions kStride apart, which the same kKernel / kStride taps of W
// neighbouring windows reach: grad_y is added where the offset names the tap. Square windows of kKernel without
// depth or dilation, kPad <= 1.
template <typename scalar_t, int kKernel, int kStride, int kPad>
void max_pool_backward_rows(const MaxPoolBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  using Ring = BackwardRing<acc_t>;
  constexpr int64_t W = kLanes<acc_t>;
  static_assert(kStride == 1 || kStride == 2);
  const PoolGeometry& g = p.geometry;
  const int64_t columns = ceil_div(g.in[2], kStride);

  parallel_for(g.N * g.C * g.in[0] * g.in[1], grain(g.in[2] * 4), [&](int64_t begin, int64_t end) {
    Ring ring(g.out[2]);
    // Calls f(slot, kh) for the windows' rows that reach row `ih` of a plane, in ascending order. kh is the
    // tap.
    const auto for_each_row = [&](int64_t slice, int64_t ih, const auto& f) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int kh = kKernel - 1; kh >= 0; --kh) {
        const int64_t distance = ih + kPad - kh, oh = distance / kStride;
        if (distance < 0 || distance % kStride != 0 || oh >= g.out[1]) continue;
        const int64_t line = slice * g.out[1] + oh, slot = line % kBackwardRing;
        if (ring.held[slot] != line) {
          ring.held[slot] = line;
          const scalar_t* grad_y = static_cast<const scalar_t*>(p.grad_y) + line * g.out[2];
          const uint8_t* chosen = static_cast<const uint8_t*>(p.offsets) + line * g.out[2];
          const auto stage = [&](int64_t i, int64_t count) __attribute__((always_inline)) {
            load_acc(grad_y + i, count).store(ring.grads[slot] + Ring::kLead + i);
            keep_offsets<acc_t>(ring.offsets[slot] + Ring::kLead + i, chosen + i, count);
          };
          if (g.out[2] >= W) {
            int64_t i = 0;
            for (; i + W <= g.out[2]; i += W) stage(i, W);
            if (i < g.out[2]) stage(g.out[2] - W, W);
          } else {
            stage(0, g.out[2]);
          }
        }
        f(slot, kh);
      }
    };
    int64_t slice = begin / g.in[1], ih = begin % g.in[1];
    for (int64_t r = begin; r < end; ++r) {
      int rows = 0;
      const acc_t* grads[kKernel];
      const kept_offset_t<acc_t>* offsets[kKernel];
      int places[kKernel];
      for_each_row(slice, ih, [&](int64_t slot, int kh) __attribute__((always_inline)) {
        grads[rows] = ring.grads[slot] + Ring::kLead;
        offsets[rows] = ring.offsets[slot] + Ring::kLead;
        places[rows] = kh * kKernel;
        ++rows;
      });
      if (++ih == g.in[1]) {
        ih = 0;
        ++slice;
      }
      // What the next row needs is kept before this one is computed: a load over two stores that have not left
      // the store buffer would wait for both. Two rows of grad_x need at most kBackwardRing lines, which follow
      // each other.
      if (r + 1 < end) for_each_row(slice, ih, [](int64_t, int) {});

      scalar_t* grad_x = static_cast<scalar_t*>(p.grad_x) + r * g.in[2];
      const auto sum = [&](int64_t i) __attribute__((always_inline)) {
        std::array<V, kStride> sums;
        for (V& s : sums) s = V(0);
        for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 2
          for (int shift = 0; shift < kStride; ++shift) {
#pragma GCC unroll 4
            for (int kw = kKernel - 1; kw >= 0; --kw) {
              if ((shift + kPad - kw) % kStride != 0) continue;
              const int64_t at = i + (shift + kPad - kw) / kStride;
              sums[shift] = add_where_kept<acc_t>(sums[shift], offsets[row] + at, places[row] + kw,
                                                  V::loadu(grads[row] + at));
            }
          }
        }
        return sums;
      };
      int64_t i = 0;
      for (; (i + W) * kStride <= g.in[2]; i += W) {
        const auto sums = sum(i);
        if constexpr (kStride == 1) {
          store_acc(grad_x + i, sums[0]);
        } else {
          const auto pair = at::vec::interleave2(sums[0], sums[1]);
          store_acc(grad_x + 2 * i, pair.first);
          store_acc(grad_x + 2 * i + W, pair.second);
        }
      }
      if (i < columns) {
        const auto sums = sum(i);
        const int64_t rest = g.in[2] - i * kStride;
        if constexpr (kStride == 1) {
          store_acc(grad_x + i, sums[0], rest);
        } else {
          const auto pair = at::vec::interleave2(sums[0], sums[1]);
          store_acc(grad_x + 2 * i, pair.first, std::min(W, rest));
          if (rest > W) store_acc(grad_x + 2 * i + W, pair.second, rest - W);
        }
      }
    }
  });
}

#endif

}  // namespace fastnn::FASTNN_BACKEND::pool
