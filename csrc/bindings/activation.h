// Activations by the names that the Python functions take, and the ops that compute them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string_view>

#include "../ops/activation.h"

namespace fastnn::bindings {

inline constexpr std::string_view kIdentity = "identity";

struct NamedActivation {
  Activation kind;
  double alpha;  // 0 for ReLU, 1 for the identity

  bool identity() const { return kind == Activation::kRectify && alpha == 1; }
};

// Throws ValueError for a name that there is not, and for an alpha out of its range. Only a leaky ReLU's may be
// negative, and not where `from_output` says that y has to tell what was positive.
NamedActivation activation_of(const char* op, std::string_view name, double alpha, bool from_output = false);

// act(input + residual)
using ActivationOp = at::Tensor(const at::Tensor& input, const std::optional<at::Tensor>& residual,
                                std::string_view activation, double alpha);
const c10::TypedOperatorHandle<ActivationOp>& activation_op();

// grad_output * act'(z), from y where derives_from_output(), else from input and residual; differentiable as
// often as one likes.
using ActivationBackwardOp = at::Tensor(const at::Tensor& grad_output, const at::Tensor& kept,
                                        const std::optional<at::Tensor>& residual, std::string_view activation,
                                        double alpha);
const c10::TypedOperatorHandle<ActivationBackwardOp>& activation_backward_op();

}  // namespace fastnn::bindings
