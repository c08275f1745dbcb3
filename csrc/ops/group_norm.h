// Group normalisation (Wu and He 2018): batch normalisation's formula with the statistics of a group of
// channels of one sample. With one channel a group it is instance normalisation (Ulyanov, Vedaldi and Lempitsky
// 2016).
//
//   mean = sum(x) / D,  var = sum((x - mean)^2) / D,  D = C / G * S, over the channels of group g of sample n
//   xhat = (x - mean) * invstd,  invstd = 1 / sqrt(var + eps),  y = weight[c] * xhat + bias[c]
//
// Statistics are taken by methods as safe at large means as batch normalisation's. With h = weight[c] * grad_y:
//
//   grad_x = (h - sum(h) / D - xhat * sum(h * xhat) / D) * invstd, sums over the group
//
// The second derivative needs no kernel of its own: it is made of batch normalisation's
// (bindings/group_norm.cpp).
#pragma once

#include <cstdint>

#include "dtype.h"
#include "status.h"
#include "stream.h"

namespace fastnn {

struct GroupNormShape {
  Layout layout;       // kChannelsFirst: [N, C, S]; kChannelsLast: [N, S, C]; both dense
  int64_t N, C, S, G;  // S: product of the spatial sizes, 1 for 2-D input; G divides C

  int64_t group_channels() const { return C / G; }
  int64_t group_values() const { return C / G * S; }
};

struct GroupNormForwardParams {
  DType dtype;        // of x and y
  DType param_dtype;  // of weight, bias and the running statistics: dtype, or float32 beside a half dtype
  GroupNormShape shape;
  double eps;
  const void* x;
  const void* weight;  // [C]; null for 1
  const void* bias;    // [C]; null for 0
  // Where G = C, null for none: running = (1 - momentum) * running + momentum * the samples' average, of
  // variances over D - 1.
  void* running_mean;  // [C]
  void* running_var;   // [C]
  double momentum;
  void* y;
  void* mean;       // [N, G] of the accumulation type
  void* invstd;     // [N, G] of the accumulation type
  void* workspace;  // group_norm_forward_workspace() bytes, aligned to 64
};

struct GroupNormBackwardParams {
  DType dtype;        // of grad_y, x, grad_x
  DType param_dtype;  // of weight, grad_weight, grad_bias
  GroupNormShape shape;
  const void* grad_y;
  const void* x;
  const void* weight;  // null for 1
  const void* mean;    // [N, G], accumulation type
  const void* invstd;  // [N, G], accumulation type
  void* grad_x;        // each of the three is null when not wanted
  void* grad_weight;   // [C]
  void* grad_bias;     // [C]
  void* workspace;     // group_norm_backward_workspace() bytes, aligned to 64
};

FASTNN_DECLARE_OP(group_norm_forward, GroupNormForwardParams)
FASTNN_DECLARE_WORKSPACE(group_norm_forward, GroupNormForwardParams)
FASTNN_DECLARE_OP(group_norm_backward, GroupNormBackwardParams)
FASTNN_DECLARE_WORKSPACE(group_norm_backward, GroupNormBackwardParams)

}  // namespace fastnn
