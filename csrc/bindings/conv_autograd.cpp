// Convolution: autograd of the ops that are free of rank, which are each other's derivatives.
//
// An activation of convolution is undone first, from its output where y' is a function of y. Where it is not, z
// has to be kept, and where gradients are wanted the activation is an op of its own.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <string>

#include "autograd.h"
#include "conv_ops.h"
#include "trilinear.h"

namespace fastnn::bindings {

const c10::TypedOperatorHandle<ConvolutionOp>& convolution_op() {
  static const auto op = find_op<ConvolutionOp>("fastnn::convolution");
  return op;
}
const c10::TypedOperatorHandle<GradInputOp>& grad_input_op() {
  static const auto op = find_op<GradInputOp>("fastnn::convolution_grad_input");
  return op;
}
const c10::TypedOperatorHandle<GradWeightOp>& grad_weight_op() {
  static const auto op = find_op<GradWeightOp>("fastnn::convolution_grad_weight");
  return op;
}
const c10::TypedOperatorHandle<GradBiasOp>& grad_bias_op() {
  static const auto op = find_op<GradBiasOp>("fastnn::convolution_grad_bias");
  return op;
}

namespace {

struct ConvOptions {
  Sizes stride, padding, dilation;  // padding: (begin, end) pairs
  int64_t groups;
};

// [C] as a tensor of that size, [N, C, ...].
at::Tensor along_channels(const at::Tensor& values, SymIntArrayRef size) {
  std::vector<SymInt> ones(size.size(), 1);
  ones[1] = size[1];
  return values.view_symint(ones).expand_symint(size);
}

// Each method is one of the ops for fixed options.
struct Convolver {
  ConvOptions o;

  at::Tensor forward(const at::Tensor& x, const at::Tensor& w,
                     const OptionalTensor& bias = std::nullopt) const {
    return convolution_op().call(x, w, bias, o.stride, o.padding, o.dilation, o.groups, kIdentity, 0);
  }
  at::Tensor grad_input(const at::Tensor& g, const at::Tensor& w, const Form& x) const {
    return grad_input_op().call(g, w, x.size, o.stride, o.padding, o.dilation, o.groups, x.channels_last,
                                std::nullopt);
  }
  at::Tensor grad_weight(const at::Tensor& x, const at::Tensor& g, const Form& w) const {
    return grad_weight_op().call(x, g, w.size, o.stride, o.padding, o.dilation, o.groups, w.channels_last);
  }
  at::Tensor grad_bias(const at::Tensor& g) const { return grad_bias_op().call(g); }
  static at::Tensor expand_bias(const at::Tensor& bias, SymIntArrayRef size) {
    return along_channels(bias, size);
  }

  static constexpr const char* kGradInputName = "FastnnConvolutionGradInputBackward";
  static constexpr const char* kGradWeightName = "FastnnConvolutionGradWeightBackward";
};

ConvOptions options_of(IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups) {
  const auto sizes = [](IntArrayRef v) { return Sizes(v.begin(), v.end()); };
  return {sizes(stride), sizes(padding), sizes(dilation), groups};
}

struct ConvolutionNode final : BilinearNode<Convolver> {
  std::string activation;
  double alpha = 0;
  SavedVariable output;  // where there is an activation

