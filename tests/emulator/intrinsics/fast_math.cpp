// The functions behind fast_math.h, which this file must not include: it calls the C library's.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>
#include <type_traits>

#include "arithmetic.h"
#include "fast_math_table.h"

namespace {

// Results in the next wider type, whose error is nothing beside the bounds.
namespace reference {

using std::acos, std::acosh, std::asin, std::asinh, std::atan, std::atan2, std::atanh, std::cbrt, std::cos,
    std::cosh;
using std::erf, std::erfc, std::exp, std::exp2, std::expm1, std::hypot, std::log, std::log10, std::log1p,
    std::log2;
using std::pow, std::sin, std::sinh, std::tan, std::tanh;

double exp10(double v) { return ::exp10(v); }
long double exp10(long double v) { return ::exp10l(v); }

template <typename Wide>
constexpr Wide kPi = static_cast<Wide>(3.14159265358979323846264338327950288L);

// v - whole is exact, and its product with pi has a small relative error: also where the result is next to
// zero.
template <typename Wide>
Wide sinpi(Wide v) {
  const Wide whole = std::rint(v), rest = v - whole;
  if (rest == 0) return std::copysign(Wide{0}, v);
  const Wide sine = std::sin(kPi<Wide> * rest);
  return std::fmod(whole, Wide{2}) == 0 ? sine : -sine;
}
template <typename Wide>
Wide cospi(Wide v) {
  const Wide whole = std::rint(v), rest = std::fabs(v - whole);
  const Wide cosine = rest < Wide{0.25} ? std::cos(kPi<Wide> * rest) : std::sin(kPi<Wide> * (Wide{0.5} - rest));
  return std::fmod(whole, Wide{2}) == 0 ? cosine : -cosine;
}
template <typename Wide>
Wide rcbrt(Wide v) {
  return 1 / std::cbrt(v);
}
template <typename Wide>
Wide rsqrt(Wide v) {
  return 1 / std::sqrt(v);
}
template <typename Wide>
Wide rhypot(Wide a, Wide b) {
  return 1 / std::hypot(a, b);
}

}  // namespace reference

template <typename Float>
using Wider = std::conditional_t<sizeof(Float) == 4, double, long double>;
template <typename Float>
using Bits = std::conditional_t<sizeof(Float) == 4, uint32_t, uint64_t>;

constexpr uint64_t seed_of(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

// Between -1 and 1, and unlike for neighbouring arguments (the finaliser is splitmix64's).
template <typename Float>
double share_of(uint64_t seed, Float a, Float b = 0) {
  uint64_t hash = seed + std::bit_cast<Bits<Float>>(a) * 0x9e3779b97f4a7c15u;
  hash = (hash ^ hash >> 29) + std::bit_cast<Bits<Float>>(b) * 0xd1b54a32d192ed03u;
  hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9u;
  hash = (hash ^ hash >> 27) * 0x94d049bb133111ebu;
  hash ^= hash >> 31;
  return static_cast<double>(static_cast<int64_t>(hash)) * 0x1p-63;
}

// The distance from |v| to the number below it: below a power of two the smaller of its two last places.
template <typename Float>
Float last_place(Float v) {
  const Float magnitude = std::fabs(v);
  return magnitude - std::bit_cast<Float>(std::bit_cast<Bits<Float>>(magnitude) - 1);
}

// The number nearest to exact + share * bound that is no further from `exact` than `bound`, nor from zero than
// `limit` unless that is 0. Zero, infinity and the limit are not left.
template <typename Float>
Float disturbed(Wider<Float> exact, Wider<Float> bound, double share, Wider<Float> limit) {
  using Wide = Wider<Float>;
  const auto nearest = static_cast<Float>(exact);
  if (nearest == 0 || !std::isfinite(nearest)) return nearest;
  if (limit != 0 && limit - std::fabs(exact) < last_place(static_cast<Float>(limit)) / 16) return nearest;
  bound *= Wide{1} - Wide{0x1p-6};  // room for the reference's own error
  Wide target = exact + static_cast<Wide>(share) * bound;
  if (limit != 0) target = std::clamp(target, -limit, limit);
  constexpr auto kLargest = std::numeric_limits<Float>::max();
  auto result = static_cast<Float>(std::clamp<Wide>(target, -kLargest, kLargest));
  const auto too_far = [&] { return std::fabs(result - exact) > bound; };
  if (too_far()) result = std::nextafter(result, target > exact ? -kLargest : kLargest);
  return too_far() ? nearest : result;
}

// By so many units in the last place; these do not change the sign.
template <typename Float>
Float disturbed_ulps(Wider<Float> exact, double ulps, double share, Wider<Float> limit = 0) {
  const auto nearest = static_cast<Float>(exact);
  if (nearest == 0 || !std::isfinite(nearest)) return nearest;
  const Float result =
      disturbed<Float>(exact, ulps * static_cast<Wider<Float>>(last_place(nearest)), share, limit);
  return std::signbit(result) == std::signbit(nearest) ? result : std::copysign(Float{0}, nearest);
}

template <typename Float>
bool documented_exactly(Float v) {
  return v == 0 || !std::isfinite(v);
}

enum class Symmetry { kNone, kOdd, kEven };

template <Symmetry kSymmetry, typename Float, typename Reference>
Float unary(Float v, uint64_t seed, double ulps, Wider<Float> limit, Reference reference) {
  using Wide = Wider<Float>;
  if (v != v) return std::numeric_limits<Float>::quiet_NaN();
  const Float argument = kSymmetry == Symmetry::kNone ? v : std::fabs(v);
  const auto exact = static_cast<Wide>(reference(static_cast<Wide>(argument)));
  Float result;
  if (exact != exact)
    result = std::numeric_limits<Float>::quiet_NaN();
  else if (documented_exactly(argument))
    result = static_cast<Float>(exact);
  else
    result = disturbed_ulps<Float>(exact, ulps, share_of(seed, argument), limit);
  return kSymmetry == Symmetry::kOdd && std::signbit(v) && result == result ? -result : result;
}

template <typename Float, typename Reference>
Float binary(Float a, Float b, uint64_t seed, double ulps, bool symmetric, Reference reference) {
  using Wide = Wider<Float>;
  if (symmetric) {
    a = std::fabs(a), b = std::fabs(b);
    if (a < b) std::swap(a, b);
  }
  const auto exact = static_cast<Wide>(reference(static_cast<Wide>(a), static_cast<Wide>(b)));
  if (exact != exact) return std::numeric_limits<Float>::quiet_NaN();
  if (documented_exactly(a) || documented_exactly(b)) return static_cast<Float>(exact);
  if (a == 1 && exact == 1) return 1;  // 1 to any power
  return disturbed_ulps<Float>(exact, ulps, share_of(seed, a, b));
}

}  // namespace

#define FASTNN_EMULATOR_SYMBOL extern "C" __attribute__((visibility("hidden"), noinline))

#define FASTNN_EMULATOR_DEFINE_UNARY(name, float_ulps, double_ulps, symmetry, limit)          \
  FASTNN_EMULATOR_SYMBOL float fastnn_emulator_##name##f(float v) {                           \
    return unary<Symmetry::symmetry>(v, seed_of(#name "f"), float_ulps, limit,                \
                                     [](double wide) { return reference::name(wide); });      \
  }                                                                                           \
  FASTNN_EMULATOR_SYMBOL double fastnn_emulator_##name(double v) {                            \
    return unary<Symmetry::symmetry>(v, seed_of(#name), double_ulps, limit,                   \
                                     [](long double wide) { return reference::name(wide); }); \
  }
FASTNN_EMULATOR_UNARY_MATH(FASTNN_EMULATOR_DEFINE_UNARY)

#define FASTNN_EMULATOR_DEFINE_BINARY(name, float_ulps, double_ulps, symmetric)        \
  FASTNN_EMULATOR_SYMBOL float fastnn_emulator_##name##f(float a, float b) {           \
    return binary(a, b, seed_of(#name "f"), float_ulps, symmetric,                     \
                  [](double x, double y) { return reference::name(x, y); });           \
  }                                                                                    \
  FASTNN_EMULATOR_SYMBOL double fastnn_emulator_##name(double a, double b) {           \
    return binary(a, b, seed_of(#name), double_ulps, symmetric,                        \
                  [](long double x, long double y) { return reference::name(x, y); }); \
  }
FASTNN_EMULATOR_BINARY_MATH(FASTNN_EMULATOR_DEFINE_BINARY)

// --- the intrinsics ---

namespace {

constexpr uint64_t kFastExp = seed_of("__expf"), kFastExp10 = seed_of("__exp10f"), kFastLog = seed_of("__logf"),
                   kFastLog2 = seed_of("__log2f"), kFastLog10 = seed_of("__log10f"),
                   kFastSin = seed_of("__sinf"), kFastCos = seed_of("__cosf"), kFastTanh = seed_of("__tanhf"),
                   kFastDivide = seed_of("__fdividef");

float fast_exponential(float v, double exact, double ulps_per_unit, uint64_t seed) {
  if (documented_exactly(v)) return static_cast<float>(exact);
  return disturbed_ulps<float>(exact, 2 + std::floor(std::fabs(ulps_per_unit * v)), share_of(seed, v));
}

float fast_logarithm(float v, double exact, double bound_near_one, double ulps, uint64_t seed) {
  if (documented_exactly(v) || v < 0) return static_cast<float>(exact);
  const double share = share_of(seed, v);
  if (v < 0.5f || v > 2.0f) return disturbed_ulps<float>(exact, ulps, share);
  return disturbed<float>(exact, bound_near_one, share, 0);
}

double fast_trigonometric_bound(float v, double bound_near_zero) {
  return std::min(std::max(bound_near_zero, std::fabs(v) * std::exp2(-23.2)), 1.0);
}

}  // namespace

FASTNN_EMULATOR_SYMBOL float fastnn_emulator_fast_expf(float v) {
  return fast_exponential(v, std::exp(static_cast<double>(v)), 1.173, kFastExp);
}
FASTNN_EMULATOR_SYMBOL float fastnn_emulator_fast_exp10f(float v) {
  return fast_exponential(v, reference::exp10(static_cast<double>(v)), 2.97, kFastExp10);
}
FASTNN_EMULATOR_SYMBOL float fastnn_emulator_fast_logf(float v) {
  return fast_logarithm(v, std::log(static_cast<double>(v)), std::exp2(-21.41), 3, kFastLog);
}
FASTNN_EMULATOR_SYMBOL float fastnn_emulator_fast_log2f(float v) {
  return fast_logarithm(v, std::log2(static_cast<double>(v)), 0x1p-22, 2, kFastLog2);
}
FASTNN_EMULATOR_SYMBOL float fastnn_emulator_fast_log10f(float v) {
  return fast_logarithm(v, std::log10(static_cast<double>(v)), 0x1p-24, 3, kFastLog10);
}
FASTNN_EMULATOR_SYMBOL float fastnn_emulator_fast_sinf(float v) {
  if (documented_exactly(v)) return std::isfinite(v) ? v : std::numeric_limits<float>::quiet_NaN();
  const float magnitude = std::fabs(v);
  const float sine =
      disturbed<float>(std::sin(static_cast<double>(magnitude)), fast_trigonometric_bound(v, std::exp2(-21.41)),
                       share_of(kFastSin, magnitude), 1);
  return std::copysign(1.0f, v) * (std::fabs(sine) < 0x1p-126f ? std::copysign(0.0f, sine) : sine);
}
FASTNN_EMULATOR_SYMBOL float fastnn_emulator_fast_cosf(float v) {
  if (documented_exactly(v)) return std::isfinite(v) ? 1.0f : std::numeric_limits<float>::quiet_NaN();
  const float magnitude = std::fabs(v);
  return disturbed<float>(std::cos(static_cast<double>(magnitude)),
                          fast_trigonometric_bound(v, std::exp2(-21.19)), share_of(kFastCos, magnitude), 1);
}
FASTNN_EMULATOR_SYMBOL float fastnn_emulator_fast_tanhf(float v) {
  const float magnitude = std::fabs(v);
  const double exact = std::tanh(static_cast<double>(magnitude));
  if (documented_exactly(v)) return static_cast<float>(std::copysign(exact, v));
  return std::copysign(disturbed<float>(exact, exact * 0x1p-11, share_of(kFastTanh, magnitude), 1), v);
}
FASTNN_EMULATOR_SYMBOL float fastnn_emulator_fast_dividef(float a, float b) {
  if (std::fabs(b) > 0x1p126f && std::isfinite(b))
    return std::isinf(a) ? std::numeric_limits<float>::quiet_NaN() : a * std::copysign(0.0f, b);
  if (documented_exactly(a) || documented_exactly(b)) return a / b;
  return disturbed_ulps<float>(static_cast<double>(a) / b, 2, share_of(kFastDivide, a, b));
}
FASTNN_EMULATOR_SYMBOL float fastnn_emulator_fast_tanf(float v) {
  const float tangent =
      fastnn_emulator_fast_dividef(fastnn_emulator_fast_sinf(v), fastnn_emulator_fast_cosf(v));
  return std::fabs(tangent) < 0x1p-126f ? std::copysign(0.0f, tangent) : tangent;
}
FASTNN_EMULATOR_SYMBOL float fastnn_emulator_fast_powf(float a, float b) {
  return fastnn_emulator_exp2f(b * fastnn_emulator_fast_log2f(a));
}

// --- what the compiler makes of a sine and a cosine ---

FASTNN_EMULATOR_SYMBOL void sincosf(float v, float* sine, float* cosine) noexcept {
  *sine = fastnn_emulator_sinf(v);
  *cosine = fastnn_emulator_cosf(v);
}
FASTNN_EMULATOR_SYMBOL void sincos(double v, double* sine, double* cosine) noexcept {
  *sine = fastnn_emulator_sin(v);
  *cosine = fastnn_emulator_cos(v);
}

// --- minimum and maximum ---

FASTNN_EMULATOR_SYMBOL float fastnn_emulator_fminf(float a, float b) { return fastnn::emulator::lesser(a, b); }
FASTNN_EMULATOR_SYMBOL float fastnn_emulator_fmaxf(float a, float b) { return fastnn::emulator::greater(a, b); }
FASTNN_EMULATOR_SYMBOL double fastnn_emulator_fmin(double a, double b) {
  return fastnn::emulator::lesser(a, b);
}
FASTNN_EMULATOR_SYMBOL double fastnn_emulator_fmax(double a, double b) {
  return fastnn::emulator::greater(a, b);
}
