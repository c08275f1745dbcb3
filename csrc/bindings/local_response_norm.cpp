// Local response normalisation: the dispatcher's ops, their checks, autograd, autocast and Python functions.
//
// Derivatives: local_response_norm -> local_response_norm_backward -> local_response_norm_double_backward,
// whose d_grad_output is also the tangent of forward.
#include "../ops/local_response_norm.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>

#include "autocast.h"
#include "autograd.h"
#include "backend.h"
#include "python.h"
#include "tensors.h"

namespace fastnn::bindings {

namespace {

using Two = std::tuple<at::Tensor, at::Tensor>;

// ---- kernels ----------------------------------------------------------------------------------------------

struct Options {
  int64_t size;
  double alpha, beta, k;
};

ActivationForm form_of(const char* op, const at::Tensor& input) {
  TORCH_CHECK_VALUE(input.dim() >= 3, op, ": Expected 3D or higher dimensionality input, but got shape ",
                    input.sizes());
  return {op, input};
}

LocalResponseNormShape shape_of(const char* op, const ActivationForm& form, const Options& options) {
  TORCH_CHECK(options.size >= 1, op, ": size should be greater than zero, but got size=", options.size);
  return {form.layout, form.N, form.C, form.S, options.size, options.alpha, options.beta, options.k};
}

at::Tensor local_response_norm(const at::Tensor& input, int64_t size, double alpha, double beta, double k) {
  static constexpr const char* kOp = "local_response_norm";
  const ActivationForm form = form_of(kOp, input);
  LocalResponseNormForwardParams p;
  p.dtype = dtype_of(kOp, "input", input);
  p.shape = shape_of(kOp, form, {size, alpha, beta, k});
  BackendCall call(input);
  at::Tensor output = form.empty_like(input);
  if (output.numel() == 0) return output;
  const at::Tensor x = input.contiguous(form.format);
  p.x = call.data(x);
  p.y = call.output(output);
  call(&Backend::local_response_norm_forward, &Backend::local_response_norm_forward_workspace, p);
  return output;
}

at::Tensor local_response_norm_backward(const at::Tensor& grad_output, const at::Tensor& input, int64_t size,
                                        double alpha, double beta, double k) {
  static constexpr const char* kOp = "local_response_norm_backward";
  const ActivationForm form = form_of(kOp, input);
  LocalResponseNormBackwardParams p;
  p.dtype = dtype_of(kOp, "input", input);
  p.shape = shape_of(kOp, form, {size, alpha, beta, k});
  check_like_input(kOp, "grad_output", grad_output, input);
  BackendCall call(input);
  at::Tensor grad_input = form.empty_like(input);
  if (grad_input.numel() == 0) return grad_input;
  const at::Tensor g = grad_output.contiguous(form.format), x = input.contiguous(form.format);
  p.grad_y = call.data(g);
  p.x = call.data(x);
  p.grad_x = call.output(grad_input);
  call(&Backend::local_response_norm_backward, &Backend::local_response_norm_backward_workspace, p);
  return grad_input;
}

Two local_response_norm_double_backward(const at::Tensor& gg_input, const OptionalTensor& grad_output,
                                        const at::Tensor& input, int64_t size, double alpha, double beta,
                                        double k, std::array<bool, 2> output_mask) {
  static constexpr const char* kOp = "local_response_norm_double_backward";
  const ActivationForm form = form_of(kOp, input);
  LocalResponseNormDoubleBackwardParams p;
  p.dtype = dtype_of(kOp, "input", input);
  p.shape = shape_of(kOp, form, {size, alpha, beta, k});
  check_like_input(kOp, "gg_input", gg_input, input);
  if (grad_output.has_value()) check_like_input(kOp, "grad_output", *grad_output, input);
  TORCH_CHECK(grad_output.has_value() || !output_mask[1], kOp, ": the derivative by input needs grad_output");
  BackendCall call(input);
  const auto made = [&](bool wanted) { return wanted ? form.empty_like(input) : absent(input.options()); };
  at::Tensor d_grad_output = made(output_mask[0]), d_input = made(output_mask[1]);
  if (input.numel() == 0) return {d_grad_output, d_input};
  const at::Tensor v = gg_input.contiguous(form.format), x = input.contiguous(form.format);
  const at::Tensor g = output_mask[1] ? grad_output->contiguous(form.format) : at::Tensor();
  p.gg_x = call.data(v);
  p.grad_y = call.data(g);
  p.x = call.data(x);
  p.d_grad_y = output_mask[0] ? call.output(d_grad_output) : nullptr;
  p.d_x = output_mask[1] ? call.output(d_input) : nullptr;
  call(&Backend::local_response_norm_double_backward, &Backend::local_response_norm_double_backward_workspace,
       p);
  return {d_grad_output, d_input};
}

// ---- the dispatcher's handles ------------------------------------------------------------------------------

const auto& forward_op() {
  static const auto op = find_op<decltype(local_response_norm)>("fastnn::local_response_norm");
  return op;
}

const auto& backward_op() {
  static const auto op =
      find_op<decltype(local_response_norm_backward)>("fastnn::local_response_norm_backward");
  return op;
}

const auto& double_backward_op() {
  static const auto op =
      find_op<decltype(local_response_norm_double_backward)>("fastnn::local_response_norm_double_backward");
  return op;
}

// ---- autograd ----------------------------------------------------------------------------------------------

struct LocalResponseNormBackwardNode final : Node {  // of (grad_output, input)
  SavedVariable grad_output, input;
  Options options{};
  std::string name() const override { return "FastnnLocalResponseNormBackwardBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(2);
    const std::array<bool, 2> mask{task_should_compute_output(0), task_should_compute_output(1)};
    auto [d_grad_output, d_input] =
        double_backward_op().call(grads[0], some(grad_output.unpack()), input.unpack(), options.size,
                                  options.alpha, options.beta, options.k, mask);
    return {if_wanted(mask[0], d_grad_output), if_wanted(mask[1], d_input)};
  }
  void release_variables() override {
    grad_output.reset_data();
    input.reset_data();
  }
};

struct LocalResponseNormNode final : Node {  // of input
  SavedVariable input;
  Options options{};
  std::string name() const override { return "FastnnLocalResponseNormBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(1);
    return {backward_op().call(grads[0], input.unpack(), options.size, options.alpha, options.beta, options.k)};
  }
  void release_variables() override { input.reset_data(); }
};

at::Tensor local_response_norm_autograd(c10::DispatchKeySet keys, const at::Tensor& input, int64_t size,
                                        double alpha, double beta, double k) {
  const auto node = make_node<LocalResponseNormNode>(input);
  at::Tensor output;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    output = forward_op().redispatch(keys & c10::after_autograd_keyset, input, size, alpha, beta, k);
  }
  if (node) {
    node->input = save(input);
    node->options = {size, alpha, beta, k};
    torch::autograd::set_history(output, node);
  }
  if (has_tangent(input)) {
    set_tangent(output, std::get<0>(double_backward_op().call(tangent(input), std::nullopt, primal(input), size,
                                                              alpha, beta, k, {true, false})));
  }
  return output;
}

at::Tensor local_response_norm_backward_autograd(c10::DispatchKeySet keys, const at::Tensor& grad_output,
                                                 const at::Tensor& input, int64_t size, double alpha,
                                                 double beta, double k) {
  const auto node = make_node<LocalResponseNormBackwardNode>(grad_output, input);
  at::Tensor grad_input;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    grad_input =
        backward_op().redispatch(keys & c10::after_autograd_keyset, grad_output, input, size, alpha, beta, k);
  }
  if (node) {
    node->grad_output = save(grad_output);
    node->input = save(input);
    node->options = {size, alpha, beta, k};
    torch::autograd::set_history(grad_input, node);
  }
  if (any_tangent(grad_output, input)) {
    at::Tensor t;
    if (has_tangent(grad_output)) {
      t = backward_op().call(tangent(grad_output), primal(input), size, alpha, beta, k);
    }
    if (has_tangent(input)) {
      // The Jacobian of backward by input is symmetric: it is the Hessian of <grad_output, forward>.
      t = sum_of(t, std::get<1>(double_backward_op().call(tangent(input), some(primal(grad_output)),
                                                          primal(input), size, alpha, beta, k, {false, true})));
    }
    set_tangent(grad_input, t);
  }
  return grad_input;
}

