// The activations of ops/activation.h and their derivatives.
#pragma once

#include <cmath>

#include "../ops/activation.h"
#include "dispatch.cuh"
#include "platform.cuh"
#include "vec.cuh"

namespace fastnn::cuda {

template <typename scalar_t>
struct ActivationOf {
  using acc_t = acc_type<scalar_t>;
  Activation kind;
  acc_t alpha;

  __host__ __device__ ActivationOf(Activation of_kind, double of_alpha)
      : kind(of_kind), alpha(static_cast<acc_t>(of_alpha)) {}

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

}  // namespace fastnn::cuda
