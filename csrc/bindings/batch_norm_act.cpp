// Batch normalisation with a sum and an activation after it, in the same passes: the dispatcher's ops, autograd
// and the Python function.
//
//   batch_norm_act_forward    y = act(batch_norm(x) [+ residual])
//   batch_norm_act_backward   the gradients of all of them at once; where a second derivative is asked for, and
//                             in forward mode, batch_norm_act_gradient and batch_norm_backward do it, which
//                             have derivatives
//   batch_norm_act_gradient   grad_y * act'(z), linear in grad_y
//   batch_norm_act_apply      y again, to the bit, from what forward returned
#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>
#include <string>
#include <string_view>

#include "activation.h"
#include "autograd.h"
#include "batch_norm_calls.h"
#include "python.h"

namespace fastnn::bindings {

namespace {

using std::tuple;
using StringView = std::string_view;
using Three = tuple<at::Tensor, at::Tensor, at::Tensor>;
using Four = tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Six = tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// ---- kernels ----------------------------------------------------------------------------------------------

BatchNormEpilogue epilogue_of(const char* op, StringView activation, double alpha) {
  const NamedActivation named = activation_of(op, activation, alpha);
  BatchNormEpilogue e;
  e.kind = named.kind;
  e.alpha = named.alpha;
  return e;
}

bool is_identity(const BatchNormEpilogue& e) { return e.kind == Activation::kRectify && e.alpha == 1; }

Six batch_norm_act_forward(const at::Tensor& input, const OptionalTensor& residual,
                           const OptionalTensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& running_mean, const OptionalTensor& running_var,
                           const OptionalTensor& num_batches_tracked, bool training,
                           std::optional<double> momentum, double eps, StringView activation, double alpha,
                           bool save_mask, bool skip_nonfinite_stats) {
  static constexpr const char* kOp = "batch_norm_act";
  BatchNormEpilogue e = epilogue_of(kOp, activation, alpha);
  const BatchNormForm form(kOp, input);
  const auto by_channel = input.options().dtype(acc_scalar_type(input.scalar_type()));
  e.residual = value_or_undefined(residual);
  if (residual.has_value()) check_like_input(kOp, "residual", *residual, input);
  e.scale = at::empty({form.shape.C}, by_channel);
  e.shift = at::empty({form.shape.C}, by_channel);
  const auto bytes = input.options().dtype(at::kByte);
  const bool needs_mask =
      save_mask && residual.has_value() && e.kind == Activation::kRectify && !is_identity(e);
  // Zeros: bits that stand for no value should not differ from run to run, and bytes are written in halves.
  if (needs_mask) e.mask = at::zeros({batch_norm_mask_bytes(form.shape)}, bytes);
  const BatchNormResult r =
      run_batch_norm_forward(kOp, input,
                             {weight, bias, running_mean, running_var, num_batches_tracked, training, momentum,
                              eps, skip_nonfinite_stats},
                             e);
  return {r.output, r.mean, r.invstd, e.scale, e.shift, needs_mask ? e.mask : absent(bytes)};
}

// With what forward returned.
BatchNormEpilogue saved_epilogue(const char* op, const at::Tensor& scale, const at::Tensor& shift,
                                 const at::Tensor& mask, const OptionalTensor& residual, StringView activation,
                                 double alpha) {
  BatchNormEpilogue e = epilogue_of(op, activation, alpha);
  e.scale = scale;
  e.shift = shift;
  if (mask.numel() > 0) e.mask = mask;
  e.residual = value_or_undefined(residual);
  return e;
}

Four batch_norm_act_backward(const at::Tensor& grad_output, const at::Tensor& input,
                             const OptionalTensor& weight, const at::Tensor& mean, const at::Tensor& invstd,
                             const at::Tensor& scale, const at::Tensor& shift, const at::Tensor& mask,
                             const OptionalTensor& residual, bool training, StringView activation, double alpha,
                             std::array<bool, 4> output_mask) {
  static constexpr const char* kOp = "batch_norm_act_backward";
  const auto r = run_batch_norm_backward(kOp, grad_output, input, weight, mean, invstd, training,
                                         saved_epilogue(kOp, scale, shift, mask, residual, activation, alpha),
                                         output_mask);
  return {r.input, r.weight, r.bias, r.residual};
}

at::Tensor batch_norm_act_gradient(const at::Tensor& grad_output, const at::Tensor& input,
                                   const at::Tensor& mean, const at::Tensor& scale, const at::Tensor& shift,
                                   const at::Tensor& mask, const OptionalTensor& residual,
                                   StringView activation, double alpha) {
  static constexpr const char* kOp = "batch_norm_act_gradient";
  return run_batch_norm_apply(kOp, grad_output, input, mean,
                              saved_epilogue(kOp, scale, shift, mask, residual, activation, alpha));
}

at::Tensor batch_norm_act_apply(const at::Tensor& input, const OptionalTensor& residual, const at::Tensor& mean,
                                const at::Tensor& scale, const at::Tensor& shift, StringView activation,
                                double alpha) {
  static constexpr const char* kOp = "batch_norm_act_apply";
  BatchNormEpilogue e = epilogue_of(kOp, activation, alpha);
  e.residual = value_or_undefined(residual);
  e.scale = scale;
  e.shift = shift;
  return run_batch_norm_apply(kOp, {}, input, mean, e);
}

// ---- the dispatcher's handles ------------------------------------------------------------------------------

const auto& forward_op() {
  static const auto op = find_op<decltype(batch_norm_act_forward)>("fastnn::batch_norm_act_forward");
  return op;
}

const auto& backward_op() {
  static const auto op = find_op<decltype(batch_norm_act_backward)>("fastnn::batch_norm_act_backward");
  return op;
}

const auto& gradient_op() {
  static const auto op = find_op<decltype(batch_norm_act_gradient)>("fastnn::batch_norm_act_gradient");
  return op;
}

const auto& apply_op() {
  static const auto op = find_op<decltype(batch_norm_act_apply)>("fastnn::batch_norm_act_apply");
  return op;
}

const auto& plain_forward_op() {
  static const auto op =
      find_op<Three(const at::Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                    const OptionalTensor&, const OptionalTensor&, bool, std::optional<double>, double, bool)>(
          "fastnn::batch_norm_forward");
  return op;
}

const auto& plain_backward_op() {
  static const auto op =
      find_op<Three(const at::Tensor&, const at::Tensor&, const OptionalTensor&, const at::Tensor&,
                    const at::Tensor&, bool, std::array<bool, 3>)>("fastnn::batch_norm_backward");
  return op;
}

const auto& plain_double_backward_op() {
  static const auto op =
      find_op<Three(const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                    const at::Tensor&, const OptionalTensor&, const at::Tensor&, const at::Tensor&, bool,
                    std::array<bool, 3>)>("fastnn::batch_norm_double_backward");
  return op;
}

// ---- autograd ----------------------------------------------------------------------------------------------

// Whether the derivative asks for the sign of z alone.
bool rectifies(StringView activation) {
  return activation_of("batch_norm_act", activation, 1).kind == Activation::kRectify;
}

// What a forward knows of its call, for its derivatives.
struct Call {
  at::Tensor input;
  OptionalTensor residual, weight, bias;  // residual: where it is read
  at::Tensor mean, invstd, scale, shift, mask;
  bool training;
  double eps;
  std::string activation;
  double alpha;

