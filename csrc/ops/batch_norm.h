// Batch normalisation (Ioffe and Szegedy 2015) over N and the spatial positions, per channel.
//
//   mean = sum(x) / M,  var = sum((x - mean)^2) / M,  M = N * S
//   xhat = (x - mean) * invstd,  invstd = 1 / sqrt(var + eps),  y = weight * xhat + bias
//
// Training takes mean and var from the batch, by a method safe at large means (shifted or pairwise-combined
// sums of squared differences, never E[x^2] - E[x]^2), and moves the running statistics; evaluation takes
// them from the running statistics. The derivative formulas stand in batch_norm_math.h.
//
// An activation may follow in the same pass, and before it a sum with a second tensor:
//
//   z = (x - mean) * scale + shift [+ residual],  scale = weight * invstd,  shift = bias
//   y = act(z), see activation.h
//
// Backward needs y' alone. Without a residual it finds z again, to the bit, from x, which it reads anyway, and
// nothing is kept for it. With one, forward leaves a bit for each value (kRectify), or the residual is read
// too.
#pragma once

#include <cstdint>

#include "activation.h"
#include "dtype.h"
#include "status.h"
#include "stream.h"

namespace fastnn {

struct BatchNormShape {
  Layout layout;    // kChannelsFirst: [N, C, S]; kChannelsLast: [N, S, C]; both dense
  int64_t N, C, S;  // S: product of the spatial sizes, 1 for 2-D input
};

// What follows the normalisation.
struct BatchNormActivation {
  Activation kind;
  double alpha;
  const void* residual;  // like x; null for none. Backward reads it where it has no mask
  // By channel, of the accumulation type. Forward writes them where they are not null, the others read them.
  void* scale;
  void* shift;
  // batch_norm_mask_bytes(): a bit for each value, set where z > 0 or NaN, in an order of the backend's own.
  // Forward writes it where it is not null; backward finds z again where it is null.
  void* mask;
};

// Bytes of a mask: each run of S values, or of C, may begin at a byte of its own, and the last of them may be
// part of 32.
inline int64_t batch_norm_mask_bytes(const BatchNormShape& shape) {
  const bool rows = shape.layout == Layout::kChannelsLast;
  const int64_t bytes = shape.N * (rows ? shape.S * ((shape.C + 7) / 8) : shape.C * ((shape.S + 7) / 8));
  return (bytes + 31) / 32 * 32;
}

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
  // Training: whether a batch of which a channel's mean or variance is not finite moves no running statistic of
  // any channel and is not counted.
  bool skip_nonfinite;
  BatchNormActivation activation;
  void* y;          // null where the statistics alone are wanted
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
  BatchNormActivation activation;
  void* grad_x;  // each of the four is null when not wanted
  void* grad_weight;
  void* grad_bias;
  void* grad_residual;  // like x: grad_y * y'
  void* workspace;      // batch_norm_backward_workspace() bytes, aligned to 64
};

// What forward's last pass does, or its derivative, of statistics that are known.
struct BatchNormApplyParams {
  DType dtype;
  BatchNormShape shape;
  const void* grad_y;  // null: y is wanted; else grad_y * y'
  const void* x;
  const void* mean;  // [C], accumulation type
  BatchNormActivation activation;
  void* out;  // like x
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
FASTNN_DECLARE_OP(batch_norm_apply, BatchNormApplyParams)
FASTNN_DECLARE_OP(batch_norm_backward, BatchNormBackwardParams)
FASTNN_DECLARE_WORKSPACE(batch_norm_backward, BatchNormBackwardParams)
FASTNN_DECLARE_OP(batch_norm_double_backward, BatchNormDoubleBackwardParams)
FASTNN_DECLARE_WORKSPACE(batch_norm_double_backward, BatchNormDoubleBackwardParams)

}  // namespace fastnn
