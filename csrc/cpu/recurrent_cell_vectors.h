// How the formulas of recurrent cells compute with vectors (see ops/recurrent_cell_math.h).
#pragma once

#include "../ops/recurrent_cell_math.h"
#include "lstm_cell_pointwise.h"

namespace fastnn::FASTNN_BACKEND {

template <typename acc_t>
struct VectorMath {
  using Number = Vec<acc_t>;
  static Number number(double value) { return Number(static_cast<acc_t>(value)); }
  static Number sigmoid(const Number& x) { return lstm::sigmoid(x); }
  static Number tanh(const Number& x) { return lstm::hyperbolic_tangent(x); }
  static Number softsign(const Number& x) { return x / (Number(1) + x.abs()); }
  static Number abs(const Number& x) { return x.abs(); }
  static Number clamp(const Number& x, float low, float high) {
    return at::vec::clamp(x, Number(low), Number(high));
  }
  static Number within(const Number& x, float low, float high) {
    return (x > Number(low)) & (x < Number(high)) & Number(1);
  }
};

}  // namespace fastnn::FASTNN_BACKEND
