// The LSTM cell backward with its matrix products, in two parallel regions; contract in ops/lstm_cell.h.
//
// 1. The pointwise part (lstm_cell.cpp) writes the gates' gradients G [N][4H] to the workspace, in acc_t, and
//    the gradient of cx. Where G is given it is copied.
// 2. The products, all in one region: grad_x = G W_ih and grad_h = G W_hh by strips of their columns, and
//    grad_W_ih = G^T x, grad_W_hh = G^T h and the biases' gradient by blocks of their rows. A unit of work is a
//    vector of columns of the former or as many multiply-adds of the latter.
//
// Numbers of G are broadcast; weights, x and h are loaded as vectors where they lie. What is not whole vectors
// of acc_t in memory (16-bit types, the last columns of a matrix) is copied and widened a piece at a time, and
// its sums are kept in acc_t until they are done. bfloat16 is multiplied two steps at a time where the
// processor has the instruction for it and I and H are even: G is then rounded to bfloat16, and what is copied
// is pairs of rows. G lies in blocks of a line of its columns: [block][N][kLine], the last one as narrow as it
// is. Both kinds of products then read it line after line; rows of 4H numbers, mostly a large power of two,
// would share a few sets of the caches.
//
// What bounds it: arithmetic, 16 N H (I + H) multiply-adds; for small batches reading the weights and writing
// their gradients. The weights are walked in blocks of rows, each block by strips, so that the pages of a block
// stay in the TLB: strip after strip of whole columns would change page with almost every row.
//
// Error: 4H roundings of a partial sum in grad_x and grad_h, N in the weights' gradients, and kBlockRows in the
// biases', whose partial sums are added in float64. No sum depends on the number of threads, nor grad_x and
// grad_h on the batch.
#pragma once

#include <algorithm>
#include <type_traits>

#include "lstm_cell_pointwise.h"
#include "matrix_tile.h"

namespace fastnn::FASTNN_BACKEND::lstm {

// Steps of the reduction in a piece. A strip of a piece, 128 x 48 floats, is 24 KB.
inline constexpr int64_t kPieceSteps = 128;
// The same for a batch that one tile of rows holds: weights are then read once, and in the order in which they
// lie.
inline constexpr int64_t kShortPieceSteps = 16;
// Rows of the weights' gradients that are computed together: their part of G stays in L1 or L2 for all strips.
inline constexpr int64_t kGradRows = 64;
// The same in pairs of bfloat16, where all rows of a group share the pairs that are made of a strip of x or h.
inline constexpr int64_t kGradRowsOfPairs = 128;
// Samples whose sums are staged together.
inline constexpr int64_t kStagedRows = 64;
// Sums that are staged, 48 KB in float: wide strips of a small batch, so that weights are walked by rows there
// too.
inline constexpr int64_t kStagedSums = 12288;
// Size of a weight's gradient, in bytes, from which it is stored past the caches: a core's own (L2: 1 MB) would
// not keep it until somebody reads it. A line is then not read before it is written, which is half of the
// traffic.
inline constexpr int64_t kStreamedBytes = 1 << 20;
// Multiply-adds of a vector below which work stays in the calling thread, about 8 us.
inline constexpr int64_t kGrainSteps = 30000;

// kPairs: scalar_t is bfloat16, and a step of the reduction is two of its numbers.
template <typename scalar_t, bool kPairs = false>
class StepBackward {
 public:
  using acc_t = acc_type<scalar_t>;
  // Numbers of G.
  using gate_t = std::conditional_t<kPairs, scalar_t, acc_t>;
  static constexpr int64_t L = kLanes<acc_t>;
  static constexpr int64_t kStrip = kMaxVecs * L;
  static constexpr int64_t kStepSize = kPairs ? 2 : 1;
  static constexpr int64_t kBlock = kLine<gate_t>;
  static constexpr int64_t kRowGroup = kPairs ? kGradRowsOfPairs : kGradRows;
  static constexpr bool kInPlace = std::is_same_v<scalar_t, acc_t>;
  // Columns of the weights' gradients that are staged together: two strips of bfloat16 are whole lines.
  static constexpr int64_t kStagedColumns = kPairs ? 2 * kStrip : kStrip;

