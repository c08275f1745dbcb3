#include "tensor_core_arithmetic.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "half_types.h"

namespace fastnn::emulator {
namespace {

constexpr int kFractionBits = 25;
constexpr int kZeroExponent = -126;  // of zeros of every type
constexpr int kFloatMinExponent = -126, kHalfMinExponent = -14;

struct Element {
  double value;
  int exponent;  // 1 <= |value| / 2^exponent < 2, less for subnormal numbers
  bool finite;
};

Element from_float_bits(uint32_t bits) {
  const uint32_t field = bits >> 23 & 0xff;
  return {.value = std::bit_cast<float>(bits),
          .exponent = std::max(static_cast<int>(field) - 127, kFloatMinExponent),
          .finite = field != 0xff};
}

Element from_half_bits(uint16_t bits) {
  const int field = bits >> 10 & 0x1f;
  return {.value = float_from_half_bits(bits),
          .exponent = (bits & 0x7fff) == 0 ? kZeroExponent : std::max(field - 15, kHalfMinExponent),
          .finite = field != 0x1f};
}

constexpr double power_of_two(int exponent) {
  return std::bit_cast<double>(static_cast<uint64_t>(1023 + exponent) << 52);
}

// A product is less than 4 in units of its exponent: |term| < 2^27, and half a sum fits 32 bits. Exact products
// in double and the conversion that cuts toward zero are instructions that a compiler vectorises everywhere.
template <unsigned kDepth>
double sum_of_products(const MmaVector& a, const MmaVector& b, const Element& c) {
  int16_t largest = static_cast<int16_t>(c.exponent);
  for (unsigned k = 0; k < kDepth; ++k) {
    const auto exponent = static_cast<int16_t>(a.exponents[k] + b.exponents[k]);
    largest = std::max(largest, exponent);
  }
  const double scale = power_of_two(kFractionBits - largest);
  auto sum = static_cast<int64_t>(c.value * scale);
  int32_t terms[kDepth];
  for (unsigned k = 0; k < kDepth; ++k) terms[k] = static_cast<int32_t>(a.values[k] * b.values[k] * scale);
  for (unsigned half = 0; half < kDepth; half += kDepth / 2) {
    int32_t partial = 0;
    for (unsigned k = half; k < half + kDepth / 2; ++k) partial += terms[k];
    sum += partial;
  }
  return static_cast<double>(sum) * power_of_two(largest - kFractionBits);
}

double sum_with_specials(const MmaVector& a, const MmaVector& b, unsigned depth, double c) {
  for (unsigned k = 0; k < depth; ++k) c += a.values[k] * b.values[k];
  return c;
}

double sum(const MmaVector& a, const MmaVector& b, unsigned depth, const Element& c) {
  if (!a.finite || !b.finite || !c.finite) return sum_with_specials(a, b, depth, c.value);
  switch (depth) {
    case 4:
      return sum_of_products<4>(a, b, c);
    case 8:
      return sum_of_products<8>(a, b, c);
    default:
      return sum_of_products<16>(a, b, c);
  }
}

float truncate_to_float(double value) {
  if (std::isnan(value)) return std::bit_cast<float>(Float32Format::kNan);
  const auto nearest = static_cast<float>(value);
  if (std::abs(value) >= 0x1p128 || std::abs(static_cast<double>(nearest)) <= std::abs(value)) return nearest;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(nearest) - 1);
}

}  // namespace

void unpack(MmaVector& vector, MmaType type, unsigned first, const void* packed, unsigned count) {
  const auto* bytes = static_cast<const char*>(packed);
  for (unsigned i = 0; i < count; ++i) {
    uint32_t word = 0;
    std::memcpy(&word, bytes + i * element_bytes(type), element_bytes(type));
    const Element element = type == MmaType::kFloat16    ? from_half_bits(static_cast<uint16_t>(word))
                            : type == MmaType::kBfloat16 ? from_float_bits(word << 16)
                                                         : from_float_bits(word & 0xffffe000u);
    vector.values[first + i] = element.value;
    vector.exponents[first + i] = static_cast<int16_t>(element.exponent);
    vector.finite &= element.finite;
  }
}

float dot_add(const MmaVector& a, const MmaVector& b, unsigned depth, float c) {
  return truncate_to_float(sum(a, b, depth, from_float_bits(std::bit_cast<uint32_t>(c))));
}

uint16_t dot_add_half(const MmaVector& a, const MmaVector& b, unsigned depth, uint16_t c) {
  const double exact = sum(a, b, depth, from_half_bits(c));
  return static_cast<uint16_t>(round_to_bits<Float16Format>(exact, Rounding::kNearestEven));
}

}  // namespace fastnn::emulator
