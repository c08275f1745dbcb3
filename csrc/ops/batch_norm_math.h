// Per-channel coefficients of batch normalisation's derivatives, shared by every backend: a kernel reduces a
// few sums per channel, calls one of these, and finishes with one pointwise pass.
//
// Notation, per channel: xhat = (x - mean) * invstd; M values; gy = grad_y; gx = gg_x.
//   grad_x = weight * invstd * (gy - sum(gy) / M - xhat * sum(gy * xhat) / M)     (training)
//   grad_x = weight * invstd * gy                                                (evaluation)
#pragma once

#include "host_device.h"

namespace fastnn {

// Chan, Golub and LeVeque 1979: mean and sum of squared differences (m2) of two sets taken together.
template <typename acc_t>
struct Moments {
  acc_t count, mean, m2;  // no initialisers: arrays of these stand in shared memory
};

// Mean of two sets taken together, of which the second has `share` of the values. An infinity in one of them is
// the mean, as it is of the values themselves; the step alone would make NaN of it.
template <typename acc_t>
FASTNN_HOST_DEVICE acc_t combined_mean(acc_t a, acc_t b, acc_t share) {
  const acc_t delta = b - a;
  return delta - delta == acc_t(0) ? a + delta * share : a * (acc_t(1) - share) + b * share;
}

template <typename acc_t>
FASTNN_HOST_DEVICE Moments<acc_t> combine(const Moments<acc_t>& a, const Moments<acc_t>& b) {
  // An empty set must not take part: 0 * NaN and 0 * inf would poison the other one.
  if (b.count == acc_t(0)) return a;
  if (a.count == acc_t(0)) return b;
  Moments<acc_t> r;
  r.count = a.count + b.count;
  const acc_t delta = b.mean - a.mean;
  const acc_t share = b.count / r.count;
  r.mean = combined_mean(a.mean, b.mean, share);
  r.m2 = a.m2 + b.m2 + delta * delta * a.count * share;
  return r;
}

// grad_x[i] = (gy[i] + offset + xhat[i] * slope) * scale. The sums are taken away before anything is
// multiplied: with few values a channel what is left is small, and a rounded product beside it would be its
// error.
template <typename acc_t>
struct BatchNormBackwardCoefficients {
  acc_t scale, slope, offset;
};

template <typename acc_t>
FASTNN_HOST_DEVICE BatchNormBackwardCoefficients<acc_t> batch_norm_backward_coefficients(
    bool training, acc_t count, acc_t weight, acc_t invstd, acc_t sum_gy, acc_t sum_gy_xhat) {
  const acc_t scale = weight * invstd;
  if (!training) return {scale, acc_t(0), acc_t(0)};
  return {scale, -(sum_gy_xhat / count), -(sum_gy / count)};
}

template <typename acc_t>
struct BatchNormDoubleBackwardSums {
  acc_t gx, gy, gx_xhat, gy_xhat, gx_gy;
};

// d_grad_y[i] = gx[i] * y_gx + xhat[i] * y_xhat + y_one
// d_x[i]      = gx[i] * x_gx + gy[i] * x_gy + xhat[i] * x_xhat + x_one
template <typename acc_t>
struct BatchNormDoubleBackwardCoefficients {
  acc_t y_gx, y_xhat, y_one;
  acc_t x_gx, x_gy, x_xhat, x_one;
  acc_t d_weight;
};

template <typename acc_t>
FASTNN_HOST_DEVICE BatchNormDoubleBackwardCoefficients<acc_t> batch_norm_double_backward_coefficients(
    bool training, acc_t count, acc_t weight, acc_t invstd, acc_t gg_weight, acc_t gg_bias,
    const BatchNormDoubleBackwardSums<acc_t>& sum) {
  const acc_t scale = weight * invstd;
  BatchNormDoubleBackwardCoefficients<acc_t> k;
  if (!training) {
    k.y_gx = scale;
    k.y_xhat = gg_weight;
    k.y_one = gg_bias;
    k.x_gx = 0;
    k.x_gy = gg_weight * invstd;
    k.x_xhat = 0;
    k.x_one = 0;
    k.d_weight = invstd * sum.gx_gy;
    return k;
  }
  const acc_t mean_gx = sum.gx / count;
  const acc_t mean_gy = sum.gy / count;
  const acc_t mean_gx_xhat = sum.gx_xhat / count;
  const acc_t mean_gy_xhat = sum.gy_xhat / count;
  // sum(gg_x * grad_x) = weight * invstd * inner
  const acc_t inner = sum.gx_gy - sum.gx * mean_gy - sum.gx_xhat * mean_gy_xhat;

  k.y_gx = scale;
  k.y_xhat = gg_weight - scale * mean_gx_xhat;
  k.y_one = gg_bias - scale * mean_gx;
  k.d_weight = invstd * inner;

  // q = dL/dxhat at fixed invstd = gx * q_gx + gy * q_gy; then through xhat and invstd to x.
  const acc_t q_gx = -scale * mean_gy_xhat;
  const acc_t q_gy = gg_weight - scale * mean_gx_xhat;
  const acc_t mean_q = q_gx * mean_gx + q_gy * mean_gy;
  const acc_t mean_q_xhat = q_gx * mean_gx_xhat + q_gy * mean_gy_xhat;
  k.x_gx = invstd * q_gx;
  k.x_gy = invstd * q_gy;
  k.x_one = -invstd * mean_q;
  k.x_xhat = -invstd * mean_q_xhat - weight * inner / count * invstd * invstd;
  return k;
}

}  // namespace fastnn
