// The formulas of ops/recurrent_cell.h, once for every backend and for derivatives of every order.
//
// S is a number or a vector of them. M is how a backend computes with it: number(double), sigmoid, tanh,
// softsign, abs, clamp(x, low, high) (which keeps NaN), within(x, low, high), 1 where low < x < high, and
// above(x, low), 1 where x > low or NaN; 0 elsewhere.
//
// Each stage has forward and backward, the gradient of a scalar function of its inputs. Its derivative in a
// direction is that function on dual numbers: the Hessian is symmetric, so the tangent of backward is the
// gradient of <direction, backward>, and the tangent of forward is its derivative by the incoming gradients.
#pragma once

#include <limits>

#include "host_device.h"
#include "recurrent_cell.h"

namespace fastnn {

// v + d e with e^2 = 0.
template <typename S>
struct Dual {
  S v{0}, d{0};
  Dual() = default;
  FASTNN_HOST_DEVICE Dual(S value, S direction) : v(value), d(direction) {}
  FASTNN_HOST_DEVICE explicit Dual(int number) : v(static_cast<S>(number)), d(static_cast<S>(0)) {}
  friend FASTNN_HOST_DEVICE Dual operator+(const Dual& a, const Dual& b) { return {a.v + b.v, a.d + b.d}; }
  friend FASTNN_HOST_DEVICE Dual operator-(const Dual& a, const Dual& b) { return {a.v - b.v, a.d - b.d}; }
  friend FASTNN_HOST_DEVICE Dual operator*(const Dual& a, const Dual& b) {
    return {a.v * b.v, a.d * b.v + a.v * b.d};
  }
};

template <typename M>
struct DualMath {
  using N = typename M::Number;
  using Number = Dual<N>;
  static FASTNN_HOST_DEVICE Number number(double value) { return {M::number(value), N(0)}; }
  static FASTNN_HOST_DEVICE Number sigmoid(const Number& x) {
    const N y = M::sigmoid(x.v);
    return {y, x.d * (y * (N(1) - y))};
  }
  static FASTNN_HOST_DEVICE Number tanh(const Number& x) {
    const N y = M::tanh(x.v);
    return {y, x.d * (N(1) - y * y)};
  }
  static FASTNN_HOST_DEVICE Number softsign(const Number& x) {
    const N y = M::softsign(x.v), rest = N(1) - M::abs(y);
    return {y, x.d * (rest * rest)};
  }
  static FASTNN_HOST_DEVICE Number abs(const Number& x) {
    constexpr float kAll = std::numeric_limits<float>::infinity();
    return {M::abs(x.v), x.d * (M::within(x.v, 0, kAll) - M::within(x.v, -kAll, 0))};
  }
  static FASTNN_HOST_DEVICE Number clamp(const Number& x, float low, float high) {
    const bool ends = high < std::numeric_limits<float>::infinity();
    return {M::clamp(x.v, low, high), x.d * (ends ? M::within(x.v, low, high) : M::above(x.v, low))};
  }
  static FASTNN_HOST_DEVICE Number within(const Number& x, float low, float high) {
    return {M::within(x.v, low, high), N(0)};
  }
  static FASTNN_HOST_DEVICE Number above(const Number& x, float low) { return {M::above(x.v, low), N(0)}; }
};

template <typename M, typename S>
FASTNN_HOST_DEVICE S activate(GateActivation kind, const S& x) {
  switch (kind) {
    case GateActivation::kSigmoid:
      return M::sigmoid(x);
    case GateActivation::kHardSigmoid:
      return M::clamp((x + S(3)) * M::number(1.0 / 6.0), 0, 1);
    case GateActivation::kTanh:
      return M::tanh(x);
    case GateActivation::kHardTanh:
      return M::clamp(x, -1, 1);
    case GateActivation::kRelu:
      return M::clamp(x, 0, std::numeric_limits<float>::infinity());
    case GateActivation::kSoftsign:
      return M::softsign(x);
    case GateActivation::kIdentity:
      break;
  }
  return x;
}

// The derivative, from what the activation gave.
template <typename M, typename S>
FASTNN_HOST_DEVICE S slope(GateActivation kind, const S& y) {
  switch (kind) {
    case GateActivation::kSigmoid:
      return y * (S(1) - y);
    case GateActivation::kHardSigmoid:
      return M::within(y, 0, 1) * M::number(1.0 / 6.0);
    case GateActivation::kTanh:
      return S(1) - y * y;
    case GateActivation::kHardTanh:
      return M::within(y, -1, 1);
    case GateActivation::kRelu:
      return M::above(y, 0);
    case GateActivation::kSoftsign: {
      const S rest = S(1) - M::abs(y);
      return rest * rest;
    }
    case GateActivation::kIdentity:
      break;
  }
  return S(1);
}

// d * old + (1 - d) * made.
template <typename S>
FASTNN_HOST_DEVICE S zoned_out(bool zoneout, const S& d, const S& old, const S& made) {
  return zoneout ? d * old + (S(1) - d) * made : made;
}
// The gradient of `made`; that of `old` is added to.
template <typename S>
FASTNN_HOST_DEVICE S zoneout_backward(bool zoneout, const S& d, const S& grad, S& grad_old) {
  if (!zoneout) return grad;
  grad_old = grad_old + d * grad;
  return (S(1) - d) * grad;
}

// ---- LSTM ---------------------------------------------------------------------------------------------------

// kPlain: cell.is_plain_lstm(), known when compiled.
template <typename M, bool kPlain>
struct LstmFormula {
  using S = typename M::Number;

