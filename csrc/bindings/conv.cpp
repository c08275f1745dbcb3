// Convolution: the dispatcher's ops, their checks, autograd, autocast and Python functions.
//
// conv2d takes torch's arguments, checks them and calls `convolution`, which is free of rank and takes padding
// as (begin, end) pairs. convolution, convolution_grad_input and convolution_grad_weight are the three
// derivatives of one trilinear form, so each one's derivative is the other two. An activation of convolution is
// undone first, from its output: y' is a function of y for those that there are.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <string>
#include <string_view>

#include "activation.h"
#include "autograd.h"
#include "backend.h"
#include "conv_choice.h"
#include "python.h"
#include "tensors.h"

namespace fastnn::bindings {

namespace {

using c10::IntArrayRef;
using c10::SymInt;
using c10::SymIntArrayRef;
using Sizes = c10::SmallVector<int64_t, 6>;
using StringView = std::string_view;

struct ConvOptions {
  Sizes stride, padding, dilation;  // padding: (begin, end) pairs
  int64_t groups;
};

// ---- kernels ----------------------------------------------------------------------------------------------

void check_same(const char* op, const at::Tensor& a, const char* a_name, const at::Tensor& b,
                const char* b_name) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), op, ": ", a_name, " and ", b_name,
              " should have the same dtype, but got ", a.scalar_type(), " and ", b.scalar_type());
  TORCH_CHECK(a.device() == b.device(), op, ": expected ", a_name, " and ", b_name,
              " to be on the same device, but got ", a.device(), " and ", b.device());
}

// The geometry of a convolution of x_size [N, C, spatial...] with w_size [K, C / groups, spatial...], checked.
ConvGeometry make_geometry(const char* op, IntArrayRef x_size, IntArrayRef w_size, IntArrayRef stride,
                           IntArrayRef padding, IntArrayRef dilation, int64_t groups) {
  const auto rank = static_cast<int64_t>(w_size.size()) - 2;
  TORCH_CHECK(rank >= 1 && rank <= kSpatialDims, op, ": weight must have 3 to 5 dimensions, got shape ",
              w_size);
  TORCH_CHECK(static_cast<int64_t>(x_size.size()) == rank + 2, op, ": expected input with ", rank + 2,
              " dimensions to match weight of shape ", w_size, ", but got input of shape ", x_size);
  const auto length = [&](const char* name, IntArrayRef values, int64_t expected) {
    TORCH_CHECK(static_cast<int64_t>(values.size()) == expected, op, ": ", name, " must have ", expected,
                " values, got ", name, "=", values);
  };
  length("stride", stride, rank);
  length("padding", padding, 2 * rank);
  length("dilation", dilation, rank);
  const auto at_least = [&](const char* name, IntArrayRef values, int64_t least, const char* complaint) {
    for (const int64_t v : values) {
      TORCH_CHECK(v >= least, op, ": ", complaint, " (", name, " must be at least ", least, ", got ", name, "=",
                  values, ")");
    }
  };
  at_least("stride", stride, 1, "non-positive stride is not supported");
  at_least("padding", padding, 0, "negative padding is not supported");
  at_least("dilation", dilation, 1, "dilation should be greater than zero");
  at_least("kernel size", w_size.slice(2), 1, "kernel size should be greater than zero");
  TORCH_CHECK(groups >= 1, op,
              ": non-positive groups is not supported (groups must be at least 1, got groups=", groups, ")");
  TORCH_CHECK(w_size[0] >= groups && w_size[0] % groups == 0, op, ": Given groups=", groups,
              ", expected weight to be divisible by ", groups, " at dimension 0, but got weight of size ",
              w_size, " instead");
  TORCH_CHECK(x_size[1] == w_size[1] * groups, op, ": Given groups=", groups, ", weight of size ", w_size,
              ", expected input", x_size, " to have ", w_size[1] * groups, " channels, but got ", x_size[1],
              " channels instead");

  ConvGeometry g;
  g.N = x_size[0];
  g.C = x_size[1];
  g.K = w_size[0];
  g.groups = groups;
  fill_spatial(x_size.slice(2), 1, g.in);
  fill_spatial(w_size.slice(2), 1, g.kernel);
  fill_spatial(stride, 1, g.stride);
  fill_spatial(padding, 0, g.pad, 2);
  fill_spatial(dilation, 1, g.dilation);
  int64_t pad_end[kSpatialDims];
  fill_spatial(padding.slice(1), 0, pad_end, 2);
  for (int d = 0; d < kSpatialDims; ++d) {
    const int64_t padded = g.in[d] + g.pad[d] + pad_end[d];
    const int64_t reach = g.dilation[d] * (g.kernel[d] - 1) + 1;
    TORCH_CHECK(padded >= reach, op, ": Kernel size can't be greater than actual input size: padded input has ",
                padded, " positions where the dilated kernel needs ", reach, " (input ", x_size, ", weight ",
                w_size, ", padding=", padding, ", dilation=", dilation, ")");
    g.out[d] = conv_out_size(g.in[d], g.kernel[d], g.stride[d], g.pad[d], pad_end[d], g.dilation[d]);
  }
  return g;
}

