// Local response normalisation across channels (Krizhevsky, Sutskever and Hinton 2012, section 3.3).
//
//   s[c] = k + alpha / size * sum of x[j]^2 over j in W(c)
//   W(c) = [c - size / 2, c + (size - 1) / 2] within [0, C)
//   y[c] = x[c] / s[c]^beta
//
// As in torch, and unlike in the paper, alpha is divided by the window's size. The derivative formulas stand in
// local_response_norm_math.h. Nothing is kept for backward, which finds s again from x.
//
// A window's sum is added up anew for each channel, in the channels' order: what is subtracted from a running
// sum leaves its rounding behind, and all of it where it was NaN or infinite.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "status.h"
#include "stream.h"

namespace fastnn {

struct LocalResponseNormShape {
  Layout layout;    // kChannelsFirst: [N, C, S]; kChannelsLast: [N, S, C]; both dense
  int64_t N, C, S;  // S: product of the spatial sizes
  int64_t size;     // at least 1
  double alpha, beta, k;

  // Channels of a window before and after its own, no more than there can be.
  int64_t before() const { return size / 2 < C ? size / 2 : C - 1; }
  int64_t after() const { return (size - 1) / 2 < C ? (size - 1) / 2 : C - 1; }
};

struct LocalResponseNormForwardParams {
  DType dtype;
  LocalResponseNormShape shape;
  const void* x;
  void* y;          // like x
  void* workspace;  // local_response_norm_forward_workspace() bytes, aligned to 64
};

struct LocalResponseNormBackwardParams {
  DType dtype;
  LocalResponseNormShape shape;
  const void* grad_y;
  const void* x;
  void* grad_x;
  void* workspace;  // local_response_norm_backward_workspace() bytes, aligned to 64
};

// Derivative of backward in the direction gg_x: with L = <gg_x, grad_x>, writes dL/dgrad_y and dL/dx. d_grad_y
// alone is also the tangent of forward, since it does not depend on grad_y.
struct LocalResponseNormDoubleBackwardParams {
  DType dtype;
  LocalResponseNormShape shape;
  const void* gg_x;
  const void* grad_y;  // null where d_x is
  const void* x;
  void* d_grad_y;  // each of the two is null when not wanted
  void* d_x;
  void* workspace;  // local_response_norm_double_backward_workspace() bytes, aligned to 64
};

FASTNN_DECLARE_OP(local_response_norm_forward, LocalResponseNormForwardParams)
FASTNN_DECLARE_WORKSPACE(local_response_norm_forward, LocalResponseNormForwardParams)
FASTNN_DECLARE_OP(local_response_norm_backward, LocalResponseNormBackwardParams)
FASTNN_DECLARE_WORKSPACE(local_response_norm_backward, LocalResponseNormBackwardParams)
FASTNN_DECLARE_OP(local_response_norm_double_backward, LocalResponseNormDoubleBackwardParams)
FASTNN_DECLARE_WORKSPACE(local_response_norm_double_backward, LocalResponseNormDoubleBackwardParams)

}  // namespace fastnn