  RecurrentCell cell;
  S p[3]{};  // p_i, p_f, p_o

  FASTNN_HOST_DEVICE GateActivation gate() const { return kPlain ? GateActivation::kSigmoid : cell.gate; }
  FASTNN_HOST_DEVICE GateActivation candidate() const {
    return kPlain ? GateActivation::kTanh : cell.candidate;
  }
  FASTNN_HOST_DEVICE GateActivation output() const { return kPlain ? GateActivation::kTanh : cell.output; }
  FASTNN_HOST_DEVICE bool coupled() const { return !kPlain && cell.coupled; }
  FASTNN_HOST_DEVICE bool peephole() const { return !kPlain && cell.peephole; }

  // gates: i, f, g, o; of a coupled cell i is not read and becomes 1 - f. c is the state before.
  struct Values {
    S gates[4], c, c_made, squashed;
  };

  // Turns pre-activations into values; where c is normalised before it is squashed, the caller does that.
  FASTNN_HOST_DEVICE void activate_gates(const S (&a)[4], const S& c, Values& v, bool squashes = true) const {
    v.c = c;
    v.gates[1] = activate<M>(gate(), peephole() ? a[1] + p[1] * c : a[1]);
    v.gates[0] = coupled() ? S(1) - v.gates[1] : activate<M>(gate(), peephole() ? a[0] + p[0] * c : a[0]);
    v.gates[2] = activate<M>(candidate(), a[2]);
    v.c_made = v.gates[1] * v.c + v.gates[0] * v.gates[2];
    if (squashes) squash(v);
    S of_output = a[3];
    if (peephole()) of_output = of_output + p[2] * (cell.peephole_previous ? c : v.c_made);
    v.gates[3] = activate<M>(gate(), of_output);
  }
  // From activated gates and c.
  FASTNN_HOST_DEVICE void make_c(Values& v) const {
    v.c_made = v.gates[1] * v.c + v.gates[0] * v.gates[2];
    squash(v);
  }
  FASTNN_HOST_DEVICE void squash(Values& v) const { v.squashed = activate<M>(output(), v.c_made); }

  struct Grads {
    S gates[4], c, p[3];
  };
  // Given those of c_made and of h'.
  FASTNN_HOST_DEVICE Grads backward(const Values& v, const S& grad_h, const S& grad_c) const {
    const S &o = v.gates[3], of_output = grad_h * v.squashed * slope<M>(gate(), o);
    return backward_of_c(v, of_output, grad_c + grad_h * o * slope<M>(output(), v.squashed));
  }
  // Given those of the output gate's pre-activation and of c_made by all ways but that gate's peephole.
  FASTNN_HOST_DEVICE Grads backward_of_c(const Values& v, const S& of_output, const S& of_c) const {
    const S &i = v.gates[0], &f = v.gates[1], &g = v.gates[2];
    Grads r{};
    r.gates[3] = of_output;
    S dc = of_c;
    if (peephole() && !cell.peephole_previous) dc = dc + p[2] * r.gates[3];
    r.gates[1] = dc * (coupled() ? v.c - g : v.c) * slope<M>(gate(), f);
    if (!coupled()) r.gates[0] = dc * g * slope<M>(gate(), i);
    r.gates[2] = dc * i * slope<M>(candidate(), g);
    r.c = dc * f;
    if (peephole()) {
      r.c = r.c + p[1] * r.gates[1];
      if (!coupled()) r.c = r.c + p[0] * r.gates[0];
      if (cell.peephole_previous) r.c = r.c + p[2] * r.gates[3];
      r.p[0] = r.gates[0] * v.c;
      r.p[1] = r.gates[1] * v.c;
      r.p[2] = r.gates[3] * (cell.peephole_previous ? v.c : v.c_made);
    }
    return r;
  }
};

// ---- GRU ----------------------------------------------------------------------------------------------------

template <typename M>
struct GruFormula {
  using S = typename M::Number;
  RecurrentCell cell;

