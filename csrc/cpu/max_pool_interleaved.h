// Forward of max pooling, channels first, with W small planes side by side.
//
// Rows of a few outputs leave most lanes of a vector along them empty, and their loops cost more than their
// work. Here a thread takes W planes, turns them in blocks of W x W so that a vector holds one position of each
// plane, and then every tap of any window is a plain load, every border a shorter loop. Turning costs log2(W)
// permutations a vector, of inputs and of outputs.
#pragma once

#include <algorithm>
#include <limits>

#include "max_pool_forward.h"

namespace fastnn::FASTNN_BACKEND::pool {

// What W turned planes may take of L2, and of a thread's stack.
inline constexpr int64_t kInterleavedBytes = 64 * 1024;

// Whether W planes fit, and there are planes enough to fill vectors.
template <typename acc_t>
bool fits_interleaved(const PoolGeometry& g) {
  constexpr int64_t W = kLanes<acc_t>;
  const int64_t padded = ceil_div(volume(g.in), W) * W;
  return 2 * g.N * g.C >= W && padded * W * static_cast<int64_t>(sizeof(acc_t)) <= kInterleavedBytes;
}

// Fetches what the next W planes are made of and made in. A block takes a short piece of each plane, an order
// that the processor's own prefetching does not follow: without this half of the time is spent waiting.
template <typename T>
inline void prefetch_planes(const T* x, int64_t inputs, const T* y, int64_t outputs) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < inputs; i += kLine) __builtin_prefetch(x + i, 0, 2);
  for (int64_t i = 0; i < outputs; i += kLine) __builtin_prefetch(y + i, 1, 2);
}

// kKernel > 0: square windows of that size without depth, whose taps are unrolled where they lie inside x.
template <typename scalar_t, typename offset_t, int kKernel>
void max_pool_forward_interleaved(const MaxPoolForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  using B = Best<acc_t>;
  constexpr int64_t W = kLanes<acc_t>;
  const PoolGeometry& g = p.geometry;
  const DisplacementTable table(g);
  const ForwardOutputs<scalar_t, offset_t> out(p);
  const int64_t planes = g.N * g.C, in = volume(g.in), outputs = volume(g.out);
  int64_t taps[std::max(kKernel * kKernel, 1)];
  for (int t = 0; t < kKernel * kKernel; ++t) taps[t] = table.flat(t) * W;

  parallel_for(
      ceil_div(planes, W), grain(W * (in + outputs * volume(g.kernel))), [&](int64_t begin, int64_t end) {
        alignas(64) acc_t x[kInterleavedBytes / sizeof(acc_t)];
        alignas(64) acc_t values[W * W], places[W * W];  // of W outputs of each plane
        int64_t starts[W];                               // of their windows
        for (int64_t group = begin; group < end; ++group) {
          const int64_t plane = group * W, lanes = std::min(W, planes - plane);
          const scalar_t* from = static_cast<const scalar_t*>(p.x) + plane * in;
          const int64_t next = std::min(W, planes - plane - lanes);
          prefetch_planes<scalar_t>(from + W * in, next * in, out.y + (plane + W) * outputs, next * outputs);
          interleave_planes<acc_t>(lanes, in, x,
                                   [&](int64_t lane, int64_t i, int64_t count) __attribute__((always_inline)) {
                                     return load_acc(from + lane * in + i, count);
                                   });
          int64_t done = 0, pending = 0;
          const auto flush = [&]() __attribute__((noinline)) {
            const int64_t to = plane * outputs + done;
            store_planes<acc_t>(lanes, values, [&](int64_t lane, const V& v) __attribute__((always_inline)) {
              store_acc(out.y + to + lane * outputs, v, pending);
            });
            if (out.offsets != nullptr) {
              store_planes<acc_t>(lanes, places, [&](int64_t lane, const V& v) __attribute__((always_inline)) {
                store_offsets<acc_t>(out.offsets + to + lane * outputs, v, pending);
              });
            }
            for (int64_t lane = 0; out.indices != nullptr && lane < lanes; ++lane) {
              for (int64_t i = 0; i < pending; ++i) {
                const auto place = std::bit_cast<typename B::place_t>(places[i * W + lane]);
                out.indices[to + lane * outputs + i] = starts[i] + table.flat(place);
              }
            }
            done += pending;
            pending = 0;
          };
          for (int64_t od = 0; od < g.out[0]; ++od) {
            const Range taps_d = valid_taps(g, 0, od);
            for (int64_t oh = 0; oh < g.out[1]; ++oh) {
              const Range taps_h = valid_taps(g, 1, oh);
              const bool rows_inside = taps_h.size() == g.kernel[1];
              for (int64_t ow = 0; ow < g.out[2]; ++ow) {
                const Range taps_w = valid_taps(g, 2, ow);
                const int64_t start = window_start(g, od, oh, ow);
                B best;
                if (kKernel > 0 && rows_inside && taps_w.size() == g.kernel[2]) {
                  const acc_t* window = x + start * W;
                  best = {V::loadu(window), B::as_lanes(0)};
#pragma GCC unroll 8
                  for (int t = 1; t < kKernel * kKernel; ++t)
                    best.offer(V::loadu(window + taps[t]), B::as_lanes(t));
                } else {
                  best = {
                      V(-std::numeric_limits<acc_t>::infinity()),
                      B::as_lanes((taps_d.begin * g.kernel[1] + taps_h.begin) * g.kernel[2] + taps_w.begin)};
                  for (int64_t kd = taps_d.begin; kd < taps_d.end; ++kd) {
                    for (int64_t kh = taps_h.begin; kh < taps_h.end; ++kh) {
                      const int64_t place = (kd * g.kernel[1] + kh) * g.kernel[2];
                      const int64_t line =
                          start + (kd * g.dilation[0] * g.in[1] + kh * g.dilation[1]) * g.in[2];
                      for (int64_t kw = taps_w.begin; kw < taps_w.end; ++kw) {
                        best.offer(V::loadu(x + (line + kw * g.dilation[2]) * W), B::as_lanes(place + kw));
                      }
                    }
                  }
                }
                best.value.store(values + pending * W);
                best.place.store(places + pending * W);
                starts[pending] = start;
                if (++pending == W) flush();
              }
            }
          }
          if (pending > 0) flush();
        }
      });
}

}  // namespace fastnn::FASTNN_BACKEND::pool
