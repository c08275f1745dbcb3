// How the CUDA kernels of recurrent cells compute with the numbers of ops/recurrent_cell_math.h: its policy M.
#pragma once

#include <cmath>

#include "../ops/host_device.h"
#include "platform.cuh"

namespace fastnn::cuda {

// exp and tanh of the CUDA library are within 2 ulp, so sigmoid is within about 3. exp overflows to inf below
// v = -88 (-709 in float64), and the quotient to the 0 that it should be.
FASTNN_HOST_DEVICE float exponential(float v) { return expf(v); }
FASTNN_HOST_DEVICE double exponential(double v) { return exp(v); }
FASTNN_HOST_DEVICE float hyperbolic_tangent(float v) { return tanhf(v); }
FASTNN_HOST_DEVICE double hyperbolic_tangent(double v) { return tanh(v); }

template <typename T>
struct CellMath {
  using Number = T;
  static FASTNN_HOST_DEVICE T number(double value) { return static_cast<T>(value); }
  static FASTNN_HOST_DEVICE T sigmoid(T x) { return T(1) / (T(1) + exponential(-x)); }
  static FASTNN_HOST_DEVICE T tanh(T x) { return hyperbolic_tangent(x); }
  static FASTNN_HOST_DEVICE T abs(T x) { return x < T(0) ? -x : x; }
  static FASTNN_HOST_DEVICE T softsign(T x) { return x / (T(1) + abs(x)); }
  // No comparison with NaN holds, so it passes through.
  static FASTNN_HOST_DEVICE T clamp(T x, float low, float high) {
    return x < T(low) ? T(low) : x > T(high) ? T(high) : x;
  }
  static FASTNN_HOST_DEVICE T within(T x, float low, float high) {
    return x > T(low) && x < T(high) ? T(1) : T(0);
  }
  static FASTNN_HOST_DEVICE T above(T x, float low) { return x <= T(low) ? T(0) : T(1); }
};

}  // namespace fastnn::cuda
