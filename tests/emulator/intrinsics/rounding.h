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

// Of operands far enough from the ends of a double's range, as those that come of narrower formats are.
// Quotients and roots of such need nothing of the kind: as doubles they are on the right side of every number
// and tie, for what is not one differs from it by more than 2^-51 of itself (the dividend is no multiple of a
// product of 49 bits).
inline double odd_sum(double a, double b) {
  const double sum = a + b;
  const uint64_t bits = std::bit_cast<uint64_t>(sum);
  if ((bits & 1) != 0 || !std::isfinite(sum)) return sum;
  const double b_taken = sum - a;
  const double lacking = (a - (sum - b_taken)) + (b - b_taken);  // Knuth's exact error of a sum
  if (lacking == 0) return sum;
  return std::bit_cast<double>((lacking > 0) == (sum > 0) ? bits + 1 : bits - 1);
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
