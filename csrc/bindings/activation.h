// Activations by the names that the Python functions take.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "../ops/activation.h"

namespace fastnn::bindings {

struct NamedActivation {
  Activation kind;
  double alpha;  // 0 for ReLU, 1 for the identity

  bool identity() const { return kind == Activation::kRectify && alpha == 1; }
};

inline NamedActivation activation_of(const char* op, std::string_view name, double alpha) {
  if (name == "relu") return {Activation::kRectify, 0};
  if (name == "identity") return {Activation::kRectify, 1};
  if (name == "elu") return {Activation::kElu, alpha};
  TORCH_CHECK_VALUE(name == "leaky_relu", op,
                    ": activation must be 'relu', 'leaky_relu', 'elu' or 'identity', but got '", name, "'");
  return {Activation::kRectify, alpha};
}

}  // namespace fastnn::bindings