// Whether torch's flags let a float32 convolution round its operands to tf32
// (torch.backends.cudnn.conv.fp32_precision and what it inherits from). CPU kernels have no such thing, and do
// not ask: of flags that contradict each other torch makes an error.
bool tf32_is_allowed(const BackendCall& call, DType dtype) {
  return dtype == DType::kFloat32 && call.runs_cuda_kernels() &&
         at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
}

template <typename Params>
void run(BackendCall& call, Status (*Backend::*entry)(const Params&, Stream),
         int64_t (*Backend::*workspace)(const Params&), Params& p) {
  p.allow_tf32 = tf32_is_allowed(call, p.dtype);
  p.variant = chosen_variant(call, p);
  call(entry, workspace, p);
}

Sizes output_size(const ConvGeometry& g, int64_t rank) {
  Sizes size{g.N, g.K};
  size.append(g.out + kSpatialDims - rank, g.out + kSpatialDims);
  return size;
}

ConvActivation conv_activation(const char* op, StringView name, double alpha) {
  const NamedActivation named = activation_of(op, name, alpha);
  TORCH_CHECK_VALUE(named.alpha >= 0, op,
                    ": alpha must be at least 0, from whose output backward tells what "
                    "was positive, but got alpha=",
                    alpha);
  return {named.identity() ? Activation::kNone : named.kind, named.alpha};
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                       IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                       StringView activation, double alpha) {
  static constexpr const char* kOp = "convolution";
  check_same(kOp, input, "input", weight, "weight");
  ConvForwardParams p;
  p.dtype = dtype_of(kOp, "input", input);
  p.geometry = make_geometry(kOp, input.sizes(), weight.sizes(), stride, padding, dilation, groups);
  p.activation = conv_activation(kOp, activation, alpha);
  at::Tensor dense_bias;
  if (bias.has_value()) {
    check_same(kOp, input, "input", *bias, "bias");
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == p.geometry.K, kOp, ": Given weight of size ",
                weight.sizes(), ", expected bias to be 1-dimensional with ", p.geometry.K,
                " elements, but got bias of size ", bias->sizes(), " instead");
    dense_bias = bias->contiguous();
  }
  BackendCall call(input);
  const bool channels_last = suggests_channels_last(input) || suggests_channels_last(weight);
  at::Tensor output = at::empty(output_size(p.geometry, input.dim() - 2),
                                input.options().memory_format(memory_format(channels_last, input.dim())));
  if (output.numel() == 0) return output;
  p.x = call.data(input);
  fill_strides(input, p.x_strides);
  p.w = call.data(weight);
  fill_strides(weight, p.w_strides);
  p.bias = call.data(dense_bias);
  p.y = call.output(output);
  fill_strides(output, p.y_strides);
  run(call, &Backend::conv_forward, &Backend::conv_forward_workspace, p);
  return output;
}

