// CUDA's functions of the 16-bit types and of pairs of them, by CUDA's names (cuda_fp16.h, cuda_bf16.h). Each
// result is the exact one rounded once to nearest even, or in the direction that the name says; subnormals are
// kept, every NaN is 0x7FFF, signs of zeros are IEEE's.
//
// A sum or product of halves is not always what nvcc makes of it: as with floats, a product and a sum become
// one fma where it likes (-fmad=true), unless they are written __hmul_rn() and __hadd_rn(). The quotient of
// fp16 is made of an approximate reciprocal on the device, and documented as rounded to nearest even all the
// same. Operators, and functions such as hexp(), are left out: kernels compute in float.
#pragma once

#include <bit>
#include <cstdint>

#include "arithmetic.h"
#include "cuda_types.h"
#include "half_types.h"

namespace fastnn::emulator {

template <typename T>
struct HalfFormat;
template <>
struct HalfFormat<cuda::float16_t> : Float16Format {};
template <>
struct HalfFormat<cuda::bfloat16_t> : BFloat16Format {};

template <typename T>
T half_from(double odd, Rounding rounding = Rounding::kNearestEven) {
  return {static_cast<uint16_t>(round_to_bits<HalfFormat<T>>(odd, rounding))};
}
template <typename T>
double exactly(T v) {
  return cuda::to_acc(v);
}
template <typename T>
bool is_nan(T v) {
  return (v.bits & 0x7fff) > HalfFormat<T>::kInfinity;
}
template <typename T>
constexpr T kHalfNan{static_cast<uint16_t>(HalfFormat<T>::kNan)};

// Products of two are exact in a double; for quotients see rounding.h.
template <typename T>
T half_sum(T a, T b) {
  return half_from<T>(odd_sum(exactly(a), exactly(b)));
}
template <typename T>
T half_product(T a, T b) {
  return half_from<T>(exactly(a) * exactly(b));
}
template <typename T>
T half_quotient(T a, T b) {
  return half_from<T>(exactly(a) / exactly(b));
}
template <typename T>
T half_fma(T a, T b, T c) {
  return half_from<T>(odd_sum(exactly(a) * exactly(b), exactly(c)));
}
template <typename T>
T half_negated(T v) {
  return is_nan(v) ? kHalfNan<T> : T{static_cast<uint16_t>(v.bits ^ 0x8000)};
}
template <typename T>
T half_magnitude(T v) {
  return is_nan(v) ? kHalfNan<T> : T{static_cast<uint16_t>(v.bits & 0x7fff)};
}
// Of a NaN and a number the number; -0 is less than +0.
template <typename T>
T half_lesser(T a, T b) {
  if (is_nan(a) || is_nan(b)) return !is_nan(a) ? a : !is_nan(b) ? b : kHalfNan<T>;
  const double x = exactly(a), y = exactly(b);
  return x < y || (x == y && (a.bits & 0x8000) != 0) ? a : b;
}
template <typename T>
T half_greater(T a, T b) {
  if (is_nan(a) || is_nan(b)) return !is_nan(a) ? a : !is_nan(b) ? b : kHalfNan<T>;
  const double x = exactly(a), y = exactly(b);
  return x > y || (x == y && (a.bits & 0x8000) == 0) ? a : b;
}
// To [+0, 1]; a NaN becomes +0.
template <typename T>
T half_saturated(T v) {
  const double value = exactly(v);
  return !(value > 0) ? T{0} : value > 1 ? half_from<T>(1) : v;
}
// max(v, +0), but a NaN stays one.
template <typename T>
T half_rectified(T v) {
  return is_nan(v) ? v : half_greater(v, T{0});
}
template <typename Integer, typename T>
Integer integer_from_half(T v, double (*round)(double)) {
  return saturating_cast<Integer>(static_cast<float>(round(exactly(v))));
}

}  // namespace fastnn::emulator

// Functions whose names are the same for both types; T2 is the pair.
#define FASTNN_EMULATOR_HALF_UNARY(name, function, T, T2)                      \
  inline T name(T v) noexcept { return fastnn::emulator::function(v); }        \
  inline T2 name##2(T2 v) noexcept {                                           \
    return {fastnn::emulator::function(v.x), fastnn::emulator::function(v.y)}; \
  }
#define FASTNN_EMULATOR_HALF_BINARY(name, name2, expression, T, T2) \
  inline T name(T a, T b) noexcept {                                \
    using namespace fastnn::emulator;                               \
    return expression;                                              \
  }                                                                 \
  inline T2 name2(T2 a, T2 b) noexcept { return {name(a.x, b.x), name(a.y, b.y)}; }