  struct Values {
    S r, z, n, u_n, h;
  };
  FASTNN_HOST_DEVICE Values activate_gates(const S& a_r, const S& a_z, const S& x_n, const S& u_n,
                                           const S& h) const {
    Values v{activate<M>(cell.gate, a_r), activate<M>(cell.gate, a_z), S(0), u_n, h};
    v.n = activate<M>(cell.candidate, x_n + v.r * u_n);
    return v;
  }
  FASTNN_HOST_DEVICE S made(const Values& v) const { return (S(1) - v.z) * v.n + v.z * v.h; }

  struct Grads {
    S a_r, a_z, x_n, u_n, h;
  };
  FASTNN_HOST_DEVICE Grads backward(const Values& v, const S& grad_h) const {
    const S dn = grad_h * (S(1) - v.z) * slope<M>(cell.candidate, v.n);
    return {dn * v.u_n * slope<M>(cell.gate, v.r), grad_h * (v.h - v.n) * slope<M>(cell.gate, v.z), dn,
            dn * v.r, grad_h * v.z};
  }
};

// ---- cells that reset before the product ----------------------------------------------------------------

template <typename M>
struct BlendFormula {
  using S = typename M::Number;
  RecurrentCell cell;

  FASTNN_HOST_DEVICE S made(const S& n, const S& z, const S& h) const {
    return cell.z_takes ? z * n + (S(1) - z) * h : (S(1) - z) * n + z * h;
  }
  struct Grads {
    S a_n, z, h;  // of z itself, not of what it is the activation of
  };
  FASTNN_HOST_DEVICE Grads backward(const S& n, const S& z, const S& h, const S& grad) const {
    const S of_n = cell.z_takes ? z : S(1) - z, of_h = cell.z_takes ? S(1) - z : z;
    return {grad * of_n * slope<M>(cell.candidate, n), grad * (cell.z_takes ? n - h : h - n), grad * of_h};
  }
};

// ---- stages -------------------------------------------------------------------------------------------------

// As ops/recurrent_cell.h lists them: `in` to `out`, and grad_out to grad_in, of one element each.
template <typename M, CellStage kStage>
struct CellFormula;

template <typename M>
struct CellFormula<M, CellStage::kLstm> {
  using S = typename M::Number;
  static constexpr int kInputs = 11, kGrads = 9, kOutputs = 2;

  static FASTNN_HOST_DEVICE void forward(const RecurrentCell& cell, const S (&in)[kInputs],
                                         S (&out)[kOutputs]) {
    const LstmFormula<M, false> formula{cell, {in[5], in[6], in[7]}};
    typename LstmFormula<M, false>::Values v;
    formula.activate_gates({in[0], in[1], in[2], in[3]}, in[4], v);
    out[0] = zoned_out(cell.zoneout_h, in[9], in[8], v.gates[3] * v.squashed);
    out[1] = zoned_out(cell.zoneout_c, in[10], in[4], v.c_made);
  }
  static FASTNN_HOST_DEVICE void backward(const RecurrentCell& cell, const S (&in)[kInputs],
                                          const S (&grad)[kOutputs], S (&grad_in)[kGrads]) {
    const LstmFormula<M, false> formula{cell, {in[5], in[6], in[7]}};
    typename LstmFormula<M, false>::Values v;
    formula.activate_gates({in[0], in[1], in[2], in[3]}, in[4], v);
    S of_h(0), of_c(0);
    const S grad_h = zoneout_backward(cell.zoneout_h, in[9], grad[0], of_h);
    const S grad_c = zoneout_backward(cell.zoneout_c, in[10], grad[1], of_c);
    const auto g = formula.backward(v, grad_h, grad_c);
    for (int k = 0; k < 4; ++k) grad_in[k] = g.gates[k];
    grad_in[4] = g.c + of_c;
    for (int k = 0; k < 3; ++k) grad_in[5 + k] = g.p[k];
    grad_in[8] = of_h;
  }
};

template <typename M>
struct CellFormula<M, CellStage::kGru> {
  using S = typename M::Number;
  static constexpr int kInputs = 8, kGrads = 7, kOutputs = 1;