// The gradients' geometry comes from the sizes of x and w; grad_output must have the size that follows.
void check_grad_output(const char* op, const at::Tensor& grad_output, const ConvGeometry& g) {
  const Sizes expected = output_size(g, grad_output.dim() - 2);
  TORCH_CHECK(grad_output.sizes() == IntArrayRef(expected), op, ": grad_output must have shape ",
              IntArrayRef(expected), ", got ", grad_output.sizes());
}

at::Tensor convolution_grad_input(const at::Tensor& grad_output, const at::Tensor& weight,
                                  IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding,
                                  IntArrayRef dilation, int64_t groups, bool channels_last) {
  static constexpr const char* kOp = "convolution_grad_input";
  check_same(kOp, grad_output, "grad_output", weight, "weight");
  ConvGradInputParams p;
  p.dtype = dtype_of(kOp, "grad_output", grad_output);
  p.geometry = make_geometry(kOp, input_size, weight.sizes(), stride, padding, dilation, groups);
  check_grad_output(kOp, grad_output, p.geometry);
  BackendCall call(grad_output);
  at::Tensor grad_input =
      at::empty(input_size, grad_output.options().memory_format(memory_format(channels_last, weight.dim())));
  if (grad_input.numel() == 0) return grad_input;
  p.grad_y = call.data(grad_output);
  fill_strides(grad_output, p.grad_y_strides);
  p.w = call.data(weight);
  fill_strides(weight, p.w_strides);
  p.grad_x = call.output(grad_input);
  fill_strides(grad_input, p.grad_x_strides);
  run(call, &Backend::conv_grad_input, &Backend::conv_grad_input_workspace, p);
  return grad_input;
}

at::Tensor convolution_grad_weight(const at::Tensor& input, const at::Tensor& grad_output,
                                   IntArrayRef weight_size, IntArrayRef stride, IntArrayRef padding,
                                   IntArrayRef dilation, int64_t groups, bool channels_last) {
  static constexpr const char* kOp = "convolution_grad_weight";
  check_same(kOp, input, "input", grad_output, "grad_output");
  ConvGradWeightParams p;
  p.dtype = dtype_of(kOp, "input", input);
  p.geometry = make_geometry(kOp, input.sizes(), weight_size, stride, padding, dilation, groups);
  check_grad_output(kOp, grad_output, p.geometry);
  BackendCall call(input);
  at::Tensor grad_weight =
      at::empty(weight_size, input.options().memory_format(memory_format(channels_last, input.dim())));
  if (grad_weight.numel() == 0) return grad_weight;
  p.x = call.data(input);
  fill_strides(input, p.x_strides);
  p.grad_y = call.data(grad_output);
  fill_strides(grad_output, p.grad_y_strides);
  p.grad_w = call.output(grad_weight);
  fill_strides(grad_weight, p.grad_w_strides);
  run(call, &Backend::conv_grad_weight, &Backend::conv_grad_weight_workspace, p);
  return grad_weight;
}

at::Tensor convolution_grad_bias(const at::Tensor& grad_output) {
  static constexpr const char* kOp = "convolution_grad_bias";
  TORCH_CHECK(grad_output.dim() >= 3 && grad_output.dim() <= 2 + kSpatialDims, kOp,
              ": grad_output must have 3 to 5 dimensions, got shape ", grad_output.sizes());
  ConvGradBiasParams p;
  p.dtype = dtype_of(kOp, "grad_output", grad_output);
  p.N = grad_output.size(0);
  p.K = grad_output.size(1);
  fill_spatial(grad_output.sizes().slice(2), 1, p.out);
  BackendCall call(grad_output);
  at::Tensor grad_bias = at::empty({p.K}, grad_output.options());
  if (p.K == 0) return grad_bias;
  p.grad_y = call.data(grad_output);
  fill_strides(grad_output, p.grad_y_strides);
  p.grad_bias = call.output(grad_bias);
  call(&Backend::conv_grad_bias, &Backend::conv_grad_bias_workspace, p);
  return grad_bias;
}