  void release_variables() override {
    BilinearNode::release_variables();
    output.reset_data();
  }
  std::string name() const override { return "FastnnConvolutionBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(3);
    if (!grads[0].defined()) return result;
    const at::Tensor g =
        activation == kIdentity
            ? grads[0]
            : activation_backward_op().call(grads[0], output.unpack(getptr()), {}, activation, alpha);
    if (task_should_compute_output(0)) result[0] = map.grad_input(g, second.unpack(), first_form);
    if (task_should_compute_output(1)) result[1] = map.grad_weight(first.unpack(), g, second_form);
    if (task_should_compute_output(2)) result[2] = map.grad_bias(g);
    return result;
  }
};

struct GradBiasNode final : Node {
  Form form;
  std::string name() const override { return "FastnnConvolutionGradBiasBackward"; }
  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return variable_list(1);
    return {along_channels(grads[0], form.size)};
  }
};

at::Tensor convolution_autograd(c10::DispatchKeySet keys, const at::Tensor& input, const at::Tensor& weight,
                                const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding,
                                IntArrayRef dilation, int64_t groups, StringView activation, double alpha) {
  const auto node = make_node<ConvolutionNode>(input, weight, bias);
  const bool tangents = any_tangent(input, weight, bias);
  const Convolver conv{options_of(stride, padding, dilation, groups)};
  if ((node || tangents) && !derives_from_output(activation_of("convolution", activation, alpha, true).kind))
    return activation_op().call(conv.forward(input, weight, bias), {}, activation, alpha);
  if (node) {
    node->map = conv;
    node->keep(input, weight);
    node->activation = activation;
    node->alpha = alpha;
  }
  at::Tensor output;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    output = convolution_op().redispatch(keys & c10::after_autograd_keyset, input, weight, bias, stride,
                                         padding, dilation, groups, activation, alpha);
  }
  if (node) torch::autograd::set_history(output, node);
  if (tangents) {
    at::Tensor t;
    if (has_tangent(input)) t = conv.forward(tangent(input), primal(weight));
    if (has_tangent(weight)) t = sum_of(t, conv.forward(primal(input), tangent(weight)));
    if (has_tangent(bias)) t = sum_of(t, along_channels(tangent(*bias), output.sym_sizes()));
    if (activation != kIdentity) t = activation_backward_op().call(t, primal(output), {}, activation, alpha);
    set_tangent(output, t);
  }
  // Behind the tangent, which a saved tensor has only if it was there before.
  if (node && activation != kIdentity) node->output = SavedVariable(output, /*is_output=*/true);
  return output;
}

at::Tensor grad_input_autograd(c10::DispatchKeySet keys, const at::Tensor& grad_output,
                               const at::Tensor& weight, SymIntArrayRef size, IntArrayRef stride,
                               IntArrayRef padding, IntArrayRef dilation, int64_t groups, bool channels_last,
                               const OptionalTensor& bias) {
  const Convolver conv{options_of(stride, padding, dilation, groups)};
  return grad_input_with_autograd(conv, grad_output, weight, bias, Form(size, channels_last), [&] {
    return grad_input_op().redispatch(keys & c10::after_autograd_keyset, grad_output, weight, size, stride,
                                      padding, dilation, groups, channels_last, bias);
  });
}

at::Tensor grad_weight_autograd(c10::DispatchKeySet keys, const at::Tensor& input,
                                const at::Tensor& grad_output, SymIntArrayRef size, IntArrayRef stride,
                                IntArrayRef padding, IntArrayRef dilation, int64_t groups, bool channels_last) {
  const Convolver conv{options_of(stride, padding, dilation, groups)};
  return grad_weight_with_autograd(conv, input, grad_output, Form(size, channels_last), [&] {
    return grad_weight_op().redispatch(keys & c10::after_autograd_keyset, input, grad_output, size, stride,
                                       padding, dilation, groups, channels_last);
  });
}

at::Tensor grad_bias_autograd(c10::DispatchKeySet keys, const at::Tensor& grad_output) {
  const auto node = make_node<GradBiasNode>(grad_output);
  if (node) node->form = Form(grad_output);
  at::Tensor output;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    output = grad_bias_op().redispatch(keys & c10::after_autograd_keyset, grad_output);
  }
  if (node) torch::autograd::set_history(output, node);
  if (has_tangent(grad_output)) set_tangent(output, grad_bias_op().call(tangent(grad_output)));
  return output;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "convolution(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
      "int groups, str activation=\"identity\", float alpha=0) -> Tensor");
  m.def(
      "convolution_grad_input(Tensor grad_output, Tensor weight, SymInt[] input_size, int[] stride, int[] "
      "padding, int[] dilation, int groups, bool channels_last, Tensor? bias=None) -> Tensor");
  m.def(
      "convolution_grad_weight(Tensor input, Tensor grad_output, SymInt[] weight_size, int[] stride, int[] "
      "padding, int[] dilation, int groups, bool channels_last) -> Tensor");
  m.def("convolution_grad_bias(Tensor grad_output) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("convolution", convolution_autograd);
  m.impl("convolution_grad_input", grad_input_autograd);
  m.impl("convolution_grad_weight", grad_weight_autograd);
  m.impl("convolution_grad_bias", grad_bias_autograd);
}

}  // namespace fastnn::bindings
