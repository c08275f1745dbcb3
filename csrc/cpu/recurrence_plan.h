// What the two directions of a recurrence share; contract in ops/recurrence.h.
//
// The weights are packed once a call, by vectors of the units that a thread computes, and then met in every
// step: a thread has the same units throughout, so its share of the weights stays in its cache where it fits.
// Each product of a step needs all of what the threads made before it, so they meet once a step, twice where
// the cell has two products. Samples are numbered from the longest to the shortest: those that are still under
// way are a prefix, and a step costs what it has samples.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "../ops/recurrence.h"
#include "../ops/recurrent_cell_math.h"
#include "lstm_cell_pointwise.h"
#include "matrix_tile.h"
#include "vec_math.h"

namespace fastnn::FASTNN_BACKEND::recurrence {

using lstm::ceil_div;
using lstm::load_or_zero;

// Multiply-adds of a step below which one thread does it alone: about 1 us, a few times what meeting costs.
inline constexpr int64_t kMinStepMultiplyAdds = 30000;

// Samples of which a product is bound by its chains of additions rather than by the weights' way to the core:
// their products take kWideVecs chains at a time.
inline constexpr int64_t kFewSamples = 2;
inline constexpr int64_t kWideVecs = 8;

// Samples whose sums a thread has at a time, and steps of a sum's reduction for which it goes over them: with
// vectors of 16 floats, 16 KB of sums for four vectors of weights, and 8 KB of weights, which stay in L1
// meanwhile. Vectors of 8 floats want half as much of L2 for each multiply-add, which it has: the sums then
// rather stay where they are (64 samples, 512 units: by 32 steps 70 GFLOP/s, by 256 of them 135).
inline constexpr int64_t kSampleBlock = 64;
#if defined(CPU_CAPABILITY_AVX2)
inline constexpr int64_t kDepthPiece = 256;
#else
inline constexpr int64_t kDepthPiece = 32;
#endif

// How far apart rows of so many numbers lie that are multiplied together: an odd number of cache lines, since
// rows that are a power of two apart would all want the same few places of a cache.
template <typename acc_t>
int64_t apart(int64_t numbers) {
  return (ceil_div(numbers, kLine<acc_t>) | 1) * kLine<acc_t>;
}

template <typename acc_t>
struct Plan {
  static constexpr int64_t L = kLanes<acc_t>;
  int64_t unit_vecs;
  int64_t units;  // whole vectors
  int64_t pitch;  // of states
  int64_t threads;
  bool few;

  explicit Plan(const Recurrence& s)
      : unit_vecs(ceil_div(s.H, L)),
        units(unit_vecs * L),
        pitch(apart<acc_t>(units)),
        threads(std::min<int64_t>(
            {at::get_num_threads(), unit_vecs,
             std::max<int64_t>(1, s.cell.recurrent_blocks() * s.N * s.H * s.H / kMinStepMultiplyAdds)})),
        few(s.N <= kFewSamples) {}

  // The share of a thread, in vectors of units.
  int64_t first(int64_t thread, int64_t members) const { return thread * unit_vecs / members; }

  // Vectors of units whose weights lie together, with `gates` vectors of weights for each: an even number where
  // samples are many, since the tiles are two vectors wide.
  int64_t panel(int64_t gates) const {
    if (few) return std::max<int64_t>(1, kWideVecs / gates);
    return gates % 2 == 0 ? 1 : 2;
  }
  template <typename F>
  void for_each_panel(int64_t first, int64_t last, int64_t gates, const F& f) const {
    const int64_t width = panel(gates);
    for (int64_t vec = first; vec < last; vec += width) f(vec, std::min(width, last - vec));
  }
};

// Places of a sample's steps in the order in which a direction takes them.
struct Rows {
  const Recurrence& s;

