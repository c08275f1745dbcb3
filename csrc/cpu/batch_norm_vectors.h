// What batch normalisation needs of vectors beyond vec_convert.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cache_hints.h"
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

}  // namespace fastnn::FASTNN_BACKEND::bn