  explicit StepBackward(const LstmStepBackwardParams& p)
      : N_(p.in.cell.N),
        H_(p.in.cell.H),
        rows_(4 * p.in.cell.H),
        gates_(static_cast<gate_t*>(p.workspace)),
        grad_bias_(static_cast<scalar_t*>(p.grad_bias)),
        sides_{{static_cast<const scalar_t*>(p.in.x), static_cast<const scalar_t*>(p.in.w_ih), p.in.I,
                static_cast<scalar_t*>(p.grad_x), static_cast<scalar_t*>(p.grad_w_ih)},
               {static_cast<const scalar_t*>(p.in.h), static_cast<const scalar_t*>(p.in.w_hh), p.in.cell.H,
                static_cast<scalar_t*>(p.grad_h), static_cast<scalar_t*>(p.grad_w_hh)}} {}

  // Bytes of the workspace.
  int64_t workspace() const { return N_ * rows_ * static_cast<int64_t>(sizeof(gate_t)); }

  // Writes `count` numbers of G.
  void store_gates(int64_t n, int64_t gate, int64_t column, const Vec<acc_t>& v, int64_t count) const {
    const int64_t k = gate * H_ + column;
    if (k % kBlock + count <= kBlock) {
      store_acc(gates_at(n, k), v, count);
    } else {
      alignas(64) acc_t lanes[L];
      v.store(lanes);
      for (int64_t i = 0; i < count; ++i) *gates_at(n, k + i) = static_cast<gate_t>(lanes[i]);
    }
  }

