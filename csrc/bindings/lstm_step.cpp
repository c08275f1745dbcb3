// The LSTM cell with its matrix products, where the backend multiplies them: the dispatcher's ops, their checks
// and autograd.
//
// lstm_cell_step -> lstm_cell_step_backward. The second derivative is the products and their derivatives, as
// ops of their own (lstm_cell_products), around lstm_cell_pointwise_double_backward; a third one raises.
// Backward is the gradient of a scalar function of the step's inputs, so its Jacobian is symmetric: the second
// derivative gives the tangents of both ops.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>

#include "lstm_cell.h"

namespace fastnn::bindings {

namespace {

constexpr size_t kInputs = 5;  // input, hx, cx, w_ih, w_hh
using FourTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using StepGrads = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// ---- kernels ----------------------------------------------------------------------------------------------

// The tensors that the step's ops read. Without gates and cx it is the products' inputs.
class StepInputs : public CellInputs {
 public:
  StepInputs(BackendCall& call, const char* op, const at::Tensor& input, const at::Tensor& hx,
             const at::Tensor& cx, const at::Tensor& w_ih, const at::Tensor& w_hh,
             const OptionalTensor& bias_ih, const OptionalTensor& bias_hh, const at::Tensor& gates)
      : CellInputs(call, op, gates, bias_ih, bias_hh, cx) {
    TORCH_CHECK(input.dim() == 2, op, ": input must be 2-dimensional [N, I], got shape ", input.sizes());
    step.cell = params;
    step.I = input.size(1);
    step.x = take("input", input, {params.N, step.I}, x_);
    step.h = take("hx", hx, {params.N, params.H}, h_);
    step.w_ih = take("w_ih", w_ih, {4 * params.H, step.I}, w_ih_);
    step.w_hh = take("w_hh", w_hh, {4 * params.H, params.H}, w_hh_);
  }

  LstmStepInputs step;

