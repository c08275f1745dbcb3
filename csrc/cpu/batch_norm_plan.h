// How the CPU kernels of batch normalisation walk a tensor, cut it into chunks and lay out their workspace.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../ops/batch_norm.h"

namespace fastnn::FASTNN_BACKEND::bn {

// Runs of memory that are read at once. The processor's prefetching ends at each page of 4 KiB and has to find
// the next one: a core reads 17 GB/s from memory along one run, 23 and more along four.
inline constexpr int64_t kStreams = 4;
// Addresses a multiple of 4 KiB apart are in one set of the L1 cache, where the runs of three tensors push each
// other's lines out before they are used (a third of the speed, from L2 too). Runs are kept so far beside it.
inline constexpr int64_t kPageBytes = 4096;
inline constexpr int64_t kApartBytes = 512;

// Channels first: values of a channel that are summed at a time, half an L1 data cache.
inline constexpr int64_t kChunkBytes = 16 * 1024;
// Channels whose planes are walked side by side, kStreams rows at once, so that each row's are a run of memory.
inline constexpr int64_t kMostPlanes = 32;
inline constexpr int64_t kPlaneRunBytes = 8 * 1024;
// Channels last: rows of a chunk are a multiple of this, and those whose sums stay in acc_t. More would loosen
// the error bound, fewer cost more conversions.
inline constexpr int64_t kChunkRows = 64;
inline constexpr int64_t kBlockRows = 128;
// Channels of a task, channels last: enough that each row's part is a stream, few enough that the sums of five
// terms stay in L1.
inline constexpr int64_t kChannelBlock = 1024;
// Bounds the workspace, channels last, at 3 / 128 of the input (more where it has few rows).
inline constexpr int64_t kMaxRowChunks = 32;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether runs that begin so many bytes apart are in each other's way.
inline bool clash(int64_t bytes) {
  const int64_t beside = bytes % kPageBytes;
  return beside < kApartBytes || beside > kPageBytes - kApartBytes;
}

// How many units of so many bytes one run is to begin after the other: `count` or a little less.
inline int64_t spread(int64_t count, int64_t bytes) {
  const int64_t least = std::max<int64_t>(1, count - ceil_div(2 * kApartBytes, bytes));
  for (int64_t n = count; n >= least; --n) {
    if (!clash(n * bytes)) return n;
  }
  return count;
}

// Where rows so many bytes apart are in each other's way: how many channels, whole vectors of W, one is to be
// walked before the next. 0 where they are not, or cannot be kept apart.
template <int64_t W>
int64_t staggered(int64_t bytes, int64_t channels) {
  return clash(bytes) && channels % (kStreams * W) == 0 && channels >= kPageBytes / 8 ? channels / kStreams : 0;
}

// How a tensor is walked and cut: by its shape alone.
struct Plan {
  bool rows;        // rows of C (channels last) rather than planes of S
  int64_t N, C, S;  // with rows, S = 1 and N counts the rows
  int64_t chunk;    // channels first: values of a piece; with rows: rows of a chunk
  int64_t pieces;   // channels first: pieces of one row of S, 0 when a chunk holds several rows
  int64_t group;    // channels first: rows of S in a chunk
  int64_t chunks;   // of one channel; with rows: of all
  int64_t planes;   // channels first: channels that are walked side by side; with rows: channels of a task

  template <typename acc_t>
  static Plan make(const BatchNormShape& shape) {
    Plan plan{shape.layout == Layout::kChannelsLast, shape.N, shape.C, shape.S, 0, 0, 1, 0, 1};
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
      plan.chunk = ceil_div(ceil_div(plan.N, kMaxRowChunks), kChunkRows) * kChunkRows;
      plan.chunks = ceil_div(plan.N, plan.chunk);
      plan.planes = kChannelBlock;
      return plan;
    }
    constexpr int64_t kMost = kChunkBytes / sizeof(acc_t);
    if (plan.S > kMost) {
      // Pieces of one size but for the last, which is a little shorter.
      constexpr int64_t kUnit = 256 / sizeof(acc_t);
      plan.chunk = ceil_div(ceil_div(plan.S, ceil_div(plan.S, kMost)), kUnit) * kUnit;
      plan.pieces = ceil_div(plan.S, plan.chunk);
      plan.chunks = plan.N * plan.pieces;
    } else {
      plan.group = kMost / plan.S;
      plan.chunks = ceil_div(plan.N, plan.group);
      if (plan.N >= kStreams && plan.group >= kStreams) {
        plan.group = plan.group / kStreams * kStreams;
        plan.chunks = ceil_div(plan.N, plan.group);
        const int64_t run = kPlaneRunBytes / (plan.S * static_cast<int64_t>(sizeof(acc_t)));
        plan.planes = std::clamp(std::min(run, plan.C / 16), kStreams, kMostPlanes);
      }
    }
    return plan;
  }

