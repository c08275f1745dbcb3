// CUDA's integer functions, and those of its floating-point functions whose results are exact or rounded once,
// in the direction that the name says. Those with an error of their own: fast_math.h.
//
// What the names promise and plain operators do not: nvcc makes one fma of a * b + c, rounded once, where it
// likes
// (-fmad=true is its default), and never of __fmul_rn() and __fadd_rn(). g++ has no fma to make it of, unless a
// flag such as -march=native gives it one; so plain a * b + c is mostly rounded twice here and once on the
// device. A kernel that needs one of the two has to say which: fma(), or __fmul_rn(). What plain operators make
// of a NaN differs as well: 0x7FFFFFFF on the device, one of x86's or of the operands here.
//
// Declared noexcept: some of these names are the C library's too, in this version or a later one.
#pragma once

#include <math.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <type_traits>

#include "cuda_types.h"
#include "rounding.h"

// --- bits ---
inline int __popc(unsigned v) noexcept { return std::popcount(v); }
inline int __popcll(unsigned long long v) noexcept { return std::popcount(v); }
inline int __clz(int v) noexcept { return std::countl_zero(static_cast<unsigned>(v)); }
inline int __clzll(long long v) noexcept { return std::countl_zero(static_cast<unsigned long long>(v)); }
inline int __ffs(int v) noexcept { return __builtin_ffs(v); }
inline int __ffsll(long long v) noexcept { return __builtin_ffsll(v); }
inline unsigned __brev(unsigned v) noexcept {
  v = (v >> 1 & 0x55555555u) | (v & 0x55555555u) << 1;
  v = (v >> 2 & 0x33333333u) | (v & 0x33333333u) << 2;
  v = (v >> 4 & 0x0f0f0f0fu) | (v & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(v);
}
inline unsigned long long __brevll(unsigned long long v) noexcept {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(v))) << 32 |
         __brev(static_cast<unsigned>(v >> 32));
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) noexcept {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned choice = selector >> (4 * i) & 0xf;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (choice & 7))) & 0xff;
    if (choice & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) noexcept {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) noexcept {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}

inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned shift) noexcept {
  return shift >= 32 ? low : __funnelshift_l(low, high, shift);
}
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned shift) noexcept {
  return shift >= 32 ? high : __funnelshift_r(low, high, shift);
}