Two local_response_norm_double_backward_autograd(c10::DispatchKeySet keys, const at::Tensor& gg_input,
                                                 const OptionalTensor& grad_output, const at::Tensor& input,
                                                 int64_t size, double alpha, double beta, double k,
                                                 std::array<bool, 2> output_mask) {
  Two result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = double_backward_op().redispatch(keys & c10::after_autograd_keyset, gg_input, grad_output, input,
                                             size, alpha, beta, k, output_mask);
  }
  forbid_derivative("local_response_norm_double_backward", {std::get<0>(result), std::get<1>(result)}, gg_input,
                    grad_output, input);
  return result;
}

// To float32, as torch casts the powers that its composition has.
at::Tensor local_response_norm_autocast(const at::Tensor& input, int64_t size, double alpha, double beta,
                                        double k) {
  const Autocast cast(input, at::kFloat);
  return forward_op().call(cast(input), size, alpha, beta, k);
}

void register_kernels(torch::Library& m) {
  m.impl("local_response_norm", local_response_norm);
  m.impl("local_response_norm_backward", local_response_norm_backward);
  m.impl("local_response_norm_double_backward", local_response_norm_double_backward);
}

}  // namespace

// ---- registration ------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "local_response_norm(Tensor input, int size, float alpha=1e-4, float beta=0.75, float k=1.0) -> Tensor");
  m.def(
      "local_response_norm_backward(Tensor grad_output, Tensor input, int size, float alpha, float beta, "
      "float k) -> Tensor");
  m.def(
      "local_response_norm_double_backward(Tensor gg_input, Tensor? grad_output, Tensor input, int size, "
      "float alpha, float beta, float k, bool[2] output_mask) -> (Tensor d_grad_output, Tensor d_input)");
}

TORCH_LIBRARY_IMPL(fastnn, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, CUDA, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("local_response_norm", local_response_norm_autograd);
  m.impl("local_response_norm_backward", local_response_norm_backward_autograd);
  m.impl("local_response_norm_double_backward", local_response_norm_double_backward_autograd);
}
TORCH_LIBRARY_IMPL(fastnn, AutocastCPU, m) { m.impl("local_response_norm", local_response_norm_autocast); }
TORCH_LIBRARY_IMPL(fastnn, AutocastCUDA, m) { m.impl("local_response_norm", local_response_norm_autocast); }

void export_local_response_norm(pybind11::module_& m) {
  namespace py = pybind11;
  m.def(
      "local_response_norm",
      [](const at::Tensor& input, int64_t size, double alpha, double beta, double k) {
        return forward_op().call(input, size, alpha, beta, k);
      },
      py::arg("input"), py::arg("size"), py::arg("alpha") = 1e-4, py::arg("beta") = 0.75, py::arg("k") = 1.0,
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace fastnn::bindings
