// The dispatcher's ops of convolution, free of rank, and what their files share.
//
// `convolution`, `convolution_grad_input` and `convolution_grad_weight` are the three derivatives of one
// trilinear form. Padding is given as a pair (begin, end) a dimension. An end may be negative: then the last
// positions of the input are in no window, as at the end of a transposed convolution with output_padding.
// convolution_grad_input with a bias, one value a channel, is a transposed convolution.
#pragma once

#include <ATen/ATen.h>

#include <string_view>

#include "../ops/conv.h"
#include "activation.h"
#include "autograd.h"
#include "tensors.h"

namespace fastnn::bindings {

using c10::IntArrayRef;
using c10::SymInt;
using c10::SymIntArrayRef;
using StringView = std::string_view;

// The ops that users call, of one rank and of torch's arguments.
using ConvBySize = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, IntArrayRef,
                              IntArrayRef, IntArrayRef, int64_t, StringView, double);
using ConvByName = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, IntArrayRef,
                              StringView, IntArrayRef, int64_t, StringView, double);

// input, weight, bias, stride, padding, dilation, groups, activation, alpha
using ConvolutionOp = ConvBySize;
// grad_output, weight, input_size, stride, padding, dilation, groups, channels_last, bias
using GradInputOp = at::Tensor(const at::Tensor&, const at::Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef,
                               IntArrayRef, int64_t, bool, const OptionalTensor&);
// input, grad_output, weight_size, stride, padding, dilation, groups, channels_last
using GradWeightOp = at::Tensor(const at::Tensor&, const at::Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef,
                                IntArrayRef, int64_t, bool);
using GradBiasOp = at::Tensor(const at::Tensor&);

const c10::TypedOperatorHandle<ConvolutionOp>& convolution_op();
const c10::TypedOperatorHandle<GradInputOp>& grad_input_op();
const c10::TypedOperatorHandle<GradWeightOp>& grad_weight_op();
const c10::TypedOperatorHandle<GradBiasOp>& grad_bias_op();

void check_same(const char* op, const at::Tensor& a, const char* a_name, const at::Tensor& b,
                const char* b_name);

// The geometry of a convolution of x_size [N, C, spatial...] with w_size [K, C / groups, spatial...], checked.
ConvGeometry make_geometry(const char* op, IntArrayRef x_size, IntArrayRef w_size, IntArrayRef stride,
                           IntArrayRef padding, IntArrayRef dilation, int64_t groups);

// The size [N, K, positions...] of what the convolution gives.
Sizes output_size(const ConvGeometry& g, int64_t rank);

// Throws where grad_output has not that size: the gradients' geometry comes from the sizes of x and w.
void check_grad_output(const char* op, const at::Tensor& grad_output, const ConvGeometry& g, int64_t rank);

// The activation of that name; of tensors without data too.
ConvActivation conv_activation(const char* op, StringView name, double alpha);

}  // namespace fastnn::bindings
