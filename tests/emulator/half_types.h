// The two 16-bit floating-point types, as storage, and their conversions with the device's results: nearest
// even, subnormals kept, overflow to infinity, every NaN to 0x7FFF.
#pragma once

#include <bit>
#include <cstdint>

namespace fastnn::cuda {

struct float16_t {
  uint16_t bits;
};
struct bfloat16_t {
  uint16_t bits;
};

}  // namespace fastnn::cuda

namespace fastnn::emulator {

inline constexpr uint32_t kFloatInf = 0x7f800000u;

inline float float_from_half_bits(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | kFloatInf | (magnitude & 0x3ff) << 13);
  if (magnitude >= 0x0400) return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
  const uint32_t value = std::bit_cast<uint32_t>(static_cast<float>(magnitude) * 0x1p-24f);
  return std::bit_cast<float>(sign | value);
}

inline uint16_t half_bits_from_float(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > kFloatInf) return 0x7fff;
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // 65520, half way past the largest
  if (magnitude >= 0x38800000) {  // 2^-14, the smallest normal number
    const uint32_t odd = magnitude >> 13 & 1;
    return static_cast<uint16_t>(sign | (magnitude - (112u << 23) + 0xfff + odd) >> 13);
  }
  // The last place of a float between 0.5 and 1 is 2^-24, as of a subnormal half: the addition rounds.
  const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
  return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
}

inline uint16_t bfloat16_bits_from_float(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > kFloatInf) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// To float with rounding to odd, after which a second rounding to fewer bits is exact.
inline float round_to_odd(double value) {
  const float nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) == value || value != value) return nearest;
  uint32_t bits = std::bit_cast<uint32_t>(nearest);
  const double magnitude = value < 0 ? -value : value;
  if (std::bit_cast<float>(bits & 0x7fffffff) > magnitude) --bits;
  return std::bit_cast<float>(bits | 1);
}

}  // namespace fastnn::emulator

namespace fastnn::cuda {

inline double to_acc(double v) { return v; }
inline float to_acc(float v) { return v; }
inline float to_acc(float16_t v) { return emulator::float_from_half_bits(v.bits); }
inline float to_acc(bfloat16_t v) { return std::bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }

template <typename scalar_t>
inline scalar_t from_acc(double v) {
  return static_cast<scalar_t>(v);
}
template <typename scalar_t>
inline scalar_t from_acc(float v) {
  return static_cast<scalar_t>(v);
}
template <>
inline float16_t from_acc<float16_t>(float v) {
  return {emulator::half_bits_from_float(v)};
}
template <>
inline bfloat16_t from_acc<bfloat16_t>(float v) {
  return {emulator::bfloat16_bits_from_float(v)};
}
template <>
inline float16_t from_acc<float16_t>(double v) {
  return from_acc<float16_t>(emulator::round_to_odd(v));
}
template <>
inline bfloat16_t from_acc<bfloat16_t>(double v) {
  return from_acc<bfloat16_t>(emulator::round_to_odd(v));
}

}  // namespace fastnn::cuda
