// Locally connected layers of rank 1 to 3: convolutions whose filters differ from position to position.
//
//   y[n, k, o] = bias[k, o] + sum over c and r of x[n, c, o * stride + r * dilation - pad] * w[o, k, c, r]
//
// o, r, stride, dilation and pad are triples, as in conv.h; positions outside x count as zero. The three
// directions are the derivatives of one trilinear form, as convolution's. A weight is used once for each image,
// so with few images all three are bound by reading or writing the weights.
#pragma once

#include <cstdint>

#include "conv.h"

namespace fastnn {

// Every pointer to filters: [positions of y, K, C, R], contiguous. `geometry` has one group.
struct LocallyConnectedForwardParams {
  DType dtype;  // of every tensor here
  ConvGeometry geometry;
  const void* x;
  ConvStrides x_strides;
  const void* w;
  const void* bias;  // [K, positions of y], contiguous; null for none
  void* y;
  ConvStrides y_strides;
  void* workspace;  // locally_connected_forward_workspace() bytes, aligned to 64
};

struct LocallyConnectedGradInputParams {
  DType dtype;
  ConvGeometry geometry;
  const void* grad_y;
  ConvStrides grad_y_strides;
  const void* w;
  void* grad_x;  // written whole: positions that no window covers get 0
  ConvStrides grad_x_strides;
  void* workspace;  // locally_connected_grad_input_workspace() bytes, aligned to 64
};

struct LocallyConnectedGradWeightParams {
  DType dtype;
  ConvGeometry geometry;
  const void* x;
  ConvStrides x_strides;
  const void* grad_y;
  ConvStrides grad_y_strides;
  void* grad_w;     // written whole, with 0 when N is 0
  void* workspace;  // locally_connected_grad_weight_workspace() bytes, aligned to 64
};

FASTNN_DECLARE_OP(locally_connected_forward, LocallyConnectedForwardParams)
FASTNN_DECLARE_WORKSPACE(locally_connected_forward, LocallyConnectedForwardParams)
FASTNN_DECLARE_OP(locally_connected_grad_input, LocallyConnectedGradInputParams)
FASTNN_DECLARE_WORKSPACE(locally_connected_grad_input, LocallyConnectedGradInputParams)
FASTNN_DECLARE_OP(locally_connected_grad_weight, LocallyConnectedGradWeightParams)
FASTNN_DECLARE_WORKSPACE(locally_connected_grad_weight, LocallyConnectedGradWeightParams)

}  // namespace fastnn