  int64_t length(int64_t sample) const { return s.lengths == nullptr ? s.T : s.lengths[sample]; }
  int64_t state_row(int64_t sample) const { return s.state_rows == nullptr ? sample : s.state_rows[sample]; }
  int64_t row(int64_t sample, int64_t step) const {
    const int64_t t = s.reverse ? length(sample) - 1 - step : step;
    return s.step_rows == nullptr ? t * s.N + sample : s.step_rows[t] + s.sample_rows[sample];
  }
  // Samples that have a step; `before` of them, or more, had the one before it.
  int64_t active(int64_t step, int64_t before) const {
    while (before > 0 && length(before - 1) <= step) --before;
    return before;
  }
};

// The share d of the old state at a row.
template <typename scalar_t>
Vec<acc_type<scalar_t>> load_share(const CellBlock& block, int64_t row, int64_t unit, int64_t count) {
  return load_or_zero(static_cast<const scalar_t*>(block.data), row * block.pitch + unit, count);
}

// p_i, p_f, p_o of some units; a coupled cell has no p_i.
template <typename scalar_t, typename V>
void load_peephole(const RecurrentCell& cell, const void* peephole, int64_t H, int64_t unit, int64_t count,
                   V (&p)[3]) {
  if (!cell.peephole) return;
  const int first = cell.coupled;
  for (int k = first; k < 3; ++k) {
    p[k] = load_acc(static_cast<const scalar_t*>(peephole) + (k - first) * H + unit, count);
  }
}

// ---- products -----------------------------------------------------------------------------------------------

// c = a b of one or two rows and up to kWideVecs vectors in all: enough chains to fill the multiply-adds'
// latency. Every sum is one chain in ascending order, as in matrix_tile.h.
template <typename acc_t, int rows, int vecs>
void multiply_few(const acc_t* a, int64_t a_pitch, const acc_t* b, int64_t b_pitch, int64_t depth, acc_t* c,
                  int64_t c_pitch) {
  using Register = RegisterVec<acc_t>;
  constexpr int lanes = Register::size();
  constexpr int columns = vecs * static_cast<int>(kLanes<acc_t>) / lanes;
  Register sum[rows][columns];
#pragma GCC unroll 2
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < columns; ++v) sum[m][v] = Register(acc_t(0));
  }
  for (int64_t d = 0; d < depth; ++d, b += b_pitch) {
#pragma GCC unroll 2
    for (int m = 0; m < rows; ++m) {
      const Register number(a[m * a_pitch + d]);
#pragma GCC unroll 16
      for (int v = 0; v < columns; ++v) sum[m][v] = fmadd(number, Register::loadu(b + v * lanes), sum[m][v]);
    }
  }
#pragma GCC unroll 2
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < columns; ++v) sum[m][v].store(c + m * c_pitch + v * lanes);
  }
}

template <typename acc_t>
void multiply_few_rows(int64_t rows, int64_t vecs, const acc_t* a, int64_t a_pitch, const acc_t* b,
                       int64_t b_pitch, int64_t depth, acc_t* c, int64_t c_pitch) {
  using Kernel = void (*)(const acc_t*, int64_t, const acc_t*, int64_t, int64_t, acc_t*, int64_t);
  static constexpr Kernel kOne[] = {multiply_few<acc_t, 1, 1>, multiply_few<acc_t, 1, 2>,
                                    multiply_few<acc_t, 1, 3>, multiply_few<acc_t, 1, 4>,
                                    multiply_few<acc_t, 1, 5>, multiply_few<acc_t, 1, 6>,
                                    multiply_few<acc_t, 1, 7>, multiply_few<acc_t, 1, 8>};
  static constexpr Kernel kTwo[] = {
      multiply_few<acc_t, 2, 1>, multiply_few<acc_t, 2, 2>, multiply_few<acc_t, 2, 3>,
      multiply_few<acc_t, 2, 4>,
#if defined(CPU_CAPABILITY_AVX512)  // 16 sums in 32 registers
      multiply_few<acc_t, 2, 5>, multiply_few<acc_t, 2, 6>, multiply_few<acc_t, 2, 7>,
      multiply_few<acc_t, 2, 8>
#endif
  };
  const int64_t most = rows == 1 ? kWideVecs : static_cast<int64_t>(std::size(kTwo));
  for (int64_t v = 0; v < vecs; v += most) {
    const int64_t here = std::min(most, vecs - v);
    (rows == 1 ? kOne : kTwo)[here - 1](a, a_pitch, b + v * kLanes<acc_t>, b_pitch, depth,
                                        c + v * kLanes<acc_t>, c_pitch);
  }
}