// ---- the dispatcher's handles ------------------------------------------------------------------------------

const auto& convolution_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("fastnn::convolution", "").typed<decltype(convolution)>();
  return op;
}

using GradOp = at::Tensor(const at::Tensor&, const at::Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef,
                          IntArrayRef, int64_t, bool);

const auto& grad_input_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("fastnn::convolution_grad_input", "").typed<GradOp>();
  return op;
}

const auto& grad_weight_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("fastnn::convolution_grad_weight", "").typed<GradOp>();
  return op;
}

const auto& grad_bias_op() {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastnn::convolution_grad_bias", "")
                             .typed<at::Tensor(const at::Tensor&)>();
  return op;
}

// ---- autograd ----------------------------------------------------------------------------------------------

// The shape and the memory format of a tensor that a node need not keep.
struct Form {
  std::vector<SymInt> size;
  bool channels_last = false;

  Form() = default;
  explicit Form(const at::Tensor& t) : size(t.sym_sizes().vec()), channels_last(suggests_channels_last(t)) {}
};

constexpr StringView kIdentity = "identity";

// gradient * act'(z), of y = act(z). The formulas are torch's own, which are differentiable.
at::Tensor times_derivative(const at::Tensor& gradient, const at::Tensor& y, StringView activation,
                            double alpha) {
  if (activation == "relu") return at::threshold_backward(gradient, y, 0);
  if (activation == "leaky_relu") return at::leaky_relu_backward(gradient, y, alpha, /*self_is_result=*/true);
  if (activation == "elu") return at::elu_backward(gradient, alpha, 1, 1, /*is_result=*/true, y);
  return gradient;
}

// Each method is one of the ops for fixed options.
struct Convolver {
  ConvOptions o;

  at::Tensor forward(const at::Tensor& x, const at::Tensor& w,
                     const OptionalTensor& bias = std::nullopt) const {
    return convolution_op().call(x, w, bias, o.stride, o.padding, o.dilation, o.groups, kIdentity, 0);
  }
  at::Tensor grad_input(const at::Tensor& g, const at::Tensor& w, const Form& x) const {
    return grad_input_op().call(g, w, x.size, o.stride, o.padding, o.dilation, o.groups, x.channels_last);
  }
  at::Tensor grad_weight(const at::Tensor& x, const at::Tensor& g, const Form& w) const {
    return grad_weight_op().call(x, g, w.size, o.stride, o.padding, o.dilation, o.groups, w.channels_last);
  }
};

ConvOptions options_of(IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups) {
  const auto sizes = [](IntArrayRef v) { return Sizes(v.begin(), v.end()); };
  return {sizes(stride), sizes(padding), sizes(dilation), groups};
}

// What the nodes of the three bilinear ops hold: the two operands, each kept only if the other one needs a
// gradient, and their forms.
struct BilinearNode : Node {
  Convolver conv;
  SavedVariable first, second;
  Form first_form, second_form;

  void keep(const at::Tensor& a, const at::Tensor& b) {
    first_form = Form(a);
    second_form = Form(b);
    if (should_compute_output(1)) first = save(a);
    if (should_compute_output(0)) second = save(b);
  }
  void release_variables() override {
    first.reset_data();
    second.reset_data();
  }
};

struct ConvolutionNode final : BilinearNode {
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
    const at::Tensor g = activation == kIdentity
                             ? grads[0]
                             : times_derivative(grads[0], output.unpack(getptr()), activation, alpha);
    if (task_should_compute_output(0)) result[0] = conv.grad_input(g, second.unpack(), first_form);
    if (task_should_compute_output(1)) result[1] = conv.grad_weight(first.unpack(), g, second_form);
    if (task_should_compute_output(2)) result[2] = grad_bias_op().call(g);
    return result;
  }
};

