// Activations: those that other ops apply in the same pass as their own work, and the op that applies one by
// itself, behind a sum where there is one.
//
//   kRectify      z where z > 0 or NaN, else alpha * z
//   kElu          z where z > 0 or NaN, else alpha * (exp(z) - 1)
//   kSoftplus     log(1 + exp(alpha * z)) / alpha, and z where alpha * z > 20, as in torch
//   kSigmoid      1 / (1 + exp(-z))
//   kTanh         tanh(z)
//   kHardSigmoid  min(max(z + 3, 0), 6) / 6
//   kGelu         z * Phi(z), Phi(z) = (1 + erf(z / sqrt(2))) / 2
//   kGeluTanh     z / 2 * (1 + tanh(sqrt(2 / pi) * (z + 0.044715 * z^3)))
//   kSilu         z / (1 + exp(-z))
//
// The derivative y' is a function of y for all but the last three, which are not monotone: what is kept for
// backward is y there and z here. With kRectify and kElu that takes alpha >= 0.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "status.h"
#include "stream.h"

namespace fastnn {

enum class Activation : int {
  kNone,
  kRectify,  // alpha 0: ReLU, also of -inf; 1: the identity; else leaky ReLU
  kElu,
  kSoftplus,
  kSigmoid,
  kTanh,
  kHardSigmoid,
  kGelu,
  kGeluTanh,
  kSilu,
};

// alpha * z from which kSoftplus is z.
inline constexpr double kSoftplusThreshold = 20;

// Whether y' is found from y; else from z.
constexpr bool derives_from_output(Activation kind) {
  return kind != Activation::kGelu && kind != Activation::kGeluTanh && kind != Activation::kSilu;
}

struct ActivationForwardParams {
  DType dtype;
  Activation kind;
  double alpha;
  int64_t count;
  const void* x;         // [count]
  const void* residual;  // [count]; null for none
  void* y;               // [count]: act(x + residual), of the sum as it is before it is rounded to dtype
};

struct ActivationBackwardParams {
  DType dtype;
  Activation kind;
  double alpha;
  int64_t count;
  const void* grad_y;
  const void* x;         // [count]: y where derives_from_output(kind), else x as it was in forward
  const void* residual;  // [count], as in forward; null for none, and where y is given
  void* grad_x;          // [count]: grad_y * y'
};

FASTNN_DECLARE_OP(activation_forward, ActivationForwardParams)
FASTNN_DECLARE_OP(activation_backward, ActivationBackwardParams)

}  // namespace fastnn
