// The activations that other ops apply in the same pass as their own work.
//
//   y = z where z > 0 or NaN, else alpha * z (kRectify) or alpha * (exp(z) - 1) (kElu)
#pragma once

namespace fastnn {

enum class Activation : int {
  kNone,
  kRectify,  // alpha 0: ReLU, also of -inf; 1: the identity; else leaky ReLU
  kElu,
};

}  // namespace fastnn
