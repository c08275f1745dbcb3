// The activations of ops/activation.h, of vectors.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../ops/activation_math.h"
#include "vec_convert.h"
#include "vec_math.h"

namespace fastnn::FASTNN_BACKEND {

// Lanes that are positive or NaN.
template <typename acc_t>
class PositiveLanes {
 public:
  using V = Vec<acc_t>;
  static constexpr int64_t W = kLanes<acc_t>;

  __attribute__((always_inline)) static PositiveLanes of(const V& z) {
    PositiveLanes lanes;
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (sizeof(acc_t) == 4) {
      lanes.mask_ = _mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_NLE_UQ);
    } else {
      lanes.mask_ = _mm512_cmp_pd_mask(z, _mm512_setzero_pd(), _CMP_NLE_UQ);
    }
#else
    lanes.others_ = z <= V(0);
#endif
    return lanes;
  }

  // Lane i is bit i.
  __attribute__((always_inline)) static PositiveLanes of_bits(uint32_t bits) {
    PositiveLanes lanes;
#if defined(CPU_CAPABILITY_AVX512)
    lanes.mask_ = static_cast<Mask>(bits);
#elif defined(CPU_CAPABILITY_AVX2)
    if constexpr (sizeof(acc_t) == 4) {
      const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
      const __m256i own = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
      lanes.others_ = _mm256_castsi256_ps(_mm256_cmpeq_epi32(own, _mm256_setzero_si256()));
    } else {
      const __m256i own = _mm256_and_si256(_mm256_set1_epi64x(bits), _mm256_setr_epi64x(1, 2, 4, 8));
      lanes.others_ = _mm256_castsi256_pd(_mm256_cmpeq_epi64(own, _mm256_setzero_si256()));
    }
#else
    acc_t values[W];
    for (int i = 0; i < W; ++i) values[i] = static_cast<acc_t>(bits >> i & 1);
    lanes.others_ = V::loadu(values) <= V(0);
#endif
    return lanes;
  }

  __attribute__((always_inline)) uint32_t bits() const {
#if defined(CPU_CAPABILITY_AVX512)
    return mask_;
#elif defined(CPU_CAPABILITY_AVX2)
    if constexpr (sizeof(acc_t) == 4) {
      return ~_mm256_movemask_ps(others_);
    } else {
      return ~_mm256_movemask_pd(others_);
    }
#else
    acc_t values[W];
    V::blendv(V(1), V(0), others_).store(values);
    uint32_t bits = 0;
    for (int i = 0; i < W; ++i) bits |= static_cast<uint32_t>(values[i]) << i;
    return bits;
#endif
  }

  // a in these lanes, b in the others.
  __attribute__((always_inline)) V select(const V& a, const V& b) const {
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (sizeof(acc_t) == 4) {
      return _mm512_mask_blend_ps(mask_, b, a);
    } else {
      return _mm512_mask_blend_pd(mask_, b, a);
    }
#else
    return V::blendv(a, b, others_);
#endif
  }

 private:
#if defined(CPU_CAPABILITY_AVX512)
  using Mask = std::conditional_t<sizeof(acc_t) == 4, __mmask16, __mmask8>;
  Mask mask_;
#else
  V others_;
#endif
};

template <typename acc_t>
struct ActivationMath : VectorMath<acc_t> {
  using V = Vec<acc_t>;
  static V exp(const V& x) { return exp_of_negative(x); }
  static V expm1(const V& x) { return x.expm1(); }
  static V log1p(const V& x) { return x.log1p(); }
  static V erf(const V& x) { return x.erf(); }
  static V if_positive(const V& x, const V& a, const V& b) { return PositiveLanes<acc_t>::of(x).select(a, b); }
};

// Activations that are more than a choice of factors. Not inlined: these would stand in every loop of every
// pass, and cost more than a call.
template <typename acc_t>
__attribute__((noinline)) Vec<acc_t> curved_value(Activation kind, acc_t alpha, const Vec<acc_t>& z) {
  return activation_value<ActivationMath<acc_t>>(kind, alpha, z);
}
template <typename acc_t>
__attribute__((noinline)) Vec<acc_t> curved_gradient_at(Activation kind, acc_t alpha,
                                                        const Vec<acc_t>& gradient, const Vec<acc_t>& z) {
  return activation_gradient_at<ActivationMath<acc_t>>(kind, alpha, gradient, z);
}

// gy where z is positive, else the slope there times it.
template <typename acc_t>
inline __attribute__((always_inline)) Vec<acc_t> rectified(const Vec<acc_t>& gy,
                                                           const PositiveLanes<acc_t>& positive, acc_t alpha) {
  return positive.select(gy, alpha == 0 ? Vec<acc_t>(0) : gy * Vec<acc_t>(alpha));
}

template <typename acc_t>
inline __attribute__((always_inline)) Vec<acc_t> activation_of(const Vec<acc_t>& z,
                                                               const PositiveLanes<acc_t>& positive,
                                                               Activation kind, acc_t alpha) {
  return kind == Activation::kRectify ? rectified(z, positive, alpha) : curved_value(kind, alpha, z);
}

}  // namespace fastnn::FASTNN_BACKEND
