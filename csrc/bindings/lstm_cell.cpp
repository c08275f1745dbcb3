// The LSTM cell: the dispatcher's ops, their checks, autograd and Python functions.
//
// lstm_cell is one op where the backend multiplies matrices (lstm_step.cpp); elsewhere, and where types differ,
// it is two products by the framework's GEMM and lstm_cell_pointwise, which does everything after them.
// Derivatives of the latter: lstm_cell_pointwise -> _backward -> _double_backward. Backward is the gradient of
// a scalar function of (gates, biases, cx), so its Jacobian is symmetric: the double backward gives the
// tangents of both other ops too, and forward mode needs no kernels of its own.
#include "lstm_cell.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>

#include "autocast.h"
#include "python.h"
#include "tensors.h"

namespace fastnn::bindings {

// ---- kernels ----------------------------------------------------------------------------------------------

CellInputs::CellInputs(BackendCall& call, const char* op, const at::Tensor& gates,
                       const OptionalTensor& bias_ih, const OptionalTensor& bias_hh, const at::Tensor& cx)
    : call_(call), op_(op), like_(gates.defined() ? "gates" : "cx"), gates_(gates), cx_(cx.contiguous()) {
  TORCH_CHECK(cx.dim() == 2, op, ": cx must be 2-dimensional [N, H], got shape ", cx.sizes());
  params.dtype = dtype_of(op, like_, gates.defined() ? gates : cx);
  params.N = cx.size(0);
  params.H = cx.size(1);
  params.gates = gates.defined() ? take("gates", gates, {params.N, 4 * params.H}, gates_) : nullptr;
  params.cx = take("cx", cx, {params.N, params.H}, cx_);
  params.bias_ih = take("bias_ih", bias_ih, {4 * params.H}, bias_ih_);
  params.bias_hh = take("bias_hh", bias_hh, {4 * params.H}, bias_hh_);
}

const void* CellInputs::take(const char* name, const at::Tensor& t, at::IntArrayRef size,
                             at::Tensor& keep) const {
  const at::Tensor& like = gates_.defined() ? gates_ : cx_;
  TORCH_CHECK(t.sizes() == size, op_, ": ", name, " must have shape ", size, ", got ", t.sizes());
  TORCH_CHECK(t.scalar_type() == like.scalar_type() && t.device() == like.device(), op_, ": ", name,
              " must have the dtype and device of ", like_, ", ", like.scalar_type(), " on ", like.device(),
              ", got ", t.scalar_type(), " on ", t.device());
  keep = t.contiguous();
  return call_.data(keep);
}

namespace {

using Two = TwoTensors;
using Three = ThreeTensors;
using Five = FiveTensors;

Two lstm_cell_pointwise(const at::Tensor& gates, const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                        const at::Tensor& cx) {
  BackendCall call(gates);
  const CellInputs in(call, "lstm_cell", gates, bias_ih, bias_hh, cx);
  at::Tensor hy = in.make(true, cx.sizes()), cy = in.make(true, cx.sizes());
  if (cx.numel() > 0) {
    call(&Backend::lstm_cell_forward, LstmCellForwardParams{in.params, call.output(hy), call.output(cy)});
  }
  return {hy, cy};
}

Three lstm_cell_pointwise_backward(const OptionalTensor& grad_hy, const OptionalTensor& grad_cy,
                                   const at::Tensor& gates, const OptionalTensor& bias_ih,
                                   const OptionalTensor& bias_hh, const at::Tensor& cx,
                                   std::array<bool, 3> output_mask) {
  BackendCall call(gates);
  const CellInputs in(call, "lstm_cell_backward", gates, bias_ih, bias_hh, cx);
  // The bias gradient is a sum of the gates' gradients, which are therefore always made.
  at::Tensor grad_gates = in.make(true, gates.sizes()), grad_cx = in.make(output_mask[1], cx.sizes()),
             grad_bias = in.make(output_mask[2], {4 * in.params.H});
  if (cx.numel() == 0) return {grad_gates, grad_cx, grad_bias.zero_()};
  at::Tensor gh, gc;
  LstmCellBackwardParams p;
  p.in = in.params;
  p.grad_hy = in.take("grad_hy", grad_hy, cx.sizes(), gh);
  p.grad_cy = in.take("grad_cy", grad_cy, cx.sizes(), gc);
  p.grad_gates = call.output(grad_gates);
  p.grad_cx = output_mask[1] ? call.output(grad_cx) : nullptr;
  p.grad_bias = output_mask[2] ? call.output(grad_bias) : nullptr;
  call(&Backend::lstm_cell_backward, &Backend::lstm_cell_backward_workspace, p);
  return {grad_gates, grad_cx, grad_bias};
}

Five lstm_cell_pointwise_double_backward(const OptionalTensor& gg_gates, const OptionalTensor& gg_cx,
                                         const OptionalTensor& gg_bias, const OptionalTensor& grad_hy,
                                         const OptionalTensor& grad_cy, const at::Tensor& gates,
                                         const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                                         const at::Tensor& cx, std::array<bool, 5> output_mask) {
  BackendCall call(gates);
  const CellInputs in(call, "lstm_cell_double_backward", gates, bias_ih, bias_hh, cx);
  const bool want_gates = output_mask[2] || output_mask[4];
  at::Tensor d_grad_hy = in.make(output_mask[0], cx.sizes()), d_grad_cy = in.make(output_mask[1], cx.sizes()),
             d_gates = in.make(want_gates, gates.sizes()), d_cx = in.make(output_mask[3], cx.sizes()),
             d_bias = in.make(output_mask[4], {4 * in.params.H});
  if (cx.numel() == 0) return {d_grad_hy, d_grad_cy, d_gates, d_cx, d_bias.zero_()};
  at::Tensor keep[5];
  LstmCellDoubleBackwardParams p;
  p.in = in.params;
  p.gg_gates = in.take("gg_gates", gg_gates, gates.sizes(), keep[0]);
  p.gg_cx = in.take("gg_cx", gg_cx, cx.sizes(), keep[1]);
  p.gg_bias = in.take("gg_bias", gg_bias, {4 * in.params.H}, keep[2]);
  p.grad_hy = in.take("grad_hy", grad_hy, cx.sizes(), keep[3]);
  p.grad_cy = in.take("grad_cy", grad_cy, cx.sizes(), keep[4]);
  p.d_grad_hy = output_mask[0] ? call.output(d_grad_hy) : nullptr;
  p.d_grad_cy = output_mask[1] ? call.output(d_grad_cy) : nullptr;
  p.d_gates = want_gates ? call.output(d_gates) : nullptr;
  p.d_cx = output_mask[3] ? call.output(d_cx) : nullptr;
  p.d_bias = output_mask[4] ? call.output(d_bias) : nullptr;
  call(&Backend::lstm_cell_double_backward, &Backend::lstm_cell_double_backward_workspace, p);
  return {d_grad_hy, d_grad_cy, d_gates, d_cx, d_bias};
}

// ---- the dispatcher's handles ------------------------------------------------------------------------------

const auto& pointwise_op() {
  static const auto op = find_op<decltype(lstm_cell_pointwise)>("fastnn::lstm_cell_pointwise");
  return op;
}

}  // namespace

TwoTensors lstm_cell_after_products(const at::Tensor& gates, const OptionalTensor& b_ih,
                                    const OptionalTensor& b_hh, const at::Tensor& cx) {
  const auto type = at::promote_types(gates.scalar_type(), cx.scalar_type());
  const auto in_type = [&](const OptionalTensor& t) { return t.has_value() ? some(t->to(type)) : t; };
  return pointwise_op().call(gates.to(type), in_type(b_ih), in_type(b_hh), cx.to(type));
}

const c10::TypedOperatorHandle<PointwiseBackward>& lstm_cell_pointwise_backward_op() {
  static const auto op = find_op<PointwiseBackward>("fastnn::lstm_cell_pointwise_backward");
  return op;
}

const c10::TypedOperatorHandle<PointwiseDoubleBackward>& lstm_cell_pointwise_double_backward_op() {
  static const auto op = find_op<PointwiseDoubleBackward>("fastnn::lstm_cell_pointwise_double_backward");
  return op;
}

namespace {

// ---- autograd ----------------------------------------------------------------------------------------------

// What both nodes hold: the inputs of the cell.
struct CellNode : Node {
  SavedVariable gates, bias_ih, bias_hh, cx;
  void keep(const at::Tensor& g, const OptionalTensor& b_ih, const OptionalTensor& b_hh, const at::Tensor& c) {
    gates = save(g);
    bias_ih = save(b_ih);
    bias_hh = save(b_hh);
    cx = save(c);
  }
  void release_variables() override {
    for (SavedVariable* v : {&gates, &bias_ih, &bias_hh, &cx}) v->reset_data();
  }
};

struct PointwiseNode final : CellNode {  // of (gates, bias_ih, bias_hh, cx)
  std::string name() const override { return "FastnnLstmCellBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(4);
    if (!grads[0].defined() && !grads[1].defined()) return result;
    const bool want_bias = task_should_compute_output(1) || task_should_compute_output(2);
    auto [grad_gates, grad_cx, grad_bias] = lstm_cell_pointwise_backward_op().call(
        some(grads[0]), some(grads[1]), gates.unpack(), some(bias_ih.unpack()), some(bias_hh.unpack()),
        cx.unpack(), {task_should_compute_output(0), task_should_compute_output(3), want_bias});
    result[0] = if_wanted(task_should_compute_output(0), grad_gates);
    result[1] = if_wanted(task_should_compute_output(1), grad_bias);
    result[2] = if_wanted(task_should_compute_output(2), grad_bias);
    result[3] = if_wanted(task_should_compute_output(3), grad_cx);
    return result;
  }
};

struct PointwiseBackwardNode final : CellNode {  // of (grad_hy, grad_cy, gates, bias_ih, bias_hh, cx)
  SavedVariable grad_hy, grad_cy;
  std::array<bool, 3> made{};  // which outputs were asked for: only those have gradients
  std::string name() const override { return "FastnnLstmCellBackwardBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(6);
    for (size_t i = 0; i < 3; ++i) grads[i] = if_wanted(made[i], grads[i]);
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined()) return result;
    const bool want_bias = task_should_compute_output(3) || task_should_compute_output(4);
    auto [d_grad_hy, d_grad_cy, d_gates, d_cx, d_bias] = lstm_cell_pointwise_double_backward_op().call(
        some(grads[0]), some(grads[1]), some(grads[2]), some(grad_hy.unpack()), some(grad_cy.unpack()),
        gates.unpack(), some(bias_ih.unpack()), some(bias_hh.unpack()), cx.unpack(),
        {task_should_compute_output(0), task_should_compute_output(1), task_should_compute_output(2),
         task_should_compute_output(5), want_bias});
    result[0] = if_wanted(task_should_compute_output(0), d_grad_hy);
    result[1] = if_wanted(task_should_compute_output(1), d_grad_cy);
    result[2] = if_wanted(task_should_compute_output(2), d_gates);
    result[3] = if_wanted(task_should_compute_output(3), d_bias);
    result[4] = if_wanted(task_should_compute_output(4), d_bias);
    result[5] = if_wanted(task_should_compute_output(5), d_cx);
    return result;
  }
  void release_variables() override {
    CellNode::release_variables();
    grad_hy.reset_data();
    grad_cy.reset_data();
  }
};

Two pointwise_autograd(c10::DispatchKeySet keys, const at::Tensor& gates, const OptionalTensor& bias_ih,
                       const OptionalTensor& bias_hh, const at::Tensor& cx) {
  const auto node = make_node<PointwiseNode>(gates, bias_ih, bias_hh, cx);
  if (node) node->keep(gates, bias_ih, bias_hh, cx);
  Two result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = pointwise_op().redispatch(keys & c10::after_autograd_keyset, gates, bias_ih, bias_hh, cx);
  }
  if (node) torch::autograd::set_history({std::get<0>(result), std::get<1>(result)}, node);
  if (any_tangent(gates, bias_ih, bias_hh, cx)) {
    const auto tangents = lstm_cell_pointwise_double_backward_op().call(
        some(tangent(gates)), some(tangent(cx)), bias_tangent(bias_ih, bias_hh), std::nullopt, std::nullopt,
        primal(gates), primal(bias_ih), primal(bias_hh), primal(cx), {true, true, false, false, false});
    set_tangent(std::get<0>(result), std::get<0>(tangents));
    set_tangent(std::get<1>(result), std::get<1>(tangents));
  }
  return result;
}

