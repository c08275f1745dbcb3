// Batch normalisation: the dispatcher's ops, their checks, autograd and Python functions.
//
// Derivatives: batch_norm_forward -> batch_norm_backward -> batch_norm_double_backward. (grad_x, grad_weight)
// is the gradient of a scalar function of (x, weight), so its Jacobian is symmetric: batch_norm_double_backward
// gives the tangents of both other ops too, and forward mode needs no kernels of its own.
#include "../ops/batch_norm.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>

#include "autograd.h"
#include "batch_norm_calls.h"
#include "python.h"

namespace fastnn::bindings {

namespace {

using std::tuple;
using Three = tuple<at::Tensor, at::Tensor, at::Tensor>;

// ---- kernels ----------------------------------------------------------------------------------------------

Three batch_norm_forward(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& running_mean, const OptionalTensor& running_var,
                         const OptionalTensor& num_batches_tracked, bool training,
                         std::optional<double> momentum, double eps, bool skip_nonfinite_stats) {
  const BatchNormResult r =
      run_batch_norm_forward("batch_norm", input,
                             {weight, bias, running_mean, running_var, num_batches_tracked, training, momentum,
                              eps, skip_nonfinite_stats},
                             {});
  return {r.output, r.mean, r.invstd};
}

// Of the batch, for who combines it with those of others: mean and 1 / sqrt(variance) by channel.
std::tuple<at::Tensor, at::Tensor> batch_norm_statistics(const at::Tensor& input) {
  static constexpr const char* kOp = "batch_norm_statistics";
  const BatchNormForm form(kOp, input);
  BatchNormForwardParams p{};
  p.dtype = p.param_dtype = dtype_of(kOp, "input", input);
  p.shape = form.shape;
  p.training = true;
  BackendCall call(input);
  const auto by_channel = input.options().dtype(acc_scalar_type(input.scalar_type()));
  at::Tensor mean = at::empty({form.C}, by_channel), invstd = at::empty({form.C}, by_channel);
  if (input.numel() == 0) return {mean.zero_(), invstd.zero_()};
  const at::Tensor x = input.contiguous(form.format);
  p.x = call.data(x);
  p.mean = call.output(mean);
  p.invstd = call.output(invstd);
  call(&Backend::batch_norm_forward, &Backend::batch_norm_forward_workspace, p);
  return {mean, invstd};
}

Three batch_norm_backward(const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& weight,
                          const at::Tensor& mean, const at::Tensor& invstd, bool training,
                          std::array<bool, 3> output_mask) {
  const BatchNormGradients r =
      run_batch_norm_backward("batch_norm_backward", grad_output, input, weight, mean, invstd, training, {},
                              {output_mask[0], output_mask[1], output_mask[2], false});
  return {r.input, r.weight, r.bias};
}

Three batch_norm_double_backward(const OptionalTensor& gg_input, const OptionalTensor& gg_weight,
                                 const OptionalTensor& gg_bias, const OptionalTensor& grad_output,
                                 const at::Tensor& input, const OptionalTensor& weight, const at::Tensor& mean,
                                 const at::Tensor& invstd, bool training, std::array<bool, 3> output_mask) {
  static constexpr const char* kOp = "batch_norm_double_backward";
  const BatchNormForm form(kOp, input);
  BatchNormDoubleBackwardParams p;
  p.dtype = dtype_of(kOp, "input", input);
  const auto params = param_options(input, weight);
  // Directions in another dtype than weight's (float32 tangents beside half parameters) are taken in weight's.
  const auto direction = [&](const OptionalTensor& t) {
    return t.has_value() ? some(t->to(params.dtype()).contiguous()) : t;
  };
  const OptionalTensor ggw = direction(gg_weight), ggb = direction(gg_bias), w = dense(weight);
  p.param_dtype = param_dtype(kOp, input, {{"weight", w}, {"gg_weight", ggw}, {"gg_bias", ggb}});
  p.shape = form.shape;
  p.training = training;
  if (gg_input.has_value()) check_like_input(kOp, "gg_input", *gg_input, input);
  if (grad_output.has_value()) check_like_input(kOp, "grad_output", *grad_output, input);
  check_statistics(kOp, input, {input.size(1)}, {{"mean", mean}, {"invstd", invstd}});
  BackendCall call(input);
  const auto like_input = [&](bool wanted) {
    return wanted ? form.empty_like(input) : absent(input.options());
  };
  at::Tensor d_grad_output = like_input(output_mask[0]), d_input = like_input(output_mask[1]);
  at::Tensor d_weight = output_mask[2] ? at::empty({form.shape.C}, params) : absent(params);
  if (input.numel() == 0) return {d_grad_output, d_input, d_weight.zero_()};
  const auto formatted = [&](const OptionalTensor& t) {
    return t.has_value() ? some(t->contiguous(form.format)) : t;
  };
  const OptionalTensor ggx = formatted(gg_input), g = formatted(grad_output);
  const at::Tensor x = input.contiguous(form.format);
  p.gg_x = call.data(ggx);
  p.gg_weight = call.data(ggw);
  p.gg_bias = call.data(ggb);
  p.grad_y = call.data(g);
  p.x = call.data(x);
  p.weight = call.data(w);
  p.mean = call.data(mean);
  p.invstd = call.data(invstd);
  p.d_grad_y = output_mask[0] ? call.output(d_grad_output) : nullptr;
  p.d_x = output_mask[1] ? call.output(d_input) : nullptr;
  p.d_weight = output_mask[2] ? call.output(d_weight) : nullptr;
  call(&Backend::batch_norm_double_backward, &Backend::batch_norm_double_backward_workspace, p);
  return {d_grad_output, d_input, d_weight};
}

// ---- the dispatcher's handles ------------------------------------------------------------------------------

const auto& forward_op() {
  static const auto op = find_op<decltype(batch_norm_forward)>("fastnn::batch_norm_forward");
  return op;
}

const auto& backward_op() {
  static const auto op = find_op<decltype(batch_norm_backward)>("fastnn::batch_norm_backward");
  return op;
}

const auto& double_backward_op() {
  static const auto op = find_op<decltype(batch_norm_double_backward)>("fastnn::batch_norm_double_backward");
  return op;
}

// ---- autograd ----------------------------------------------------------------------------------------------

struct BatchNormBackwardNode final : Node {  // of (grad_output, input, weight)
  SavedVariable grad_output, input, weight, mean, invstd;
  bool training = false;
  std::array<bool, 3> made{};  // which outputs were asked for: only those have gradients
  std::string name() const override { return "FastnnBatchNormBackwardBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(3);
    for (size_t i = 0; i < 3; ++i) grads[i] = if_wanted(made[i], grads[i]);
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined()) return result;
    const std::array<bool, 3> mask{task_should_compute_output(0), task_should_compute_output(1),
                                   task_should_compute_output(2)};
    auto [d_grad_output, d_input, d_weight] = double_backward_op().call(
        some(grads[0]), some(grads[1]), some(grads[2]), some(grad_output.unpack()), input.unpack(),
        some(weight.unpack()), mean.unpack(), invstd.unpack(), training, mask);
    result[0] = if_wanted(mask[0], d_grad_output);
    result[1] = if_wanted(mask[1], d_input);
    result[2] = if_wanted(mask[2], d_weight);
    return result;
  }
  void release_variables() override {
    for (SavedVariable* v : {&grad_output, &input, &weight, &mean, &invstd}) v->reset_data();
  }
};

struct BatchNormNode final : Node {  // of (input, weight, bias)
  SavedVariable input, weight, mean, invstd;
  bool training = false;
  std::string name() const override { return "FastnnBatchNormBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(3);
    if (!grads[0].defined()) return result;
    const std::array<bool, 3> mask{task_should_compute_output(0), task_should_compute_output(1),
                                   task_should_compute_output(2)};
    auto [grad_input, grad_weight, grad_bias] = backward_op().call(
        grads[0], input.unpack(), some(weight.unpack()), mean.unpack(), invstd.unpack(), training, mask);
    result[0] = if_wanted(mask[0], grad_input);
    result[1] = if_wanted(mask[1], grad_weight);
    result[2] = if_wanted(mask[2], grad_bias);
    return result;
  }
  void release_variables() override {
    for (SavedVariable* v : {&input, &weight, &mean, &invstd}) v->reset_data();
  }
};

Three batch_norm_forward_autograd(c10::DispatchKeySet keys, const at::Tensor& input,
                                  const OptionalTensor& weight, const OptionalTensor& bias,
                                  const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                  const OptionalTensor& num_batches_tracked, bool training,
                                  std::optional<double> momentum, double eps, bool skip_nonfinite_stats) {
  const auto node = make_node<BatchNormNode>(input, weight, bias);
  Three result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = forward_op().redispatch(keys & c10::after_autograd_keyset, input, weight, bias, running_mean,
                                     running_var, num_batches_tracked, training, momentum, eps,
                                     skip_nonfinite_stats);
  }
  if (training) {
    for (const auto* t : {&running_mean, &running_var, &num_batches_tracked}) {
      if (t->has_value() && !(*t)->is_inference()) torch::autograd::impl::bump_version(**t);
    }
  }
  const auto& [output, mean, invstd] = result;
  if (node) {
    node->input = save(input);
    node->weight = save(weight);
    node->mean = save(mean);
    node->invstd = save(invstd);
    node->training = training;
    torch::autograd::set_history(output, node);
  }
  if (any_tangent(input, weight, bias)) {
    set_tangent(output, std::get<0>(double_backward_op().call(
                            some(tangent(input)), tangent(weight), tangent(bias), std::nullopt, primal(input),
                            primal(weight), mean, invstd, training, {true, false, false})));
  }
  return result;
}

