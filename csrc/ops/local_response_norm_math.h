// Local response normalisation's formulas, over numbers of any kind: elements on CUDA, vectors on the CPU.
//
// Notation, per position: a = alpha / size; W(c) the window of channel c; T(i) the channels in whose window i
// is; g = grad_y, v = gg_x, u[c] = sum of x[j] v[j] over W(c), scale[c] = s[c]^-beta.
//
//   grad_x[i]   = g[i] scale[i] - 2 a beta x[i] * sum over T(i) of g x scale / s
//   d_grad_y[c] = v[c] scale[c] - 2 a beta x[c] u[c] scale[c] / s[c]
//   d_x[i]      = -2 a beta g[i] u[i] scale[i] / s[i] + sum over T(i) of (2 a x[i] P - 2 a beta v[i] Q),
//                 P = g (2 a beta (beta + 1) x u / s - beta v) scale / s,  Q = g x scale / s
//
// Every derivative is a term of the element's own and multiples of sums over T(i): a kernel finds s (and u) by
// sums over W(c), leaves the terms, adds them up over T(i) and finishes.
#pragma once

#include "host_device.h"
#include "local_response_norm.h"

namespace fastnn::lrn {

// s^-beta without a logarithm for the usual values of beta: two square roots and a division for 3/4.
enum class Power { kOne, kHalf, kThreeQuarters, kGeneral };

inline Power power_of(double beta) {
  if (beta == 1) return Power::kOne;
  if (beta == 0.5) return Power::kHalf;
  return beta == 0.75 ? Power::kThreeQuarters : Power::kGeneral;
}

template <typename acc_t>
struct Constants {
  acc_t a, k, beta;
  Power power;

  Constants() = default;
  explicit Constants(const LocalResponseNormShape& shape)
      : a(static_cast<acc_t>(shape.alpha / static_cast<double>(shape.size))),
        k(static_cast<acc_t>(shape.k)),
        beta(static_cast<acc_t>(shape.beta)),
        power(power_of(shape.beta)) {}
};

// M: Number, number(acc_t), sqrt(Number), pow(Number, acc_t), product_sum(a, b, c) = a * b + c.
template <typename M, typename acc_t>
FASTNN_HOST_DEVICE typename M::Number base(const Constants<acc_t>& p, typename M::Number squares) {
  return M::product_sum(squares, M::number(p.a), M::number(p.k));
}

// s^beta.
template <typename M, typename acc_t>
FASTNN_HOST_DEVICE typename M::Number divisor(const Constants<acc_t>& p, typename M::Number s) {
  if (p.power == Power::kOne) return s;
  if (p.power == Power::kGeneral) return M::pow(s, p.beta);
  const typename M::Number root = M::sqrt(s);
  return p.power == Power::kHalf ? root : root * M::sqrt(root);
}

// What a channel gives to backward: `own`, to its gradient; `across`, to those of the channels in its window.
template <typename Number>
struct BackwardTerms {
  Number own, across;
};

template <typename M, typename acc_t>
FASTNN_HOST_DEVICE BackwardTerms<typename M::Number> backward_terms(const Constants<acc_t>& p,
                                                                    typename M::Number x, typename M::Number g,
                                                                    typename M::Number squares) {
  const typename M::Number s = base<M>(p, squares);
  const typename M::Number own = g / divisor<M>(p, s);
  return {own, own * x / s};
}

template <typename M, typename acc_t>
FASTNN_HOST_DEVICE typename M::Number backward_result(const Constants<acc_t>& p, typename M::Number x,
                                                      const BackwardTerms<typename M::Number>& terms) {
  return M::product_sum(M::number(acc_t(-2) * p.a * p.beta) * x, terms.across, terms.own);
}

// The same of double backward, with d_grad_y, which needs no sum over T(i).
template <typename Number>
struct DoubleBackwardTerms {
  Number d_grad_y, own, of_x, of_v;  // of_x: P, of_v: Q
};

template <typename M, typename acc_t>
FASTNN_HOST_DEVICE DoubleBackwardTerms<typename M::Number> double_backward_terms(
    const Constants<acc_t>& p, typename M::Number x, typename M::Number g, typename M::Number v,
    typename M::Number squares, typename M::Number products) {
  using N = typename M::Number;
  const N s = base<M>(p, squares), divided = divisor<M>(p, s), slope = M::number(acc_t(1)) / (divided * s);
  const N twice = M::number(acc_t(2) * p.a * p.beta), u = twice * products;
  const N inner = M::number(p.beta + acc_t(1)) * x * u / s - M::number(p.beta) * v;
  return {v / divided - x * u * slope, M::number(acc_t(0)) - g * u * slope, g * inner * slope, g * x * slope};
}

template <typename M, typename acc_t>
FASTNN_HOST_DEVICE typename M::Number double_backward_result(
    const Constants<acc_t>& p, typename M::Number x, typename M::Number v,
    const DoubleBackwardTerms<typename M::Number>& terms) {
  using N = typename M::Number;
  const N twice = M::number(acc_t(2) * p.a);
  return terms.own + twice * (x * terms.of_x - M::number(p.beta) * v * terms.of_v);
}

}  // namespace fastnn::lrn