Three pointwise_backward_autograd(c10::DispatchKeySet keys, const OptionalTensor& grad_hy,
                                  const OptionalTensor& grad_cy, const at::Tensor& gates,
                                  const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                                  const at::Tensor& cx, std::array<bool, 3> output_mask) {
  const auto node = make_node<PointwiseBackwardNode>(grad_hy, grad_cy, gates, bias_ih, bias_hh, cx);
  if (node) {
    node->keep(gates, bias_ih, bias_hh, cx);
    node->grad_hy = save(grad_hy);
    node->grad_cy = save(grad_cy);
    node->made = {true, output_mask[1], output_mask[2]};
  }
  Three result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = lstm_cell_pointwise_backward_op().redispatch(keys & c10::after_autograd_keyset, grad_hy, grad_cy,
                                                          gates, bias_ih, bias_hh, cx, output_mask);
  }
  if (node) torch::autograd::set_history({std::get<0>(result), std::get<1>(result), std::get<2>(result)}, node);
  if (any_tangent(grad_hy, grad_cy, gates, bias_ih, bias_hh, cx)) {
    std::array<at::Tensor, 3> t;
    if (any_tangent(grad_hy, grad_cy)) {
      std::tie(t[0], t[1], t[2]) =
          lstm_cell_pointwise_backward_op().call(tangent(grad_hy), tangent(grad_cy), primal(gates),
                                                 primal(bias_ih), primal(bias_hh), primal(cx), output_mask);
    }
    if (any_tangent(gates, bias_ih, bias_hh, cx)) {
      const auto d = lstm_cell_pointwise_double_backward_op().call(
          some(tangent(gates)), some(tangent(cx)), bias_tangent(bias_ih, bias_hh), primal(grad_hy),
          primal(grad_cy), primal(gates), primal(bias_ih), primal(bias_hh), primal(cx),
          {false, false, true, output_mask[1], output_mask[2]});
      t[0] = sum_of(t[0], std::get<2>(d));
      t[1] = sum_of(t[1], std::get<3>(d));
      t[2] = sum_of(t[2], std::get<4>(d));
    }
    set_tangent(std::get<0>(result), t[0]);
    if (output_mask[1]) set_tangent(std::get<1>(result), t[1]);
    if (output_mask[2]) set_tangent(std::get<2>(result), t[2]);
  }
  return result;
}