Three batch_norm_backward_autograd(c10::DispatchKeySet keys, const at::Tensor& grad_output,
                                   const at::Tensor& input, const OptionalTensor& weight,
                                   const at::Tensor& mean, const at::Tensor& invstd, bool training,
                                   std::array<bool, 3> output_mask) {
  const auto node = make_node<BatchNormBackwardNode>(grad_output, input, weight);
  Three result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = backward_op().redispatch(keys & c10::after_autograd_keyset, grad_output, input, weight, mean,
                                      invstd, training, output_mask);
  }
  if (node) {
    node->grad_output = save(grad_output);
    node->input = save(input);
    node->weight = save(weight);
    node->mean = save(mean);
    node->invstd = save(invstd);
    node->training = training;
    node->made = output_mask;
    torch::autograd::set_history({std::get<0>(result), std::get<1>(result), std::get<2>(result)}, node);
  }
  if (any_tangent(grad_output, input, weight)) {
    std::array<at::Tensor, 3> t;
    if (has_tangent(grad_output)) {
      std::tie(t[0], t[1], t[2]) = backward_op().call(tangent(grad_output), primal(input), primal(weight), mean,
                                                      invstd, training, output_mask);
    }
    if (any_tangent(input, weight)) {
      const auto [unused, d_input, d_weight] = double_backward_op().call(
          some(tangent(input)), tangent(weight), std::nullopt, some(primal(grad_output)), primal(input),
          primal(weight), mean, invstd, training, {false, output_mask[0], output_mask[1]});
      t[0] = sum_of(t[0], d_input);
      t[1] = sum_of(t[1], d_weight);
    }
    if (output_mask[0]) set_tangent(std::get<0>(result), t[0]);
    if (output_mask[1]) set_tangent(std::get<1>(result), t[1]);
    if (output_mask[2]) set_tangent(std::get<2>(result), t[2]);
  }
  return result;
}

