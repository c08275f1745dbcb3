// Backward of max pooling along one dimension whose windows do not overlap, channels first: maxout's, and
// one-dimensional pooling's by its kernel. max_pool.cpp says when it is taken.
//
// Every position of grad_x has one window, or none behind the last: each is written once, and nothing is zeroed
// or added to before. Bound by memory: grad_y and a byte a window read, grad_x written.
#pragma once

#include <algorithm>

#include "cache_hints.h"
#include "max_pool_vectors.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND::pool {

// Whether windows are side by side in dimension d, and one position high in the other two.
inline bool is_disjoint(const PoolGeometry& g, int d) {
  for (int other = 0; other < kSpatialDims; ++other) {
    const bool along = other == d;
    if (g.pad[other] != 0 || g.stride[other] != g.kernel[other] || (!along && g.kernel[other] != 1))
      return false;
  }
  return g.dilation[d] == 1 && g.in[d] >= g.out[d] * g.kernel[d];
}

// ---- down the columns ----

// The K positions of W neighbouring windows are K vectors, in K rows.
template <typename scalar_t>
void max_pool_backward_columns(const MaxPoolBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  const PoolGeometry& g = p.geometry;
  const int64_t K = g.kernel[1], width = g.in[2];
  const bool stream =
      streams_lines(static_cast<scalar_t*>(p.grad_x), g.N * g.C * volume(g.in)) && width % kLanes<acc_t> == 0;

  parallel_for(g.N * g.C * g.in[0] * g.out[1], grain(K * width), [&](int64_t begin, int64_t end) {
    OutputRow row(g, begin);
    for (int64_t r = begin; r < end; ++r, row.next(g)) {
      const scalar_t* const grad_y = static_cast<const scalar_t*>(p.grad_y) + r * width;
      const uint8_t* const offsets = static_cast<const uint8_t*>(p.offsets) + r * width;
      scalar_t* const grad_x =
          static_cast<scalar_t*>(p.grad_x) + ((row.plane * g.in[0] + row.d) * g.in[1] + row.h * K) * width;
      for_each_vector<acc_t>(0, width, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
        const V grad = load_acc(grad_y + i, count);
        for (int64_t k = 0; k < K; ++k) {
          const V chosen = add_where_chosen<acc_t>(V(0), offsets + i, count, k, grad);
          if (stream) {
            store_stream(grad_x + k * width + i, chosen);
          } else {
            store_acc(grad_x + k * width + i, chosen, count);
          }
        }
      });
      if (row.h == g.out[1] - 1) {
        std::fill(grad_x + K * width, grad_x + (g.in[1] - row.h * K) * width, scalar_t(0));
      }
    }
    if (stream) end_stream();
  });
}

// ---- along the rows ----

// Larger windows have few outputs for what they write.
inline constexpr int64_t kMostAlong = 16;

#if defined(CPU_CAPABILITY_AVX512)
// For each lane of the K vectors that W windows of K positions fill: its window, and its place there.
struct WindowLanesAlong {
  alignas(64) int32_t window[kMostAlong][16], place[kMostAlong][16];

  explicit WindowLanesAlong(int64_t K) {
    for (int64_t at = 0; at < K * 16; ++at) {
      window[at / 16][at % 16] = static_cast<int32_t>(at / K);
      place[at / 16][at % 16] = static_cast<int32_t>(at % K);
    }
  }
};
#endif

// The positions of W windows are K vectors in a row, to which gradients and places are brought by a permutation
// each.
template <typename scalar_t>
void max_pool_backward_along(const MaxPoolBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const PoolGeometry& g = p.geometry;
  const int64_t K = g.kernel[2];
  // Rows without a rest behind their last window are one long row.
  const bool dense = g.in[2] == g.out[2] * K;
  const int64_t all_rows = g.N * g.C * g.in[0] * g.in[1];
  const int64_t windows = dense ? all_rows * g.out[2] : g.out[2];
  const int64_t width = dense ? all_rows * g.in[2] : g.in[2];
  const scalar_t* const grad_y = static_cast<const scalar_t*>(p.grad_y);
  const uint8_t* const offsets = static_cast<const uint8_t*>(p.offsets);
  scalar_t* const grad_x = static_cast<scalar_t*>(p.grad_x);

#if defined(CPU_CAPABILITY_AVX512)
  const WindowLanesAlong lanes(K);
  const bool stream = streams_lines(grad_x, all_rows * g.in[2]) && dense;
#endif
  // Windows [first, last) from `at` on; their positions from `to` on.
  const auto put = [&](int64_t at, scalar_t* to, int64_t first, int64_t last) {
    int64_t i = first;
#if defined(CPU_CAPABILITY_AVX512)
    constexpr int64_t W = 16;
    for (; i + W <= last; i += W) {
      const __m512 grad = load_acc(grad_y + at + i);
      const __m512i chosen =
          _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(offsets + at + i)));
      for (int64_t k = 0; k < K; ++k) {
        const __m512i window = _mm512_load_si512(lanes.window[k]);
        const __mmask16 here = _mm512_cmpeq_epi32_mask(_mm512_permutexvar_epi32(window, chosen),
                                                       _mm512_load_si512(lanes.place[k]));
        const __m512 zero = _mm512_setzero_ps();
        const Vec<float> values = _mm512_maskz_add_ps(here, zero, _mm512_permutexvar_ps(window, grad));
        if (stream) {
          store_stream(to + i * K + k * W, values);
        } else {
          store_acc(to + i * K + k * W, values);
        }
      }
    }
#endif
    for (; i < last; ++i) {
      // A sum from 0 on, as of windows that overlap: -0 becomes 0.
      const auto value = static_cast<scalar_t>(acc_t(0) + static_cast<acc_t>(grad_y[at + i]));
      for (int64_t k = 0; k < K; ++k) to[i * K + k] = offsets[at + i] == k ? value : scalar_t(0);
    }
  };
  const auto finish = [&] {
#if defined(CPU_CAPABILITY_AVX512)
    if (stream) end_stream();
#endif
  };
  if (dense) {
    // Whole vectors of windows a task.
    constexpr int64_t kUnit = 64;
    parallel_for(ceil_div(windows, kUnit), grain(kUnit * K), [&](int64_t begin, int64_t end) {
      put(0, grad_x, begin * kUnit, std::min(windows, end * kUnit));
      finish();
    });
    return;
  }
  parallel_for(all_rows, grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      put(r * windows, grad_x + r * width, 0, windows);
      std::fill(grad_x + r * width + windows * K, grad_x + (r + 1) * width, scalar_t(0));
    }
  });
}

}  // namespace fastnn::FASTNN_BACKEND::pool
