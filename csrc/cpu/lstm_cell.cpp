// The LSTM cell on the CPU: its pointwise part, and the entry points of the whole step (lstm_step_forward.h,
// lstm_step_backward.h). Formulas in ops/lstm_cell.h and ops/lstm_cell_math.h.
//
// What bounds the pointwise part: arithmetic, five transcendental functions for each of N * H cells (about 300
// cycles a vector of float with AVX-512), beside 7 values of traffic forward (4 gates and cx read, hy and cy
// written), 12 backward and up to 22 in double backward. A vector is W neighbouring hidden units of one row, in
// the accumulation type.
//
// A task owns kBlockRows rows by kBlockColumns hidden units. When the gradient of the bias is wanted, the task
// also keeps its rows' column sums, in acc_t and of gradients not yet rounded, in its part of the workspace
// [row blocks, 4H]; a second, short pass adds the row blocks in ascending order in float64. The grid depends on
// the shape alone, so no bits depend on the number of threads.
//
// Error: sigmoid within 3 ulp over the whole range, denormals included; tanh within 1.5 ulp in float (measured
// over its range), in double within 1 (SLEEF u10), in the portable build 2.1 (the C library); column sums at
// most kBlockRows roundings in acc_t, then float64.
#include "../ops/lstm_cell.h"

#include "../ops/lstm_cell_math.h"
#include "dispatch.h"
#include "lstm_cell_pointwise.h"
#include "lstm_step_backward.h"
#include "lstm_step_forward.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {
namespace {

using namespace lstm;

template <typename scalar_t>
void lstm_cell_forward_typed(const LstmCellForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const Inputs<scalar_t> in(p.in);
  scalar_t* hy = static_cast<scalar_t*>(p.hy);
  scalar_t* cy = static_cast<scalar_t*>(p.cy);
  for_each_cell_vector<acc_t>(p.in, [&](int64_t, int64_t row, int64_t column, int64_t count) {
    Vec<acc_t> c;
    const LstmCellValues<Vec<acc_t>> v = in.values(row, column, count, c);
    store_acc(cy + row * in.H + column, c, count);
    store_acc(hy + row * in.H + column, v.o * v.tanh_cy, count);
  });
}

// Whether bfloat16 is multiplied two steps at a time: rows are then whole pairs.
bool multiplies_pairs(const LstmStepInputs& in) {
  return has_dot_pairs() && in.I % 2 == 0 && in.cell.H % 2 == 0;
}

// P is LstmCellBackwardParams or LstmStepBackwardParams; store(row block, row, gate, column, gradient, count)
// keeps those of the gates.
template <typename scalar_t, typename P, typename Store>
void backward_cells(const LstmCellInputs& cell, const P& p, const Store& store) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  const Inputs<scalar_t> in(cell);
  const scalar_t* grad_hy = static_cast<const scalar_t*>(p.grad_hy);
  const scalar_t* grad_cy = static_cast<const scalar_t*>(p.grad_cy);
  scalar_t* grad_cx = static_cast<scalar_t*>(p.grad_cx);
  for_each_cell_vector<acc_t>(cell, [&](int64_t block, int64_t row, int64_t column, int64_t count) {
    const int64_t at = row * in.H + column;
    V cy;
    const LstmCellValues<V> v = in.values(row, column, count, cy);
    const LstmCellGrads<V> grad =
        lstm_cell_backward_values(v, load_or_zero(grad_hy, at, count), load_or_zero(grad_cy, at, count));
    const V* gates[4] = {&grad.i, &grad.f, &grad.g, &grad.o};
    for (int64_t gate = 0; gate < 4; ++gate) store(block, row, gate, column, *gates[gate], count);
    store_if_wanted(grad_cx, at, grad.cx, count);
  });
}

template <typename scalar_t>
void lstm_cell_backward_typed(const LstmCellBackwardParams& p) {
  scalar_t* grad_gates = static_cast<scalar_t*>(p.grad_gates);
  const ColumnSums<scalar_t> bias_sums(p.workspace, p.grad_bias, p.in);
  backward_cells<scalar_t>(
      p.in, p, [&](int64_t block, int64_t row, int64_t gate, int64_t column, const auto& grad, int64_t count) {
        store_acc(grad_gates + (row * 4 + gate) * p.in.H + column, grad, count);
        bias_sums.add(block, row, gate, column, grad, count);
      });
  bias_sums.finish();
}

// Calls f(tag of the element type, StepBackward of these parameters).
template <typename F>
Status with_step_backward(const LstmStepBackwardParams& p, const F& f) {
  return dispatch_dtype(p.in.cell.dtype, [&](auto scalar) {
    using scalar_t = typename decltype(scalar)::type;
    if constexpr (std::is_same_v<scalar_t, c10::BFloat16>) {
      if (multiplies_pairs(p.in)) {
        f(scalar, StepBackward<scalar_t, /*kPairs=*/true>(p));
        return Status::success();
      }
    }
    f(scalar, StepBackward<scalar_t>(p));
    return Status::success();
  });
}

