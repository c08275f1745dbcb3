// An exact result rounded once to a narrower format, in any direction. What a double cannot hold exactly comes
// rounded to odd: of the two doubles around it the one with an odd last place, which lies on the same side of
// every number, and of every tie, of a format at least two bits narrower (Boldo and Melquiond 2008).
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace fastnn::emulator {

enum class Rounding : uint8_t { kNearestEven, kZero, kDown, kUp };

// An IEEE binary format by the bits of its fraction and the exponent of its smallest normal number.
template <int kFractionBits_, int kMinExponent_>
struct BinaryFormat {
  static constexpr int kFractionBits = kFractionBits_, kMinExponent = kMinExponent_;
  static constexpr uint32_t kInfinity = static_cast<uint32_t>(3 - 2 * kMinExponent) << kFractionBits;
  static constexpr uint32_t kSign = kInfinity + (1u << kFractionBits);
  static constexpr uint32_t kNan = kSign - 1;  // the only NaN that the device's arithmetic makes
};
using Float32Format = BinaryFormat<23, -126>;
using Float16Format = BinaryFormat<10, -14>;
using BFloat16Format = BinaryFormat<7, -126>;

// Bits of `value` in the format. Subnormals are kept, as everywhere on the device without -ftz=true.
template <typename Format>
inline uint32_t round_to_bits(double value, Rounding rounding) {
  const uint64_t bits = std::bit_cast<uint64_t>(value);
  const bool negative = bits >> 63;
  const uint32_t sign = negative ? Format::kSign : 0;
  const int field = static_cast<int>(bits >> 52 & 0x7ff);
  uint64_t mantissa = bits & ((uint64_t{1} << 52) - 1);
  if (field == 0x7ff) return mantissa != 0 ? Format::kNan : sign | Format::kInfinity;
  if (field != 0) mantissa |= uint64_t{1} << 52;
  int exponent = std::max(field, 1) - 1023;
  int dropped = 52 - Format::kFractionBits;
  if (exponent < Format::kMinExponent) {
    dropped = std::min(dropped + Format::kMinExponent - exponent, 55);  // all, and more than half a place
    exponent = Format::kMinExponent;
  }
  const uint64_t whole = mantissa >> dropped, rest = mantissa & ((uint64_t{1} << dropped) - 1);
  const uint64_t half = uint64_t{1} << (dropped - 1);
  bool away = false;
  switch (rounding) {
    case Rounding::kNearestEven:
      away = rest > half || (rest == half && (whole & 1));
      break;
    case Rounding::kZero:
      break;
    case Rounding::kDown:
      away = negative && rest != 0;
      break;
    case Rounding::kUp:
      away = !negative && rest != 0;
      break;
  }
  // The leading one of a normal number counts one up in the exponent's field.
  const uint64_t magnitude =
      whole + away + (static_cast<uint64_t>(exponent - Format::kMinExponent) << Format::kFractionBits);
  if (magnitude < Format::kInfinity) return sign | static_cast<uint32_t>(magnitude);
  const bool to_infinity =
      rounding == Rounding::kNearestEven || rounding == (negative ? Rounding::kDown : Rounding::kUp);
  return sign | (Format::kInfinity - (to_infinity ? 0 : 1));
}

// The result rounded to odd, given the nearest double and the sign of what it lacks.
inline double make_odd(double nearest, double lacking) {
  const uint64_t bits = std::bit_cast<uint64_t>(nearest);
  if (lacking == 0 || (bits & 1) != 0 || !std::isfinite(nearest)) return nearest;
  return std::bit_cast<double>((lacking > 0) == (nearest > 0) ? bits + 1 : bits - 1);
}

// Operands far enough from the ends of a double's range, as those that come of narrower formats are.
inline double odd_sum(double a, double b) {
  const double sum = a + b;
  if (!std::isfinite(sum)) return sum;
  const double b_taken = sum - a;
  return make_odd(sum, (a - (sum - b_taken)) + (b - b_taken));  // Knuth's exact error of a sum
}
inline double odd_quotient(double a, double b) {
  const double quotient = a / b;
  if (quotient == 0 || !std::isfinite(quotient)) return quotient;
  const double rest = std::fma(-quotient, b, a);
  return make_odd(quotient, b < 0 ? -rest : rest);
}
inline double odd_root(double v) {
  const double root = std::sqrt(v);
  if (root == 0 || !std::isfinite(root)) return root;
  return make_odd(root, std::fma(-root, root, v));
}
inline double odd_integer(uint64_t v) {
  if (v >> 53 != 0) v = (v & ~uint64_t{0xfff}) | (v & 0xfff ? 0x1000 : 0);
  return static_cast<double>(v);
}
inline double odd_integer(int64_t v) {
  const uint64_t magnitude = v < 0 ? 0 - static_cast<uint64_t>(v) : static_cast<uint64_t>(v);
  return v < 0 ? -odd_integer(magnitude) : odd_integer(magnitude);
}

}  // namespace fastnn::emulator
