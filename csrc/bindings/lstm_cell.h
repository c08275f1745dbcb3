// What the two files of the LSTM cell's ops share: lstm_cell.cpp has torch's signature and the cell after its
// matrix products, lstm_step.cpp the cell with them.
#pragma once

#include <ATen/TensorOperators.h>

#include <array>
#include <tuple>

#include "../ops/lstm_cell.h"
#include "autograd.h"
#include "backend.h"

namespace fastnn::bindings {

using TwoTensors = std::tuple<at::Tensor, at::Tensor>;
using ThreeTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using FiveTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

using PointwiseBackward = ThreeTensors(const OptionalTensor& grad_hy, const OptionalTensor& grad_cy,
                                       const at::Tensor& gates, const OptionalTensor& bias_ih,
                                       const OptionalTensor& bias_hh, const at::Tensor& cx,
                                       std::array<bool, 3> output_mask);
using PointwiseDoubleBackward = FiveTensors(const OptionalTensor& gg_gates, const OptionalTensor& gg_cx,
                                            const OptionalTensor& gg_bias, const OptionalTensor& grad_hy,
                                            const OptionalTensor& grad_cy, const at::Tensor& gates,
                                            const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                                            const at::Tensor& cx, std::array<bool, 5> output_mask);
const c10::TypedOperatorHandle<PointwiseBackward>& lstm_cell_pointwise_backward_op();
const c10::TypedOperatorHandle<PointwiseDoubleBackward>& lstm_cell_pointwise_double_backward_op();

// lstm_cell_pointwise of the products and the state. CPU autocast lowers the products alone, and torch lets the
// state keep a wider type than they have: what follows them is done in the wider one.
TwoTensors lstm_cell_after_products(const at::Tensor& gates, const OptionalTensor& b_ih,
                                    const OptionalTensor& b_hh, const at::Tensor& cx);

using Step = ThreeTensors(const at::Tensor& input, const at::Tensor& hx, const at::Tensor& cx,
                          const at::Tensor& w_ih, const at::Tensor& w_hh, const OptionalTensor& bias_ih,
                          const OptionalTensor& bias_hh, bool save_gates);
const c10::TypedOperatorHandle<Step>& lstm_cell_step_op();

// The direction in which the sum of both biases moves.
inline OptionalTensor bias_tangent(const OptionalTensor& bias_ih, const OptionalTensor& bias_hh) {
  return some(sum_of(value_or_undefined(tangent(bias_ih)), value_or_undefined(tangent(bias_hh))));
}

// The tensors that every op of the cell reads, checked and dense. It owns them: the parameters only point.
class CellInputs {
 public:
  // gates is undefined where the op makes them.
  CellInputs(BackendCall& call, const char* op, const at::Tensor& gates, const OptionalTensor& bias_ih,
             const OptionalTensor& bias_hh, const at::Tensor& cx);

  // Checks a tensor, makes it dense in `keep`, and returns its data; null for none.
  const void* take(const char* name, const OptionalTensor& t, at::IntArrayRef size, at::Tensor& keep) const {
    return t.has_value() ? take(name, *t, size, keep) : nullptr;
  }
  const void* take(const char* name, const at::Tensor& t, at::IntArrayRef size, at::Tensor& keep) const;

  at::Tensor make(bool wanted, at::IntArrayRef size) const {
    return wanted ? at::empty(size, cx_.options()) : absent(cx_.options());
  }

  LstmCellInputs params;

 private:
  BackendCall& call_;
  const char* op_;
  const char* like_;  // which argument's dtype and device the others must have
  at::Tensor gates_, bias_ih_, bias_hh_, cx_;
};

}  // namespace fastnn::bindings
