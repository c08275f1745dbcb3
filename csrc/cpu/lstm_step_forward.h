// The LSTM cell forward with its two matrix products, in one parallel region; contract in ops/lstm_cell.h.
//
// A task is a vector of hidden units, in all four gates, and a group of samples; a thread takes up to kUnitVecs
// of its tasks together. It multiplies, and when its sums are done it applies the activations to them where
// they are.
//
// What bounds it: for small batches reading the weights, 16 (I + H) H bytes in float32, which are met once and
// never copied as a whole; from about 16 samples on arithmetic, 8 N H (I + H) multiply-adds. Which operand is
// broadcast and which is loaded as vectors depends on the samples of a group:
// - by columns: a vector is a number of every sample, from a transposed copy of x and h, made kDepth steps at
//   a time (3 % of the multiplication where kUnitVecs tasks share it); the weights are broadcast where they
//   lie. A vector of fewer samples costs as much as a whole one;
// - by rows, for at most half a vector of samples: x and h are broadcast, and squares of the weights are
//   transposed in L1 on their way (which costs as much as seven samples).
// A batch is groups of the first kind, and of the second for a small remainder. Every sum is one chain of fused
// multiply-adds in both, over x and then over h in ascending order, so a sample's bits do not depend on its
// batch.
//
// bfloat16 is multiplied two steps at a time where the processor has the instruction for it and I and H are
// even: pairs of numbers then take the place of floats everywhere above. Other 16-bit numbers are widened, a
// piece at a time.
//
// Error: I + H roundings of a sum's partial sums, then those of lstm_cell.cpp's activations.
#pragma once

#include <algorithm>
#include <iterator>
#include <type_traits>

#include "conv_transpose.h"
#include "lstm_cell_pointwise.h"
#include "matrix_tile.h"

namespace fastnn::FASTNN_BACKEND::lstm {

// Steps of the reduction for which a task keeps its copy of x and h: 256 of 64 samples are 64 KB, in L2.
inline constexpr int64_t kDepth = 256;
// Vectors of samples in a group, and of units that a thread computes together: 64 KB of sums.
inline constexpr int64_t kGroupVecs = 4;
inline constexpr int64_t kUnitVecs = 4;
// Work below which a task stays in the calling thread, in multiply-adds of a vector: about 8 us.
inline constexpr int64_t kGrainVectorSteps = 30000;

// kPairs: scalar_t is bfloat16, and a step of the reduction is two of its numbers.
template <typename scalar_t, bool kPairs = false>
class StepForward {
 public:
  using acc_t = acc_type<scalar_t>;
  // What a step of the reduction reads of a row.
  using step_t = std::conditional_t<kPairs, acc_t, scalar_t>;
  using V = Vec<acc_t>;
  static constexpr int64_t L = kLanes<acc_t>;
  static constexpr int64_t kStepSize = kPairs ? 2 : 1;
  static constexpr int64_t kGroup = kGroupVecs * L;
  static constexpr bool kInPlace = std::is_same_v<step_t, acc_t>;

  explicit StepForward(const LstmStepForwardParams& p)
      : cell_(p.in.cell),
        N_(p.in.cell.N),
        H_(p.in.cell.H),
        operands_{
            {static_cast<const step_t*>(p.in.x), static_cast<const step_t*>(p.in.w_ih), p.in.I / kStepSize},
            {static_cast<const step_t*>(p.in.h), static_cast<const step_t*>(p.in.w_hh),
             p.in.cell.H / kStepSize}},
        hy_(static_cast<scalar_t*>(p.hy)),
        cy_(static_cast<scalar_t*>(p.cy)),
        gates_(static_cast<scalar_t*>(p.gates)) {}

