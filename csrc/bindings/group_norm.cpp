// Group and instance normalisation: the dispatcher's ops, their checks, autograd, autocast and Python
// functions.
//
// group_norm and instance_norm take torch's arguments and call group_norm_forward, the second with a group for
// each channel; its derivative is group_norm_backward. Without weight and bias, sample n's group g is channel n
// * G + g of a batch normalisation of one sample: the second derivative and the tangents are made of
// batch_norm_backward and batch_norm_double_backward on that view, and of products by channel.
#include "../ops/group_norm.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>

#include "autocast.h"
#include "autograd.h"
#include "backend.h"
#include "batch_norm_calls.h"
#include "python.h"
#include "tensors.h"

namespace fastnn::bindings {

namespace {

using Three = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// ---- kernels ----------------------------------------------------------------------------------------------

ActivationForm form_of(const char* op, const at::Tensor& input) {
  TORCH_CHECK(input.dim() >= 2, op, ": Expected at least 2 dimensions for input tensor but received ",
              input.dim(), ", shape ", input.sizes());
  return {op, input};
}

GroupNormShape shape_of(const char* op, const ActivationForm& form, const at::Tensor& input, int64_t groups) {
  TORCH_CHECK(groups >= 1, op, ": Expected num groups to be greater than 0, got num_groups=", groups);
  TORCH_CHECK(form.C % groups == 0, op,
              ": Expected number of channels in input to be divisible by num_groups, but got input of shape ",
              input.sizes(), " and num_groups=", groups);
  return {form.layout, form.N, form.C, form.S, groups};
}

Three group_norm_forward(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& running_mean, const OptionalTensor& running_var, int64_t groups,
                         double momentum, double eps) {
  static constexpr const char* kOp = "group_norm";
  const ActivationForm form = form_of(kOp, input);
  GroupNormForwardParams p;
  p.dtype = dtype_of(kOp, "input", input);
  p.shape = shape_of(kOp, form, input, groups);
  p.param_dtype = param_dtype(
      kOp, input,
      {{"weight", weight}, {"bias", bias}, {"running_mean", running_mean}, {"running_var", running_var}});
  TORCH_CHECK((!running_mean.has_value() && !running_var.has_value()) || groups == form.C, kOp,
              ": running statistics are kept of groups of one channel, but num_groups=", groups, " of ", form.C,
              " channels");
  BackendCall call(input);
  at::Tensor output = form.empty_like(input);
  const auto statistics = input.options().dtype(acc_scalar_type(input.scalar_type()));
  at::Tensor mean = at::empty({form.N, groups}, statistics), invstd = at::empty({form.N, groups}, statistics);
  if (input.numel() == 0) return {output, mean.zero_(), invstd.zero_()};
  const at::Tensor x = input.contiguous(form.format);
  const OptionalTensor w = dense(weight), b = dense(bias);
  // Statistics kept in strided tensors are updated in a dense copy, which goes back when the kernel is queued.
  const OptionalTensor dense_mean = dense(running_mean), dense_var = dense(running_var);
  p.eps = eps;
  p.x = call.data(x);
  p.weight = call.data(w);
  p.bias = call.data(b);
  p.running_mean = dense_mean.has_value() ? call.mutable_data(*dense_mean) : nullptr;
  p.running_var = dense_var.has_value() ? call.mutable_data(*dense_var) : nullptr;
  p.momentum = momentum;
  p.y = call.output(output);
  p.mean = call.output(mean);
  p.invstd = call.output(invstd);
  call(&Backend::group_norm_forward, &Backend::group_norm_forward_workspace, p);
  const auto put_back = [](const OptionalTensor& from, const OptionalTensor& to) {
    if (to.has_value() && !from->is_same(*to)) to->copy_(*from);
  };
  put_back(dense_mean, running_mean);
  put_back(dense_var, running_var);
  return {output, mean, invstd};
}

Three group_norm_backward(const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& weight,
                          const at::Tensor& mean, const at::Tensor& invstd, int64_t groups,
                          std::array<bool, 3> output_mask) {
  static constexpr const char* kOp = "group_norm_backward";
  const ActivationForm form = form_of(kOp, input);
  GroupNormBackwardParams p;
  p.dtype = dtype_of(kOp, "input", input);
  p.shape = shape_of(kOp, form, input, groups);
  p.param_dtype = param_dtype(kOp, input, {{"weight", weight}});
  check_like_input(kOp, "grad_output", grad_output, input);
  check_statistics(kOp, input, {p.shape.N, p.shape.G}, {{"mean", mean}, {"invstd", invstd}});
  BackendCall call(input);
  const auto params = param_options(input, weight);
  const auto by_channel = [&](bool wanted) { return wanted ? at::empty({form.C}, params) : absent(params); };
  at::Tensor grad_input = output_mask[0] ? form.empty_like(input) : absent(input.options());
  at::Tensor grad_weight = by_channel(output_mask[1]), grad_bias = by_channel(output_mask[2]);
  if (input.numel() == 0) return {grad_input, grad_weight.zero_(), grad_bias.zero_()};
  const at::Tensor g = grad_output.contiguous(form.format), x = input.contiguous(form.format);
  const OptionalTensor w = dense(weight);
  p.grad_y = call.data(g);
  p.x = call.data(x);
  p.weight = call.data(w);
  p.mean = call.data(mean);
  p.invstd = call.data(invstd);
  p.grad_x = output_mask[0] ? call.output(grad_input) : nullptr;
  p.grad_weight = output_mask[1] ? call.output(grad_weight) : nullptr;
  p.grad_bias = output_mask[2] ? call.output(grad_bias) : nullptr;
  call(&Backend::group_norm_backward, &Backend::group_norm_backward_workspace, p);
  return {grad_input, grad_weight, grad_bias};
}

// ---- the dispatcher's handles ------------------------------------------------------------------------------

const auto& forward_op() {
  static const auto op = find_op<decltype(group_norm_forward)>("fastnn::group_norm_forward");
  return op;
}

const auto& backward_op() {
  static const auto op = find_op<decltype(group_norm_backward)>("fastnn::group_norm_backward");
  return op;
}

// ---- derivatives of the normalisation alone, as batch normalisation's --------------------------------------

// Groups as the channels of one sample: [1, N * G, C / G * S].
class AsChannels {
 public:
  AsChannels(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& invstd, int64_t groups)
      : input_(input),
        x_(merged(input, groups)),
        mean_(mean.reshape({-1})),
        invstd_(invstd.reshape({-1})),
        groups_(groups) {}

