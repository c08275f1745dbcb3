// Batch normalisation (Ioffe and Szegedy 2015) over N and the spatial positions, per channel.
//
//   mean = sum(x) / M,  var = sum((x - mean)^2) / M,  M = N * S
//   xhat = (x - mean) * invstd,  invstd = 1 / sqrt(var + eps),  y = weight * xhat + bias
//
// Training takes mean and var from the batch, by a method safe at large means (shifted or pairwise-combined
// sums of squared differences, never E[x^2] - E[x]^2), and moves the running statistics; evaluation takes
// them from the running statistics. The derivative formulas stand in batch_norm_math.h.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "status.h"
#include "stream.h"

namespace fastnn {

struct BatchNormShape {
  Layout layout;    // kChannelsFirst: [N, C, S]; kChannelsLast: [N, S, C]; both dense
  int64_t N, C, S;  // S: product of the spatial sizes, 1 for 2-D input
};

struct BatchNormForwardParams {
  DType dtype;        // of x and y
  DType param_dtype;  // of weight, bias and the running statistics: dtype, or float32 beside a half dtype
  BatchNormShape shape;
  bool training;
  double eps;
  const void* x;
  const void* weight;  // [C]; null for 1
  const void* bias;    // [C]; null for 0
  // Training: updated in place, null for none. Evaluation: read, never null.
  void* running_mean;  // [C]
  void* running_var;   // [C], unbiased: M / (M - 1) * var
  // running = (1 - factor) * running + factor * batch. factor is `momentum`, or when `cumulative` is set
  // 1 / (num_batches_tracked + 1), read on the device so that nobody waits for it.
  double momentum;
  bool cumulative;
  int64_t* num_batches_tracked;  // one element, incremented in training; null for none
  void* y;
  void* mean;       // [C] of the accumulation type; written in both modes
  void* invstd;     // [C] of the accumulation type; written in both modes
  void* workspace;  // batch_norm_forward_workspace() bytes, aligned to 64
};

struct BatchNormBackwardParams {
  DType dtype;        // of grad_y, x, grad_x
  DType param_dtype;  // of weight, grad_weight, grad_bias
  BatchNormShape shape;
  bool training;  // whether mean and invstd were functions of x
  const void* grad_y;
  const void* x;
  const void* weight;  // null for 1
  const void* mean;    // [C], accumulation type
  const void* invstd;  // [C], accumulation type
  void* grad_x;        // each of the three is null when not wanted
  void* grad_weight;
  void* grad_bias;
  void* workspace;  // batch_norm_backward_workspace() bytes, aligned to 64
};

// Derivative of backward in the direction (gg_x, gg_weight, gg_bias): with
// L = <gg_x, grad_x> + <gg_weight, grad_weight> + <gg_bias, grad_bias>, writes dL/dgrad_y, dL/dx, dL/dweight.
// d_grad_y alone is also the tangent of forward, since it does not depend on grad_y.
struct BatchNormDoubleBackwardParams {
  DType dtype;
  DType param_dtype;
  BatchNormShape shape;
  bool training;
  const void* gg_x;       // shape of x; null for 0
  const void* gg_weight;  // [C], param_dtype; null for 0
  const void* gg_bias;    // [C], param_dtype; null for 0
  const void* grad_y;     // null for 0
  const void* x;
  const void* weight;
  const void* mean;
  const void* invstd;
  void* d_grad_y;  // each of the three is null when not wanted
  void* d_x;
  void* d_weight;   // [C], param_dtype
  void* workspace;  // batch_norm_double_backward_workspace() bytes, aligned to 64
};

FASTNN_DECLARE_OP(batch_norm_forward, BatchNormForwardParams)
FASTNN_DECLARE_WORKSPACE(batch_norm_forward, BatchNormForwardParams)
FASTNN_DECLARE_OP(batch_norm_backward, BatchNormBackwardParams)
FASTNN_DECLARE_WORKSPACE(batch_norm_backward, BatchNormBackwardParams)
FASTNN_DECLARE_OP(batch_norm_double_backward, BatchNormDoubleBackwardParams)
FASTNN_DECLARE_WORKSPACE(batch_norm_double_backward, BatchNormDoubleBackwardParams)

}  // namespace fastnn