  // G as the caller gives it, [N, 4H].
  void load_gates(const scalar_t* grad_gates) const {
    const int64_t grain = std::max<int64_t>(1, kGrainSteps * L / std::max<int64_t>(1, rows_));
    parallel_for(N_, grain, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t k = 0, count; k < rows_; k += count) {
          count = std::min({L, kBlock - k % kBlock, rows_ - k});
          store_acc(gates_at(n, k), load_acc(grad_gates + n * rows_ + k, count), count);
        }
      }
    });
  }

  void multiply_all() const {
    const int64_t all_vecs = grad_vecs(sides_[0]) + grad_vecs(sides_[1]);
    const int64_t width = std::max<int64_t>((sides_[0].grad_weights != nullptr ? sides_[0].K : 0) +
                                                (sides_[1].grad_weights != nullptr ? sides_[1].K : 0),
                                            grad_bias_ != nullptr ? 1 : 0);
    // As many rows of the weights' gradients as take the time of one vector of columns.
    const int64_t block =
        width == 0 ? rows_ : std::clamp(rows_ * L / width / kMaxRows * kMaxRows, kMaxRows, kGradRows);
    const int64_t blocks = width == 0 ? 0 : ceil_div(rows_, block);
    // Fewer than four samples cost what it takes to read or write the weights.
    const int64_t steps = std::max<int64_t>(N_ / kStepSize, 4) * rows_;
    const int64_t grain = std::max<int64_t>(1, kGrainSteps / std::max<int64_t>(1, steps));
    parallel_for(all_vecs + blocks, grain, [&](int64_t begin, int64_t end) {
      int64_t first = 0;
      for (const Side& side : sides_) {
        const int64_t vecs = grad_vecs(side);
        multiply_columns(side, std::clamp<int64_t>(begin - first, 0, vecs),
                         std::clamp<int64_t>(end - first, 0, vecs));
        first += vecs;
      }
      multiply_rows(std::max<int64_t>(begin - first, 0) * block, std::min((end - first) * block, rows_));
    });
  }

 private:
  // One of the two products: its operands, and the gradients of both.
  struct Side {
    const scalar_t* samples;  // [N, K]
    const scalar_t* weights;  // [4H, K]
    int64_t K;
    scalar_t* grad_samples;  // null when not wanted
    scalar_t* grad_weights;  // null when not wanted
  };
  // Rows of vectors: element (step, j) at first[step * pitch + j].
  struct Columns {
    const acc_t* first;
    int64_t pitch;
  };

  // G's block that holds column k lies `width` apart from sample to sample.
  int64_t block_width(int64_t k) const { return std::min(kBlock, rows_ - k / kBlock * kBlock); }
  gate_t* gates_at(int64_t n, int64_t k) const {
    return gates_ + k / kBlock * kBlock * N_ + n * block_width(k) + k % kBlock;
  }

  static int64_t grad_vecs(const Side& side) { return side.grad_samples == nullptr ? 0 : ceil_div(side.K, L); }

  static void multiply(int64_t rows, int64_t width, const Tile<acc_t>& tile) {
    if constexpr (kPairs) {
      multiply_pairs(rows, ceil_div(width, L), tile);
    } else {
      FASTNN_BACKEND::multiply(rows, ceil_div(width, L), tile);
    }
  }

  // `width` columns of `rows` rows of a matrix as vectors of steps: where they lie, or in `copy`, while what
  // lies `ahead` of them is fetched.
  static Columns as_vectors(const scalar_t* src, int64_t pitch, int64_t rows, int64_t width, int64_t ahead,
                            acc_t* copy) {
    if constexpr (kInPlace) {
      if (width % L == 0) return {src, pitch};
    }
    for (int64_t d = 0; d < rows; d += kStepSize) {
      for (int64_t i = 0; i < kStepSize; ++i) {
        for (int64_t j = 0; j < width; j += kLine<scalar_t>) {
          __builtin_prefetch(src + (d + i) * pitch + j + ahead, 0, 2);
        }
      }
      for (int64_t j = 0; j < width; j += L) {
        const int64_t count = std::min(L, width - j);
        acc_t* const place = copy + d / kStepSize * kStrip + j;
        if constexpr (kPairs) {
          interleave_rows(src + d * pitch + j, d + 1 < rows ? src + (d + 1) * pitch + j : nullptr, count,
                          place);
        } else {
          load_acc(src + d * pitch + j, count).store(place);
        }
      }
    }
    return {copy, kStrip};
  }

  // Columns [begin, end) * L of grad_x or grad_h.
  void multiply_columns(const Side& side, int64_t begin, int64_t end) const {
    if (begin >= end) return;
    int64_t first = begin * L;
    const int64_t last = std::min(end * L, side.K);
    if constexpr (kInPlace) {
      const int64_t whole = last / L * L;
      const int64_t piece = N_ <= kMaxRows / 2 ? kShortPieceSteps : kPieceSteps;
      for (int64_t k = 0; k < rows_; k += piece) {
        int64_t width;
        for (int64_t j = first; j < whole; j += width) {
          width = std::min(kStrip, whole - j);
          // The next strip, or the first one of the next piece.
          const int64_t ahead = j + width < whole ? width : piece * side.K - (j - first);
          multiply_piece(k, std::min(piece, rows_ - k), 0, N_, {side.weights + k * side.K + j, side.K}, width,
                         side.grad_samples + j, side.K, ahead);
        }
      }
      first = std::max(first, whole);
    }
    if (first < last) multiply_staged_columns(side, first, last);
  }

  // Adds to the sums of samples [first, last), or begins them with, rows k .. k + count of G^T and the weights.
  void multiply_piece(int64_t k, int64_t count, int64_t first, int64_t last, Columns columns, int64_t width,
                      acc_t* sums, int64_t sums_pitch, int64_t ahead) const {
    // The last block of G may be narrower.
    const int64_t even = std::min(count, rows_ / kBlock * kBlock - k);
    for (int64_t done = 0; done < count; done = done < even ? even : count) {
      Tile<acc_t> tile;
      tile.depth = ((done < even ? even : count) - done) / kStepSize;
      tile.a_pitch = block_width(k + done) / kStepSize;
      tile.a_step = 1;
      tile.a_jump = (kBlock * N_ - kBlock) / kStepSize;
      tile.b = columns.first + done / kStepSize * columns.pitch;
      tile.b_pitch = columns.pitch;
      tile.b_ahead = ahead;
      tile.c_pitch = sums_pitch;
      tile.resume = k + done > 0;
      int64_t rows;
      for (int64_t n = first; n < last; n += rows) {
        rows = tile_rows(last - n);
        tile.a = reinterpret_cast<const acc_t*>(gates_at(n, k + done));
        tile.c = sums + (n - first) * sums_pitch;
        multiply(rows, width, tile);
        tile.b_ahead = 0;
      }
    }
  }

  void multiply_staged_columns(const Side& side, int64_t first, int64_t last) const {
    constexpr int64_t kPiece = kPieceSteps * kStepSize;
    alignas(64) acc_t copy[kPieceSteps * kStrip];
    alignas(64) acc_t sums[kStagedSums];
    const int64_t height = std::min(kStagedRows, N_);
    const int64_t widest = kStagedSums / height / kStrip * kStrip;
    for (int64_t left = first; left < last; left += widest) {
      const int64_t right = std::min(left + widest, last), pitch = ceil_div(right - left, L) * L;
      for (int64_t top = 0; top < N_; top += height) {
        const int64_t bottom = std::min(top + height, N_);
        for (int64_t k = 0; k < rows_; k += kPiece) {
          const int64_t count = std::min(kPiece, rows_ - k);
          for (int64_t j = left; j < right; j += kStrip) {
            const int64_t width = std::min(kStrip, right - j);
            // The next strip, or the first one of the next piece.
            const int64_t ahead = j + width < right ? width : kPiece * side.K - (j - left);
            multiply_piece(k, count, top, bottom,
                           as_vectors(side.weights + k * side.K + j, side.K, count, width, ahead, copy), width,
                           sums + (j - left), pitch, 0);
          }
        }
        store_rows(sums, pitch, bottom - top, right - left, side.grad_samples + top * side.K + left, side.K,
                   /*streamed=*/false);
      }
    }
  }

  static void store_rows(const acc_t* sums, int64_t pitch, int64_t rows, int64_t width, scalar_t* dst,
                         int64_t dst_pitch, bool streamed) {
    if constexpr (kPairs) return store_rounded_rows(sums, pitch, rows, width, dst, dst_pitch, streamed);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t j = 0; j < width; j += L) {
        store_acc(dst + row * dst_pitch + j, Vec<acc_t>::loadu(sums + row * pitch + j), std::min(L, width - j));
      }
    }
  }

  // Rows [begin, end) of grad_W_ih, grad_W_hh and the biases' gradient.
  void multiply_rows(int64_t begin, int64_t end) const {
    constexpr int64_t kPiece = kPieceSteps * kStepSize;
    alignas(64) acc_t copy[kPieceSteps * kStrip];
    alignas(64) acc_t sums[kRowGroup * kStagedColumns];
    alignas(64) acc_t pairs[kPairs ? kPieceSteps * kPairsPitch : 1];
    for (int64_t top = begin; top < end; top += kRowGroup) {
      const int64_t bottom = std::min(top + kRowGroup, end);
      if (grad_bias_ != nullptr) sum_rows(top, bottom);
      int64_t paired = -1;  // the piece of the batch that `pairs` holds
      for (const Side& side : sides_) {
        if (side.grad_weights == nullptr) continue;
        const bool streamed = streams(side);
        int64_t width, staged = 0;  // columns before j whose sums are staged
        for (int64_t j = 0; j < side.K; j += width) {
          width = strip_width(side.K - j);
          const bool direct = kInPlace && width % L == 0;
          for (int64_t n = 0; n < N_; n += kPiece) {
            const int64_t count = std::min(kPiece, N_ - n);
            const Columns columns = as_vectors(side.samples + n * side.K + j, side.K, count, width, 0, copy);
            if (kPairs && paired != n) pair_gates(n, count, top, bottom, pairs);
            paired = n;
            Tile<acc_t> tile;
            tile.depth = ceil_div(count, kStepSize);
            tile.a_pitch = 1;
            tile.b = columns.first;
            tile.b_pitch = columns.pitch;
            tile.c_pitch = direct ? side.K : kStagedColumns;
            tile.resume = n > 0;
            int64_t rows;
            for (int64_t k = top; k < bottom; k += rows) {
              rows = tile_rows(bottom - k);
              tile.c = sums + (k - top) * kStagedColumns + staged;
              if constexpr (kPairs) {
                tile.a = pairs + (k - top);
                tile.a_step = kPairsPitch;
              } else {
                tile.a = gates_at(n, k);
                tile.a_step = block_width(k);
              }
              if constexpr (kInPlace) {
                if (direct) {
                  tile.c = side.grad_weights + k * side.K + j;
                  tile.stream = streamed;
                  tile.next_c = !streamed && n == 0 && k + rows < bottom ? tile.c + rows * side.K : nullptr;
                }
              }
              multiply(rows, width, tile);
            }
          }
          if (direct) continue;
          staged += width;
          if (staged < kStagedColumns && j + width < side.K) continue;
          store_rows(sums, kStagedColumns, bottom - top, staged,
                     side.grad_weights + top * side.K + j + width - staged, side.K, streamed);
          staged = 0;
        }
        if (streamed) end_stream();
      }
    }
  }

  // Whole vectors are written, beyond the last row of a group too.
  static constexpr int64_t kPairsPitch = kRowGroup + L;

  // Columns [top, bottom) of G of `count` samples from n on, as pairs of samples: [count / 2][kPairsPitch].
  void pair_gates(int64_t n, int64_t count, int64_t top, int64_t bottom, acc_t* pairs) const {
    if constexpr (kPairs) {
      for (int64_t k = top, width; k < bottom; k += width) {
        width = std::min({L, kBlock - k % kBlock, bottom - k});
        for (int64_t d = 0; d < count; d += 2) {
          interleave_rows(gates_at(n + d, k), d + 1 < count ? gates_at(n + d + 1, k) : nullptr, width,
                          pairs + d / 2 * kPairsPitch + (k - top));
        }
      }
    }
  }

  // Whether grad_weights goes past the caches: large, of whole lines, and written once.
  bool streams(const Side& side) const {
    const int64_t pitch = side.K * static_cast<int64_t>(sizeof(scalar_t));
    return kHasStreamingStores && (kInPlace ? N_ <= kPieceSteps : kPairs) && rows_ * pitch >= kStreamedBytes &&
           pitch % 64 == 0 && reinterpret_cast<uintptr_t>(side.grad_weights) % 64 == 0;
  }

  // Elements [begin, end) of the biases' gradient: the sums of G's columns.
  void sum_rows(int64_t begin, int64_t end) const {
    for (int64_t k = begin, count; k < end; k += count) {
      count = std::min(kBlock - k % kBlock, end - k);
      const int64_t width = block_width(k);
      const gate_t* const first = gates_at(0, k);
      double sums[kBlock] = {};
      for (int64_t n = 0; n < N_; n += kBlockRows) {
        acc_t partial[kBlock] = {};
        for (int64_t row = n; row < std::min(n + kBlockRows, N_); ++row) {
          const gate_t* const gates = first + row * width;
          for (int64_t i = 0; i < count; ++i) partial[i] += static_cast<acc_t>(gates[i]);
        }
        for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<double>(partial[i]);
      }
      for (int64_t i = 0; i < count; ++i)
        grad_bias_[k + i] = static_cast<scalar_t>(static_cast<acc_t>(sums[i]));
    }
  }

  // Of `left` columns those of the next strip: whole vectors, or the rest.
  static int64_t strip_width(int64_t left) {
    return !kInPlace || left < L ? std::min(kStrip, left) : std::min(kStrip, left / L * L);
  }

  const int64_t N_, H_, rows_;  // rows_: of the weights, 4H
  gate_t* const gates_;         // G, in the workspace
  scalar_t* const grad_bias_;   // null when not wanted
  const Side sides_[2];
};

}  // namespace fastnn::FASTNN_BACKEND::lstm