#define FASTNN_EMULATOR_HALF_TERNARY(name, name2, expression, T, T2) \
  inline T name(T a, T b, T c) noexcept {                            \
    using namespace fastnn::emulator;                                \
    return expression;                                               \
  }                                                                  \
  inline T2 name2(T2 a, T2 b, T2 c) noexcept { return {name(a.x, b.x, c.x), name(a.y, b.y, c.y)}; }
// Two kinds of comparison: false of a NaN, and true of one (the name ends in u). Those of pairs give 1 and 0,
// or whether both hold.
#define FASTNN_EMULATOR_HALF_COMPARISON(name, op, T, T2)                                                \
  inline bool __h##name(T a, T b) noexcept {                                                            \
    using namespace fastnn::emulator;                                                                   \
    return !is_nan(a) && !is_nan(b) && exactly(a) op exactly(b);                                        \
  }                                                                                                     \
  inline bool __h##name##u(T a, T b) noexcept {                                                         \
    using namespace fastnn::emulator;                                                                   \
    return is_nan(a) || is_nan(b) || exactly(a) op exactly(b);                                          \
  }                                                                                                     \
  inline T2 __h##name##2(T2 a, T2 b) noexcept {                                                         \
    using namespace fastnn::emulator;                                                                   \
    return {half_from<T>(__h##name(a.x, b.x)), half_from<T>(__h##name(a.y, b.y))};                      \
  }                                                                                                     \
  inline T2 __h##name##u2(T2 a, T2 b) noexcept {                                                        \
    using namespace fastnn::emulator;                                                                   \
    return {half_from<T>(__h##name##u(a.x, b.x)), half_from<T>(__h##name##u(a.y, b.y))};                \
  }                                                                                                     \
  inline bool __hb##name##2(T2 a, T2 b) noexcept { return __h##name(a.x, b.x) && __h##name(a.y, b.y); } \
  inline bool __hb##name##u2(T2 a, T2 b) noexcept { return __h##name##u(a.x, b.x) && __h##name##u(a.y, b.y); }

#define FASTNN_EMULATOR_HALF_ARITHMETIC(T, T2)                                                              \
  FASTNN_EMULATOR_HALF_UNARY(__hneg, half_negated, T, T2)                                                   \
  FASTNN_EMULATOR_HALF_UNARY(__habs, half_magnitude, T, T2)                                                 \
  FASTNN_EMULATOR_HALF_BINARY(__hadd, __hadd2, half_sum(a, b), T, T2)                                       \
  FASTNN_EMULATOR_HALF_BINARY(__hsub, __hsub2, half_sum(a, half_negated(b)), T, T2)                         \
  FASTNN_EMULATOR_HALF_BINARY(__hmul, __hmul2, half_product(a, b), T, T2)                                   \
  FASTNN_EMULATOR_HALF_BINARY(__hdiv, __h2div, half_quotient(a, b), T, T2)                                  \
  FASTNN_EMULATOR_HALF_BINARY(__hadd_rn, __hadd2_rn, half_sum(a, b), T, T2)                                 \
  FASTNN_EMULATOR_HALF_BINARY(__hsub_rn, __hsub2_rn, half_sum(a, half_negated(b)), T, T2)                   \
  FASTNN_EMULATOR_HALF_BINARY(__hmul_rn, __hmul2_rn, half_product(a, b), T, T2)                             \
  FASTNN_EMULATOR_HALF_BINARY(__hadd_sat, __hadd2_sat, half_saturated(half_sum(a, b)), T, T2)               \
  FASTNN_EMULATOR_HALF_BINARY(__hsub_sat, __hsub2_sat, half_saturated(half_sum(a, half_negated(b))), T, T2) \
  FASTNN_EMULATOR_HALF_BINARY(__hmul_sat, __hmul2_sat, half_saturated(half_product(a, b)), T, T2)           \
  FASTNN_EMULATOR_HALF_TERNARY(__hfma, __hfma2, half_fma(a, b, c), T, T2)                                   \
  FASTNN_EMULATOR_HALF_TERNARY(__hfma_sat, __hfma2_sat, half_saturated(half_fma(a, b, c)), T, T2)           \
  FASTNN_EMULATOR_HALF_TERNARY(__hfma_relu, __hfma2_relu, half_rectified(half_fma(a, b, c)), T, T2)         \
  FASTNN_EMULATOR_HALF_BINARY(__hmin, __hmin2, half_lesser(a, b), T, T2)                                    \
  FASTNN_EMULATOR_HALF_BINARY(__hmax, __hmax2, half_greater(a, b), T, T2)                                   \
  FASTNN_EMULATOR_HALF_BINARY(__hmin_nan, __hmin2_nan,                                                      \
                              is_nan(a) || is_nan(b) ? kHalfNan<T> : half_lesser(a, b), T, T2)              \
  FASTNN_EMULATOR_HALF_BINARY(__hmax_nan, __hmax2_nan,                                                      \
                              is_nan(a) || is_nan(b) ? kHalfNan<T> : half_greater(a, b), T, T2)             \
  FASTNN_EMULATOR_HALF_COMPARISON(eq, ==, T, T2)                                                            \
  FASTNN_EMULATOR_HALF_COMPARISON(ne, !=, T, T2)                                                            \
  FASTNN_EMULATOR_HALF_COMPARISON(lt, <, T, T2)                                                             \
  FASTNN_EMULATOR_HALF_COMPARISON(le, <=, T, T2)                                                            \
  FASTNN_EMULATOR_HALF_COMPARISON(gt, >, T, T2)                                                             \
  FASTNN_EMULATOR_HALF_COMPARISON(ge, >=, T, T2)                                                            \
  inline bool __hisnan(T v) noexcept { return fastnn::emulator::is_nan(v); }                                \
  inline int __hisinf(T v) noexcept {                                                                       \
    if ((v.bits & 0x7fff) != fastnn::emulator::HalfFormat<T>::kInfinity) return 0;                          \
    return v.bits & 0x8000 ? -1 : 1;                                                                        \
  }                                                                                                         \
  inline T2 __hisnan2(T2 v) noexcept {                                                                      \
    return {fastnn::emulator::half_from<T>(__hisnan(v.x)), fastnn::emulator::half_from<T>(__hisnan(v.y))};  \
  }                                                                                                         \
  inline float __low2float(T2 v) noexcept { return fastnn::cuda::to_acc(v.x); }                             \
  inline float __high2float(T2 v) noexcept { return fastnn::cuda::to_acc(v.y); }                            \
  inline T2 __lowhigh2highlow(T2 v) noexcept { return {v.y, v.x}; }

// Conversions, whose names hold the type's: half or bfloat16.
#define FASTNN_EMULATOR_HALF_ROUNDED(name, T, suffix, rounding)                                                \
  inline T __float2##name##_##suffix(float v) noexcept { return fastnn::emulator::half_from<T>(v, rounding); } \
  inline T __int2##name##_##suffix(int v) noexcept { return fastnn::emulator::half_from<T>(v, rounding); }     \
  inline T __uint2##name##_##suffix(unsigned v) noexcept {                                                     \
    return fastnn::emulator::half_from<T>(v, rounding);                                                        \
  }                                                                                                            \
  inline T __short2##name##_##suffix(short v) noexcept { return fastnn::emulator::half_from<T>(v, rounding); } \
  inline T __ushort2##name##_##suffix(unsigned short v) noexcept {                                             \
    return fastnn::emulator::half_from<T>(v, rounding);                                                        \
  }                                                                                                            \
  inline T __ll2##name##_##suffix(long long v) noexcept {                                                      \
    return fastnn::emulator::half_from<T>(fastnn::emulator::odd_integer(static_cast<int64_t>(v)), rounding);   \
  }                                                                                                            \
  inline T __ull2##name##_##suffix(unsigned long long v) noexcept {                                            \
    return fastnn::emulator::half_from<T>(fastnn::emulator::odd_integer(static_cast<uint64_t>(v)), rounding);  \
  }
