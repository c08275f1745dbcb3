// Backward of max pooling along one dimension whose windows do not overlap, channels first: maxout's, and
// one-dimensional pooling's by its kernel. max_pool.cpp says when it is taken.
//
// Every position of grad_x has one window, or none behind the last: each is written once, and nothing is zeroed
// or added to before. Bound by memory: grad_y and a byte a window read, grad_x written.
#pragma once

#include <algorithm>
#include <type_traits>

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

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
inline constexpr bool kHasPermutations = true;

// For each lane of the K vectors that W windows of K positions fill: its window, and its place there.
template <typename acc_t>
class LanesAlong {
 public:
  static_assert(std::is_same_v<acc_t, float>);
  static constexpr int64_t W = kLanes<float>;

  explicit LanesAlong(int64_t K) {
    for (int64_t at = 0; at < K * W; ++at) {
      window_[at / W][at % W] = static_cast<int32_t>(at / K);
      place_[at / W][at % W] = static_cast<int32_t>(at % K);
    }
  }

  // W offsets of windows, as `chosen_values` takes them.
#if defined(CPU_CAPABILITY_AVX512)
  using Offsets = __m512i;
  static Offsets load(const uint8_t* offsets) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(offsets)));
  }
  // Vector k of the positions: a window's gradient, from 0 on, at the place that it chose.
  Vec<float> chosen_values(int64_t k, const Offsets& chosen, const Vec<float>& grad) const {
    const __m512i window = _mm512_load_si512(window_[k]);
    const __mmask16 here =
        _mm512_cmpeq_epi32_mask(_mm512_permutexvar_epi32(window, chosen), _mm512_load_si512(place_[k]));
    return _mm512_maskz_add_ps(here, _mm512_setzero_ps(), _mm512_permutexvar_ps(window, grad));
  }
#else
  using Offsets = __m256i;
  static Offsets load(const uint8_t* offsets) { return _mm256_cvtepu8_epi32(load_first_bytes(offsets, W)); }
  Vec<float> chosen_values(int64_t k, const Offsets& chosen, const Vec<float>& grad) const {
    const __m256i window = _mm256_load_si256(reinterpret_cast<const __m256i*>(window_[k]));
    const __m256i place = _mm256_load_si256(reinterpret_cast<const __m256i*>(place_[k]));
    const __m256i here = _mm256_cmpeq_epi32(_mm256_permutevar8x32_epi32(chosen, window), place);
    return _mm256_add_ps(_mm256_setzero_ps(),
                         _mm256_and_ps(_mm256_castsi256_ps(here), _mm256_permutevar8x32_ps(grad, window)));
  }
#endif

 private:
  alignas(64) int32_t window_[kMostAlong][W], place_[kMostAlong][W];
};
#else
inline constexpr bool kHasPermutations = false;
template <typename acc_t>
struct LanesAlong {
  explicit LanesAlong(int64_t) {}
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

  using Lanes = LanesAlong<acc_t>;
  const Lanes lanes(K);
  const bool stream = kHasPermutations && streams_lines(grad_x, all_rows * g.in[2]) && dense;
  // Windows [first, last) from `at` on; their positions from `to` on.
  const auto put = [&](int64_t at, scalar_t* to, int64_t first, int64_t last) {
    int64_t i = first;
    if constexpr (kHasPermutations) {
      constexpr int64_t W = Lanes::W;
      for (; i + W <= last; i += W) {
        const Vec<float> grad = load_acc(grad_y + at + i);
        const auto chosen = Lanes::load(offsets + at + i);
        for (int64_t k = 0; k < K; ++k) {
          const Vec<float> values = lanes.chosen_values(k, chosen, grad);
          if (stream) {
            store_stream(to + i * K + k * W, values);
          } else {
            store_acc(to + i * K + k * W, values);
          }
        }
      }
    }
    for (; i < last; ++i) {
      // A sum from 0 on, as of windows that overlap: -0 becomes 0.
      const auto value = static_cast<scalar_t>(acc_t(0) + static_cast<acc_t>(grad_y[at + i]));
      for (int64_t k = 0; k < K; ++k) to[i * K + k] = offsets[at + i] == k ? value : scalar_t(0);
    }
  };
  if (dense) {
    // Whole vectors of windows a task.
    constexpr int64_t kUnit = 64;
    parallel_for(ceil_div(windows, kUnit), grain(kUnit * K), [&](int64_t begin, int64_t end) {
      put(0, grad_x, begin * kUnit, std::min(windows, end * kUnit));
      if (stream) end_stream();
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