 private:
  at::Tensor x_, h_, w_ih_, w_hh_;
};

ThreeTensors lstm_cell_step(const at::Tensor& input, const at::Tensor& hx, const at::Tensor& cx,
                            const at::Tensor& w_ih, const at::Tensor& w_hh, const OptionalTensor& bias_ih,
                            const OptionalTensor& bias_hh, bool save_gates) {
  BackendCall call(cx);
  const StepInputs in(call, "lstm_cell", input, hx, cx, w_ih, w_hh, bias_ih, bias_hh, /*gates=*/{});
  at::Tensor hy = in.make(true, cx.sizes()), cy = in.make(true, cx.sizes()),
             gates = in.make(save_gates, {in.params.N, 4 * in.params.H});
  if (cx.numel() > 0) {
    call(&Backend::lstm_step_forward, LstmStepForwardParams{in.step, call.output(hy), call.output(cy),
                                                            save_gates ? call.output(gates) : nullptr});
  }
  return {hy, cy, gates};
}

StepGrads lstm_cell_step_backward(const OptionalTensor& grad_hy, const OptionalTensor& grad_cy,
                                  const at::Tensor& input, const at::Tensor& hx, const at::Tensor& cx,
                                  const at::Tensor& w_ih, const at::Tensor& w_hh, const OptionalTensor& bias_ih,
                                  const OptionalTensor& bias_hh, const at::Tensor& gates,
                                  std::array<bool, 6> output_mask) {
  BackendCall call(cx);
  const StepInputs in(call, "lstm_cell_backward", input, hx, cx, w_ih, w_hh, bias_ih, bias_hh, gates);
  const std::array<at::Tensor, 6> grads{
      in.make(output_mask[0], input.sizes()), in.make(output_mask[1], hx.sizes()),
      in.make(output_mask[2], cx.sizes()),    in.make(output_mask[3], w_ih.sizes()),
      in.make(output_mask[4], w_hh.sizes()),  in.make(output_mask[5], {4 * in.params.H})};
  if (cx.numel() == 0) {
    for (const at::Tensor& grad : grads) grad.zero_();
  } else {
    at::Tensor gh, gc;
    LstmStepBackwardParams p{};
    p.in = in.step;
    p.grad_hy = in.take("grad_hy", grad_hy, cx.sizes(), gh);
    p.grad_cy = in.take("grad_cy", grad_cy, cx.sizes(), gc);
    void** const outputs[6] = {&p.grad_x, &p.grad_h, &p.grad_cx, &p.grad_w_ih, &p.grad_w_hh, &p.grad_bias};
    for (size_t i = 0; i < 6; ++i) *outputs[i] = output_mask[i] ? call.output(grads[i]) : nullptr;
    call(&Backend::lstm_step_backward, &Backend::lstm_step_backward_workspace, p);
  }
  return {grads[0], grads[1], grads[2], grads[3], grads[4], grads[5]};
}

// x W_ih^T + h W_hh^T. What is checked as the cell's state is hx.
at::Tensor lstm_cell_products(const at::Tensor& input, const at::Tensor& hx, const at::Tensor& w_ih,
                              const at::Tensor& w_hh) {
  BackendCall call(hx);
  const StepInputs in(call, "lstm_cell_products", input, hx, hx, w_ih, w_hh, std::nullopt, std::nullopt, {});
  at::Tensor gates = in.make(true, {in.params.N, 4 * in.params.H});
  if (gates.numel() > 0) {
    call(&Backend::lstm_step_forward, LstmStepForwardParams{in.step, nullptr, nullptr, call.output(gates)});
  }
  return gates;
}

FourTensors lstm_cell_products_backward(const at::Tensor& grad_gates, const at::Tensor& input,
                                        const at::Tensor& hx, const at::Tensor& w_ih, const at::Tensor& w_hh,
                                        std::array<bool, 4> output_mask) {
  BackendCall call(hx);
  const StepInputs in(call, "lstm_cell_products_backward", input, hx, hx, w_ih, w_hh, std::nullopt,
                      std::nullopt, {});
  const std::array<at::Tensor, 4> grads{
      in.make(output_mask[0], input.sizes()), in.make(output_mask[1], hx.sizes()),
      in.make(output_mask[2], w_ih.sizes()), in.make(output_mask[3], w_hh.sizes())};
  at::Tensor keep;
  LstmStepBackwardParams p{};
  p.in = in.step;
  p.grad_gates = in.take("grad_gates", grad_gates, {in.params.N, 4 * in.params.H}, keep);
  if (hx.numel() == 0) {
    for (const at::Tensor& grad : grads) grad.zero_();
  } else {
    void** const outputs[4] = {&p.grad_x, &p.grad_h, &p.grad_w_ih, &p.grad_w_hh};
    for (size_t i = 0; i < 4; ++i) *outputs[i] = output_mask[i] ? call.output(grads[i]) : nullptr;
    call(&Backend::lstm_step_backward, &Backend::lstm_step_backward_workspace, p);
  }
  return {grads[0], grads[1], grads[2], grads[3]};
}

// ---- the dispatcher's handles ------------------------------------------------------------------------------

const auto& products_op() {
  static const auto op = find_op<decltype(lstm_cell_products)>("fastnn::lstm_cell_products");
  return op;
}

const auto& products_backward_op() {
  static const auto op = find_op<decltype(lstm_cell_products_backward)>("fastnn::lstm_cell_products_backward");
  return op;
}

const auto& step_backward_op() {
  static const auto op = find_op<decltype(lstm_cell_step_backward)>("fastnn::lstm_cell_step_backward");
  return op;
}

// ---- derivatives --------------------------------------------------------------------------------------------

// What one step was given. Undefined tensors stand for none.
struct StepTensors {
  at::Tensor input, hx, cx, w_ih, w_hh, bias_ih, bias_hh, gates;
};

struct SecondDerivatives {
  at::Tensor grad_hy, grad_cy, input, hx, cx, w_ih, w_hh, bias;
};

// x w_ih^T + h w_hh^T, where an undefined one of each pair takes its product away; undefined when both are.
at::Tensor products(const at::Tensor& x, const at::Tensor& w_ih, const at::Tensor& h, const at::Tensor& w_hh,
                    const StepTensors& t) {
  const bool first = x.defined() && w_ih.defined(), second = h.defined() && w_hh.defined();
  if (!first && !second) return {};
  // A product with zeros of no columns is none.
  const auto none = [](const at::Tensor& like) { return like.new_empty({like.size(0), 0}); };
  return products_op().call(first ? x : none(t.input), second ? h : at::zeros_like(t.hx),
                            first ? w_ih : none(t.w_ih), second ? w_hh : t.w_hh);
}

// Derivatives of L = <u, gradients of the step>, for directions u of input, hx, cx, the weights and the biases,
// each undefined for 0. With G and A the derivatives with respect to the gates, of the step and of L,
//   L = <u_x, G W_ih> + <u_h, G W_hh> + <u_W_ih, G^T x> + <u_W_hh, G^T h> + <u_c, grad_cx> + <u_b, sum of G>,
// whose derivative with respect to G is U = u_x W_ih^T + u_h W_hh^T + x u_W_ih^T + h u_W_hh^T.
SecondDerivatives second_derivatives(const std::array<at::Tensor, kInputs>& u, const at::Tensor& u_bias,
                                     const OptionalTensor& grad_hy, const OptionalTensor& grad_cy,
                                     const StepTensors& t, bool states, bool rest) {
  const auto& [u_x, u_h, u_c, u_w_ih, u_w_hh] = u;
  const at::Tensor U =
      sum_of(products(u_x, t.w_ih, u_h, t.w_hh, t), products(t.input, u_w_ih, t.hx, u_w_hh, t));
  SecondDerivatives d;
  at::Tensor A;
  std::tie(d.grad_hy, d.grad_cy, A, d.cx, d.bias) = lstm_cell_pointwise_double_backward_op().call(
      some(U), some(u_c), some(u_bias), grad_hy, grad_cy, t.gates, some(t.bias_ih), some(t.bias_hh), t.cx,
      {states, states, rest, rest, rest});
  if (!rest) return d;
  std::tie(d.input, d.hx, d.w_ih, d.w_hh) =
      products_backward_op().call(A, t.input, t.hx, t.w_ih, t.w_hh, {true, true, true, true});
  if (!u_x.defined() && !u_h.defined() && !u_w_ih.defined() && !u_w_hh.defined()) return d;
  const at::Tensor G = std::get<0>(lstm_cell_pointwise_backward_op().call(
      grad_hy, grad_cy, t.gates, some(t.bias_ih), some(t.bias_hh), t.cx, {true, false, false}));
  const auto or_input = [](const at::Tensor& direction, const at::Tensor& t) {
    return direction.defined() ? direction : t;
  };
  const auto [x, h, w_ih, w_hh] = products_backward_op().call(
      G, or_input(u_x, t.input), or_input(u_h, t.hx), or_input(u_w_ih, t.w_ih), or_input(u_w_hh, t.w_hh),
      {u_w_ih.defined(), u_w_hh.defined(), u_x.defined(), u_h.defined()});
  d.input = sum_of(d.input, if_wanted(u_w_ih.defined(), x));
  d.hx = sum_of(d.hx, if_wanted(u_w_hh.defined(), h));
  d.w_ih = sum_of(d.w_ih, if_wanted(u_x.defined(), w_ih));
  d.w_hh = sum_of(d.w_hh, if_wanted(u_h.defined(), w_hh));
  return d;
}

// ---- autograd ----------------------------------------------------------------------------------------------

// What both nodes hold: the inputs of the step, and its gates.
struct StepNodeBase : Node {
  std::array<SavedVariable, 8> saved;
  void keep(const at::Tensor& input, const at::Tensor& hx, const at::Tensor& cx, const at::Tensor& w_ih,
            const at::Tensor& w_hh, const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
            const at::Tensor& gates) {
    saved = {save(input), save(hx),      save(cx),      save(w_ih),
             save(w_hh),  save(bias_ih), save(bias_hh), save(gates)};
  }
  StepTensors unpack() const {
    return {saved[0].unpack(), saved[1].unpack(), saved[2].unpack(), saved[3].unpack(),
            saved[4].unpack(), saved[5].unpack(), saved[6].unpack(), saved[7].unpack()};
  }
  void release_variables() override {
    for (SavedVariable& v : saved) v.reset_data();
  }
};

struct StepNode final : StepNodeBase {  // of (input, hx, cx, w_ih, w_hh, bias_ih, bias_hh)
  std::string name() const override { return "FastnnLstmCellStepBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(7);
    if (!grads[0].defined() && !grads[1].defined()) return result;
    std::array<bool, 6> wanted;
    for (size_t i = 0; i < 6; ++i) wanted[i] = task_should_compute_output(i);
    wanted[5] = wanted[5] || task_should_compute_output(6);
    const StepTensors t = unpack();
    const auto [x, h, c, w_ih, w_hh, bias] =
        step_backward_op().call(some(grads[0]), some(grads[1]), t.input, t.hx, t.cx, t.w_ih, t.w_hh,
                                some(t.bias_ih), some(t.bias_hh), t.gates, wanted);
    const at::Tensor* const all[7] = {&x, &h, &c, &w_ih, &w_hh, &bias, &bias};
    for (size_t i = 0; i < 7; ++i) result[i] = if_wanted(task_should_compute_output(i), *all[i]);
    return result;
  }
};

struct StepBackwardNode final : StepNodeBase {  // of (grad_hy, grad_cy, and what StepNode is of)
  SavedVariable grad_hy, grad_cy;
  std::array<bool, 6> made{};  // which outputs were asked for: only those have gradients
  std::string name() const override { return "FastnnLstmCellStepBackwardBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(9);
    bool any = false;
    for (size_t i = 0; i < 6; ++i) {
      grads[i] = if_wanted(made[i], grads[i]);
      any = any || grads[i].defined();
    }
    if (!any) return result;
    bool rest = false;
    for (size_t i = 2; i < 9; ++i) rest = rest || task_should_compute_output(i);
    const SecondDerivatives d = second_derivatives(
        {grads[0], grads[1], grads[2], grads[3], grads[4]}, grads[5], some(grad_hy.unpack()),
        some(grad_cy.unpack()), unpack(), task_should_compute_output(0) || task_should_compute_output(1), rest);
    const at::Tensor* const all[9] = {&d.grad_hy, &d.grad_cy, &d.input, &d.hx,  &d.cx,
                                      &d.w_ih,    &d.w_hh,    &d.bias,  &d.bias};
    for (size_t i = 0; i < 9; ++i) result[i] = if_wanted(task_should_compute_output(i), *all[i]);
    return result;
  }
  void release_variables() override {
    StepNodeBase::release_variables();
    grad_hy.reset_data();
    grad_cy.reset_data();
  }
};

ThreeTensors step_autograd(c10::DispatchKeySet keys, const at::Tensor& input, const at::Tensor& hx,
                           const at::Tensor& cx, const at::Tensor& w_ih, const at::Tensor& w_hh,
                           const OptionalTensor& bias_ih, const OptionalTensor& bias_hh, bool save_gates) {
  const auto node = make_node<StepNode>(input, hx, cx, w_ih, w_hh, bias_ih, bias_hh);
  const bool moves = any_tangent(input, hx, cx, w_ih, w_hh, bias_ih, bias_hh);
  ThreeTensors result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = lstm_cell_step_op().redispatch(keys & c10::after_autograd_keyset, input, hx, cx, w_ih, w_hh,
                                            bias_ih, bias_hh, save_gates || node || moves);
  }
  const auto& [hy, cy, gates] = result;
  if (node) {
    node->keep(input, hx, cx, w_ih, w_hh, bias_ih, bias_hh, gates);
    torch::autograd::set_history({hy, cy}, node);
  }
  if (moves) {
    const SecondDerivatives tangents =
        second_derivatives({tangent(input), tangent(hx), tangent(cx), tangent(w_ih), tangent(w_hh)},
                           value_or_undefined(bias_tangent(bias_ih, bias_hh)), std::nullopt, std::nullopt,
                           {primal(input), primal(hx), primal(cx), primal(w_ih), primal(w_hh),
                            value_or_undefined(primal(bias_ih)), value_or_undefined(primal(bias_hh)), gates},
                           /*states=*/true, /*rest=*/false);
    set_tangent(hy, tangents.grad_hy);
    set_tangent(cy, tangents.grad_cy);
  }
  return result;
}

StepGrads step_backward_autograd(c10::DispatchKeySet keys, const OptionalTensor& grad_hy,
                                 const OptionalTensor& grad_cy, const at::Tensor& input, const at::Tensor& hx,
                                 const at::Tensor& cx, const at::Tensor& w_ih, const at::Tensor& w_hh,
                                 const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                                 const at::Tensor& gates, std::array<bool, 6> output_mask) {
  const auto node = make_node<StepBackwardNode>(grad_hy, grad_cy, input, hx, cx, w_ih, w_hh, bias_ih, bias_hh);
  if (node) {
    node->keep(input, hx, cx, w_ih, w_hh, bias_ih, bias_hh, gates);
    node->grad_hy = save(grad_hy);
    node->grad_cy = save(grad_cy);
    node->made = output_mask;
  }
  StepGrads result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = step_backward_op().redispatch(keys & c10::after_autograd_keyset, grad_hy, grad_cy, input, hx, cx,
                                           w_ih, w_hh, bias_ih, bias_hh, gates, output_mask);
  }
  const std::array<at::Tensor, 6> outputs{std::get<0>(result), std::get<1>(result), std::get<2>(result),
                                          std::get<3>(result), std::get<4>(result), std::get<5>(result)};
  if (node) torch::autograd::set_history({outputs.begin(), outputs.end()}, node);
  std::array<at::Tensor, 6> tangents;
  if (any_tangent(grad_hy, grad_cy)) {
    std::tie(tangents[0], tangents[1], tangents[2], tangents[3], tangents[4], tangents[5]) =
        step_backward_op().call(tangent(grad_hy), tangent(grad_cy), primal(input), primal(hx), primal(cx),
                                primal(w_ih), primal(w_hh), primal(bias_ih), primal(bias_hh), gates,
                                output_mask);
  }
  if (any_tangent(input, hx, cx, w_ih, w_hh, bias_ih, bias_hh)) {
    const SecondDerivatives d =
        second_derivatives({tangent(input), tangent(hx), tangent(cx), tangent(w_ih), tangent(w_hh)},
                           value_or_undefined(bias_tangent(bias_ih, bias_hh)), primal(grad_hy), primal(grad_cy),
                           {primal(input), primal(hx), primal(cx), primal(w_ih), primal(w_hh),
                            value_or_undefined(primal(bias_ih)), value_or_undefined(primal(bias_hh)), gates},
                           /*states=*/false, /*rest=*/true);
    const at::Tensor* const second[6] = {&d.input, &d.hx, &d.cx, &d.w_ih, &d.w_hh, &d.bias};
    for (size_t i = 0; i < 6; ++i) {
      if (output_mask[i]) tangents[i] = sum_of(tangents[i], *second[i]);
    }
  }
  for (size_t i = 0; i < 6; ++i) {
    if (output_mask[i]) set_tangent(outputs[i], tangents[i]);
  }
  return result;
}