template <typename scalar_t>
void lstm_cell_double_backward_typed(const LstmCellDoubleBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  const Inputs<scalar_t> in(p.in);
  const ColumnSums<scalar_t> bias_sums(p.workspace, p.d_bias, p.in);
  const scalar_t* gg_gates = static_cast<const scalar_t*>(p.gg_gates);
  const scalar_t* gg_cx = static_cast<const scalar_t*>(p.gg_cx);
  const scalar_t* gg_bias = static_cast<const scalar_t*>(p.gg_bias);
  const scalar_t* grad_hy = static_cast<const scalar_t*>(p.grad_hy);
  const scalar_t* grad_cy = static_cast<const scalar_t*>(p.grad_cy);
  scalar_t* d_grad_hy = static_cast<scalar_t*>(p.d_grad_hy);
  scalar_t* d_grad_cy = static_cast<scalar_t*>(p.d_grad_cy);
  scalar_t* d_gates = static_cast<scalar_t*>(p.d_gates);
  scalar_t* d_cx = static_cast<scalar_t*>(p.d_cx);
  for_each_cell_vector<acc_t>(p.in, [&](int64_t block, int64_t row, int64_t column, int64_t count) {
    const int64_t cell = row * in.H + column;
    V cy;
    const LstmCellValues<V> v = in.values(row, column, count, cy);
    // grad_bias is a sum of grad_gates, so its direction adds to that of every row of them.
    const auto direction = [&](int64_t gate) {
      return load_or_zero(gg_gates, (row * 4 + gate) * in.H + column, count) +
             load_or_zero(gg_bias, gate * in.H + column, count);
    };
    const LstmCellGrads<V> u{direction(0), direction(1), direction(2), direction(3),
                             load_or_zero(gg_cx, cell, count)};
    const LstmCellDoubleGrads<V> d = lstm_cell_double_backward_values(v, load_or_zero(grad_hy, cell, count),
                                                                      load_or_zero(grad_cy, cell, count), u);
    store_if_wanted(d_grad_hy, cell, d.grad_hy, count);
    store_if_wanted(d_grad_cy, cell, d.grad_cy, count);
    const V* gates[4] = {&d.a.i, &d.a.f, &d.a.g, &d.a.o};
    for (int64_t gate = 0; gate < 4; ++gate) {
      store_if_wanted(d_gates, (row * 4 + gate) * in.H + column, *gates[gate], count);
      bias_sums.add(block, row, gate, column, *gates[gate], count);
    }
    store_if_wanted(d_cx, cell, d.a.cx, count);
  });
  bias_sums.finish();
}

int64_t column_sums_bytes(const LstmCellInputs& in, const void* sums) {
  if (sums == nullptr) return 0;
  return in.dtype == DType::kFloat64 ? ColumnSums<double>::bytes(in) : ColumnSums<float>::bytes(in);
}

}  // namespace

int64_t lstm_cell_backward_workspace(const LstmCellBackwardParams& p) {
  return column_sums_bytes(p.in, p.grad_bias);
}

int64_t lstm_cell_double_backward_workspace(const LstmCellDoubleBackwardParams& p) {
  return column_sums_bytes(p.in, p.d_bias);
}

int64_t lstm_step_backward_workspace(const LstmStepBackwardParams& p) {
  int64_t bytes = 0;
  with_step_backward(p, [&](auto, const auto& step) { bytes = step.workspace(); });
  return bytes;
}

Status lstm_cell_forward(const LstmCellForwardParams& p, Stream) {
  return dispatch_dtype(p.in.dtype, [&](auto scalar) {
    lstm_cell_forward_typed<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

Status lstm_cell_backward(const LstmCellBackwardParams& p, Stream) {
  return dispatch_dtype(p.in.dtype, [&](auto scalar) {
    lstm_cell_backward_typed<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

Status lstm_cell_double_backward(const LstmCellDoubleBackwardParams& p, Stream) {
  return dispatch_dtype(p.in.dtype, [&](auto scalar) {
    lstm_cell_double_backward_typed<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

Status lstm_step_forward(const LstmStepForwardParams& p, Stream) {
  return dispatch_dtype(p.in.cell.dtype, [&](auto scalar) {
    using scalar_t = typename decltype(scalar)::type;
    if constexpr (std::is_same_v<scalar_t, c10::BFloat16>) {
      if (multiplies_pairs(p.in)) {
        StepForward<scalar_t, /*kPairs=*/true>(p).run();
        return Status::success();
      }
    }
    StepForward<scalar_t>(p).run();
    return Status::success();
  });
}

Status lstm_step_backward(const LstmStepBackwardParams& p, Stream) {
  return with_step_backward(p, [&](auto scalar, const auto& step) {
    using scalar_t = typename decltype(scalar)::type;
    if (p.grad_gates != nullptr) {
      step.load_gates(static_cast<const scalar_t*>(p.grad_gates));
    } else {
      backward_cells<scalar_t>(p.in.cell, p,
                               [&](int64_t, int64_t row, int64_t gate, int64_t column, const auto& grad,
                                   int64_t count) { step.store_gates(row, gate, column, grad, count); });
    }
    step.multiply_all();
  });
}

}  // namespace fastnn::FASTNN_BACKEND
