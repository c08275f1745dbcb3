// Forward of max pooling; max_pool.cpp says when each variant is taken.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "cache_hints.h"
#include "max_pool_bytes.h"
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

// Channels that are taken at a time: what stands for places outside of x has as many.
inline constexpr int64_t kForwardChannels = 512;

// A thread owns output positions, a vector W channels of one position, whose window has kTaps places. Those
// outside of x are -inf, and so never taken from the first one inside.
template <typename scalar_t, bool kTrack, int kTaps>
void max_pool_forward_channels_last(const MaxPoolForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using B = Best<acc_t>;
  const PoolGeometry& g = p.geometry;
  const DisplacementTable table(g);
  const ForwardOutputs<scalar_t, uint8_t> out(p);
  const int64_t C = g.C, row_work = g.out[2] * C * kTaps;
  int64_t taps[kTaps];
  for (int t = 0; t < kTaps; ++t) taps[t] = table.flat(t) * C;

  parallel_for(g.N * g.out[0] * g.out[1], grain(row_work), [&](int64_t begin, int64_t end) {
    scalar_t outside[kForwardChannels];
    std::fill(outside, outside + kForwardChannels,
              static_cast<scalar_t>(-std::numeric_limits<float>::infinity()));
    FetchAhead inputs, outputs;
    for (int64_t r = begin; r < end; ++r) {
      const OutputRow row(g, r);
      const scalar_t* const x = static_cast<const scalar_t*>(p.x) + row.plane * volume(g.in) * C;
      const Range taps_d = valid_taps(g, 0, row.d), taps_h = valid_taps(g, 1, row.h);
      // The rows of x that this row sees, and those that the next one sees besides.
      const scalar_t* const rows_end = x + (window_start(g, row.d, row.h, 0) + g.pad[2] +
                                            (taps_h.end - 1) * g.dilation[1] * g.in[2] + g.in[2]) *
                                               C;
      inputs.plan(rows_end - taps_h.size() * g.in[2] * C, rows_end, rows_end + g.stride[1] * g.in[2] * C,
                  g.out[2]);
      scalar_t* const y = out.y + r * g.out[2] * C;
      outputs.plan(y, y + g.out[2] * C, y + 2 * g.out[2] * C, g.out[2]);
      for (int64_t ow = 0; ow < g.out[2]; ++ow) {
        inputs.next();
        outputs.next();
        const Range taps_w = valid_taps(g, 2, ow);
        const int64_t start = window_start(g, row.d, row.h, ow);
        const int64_t first = (taps_d.begin * g.kernel[1] + taps_h.begin) * g.kernel[2] + taps_w.begin;
        const bool inside = taps_d.size() * taps_h.size() * taps_w.size() == kTaps;
        for (int64_t from = 0; from < C; from += kForwardChannels) {
          const scalar_t* at[kTaps];
          for (int t = 0; t < kTaps; ++t) at[t] = x + start * C + taps[t] + from;
          if (!inside) {
            int t = 0;
            for (int64_t kd = 0; kd < g.kernel[0]; ++kd) {
              for (int64_t kh = 0; kh < g.kernel[1]; ++kh) {
                const bool line =
                    kd >= taps_d.begin && kd < taps_d.end && kh >= taps_h.begin && kh < taps_h.end;
                for (int64_t kw = 0; kw < g.kernel[2]; ++kw, ++t) {
                  if (!line || kw < taps_w.begin || kw >= taps_w.end) at[t] = outside;
                }
              }
            }
          }
          const int64_t to = (r * g.out[2] + ow) * C + from;
          for_each_vector<acc_t>(0, std::min(kForwardChannels, C - from),
                                 [&](int64_t c, int64_t count) __attribute__((always_inline)) {
#if defined(CPU_CAPABILITY_AVX512)
                                   if (out.indices == nullptr) {
                                     __m512 values[kTaps];
                                     ByteVector places[kTaps];
#pragma GCC unroll 9
                                     for (int t = 0; t < kTaps; ++t) {
                                       values[t] = load_acc(at[t] + c, count);
                                       places[t] = _mm_set1_epi8(static_cast<char>(t == 0 ? first : t));
                                     }
                                     store_best<kTrack>(out.y + to + c, out.offsets + to + c,
                                                        best_of<kTrack, kTaps>(values, places), count);
                                     return;
                                   }
#endif
                                   B best{load_acc(at[0] + c, count), B::as_lanes(first)};
#pragma GCC unroll 9
                                   for (int t = 1; t < kTaps; ++t)
                                     best.offer(load_acc(at[t] + c, count), B::as_lanes(t));
                                   out.template store<kTrack>(to + c, best, count, table, start, 0);
                                 });
        }
      }
    }
  });
}

// The same for windows of any size.
template <typename scalar_t, typename offset_t, bool kTrack>
void max_pool_forward_channels_last_any(const MaxPoolForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using B = Best<acc_t>;
  const PoolGeometry& g = p.geometry;
  const DisplacementTable table(g);
  const ForwardOutputs<scalar_t, offset_t> out(p);
  const int64_t row_work = g.out[2] * g.C * volume(g.kernel);

  parallel_for(g.N * g.out[0] * g.out[1], grain(row_work), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const OutputRow row(g, r);
      const scalar_t* x = static_cast<const scalar_t*>(p.x) + row.plane * volume(g.in) * g.C;
      const Range taps_d = valid_taps(g, 0, row.d), taps_h = valid_taps(g, 1, row.h);
      for (int64_t ow = 0; ow < g.out[2]; ++ow) {
        const Range taps_w = valid_taps(g, 2, ow);
        const int64_t start = window_start(g, row.d, row.h, ow);
        const int64_t at = (r * g.out[2] + ow) * g.C;
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