  // A vector by channel beside input.
  at::Tensor by_channel(const at::Tensor& t) const {
    std::vector<int64_t> shape(input_.dim(), 1);
    shape[1] = -1;
    return t.view(shape);
  }
  at::Tensor times(const at::Tensor& t, const at::Tensor& channels) const {
    return channels.defined() ? (t * by_channel(channels)).to(input_.scalar_type()) : t;
  }
  at::Tensor sum(const at::Tensor& t, at::ScalarType type) const {
    std::vector<int64_t> dims;
    for (int64_t d = 0; d < input_.dim(); ++d) {
      if (d != 1) dims.push_back(d);
    }
    return t.sum(dims, false, acc_scalar_type(input_.scalar_type())).to(type);
  }
  at::Tensor normalised() const {
    const auto wide = [](const at::Tensor& t) { return t.unsqueeze(0).unsqueeze(-1); };
    return apart(((x_ - wide(mean_)) * wide(invstd_)).to(input_.scalar_type()));
  }
  // Gradient of input, for a gradient of the normalised values.
  at::Tensor backward(const at::Tensor& gradient) const {
    static const auto op =
        find_op<Three(const at::Tensor&, const at::Tensor&, const OptionalTensor&, const at::Tensor&,
                      const at::Tensor&, bool, std::array<bool, 3>)>("fastnn::batch_norm_backward");
    return apart(std::get<0>(
        op.call(merged(gradient, groups_), x_, std::nullopt, mean_, invstd_, true, {true, false, false})));
  }
  // Derivatives of <direction, backward(gradient)> by gradient, which is the tangent of the normalised values
  // too, and by input.
  std::pair<at::Tensor, at::Tensor> double_backward(const at::Tensor& direction, const at::Tensor& gradient,
                                                    bool by_gradient, bool by_input) const {
    static const auto op =
        find_op<Three(const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                      const OptionalTensor&, const at::Tensor&, const OptionalTensor&, const at::Tensor&,
                      const at::Tensor&, bool, std::array<bool, 3>)>("fastnn::batch_norm_double_backward");
    const OptionalTensor g = gradient.defined() ? some(merged(gradient, groups_)) : std::nullopt;
    const auto [d_gradient, d_input, unused] =
        op.call(merged(direction, groups_), std::nullopt, std::nullopt, g, x_, std::nullopt, mean_, invstd_,
                true, {by_gradient, by_input, false});
    return {by_gradient ? apart(d_gradient) : at::Tensor(), by_input ? apart(d_input) : at::Tensor()};
  }