  static FASTNN_HOST_DEVICE void forward(const RecurrentCell& cell, const S (&in)[kInputs],
                                         S (&out)[kOutputs]) {
    const GruFormula<M> formula{cell};
    const auto v = formula.activate_gates(in[0] + in[3], in[1] + in[4], in[2], in[5], in[6]);
    out[0] = zoned_out(cell.zoneout_h, in[7], in[6], formula.made(v));
  }
  static FASTNN_HOST_DEVICE void backward(const RecurrentCell& cell, const S (&in)[kInputs],
                                          const S (&grad)[kOutputs], S (&grad_in)[kGrads]) {
    const GruFormula<M> formula{cell};
    const auto v = formula.activate_gates(in[0] + in[3], in[1] + in[4], in[2], in[5], in[6]);
    S of_h(0);
    const auto g = formula.backward(v, zoneout_backward(cell.zoneout_h, in[7], grad[0], of_h));
    grad_in[0] = grad_in[3] = g.a_r;
    grad_in[1] = grad_in[4] = g.a_z;
    grad_in[2] = g.x_n;
    grad_in[5] = g.u_n;
    grad_in[6] = g.h + of_h;
  }
};

template <typename M>
struct CellFormula<M, CellStage::kRnn> {
  using S = typename M::Number;
  static constexpr int kInputs = 3, kGrads = 2, kOutputs = 1;

  static FASTNN_HOST_DEVICE void forward(const RecurrentCell& cell, const S (&in)[kInputs],
                                         S (&out)[kOutputs]) {
    out[0] = zoned_out(cell.zoneout_h, in[2], in[1], activate<M>(cell.candidate, in[0]));
  }
  static FASTNN_HOST_DEVICE void backward(const RecurrentCell& cell, const S (&in)[kInputs],
                                          const S (&grad)[kOutputs], S (&grad_in)[kGrads]) {
    grad_in[1] = S(0);
    const S made = zoneout_backward(cell.zoneout_h, in[2], grad[0], grad_in[1]);
    grad_in[0] = made * slope<M>(cell.candidate, activate<M>(cell.candidate, in[0]));
  }
};

template <typename M>
struct CellFormula<M, CellStage::kReset> {
  using S = typename M::Number;
  static constexpr int kInputs = 3, kGrads = 3, kOutputs = 2;

  static FASTNN_HOST_DEVICE void forward(const RecurrentCell& cell, const S (&in)[kInputs],
                                         S (&out)[kOutputs]) {
    out[0] = activate<M>(cell.gate, in[0]) * in[2];
    out[1] = activate<M>(cell.gate, in[1]);
  }
  static FASTNN_HOST_DEVICE void backward(const RecurrentCell& cell, const S (&in)[kInputs],
                                          const S (&grad)[kOutputs], S (&grad_in)[kGrads]) {
    const S r = activate<M>(cell.gate, in[0]), z = activate<M>(cell.gate, in[1]);
    grad_in[0] = grad[0] * in[2] * slope<M>(cell.gate, r);
    grad_in[1] = grad[1] * slope<M>(cell.gate, z);
    grad_in[2] = grad[0] * r;
  }
};

template <typename M>
struct CellFormula<M, CellStage::kBlend> {
  using S = typename M::Number;
  static constexpr int kInputs = 4, kGrads = 3, kOutputs = 1;

  static FASTNN_HOST_DEVICE void forward(const RecurrentCell& cell, const S (&in)[kInputs],
                                         S (&out)[kOutputs]) {
    const S made = BlendFormula<M>{cell}.made(activate<M>(cell.candidate, in[0]), in[1], in[2]);
    out[0] = zoned_out(cell.zoneout_h, in[3], in[2], made);
  }
  static FASTNN_HOST_DEVICE void backward(const RecurrentCell& cell, const S (&in)[kInputs],
                                          const S (&grad)[kOutputs], S (&grad_in)[kGrads]) {
    S of_h(0);
    const S made = zoneout_backward(cell.zoneout_h, in[3], grad[0], of_h);
    const auto g = BlendFormula<M>{cell}.backward(activate<M>(cell.candidate, in[0]), in[1], in[2], made);
    grad_in[0] = g.a_n;
    grad_in[1] = g.z;
    grad_in[2] = g.h + of_h;
  }
};

// Calls f(std::integral_constant-like tag with ::value) for a stage.
template <CellStage kStage>
struct StageTag {
  static constexpr CellStage value = kStage;
};
template <typename F>
auto with_stage(CellStage stage, const F& f) {
  switch (stage) {
    case CellStage::kLstm:
      return f(StageTag<CellStage::kLstm>{});
    case CellStage::kGru:
      return f(StageTag<CellStage::kGru>{});
    case CellStage::kRnn:
      return f(StageTag<CellStage::kRnn>{});
    case CellStage::kReset:
      return f(StageTag<CellStage::kReset>{});
    case CellStage::kBlend:
      break;
  }
  return f(StageTag<CellStage::kBlend>{});
}

}  // namespace fastnn