  bool identity() const { return activation == "identity"; }

  // z without a residual, differentiable.
  at::Tensor normalised() const {
    if (training)
      return std::get<0>(plain_forward_op().call(input, weight, bias, {}, {}, {}, true, 0.0, eps, false));
    std::vector<int64_t> shape(input.dim(), 1);
    shape[1] = -1;
    const auto by_channel = [&](const at::Tensor& t) { return t.to(mean.scalar_type()).view(shape); };
    at::Tensor z = (input - by_channel(mean)) * by_channel(invstd);
    if (weight.has_value()) z = z * by_channel(*weight);
    if (bias.has_value()) z = z + by_channel(*bias);
    return z.to(input.scalar_type());
  }

  // gradient * act'(z), differentiable.
  at::Tensor times_derivative(const at::Tensor& gradient) const {
    if (identity()) return gradient;
    if (rectifies(activation))
      return gradient_op().call(gradient, input, mean, scale, shift, mask, {}, activation, alpha);
    const at::Tensor z = sum_of(normalised(), value_or_undefined(residual));
    const bool from_output = derives_from_output(activation_of("batch_norm_act", activation, alpha).kind);
    return activation_backward_op().call(
        gradient, from_output ? activation_op().call(z, {}, activation, alpha) : z, {}, activation, alpha);
  }
};

struct BatchNormActNode final : Node {  // of (input, residual, weight, bias)
  SavedVariable input, residual, weight, bias, mean, invstd, scale, shift, mask;
  bool training = false;
  double eps = 0, alpha = 0;
  std::string activation;
  std::string name() const override { return "FastnnBatchNormActBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(4);
    if (!grads[0].defined()) return result;
    const bool wanted[] = {task_should_compute_output(0), task_should_compute_output(1),
                           task_should_compute_output(2), task_should_compute_output(3)};
    const Call call{input.unpack(),
                    some(residual.unpack()),
                    some(weight.unpack()),
                    some(bias.unpack()),
                    mean.unpack(),
                    invstd.unpack(),
                    scale.unpack(),
                    shift.unpack(),
                    mask.unpack(),
                    training,
                    eps,
                    activation,
                    alpha};
    at::Tensor grad_input, grad_residual, grad_weight, grad_bias;
    if (call.identity() || at::GradMode::is_enabled() ||
        any_tangent(grads[0], call.input, call.residual, call.weight)) {
      grad_residual = call.times_derivative(grads[0]);
      if (wanted[0] || wanted[2] || wanted[3]) {
        std::tie(grad_input, grad_weight, grad_bias) =
            plain_backward_op().call(grad_residual, call.input, call.weight, call.mean, call.invstd, training,
                                     {wanted[0], wanted[2], wanted[3]});
      }
    } else {
      std::tie(grad_input, grad_weight, grad_bias, grad_residual) = backward_op().call(
          grads[0], call.input, call.weight, call.mean, call.invstd, call.scale, call.shift, call.mask,
          call.residual, training, activation, alpha, {wanted[0], wanted[2], wanted[3], wanted[1]});
    }
    result[0] = if_wanted(wanted[0], grad_input);
    result[1] = if_wanted(wanted[1], grad_residual);
    result[2] = if_wanted(wanted[2], grad_weight);
    result[3] = if_wanted(wanted[3], grad_bias);
    return result;
  }
  void release_variables() override {
    for (SavedVariable* v : {&input, &residual, &weight, &bias, &mean, &invstd, &scale, &shift, &mask})
      v->reset_data();
  }
};

Six batch_norm_act_forward_autograd(c10::DispatchKeySet keys, const at::Tensor& input,
                                    const OptionalTensor& residual, const OptionalTensor& weight,
                                    const OptionalTensor& bias, const OptionalTensor& running_mean,
                                    const OptionalTensor& running_var,
                                    const OptionalTensor& num_batches_tracked, bool training,
                                    std::optional<double> momentum, double eps, StringView activation,
                                    double alpha, bool save_mask, bool skip_nonfinite_stats) {
  const auto node = make_node<BatchNormActNode>(input, residual, weight, bias);
  const bool tangents = any_tangent(input, residual, weight, bias);
  Six result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = forward_op().redispatch(keys & c10::after_autograd_keyset, input, residual, weight, bias,
                                     running_mean, running_var, num_batches_tracked, training, momentum, eps,
                                     activation, alpha, save_mask || node || tangents, skip_nonfinite_stats);
  }
  if (training) {
    for (const auto* t : {&running_mean, &running_var, &num_batches_tracked}) {
      if (t->has_value() && !(*t)->is_inference()) torch::autograd::impl::bump_version(**t);
    }
  }
  const auto& [output, mean, invstd, scale, shift, mask] = result;
  const bool curved = !rectifies(activation);  // z is needed again, and of it the residual
  if (node) {
    torch::autograd::set_history(output, node);
    node->input = save(input);
    node->weight = save(weight);
    if (curved) {
      node->bias = save(bias);
      node->residual = save(residual);
    }
    node->mean = save(mean);
    node->invstd = save(invstd);
    node->scale = save(scale);
    node->shift = save(shift);
    node->mask = save(mask);
    node->training = training;
    node->eps = eps;
    node->alpha = alpha;
    node->activation = std::string(activation);
  }
  if (tangents) {
    at::Tensor z;
    if (any_tangent(input, weight, bias)) {
      z = std::get<0>(plain_double_backward_op().call(some(tangent(input)), tangent(weight), tangent(bias), {},
                                                      primal(input), primal(weight), mean, invstd, training,
                                                      {true, false, false}));
    }
    if (has_tangent(residual)) z = sum_of(z, *tangent(residual));
    const Call call{primal(input),
                    curved ? primal(residual) : OptionalTensor(),
                    primal(weight),
                    primal(bias),
                    mean,
                    invstd,
                    scale,
                    shift,
                    mask,
                    training,
                    eps,
                    std::string(activation),
                    alpha};
    set_tangent(output, call.times_derivative(z));
  }
  return result;
}

struct BatchNormActGradientNode final : Node {  // of (grad_output)
  SavedVariable input, residual, mean, scale, shift, mask;
  std::string activation;
  double alpha = 0;
  std::string name() const override { return "FastnnBatchNormActGradientBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(1);
    return {gradient_op().call(grads[0], input.unpack(), mean.unpack(), scale.unpack(), shift.unpack(),
                               mask.unpack(), some(residual.unpack()), activation, alpha)};
  }
  void release_variables() override {
    for (SavedVariable* v : {&input, &residual, &mean, &scale, &shift, &mask}) v->reset_data();
  }
};

at::Tensor batch_norm_act_gradient_autograd(c10::DispatchKeySet keys, const at::Tensor& grad_output,
                                            const at::Tensor& input, const at::Tensor& mean,
                                            const at::Tensor& scale, const at::Tensor& shift,
                                            const at::Tensor& mask, const OptionalTensor& residual,
                                            StringView activation, double alpha) {
  const auto node = make_node<BatchNormActGradientNode>(grad_output);
  at::Tensor result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = gradient_op().redispatch(keys & c10::after_autograd_keyset, grad_output, input, mean, scale, shift,
                                      mask, residual, activation, alpha);
  }
  // Of a rectifier z matters only through its sign.
  if (!rectifies(activation)) {
    forbid_derivative("batch_norm_act_gradient with a curved activation", {result}, input, residual);
  }
  if (node && !result.requires_grad()) {
    node->input = save(input.detach());
    node->mean = save(mean);
    node->scale = save(scale);
    node->shift = save(shift);
    node->mask = save(mask);
    node->residual = save(residual.has_value() ? some(residual->detach()) : residual);
    node->activation = std::string(activation);
    node->alpha = alpha;
    torch::autograd::set_history(result, node);
  }
  if (has_tangent(grad_output)) {
    set_tangent(result, gradient_op().call(tangent(grad_output), primal(input), mean, scale, shift, mask,
                                           primal(residual), activation, alpha));
  }
  return result;
}