 private:
  static at::Tensor merged(const at::Tensor& t, int64_t groups) {
    const c10::SymInt channels = t.sym_size(0) * groups;
    const c10::SymInt values = t.sym_numel() / channels.max(1);
    return t.contiguous().view_symint({1, channels, values});
  }
  at::Tensor apart(const at::Tensor& t) const { return t.view_symint(input_.sym_sizes()); }

  const at::Tensor input_, x_, mean_, invstd_;
  const int64_t groups_;
};

// ---- autograd ----------------------------------------------------------------------------------------------

struct GroupNormBackwardNode final : Node {  // of (grad_output, input, weight)
  SavedVariable grad_output, input, weight, mean, invstd;
  int64_t groups = 1;
  std::array<bool, 3> made{};  // which outputs were asked for: only those have gradients
  std::string name() const override { return "FastnnGroupNormBackwardBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(3);
    for (size_t i = 0; i < 3; ++i) grads[i] = if_wanted(made[i], grads[i]);
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined()) return result;
    const std::array<bool, 3> wanted{task_should_compute_output(0), task_should_compute_output(1),
                                     task_should_compute_output(2)};
    const at::Tensor g = grad_output.unpack(), x = input.unpack(), w = weight.unpack();
    const AsChannels form(x, mean.unpack(), invstd.unpack(), groups);
    if (grads[0].defined()) {
      const auto [d_h, d_x] =
          form.double_backward(grads[0], form.times(g, w), wanted[0] || wanted[2], wanted[1]);
      if (wanted[0]) result[0] = form.times(d_h, w);
      result[1] = d_x;
      if (wanted[2]) result[2] = form.sum(g * d_h, w.scalar_type());
    }
    if (grads[1].defined()) {
      if (wanted[0]) result[0] = sum_of(result[0], form.times(form.normalised(), grads[1]));
      if (wanted[1]) result[1] = sum_of(result[1], form.backward(form.times(g, grads[1])));
    }
    if (grads[2].defined() && wanted[0]) {
      const at::Tensor bias = form.by_channel(grads[2]).to(x.scalar_type());
      result[0] = result[0].defined() ? result[0] + bias : bias.expand_symint(x.sym_sizes());
    }
    return result;
  }
  void release_variables() override {
    for (SavedVariable* v : {&grad_output, &input, &weight, &mean, &invstd}) v->reset_data();
  }
};

struct GroupNormNode final : Node {  // of (input, weight, bias)
  SavedVariable input, weight, mean, invstd;
  int64_t groups = 1;
  std::string name() const override { return "FastnnGroupNormBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(3);
    if (!grads[0].defined()) return result;
    const std::array<bool, 3> mask{task_should_compute_output(0), task_should_compute_output(1),
                                   task_should_compute_output(2)};
    auto [grad_input, grad_weight, grad_bias] = backward_op().call(
        grads[0], input.unpack(), some(weight.unpack()), mean.unpack(), invstd.unpack(), groups, mask);
    result[0] = if_wanted(mask[0], grad_input);
    result[1] = if_wanted(mask[1], grad_weight);
    result[2] = if_wanted(mask[2], grad_bias);
    return result;
  }
  void release_variables() override {
    for (SavedVariable* v : {&input, &weight, &mean, &invstd}) v->reset_data();
  }
};

Three group_norm_forward_autograd(c10::DispatchKeySet keys, const at::Tensor& input,
                                  const OptionalTensor& weight, const OptionalTensor& bias,
                                  const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                  int64_t groups, double momentum, double eps) {
  const auto node = make_node<GroupNormNode>(input, weight, bias);
  Three result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = forward_op().redispatch(keys & c10::after_autograd_keyset, input, weight, bias, running_mean,
                                     running_var, groups, momentum, eps);
  }
  for (const auto* t : {&running_mean, &running_var}) {
    if (t->has_value() && !(*t)->is_inference()) torch::autograd::impl::bump_version(**t);
  }
  const auto& [output, mean, invstd] = result;
  if (node) {
    node->input = save(input);
    node->weight = save(weight);
    node->mean = save(mean);
    node->invstd = save(invstd);
    node->groups = groups;
    torch::autograd::set_history(output, node);
  }
  if (any_tangent(input, weight, bias)) {
    const AsChannels form(primal(input), mean, invstd, groups);
    at::Tensor t;
    if (has_tangent(input)) {
      t = form.times(form.double_backward(tangent(input), {}, true, false).first,
                     value_or_undefined(primal(weight)));
    }
    if (has_tangent(weight)) t = sum_of(t, form.times(form.normalised(), *tangent(weight)));
    if (has_tangent(bias)) {
      const at::Tensor b = form.by_channel(*tangent(bias)).to(input.scalar_type());
      t = t.defined() ? t + b : b.expand_symint(input.sym_sizes()).contiguous();
    }
    set_tangent(output, t);
  }
  return result;
}

