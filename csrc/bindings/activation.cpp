// Activations by themselves: the dispatcher's ops, autograd and the Python function.
//
//   activation           y = act(input [+ residual])
//   activation_backward  grad_output * act'(z), from y or from z (ops/activation.h says which); linear in
//                        grad_output, and its derivative by what was kept is a formula of torch's own ops,
//                        which are differentiable in turn
#include "activation.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <string>
#include <utility>

#include "../ops/activation_math.h"
#include "autograd.h"
#include "backend.h"
#include "python.h"
#include "tensors.h"

namespace fastnn::bindings {

NamedActivation activation_of(const char* op, std::string_view name, double alpha, bool from_output) {
  static constexpr std::pair<std::string_view, Activation> kNames[] = {
      {"leaky_relu", Activation::kRectify}, {"elu", Activation::kElu},
      {"softplus", Activation::kSoftplus},  {"sigmoid", Activation::kSigmoid},
      {"tanh", Activation::kTanh},          {"hard_sigmoid", Activation::kHardSigmoid},
      {"gelu", Activation::kGelu},          {"gelu_tanh", Activation::kGeluTanh},
      {"silu", Activation::kSilu},
  };
  if (name == "relu") return {Activation::kRectify, 0};
  if (name == kIdentity) return {Activation::kRectify, 1};
  for (const auto& [known, kind] : kNames) {
    if (name != known) continue;
    TORCH_CHECK_VALUE(kind != Activation::kSoftplus || alpha > 0, op,
                      ": alpha of 'softplus' must be positive, but got alpha=", alpha);
    TORCH_CHECK_VALUE(
        (kind != Activation::kElu && !(kind == Activation::kRectify && from_output)) || alpha >= 0, op,
        ": alpha must be at least 0, from whose output backward tells what was positive, but got "
        "alpha=",
        alpha);
    return {kind, alpha};
  }
  TORCH_CHECK_VALUE(false, op,
                    ": activation must be 'relu', 'leaky_relu', 'elu', 'softplus', 'sigmoid', 'tanh', "
                    "'hard_sigmoid', 'gelu', 'gelu_tanh', 'silu' or 'identity', but got '",
                    name, "'");
}

const c10::TypedOperatorHandle<ActivationOp>& activation_op() {
  static const auto op = find_op<ActivationOp>("fastnn::activation");
  return op;
}
const c10::TypedOperatorHandle<ActivationBackwardOp>& activation_backward_op() {
  static const auto op = find_op<ActivationBackwardOp>("fastnn::activation_backward");
  return op;
}

namespace {

using StringView = std::string_view;

// ---- kernels ----------------------------------------------------------------------------------------------

// The kernels go through memory, where elements lie in any order: a dense tensor is taken as it lies, others
// are copied, and what lies otherwise than the first.
at::Tensor dense(const at::Tensor& t) {
  return t.is_non_overlapping_and_dense() ? t : at::empty_like(t).copy_(t);
}

at::Tensor lying_like(const at::Tensor& first, const at::Tensor& t) {
  return t.strides() == first.strides() ? t : at::empty_like(first).copy_(t);
}

at::Tensor activation(const at::Tensor& input, const OptionalTensor& residual, StringView name, double alpha) {
  static constexpr const char* kOp = "activation";
  ActivationForwardParams p;
  p.dtype = dtype_of(kOp, "input", input);
  const NamedActivation named = activation_of(kOp, name, alpha, /*from_output=*/true);
  if (residual.has_value()) check_like_input(kOp, "residual", *residual, input);
  const at::Tensor x = dense(input);
  const at::Tensor r = residual.has_value() ? lying_like(x, *residual) : at::Tensor();
  at::Tensor output = at::empty_like(x);
  if (input.numel() == 0) return output;
  BackendCall call(input);
  p.kind = named.kind;
  p.alpha = named.alpha;
  p.count = input.numel();
  p.x = call.data(x);
  p.residual = call.data(r);
  p.y = call.output(output);
  call(&Backend::activation_forward, p);
  return output;
}

at::Tensor activation_backward(const at::Tensor& grad_output, const at::Tensor& kept,
                               const OptionalTensor& residual, StringView name, double alpha) {
  static constexpr const char* kOp = "activation_backward";
  ActivationBackwardParams p;
  p.dtype = dtype_of(kOp, "grad_output", grad_output);
  const NamedActivation named = activation_of(kOp, name, alpha, /*from_output=*/true);
  check_like_input(kOp, "grad_output", grad_output, kept);
  if (residual.has_value()) {
    TORCH_CHECK(!derives_from_output(named.kind), kOp, ": '", name, "' is derived from its output alone");
    check_like_input(kOp, "residual", *residual, kept);
  }
  const at::Tensor k = dense(kept), g = lying_like(k, grad_output);
  const at::Tensor r = residual.has_value() ? lying_like(k, *residual) : at::Tensor();
  at::Tensor result = at::empty_like(k);
  if (kept.numel() == 0) return result;
  BackendCall call(kept);
  p.kind = named.kind;
  p.alpha = named.alpha;
  p.count = kept.numel();
  p.grad_y = call.data(g);
  p.x = call.data(k);
  p.residual = call.data(r);
  p.grad_x = call.output(result);
  call(&Backend::activation_backward, p);
  return result;
}

// ---- autograd ----------------------------------------------------------------------------------------------

// d/dk of act'(k), k being y where act' is a function of it, else z. Undefined for 0.
at::Tensor curvature(StringView name, double alpha, const at::Tensor& kept, const OptionalTensor& residual) {
  const at::Tensor k = sum_of(kept, value_or_undefined(residual));
  switch (activation_of("activation_backward", name, alpha).kind) {
    case Activation::kNone:
    case Activation::kRectify:
    case Activation::kHardSigmoid:
      break;
    case Activation::kElu:
      return at::le(k, 0).to(k.scalar_type());
    case Activation::kSoftplus: {
      const at::Tensor t = k * alpha;
      return at::where(t > kSoftplusThreshold, at::zeros_like(t), at::exp(-t) * alpha);
    }
    case Activation::kSigmoid:
      return 1 - 2 * k;
    case Activation::kTanh:
      return -2 * k;
    case Activation::kGelu:
      return at::exp(k * k * -0.5) * (2 - k * k) * kNormalPeak;
    case Activation::kGeluTanh: {
      const at::Tensor square = k * k, t = at::tanh(k * (1 + square * kGeluCube) * kGeluSlope);
      const at::Tensor inner = (1 + square * (3 * kGeluCube)) * kGeluSlope, rest = 1 - t * t;
      return rest * (inner + k * (k * (3 * kGeluCube * kGeluSlope) - t * inner * inner));
    }
    case Activation::kSilu: {
      const at::Tensor s = at::sigmoid(k);
      return s * (1 - s) * (2 + k * (1 - 2 * s));
    }
  }
  return {};
}

struct ActivationNode final : Node {  // of (input, residual)
  SavedVariable kept, residual;
  bool from_output = false;
  std::string activation;
  double alpha = 0;
  std::string name() const override { return "FastnnActivationBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(2);
    const at::Tensor k = from_output ? kept.unpack(getptr()) : kept.unpack();
    const at::Tensor g = activation_backward_op().call(grads[0], k, some(residual.unpack()), activation, alpha);
    return {if_wanted(task_should_compute_output(0), g), if_wanted(task_should_compute_output(1), g)};
  }
  void release_variables() override {
    kept.reset_data();
    residual.reset_data();
  }
};

at::Tensor activation_autograd(c10::DispatchKeySet keys, const at::Tensor& input,
                               const OptionalTensor& residual, StringView name, double alpha) {
  const NamedActivation named = activation_of("activation", name, alpha, /*from_output=*/true);
  const bool from_output = derives_from_output(named.kind);
  const auto node = make_node<ActivationNode>(input, residual);
  at::Tensor output;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    output = activation_op().redispatch(keys & c10::after_autograd_keyset, input, residual, name, alpha);
  }
  if (node) torch::autograd::set_history(output, node);
  if (any_tangent(input, residual)) {
    const at::Tensor t = sum_of(tangent(input), value_or_undefined(tangent(residual)));
    set_tangent(output,
                activation_backward_op().call(t, from_output ? primal(output) : primal(input),
                                              from_output ? OptionalTensor() : primal(residual), name, alpha));
  }
  // Behind the tangent, which a saved tensor has only if it was there before.
  if (node) {
    node->from_output = from_output;
    node->kept = from_output ? SavedVariable(output, /*is_output=*/true) : save(input);
    if (!from_output) node->residual = save(residual);
    node->activation = std::string(name);
    node->alpha = alpha;
  }
  return output;
}

struct ActivationBackwardNode final : Node {  // of (grad_output, kept, residual)
  SavedVariable grad_output, kept, residual;
  std::string activation;
  double alpha = 0;
  std::string name() const override { return "FastnnActivationBackwardBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(3);
    const bool of_kept = task_should_compute_output(1), of_residual = task_should_compute_output(2);
    const at::Tensor k = kept.unpack();
    const OptionalTensor r = some(residual.unpack());
    at::Tensor by_gradient, by_z;
    if (task_should_compute_output(0))
      by_gradient = activation_backward_op().call(grads[0], k, r, activation, alpha);
    if (of_kept || of_residual) {
      const at::Tensor bend = curvature(activation, alpha, k, r);
      if (bend.defined()) by_z = grads[0] * grad_output.unpack() * bend;
    }
    return {by_gradient, if_wanted(of_kept, by_z), if_wanted(of_residual, by_z)};
  }
  void release_variables() override {
    for (SavedVariable* v : {&grad_output, &kept, &residual}) v->reset_data();
  }
};

at::Tensor activation_backward_autograd(c10::DispatchKeySet keys, const at::Tensor& grad_output,
                                        const at::Tensor& kept, const OptionalTensor& residual, StringView name,
                                        double alpha) {
  const auto node = make_node<ActivationBackwardNode>(grad_output, kept, residual);
  at::Tensor result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = activation_backward_op().redispatch(keys & c10::after_autograd_keyset, grad_output, kept, residual,
                                                 name, alpha);
  }
  if (node) {
    torch::autograd::set_history(result, node);
    node->grad_output = save(grad_output);
    node->kept = save(kept);
    node->residual = save(residual);
    node->activation = std::string(name);
    node->alpha = alpha;
  }
  if (any_tangent(grad_output, kept, residual)) {
    at::Tensor t;
    const at::Tensor k = primal(kept);
    const OptionalTensor r = primal(residual);
    if (has_tangent(grad_output)) t = activation_backward_op().call(tangent(grad_output), k, r, name, alpha);
    if (any_tangent(kept, residual)) {
      const at::Tensor bend = curvature(name, alpha, k, r);
      const at::Tensor moved = sum_of(tangent(kept), value_or_undefined(tangent(residual)));
      if (bend.defined()) t = sum_of(t, primal(grad_output) * moved * bend);
    }
    set_tangent(result, t.defined() ? t : at::zeros_like(result));
  }
  return result;
}

void register_kernels(torch::Library& m) {
  m.impl("activation", activation);
  m.impl("activation_backward", activation_backward);
}

}  // namespace

// ---- registration ------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("activation(Tensor input, Tensor? residual, str activation, float alpha) -> Tensor");
  m.def(
      "activation_backward(Tensor grad_output, Tensor kept, Tensor? residual, str activation, float alpha) -> "
      "Tensor");
}

TORCH_LIBRARY_IMPL(fastnn, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, CUDA, m) { register_kernels(m); }

TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("activation", activation_autograd);
  m.impl("activation_backward", activation_backward_autograd);
}

void export_activation(pybind11::module_& m) {
  namespace py = pybind11;
  m.def(
      "activation",
      [](const at::Tensor& input, const OptionalTensor& residual, const std::string& name, double alpha) {
        return activation_op().call(input, residual, name, alpha);
      },
      py::arg("input"), py::arg("residual"), py::arg("activation"), py::arg("alpha"),
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace fastnn::bindings
