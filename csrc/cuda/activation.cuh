// The activations of ops/activation.h and their derivatives.
//
// At the bandwidth of an H200 its multiprocessors have time for some 48 instructions for each element of
// float32 that is read and written, and for half of that in a half type: about what the costly ones take. So in
// passes over memory they are inlined (as calls they took yet more registers of batch norm's). The epilogues of
// convolutions, which are many and have time, call them.
#pragma once

#include <cmath>

#include "../ops/activation_math.h"
#include "cell_math.cuh"
#include "dispatch.cuh"
#include "platform.cuh"
#include "vec.cuh"

namespace fastnn::cuda {

FASTNN_HOST_DEVICE float exponential_minus_1(float v) { return expm1f(v); }
FASTNN_HOST_DEVICE double exponential_minus_1(double v) { return expm1(v); }
FASTNN_HOST_DEVICE float logarithm_of_1_plus(float v) { return log1pf(v); }
FASTNN_HOST_DEVICE double logarithm_of_1_plus(double v) { return log1p(v); }
FASTNN_HOST_DEVICE float error_function(float v) { return erff(v); }
FASTNN_HOST_DEVICE double error_function(double v) { return erf(v); }

template <typename T>
struct ActivationMath : CellMath<T> {
  static FASTNN_HOST_DEVICE T exp(T x) { return exponential(x); }
  static FASTNN_HOST_DEVICE T expm1(T x) { return exponential_minus_1(x); }
  static FASTNN_HOST_DEVICE T log1p(T x) { return logarithm_of_1_plus(x); }
  static FASTNN_HOST_DEVICE T erf(T x) { return error_function(x); }
  static FASTNN_HOST_DEVICE bool positive(T x) { return !(x <= T(0)); }
  static FASTNN_HOST_DEVICE T if_positive(T x, T a, T b) { return positive(x) ? a : b; }
};

template <typename acc_t>
__device__ FASTNN_NOINLINE acc_t called_activation_value(Activation kind, acc_t alpha, acc_t z) {
  return activation_value<ActivationMath<acc_t>>(kind, alpha, z);
}

template <typename scalar_t>
struct ActivationOf {
  using acc_t = acc_type<scalar_t>;
  using Math = ActivationMath<acc_t>;
  Activation kind;
  acc_t alpha;

  __host__ __device__ ActivationOf(Activation of_kind, double of_alpha)
      : kind(of_kind), alpha(static_cast<acc_t>(of_alpha)) {}

  __device__ __forceinline__ static bool positive(acc_t z) { return Math::positive(z); }

  __device__ __forceinline__ acc_t value(acc_t z) const { return activation_value<Math>(kind, alpha, z); }

  // The same to the bit, by a call where it is costly.
  __device__ __forceinline__ acc_t value_by_call(acc_t z) const {
    if (kind == Activation::kRectify) return rectified(z, positive(z));
    return called_activation_value(kind, alpha, z);
  }

  // gy * y' where the sign of z is known.
  __device__ __forceinline__ acc_t rectified(acc_t gy, bool is_positive) const {
    return is_positive ? gy : alpha == acc_t(0) ? acc_t(0) : gy * alpha;
  }
  __device__ __forceinline__ acc_t gradient_of_kept(acc_t gy, acc_t kept) const {
    return activation_gradient<Math>(kind, alpha, gy, kept);
  }
  __device__ __forceinline__ acc_t gradient_at(acc_t gy, acc_t z) const {
    return activation_gradient_at<Math>(kind, alpha, gy, z);
  }
};

}  // namespace fastnn::cuda
