// Where the windows of a pooling lie: arithmetic that the CPU kernels of its three directions share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../ops/max_pool.h"

namespace fastnn::FASTNN_BACKEND::pool {

inline int64_t ceil_div(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }
inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
inline int64_t span(const PoolGeometry& g, int d) { return g.dilation[d] * (g.kernel[d] - 1) + 1; }
inline int64_t volume(const int64_t (&size)[kSpatialDims]) { return size[0] * size[1] * size[2]; }

// With one channel both layouts are the same memory; the channels-first kernels then fill their vectors.
inline bool channels_last(const PoolGeometry& g) { return g.layout == Layout::kChannelsLast && g.C > 1; }

// Elements touched below which a task stays in the calling thread: about 10 us, what waking the pool costs.
inline constexpr int64_t kGrainElements = 32 * 1024;

inline int64_t grain(int64_t elements_per_task) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, elements_per_task));
}

// Rows of at most this many windows are taken several at a time.
inline constexpr int64_t kShortRow = 8;

// Whether x has two rows for each row of windows and two columns for each window: pairs of rows then follow
// each other as windows do, through all planes.
inline bool has_short_rows(const PoolGeometry& g) {
  return g.out[2] <= kShortRow && g.in[2] == 2 * g.out[2] && g.in[1] == 2 * g.out[1];
}

// Half-open range of integers.
struct Range {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
};

// Window positions along dimension d, for output o, that lie inside x.
inline Range valid_taps(const PoolGeometry& g, int d, int64_t o) {
  const int64_t start = o * g.stride[d] - g.pad[d];
  if (g.dilation[d] == 1) return {std::max<int64_t>(0, -start), std::min(g.kernel[d], g.in[d] - start)};
  return {std::max<int64_t>(0, ceil_div(-start, g.dilation[d])),
          std::min(g.kernel[d], ceil_div(g.in[d] - start, g.dilation[d]))};
}

// Outputs along dimension d whose windows can reach the inputs [begin, end).
inline Range covering_outputs(const PoolGeometry& g, int d, int64_t begin, int64_t end) {
  return {std::max<int64_t>(0, ceil_div(begin + g.pad[d] - span(g, d) + 1, g.stride[d])),
          std::min(g.out[d], floor_div(end - 1 + g.pad[d], g.stride[d]) + 1)};
}

// covering_outputs() of each column in ascending order, moved along without divisions.
class CoveringColumns {
 public:
  explicit CoveringColumns(const PoolGeometry& g) : g_(g), span_(span(g, 2)) {}

  Range of(int64_t iw) {
    while (outputs_.end < g_.out[2] && outputs_.end * g_.stride[2] - g_.pad[2] <= iw) ++outputs_.end;
    while (outputs_.begin < outputs_.end && outputs_.begin * g_.stride[2] - g_.pad[2] + span_ <= iw) {
      ++outputs_.begin;
    }
    return outputs_;
  }

 private:
  const PoolGeometry& g_;
  int64_t span_;
  Range outputs_{0, 0};
};

// One row of outputs: `plane` counts (n, c) pairs with channels first and n with channels last.
struct OutputRow {
  int64_t plane, d, h;

  OutputRow(const PoolGeometry& g, int64_t row)
      : plane(row / (g.out[0] * g.out[1])), d(row / g.out[1] % g.out[0]), h(row % g.out[1]) {}

  // The row after this one, without divisions.
  void next(const PoolGeometry& g) {
    if (++h < g.out[1]) return;
    h = 0;
    if (++d < g.out[0]) return;
    d = 0;
    ++plane;
  }
};

// Where a window offset lies relative to the window's start, in input elements.
struct Displacement {
  int64_t d, h, w;
  int64_t flat;  // in the flattened [D, H, W]
};

class DisplacementTable {
 public:
  explicit DisplacementTable(const PoolGeometry& g) : g_(g), tabulated_(volume(g.kernel) <= kEntries) {
    for (int64_t k = 0; k < kEntries; ++k) {
      entries_[k] = tabulated_ && k < volume(g.kernel) ? compute(k) : Displacement{0, 0, 0, 0};
    }
  }

  // Divisions cost more than a table, but windows above kEntries have few outputs for their input.
  Displacement operator()(int64_t offset) const { return tabulated_ ? entries_[offset] : compute(offset); }

  int64_t flat(int64_t offset) const { return (*this)(offset).flat; }

 private:
  static constexpr int64_t kEntries = 256;

  Displacement compute(int64_t offset) const {
    const int64_t row = offset / g_.kernel[2];
    const int64_t d = row / g_.kernel[1] * g_.dilation[0], h = row % g_.kernel[1] * g_.dilation[1];
    const int64_t w = offset % g_.kernel[2] * g_.dilation[2];
    return {d, h, w, (d * g_.in[1] + h) * g_.in[2] + w};
  }

  const PoolGeometry& g_;
  bool tabulated_;
  Displacement entries_[kEntries];
};

// Window position along dimension d at which output o sees input i; -1 when dilation steps over it.
inline int64_t tap_of(const PoolGeometry& g, int d, int64_t i, int64_t o) {
  const int64_t distance = i + g.pad[d] - o * g.stride[d];
  if (g.dilation[d] == 1) return distance;
  return distance % g.dilation[d] == 0 ? distance / g.dilation[d] : -1;
}

// Flattened index at which the window of output (d, h, w) starts; negative inside the padding.
inline int64_t window_start(const PoolGeometry& g, int64_t d, int64_t h, int64_t w) {
  return ((d * g.stride[0] - g.pad[0]) * g.in[1] + h * g.stride[1] - g.pad[1]) * g.in[2] + w * g.stride[2] -
         g.pad[2];
}

}  // namespace fastnn::FASTNN_BACKEND::pool