Four batch_norm_act_backward_autograd(c10::DispatchKeySet keys, const at::Tensor& grad_output,
                                      const at::Tensor& input, const OptionalTensor& weight,
                                      const at::Tensor& mean, const at::Tensor& invstd, const at::Tensor& scale,
                                      const at::Tensor& shift, const at::Tensor& mask,
                                      const OptionalTensor& residual, bool training, StringView activation,
                                      double alpha, std::array<bool, 4> output_mask) {
  Four result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result =
        backward_op().redispatch(keys & c10::after_autograd_keyset, grad_output, input, weight, mean, invstd,
                                 scale, shift, mask, residual, training, activation, alpha, output_mask);
  }
  const auto& [grad_input, grad_weight, grad_bias, grad_residual] = result;
  forbid_derivative("batch_norm_act_backward", {grad_input, grad_weight, grad_bias, grad_residual}, grad_output,
                    input, weight, residual);
  return result;
}

at::Tensor batch_norm_act_apply_autograd(c10::DispatchKeySet keys, const at::Tensor& input,
                                         const OptionalTensor& residual, const at::Tensor& mean,
                                         const at::Tensor& scale, const at::Tensor& shift,
                                         StringView activation, double alpha) {
  at::Tensor result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = apply_op().redispatch(keys & c10::after_autograd_keyset, input, residual, mean, scale, shift,
                                   activation, alpha);
  }
  forbid_derivative("batch_norm_act_apply", {result}, input, residual, mean, scale, shift);
  return result;
}