// --- integer products, differences and means ---
inline int __mulhi(int a, int b) noexcept { return static_cast<int>(static_cast<int64_t>(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) noexcept {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline long long __mul64hi(long long a, long long b) noexcept {
  return static_cast<long long>(static_cast<__int128>(a) * b >> 64);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) noexcept {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __mul24(int a, int b) noexcept {
  const auto low24 = [](int v) {
    return static_cast<int64_t>(static_cast<int>(static_cast<unsigned>(v) << 8) >> 8);
  };
  return static_cast<int>(low24(a) * low24(b));
}
inline unsigned __umul24(unsigned a, unsigned b) noexcept {
  return static_cast<unsigned>(static_cast<uint64_t>(a & 0xffffffu) * (b & 0xffffffu));
}

inline unsigned __sad(int a, int b, unsigned c) noexcept {
  return c + static_cast<unsigned>(std::llabs(static_cast<long long>(a) - b));
}
inline unsigned __usad(unsigned a, unsigned b, unsigned c) noexcept { return c + (a > b ? a - b : b - a); }
inline int __hadd(int a, int b) noexcept { return static_cast<int>((static_cast<int64_t>(a) + b) >> 1); }
inline int __rhadd(int a, int b) noexcept { return static_cast<int>((static_cast<int64_t>(a) + b + 1) >> 1); }
inline unsigned __uhadd(unsigned a, unsigned b) noexcept {
  return static_cast<unsigned>((static_cast<uint64_t>(a) + b) >> 1);
}
inline unsigned __urhadd(unsigned a, unsigned b) noexcept {
  return static_cast<unsigned>((static_cast<uint64_t>(a) + b + 1) >> 1);
}
// Four products of bytes and a sum, which wraps.
inline int __dp4a(int a, int b, int c) noexcept {
  int64_t sum = c;
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
  return static_cast<int>(sum);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) noexcept {
  uint64_t sum = c;
  for (int i = 0; i < 4; ++i) sum += (a >> 8 * i & 0xff) * (b >> 8 * i & 0xff);
  return static_cast<unsigned>(sum);
}
inline int __dp4a(char4 a, char4 b, int c) noexcept {
  return __dp4a(std::bit_cast<int>(a), std::bit_cast<int>(b), c);
}
inline unsigned __dp4a(uchar4 a, uchar4 b, unsigned c) noexcept {
  return __dp4a(std::bit_cast<unsigned>(a), std::bit_cast<unsigned>(b), c);
}

// --- reinterpretation ---
inline int __float_as_int(float v) noexcept { return std::bit_cast<int>(v); }
inline unsigned __float_as_uint(float v) noexcept { return std::bit_cast<unsigned>(v); }
inline float __int_as_float(int v) noexcept { return std::bit_cast<float>(v); }
inline float __uint_as_float(unsigned v) noexcept { return std::bit_cast<float>(v); }
inline long long __double_as_longlong(double v) noexcept { return std::bit_cast<long long>(v); }
inline double __longlong_as_double(long long v) noexcept { return std::bit_cast<double>(v); }
inline int __double2hiint(double v) noexcept { return static_cast<int>(std::bit_cast<uint64_t>(v) >> 32); }
inline int __double2loint(double v) noexcept { return static_cast<int>(std::bit_cast<uint64_t>(v)); }
inline double __hiloint2double(int high, int low) noexcept {
  return std::bit_cast<double>(static_cast<uint64_t>(static_cast<unsigned>(high)) << 32 |
                               static_cast<unsigned>(low));
}

// --- conversions ---
namespace fastnn::emulator {
// Out of range saturates. Of NaN comes 0, but where either type has 64 bits the first bit alone (PTX ISA,
// "cvt").
template <typename Integer, typename Float>
Integer saturating_cast(Float whole) {
  using Limits = std::numeric_limits<Integer>;
  if (whole != whole) {
    if constexpr (sizeof(Float) < 8 && sizeof(Integer) < 8) return 0;
    return static_cast<Integer>(std::make_unsigned_t<Integer>{1} << (8 * sizeof(Integer) - 1));
  }
  if (whole < static_cast<Float>(Limits::min())) return Limits::min();
  if (whole >= static_cast<Float>(Limits::max())) return Limits::max();
  return static_cast<Integer>(whole);
}
inline float round_to_float(double odd, Rounding rounding) {
  return std::bit_cast<float>(round_to_bits<Float32Format>(odd, rounding));
}
}  // namespace fastnn::emulator
#define FASTNN_EMULATOR_TO_INTEGER(prefix, Float, Integer)            \
  inline Integer prefix##_rn(Float v) noexcept {                      \
    return fastnn::emulator::saturating_cast<Integer>(std::rint(v));  \
  }                                                                   \
  inline Integer prefix##_rz(Float v) noexcept {                      \
    return fastnn::emulator::saturating_cast<Integer>(std::trunc(v)); \
  }                                                                   \
  inline Integer prefix##_rd(Float v) noexcept {                      \
    return fastnn::emulator::saturating_cast<Integer>(std::floor(v)); \
  }                                                                   \
  inline Integer prefix##_ru(Float v) noexcept {                      \
    return fastnn::emulator::saturating_cast<Integer>(std::ceil(v));  \
  }
FASTNN_EMULATOR_TO_INTEGER(__float2int, float, int)
FASTNN_EMULATOR_TO_INTEGER(__float2uint, float, unsigned)
FASTNN_EMULATOR_TO_INTEGER(__float2ll, float, long long)
FASTNN_EMULATOR_TO_INTEGER(__float2ull, float, unsigned long long)
FASTNN_EMULATOR_TO_INTEGER(__double2int, double, int)
FASTNN_EMULATOR_TO_INTEGER(__double2uint, double, unsigned)
FASTNN_EMULATOR_TO_INTEGER(__double2ll, double, long long)
FASTNN_EMULATOR_TO_INTEGER(__double2ull, double, unsigned long long)
#undef FASTNN_EMULATOR_TO_INTEGER
inline double __int2double_rn(int v) noexcept { return v; }
inline double __uint2double_rn(unsigned v) noexcept { return v; }
inline double __ll2double_rn(long long v) noexcept { return static_cast<double>(v); }
inline double __ull2double_rn(unsigned long long v) noexcept { return static_cast<double>(v); }

