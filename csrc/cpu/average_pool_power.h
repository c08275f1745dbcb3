// x^p, its root and its slope for vectors, as L_p pooling takes them.
#pragma once

#include "../ops/average_pool.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND::pool {

// With kPower false plain numbers pass through. p = 2 is worked out without a power function.
template <typename acc_t, bool kPower>
struct Power {
  using V = Vec<acc_t>;
  double norm;

  explicit Power(const AveragePoolOptions& options) : norm(options.norm) {}

  static V raise(const V& x, double exponent) {
    if (exponent == 1) return x;
    if (exponent == 2) return x * x;
    if (exponent == 3) return x * x * x;
    return x.pow(V(static_cast<acc_t>(exponent)));
  }

  V of(const V& x) const {
    if constexpr (kPower) return raise(x, norm);
    return x;
  }
  V root(const V& x) const {
    if constexpr (kPower) return norm == 2 ? x.sqrt() : raise(x, 1 / norm);
    return x;
  }
  // The gradient of y by the sum under its root, over x's own part of it: y^(1 - p), and 0 where y is.
  V by_sum(const V& grad, const V& y) const {
    if constexpr (!kPower) return grad;
    const V slope = norm == 2 ? grad / y : grad * raise(y, 1 - norm);
    return V::blendv(slope, V(0), y == V(0));
  }
  // x^(p - 1)
  V slope(const V& x) const {
    if constexpr (!kPower) return V(1);
    if (norm == 1) return V(1);
    return raise(x, norm - 1);
  }
};

}  // namespace fastnn::FASTNN_BACKEND::pool
