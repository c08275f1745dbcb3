// Max pooling by the square windows that networks use, in registers: a thread walks down a column of windows,
// and what two windows share is computed once.
//
// Forward. Which of two places wins (beats()) does not depend on how the comparisons are bracketed, as long as
// the places keep their order: a window's best is the best of its rows' bests. A row of taps that lies in
// several windows, one below the other, is compared once and carried. Comparisons and taps of an output:
//
//   window 2, stride 2    3, 4         as place by place
//   window 3, stride 2    6, 6         place by place 8, 9
//   window 3, stride 1    4, 3         place by place 8, 9
//
// A comparison is four instructions: greater, or not a number, and the choice of value and of place.
//
// Backward. The thread owns the positions of a column of cells: kStride x kStride positions, whose first is the
// first place of a window. Row by row of windows it adds what those over its column send, to sums of as many
// rows of positions as a window has. Windows come in row-major order, and so do the addends of each position.
// A place of a window is compared once: two instructions, an equality and an addition under its condition.
//
// kVec columns go side by side in a thread: channels, or neighbours. Where values come from and go to is the
// caller's.
#pragma once

#include "platform.cuh"

namespace fastnn::cuda {
namespace {

// A square window of kSize places each way without dilation, and the same stride each way.
template <int kSize_, int kStride_>
struct FixedWindow {
  static constexpr int kSize = kSize_, kStride = kStride_;
  static constexpr int kCarried = kSize - kStride;             // rows that a window shares with the next one
  static constexpr int kCovering = (kSize - 1) / kStride + 1;  // windows over one place, each way, at most
  static_assert(kSize <= 3 && kStride <= 2 && kCarried >= 0);
};

// Any other: what it is stands in the arguments of the kernel.
struct AnyWindow {};

__device__ __forceinline__ int clamped(int n, int least, int most) {
  n = n > least ? n : least;
  return n < most ? n : most;
}

// Whether v takes the place of a value before it: it is greater, or not a number.
template <typename acc_t>
__device__ __forceinline__ bool beats(acc_t v, acc_t before) {
  return v > before || v != v;
}

// ---- forward ------------------------------------------------------------------------------------------------

template <typename acc_t, int kVec>
struct Best {
  acc_t value[kVec];
  int place[kVec];

  __device__ __forceinline__ void take(int k, acc_t v, int where) {
    if (beats(v, value[k])) {
      value[k] = v;
      place[k] = where;
    }
  }

  // The better of this one and one whose places come later.
  __device__ __forceinline__ Best better(const Best& later) const {
    Best best = *this;
#pragma unroll
    for (int k = 0; k < kVec; ++k) best.take(k, later.value[k], later.place[k]);
    return best;
  }
};

// kCount positions in a row from `start` on, some of them inside 0 to size - 1. One outside stands for the
// nearest inside: a window that has the one has the other too, and to compare a place twice changes nothing.
template <int kCount>
struct Taps {
  int offset[kCount];  // of the position that is meant, from the start

