// The activation with which a convolution stores its results: of what would have been stored without it, so
// that every kernel gives the bits of its own results' activation, however they came to be.
#pragma once

#include "../ops/conv.h"
#include "activation.cuh"
#include "dispatch.cuh"
#include "platform.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

// Whether it costs a call.
__device__ __forceinline__ bool is_curved(const ConvActivation& activation) {
  return activation.kind != Activation::kNone && activation.kind != Activation::kRectify;
}

template <typename scalar_t>
__device__ __forceinline__ scalar_t activated(const ConvActivation& activation, scalar_t z) {
  if (activation.kind == Activation::kNone) return z;
  return from_acc<scalar_t>(ActivationOf<scalar_t>(activation.kind, activation.alpha).value_by_call(to_acc(z)));
}

template <typename scalar_t, int kVec>
__device__ __forceinline__ Vec<scalar_t, kVec> activated(const ConvActivation& activation,
                                                         Vec<scalar_t, kVec> z) {
  if (activation.kind == Activation::kNone) return z;
#pragma unroll
  for (int k = 0; k < kVec; ++k) z.v[k] = activated(activation, z.v[k]);
  return z;
}

}  // namespace
}  // namespace fastnn::cuda