Three batch_norm_double_backward_autograd(c10::DispatchKeySet keys, const OptionalTensor& gg_input,
                                          const OptionalTensor& gg_weight, const OptionalTensor& gg_bias,
                                          const OptionalTensor& grad_output, const at::Tensor& input,
                                          const OptionalTensor& weight, const at::Tensor& mean,
                                          const at::Tensor& invstd, bool training,
                                          std::array<bool, 3> output_mask) {
  Three result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = double_backward_op().redispatch(keys & c10::after_autograd_keyset, gg_input, gg_weight, gg_bias,
                                             grad_output, input, weight, mean, invstd, training, output_mask);
  }
  forbid_derivative("batch_norm_double_backward",
                    {std::get<0>(result), std::get<1>(result), std::get<2>(result)}, gg_input, gg_weight,
                    gg_bias, grad_output, input, weight);
  return result;
}

// ---- torch's signature -------------------------------------------------------------------------------------

at::Tensor batch_norm(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& running_mean, const OptionalTensor& running_var,
                      const OptionalTensor& num_batches_tracked, bool training, std::optional<double> momentum,
                      double eps, bool skip_nonfinite_stats) {
  // torch lets an empty vector pass, though it has no channels.
  if (input.dim() == 1 && input.sym_numel() == 0) return input.clone();
  return std::get<0>(forward_op().call(input, weight, bias, running_mean, running_var, num_batches_tracked,
                                       training, momentum, eps, skip_nonfinite_stats));
}