  int64_t values() const { return N * S; }  // of one channel

  // The first value of channel c.
  int64_t first(int64_t c) const { return rows ? c : c * S; }

  // Groups of channels that are walked side by side. Where they begin does not depend on the threads: how rows
  // and channels are interleaved within a group decides in which order a channel's values are added.
  int64_t groups() const { return ceil_div(C, planes); }
  int64_t group_begin(int64_t group) const { return group * planes; }
  int64_t group_end(int64_t group) const { return std::min(group * planes + planes, C); }

  // Of so many rows of planes, those that are walked kStreams at once.
  int64_t grouped(int64_t count) const { return planes > 1 ? count / kStreams * kStreams : 0; }
};

// The part of a channel that chunk i covers. Channels first: rows [n, n + rows) of `length` values from s.
// With rows: rows [n, n + rows) of one value.
struct ChunkOfChannel {
  int64_t n, rows, s, length;

  ChunkOfChannel(const Plan& plan, int64_t i) {
    s = 0;
    length = plan.S;
    if (plan.rows) {
      n = i * plan.chunk;
      rows = std::min(plan.chunk, plan.N - n);
    } else if (plan.pieces > 0) {
      n = i / plan.pieces;
      rows = 1;
      s = i % plan.pieces * plan.chunk;
      length = std::min(plan.chunk, plan.S - s);
    } else {
      n = i * plan.group;
      rows = std::min(plan.group, plan.N - n);
    }
  }

  int64_t count() const { return rows * length; }
};

// f(at, length, pitch) for kStreams runs of `length` values from `at` on, `pitch` apart, that together are
// values [at, end) but for a rest of less than kStreams vectors of W; then rest(at, end) for that.
template <int64_t W, int64_t kSize, typename F, typename Rest>
__attribute__((always_inline)) inline void for_each_part(int64_t at, int64_t end, const F& f,
                                                         const Rest& rest) {
  while (end - at >= kStreams * W) {
    const int64_t part = spread((end - at) / (kStreams * W), W * kSize) * W;
    f(at, part, part);
    at += kStreams * part;
  }
  rest(at, end);
}

// Workspace: float64 partial sums [chunks, sums, C], then the coefficients of the last pass [coefficients, C].
// The partial sums may be elsewhere.
template <typename acc_t>
struct Workspace {
  const Plan& plan;
  int64_t sums;
  double* partials;
  acc_t* coefficients;

  Workspace(void* memory, const Plan& plan, int64_t sums, void* elsewhere = nullptr)
      : plan(plan),
        sums(sums),
        partials(static_cast<double*>(elsewhere != nullptr ? elsewhere : memory)),
        coefficients(static_cast<acc_t*>(memory)) {
    if (elsewhere == nullptr) coefficients = reinterpret_cast<acc_t*>(partials + plan.chunks * sums * plan.C);
  }

  // Sum k of chunk i, by channel.
  double* partial(int64_t i, int64_t k) const { return partials + (i * sums + k) * plan.C; }

  static int64_t bytes(const Plan& plan, int64_t sums, int64_t coefficients) {
    return plan.chunks * sums * plan.C * static_cast<int64_t>(sizeof(double)) +
           coefficients * plan.C * static_cast<int64_t>(sizeof(acc_t));
  }
};

}  // namespace fastnn::FASTNN_BACKEND::bn
