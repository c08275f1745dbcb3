// One layer in one direction by the backend's recurrence (ops/recurrence.h): the kernels of the dispatcher's
// ops recurrence_layer and recurrence_layer_backward.
#pragma once

#include <array>
#include <tuple>

#include "recurrence_stepped.h"

namespace fastnn::bindings {

using EightTensors =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using TwelveTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                 at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
// Differentiable: input, h0, c0, w_ih, w_hh, b_ih, b_hh, peephole, norm_x, norm_h, norm_c_weight, norm_c_bias.
inline constexpr size_t kInputs = 12;
inline constexpr size_t kInput = 0, kH0 = 1, kC0 = 2, kWih = 3, kWhh = 4, kBih = 5, kBhh = 6, kPeephole = 7,
                        kNormX = 8, kNormH = 9, kNormCWeight = 10, kNormCBias = 11;

// y, the last states, and for backward the activated gates, the record, and what was normalised.
EightTensors recurrence_layer(const at::Tensor& input, const at::Tensor& h0, const OptionalTensor& c0,
                              const OptionalTensor& w_ih, const at::Tensor& w_hh, const OptionalTensor& b_ih,
                              const OptionalTensor& b_hh, const OptionalTensor& peephole,
                              const OptionalTensor& zoneout_h, const OptionalTensor& zoneout_c,
                              const OptionalTensor& norm_x, const OptionalTensor& norm_h,
                              const OptionalTensor& norm_c_weight, const OptionalTensor& norm_c_bias,
                              const OptionalTensor& batch_sizes, const OptionalTensor& lengths, bool reverse,
                              bool cells, bool save, at::IntArrayRef numbers, bool memory_efficient);

// Gradients of the kInputs inputs.
TwelveTensors recurrence_layer_backward(
    const OptionalTensor& grad_y, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const OptionalTensor& grad_record, const at::Tensor& input, const at::Tensor& h0, const OptionalTensor& c0,
    const OptionalTensor& w_ih, const at::Tensor& w_hh, const OptionalTensor& peephole,
    const OptionalTensor& zoneout_h, const OptionalTensor& zoneout_c, const OptionalTensor& norm_x,
    const OptionalTensor& norm_h, const OptionalTensor& norm_c_weight, const OptionalTensor& norm_c_bias,
    const at::Tensor& y, const at::Tensor& gates, const at::Tensor& record, const at::Tensor& normalised,
    const at::Tensor& normalised_x, const at::Tensor& statistics, const OptionalTensor& batch_sizes,
    const OptionalTensor& lengths, bool reverse, std::array<bool, kInputs> output_mask,
    at::IntArrayRef numbers);

}  // namespace fastnn::bindings