Three group_norm_backward_autograd(c10::DispatchKeySet keys, const at::Tensor& grad_output,
                                   const at::Tensor& input, const OptionalTensor& weight,
                                   const at::Tensor& mean, const at::Tensor& invstd, int64_t groups,
                                   std::array<bool, 3> output_mask) {
  const auto node = make_node<GroupNormBackwardNode>(grad_output, input, weight);
  Three result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = backward_op().redispatch(keys & c10::after_autograd_keyset, grad_output, input, weight, mean,
                                      invstd, groups, output_mask);
  }
  if (node) {
    node->grad_output = save(grad_output);
    node->input = save(input);
    node->weight = save(weight);
    node->mean = save(mean);
    node->invstd = save(invstd);
    node->groups = groups;
    node->made = output_mask;
    torch::autograd::set_history({std::get<0>(result), std::get<1>(result), std::get<2>(result)}, node);
  }
  if (any_tangent(grad_output, input, weight)) {
    const at::Tensor g = primal(grad_output), x = primal(input), w = value_or_undefined(primal(weight));
    const AsChannels form(x, mean, invstd, groups);
    std::array<at::Tensor, 3> t;
    if (has_tangent(grad_output)) {
      std::tie(t[0], t[1], t[2]) =
          backward_op().call(tangent(grad_output), x, primal(weight), mean, invstd, groups, output_mask);
    }
    if (has_tangent(input)) {
      const auto [normalised, d_input] =
          form.double_backward(tangent(input), form.times(g, w), output_mask[1], output_mask[0]);
      if (output_mask[0]) t[0] = sum_of(t[0], d_input);
      if (output_mask[1]) {
        t[1] = sum_of(t[1], form.sum(g * normalised, std::get<1>(result).scalar_type()));
      }
    }
    if (has_tangent(weight) && output_mask[0]) {
      t[0] = sum_of(t[0], form.backward(form.times(g, *tangent(weight))));
    }
    if (output_mask[0]) set_tangent(std::get<0>(result), t[0]);
    if (output_mask[1]) set_tangent(std::get<1>(result), t[1]);
    if (output_mask[2]) set_tangent(std::get<2>(result), t[2]);
  }
  return result;
}

// ---- torch's signatures ------------------------------------------------------------------------------------