Five pointwise_double_backward_autograd(c10::DispatchKeySet keys, const OptionalTensor& gg_gates,
                                        const OptionalTensor& gg_cx, const OptionalTensor& gg_bias,
                                        const OptionalTensor& grad_hy, const OptionalTensor& grad_cy,
                                        const at::Tensor& gates, const OptionalTensor& bias_ih,
                                        const OptionalTensor& bias_hh, const at::Tensor& cx,
                                        std::array<bool, 5> output_mask) {
  Five result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = lstm_cell_pointwise_double_backward_op().redispatch(keys & c10::after_autograd_keyset, gg_gates,
                                                                 gg_cx, gg_bias, grad_hy, grad_cy, gates,
                                                                 bias_ih, bias_hh, cx, output_mask);
  }
  forbid_derivative(
      "lstm_cell_pointwise_double_backward",
      {std::get<0>(result), std::get<1>(result), std::get<2>(result), std::get<3>(result), std::get<4>(result)},
      gg_gates, gg_cx, gg_bias, grad_hy, grad_cy, gates, bias_ih, bias_hh, cx);
  return result;
}

// ---- torch's signature -------------------------------------------------------------------------------------

// Whether lstm_cell_step serves these tensors: the backend has it, and all are of one type, which autocast (on
// the CPU it lowers the products alone) does not promise.
bool multiplies(const at::Tensor& input, const at::Tensor& hx, const at::Tensor& cx, const at::Tensor& w_ih,
                const at::Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh) {
  if (!BackendCall::has(input, &Backend::lstm_step_forward)) return false;
  if (at::autocast::is_autocast_enabled(at::kCPU)) return false;
  const auto fits = [&](const at::Tensor& t) {
    return t.scalar_type() == input.scalar_type() && t.device() == input.device();
  };
  return fits(hx) && fits(cx) && fits(w_ih) && fits(w_hh) && (!b_ih.has_value() || fits(*b_ih)) &&
         (!b_hh.has_value() || fits(*b_hh));
}