// --- arithmetic in single precision, rounded as the suffix says ---
namespace fastnn::emulator {
// Where g++ could take an fma, this hides from it that `v` is a product.
inline float uncontracted(float v) {
#if defined(__FMA__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}
inline double uncontracted(double v) {
#if defined(__FMA__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}
// Rounding down is rounding the opposite up: so a sum of opposites is -0 in that direction alone, as it should
// be.
inline float negated(float v) { return v != v ? v : -v; }
inline float rounded_sum(float a, float b, Rounding rounding) {
  if (rounding == Rounding::kDown) return negated(rounded_sum(-a, -b, Rounding::kUp));
  return round_to_float(odd_sum(a, b), rounding);
}
inline float rounded_fma(float a, float b, float c, Rounding rounding) {
  if (rounding == Rounding::kDown) return negated(rounded_fma(-a, b, -c, Rounding::kUp));
  return round_to_float(odd_sum(static_cast<double>(a) * b, c), rounding);
}
}  // namespace fastnn::emulator

#define FASTNN_EMULATOR_ROUNDED(suffix, rounding)                                                              \
  inline float __fadd_##suffix(float a, float b) noexcept {                                                    \
    return fastnn::emulator::rounded_sum(a, b, rounding);                                                      \
  }                                                                                                            \
  inline float __fsub_##suffix(float a, float b) noexcept {                                                    \
    return fastnn::emulator::rounded_sum(a, -b, rounding);                                                     \
  }                                                                                                            \
  inline float __fmul_##suffix(float a, float b) noexcept {                                                    \
    return fastnn::emulator::round_to_float(static_cast<double>(a) * b, rounding);                             \
  }                                                                                                            \
  inline float __fdiv_##suffix(float a, float b) noexcept {                                                    \
    return fastnn::emulator::round_to_float(static_cast<double>(a) / b, rounding);                             \
  }                                                                                                            \
  inline float __frcp_##suffix(float v) noexcept { return __fdiv_##suffix(1.0f, v); }                          \
  inline float __fsqrt_##suffix(float v) noexcept {                                                            \
    return fastnn::emulator::round_to_float(std::sqrt(static_cast<double>(v)), rounding);                      \
  }                                                                                                            \
  inline float __fmaf_##suffix(float a, float b, float c) noexcept {                                           \
    return fastnn::emulator::rounded_fma(a, b, c, rounding);                                                   \
  }                                                                                                            \
  inline float __double2float_##suffix(double v) noexcept {                                                    \
    return fastnn::emulator::round_to_float(v, rounding);                                                      \
  }                                                                                                            \
  inline float __int2float_##suffix(int v) noexcept { return fastnn::emulator::round_to_float(v, rounding); }  \
  inline float __uint2float_##suffix(unsigned v) noexcept {                                                    \
    return fastnn::emulator::round_to_float(v, rounding);                                                      \
  }                                                                                                            \
  inline float __ll2float_##suffix(long long v) noexcept {                                                     \
    return fastnn::emulator::round_to_float(fastnn::emulator::odd_integer(static_cast<int64_t>(v)), rounding); \
  }                                                                                                            \
  inline float __ull2float_##suffix(unsigned long long v) noexcept {                                           \
    return fastnn::emulator::round_to_float(fastnn::emulator::odd_integer(static_cast<uint64_t>(v)),           \
                                            rounding);                                                         \
  }
FASTNN_EMULATOR_ROUNDED(rz, fastnn::emulator::Rounding::kZero)
FASTNN_EMULATOR_ROUNDED(rd, fastnn::emulator::Rounding::kDown)
FASTNN_EMULATOR_ROUNDED(ru, fastnn::emulator::Rounding::kUp)
#undef FASTNN_EMULATOR_ROUNDED

// To nearest even, as the host's operators do.
inline float __fadd_rn(float a, float b) noexcept { return a + b; }
inline float __fsub_rn(float a, float b) noexcept { return a - b; }
inline float __fmul_rn(float a, float b) noexcept { return fastnn::emulator::uncontracted(a * b); }
inline float __fdiv_rn(float a, float b) noexcept { return a / b; }
inline float __fmaf_rn(float a, float b, float c) noexcept { return std::fma(a, b, c); }
inline float __fmaf_ieee_rn(float a, float b, float c) noexcept { return std::fma(a, b, c); }
inline float __frcp_rn(float v) noexcept { return 1 / v; }
inline float __fsqrt_rn(float v) noexcept { return std::sqrt(v); }
inline float __frsqrt_rn(float v) noexcept {
  return static_cast<float>(1 / std::sqrt(static_cast<long double>(v)));
}
inline float __double2float_rn(double v) noexcept { return static_cast<float>(v); }
inline float __int2float_rn(int v) noexcept { return static_cast<float>(v); }
inline float __uint2float_rn(unsigned v) noexcept { return static_cast<float>(v); }
inline float __ll2float_rn(long long v) noexcept { return static_cast<float>(v); }
inline float __ull2float_rn(unsigned long long v) noexcept { return static_cast<float>(v); }

