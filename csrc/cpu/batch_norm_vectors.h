// What batch normalisation needs of vectors beyond vec_convert.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND::bn {

// v in the first `count` lanes, 0 behind them.
template <typename acc_t>
inline Vec<acc_t> first_lanes(const Vec<acc_t>& v, int64_t count) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(acc_t) == 4) {
    return _mm512_maskz_mov_ps(static_cast<__mmask16>((1u << count) - 1), v);
  } else {
    return _mm512_maskz_mov_pd(static_cast<__mmask8>((1u << count) - 1), v);
  }
#else
  alignas(64) acc_t lanes[kLanes<acc_t>];
  v.store(lanes);
  std::fill(lanes + count, lanes + kLanes<acc_t>, acc_t(0));
  return Vec<acc_t>::loadu(lanes);
#endif
}

// Sum of the lanes, by halves: a few shuffles where sum_lanes() waits for one addition after the other.
template <typename acc_t>
inline acc_t sum_halves(const Vec<acc_t>& v) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(acc_t) == 4) {
    return _mm512_reduce_add_ps(v);
  } else {
    return _mm512_reduce_add_pd(v);
  }
#else
  alignas(64) acc_t lanes[kLanes<acc_t>];
  v.store(lanes);
  for (int half = kLanes<acc_t> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
#endif
}

// Whether store_around_cache() does what its name says, for p and all that lies whole vectors further.
template <typename scalar_t>
inline bool can_store_around_cache(const scalar_t* p) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  return reinterpret_cast<uintptr_t>(p) % (kLanes<acc_type<scalar_t>> * sizeof(scalar_t)) == 0;
#else
  return false;
#endif
}

// Stores to aligned memory that the cache neither holds nor is to hold: the line is not read first.
template <typename scalar_t>
inline void store_around_cache(scalar_t* p, const Vec<acc_type<scalar_t>>& v) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<scalar_t, float>) {
    _mm512_stream_ps(p, v);
  } else if constexpr (std::is_same_v<scalar_t, double>) {
    _mm512_stream_pd(p, v);
  } else {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), pack_halves<scalar_t>(v));
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<scalar_t, float>) {
    _mm256_stream_ps(p, v);
  } else if constexpr (std::is_same_v<scalar_t, double>) {
    _mm256_stream_pd(p, v);
  } else {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), pack_halves<scalar_t>(v));
  }
#else
  store_acc(p, v);
#endif
}

// Before another thread is told of what store_around_cache() stored.
inline void publish_stores() {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  _mm_sfence();
#endif
}

}  // namespace fastnn::FASTNN_BACKEND::bn