at::Tensor products_autograd(c10::DispatchKeySet keys, const at::Tensor& input, const at::Tensor& hx,
                             const at::Tensor& w_ih, const at::Tensor& w_hh) {
  at::Tensor result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = products_op().redispatch(keys & c10::after_autograd_keyset, input, hx, w_ih, w_hh);
  }
  forbid_derivative("lstm_cell_products", {result}, input, hx, w_ih, w_hh);
  return result;
}

FourTensors products_backward_autograd(c10::DispatchKeySet keys, const at::Tensor& grad_gates,
                                       const at::Tensor& input, const at::Tensor& hx, const at::Tensor& w_ih,
                                       const at::Tensor& w_hh, std::array<bool, 4> output_mask) {
  FourTensors result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = products_backward_op().redispatch(keys & c10::after_autograd_keyset, grad_gates, input, hx, w_ih,
                                               w_hh, output_mask);
  }
  forbid_derivative("lstm_cell_products_backward",
                    {std::get<0>(result), std::get<1>(result), std::get<2>(result), std::get<3>(result)},
                    grad_gates, input, hx, w_ih, w_hh);
  return result;
}

}  // namespace

const c10::TypedOperatorHandle<Step>& lstm_cell_step_op() {
  static const auto op = find_op<Step>("fastnn::lstm_cell_step");
  return op;
}