struct GradInputNode final : BilinearNode {  // of (grad_output, weight)
  std::string name() const override { return "FastnnConvolutionGradInputBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(2);
    const at::Tensor& gg = grads[0];
    if (!gg.defined()) return result;
    if (task_should_compute_output(0)) result[0] = conv.forward(gg, second.unpack());
    if (task_should_compute_output(1)) result[1] = conv.grad_weight(gg, first.unpack(), second_form);
    return result;
  }
};

struct GradWeightNode final : BilinearNode {  // of (input, grad_output)
  std::string name() const override { return "FastnnConvolutionGradWeightBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(2);
    const at::Tensor& gg = grads[0];
    if (!gg.defined()) return result;
    if (task_should_compute_output(0)) result[0] = conv.grad_input(second.unpack(), gg, first_form);
    if (task_should_compute_output(1)) result[1] = conv.forward(first.unpack(), gg);
    return result;
  }
};

struct GradBiasNode final : Node {
  Form form;
  std::string name() const override { return "FastnnConvolutionGradBiasBackward"; }
  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return variable_list(1);
    std::vector<SymInt> ones(form.size.size(), 1);
    ones[1] = form.size[1];
    return {grads[0].view_symint(ones).expand_symint(form.size)};
  }
};

at::Tensor convolution_autograd(c10::DispatchKeySet keys, const at::Tensor& input, const at::Tensor& weight,
                                const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding,
                                IntArrayRef dilation, int64_t groups, StringView activation, double alpha) {
  const auto node = make_node<ConvolutionNode>(input, weight, bias);
  const Convolver conv{options_of(stride, padding, dilation, groups)};
  if (node) {
    node->conv = conv;
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
  if (node) {
    torch::autograd::set_history(output, node);
    if (activation != kIdentity) node->output = SavedVariable(output, /*is_output=*/true);
  }
  if (any_tangent(input, weight, bias)) {
    at::Tensor t;
    if (has_tangent(input)) t = conv.forward(tangent(input), primal(weight));
    if (has_tangent(weight)) t = sum_of(t, conv.forward(primal(input), tangent(weight)));
    if (has_tangent(bias)) {
      std::vector<SymInt> ones(output.dim(), 1);
      ones[1] = output.sym_size(1);
      const at::Tensor b = tangent(*bias).view_symint(ones);
      t = t.defined() ? t + b : b.expand_symint(output.sym_sizes());
    }
    set_tangent(output, times_derivative(t, primal(output), activation, alpha));
  }
  return output;
}

// Of convolution_grad_input (grad_output, weight) and convolution_grad_weight (input, grad_output) alike: `op`
// is the op, `compute` calls it.
template <typename NodeType, const auto& (*op)(),
          at::Tensor (Convolver::*compute)(const at::Tensor&, const at::Tensor&, const Form&) const>
at::Tensor grad_autograd(c10::DispatchKeySet keys, const at::Tensor& first, const at::Tensor& second,
                         SymIntArrayRef size, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                         int64_t groups, bool channels_last) {
  const auto node = make_node<NodeType>(first, second);
  const Convolver conv{options_of(stride, padding, dilation, groups)};
  if (node) {
    node->conv = conv;
    node->keep(first, second);
  }
  at::Tensor output;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    output = op().redispatch(keys & c10::after_autograd_keyset, first, second, size, stride, padding, dilation,
                             groups, channels_last);
  }
  if (node) torch::autograd::set_history(output, node);
  if (any_tangent(first, second)) {
    Form form;
    form.size = size.vec();
    form.channels_last = channels_last;
    at::Tensor t;
    if (has_tangent(first)) t = (conv.*compute)(tangent(first), primal(second), form);
    if (has_tangent(second)) t = sum_of(t, (conv.*compute)(primal(first), tangent(second), form));
    set_tangent(output, t);
  }
  return output;
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

// ---- torch's signatures ------------------------------------------------------------------------------------

// Runs a convolution of fixed rank on batched or unbatched input; `resolve_padding` gives (begin, end) pairs.
template <typename ResolvePadding>
at::Tensor convolve(const char* op, int64_t rank, const at::Tensor& input, const at::Tensor& weight,
                    const OptionalTensor& bias, IntArrayRef stride, IntArrayRef dilation, int64_t groups,
                    StringView activation, double alpha, const ResolvePadding& resolve_padding) {
  TORCH_CHECK(weight.dim() == rank + 2, op, ": Expected ", rank + 2, "D weight, but got weight of size ",
              weight.sym_sizes());
  TORCH_CHECK(input.dim() == rank + 1 || input.dim() == rank + 2, op, ": Expected ", rank + 1,
              "D (unbatched) or ", rank + 2, "D (batched) input, but got input of size: ", input.sym_sizes());
  conv_activation(op, activation, alpha);  // of the function that was called, and of tensors without data
  const Sizes strides = expand_list(op, "stride", stride, rank);
  const Sizes dilations = expand_list(op, "dilation", dilation, rank);
  const Sizes padding = resolve_padding(strides, dilations);
  if (input.dim() == rank + 2) {
    return convolution_op().call(input, weight, bias, strides, padding, dilations, groups, activation, alpha);
  }
  return convolution_op()
      .call(input.unsqueeze(0), weight, bias, strides, padding, dilations, groups, activation, alpha)
      .squeeze(0);
}

at::Tensor conv2d(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                  IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                  StringView activation, double alpha) {
  return convolve("conv2d", 2, input, weight, bias, stride, dilation, groups, activation, alpha,
                  [&](const Sizes&, const Sizes&) {
                    const Sizes each = expand_list("conv2d", "padding", padding, 2);
                    return Sizes{each[0], each[0], each[1], each[1]};
                  });
}

at::Tensor conv2d_padding(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                          IntArrayRef stride, StringView padding, IntArrayRef dilation, int64_t groups,
                          StringView activation, double alpha) {
  return convolve(
      "conv2d", 2, input, weight, bias, stride, dilation, groups, activation, alpha,
      [&](const Sizes& strides, const Sizes& dilations) {
        if (padding == "valid") return Sizes(4, 0);
        TORCH_CHECK(padding == "same", "conv2d: Invalid padding string: '", padding,
                    "'; expected 'same' or 'valid'");
        Sizes pairs;
        for (int64_t d = 0; d < 2; ++d) {
          TORCH_CHECK(strides[d] == 1,
                      "conv2d: padding='same' is not supported for strided convolutions, got stride=",
                      IntArrayRef(strides));
          // An odd total puts the extra zero at the end.
          const int64_t total = dilations[d] * (weight.sym_size(2 + d).guard_int(__FILE__, __LINE__) - 1);
          pairs.push_back(total / 2);
          pairs.push_back(total - total / 2);
        }
        return pairs;
      });
}

// ---- autocast: to the lower precision, as torch casts its own convolutions ------------------------------

template <typename Padding, typename Op>
at::Tensor autocast(const Op& op, const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                    IntArrayRef stride, Padding padding, IntArrayRef dilation, int64_t groups,
                    StringView activation, double alpha) {
  const auto device = input.device().type();
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      c10::DispatchKeySet(at::autocast::get_autocast_dispatch_key_from_device_type(device)));
  const auto type = at::autocast::get_lower_precision_fp_from_device_type(device);
  const auto cast = [&](const auto& t) { return at::autocast::cached_cast(type, t, device); };
  return op.call(cast(input), cast(weight), cast(bias), stride, padding, dilation, groups, activation, alpha);
}

