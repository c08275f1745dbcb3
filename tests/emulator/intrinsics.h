// CUDA's integer, floating-point and cache-hint functions. The C library has the standard mathematics; its
// results differ from the device's in the last places, as those of the fast forms (__expf) do.
//
// Declared noexcept: some of these names are the C library's too, in this version or a later one.
#pragma once

#include <math.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>

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

// --- integer products ---
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

// --- conversions; out of range saturates and NaN gives 0, as on the device ---
namespace fastnn::emulator {
template <typename Integer, typename Float>
Integer saturating_cast(Float whole) {
  if (whole != whole) return 0;
  if (whole < static_cast<Float>(std::numeric_limits<Integer>::min()))
    return std::numeric_limits<Integer>::min();
  if (whole >= static_cast<Float>(std::numeric_limits<Integer>::max()))
    return std::numeric_limits<Integer>::max();
  return static_cast<Integer>(whole);
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
FASTNN_EMULATOR_TO_INTEGER(__double2int, double, int)
FASTNN_EMULATOR_TO_INTEGER(__double2uint, double, unsigned)
FASTNN_EMULATOR_TO_INTEGER(__double2ll, double, long long)
#undef FASTNN_EMULATOR_TO_INTEGER
inline float __int2float_rn(int v) noexcept { return static_cast<float>(v); }
inline float __uint2float_rn(unsigned v) noexcept { return static_cast<float>(v); }
inline float __ll2float_rn(long long v) noexcept { return static_cast<float>(v); }
inline double __int2double_rn(int v) noexcept { return v; }
inline double __ll2double_rn(long long v) noexcept { return static_cast<double>(v); }
inline float __double2float_rn(double v) noexcept { return static_cast<float>(v); }

// --- arithmetic ---
inline float rsqrtf(float v) noexcept { return static_cast<float>(1 / std::sqrt(static_cast<double>(v))); }
inline double rsqrt(double v) noexcept { return 1 / std::sqrt(v); }
inline float rsqrt(float v) noexcept { return rsqrtf(v); }
inline float __fadd_rn(float a, float b) noexcept { return a + b; }
inline float __fsub_rn(float a, float b) noexcept { return a - b; }
inline float __fmul_rn(float a, float b) noexcept { return a * b; }
inline float __fdiv_rn(float a, float b) noexcept { return a / b; }
inline float __fmaf_rn(float a, float b, float c) noexcept { return std::fma(a, b, c); }
inline float __frcp_rn(float v) noexcept { return 1 / v; }
inline float __fsqrt_rn(float v) noexcept { return std::sqrt(v); }
inline float __frsqrt_rn(float v) noexcept { return rsqrtf(v); }
inline double __dadd_rn(double a, double b) noexcept { return a + b; }
inline double __dsub_rn(double a, double b) noexcept { return a - b; }
inline double __dmul_rn(double a, double b) noexcept { return a * b; }
inline double __ddiv_rn(double a, double b) noexcept { return a / b; }
inline double __fma_rn(double a, double b, double c) noexcept { return std::fma(a, b, c); }
inline double __drcp_rn(double v) noexcept { return 1 / v; }
inline double __dsqrt_rn(double v) noexcept { return std::sqrt(v); }
inline float __saturatef(float v) noexcept { return v > 0 ? (v < 1 ? v : 1.0f) : 0.0f; }

// The device's fast division yields 0 when the divisor is beyond 2^126.
inline float __fdividef(float a, float b) noexcept {
  const float magnitude = std::fabs(b);
  if (magnitude > 0x1p126f && magnitude < 0x1p128)
    return std::isinf(a) ? std::numeric_limits<float>::quiet_NaN() : a * 0.0f;
  return a / b;
}
inline float __expf(float v) noexcept { return std::exp(v); }
inline float __exp10f(float v) noexcept { return exp10f(v); }
inline float __logf(float v) noexcept { return std::log(v); }
inline float __log2f(float v) noexcept { return std::log2(v); }
inline float __log10f(float v) noexcept { return std::log10(v); }
inline float __powf(float a, float b) noexcept { return std::pow(a, b); }
inline float __sinf(float v) noexcept { return std::sin(v); }
inline float __cosf(float v) noexcept { return std::cos(v); }
inline float __tanf(float v) noexcept { return std::tan(v); }
inline float __tanhf(float v) noexcept { return std::tanh(v); }

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
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
inline double min(float a, double b) { return std::fmin(static_cast<double>(a), b); }
inline double max(float a, double b) { return std::fmax(static_cast<double>(a), b); }
inline double min(double a, float b) { return std::fmin(a, static_cast<double>(b)); }
inline double max(double a, float b) { return std::fmax(a, static_cast<double>(b)); }

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
