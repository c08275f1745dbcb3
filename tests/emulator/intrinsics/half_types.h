// The two 16-bit floating-point types as storage, pairs of them, tf32, and the conversions with the device's
// results: nearest even, subnormals kept, overflow to infinity, every NaN to 0x7FFF. Arithmetic:
// half_arithmetic.h.
#pragma once

#include <bit>
#include <cstdint>

#include "rounding.h"

namespace fastnn::cuda {

struct float16_t {
  uint16_t bits;
};
struct bfloat16_t {
  uint16_t bits;
};
struct alignas(4) float16x2_t {
  float16_t x, y;
};
struct alignas(4) bfloat16x2_t {
  bfloat16_t x, y;
};

}  // namespace fastnn::cuda

namespace fastnn::emulator {

inline float float_from_half_bits(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  if (magnitude > Float16Format::kInfinity) return std::bit_cast<float>(Float32Format::kNan);
  if (magnitude == Float16Format::kInfinity) return std::bit_cast<float>(sign | Float32Format::kInfinity);
  if (magnitude >= 0x0400) return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
  const uint32_t value = std::bit_cast<uint32_t>(static_cast<float>(magnitude) * 0x1p-24f);
  return std::bit_cast<float>(sign | value);
}

// As round_to_bits() gives them. Kernels convert every element that they store: these take a third of the
// steps.
inline uint16_t half_bits_from_float(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > Float32Format::kInfinity) return Float16Format::kNan;
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
  if ((bits & 0x7fffffff) > Float32Format::kInfinity) return BFloat16Format::kNan;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// What the tensor cores read of a float that stands where they want tf32 (sign, 8 bits of exponent, 10 of
// fraction): the low 13 bits are ignored (PTX ISA, "Alternate Floating-Point Data Formats").
inline float truncate_to_tf32(float value) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) & ~uint32_t{0x1fff});
}

}  // namespace fastnn::emulator

namespace fastnn::cuda {

inline double to_acc(double v) { return v; }
inline float to_acc(float v) { return v; }
inline float to_acc(float16_t v) { return emulator::float_from_half_bits(v.bits); }
// A shift on the device too: a NaN keeps its bits.
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
  return {static_cast<uint16_t>(
      emulator::round_to_bits<emulator::Float16Format>(v, emulator::Rounding::kNearestEven))};
}
template <>
inline bfloat16_t from_acc<bfloat16_t>(double v) {
  return {static_cast<uint16_t>(
      emulator::round_to_bits<emulator::BFloat16Format>(v, emulator::Rounding::kNearestEven))};
}

// cvt.rna.tf32.f32: to the nearest number of tf32, ties away from zero; a float whose low 13 bits are zero.
inline float round_to_tf32(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  if ((bits & 0x7fffffff) > emulator::Float32Format::kInfinity)
    return std::bit_cast<float>(emulator::Float32Format::kNan);
  return emulator::truncate_to_tf32(std::bit_cast<float>(bits + 0x1000));
}

}  // namespace fastnn::cuda