at::Tensor group_norm(const at::Tensor& input, int64_t num_groups, const OptionalTensor& weight,
                      const OptionalTensor& bias, double eps) {
  TORCH_CHECK(input.dim() >= 2, "group_norm: Expected at least 2 dimensions for input tensor but received ",
              input.dim(), ", shape ", input.sym_sizes());
  TORCH_CHECK(num_groups >= 1,
              "group_norm: Expected num groups to be greater than 0, got num_groups=", num_groups);
  TORCH_CHECK_VALUE(input.sym_numel() != num_groups,
                    "group_norm: Expected more than 1 value per channel when training, got input size ",
                    input.sym_sizes(), " and num_groups=", num_groups);
  return std::get<0>(forward_op().call(input, weight, bias, std::nullopt, std::nullopt, num_groups, 0, eps));
}

at::Tensor instance_norm(const at::Tensor& input, const OptionalTensor& running_mean,
                         const OptionalTensor& running_var, const OptionalTensor& weight,
                         const OptionalTensor& bias, bool use_input_stats, double momentum, double eps) {
  TORCH_CHECK(input.dim() >= 2, "instance_norm: Expected at least 2 dimensions for input tensor but received ",
              input.dim());
  if (use_input_stats) {
    TORCH_CHECK_VALUE(input.sym_numel() == 0 || input.sym_numel() != input.sym_size(0) * input.sym_size(1),
                      "instance_norm: Expected more than 1 spatial element when training, got input size ",
                      input.sym_sizes());
    const int64_t channels = input.sym_size(1).guard_int(__FILE__, __LINE__);
    return std::get<0>(forward_op().call(input, weight, bias, running_mean, running_var,
                                         std::max<int64_t>(channels, 1), momentum, eps));
  }
  TORCH_CHECK(
      running_mean.has_value() && running_var.has_value(),
      "instance_norm: Expected running_mean and running_var to be defined when use_input_stats is false");
  static const auto op = find_op<at::Tensor(const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                                            const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                            bool, std::optional<double>, double, bool)>("fastnn::batch_norm");
  return op.call(input, weight, bias, running_mean, running_var, std::nullopt, false, momentum, eps, false);
}

void register_kernels(torch::Library& m) {
  m.impl("group_norm_forward", group_norm_forward);
  m.impl("group_norm_backward", group_norm_backward);
}

}  // namespace

// ---- registration ------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "group_norm(Tensor input, int num_groups, Tensor? weight=None, Tensor? bias=None, float eps=1e-5) -> "
      "Tensor",
      group_norm);
  m.def(
      "instance_norm(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? weight, "
      "Tensor? bias, bool use_input_stats, float momentum, float eps) -> Tensor",
      instance_norm);
  m.def(
      "group_norm_forward(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, int groups, float momentum, float eps) -> "
      "(Tensor output, Tensor mean, Tensor invstd)");
  m.def(
      "group_norm_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor mean, Tensor invstd, "
      "int groups, bool[3] output_mask) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
}

TORCH_LIBRARY_IMPL(fastnn, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, CUDA, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("group_norm_forward", group_norm_forward_autograd);
  m.impl("group_norm_backward", group_norm_backward_autograd);
}
// CUDA's autocast keeps group_norm in float32, and so does torch's.
TORCH_LIBRARY_IMPL(fastnn, AutocastCUDA, m) { m.impl("group_norm", InFloat32<group_norm>::call); }

void export_group_norm(pybind11::module_& m) {
  namespace py = pybind11;
  static const auto group = find_op<decltype(group_norm)>("fastnn::group_norm");
  static const auto instance = find_op<decltype(instance_norm)>("fastnn::instance_norm");
  m.def(
      "group_norm",
      [](const at::Tensor& input, int64_t num_groups, const OptionalTensor& weight, const OptionalTensor& bias,
         double eps) { return group.call(input, num_groups, weight, bias, eps); },
      py::arg("input"), py::arg("num_groups"), py::arg("weight") = py::none(), py::arg("bias") = py::none(),
      py::arg("eps") = 1e-5, py::call_guard<py::gil_scoped_release>());
  m.def(
      "instance_norm",
      [](const at::Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
         const OptionalTensor& weight, const OptionalTensor& bias, bool use_input_stats, double momentum,
         double eps) {
        return instance.call(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps);
      },
      py::arg("input"), py::arg("running_mean"), py::arg("running_var"), py::arg("weight"), py::arg("bias"),
      py::arg("use_input_stats"), py::arg("momentum"), py::arg("eps"),
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace fastnn::bindings