  void run() const {
    // The last few samples beyond whole vectors are a group of their own.
    const int64_t few = N_ % L <= L / 2 ? N_ % L : 0;
    const int64_t by_columns = ceil_div(N_ - few, kGroup), groups = by_columns + (few > 0);
    const int64_t depth = operands_[0].K + operands_[1].K;
    const int64_t steps = 4 * L * depth * std::min(kGroupVecs, ceil_div(N_, L));
    const int64_t grain = std::max<int64_t>(1, kGrainVectorSteps / std::max<int64_t>(1, steps));
    const int64_t unit_vecs = ceil_div(H_, L);
    parallel_for(unit_vecs * groups, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin, taken; task < end; task += taken) {
        const int64_t group = task / unit_vecs, vec = task % unit_vecs, unit = vec * L;
        taken = group < by_columns ? std::min({kUnitVecs, unit_vecs - vec, end - task}) : 1;
        const int64_t units = std::min(taken * L, H_ - unit);
        if (group < by_columns) {
          multiply_by_columns(unit, units, group * kGroup, std::min(kGroup, N_ - few - group * kGroup));
        } else {
          multiply_by_rows(unit, units, N_ - few, few);
        }
      }
    });
  }

 private:
  // One of the two products: what the samples are multiplied with.
  struct Operand {
    const step_t* samples;  // [N, K]
    const step_t* weights;  // [4H, K]
    int64_t K;              // steps
  };

  static void multiply(int64_t rows, int64_t vecs, const Tile<acc_t>& tile) {
    if constexpr (kPairs) {
      multiply_pairs(rows, vecs, tile);
    } else {
      FASTNN_BACKEND::multiply(rows, vecs, tile);
    }
  }

  const step_t* weights(const Operand& operand, int64_t gate, int64_t unit) const {
    return operand.weights + (gate * H_ + unit) * operand.K;
  }

  // Where the weights of a gate's `units` from `unit` on go on after a piece of the reduction: in the next one,
  // or with the next units; null behind the last.
  const step_t* next_weights(size_t index, int64_t gate, int64_t unit, int64_t units, int64_t done) const {
    if (done < operands_[index].K) return weights(operands_[index], gate, unit) + done;
    if (index == 0) return weights(operands_[1], gate, unit);
    return unit + units < H_ ? weights(operands_[0], gate, unit + units) : nullptr;
  }
  int64_t next_pitch(size_t index, int64_t done) const {
    return operands_[done < operands_[index].K ? index : 1 - index].K;
  }

  void multiply_by_columns(int64_t unit, int64_t units, int64_t first, int64_t samples) const {
    alignas(64) acc_t columns[kDepth * kGroup];
    alignas(64) acc_t sums[4 * kUnitVecs * L * kGroup];
    alignas(64) acc_t widened[kInPlace ? 1 : kMaxRows * kDepth];
    const int64_t vecs = ceil_div(samples, L), pitch = vecs * L;
    // 4 vectors are twice 2, not 3 and 1.
    const int64_t blocks = ceil_div(vecs, kMaxVecs), block = ceil_div(vecs, blocks);
    bool resume = false;
    for (size_t index = 0; index < 2; ++index) {
      const Operand& operand = operands_[index];
      for (int64_t d = 0; d < operand.K; d += kDepth, resume = true) {
        const int64_t depth = std::min(kDepth, operand.K - d);
        transpose_samples(operand, first, samples, d, depth, columns, pitch);
        for (int64_t gate = 0; gate < 4; ++gate) {
          const step_t* const next = next_weights(index, gate, unit, units, d + depth);
          const int64_t next_pitch = this->next_pitch(index, d + depth);
          int64_t rows;
          for (int64_t row = 0; row < units; row += rows) {
            rows = tile_rows(units - row);
            const step_t* const w = weights(operand, gate, unit + row) + d;
            Tile<acc_t> tile;
            tile.depth = depth;
            tile.a_step = 1;
            if constexpr (kInPlace) {
              tile.a = w;
              tile.a_pitch = operand.K;
              tile.next_a = next == nullptr ? nullptr : next + row * next_pitch;
              tile.next_a_pitch = next_pitch;
            } else {
              widen(w, operand.K, rows, depth, widened, kDepth);
              tile.a = widened;
              tile.a_pitch = kDepth;
            }
            tile.b_pitch = pitch;
            tile.c_pitch = pitch;
            tile.resume = resume;
            for (int64_t v = 0; v < vecs; v += block) {
              tile.b = columns + v * L;
              tile.c = sums + (gate * units + row) * pitch + v * L;
              multiply(rows, std::min(block, vecs - v), tile);
              tile.next_a = nullptr;
            }
          }
        }
      }
    }
    alignas(64) acc_t products[L * 4 * L];
    if (units % L != 0) std::fill(std::begin(products), std::end(products), acc_t(0));
    for (int64_t row = 0; row < units; row += L) {
      const int64_t height = std::min(L, units - row);
      for (int64_t at = 0; at < samples; at += L) {
        const int64_t count = std::min(L, samples - at);
        for (int64_t gate = 0; gate < 4; ++gate) {
          transpose_square(sums + (gate * units + row) * pitch + at, pitch, height, count, products + gate * L,
                           4 * L);
        }
        finish(products, unit + row, height, first + at, count);
      }
    }
  }

  // x or h of `samples` samples, steps d .. d + depth, transposed to [depth][pitch] with 0 up to a whole
  // vector.
  static void transpose_samples(const Operand& operand, int64_t first, int64_t samples, int64_t d,
                                int64_t depth, acc_t* columns, int64_t pitch) {
    alignas(64) acc_t widened[kInPlace ? 1 : L * kDepth];
    for (int64_t at = 0; at < samples; at += L) {
      const int64_t count = std::min(L, samples - at);
      const step_t* const rows = operand.samples + (first + at) * operand.K + d;
      if (count < L) {
        for (int64_t i = 0; i < depth; ++i) V(acc_t(0)).store(columns + i * pitch + at);
      }
      if constexpr (kInPlace) {
        copy_transposed(rows, operand.K, count, depth, columns + at, pitch);
      } else {
        widen(rows, operand.K, count, depth, widened, kDepth);
        copy_transposed(static_cast<const acc_t*>(widened), kDepth, count, depth, columns + at, pitch);
      }
    }
  }

  static void widen(const step_t* src, int64_t src_pitch, int64_t rows, int64_t depth, acc_t* dst,
                    int64_t dst_pitch) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t d = 0; d < depth; d += L) {
        load_acc(src + row * src_pitch + d, std::min(L, depth - d)).store(dst + row * dst_pitch + d);
      }
    }
  }

  void multiply_by_rows(int64_t unit, int64_t units, int64_t first, int64_t samples) const {
    constexpr int64_t kPiece = 4 * L;
    alignas(64) acc_t columns[kPiece * 4 * L];
    alignas(64) acc_t sums[(L / 2) * 4 * L];
    alignas(64) acc_t widened[kInPlace ? 1 : L * kPiece];
    if (units < L) std::fill(std::begin(columns), std::end(columns), acc_t(0));
    constexpr int64_t vecs = std::min<int64_t>(2, kMaxVecs);
    bool resume = false;
    for (size_t index = 0; index < 2; ++index) {
      const Operand& operand = operands_[index];
      for (int64_t d = 0; d < operand.K; d += kPiece, resume = true) {
        const int64_t depth = std::min(kPiece, operand.K - d);
        for (int64_t gate = 0; gate < 4; ++gate) {
          const step_t* const rows = weights(operand, gate, unit) + d;
          const step_t* const next = next_weights(index, gate, unit, units, d + depth);
          const int64_t next_pitch = this->next_pitch(index, d + depth);
          for (int64_t at = 0; at < depth; at += L) {
            if (next != nullptr) {
              for (int64_t row = 0; row < units; ++row) __builtin_prefetch(next + row * next_pitch + at, 0, 2);
            }
            const int64_t count = std::min(L, depth - at);
            acc_t* const square = columns + at * 4 * L + gate * L;
            if constexpr (kInPlace) {
              transpose_square(rows + at, operand.K, units, count, square, 4 * L);
            } else {
              widen(rows + at, operand.K, units, count, widened, L);
              transpose_square(static_cast<const acc_t*>(widened), L, units, count, square, 4 * L);
            }
          }
        }
        int64_t rows;
        for (int64_t row = 0; row < samples; row += rows) {
          rows = tile_rows(samples - row);
          Tile<acc_t> tile;
          tile.depth = depth;
          tile.a_step = 1;
          if constexpr (kInPlace) {
            tile.a = operand.samples + (first + row) * operand.K + d;
            tile.a_pitch = operand.K;
          } else {
            widen(operand.samples + (first + row) * operand.K + d, operand.K, rows, depth, widened, kPiece);
            tile.a = widened;
            tile.a_pitch = kPiece;
          }
          tile.b_pitch = 4 * L;
          tile.c_pitch = 4 * L;
          tile.resume = resume;
          for (int64_t v = 0; v < 4; v += vecs) {
            tile.b = columns + v * L;
            tile.c = sums + row * 4 * L + v * L;
            multiply(rows, vecs, tile);
          }
        }
      }
    }
    finish(sums, unit, units, first, samples);
  }

  // The cells of `samples` samples from their products, [samples][4][L]. Compiled once: were it inlined twice,
  // its additions and multiplications could be fused in two ways.
  FASTNN_COMPILED_ONCE void finish(const acc_t* products, int64_t unit, int64_t units, int64_t first,
                                   int64_t samples) const {
    for (int64_t row = first; row < first + samples; ++row, products += 4 * L) {
      V gates[4];
      for (int64_t gate = 0; gate < 4; ++gate) {
        gates[gate] = V::loadu(products + gate * L);
        store_if_wanted(gates_, (row * 4 + gate) * H_ + unit, gates[gate], units);
      }
      if (hy_ == nullptr) continue;
      V cy;
      const LstmCellValues<V> v = cell_.values(gates, row, unit, units, cy);
      store_acc(cy_ + row * H_ + unit, cy, units);
      store_acc(hy_ + row * H_ + unit, v.o * v.tanh_cy, units);
    }
  }

  const Inputs<scalar_t> cell_;
  const int64_t N_, H_;
  const Operand operands_[2];
  scalar_t *const hy_, *const cy_, *const gates_;  // hy_ and cy_, or gates_, may be null
};

}  // namespace fastnn::FASTNN_BACKEND::lstm