#define FASTNN_EMULATOR_HALF_TO_INTEGER(name, T, type_name, Integer)     \
  inline Integer __##name##2##type_name##_rn(T v) noexcept {             \
    return fastnn::emulator::integer_from_half<Integer>(v, &std::rint);  \
  }                                                                      \
  inline Integer __##name##2##type_name##_rz(T v) noexcept {             \
    return fastnn::emulator::integer_from_half<Integer>(v, &std::trunc); \
  }                                                                      \
  inline Integer __##name##2##type_name##_rd(T v) noexcept {             \
    return fastnn::emulator::integer_from_half<Integer>(v, &std::floor); \
  }                                                                      \
  inline Integer __##name##2##type_name##_ru(T v) noexcept {             \
    return fastnn::emulator::integer_from_half<Integer>(v, &std::ceil);  \
  }

#define FASTNN_EMULATOR_HALF_CONVERSIONS(name, T, T2)                                                 \
  FASTNN_EMULATOR_HALF_ROUNDED(name, T, rn, fastnn::emulator::Rounding::kNearestEven)                 \
  FASTNN_EMULATOR_HALF_ROUNDED(name, T, rz, fastnn::emulator::Rounding::kZero)                        \
  FASTNN_EMULATOR_HALF_ROUNDED(name, T, rd, fastnn::emulator::Rounding::kDown)                        \
  FASTNN_EMULATOR_HALF_ROUNDED(name, T, ru, fastnn::emulator::Rounding::kUp)                          \
  FASTNN_EMULATOR_HALF_TO_INTEGER(name, T, int, int)                                                  \
  FASTNN_EMULATOR_HALF_TO_INTEGER(name, T, uint, unsigned)                                            \
  FASTNN_EMULATOR_HALF_TO_INTEGER(name, T, short, short)                                              \
  FASTNN_EMULATOR_HALF_TO_INTEGER(name, T, ushort, unsigned short)                                    \
  FASTNN_EMULATOR_HALF_TO_INTEGER(name, T, ll, long long)                                             \
  FASTNN_EMULATOR_HALF_TO_INTEGER(name, T, ull, unsigned long long)                                   \
  inline signed char __##name##2char_rz(T v) noexcept {                                               \
    return fastnn::emulator::integer_from_half<signed char>(v, &std::trunc);                          \
  }                                                                                                   \
  inline unsigned char __##name##2uchar_rz(T v) noexcept {                                            \
    return fastnn::emulator::integer_from_half<unsigned char>(v, &std::trunc);                        \
  }                                                                                                   \
  inline T __float2##name(float v) noexcept { return fastnn::cuda::from_acc<T>(v); }                  \
  inline T __double2##name(double v) noexcept { return fastnn::cuda::from_acc<T>(v); }                \
  inline float __##name##2float(T v) noexcept { return fastnn::cuda::to_acc(v); }                     \
  inline short __##name##_as_short(T v) noexcept { return static_cast<short>(v.bits); }               \
  inline unsigned short __##name##_as_ushort(T v) noexcept { return v.bits; }                         \
  inline T __short_as_##name(short v) noexcept { return {static_cast<uint16_t>(v)}; }                 \
  inline T __ushort_as_##name(unsigned short v) noexcept { return {v}; }                              \
  inline T2 __halves2##name##2(T low, T high) noexcept { return {low, high}; }                        \
  inline T2 __##name##2##name##2(T v) noexcept { return {v, v}; }                                     \
  inline T2 __float2##name##2_rn(float v) noexcept { return {__float2##name(v), __float2##name(v)}; } \
  inline T2 __floats2##name##2_rn(float low, float high) noexcept {                                   \
    return {__float2##name(low), __float2##name(high)};                                               \
  }                                                                                                   \
  inline T2 __float22##name##2_rn(float2 v) noexcept { return __floats2##name##2_rn(v.x, v.y); }      \
  inline float2 __##name##22float2(T2 v) noexcept { return {__low2float(v), __high2float(v)}; }       \
  inline T __low2##name(T2 v) noexcept { return v.x; }                                                \
  inline T __high2##name(T2 v) noexcept { return v.y; }                                               \
  inline T2 __low2##name##2(T2 v) noexcept { return {v.x, v.x}; }                                     \
  inline T2 __high2##name##2(T2 v) noexcept { return {v.y, v.y}; }                                    \
  inline T2 __lows2##name##2(T2 a, T2 b) noexcept { return {a.x, b.x}; }                              \
  inline T2 __highs2##name##2(T2 a, T2 b) noexcept { return {a.y, b.y}; }

FASTNN_EMULATOR_HALF_ARITHMETIC(fastnn::cuda::float16_t, fastnn::cuda::float16x2_t)
FASTNN_EMULATOR_HALF_ARITHMETIC(fastnn::cuda::bfloat16_t, fastnn::cuda::bfloat16x2_t)
FASTNN_EMULATOR_HALF_CONVERSIONS(half, fastnn::cuda::float16_t, fastnn::cuda::float16x2_t)
FASTNN_EMULATOR_HALF_CONVERSIONS(bfloat16, fastnn::cuda::bfloat16_t, fastnn::cuda::bfloat16x2_t)

#undef FASTNN_EMULATOR_HALF_UNARY
#undef FASTNN_EMULATOR_HALF_BINARY
#undef FASTNN_EMULATOR_HALF_TERNARY
#undef FASTNN_EMULATOR_HALF_COMPARISON
#undef FASTNN_EMULATOR_HALF_ARITHMETIC
#undef FASTNN_EMULATOR_HALF_ROUNDED
#undef FASTNN_EMULATOR_HALF_TO_INTEGER
#undef FASTNN_EMULATOR_HALF_CONVERSIONS
