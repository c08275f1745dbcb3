// What follows a normalisation in the same pass, its derivative, and the mask between them (ops/batch_norm.h
// has the formulas).
//
// The mask is words of 32 bits, as a warp votes them: elements are taken in the order of memory, in groups of
// 32 vectors of kVecSize; bit l of a group's word k is element k of vector l. So one vote is one word, which
// the warp that maps a group writes with no other, and a thread that reads a vector reads kVecSize words next
// to each other, the same as its neighbours.
#pragma once

#include <cmath>
#include <cstdint>

#include "../ops/batch_norm.h"
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
struct MaskWords {
  static constexpr int kSize = kVecSize<scalar_t>;
  uint32_t* words;  // null: there is no mask

  // The word and the bit of element i.
  __device__ __forceinline__ bool get(int64_t i) const {
    const int64_t vector = i / kSize;
    return words[vector / kWarpSize * kSize + i % kSize] >> (vector % kWarpSize) & 1;
  }

  // Bit k: element i + k. i is a multiple of kVec, which is kSize or 1.
  template <int kVec>
  __device__ __forceinline__ uint32_t load(int64_t i) const {
    if constexpr (kVec == 1) {
      return get(i);
    } else {
      const int64_t vector = i / kSize;
      const uint32_t* const group = words + vector / kWarpSize * kSize;
      uint32_t bits = 0;
#pragma unroll
      for (int k = 0; k < kSize; ++k) bits |= (group[k] >> (vector % kWarpSize) & 1) << k;
      return bits;
    }
  }

  // The whole warp takes part; lane l has vector l of the group of element i, bit k of `bits` for its element
  // k.
  __device__ __forceinline__ void store(int64_t i, uint32_t bits) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    uint32_t mine = 0;
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      const uint32_t word = __ballot_sync(kFullWarp, bits >> k & 1);
      if (lane == k) mine = word;
    }
    if (lane < kSize) words[i / (kSize * kWarpSize) * kSize + lane] = mine;
  }
};

template <typename scalar_t>
struct ActivationOf {
  using acc_t = acc_type<scalar_t>;
  Activation kind;
  acc_t alpha;

  explicit ActivationOf(const BatchNormActivation& a) : kind(a.kind), alpha(static_cast<acc_t>(a.alpha)) {}

  __device__ __forceinline__ static bool positive(acc_t z) { return !(z <= acc_t(0)); }

  __device__ __forceinline__ acc_t value(acc_t z) const {
    if (positive(z)) return z;
    if (kind == Activation::kElu) return alpha * expm1(z);
    return alpha == acc_t(0) ? acc_t(0) : alpha * z;
  }

  // y' from z where y is not given, else from y.
  __device__ __forceinline__ acc_t gradient(acc_t gy, bool is_positive, bool has_y, acc_t z_or_y) const {
    if (is_positive) return gy;
    if (kind == Activation::kElu) return gy * (has_y ? z_or_y + alpha : alpha * exp(z_or_y));
    return alpha == acc_t(0) ? acc_t(0) : gy * alpha;
  }
};

// grad_y * y' of an element, from what there is: bits, y or x.
template <typename scalar_t>
struct ActivationGradient {
  using acc_t = acc_type<scalar_t>;
  ActivationOf<scalar_t> act;
  MaskWords<scalar_t> mask;
  bool has_y;
  const acc_t* scale;
  const acc_t* shift;

  struct Channel {
    acc_t mean, scale, shift;
  };

  explicit ActivationGradient(const BatchNormActivation& a)
      : act(a),
        mask{static_cast<uint32_t*>(a.mask)},
        has_y(a.y != nullptr),
        scale(static_cast<const acc_t*>(a.scale)),
        shift(static_cast<const acc_t*>(a.shift)) {}

  __device__ __forceinline__ Channel channel(int64_t c, acc_t mean) const { return {mean, scale[c], shift[c]}; }

  template <int kVec, typename Normalisers>
  __device__ __forceinline__ void channels(int64_t c, const Normalisers (&x)[kVec],
                                           Channel (&channel)[kVec]) const {
    acc_t scales[kVec], shifts[kVec];
    load_values(scale, c, scales);
    load_values(shift, c, shifts);
#pragma unroll
    for (int k = 0; k < kVec; ++k) channel[k] = {x[k].mean, scales[k], shifts[k]};
  }

  template <int kVec>
  __device__ __forceinline__ uint32_t bits(int64_t i) const {
    return mask.words != nullptr ? mask.template load<kVec>(i) : 0;
  }

  __device__ __forceinline__ acc_t operator()(const Channel& k, acc_t gy, acc_t x, acc_t y, bool bit) const {
    if (mask.words != nullptr) return act.gradient(gy, bit, false, acc_t(0));
    const acc_t seen = has_y ? y : multiply_add(x - k.mean, k.scale, k.shift);
    return act.gradient(gy, act.positive(seen), has_y, seen);
  }
};

}  // namespace fastnn::cuda