void register_kernels(torch::Library& m) {
  m.impl("batch_norm_forward", batch_norm_forward);
  m.impl("batch_norm_statistics", batch_norm_statistics);
  m.impl("batch_norm_backward", batch_norm_backward);
  m.impl("batch_norm_double_backward", batch_norm_double_backward);
}

}  // namespace

// ---- registration ------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? "
      "running_var, "
      "Tensor(c!)? num_batches_tracked, bool training, float? momentum, float eps, "
      "bool skip_nonfinite_stats=False) -> Tensor",
      batch_norm);
  m.def(
      "batch_norm_forward(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, bool training, float? momentum, float eps, "
      "bool skip_nonfinite_stats=False) -> (Tensor output, Tensor mean, Tensor invstd)");
  m.def("batch_norm_statistics(Tensor input) -> (Tensor mean, Tensor invstd)");
  m.def(
      "batch_norm_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor mean, Tensor invstd, "
      "bool training, bool[3] output_mask) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "batch_norm_double_backward(Tensor? gg_input, Tensor? gg_weight, Tensor? gg_bias, Tensor? grad_output, "
      "Tensor input, Tensor? weight, Tensor mean, Tensor invstd, bool training, bool[3] output_mask) "
      "-> (Tensor d_grad_output, Tensor d_input, Tensor d_weight)");
}

TORCH_LIBRARY_IMPL(fastnn, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, CUDA, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("batch_norm_forward", batch_norm_forward_autograd);
  m.impl("batch_norm_backward", batch_norm_backward_autograd);
  m.impl("batch_norm_double_backward", batch_norm_double_backward_autograd);
}

void export_batch_norm(pybind11::module_& m) {
  namespace py = pybind11;
  static const auto op = find_op<decltype(batch_norm)>("fastnn::batch_norm");
  m.def(
      "batch_norm",
      [](const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
         const OptionalTensor& running_mean, const OptionalTensor& running_var,
         const OptionalTensor& num_batches_tracked, bool training, std::optional<double> momentum, double eps,
         bool skip_nonfinite_stats) {
        return op.call(input, weight, bias, running_mean, running_var, num_batches_tracked, training, momentum,
                       eps, skip_nonfinite_stats);
      },
      py::arg("input"), py::arg("weight"), py::arg("bias"), py::arg("running_mean"), py::arg("running_var"),
      py::arg("num_batches_tracked"), py::arg("training"), py::arg("momentum"), py::arg("eps"),
      py::arg("skip_nonfinite_stats") = false, py::call_guard<py::gil_scoped_release>());
}

}  // namespace fastnn::bindings
