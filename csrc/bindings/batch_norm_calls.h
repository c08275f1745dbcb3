// What the ops of batch normalisation share: checks of their arguments, and the calls of the kernels.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <optional>

#include "../ops/batch_norm.h"
#include "autograd.h"
#include "backend.h"
#include "tensors.h"

namespace fastnn::bindings {

struct BatchNormForm : ActivationForm {
  BatchNormShape shape;

  BatchNormForm(const char* op, const at::Tensor& x) : ActivationForm(op, x), shape{layout, N, C, S} {}
};

// The dtype of the [C] tensors: they must agree.
DType param_dtype(const char* op, const at::Tensor& x,
                  std::initializer_list<std::pair<const char*, OptionalTensor>> params);

// Options of the parameters' gradients.
at::TensorOptions param_options(const at::Tensor& x, const OptionalTensor& weight);

// Checks values that a forward returned, by channel or by group.
void check_statistics(const char* op, const at::Tensor& x, at::IntArrayRef size,
                      std::initializer_list<std::pair<const char*, const at::Tensor&>> values);

inline OptionalTensor dense(const OptionalTensor& t) { return t.has_value() ? some(t->contiguous()) : t; }

// The arguments that training and evaluation share with torch's function.
struct BatchNormArguments {
  const OptionalTensor &weight, &bias, &running_mean, &running_var, &num_batches_tracked;
  bool training;
  std::optional<double> momentum;
  double eps;
  bool skip_nonfinite_stats;
};

// What follows the normalisation. The tensors are undefined where there are none.
struct BatchNormEpilogue {
  Activation kind = Activation::kNone;
  double alpha = 0;
  at::Tensor residual, scale, shift, mask;

  // Checks the tensors and points to them; `hold` keeps what had to be copied.
  BatchNormActivation parameters(const char* op, const BatchNormForm& form, const at::Tensor& x,
                                 BackendCall& call, bool forward, at::Tensor& hold) const;
};

struct BatchNormResult {
  at::Tensor output, mean, invstd;
};

// epilogue: its scale, shift and mask are written where they are defined.
BatchNormResult run_batch_norm_forward(const char* op, const at::Tensor& input,
                                       const BatchNormArguments& arguments, const BatchNormEpilogue& epilogue);

struct BatchNormGradients {
  at::Tensor input, weight, bias, residual;
};

BatchNormGradients run_batch_norm_backward(const char* op, const at::Tensor& grad_output,
                                           const at::Tensor& input, const OptionalTensor& weight,
                                           const at::Tensor& mean, const at::Tensor& invstd, bool training,
                                           const BatchNormEpilogue& epilogue, std::array<bool, 4> output_mask);

// y where grad_output is undefined, else grad_output * y'.
at::Tensor run_batch_norm_apply(const char* op, const at::Tensor& grad_output, const at::Tensor& input,
                                const at::Tensor& mean, const BatchNormEpilogue& epilogue);

}  // namespace fastnn::bindings