// ---- the function ------------------------------------------------------------------------------------------

at::Tensor batch_norm_act(const at::Tensor& input, const OptionalTensor& residual, const OptionalTensor& weight,
                          const OptionalTensor& bias, const OptionalTensor& running_mean,
                          const OptionalTensor& running_var, const OptionalTensor& num_batches_tracked,
                          bool training, std::optional<double> momentum, double eps, StringView activation,
                          double alpha, bool skip_nonfinite_stats) {
  return std::get<0>(forward_op().call(input, residual, weight, bias, running_mean, running_var,
                                       num_batches_tracked, training, momentum, eps, activation, alpha,
                                       /*save_mask=*/false, skip_nonfinite_stats));
}

void register_kernels(torch::Library& m) {
  m.impl("batch_norm_act_forward", batch_norm_act_forward);
  m.impl("batch_norm_act_backward", batch_norm_act_backward);
  m.impl("batch_norm_act_gradient", batch_norm_act_gradient);
  m.impl("batch_norm_act_apply", batch_norm_act_apply);
}

}  // namespace

// ---- registration ------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "batch_norm_act(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, bool training, float? momentum, float eps, "
      "str activation, float alpha, bool skip_nonfinite_stats=False) -> Tensor",
      batch_norm_act);
  m.def(
      "batch_norm_act_forward(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, "
      "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, bool training, "
      "float? momentum, float eps, str activation, float alpha, bool save_mask, "
      "bool skip_nonfinite_stats=False) "
      "-> (Tensor output, Tensor mean, Tensor invstd, Tensor scale, Tensor shift, Tensor mask)");
  m.def(
      "batch_norm_act_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor mean, Tensor invstd, "
      "Tensor scale, Tensor shift, Tensor mask, Tensor? residual, bool training, str activation, float alpha, "
      "bool[4] output_mask) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)");
  m.def(
      "batch_norm_act_gradient(Tensor grad_output, Tensor input, Tensor mean, Tensor scale, Tensor shift, "
      "Tensor mask, Tensor? residual, str activation, float alpha) -> Tensor");
  m.def(
      "batch_norm_act_apply(Tensor input, Tensor? residual, Tensor mean, Tensor scale, Tensor shift, "
      "str activation, float alpha) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastnn, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, CUDA, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("batch_norm_act_forward", batch_norm_act_forward_autograd);
  m.impl("batch_norm_act_backward", batch_norm_act_backward_autograd);
  m.impl("batch_norm_act_gradient", batch_norm_act_gradient_autograd);
  m.impl("batch_norm_act_apply", batch_norm_act_apply_autograd);
}

void export_batch_norm_act(pybind11::module_& m) {
  namespace py = pybind11;
  static const auto op = find_op<decltype(batch_norm_act)>("fastnn::batch_norm_act");
  m.def(
      "batch_norm_act",
      [](const at::Tensor& input, const OptionalTensor& residual, const OptionalTensor& weight,
         const OptionalTensor& bias, const OptionalTensor& running_mean, const OptionalTensor& running_var,
         const OptionalTensor& num_batches_tracked, bool training, std::optional<double> momentum, double eps,
         const std::string& activation, double alpha, bool skip_nonfinite_stats) {
        return op.call(input, residual, weight, bias, running_mean, running_var, num_batches_tracked, training,
                       momentum, eps, activation, alpha, skip_nonfinite_stats);
      },
      py::arg("input"), py::arg("residual"), py::arg("weight"), py::arg("bias"), py::arg("running_mean"),
      py::arg("running_var"), py::arg("num_batches_tracked"), py::arg("training"), py::arg("momentum"),
      py::arg("eps"), py::arg("activation"), py::arg("alpha"), py::arg("skip_nonfinite_stats") = false,
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace fastnn::bindings
