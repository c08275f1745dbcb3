// Vectors of 16 float32 lanes of which a mask says which are there (AVX-512).
#pragma once

#if defined(CPU_CAPABILITY_AVX512)

#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace fastnn::FASTNN_BACKEND {

inline constexpr __mmask16 kAllLanes = 0xffff;

// The first `count` of 16 lanes: none if it is negative, all from 16 on.
inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << std::max<int64_t>(0, count)) - 1);
}

// The lanes of `lanes` from p on, widened; 0 in the others, which are not read.
template <typename scalar_t>
inline __m512 load_lanes(const scalar_t* p, __mmask16 lanes) {
  if constexpr (std::is_same_v<scalar_t, float>) {
    return _mm512_maskz_loadu_ps(lanes, p);
  } else {
    const __m256i packed = _mm256_maskz_loadu_epi16(lanes, p);
    __m512 v;
    if constexpr (std::is_same_v<scalar_t, c10::BFloat16>) {
      at::vec::cvtbf16_fp32(packed, v);
    } else {
      at::vec::cvtfp16_fp32(packed, v);
    }
    return v;
  }
}

// Lane i becomes v[i - 1], lane 0 the last one of `first`; 0 outside of `lanes`.
inline __m512 shift_in_first(__m512 v, __m512 first, __mmask16 lanes = kAllLanes) {
  return _mm512_castsi512_ps(
      _mm512_maskz_alignr_epi32(lanes, _mm512_castps_si512(v), _mm512_castps_si512(first), 15));
}

// Lane i becomes v[i + 1], lane 15 the first one of `last`; 0 outside of `lanes`.
inline __m512 shift_in_last(__m512 v, __m512 last, __mmask16 lanes = kAllLanes) {
  return _mm512_castsi512_ps(
      _mm512_maskz_alignr_epi32(lanes, _mm512_castps_si512(last), _mm512_castps_si512(v), 1));
}

}  // namespace fastnn::FASTNN_BACKEND

#endif
