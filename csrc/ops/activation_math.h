// The formulas of ops/activation.h and their derivatives, once for every backend.
//
// S is a number or a vector of them, A the number. M is how a backend computes with S: number(double), abs,
// exp, expm1 and log1p of what is not positive, sigmoid, tanh, erf, clamp(x, low, high), which keeps NaN,
// within(x, low, high), 1 where low < x < high and 0 elsewhere, and if_positive(x, a, b): a where x > 0 or NaN,
// else b.
#pragma once

#include <limits>

#include "activation.h"
#include "host_device.h"

namespace fastnn {

// sqrt(1 / 2), 1 / sqrt(2 pi), sqrt(2 / pi), and the cubic term's factor of kGeluTanh.
inline constexpr double kSqrtHalf = 0.70710678118654752, kNormalPeak = 0.39894228040143268;
inline constexpr double kGeluSlope = 0.79788456080286536, kGeluCube = 0.044715;

// kGeluTanh's tanh(sqrt(2 / pi) (z + 0.044715 z^3)).
template <typename M, typename S>
FASTNN_HOST_DEVICE S gelu_tanh(const S& z) {
  return M::tanh(M::number(kGeluSlope) * (z + M::number(kGeluCube) * (z * z * z)));
}

// act(z).
template <typename M, typename S, typename A>
FASTNN_HOST_DEVICE S activation_value(Activation kind, A alpha, const S& z) {
  switch (kind) {
    case Activation::kNone:
      return z;
    case Activation::kRectify:
      return M::if_positive(z, z, alpha == A(0) ? S(0) : S(alpha) * z);
    case Activation::kElu:
      return M::if_positive(z, z, S(alpha) * M::expm1(z));
    case Activation::kSoftplus: {
      const S t = S(alpha) * z;
      const S bend = M::log1p(M::exp(S(0) - M::abs(t)));
      const S value = (M::clamp(t, 0, std::numeric_limits<float>::infinity()) + bend) / S(alpha);
      return M::if_positive(t - M::number(kSoftplusThreshold), z, value);
    }
    case Activation::kSigmoid:
      return M::sigmoid(z);
    case Activation::kTanh:
      return M::tanh(z);
    case Activation::kHardSigmoid:
      return M::clamp(z + S(3), 0, 6) / S(6);
    case Activation::kGelu:
      return M::number(0.5) * z * (S(1) + M::erf(M::number(kSqrtHalf) * z));
    case Activation::kGeluTanh:
      return M::number(0.5) * z * (S(1) + gelu_tanh<M>(z));
    case Activation::kSilu:
      return z * M::sigmoid(z);
  }
  return z;
}

// act'(z) from what is kept for backward: y where derives_from_output(kind), else z.
template <typename M, typename S, typename A>
FASTNN_HOST_DEVICE S activation_slope(Activation kind, A alpha, const S& kept) {
  switch (kind) {
    case Activation::kNone:
      break;
    case Activation::kRectify:
      return M::if_positive(kept, S(1), S(alpha));
    case Activation::kElu:
      return M::if_positive(kept, S(1), kept + S(alpha));
    case Activation::kSoftplus: {
      const S t = S(alpha) * kept;
      // This way round NaN stays NaN.
      return M::if_positive(M::number(kSoftplusThreshold) - t, S(0) - M::expm1(S(0) - t), S(1));
    }
    case Activation::kSigmoid:
      return kept * (S(1) - kept);
    case Activation::kTanh:
      return S(1) - kept * kept;
    case Activation::kHardSigmoid:
      return M::within(kept, 0, 1) * M::number(1.0 / 6.0);
    case Activation::kGelu: {
      const S density = M::number(kNormalPeak) * M::exp(M::number(-0.5) * (kept * kept));
      return M::number(0.5) * (S(1) + M::erf(M::number(kSqrtHalf) * kept)) + kept * density;
    }
    case Activation::kGeluTanh: {
      const S t = gelu_tanh<M>(kept);
      const S inner = M::number(kGeluSlope) * (S(1) + M::number(3 * kGeluCube) * (kept * kept));
      return M::number(0.5) * ((S(1) + t) + kept * (S(1) - t * t) * inner);
    }
    case Activation::kSilu: {
      const S s = M::sigmoid(kept);
      return s * (S(1) + kept * (S(1) - s));
    }
  }
  return S(1);
}

// gradient * act'(z), from the same.
template <typename M, typename S, typename A>
FASTNN_HOST_DEVICE S activation_gradient(Activation kind, A alpha, const S& gradient, const S& kept) {
  if (kind == Activation::kRectify) {
    // 0, not 0 times what may be infinite.
    return M::if_positive(kept, gradient, alpha == A(0) ? S(0) : S(alpha) * gradient);
  }
  return gradient * activation_slope<M>(kind, alpha, kept);
}

// The same from z, whatever is kept.
template <typename M, typename S, typename A>
FASTNN_HOST_DEVICE S activation_gradient_at(Activation kind, A alpha, const S& gradient, const S& z) {
  if (kind == Activation::kElu) {
    // exp(z), of which y + alpha has fewer digits.
    return M::if_positive(z, gradient, gradient * (S(alpha) * M::exp(z)));
  }
  const bool from_z = kind == Activation::kRectify || !derives_from_output(kind);
  return activation_gradient<M>(kind, alpha, gradient, from_z ? z : activation_value<M>(kind, alpha, z));
}

}  // namespace fastnn
