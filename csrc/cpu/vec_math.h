// Functions of vectors that are faster than the library's, or more accurate.
#pragma once

#include <type_traits>

#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {

#if defined(CPU_CAPABILITY_AVX512)
// v * 2^n for whole n, rounded once where the result is subnormal.
inline Vec<float> times_power_of_two(const Vec<float>& v, const Vec<float>& n) {
  return _mm512_scalef_ps(v, n);
}
#elif defined(CPU_CAPABILITY_AVX2)
// v * 2^n for whole n of [-252, 0]: by two powers, since one alone may have no exponent.
inline Vec<float> times_power_of_two(const Vec<float>& v, const Vec<float>& n) {
  const auto power = [](const __m256i& e) {
    return Vec<float>(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23)));
  };
  const __m256i all = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(all, 1);
  return v * power(half) * power(_mm256_sub_epi32(all, half));
}
#endif

// exp(x) for x <= 0. In float with vectors of the processor it is written out, so that several run side by
// side, which calls of the library's do not: 2^n e^r with n the nearest integer to x / ln 2 and e^r by a
// minimax polynomial on |r| <= ln 2 / 2 (Remez; relative error 3e-9 before rounding, 1 ulp in all). Results
// below 2^-149 are 0; NaN stays NaN.
template <typename V>
V exp_of_negative(const V& x) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<typename V::value_type, float>) {
    const V bounded = V::blendv(x, V(-110.0f), x < V(-110.0f));
    const V n = (bounded * V(1.44269504f)).round();
    // ln 2 in two parts, of which the first has few digits: n times it is exact.
    const V r = at::vec::fmadd(n, V(-1.42860677e-6f), at::vec::fmadd(n, V(-0.693145752f), bounded));
    V p(1.381459879e-3f);
    for (const float c : {8.368716575e-3f, 4.166838899e-2f, 1.666652113e-1f, 4.999999404e-1f, 1.0f, 1.0f})
      p = at::vec::fmadd(p, r, V(c));
    return times_power_of_two(p, n);
  }
#endif
  return x.exp();
}

// 1 / (1 + exp(-x)), with the exponential of a number that is never positive: it cannot overflow, and small
// results keep their digits.
template <typename V>
V sigmoid(const V& x) {
  const V one(1);
  const V e = exp_of_negative(x.abs().neg());
  return V::blendv(one, e, x < V(0)) / (one + e);
}

// tanh(x). In double it is the library's; in float that costs three times as much as this, which is 1 - 2 e /
// (1 + e) with e = exp(-2 |x|), or near 0, where digits would cancel, x + x^3 P(x^2) with the minimax
// polynomial of relative error on |x| < 0.625 (Remez; 4e-9 before rounding).
template <typename V>
V hyperbolic_tangent(const V& x) {
  if constexpr (std::is_same_v<typename V::value_type, double>) {
    return x.tanh();
  } else {
    const V one(1), size = x.abs(), square = x * x;
    const V e = exp_of_negative(size * V(-2));
    const V far = one - (e + e) / (one + e);
    V p(-5.717041902e-3f);
    for (const float c : {2.065058425e-2f, -5.374349654e-2f, 1.333149076e-1f, -3.333328366e-1f}) {
      p = at::vec::fmadd(p, square, V(c));
    }
    const V near = at::vec::fmadd(p * square, x, x);
    return V::blendv(V::blendv(far, far.neg(), x < V(0)), near, size < V(0.625f));
  }
}

// How the formulas of ops/recurrent_cell_math.h and ops/activation_math.h compute with vectors: their policy M.
template <typename acc_t>
struct VectorMath {
  using Number = Vec<acc_t>;
  static Number number(double value) { return Number(static_cast<acc_t>(value)); }
  static Number sigmoid(const Number& x) { return FASTNN_BACKEND::sigmoid(x); }
  static Number tanh(const Number& x) { return hyperbolic_tangent(x); }
  static Number softsign(const Number& x) { return x / (Number(1) + x.abs()); }
  static Number abs(const Number& x) { return x.abs(); }
  static Number clamp(const Number& x, float low, float high) {
    return at::vec::clamp(x, Number(low), Number(high));
  }
  static Number within(const Number& x, float low, float high) {
    return (x > Number(low)) & (x < Number(high)) & Number(1);
  }
  static Number above(const Number& x, float low) { return Number(1) - ((x <= Number(low)) & Number(1)); }
};

}  // namespace fastnn::FASTNN_BACKEND
