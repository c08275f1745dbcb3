// Forward of max pooling; max_pool.cpp says when each variant is taken.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "max_pool_vectors.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND::pool {

// The outputs of one call. kTrack is whether anybody asked for places at all.
template <typename scalar_t, typename offset_t>
struct ForwardOutputs {
  using acc_t = acc_type<scalar_t>;

  scalar_t* y;
  offset_t* offsets;
  int64_t* indices;

  explicit ForwardOutputs(const MaxPoolForwardParams& p)
      : y(static_cast<scalar_t*>(p.y)), offsets(static_cast<offset_t*>(p.offsets)), indices(p.indices) {}

  // Stores `count` lanes at element `at`; lane i's window starts at flattened index start + i * step.
  template <bool kTrack>
  void store(int64_t at, const Best<acc_t>& best, int64_t count, const DisplacementTable& table, int64_t start,
             int64_t step) const {
    store_acc(y + at, best.value, count);
    if constexpr (kTrack) {
      if (offsets != nullptr) store_offsets<acc_t>(offsets + at, best.place, count);
      if (indices != nullptr) {
        alignas(64) typename Best<acc_t>::place_t places[kLanes<acc_t>];
        best.place.store(places);
        for (int64_t i = 0; i < count; ++i) indices[at + i] = start + i * step + table.flat(places[i]);
      }
    }
  }
};

// ---- channels last ----

// A thread owns output positions, a vector W channels of one position. kTaps > 0: windows of kTaps places,
// whose loop is unrolled where they lie inside x.
template <typename scalar_t, typename offset_t, bool kTrack, int kTaps>
void max_pool_forward_channels_last(const MaxPoolForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using B = Best<acc_t>;
  const PoolGeometry& g = p.geometry;
  const DisplacementTable table(g);
  const ForwardOutputs<scalar_t, offset_t> out(p);
  const int64_t row_work = g.out[2] * g.C * volume(g.kernel);
  int64_t taps[std::max(kTaps, 1)];
  for (int t = 0; t < kTaps; ++t) taps[t] = table.flat(t) * g.C;

  parallel_for(g.N * g.out[0] * g.out[1], grain(row_work), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const OutputRow row(g, r);
      const scalar_t* x = static_cast<const scalar_t*>(p.x) + row.plane * volume(g.in) * g.C;
      const Range taps_d = valid_taps(g, 0, row.d), taps_h = valid_taps(g, 1, row.h);
      const bool rows_inside = taps_d.size() == g.kernel[0] && taps_h.size() == g.kernel[1];
      for (int64_t ow = 0; ow < g.out[2]; ++ow) {
        const Range taps_w = valid_taps(g, 2, ow);
        const int64_t start = window_start(g, row.d, row.h, ow);
        const int64_t at = (r * g.out[2] + ow) * g.C;
        if (kTaps > 0 && rows_inside && taps_w.size() == g.kernel[2]) {
          const scalar_t* window = x + start * g.C;
          for_each_vector<acc_t>(0, g.C, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
            B best{load_acc(window + c, count), B::as_lanes(0)};
#pragma GCC unroll 16
            for (int t = 1; t < kTaps; ++t) best.offer(load_acc(window + taps[t] + c, count), B::as_lanes(t));
            out.template store<kTrack>(at + c, best, count, table, start, 0);
          });
          continue;
        }
        const int64_t first = (taps_d.begin * g.kernel[1] + taps_h.begin) * g.kernel[2] + taps_w.begin;
        for_each_vector<acc_t>(0, g.C, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
          B best{Vec<acc_t>(-std::numeric_limits<acc_t>::infinity()), B::as_lanes(first)};
          for (int64_t kd = taps_d.begin; kd < taps_d.end; ++kd) {
            for (int64_t kh = taps_h.begin; kh < taps_h.end; ++kh) {
              const int64_t place = (kd * g.kernel[1] + kh) * g.kernel[2];
              const int64_t line = start + (kd * g.dilation[0] * g.in[1] + kh * g.dilation[1]) * g.in[2];
              for (int64_t kw = taps_w.begin; kw < taps_w.end; ++kw) {
                best.offer(load_acc(x + (line + kw * g.dilation[2]) * g.C + c, count), B::as_lanes(place + kw));
              }
            }
          }
          out.template store<kTrack>(at + c, best, count, table, start, 0);
        });
      }
    }
  });
}

// ---- channels first, one window at a time ----

// A window's maximum so far.
template <typename acc_t>
struct WindowBest {
  acc_t value;
  int64_t place;

  // For places in ascending order.
  void offer(acc_t x, int64_t at) {
    if (x > value || std::isnan(x)) {
      value = x;
      place = at;
    }
  }

  // The same rule for places in any order.
  void merge(acc_t x, int64_t at) {
    const bool nan = std::isnan(value);
    if (std::isnan(x) ? !nan || at > place : !nan && (x > value || (x == value && at < place))) {
      value = x;
      place = at;
    }
  }
};

template <typename scalar_t, typename offset_t>
void max_pool_forward_window(const MaxPoolForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using place_t = typename Best<acc_t>::place_t;
  constexpr int W = kLanes<acc_t>;
  const PoolGeometry& g = p.geometry;
  const DisplacementTable table(g);
  const ForwardOutputs<scalar_t, offset_t> out(p);
  const int64_t outputs = g.N * g.C * volume(g.out);

  parallel_for(outputs, grain(volume(g.kernel)), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      const OutputRow row(g, o / g.out[2]);
      const int64_t ow = o % g.out[2];
      const Range taps_d = valid_taps(g, 0, row.d), taps_h = valid_taps(g, 1, row.h),
                  taps_w = valid_taps(g, 2, ow);
      const scalar_t* x = static_cast<const scalar_t*>(p.x) + row.plane * volume(g.in);
      const int64_t start = window_start(g, row.d, row.h, ow);
      WindowBest<acc_t> best{-std::numeric_limits<acc_t>::infinity(),
                             (taps_d.begin * g.kernel[1] + taps_h.begin) * g.kernel[2] + taps_w.begin};
      // Lane i's place is that of the vector it was taken in, plus i; -1 while it has taken none.
      Best<acc_t> lanes{Vec<acc_t>(best.value), Best<acc_t>::as_lanes(-1)};
      for (int64_t kd = taps_d.begin; kd < taps_d.end; ++kd) {
        for (int64_t kh = taps_h.begin; kh < taps_h.end; ++kh) {
          const int64_t place = (kd * g.kernel[1] + kh) * g.kernel[2];
          const scalar_t* line = x + start + (kd * g.dilation[0] * g.in[1] + kh * g.dilation[1]) * g.in[2];
          int64_t kw = taps_w.begin;
          if (g.dilation[2] == 1) {
            for (; kw + W <= taps_w.end; kw += W) {
              lanes.offer(load_acc(line + kw), Best<acc_t>::as_lanes(place + kw));
            }
          }
          for (; kw < taps_w.end; ++kw) best.offer(static_cast<acc_t>(line[kw * g.dilation[2]]), place + kw);
        }
      }
      alignas(64) acc_t values[W];
      alignas(64) place_t places[W];
      lanes.value.store(values);
      lanes.place.store(places);
      for (int i = 0; i < W; ++i) {
        if (places[i] >= 0) best.merge(values[i], places[i] + i);
      }
      out.y[o] = static_cast<scalar_t>(best.value);
      if (out.offsets != nullptr) out.offsets[o] = static_cast<offset_t>(best.place);
      if (out.indices != nullptr) out.indices[o] = start + table.flat(best.place);
    }
  });
}

}  // namespace fastnn::FASTNN_BACKEND::pool