at::Tensor conv2d_autocast(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                           IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                           StringView activation, double alpha) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("fastnn::conv2d", "").typed<decltype(conv2d)>();
  return autocast(op, input, weight, bias, stride, padding, dilation, groups, activation, alpha);
}

at::Tensor conv2d_padding_autocast(const at::Tensor& input, const at::Tensor& weight,
                                   const OptionalTensor& bias, IntArrayRef stride, StringView padding,
                                   IntArrayRef dilation, int64_t groups, StringView activation, double alpha) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastnn::conv2d", "padding")
                             .typed<decltype(conv2d_padding)>();
  return autocast(op, input, weight, bias, stride, padding, dilation, groups, activation, alpha);
}

}  // namespace

// ---- registration ------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "conv2d(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, int[2] padding=0, int[2] "
      "dilation=1, int groups=1, str activation=\"identity\", float alpha=0) -> Tensor",
      conv2d);
  m.def(
      "conv2d.padding(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, str padding=\"valid\", "
      "int[2] dilation=1, int groups=1, str activation=\"identity\", float alpha=0) -> Tensor",
      conv2d_padding);
  m.def(
      "convolution(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
      "int groups, str activation=\"identity\", float alpha=0) -> Tensor");
  m.def(
      "convolution_grad_input(Tensor grad_output, Tensor weight, SymInt[] input_size, int[] stride, int[] "
      "padding, "
      "int[] dilation, int groups, bool channels_last) -> Tensor");
  m.def(
      "convolution_grad_weight(Tensor input, Tensor grad_output, SymInt[] weight_size, int[] stride, int[] "
      "padding, "
      "int[] dilation, int groups, bool channels_last) -> Tensor");
  m.def("convolution_grad_bias(Tensor grad_output) -> Tensor");
}