// ---- registration ------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "lstm_cell_step(Tensor input, Tensor hx, Tensor cx, Tensor w_ih, Tensor w_hh, Tensor? bias_ih, "
      "Tensor? bias_hh, bool save_gates) -> (Tensor hy, Tensor cy, Tensor gates)");
  m.def(
      "lstm_cell_step_backward(Tensor? grad_hy, Tensor? grad_cy, Tensor input, Tensor hx, Tensor cx, Tensor "
      "w_ih, "
      "Tensor w_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor gates, bool[6] output_mask) -> (Tensor "
      "grad_input, "
      "Tensor grad_hx, Tensor grad_cx, Tensor grad_w_ih, Tensor grad_w_hh, Tensor grad_bias)");
  m.def("lstm_cell_products(Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh) -> Tensor gates");
  m.def(
      "lstm_cell_products_backward(Tensor grad_gates, Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, "
      "bool[4] output_mask) -> (Tensor grad_input, Tensor grad_hx, Tensor grad_w_ih, Tensor grad_w_hh)");
}

// On the CPU alone: no other backend has the step.
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("lstm_cell_step", lstm_cell_step);
  m.impl("lstm_cell_step_backward", lstm_cell_step_backward);
  m.impl("lstm_cell_products", lstm_cell_products);
  m.impl("lstm_cell_products_backward", lstm_cell_products_backward);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("lstm_cell_step", step_autograd);
  m.impl("lstm_cell_step_backward", step_backward_autograd);
  m.impl("lstm_cell_products", products_autograd);
  m.impl("lstm_cell_products_backward", products_backward_autograd);
}

}  // namespace fastnn::bindings