Two lstm_cell(const at::Tensor& input, const at::Tensor& hx, const at::Tensor& cx, const at::Tensor& w_ih,
              const at::Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh) {
  static constexpr const char* kOp = "lstm_cell";
  TORCH_CHECK_INDEX(input.dim() >= 2, kOp, ": expected input to be 2-dimensional [N, input_size], got shape ",
                    input.sym_sizes());
  TORCH_CHECK(input.dim() == 2, kOp, ": expected input to be 2-dimensional [N, input_size], got shape ",
              input.sym_sizes());
  TORCH_CHECK(hx.dim() == 2 && cx.dim() == 2, kOp,
              ": expected hx and cx to be 2-dimensional [N, hidden_size], got ", hx.sym_sizes(), " and ",
              cx.sym_sizes());
  TORCH_CHECK(w_ih.dim() == 2 && w_hh.dim() == 2, kOp, ": expected w_ih and w_hh to be 2-dimensional, got ",
              w_ih.sym_sizes(), " and ", w_hh.sym_sizes());
  const c10::SymInt N = input.sym_size(0), H = w_hh.sym_size(1);
  TORCH_CHECK(w_ih.sym_size(1) == input.sym_size(1), kOp, ": input has inconsistent input_size: got ",
              input.sym_size(1), " expected ", w_ih.sym_size(1));
  TORCH_CHECK(w_ih.sym_size(0) == H * 4, kOp, ": weight_ih first dim must be 4 * hidden_size = ", H * 4,
              ", but got ", w_ih.sym_size(0));
  TORCH_CHECK(w_hh.sym_size(0) == H * 4, kOp, ": weight_hh first dim must be 4 * hidden_size = ", H * 4,
              ", but got ", w_hh.sym_size(0));
  for (const auto& [name, state] : {std::pair<const char*, const at::Tensor&>{"hx", hx}, {"cx", cx}}) {
    TORCH_CHECK(state.sym_size(0) == N, kOp, ": Input batch size ", N, " doesn't match ", name, " batch size ",
                state.sym_size(0));
    TORCH_CHECK(state.sym_size(1) == H, kOp, ": ", name, " has inconsistent hidden_size: got ",
                state.sym_size(1), ", expected ", H);
  }
  for (const auto& [name, bias] :
       {std::pair<const char*, const OptionalTensor&>{"b_ih", b_ih}, {"b_hh", b_hh}}) {
    TORCH_CHECK(!bias.has_value() || (bias->dim() == 1 && bias->sym_size(0) == H * 4), kOp, ": ", name,
                " must have shape [", H * 4, "], got ",
                bias.has_value() ? bias->sym_sizes() : c10::SymIntArrayRef());
  }
  if (multiplies(input, hx, cx, w_ih, w_hh, b_ih, b_hh)) {
    auto [hy, cy, gates] = lstm_cell_step_op().call(input, hx, cx, w_ih, w_hh, b_ih, b_hh, false);
    return {hy, cy};
  }
  at::Tensor gates = at::addmm(at::linear(input, w_ih), hx, w_hh.t());
  if (!at::autocast::is_autocast_enabled(at::kCPU)) {
    for (const auto& [name, bias] :
         {std::pair<const char*, const OptionalTensor&>{"b_ih", b_ih}, {"b_hh", b_hh}}) {
      TORCH_CHECK(!bias.has_value() || bias->scalar_type() == gates.scalar_type(), kOp, ": ", name,
                  " must have input's dtype ", gates.scalar_type(), ", but got ",
                  bias.has_value() ? bias->scalar_type() : gates.scalar_type());
    }
  }
  return lstm_cell_after_products(gates, b_ih, b_hh, cx);
}