inline double __dadd_rn(double a, double b) noexcept { return a + b; }
inline double __dsub_rn(double a, double b) noexcept { return a - b; }
inline double __dmul_rn(double a, double b) noexcept { return fastnn::emulator::uncontracted(a * b); }
inline double __ddiv_rn(double a, double b) noexcept { return a / b; }
inline double __fma_rn(double a, double b, double c) noexcept { return std::fma(a, b, c); }
inline double __drcp_rn(double v) noexcept { return 1 / v; }
inline double __dsqrt_rn(double v) noexcept { return std::sqrt(v); }

inline float __saturatef(float v) noexcept { return v > 0 ? (v < 1 ? v : 1.0f) : 0.0f; }

// --- minimum and maximum, with CUDA's overloads; of a NaN and a number, the number ---
#define FASTNN_EMULATOR_MIN_MAX(result, A, B)                                                                 \
  constexpr result min(A a, B b) {                                                                            \
    return static_cast<result>(a) < static_cast<result>(b) ? static_cast<result>(a) : static_cast<result>(b); \
  }                                                                                                           \
  constexpr result max(A a, B b) {                                                                            \
    return static_cast<result>(a) > static_cast<result>(b) ? static_cast<result>(a) : static_cast<result>(b); \
  }
#define FASTNN_EMULATOR_MIN_MAX_SIGNS(type)                            \
  FASTNN_EMULATOR_MIN_MAX(type, type, type)                            \
  FASTNN_EMULATOR_MIN_MAX(unsigned type, unsigned type, unsigned type) \
  FASTNN_EMULATOR_MIN_MAX(unsigned type, type, unsigned type)          \
  FASTNN_EMULATOR_MIN_MAX(unsigned type, unsigned type, type)
FASTNN_EMULATOR_MIN_MAX_SIGNS(int)
FASTNN_EMULATOR_MIN_MAX_SIGNS(long)
FASTNN_EMULATOR_MIN_MAX_SIGNS(long long)
#undef FASTNN_EMULATOR_MIN_MAX_SIGNS
#undef FASTNN_EMULATOR_MIN_MAX
namespace fastnn::emulator {
// -0 is less than +0 on the device (PTX ISA, "min"); the C library does not say which of two zeros it gives.
template <typename Float>
Float lesser(Float a, Float b) {
  if (a != a || b != b) return a == a ? a : b == b ? b : std::numeric_limits<Float>::quiet_NaN();
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
template <typename Float>
Float greater(Float a, Float b) {
  if (a != a || b != b) return a == a ? a : b == b ? b : std::numeric_limits<Float>::quiet_NaN();
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
}  // namespace fastnn::emulator
inline float min(float a, float b) { return fastnn::emulator::lesser(a, b); }
inline float max(float a, float b) { return fastnn::emulator::greater(a, b); }
inline double min(double a, double b) { return fastnn::emulator::lesser(a, b); }
inline double max(double a, double b) { return fastnn::emulator::greater(a, b); }
inline double min(float a, double b) { return min(static_cast<double>(a), b); }
inline double max(float a, double b) { return max(static_cast<double>(a), b); }
inline double min(double a, float b) { return min(a, static_cast<double>(b)); }
inline double max(double a, float b) { return max(a, static_cast<double>(b)); }

// --- loads and stores with cache hints ---
#define FASTNN_EMULATOR_LOAD(name)    \
  template <typename T>               \
  T name(const T* address) noexcept { \
    return *address;                  \
  }
#define FASTNN_EMULATOR_STORE(name)         \
  template <typename T>                     \
  void name(T* address, T value) noexcept { \
    *address = value;                       \
  }
FASTNN_EMULATOR_LOAD(__ldg)
FASTNN_EMULATOR_LOAD(__ldca)
FASTNN_EMULATOR_LOAD(__ldcg)
FASTNN_EMULATOR_LOAD(__ldcs)
FASTNN_EMULATOR_LOAD(__ldlu)
FASTNN_EMULATOR_LOAD(__ldcv)
FASTNN_EMULATOR_STORE(__stwb)
FASTNN_EMULATOR_STORE(__stcg)
FASTNN_EMULATOR_STORE(__stcs)
FASTNN_EMULATOR_STORE(__stwt)
#undef FASTNN_EMULATOR_LOAD
#undef FASTNN_EMULATOR_STORE