// Rows of a tile at most, and vectors of one of so many rows: as many sums as there are registers for, and of
// few rows enough of them to fill the multiply-adds' latency.
#if defined(CPU_CAPABILITY_AVX2)
inline constexpr int64_t kTileRows = 6;
inline constexpr int tile_vecs(int64_t rows) { return rows <= 2 ? 4 : 2; }
#elif defined(CPU_CAPABILITY_AVX512)
inline constexpr int64_t kTileRows = kMaxRows;
inline constexpr int tile_vecs(int64_t rows) { return rows <= 5 ? 4 : 2; }
#else
inline constexpr int64_t kTileRows = kMaxRows;
inline constexpr int tile_vecs(int64_t) { return kMaxVecs > 1 ? 2 : 1; }
#endif

template <typename acc_t>
struct TileKernels {
  static void multiply(int64_t rows, int64_t vecs, const Tile<acc_t>& tile) {
    static constexpr auto kTable = table(std::make_integer_sequence<int, kTileRows>());
    kTable[static_cast<size_t>(rows - 1)][static_cast<size_t>(vecs - 1)](tile);
  }

 private:
  using Kernel = void (*)(const Tile<acc_t>&);
  using OfRows = std::array<Kernel, tile_vecs(1)>;

  template <int rows, int... vec>
  static constexpr OfRows of_rows(std::integer_sequence<int, vec...>) {
    return {multiply_tile<acc_t, rows, std::min(vec + 1, tile_vecs(rows))>...};
  }
  template <int... row>
  static constexpr std::array<OfRows, kTileRows> table(std::integer_sequence<int, row...>) {
    return {of_rows<row + 1>(std::make_integer_sequence<int, tile_vecs(1)>())...};
  }
};

// c = a b, of rows * (vecs vectors), in tiles of about equal heights: a last one of a row or two would wait for
// its own few chains as long as a whole one takes.
template <typename acc_t>
void multiply_block(int64_t rows, int64_t vecs, const acc_t* a, int64_t a_pitch, const acc_t* b, int64_t depth,
                    acc_t* c, int64_t c_pitch) {
  constexpr int64_t L = kLanes<acc_t>;
  const int64_t b_pitch = vecs * L, tiles = ceil_div(rows, kTileRows);
  if (kMaxVecs > 1 && rows <= kFewSamples) {
    multiply_few_rows(rows, vecs, a, a_pitch, b, b_pitch, depth, c, c_pitch);
    return;
  }
  // Of few rows the weights are met once: nothing is gained by going over them in parts.
  const int64_t step = rows > kTileRows ? kDepthPiece : depth;
  for (int64_t d = 0; d < depth; d += step) {
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t done = rows * i / tiles, height = rows * (i + 1) / tiles - done, most = tile_vecs(height);
      for (int64_t v = 0; v < vecs; v += most) {
        Tile<acc_t> tile{};
        tile.depth = std::min(step, depth - d);
        tile.a = a + done * a_pitch + d;
        tile.a_pitch = a_pitch;
        tile.a_step = 1;
        tile.b = b + d * b_pitch + v * L;
        tile.b_pitch = b_pitch;
        tile.c = c + done * c_pitch + v * L;
        tile.c_pitch = c_pitch;
        tile.resume = d > 0;
        TileKernels<acc_t>::multiply(height, std::min(most, vecs - v), tile);
      }
    }
  }
}

}  // namespace fastnn::FASTNN_BACKEND::recurrence