  __device__ __forceinline__ Taps(int start, int size) {
    const int first = start < 0 ? -start : 0, last = size - start - 1;
#pragma unroll
    for (int t = 0; t < kCount; ++t) offset[t] = clamped(t, first, last);
  }
};

// The best of a row of taps of kVec channels; values[t][k] is tap t's.
template <int kSize, typename acc_t, int kVec>
__device__ __forceinline__ Best<acc_t, kVec> best_of_row(const acc_t (&values)[kSize][kVec],
                                                         const Taps<kSize>& taps) {
  Best<acc_t, kVec> best;
#pragma unroll
  for (int k = 0; k < kVec; ++k) {
    best.value[k] = values[0][k];
    best.place[k] = taps.offset[0];
#pragma unroll
    for (int t = 1; t < kSize; ++t) best.take(k, values[t][k], taps.offset[t]);
  }
  return best;
}

// Walks down `outputs` windows. Rows are counted from the first window's first; inside(row) is the nearest that
// is inside x. row_best(row) is the best of such a row's taps, emit(o, best) takes the best of window o; places
// are counted from the window's first.
template <typename Window, typename acc_t, int kVec, typename Inside, typename RowBest, typename Emit>
__device__ __forceinline__ void walk_forward(int outputs, Inside inside, RowBest row_best, Emit emit) {
  using Row = Best<acc_t, kVec>;
  constexpr int kSize = Window::kSize, kStride = Window::kStride;
  const auto best_at = [&](int row) {
    row = inside(row);
    Row best = row_best(row);
#pragma unroll
    for (int k = 0; k < kVec; ++k) best.place[k] += row * kSize;  // from the first window's first place
    return best;
  };
  const auto emit_window = [&](int o, Row best) {
#pragma unroll
    for (int k = 0; k < kVec; ++k) best.place[k] -= o * (kStride * kSize);
    emit(o, best);
  };
  if constexpr (kStride == 1) {
    // Two windows at a time, one below the other: the two rows that both have are compared once.
    static_assert(kSize == 3);
    Row first = best_at(0), second = best_at(1);
    int o = 0;
    for (; o + 1 < outputs; o += 2) {
      const Row third = best_at(o + 2), fourth = best_at(o + 3), common = second.better(third);
      emit_window(o, first.better(common));
      emit_window(o + 1, common.better(fourth));
      first = third;
      second = fourth;
    }
    if (o < outputs) emit_window(o, first.better(second).better(best_at(o + 2)));
  } else {
    static_assert(kStride == 2);
    Row first;
    if constexpr (kSize == 3) first = best_at(0);
#pragma unroll 2
    for (int o = 0; o < outputs; ++o) {
      const Row last = best_at(o * kStride + kSize - 1), before = best_at(o * kStride + kSize - 2);
      if constexpr (kSize == 3) {
        emit_window(o, first.better(before).better(last));
        first = last;
      } else {
        emit_window(o, before.better(last));
      }
    }
  }
}

// ---- backward -----------------------------------------------------------------------------------------------

// A place of no window that is walked, for where there is no window.
constexpr int kNoPlace = 255;

// Sums of the cells `begin` to `end` of kCells neighbouring columns. Windows are in rows 0 to rows - 1, and
// begin >= 0. load(row, ahead) gives what the window has that begins `ahead` cells before the first column's
// cell: a struct that get(place, gradient) unpacks, with kNoPlace for a window that does not exist.
// emit(cell, sum) takes the sums of the cells of a row, sum[row of the cell][column][k].
template <typename Window, int kCells, typename acc_t, int kVec, typename Load, typename Emit>
__device__ __forceinline__ void walk_backward(int begin, int end, int rows, Load load, Emit emit) {
  constexpr int kSize = Window::kSize, kStride = Window::kStride, kCovering = Window::kCovering;
  constexpr int kColumns = kCells * kStride, kWindows = kCovering + kCells - 1;
  acc_t sum[kSize][kColumns][kVec]{};
  const auto add = [&](int row) {
    // All are on their way before the first is looked at.
    decltype(load(row, 0)) window[kWindows];
#pragma unroll
    for (int i = 0; i < kWindows; ++i) window[i] = load(row, kCovering - 1 - i);
#pragma unroll
    for (int i = 0; i < kWindows; ++i) {
      int place[kVec];
      acc_t gradient[kVec];
      window[i].get(place, gradient);
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        const int tap = column + (kCovering - 1 - i) * kStride;
        if (tap < 0 || tap >= kSize) continue;
#pragma unroll
        for (int r = 0; r < kSize; ++r) {
#pragma unroll
          for (int k = 0; k < kVec; ++k) {
            if (place[k] == r * kSize + tap) sum[r][column][k] += gradient[k];
          }
        }
      }
    }
  };
  const auto next_cell = [&] {
#pragma unroll
    for (int r = 0; r < kSize; ++r) {
      const int from = r + kStride < kSize ? r + kStride : r;
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
#pragma unroll
        for (int k = 0; k < kVec; ++k) sum[r][column][k] = from == r ? acc_t(0) : sum[from][column][k];
      }
    }
  };
#pragma unroll
  for (int before = kCovering - 1; before > 0; --before) {
    if (begin >= before && begin - before < rows) add(begin - before);
    next_cell();
  }
  int cell = begin;
  const int last = end < rows ? end : rows;
  for (; cell < last; ++cell) {
    add(cell);
    emit(cell, sum);
    next_cell();
  }
#pragma unroll 1
  for (; cell < end; ++cell) {
    emit(cell, sum);
    next_cell();
  }
}

}  // namespace
}  // namespace fastnn::cuda