const auto& lstm_cell_op() {
  static const auto op = find_op<decltype(lstm_cell)>("fastnn::lstm_cell");
  return op;
}

// CUDA autocast casts every tensor of a cell, as it does for torch's own.
Two lstm_cell_autocast(const at::Tensor& input, const at::Tensor& hx, const at::Tensor& cx,
                       const at::Tensor& w_ih, const at::Tensor& w_hh, const OptionalTensor& b_ih,
                       const OptionalTensor& b_hh) {
  const Autocast cast(input);
  return lstm_cell_op().call(cast(input), cast(hx), cast(cx), cast(w_ih), cast(w_hh), cast(b_ih), cast(b_hh));
}

void register_kernels(torch::Library& m) {
  m.impl("lstm_cell_pointwise", lstm_cell_pointwise);
  m.impl("lstm_cell_pointwise_backward", lstm_cell_pointwise_backward);
  m.impl("lstm_cell_pointwise_double_backward", lstm_cell_pointwise_double_backward);
}

}  // namespace

// ---- registration ------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "lstm_cell(Tensor input, Tensor hx, Tensor cx, Tensor w_ih, Tensor w_hh, Tensor? b_ih=None, "
      "Tensor? b_hh=None) -> (Tensor hy, Tensor cy)",
      lstm_cell);
  m.def(
      "lstm_cell_pointwise(Tensor gates, Tensor? bias_ih, Tensor? bias_hh, Tensor cx) -> (Tensor hy, Tensor "
      "cy)");
  m.def(
      "lstm_cell_pointwise_backward(Tensor? grad_hy, Tensor? grad_cy, Tensor gates, Tensor? bias_ih, "
      "Tensor? bias_hh, Tensor cx, bool[3] output_mask) -> (Tensor grad_gates, Tensor grad_cx, Tensor "
      "grad_bias)");
  m.def(
      "lstm_cell_pointwise_double_backward(Tensor? gg_gates, Tensor? gg_cx, Tensor? gg_bias, Tensor? grad_hy, "
      "Tensor? grad_cy, Tensor gates, Tensor? bias_ih, Tensor? bias_hh, Tensor cx, bool[5] output_mask) "
      "-> (Tensor d_grad_hy, Tensor d_grad_cy, Tensor d_gates, Tensor d_cx, Tensor d_bias)");
}

TORCH_LIBRARY_IMPL(fastnn, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, CUDA, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, AutocastCUDA, m) { m.impl("lstm_cell", lstm_cell_autocast); }
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("lstm_cell_pointwise", pointwise_autograd);
  m.impl("lstm_cell_pointwise_backward", pointwise_backward_autograd);
  m.impl("lstm_cell_pointwise_double_backward", pointwise_double_backward_autograd);
}

void export_lstm_cell(pybind11::module_& m) {
  namespace py = pybind11;
  m.def(
      "lstm_cell",
      [](const at::Tensor& input, const at::Tensor& hx, const at::Tensor& cx, const at::Tensor& w_ih,
         const at::Tensor& w_hh, const OptionalTensor& b_ih,
         const OptionalTensor& b_hh) { return lstm_cell_op().call(input, hx, cx, w_ih, w_hh, b_ih, b_hh); },
      py::arg("input"), py::arg("hx"), py::arg("cx"), py::arg("w_ih"), py::arg("w_hh"),
      py::arg("b_ih") = py::none(), py::arg("b_hh") = py::none(), py::call_guard<py::gil_scoped_release>());
}

}  // namespace fastnn::bindings
