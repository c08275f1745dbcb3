// The LSTM cell's pointwise formulas, shared by every backend. T is a number or a vector of them: these use
// +, - and * alone; the activations come from the caller.
#pragma once

#include "host_device.h"

namespace fastnn {

// Values of one cell: the four activations, the old state, and tanh of the new one.
template <typename T>
struct LstmCellValues {
  T i, f, g, o, cx, tanh_cy;
};

template <typename T>
struct LstmCellGrads {
  T i, f, g, o, cx;
};

// dL/da for the four pre-activations, and dL/dcx, given dL/dhy and dL/dcy.
template <typename T>
FASTNN_HOST_DEVICE LstmCellGrads<T> lstm_cell_backward_values(const LstmCellValues<T>& v, T grad_hy,
                                                              T grad_cy) {
  const T one(1);
  const T dc = grad_cy + grad_hy * v.o * (one - v.tanh_cy * v.tanh_cy);
  return {dc * v.g * v.i * (one - v.i), dc * v.cx * v.f * (one - v.f), dc * v.i * (one - v.g * v.g),
          grad_hy * v.tanh_cy * v.o * (one - v.o), dc * v.f};
}

template <typename T>
struct LstmCellDoubleGrads {
  T grad_hy, grad_cy;  // derivatives with respect to the incoming gradients
  LstmCellGrads<T> a;  // with respect to the pre-activations and cx
};

// Derivative of <u, backward(v, grad_hy, grad_cy)>. With
//   A = u_i g i' + u_f cx f' + u_g i g' + u_cx f,  i' = i (1 - i), f' = f (1 - f), g' = 1 - g^2, o' = o (1 - o)
// that product is L = dc * A + u_o * grad_hy * t * o', where t = tanh(cy).
template <typename T>
FASTNN_HOST_DEVICE LstmCellDoubleGrads<T> lstm_cell_double_backward_values(const LstmCellValues<T>& v,
                                                                           T grad_hy, T grad_cy,
                                                                           const LstmCellGrads<T>& u) {
  const T one(1), two(2);
  const T di = v.i * (one - v.i), df = v.f * (one - v.f), dg = one - v.g * v.g, dout = v.o * (one - v.o);
  const T t = v.tanh_cy, dt = one - t * t;
  const T dc = grad_cy + grad_hy * v.o * dt;
  const T A = u.i * v.g * di + u.f * v.cx * df + u.g * v.i * dg + u.cx * v.f;
  // dL/dcy through tanh alone
  const T p = dt * grad_hy * (u.o * dout - two * t * A * v.o);
  LstmCellDoubleGrads<T> r;
  r.grad_cy = A;
  r.grad_hy = A * v.o * dt + u.o * t * dout;
  r.a.i = di * (dc * (u.i * v.g * (one - two * v.i) + u.g * dg) + p * v.g);
  r.a.f = df * (dc * (u.f * v.cx * (one - two * v.f) + u.cx) + p * v.cx);
  r.a.g = dg * (dc * (u.i * di - two * u.g * v.i * v.g) + p * v.i);
  r.a.o = dout * grad_hy * (A * dt + u.o * t * (one - two * v.o));
  r.a.cx = dc * u.f * df + p * v.f;
  return r;
}

}  // namespace fastnn
