// The derivative of what follows a normalisation in the same pass, and the mask between the two
// (ops/batch_norm.h has the formulas).
//
// The mask is a bit for each element in the order of memory, eight to a byte. A vector of a half type is a
// byte, which its thread stores; two of float32 and four of float64 are one, which their threads, neighbours in
// a warp, put together. So a warp stores 32, 16 or 8 bytes next to each other, and reads as many.
#pragma once

#include <cstdint>

#include "../ops/batch_norm.h"
#include "activation.cuh"
#include "channels.cuh"
#include "dispatch.cuh"
#include "platform.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace fastnn::cuda {

// a * b + c, rounded once. Written out, so that z is the same to the bit wherever it is computed.
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

template <typename scalar_t>
struct MaskBits {
  uint8_t* bytes;  // null: there is no mask

  // Bit k: element i + k. i is a multiple of kVec where that is more than 1.
  template <int kVec>
  __device__ __forceinline__ uint32_t load(int64_t i) const {
    static_assert(kVec <= kBitsTogether);
    return bytes[i / kBitsTogether] >> (i % kBitsTogether) & ((1u << kVec) - 1);
  }

  // The whole warp takes part; lanes have vectors next to each other, of which i is the first element.
  __device__ __forceinline__ void store(int64_t i, uint32_t bits, bool exists) const {
    constexpr int kVec = kVecSize<scalar_t>, kLanes = kBitsTogether / kVec;
    const int place = thread_in_block() % kLanes;
    uint32_t byte = exists ? bits << (place * kVec) : 0;
#pragma unroll
    for (int lanes = 1; lanes < kLanes; lanes *= 2) byte |= __shfl_xor_sync(kFullWarp, byte, lanes);
    if (exists && place == 0) bytes[i / kBitsTogether] = static_cast<uint8_t>(byte);
  }
};

// grad_y * y' of an element, from bits, or from x and the residual.
template <typename scalar_t>
struct ActivationGradient {
  using acc_t = acc_type<scalar_t>;
  ActivationOf<scalar_t> act;
  MaskBits<scalar_t> mask;
  bool has_residual;
  const acc_t* scale;
  const acc_t* shift;

  struct Channel {
    acc_t mean, scale, shift;
  };

  explicit ActivationGradient(const BatchNormActivation& a)
      : act(a.kind, a.alpha),
        mask{static_cast<uint8_t*>(a.mask)},
        has_residual(a.residual != nullptr),
        scale(static_cast<const acc_t*>(a.scale)),
        shift(static_cast<const acc_t*>(a.shift)) {}

  __device__ __forceinline__ Channel channel(int64_t c, acc_t mean) const { return {mean, scale[c], shift[c]}; }

  __host__ __device__ __forceinline__ bool has_bits() const { return mask.bytes != nullptr; }
  template <int kVec>
  __device__ __forceinline__ uint32_t bits(int64_t i) const {
    return mask.bytes != nullptr ? mask.template load<kVec>(i) : 0;
  }

  __device__ __forceinline__ acc_t operator()(const Channel& k, acc_t gy, acc_t x, acc_t residual,
                                              bool bit) const {
    if (mask.bytes != nullptr) return act.rectified(gy, bit);
    acc_t z = multiply_add(x - k.mean, k.scale, k.shift);
    if (has_residual) z += residual;
    return act.gradient_at(gy, z);
  }
};

}  // namespace fastnn::cuda