namespace {

void register_kernels(torch::Library& m) {
  m.impl("convolution", convolution);
  m.impl("convolution_grad_input", convolution_grad_input);
  m.impl("convolution_grad_weight", convolution_grad_weight);
  m.impl("convolution_grad_bias", convolution_grad_bias);
}

void register_autocast(torch::Library& m) {
  m.impl("conv2d", conv2d_autocast);
  m.impl("conv2d.padding", conv2d_padding_autocast);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastnn, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, CUDA, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, AutocastCPU, m) { register_autocast(m); }
TORCH_LIBRARY_IMPL(fastnn, AutocastCUDA, m) { register_autocast(m); }
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("convolution", convolution_autograd);
  m.impl("convolution_grad_input", grad_autograd<GradInputNode, grad_input_op, &Convolver::grad_input>);
  m.impl("convolution_grad_weight", grad_autograd<GradWeightNode, grad_weight_op, &Convolver::grad_weight>);
  m.impl("convolution_grad_bias", grad_bias_autograd);
}

void export_conv(pybind11::module_& m) {
  namespace py = pybind11;
  static const auto by_size =
      c10::Dispatcher::singleton().findSchemaOrThrow("fastnn::conv2d", "").typed<decltype(conv2d)>();
  static const auto by_name = c10::Dispatcher::singleton()
                                  .findSchemaOrThrow("fastnn::conv2d", "padding")
                                  .typed<decltype(conv2d_padding)>();
  m.def(
      "conv2d",
      [](const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias, const IntList& stride,
         const std::variant<IntList, std::string>& padding, const IntList& dilation, int64_t groups,
         StringView activation, double alpha) {
        if (const auto* name = std::get_if<std::string>(&padding)) {
          return by_name.call(input, weight, bias, stride, *name, dilation, groups, activation, alpha);
        }
        return by_size.call(input, weight, bias, stride, std::get<IntList>(padding), dilation, groups,
                            activation, alpha);
      },
      py::arg("input"), py::arg("weight"), py::arg("bias") = py::none(), py::arg("stride") = IntList{1},
      py::arg("padding") = IntList{0}, py::arg("dilation") = IntList{1}, py::arg("groups") = 1,
      py::arg("activation") = kIdentity, py::arg("alpha") = 0.0, py::call_guard<py::gil_scoped_release>());

  m.def("set_conv_choices_directory", &set_conv_choices_directory, py::arg("path"),
        "Where the ways that torch.backends.cudnn.benchmark finds fastest are kept; empty: nowhere.");
}

}  // namespace fastnn::bindings
