// The first lanes of a vector, in memory that ends with them (AVX2): loads, stores, choice, sum.
//
// A scalar loop for what is left of a run, as torch's vectors have it, takes longer than the run itself where
// planes are of 7 x 7 or 14 x 14. Stores go by halves: a masked store takes an AMD processor a dozen cycles.
#pragma once

#if defined(CPU_CAPABILITY_AVX2)

#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <cstring>

namespace fastnn::FASTNN_BACKEND {

// All bits of the first `count` of 8 lanes of 32 bits, 0 <= count <= 8.
inline __m256i first_of_8(int64_t count) {
  alignas(64) static constexpr int32_t kOnesThenZeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kOnesThenZeros + 8 - count));
}
inline __m256i first_of_4(int64_t count) { return first_of_8(2 * count); }

inline at::vec::Vectorized<float> load_first(const float* p, int64_t count) {
  return _mm256_maskload_ps(p, first_of_8(count));
}
inline at::vec::Vectorized<double> load_first(const double* p, int64_t count) {
  return _mm256_maskload_pd(p, first_of_4(count));
}

// `count` <= 8 bytes.
inline __m128i load_first_bytes(const uint8_t* p, int64_t count) {
  if (count == 8) return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  uint32_t four = 0;
  uint16_t two = 0;
  uint64_t bytes = 0;
  if (count & 1) bytes = p[count - 1];
  if (count & 2) {
    std::memcpy(&two, p + (count & 4), sizeof(two));
    bytes = bytes << 16 | two;
  }
  if (count & 4) {
    std::memcpy(&four, p, sizeof(four));
    bytes = bytes << 32 | four;
  }
  return _mm_cvtsi64_si128(static_cast<int64_t>(bytes));
}
inline void store_first_bytes(uint8_t* p, __m128i v, int64_t count) {
  if (count == 8) return _mm_storel_epi64(reinterpret_cast<__m128i*>(p), v);
  auto bytes = static_cast<uint64_t>(_mm_cvtsi128_si64(v));
  if (count & 4) {
    std::memcpy(p, &bytes, 4);
    bytes >>= 32;
    p += 4;
  }
  if (count & 2) {
    std::memcpy(p, &bytes, 2);
    bytes >>= 16;
    p += 2;
  }
  if (count & 1) *p = static_cast<uint8_t>(bytes);
}

// `count` < 8 numbers of 16 bits.
inline __m128i load_first_halves(const void* halves, int64_t count) {
  const auto* const p = static_cast<const uint8_t*>(halves);
  if (count < 4) return load_first_bytes(p, 2 * count);
  return _mm_unpacklo_epi64(load_first_bytes(p, 8), load_first_bytes(p + 8, 2 * count - 8));
}
inline void store_first_halves(void* halves, __m128i v, int64_t count) {
  auto* p = static_cast<uint8_t*>(halves);
  if (count >= 4) {
    store_first_bytes(p, v, 8);
    v = _mm_srli_si128(v, 8);
    p += 8;
    count -= 4;
  }
  store_first_bytes(p, v, 2 * count);
}

// `count` below the number of lanes.
inline void store_first(float* p, const at::vec::Vectorized<float>& v, int64_t count) {
  __m128 part = _mm256_castps256_ps128(v);
  if (count & 4) {
    _mm_storeu_ps(p, part);
    part = _mm256_extractf128_ps(v, 1);
    p += 4;
  }
  if (count & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
    part = _mm_movehl_ps(part, part);
    p += 2;
  }
  if (count & 1) _mm_store_ss(p, part);
}
inline void store_first(double* p, const at::vec::Vectorized<double>& v, int64_t count) {
  __m128d part = _mm256_castpd256_pd128(v);
  if (count & 2) {
    _mm_storeu_pd(p, part);
    part = _mm256_extractf128_pd(v, 1);
    p += 2;
  }
  if (count & 1) _mm_store_sd(p, part);
}

inline at::vec::Vectorized<float> choose_first(const at::vec::Vectorized<float>& v, int64_t count) {
  return _mm256_and_ps(v, _mm256_castsi256_ps(first_of_8(count)));
}
inline at::vec::Vectorized<double> choose_first(const at::vec::Vectorized<double>& v, int64_t count) {
  return _mm256_and_pd(v, _mm256_castsi256_pd(first_of_4(count)));
}

inline float sum_of_lanes(const at::vec::Vectorized<float>& v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline double sum_of_lanes(const at::vec::Vectorized<double>& v) {
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

}  // namespace fastnn::FASTNN_BACKEND

#endif
