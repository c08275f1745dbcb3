// Running maxima of 16 float32 lanes whose places are bytes, where comparisons give masks of lanes (AVX-512).
#pragma once

#if defined(CPU_CAPABILITY_AVX512)

#include <algorithm>
#include <cstdint>
#include <limits>

#include "masked_lanes.h"
#include "max_pool_vectors.h"

namespace fastnn::FASTNN_BACKEND::pool {

// Plain arrays of vectors are passed around: as an argument of a template __m128i loses its attributes.
using ByteVector = __m128i;

// The lanes of `lanes` from p on, -inf in the others, which are not read.
template <typename scalar_t>
inline __m512 load_or_lowest(const scalar_t* p, __mmask16 lanes) {
  const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  if constexpr (std::is_same_v<scalar_t, float>) {
    return _mm512_mask_loadu_ps(lowest, lanes, p);
  } else {
    return _mm512_mask_mov_ps(lowest, lanes, load_lanes(p, lanes));
  }
}

// 16 maxima and their places.
struct ByteBest {
  __m512 value;
  __m128i place;
};

// The maxima of kCount values, offered in the order of their places; of equals the first stays, of NaN the
// last.
//
// A number that is no NaN takes three instructions a step, and the maximum itself one of them: a chain of 8
// steps is 16 cycles long. Whether one of the values is NaN, a sum of all of them tells; then, or where
// infinities cancel each other, the exact rule takes two more a step.
template <bool kTrack, int kCount>
inline __attribute__((always_inline)) ByteBest best_of(const __m512 (&values)[kCount],
                                                       const ByteVector (&places)[kCount]) {
  ByteBest best{values[0], places[0]};
  __m512 sum = values[0];
#pragma GCC unroll 9
  for (int i = 1; i < kCount; ++i) {
    sum = _mm512_add_ps(sum, values[i]);
    if constexpr (kTrack) {
      const __mmask16 take = _mm512_cmp_ps_mask(values[i], best.value, _CMP_GT_OQ);
      best.place = _mm_mask_mov_epi8(best.place, take, places[i]);
    }
    // Of two zeros, the second operand.
    best.value = _mm512_max_ps(values[i], best.value);
  }
  if (__builtin_expect(_mm512_cmp_ps_mask(sum, sum, _CMP_UNORD_Q) != 0, 0)) {
    best = {values[0], places[0]};
    for (int i = 1; i < kCount; ++i) {
      const __mmask16 take = _mm512_cmp_ps_mask(values[i], best.value, _CMP_GT_OQ) |
                             _mm512_cmp_ps_mask(values[i], values[i], _CMP_UNORD_Q);
      best.value = _mm512_mask_mov_ps(best.value, take, values[i]);
      best.place = _mm_mask_mov_epi8(best.place, take, places[i]);
    }
  }
  return best;
}

// Stores the first `count` lanes, or all.
template <bool kTrack, typename scalar_t>
inline void store_best(scalar_t* y, uint8_t* offsets, const ByteBest& best, int64_t count) {
  if (count >= 16) {
    store_acc(y, Vec<float>(best.value));
    if constexpr (kTrack) _mm_storeu_si128(reinterpret_cast<__m128i*>(offsets), best.place);
  } else {
    store_acc(y, Vec<float>(best.value), count);
    if constexpr (kTrack) _mm_mask_storeu_epi8(offsets, first_lanes(count), best.place);
  }
}

}  // namespace fastnn::FASTNN_BACKEND::pool

#endif
