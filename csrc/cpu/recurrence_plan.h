// What the two directions of the LSTM's recurrence share; contract in ops/lstm_sequence.h.
//
// The weights are packed once a call, by vectors of the units that a thread computes, and then met in every
// step: a thread has the same units throughout, so its share of the weights stays in its cache where it fits.
// Each step is one product with the state of the step before, which all threads need whole, so they meet once a
// step. Samples are numbered from the longest to the shortest: those that are still under way are a prefix, and
// a step costs what it has samples.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

#include "../ops/lstm_sequence.h"
#include "lstm_cell_pointwise.h"
#include "matrix_tile.h"

namespace fastnn::FASTNN_BACKEND::lstm {

// Multiply-adds of a step below which one thread does it alone: about 4 us, ten times what meeting costs.
inline constexpr int64_t kMinStepMultiplyAdds = 100000;

template <typename acc_t>
struct SequencePlan {
  static constexpr int64_t L = kLanes<acc_t>;
  int64_t unit_vecs;
  int64_t units;  // whole vectors
  int64_t threads;

  explicit SequencePlan(const LstmSequence& s)
      : unit_vecs(ceil_div(s.H, L)),
        units(unit_vecs * L),
        threads(std::min<int64_t>({at::get_num_threads(), unit_vecs,
                                   std::max<int64_t>(1, 4 * s.N * s.H * s.H / kMinStepMultiplyAdds)})) {}

  // The share of a thread, in vectors of units.
  int64_t first(int64_t thread, int64_t members) const { return thread * unit_vecs / members; }
};

// Places of a sample's steps in the order in which a direction takes them.
struct SequenceRows {
  const LstmSequence& s;

  int64_t row(int64_t sample, int64_t step) const {
    const int64_t t = s.reverse ? s.lengths[sample] - 1 - step : step;
    return s.step_rows[t] + s.sample_rows[sample];
  }
  // Samples that have a step; `before` of them, or more, had the one before it.
  int64_t active(int64_t step, int64_t before) const {
    while (before > 0 && s.lengths[before - 1] <= step) --before;
    return before;
  }
};

// Samples whose sums a thread has at a time, and steps of a sum's reduction for which it goes over them: with
// vectors of 16 floats, 16 KB of sums for four vectors of weights, and 8 KB of weights, which stay in L1
// meanwhile.
inline constexpr int64_t kSampleBlock = 64;
inline constexpr int64_t kDepthPiece = 32;

// c = a b, of rows * (vecs vectors), by the tiles that the micro-kernel has.
template <typename acc_t>
void multiply_block(int64_t rows, int64_t vecs, const acc_t* a, int64_t a_pitch, const acc_t* b, int64_t depth,
                    acc_t* c, int64_t c_pitch) {
  constexpr int64_t L = kLanes<acc_t>;
  const int64_t b_pitch = vecs * L, most = kMaxVecs > 1 ? 2 : 1;
  // Of few rows the weights are met once: nothing is gained by going over them in parts.
  const int64_t step = rows > kMaxRows ? kDepthPiece : depth;
  for (int64_t d = 0; d < depth; d += step) {
    for (int64_t done = 0, height; done < rows; done += height) {
      height = tile_rows(rows - done);
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
        multiply(height, std::min(most, vecs - v), tile);
      }
    }
  }
}

}  // namespace fastnn::FASTNN_BACKEND::lstm
