// How the CPU kernels of batch normalisation walk a tensor, cut it into chunks and lay out their workspace.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../ops/batch_norm.h"

namespace fastnn::FASTNN_BACKEND::bn {

// Values packed at a time: half an L1 data cache.
inline constexpr int64_t kChunkBytes = 16 * 1024;
// Rows whose sums stay in acc_t, channels last. More would loosen the error bound, fewer cost more conversions.
inline constexpr int64_t kBlockRows = 64;
// Channels of a task, channels last: enough that each row's part is a stream, few enough that the sums of five
// terms stay in L1.
inline constexpr int64_t kChannelBlock = 1024;
// Bounds the workspace and the serial part of the combination, channels last.
inline constexpr int64_t kMaxRowChunks = 64;
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a tensor is walked and cut.
struct Plan {
  bool rows;        // rows of C (channels last) rather than planes of S
  int64_t N, C, S;  // with rows, S = 1 and N counts the rows
  int64_t chunk;    // channels first: values of a piece; with rows: rows of a chunk
  int64_t pieces;   // channels first: pieces of one row of S, 0 when a chunk holds several rows
  int64_t group;    // channels first: rows of S in a chunk
  int64_t chunks;   // of one channel; with rows: of all

  template <typename acc_t>
  static Plan make(const BatchNormShape& shape) {
    Plan plan{shape.layout == Layout::kChannelsLast, shape.N, shape.C, shape.S, 0, 0, 1, 0};
    // [N, C] is the same in both layouts, and so is a single channel.
    if (shape.S == 1) plan.rows = true;
    if (shape.C == 1) {
      plan.rows = false;
      plan.S = shape.N * shape.S;
      plan.N = plan.S > 0 ? 1 : 0;
    } else if (plan.rows) {
      plan.N = shape.N * shape.S;
      plan.S = 1;
    }
    if (plan.N == 0 || plan.S == 0 || plan.C == 0) return plan;
    if (plan.rows) {
      plan.chunk = ceil_div(ceil_div(plan.N, kMaxRowChunks), kBlockRows) * kBlockRows;
      plan.chunks = ceil_div(plan.N, plan.chunk);
    } else {
      plan.chunk = kChunkBytes / sizeof(acc_t);
      if (plan.S >= plan.chunk) {
        plan.pieces = ceil_div(plan.S, plan.chunk);
        plan.chunks = plan.N * plan.pieces;
      } else {
        plan.group = plan.chunk / plan.S;
        plan.chunks = ceil_div(plan.N, plan.group);
      }
    }
    return plan;
  }

  int64_t values() const { return N * S; }  // of one channel
};

// The part of a channel (channels first) that chunk i covers: rows [n, n + rows) of `length` values from s.
struct ChunkOfChannel {
  int64_t n, rows, s, length;

  ChunkOfChannel(const Plan& plan, int64_t i) {
    if (plan.pieces > 0) {
      n = i / plan.pieces;
      rows = 1;
      s = i % plan.pieces * plan.chunk;
      length = std::min(plan.chunk, plan.S - s);
    } else {
      n = i * plan.group;
      rows = std::min(plan.group, plan.N - n);
      s = 0;
      length = plan.S;
    }
  }

  int64_t count() const { return rows * length; }
};

// Workspace: float64 partial sums [chunks, sums, C], or [C, chunks, sums] with channels first, then the
// coefficients of the last pass [coefficients, C].
template <typename acc_t>
struct Workspace {
  double* partials;
  acc_t* coefficients;

  Workspace(void* memory, const Plan& plan, int64_t sums)
      : partials(static_cast<double*>(memory)),
        coefficients(reinterpret_cast<acc_t*>(partials + plan.chunks * sums * plan.C)) {}

  static int64_t bytes(const Plan& plan, int64_t sums, int64_t coefficients) {
    return plan.chunks * sums * plan.C * static_cast<int64_t>(sizeof(double)) +
           coefficients * plan.C * static_cast<int64_t>(sizeof(acc_t));
  }
};

}  // namespace fastnn::FASTNN_BACKEND::bn
