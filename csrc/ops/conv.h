// Convolution of rank 1 to 3 (as the field has it: cross-correlation), its data gradient and its weight
// gradient.
//
//   y[n, k, o] = bias[k] + sum over c in the group of k, and r:
//                x[n, c, o * stride + r * dilation - pad] * w[k, c, r]
//
// o, r, stride, dilation and pad are triples (depth, height, width). A convolution of lower rank sets the
// leading sizes to 1, their strides and dilations to 1 and their pads to 0. Positions outside x count as
// zero. The three directions are the three derivatives of one trilinear form
// T(x, w, g) = <conv(x, w), g>, which is why they share one geometry; a transposed convolution is
// conv_grad_input with a bias.
#pragma once

#include <cstdint>

#include "activation.h"
#include "dtype.h"
#include "status.h"
#include "stream.h"

namespace fastnn {

inline constexpr int kSpatialDims = 3;

struct ConvGeometry {
  int64_t N;                       // batch
  int64_t C;                       // input channels, all groups; a multiple of groups
  int64_t K;                       // filters, all groups; a multiple of groups
  int64_t groups;                  // >= 1
  int64_t in[kSpatialDims];        // spatial size of x
  int64_t out[kSpatialDims];       // spatial size of y
  int64_t kernel[kSpatialDims];    // filter size, >= 1
  int64_t stride[kSpatialDims];    // >= 1
  int64_t pad[kSpatialDims];       // rows of zeros before x; those after it follow from `out`, and may be fewer
                                   // than none: then no window covers the last rows of x
  int64_t dilation[kSpatialDims];  // >= 1
};

// Element strides of [N, C, D, H, W] (activations) or [K, C / groups, R_d, R_h, R_w] (filters), any values:
// 0 in expanded inputs, never 0 in outputs.
using ConvStrides = int64_t[2 + kSpatialDims];

// What becomes of an element of y before it is stored: act(z) of the z that would have been stored without it,
// to the bit.
struct ConvActivation {
  Activation kind = Activation::kNone;
  double alpha = 0;
};

// `variant` of the three: 0, or the number of one of the ways that conv_variants() lists. Of another number,
// and where that way does not do, 0 is taken.
struct ConvForwardParams {
  DType dtype;  // of every tensor here
  ConvGeometry geometry;
  const void* x;
  ConvStrides x_strides;
  const void* w;
  ConvStrides w_strides;
  const void* bias;  // [K], contiguous; null for none
  void* y;
  ConvStrides y_strides;
  ConvActivation activation;
  bool allow_tf32;  // of float32: whether operands may be rounded to 11 bits (a GPU's tensor cores)
  int32_t variant = 0;
  void* workspace;  // conv_forward_workspace() bytes, aligned to 64
};

struct ConvGradInputParams {
  DType dtype;
  ConvGeometry geometry;
  const void* grad_y;
  ConvStrides grad_y_strides;
  const void* w;
  ConvStrides w_strides;
  const void* bias;  // [C], contiguous, added to every position of its channel; null for none
  void* grad_x;      // written whole: positions that no window covers get 0, or the bias
  ConvStrides grad_x_strides;
  bool allow_tf32;
  int32_t variant = 0;
  void* workspace;  // conv_grad_input_workspace() bytes, aligned to 64
};

struct ConvGradWeightParams {
  DType dtype;
  ConvGeometry geometry;
  const void* x;
  ConvStrides x_strides;
  const void* grad_y;
  ConvStrides grad_y_strides;
  void* grad_w;  // written whole, with 0 when N or the output is empty
  ConvStrides grad_w_strides;
  bool allow_tf32;
  int32_t variant = 0;
  void* workspace;  // conv_grad_weight_workspace() bytes, aligned to 64
};

// grad_bias[k] = sum over n and positions of grad_y[n, k, o]
struct ConvGradBiasParams {
  DType dtype;
  int64_t N, K;
  int64_t out[kSpatialDims];
  const void* grad_y;
  ConvStrides grad_y_strides;
  void* grad_bias;  // [K]
  void* workspace;  // conv_grad_bias_workspace() bytes, aligned to 64
};

// One of the ways in which a backend can compute a convolution.
struct ConvVariant {
  int32_t number;
  bool same_bits;  // as variant 0
  char name[40];
};

inline constexpr int kMaxConvVariants = 32;

// What there is to choose from by measuring, variant 0's way first; none where there is no choice. One of the
// three pointers is set.
struct ConvVariantsParams {
  const ConvForwardParams* forward = nullptr;
  const ConvGradInputParams* grad_input = nullptr;
  const ConvGradWeightParams* grad_weight = nullptr;
  ConvVariant* variants;  // kMaxConvVariants
  int* count;
};

// Size of one spatial dimension of y; may be <= 0 when the filter does not fit.
inline int64_t conv_out_size(int64_t in, int64_t kernel, int64_t stride, int64_t pad_begin, int64_t pad_end,
                             int64_t dilation) {
  const int64_t span = in + pad_begin + pad_end - dilation * (kernel - 1) - 1;
  return span < 0 ? 0 : span / stride + 1;
}

FASTNN_DECLARE_OP(conv_forward, ConvForwardParams)
FASTNN_DECLARE_WORKSPACE(conv_forward, ConvForwardParams)
FASTNN_DECLARE_OP(conv_grad_input, ConvGradInputParams)
FASTNN_DECLARE_WORKSPACE(conv_grad_input, ConvGradInputParams)
FASTNN_DECLARE_OP(conv_grad_weight, ConvGradWeightParams)
FASTNN_DECLARE_WORKSPACE(conv_grad_weight, ConvGradWeightParams)
FASTNN_DECLARE_OP(conv_grad_bias, ConvGradBiasParams)
FASTNN_DECLARE_WORKSPACE(conv_grad_bias, ConvGradBiasParams)
FASTNN_DECLARE_OP(conv_variants, ConvVariantsParams)

}  // namespace fastnn
