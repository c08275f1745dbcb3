// Convolution: from tensors to a backend's kernels. Checks, allocation, parameter structs.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "backend.h"
#include "conv_choice.h"
#include "conv_ops.h"
#include "tensors.h"

namespace fastnn::bindings {

void check_same(const char* op, const at::Tensor& a, const char* a_name, const at::Tensor& b,
                const char* b_name) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), op, ": ", a_name, " and ", b_name,
              " should have the same dtype, but got ", a.scalar_type(), " and ", b.scalar_type());
  TORCH_CHECK(a.device() == b.device(), op, ": expected ", a_name, " and ", b_name,
              " to be on the same device, but got ", a.device(), " and ", b.device());
}

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
  for (size_t d = 0; d < padding.size(); d += 2) {
    TORCH_CHECK(padding[d] >= 0, op,
                ": negative padding is not supported (padding must be at least 0, got padding=", padding, ")");
  }
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

namespace {

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

}  // namespace

Sizes output_size(const ConvGeometry& g, int64_t rank) {
  Sizes size{g.N, g.K};
  size.append(g.out + kSpatialDims - rank, g.out + kSpatialDims);
  return size;
}

void check_grad_output(const char* op, const at::Tensor& grad_output, const ConvGeometry& g, int64_t rank) {
  const Sizes expected = output_size(g, rank);
  TORCH_CHECK(grad_output.sizes() == IntArrayRef(expected), op, ": grad_output must have shape ",
              IntArrayRef(expected), ", got ", grad_output.sizes());
}

ConvActivation conv_activation(const char* op, StringView name, double alpha) {
  const NamedActivation named = activation_of(op, name, alpha, /*from_output=*/true);
  return {named.identity() ? Activation::kNone : named.kind, named.alpha};
}

namespace {

// A bias that the kernels can read: [channels], dense. Undefined for none.
at::Tensor checked_bias(const char* op, const at::Tensor& input, const at::Tensor& weight,
                        const OptionalTensor& bias, int64_t channels) {
  if (!bias.has_value()) return {};
  check_same(op, input, "input", *bias, "bias");
  TORCH_CHECK(bias->dim() == 1 && bias->size(0) == channels, op, ": Given weight of size ", weight.sizes(),
              ", expected bias to be 1-dimensional with ", channels, " elements, but got bias of size ",
              bias->sizes(), " instead");
  return bias->contiguous();
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
  const at::Tensor dense_bias = checked_bias(kOp, input, weight, bias, p.geometry.K);
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

at::Tensor convolution_grad_input(const at::Tensor& grad_output, const at::Tensor& weight,
                                  IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding,
                                  IntArrayRef dilation, int64_t groups, bool channels_last,
                                  const OptionalTensor& bias) {
  static constexpr const char* kOp = "convolution_grad_input";
  check_same(kOp, grad_output, "grad_output", weight, "weight");
  ConvGradInputParams p;
  p.dtype = dtype_of(kOp, "grad_output", grad_output);
  p.geometry = make_geometry(kOp, input_size, weight.sizes(), stride, padding, dilation, groups);
  check_grad_output(kOp, grad_output, p.geometry, weight.dim() - 2);
  const at::Tensor dense_bias = checked_bias(kOp, grad_output, weight, bias, p.geometry.C);
  BackendCall call(grad_output);
  at::Tensor grad_input =
      at::empty(input_size, grad_output.options().memory_format(memory_format(channels_last, weight.dim())));
  if (grad_input.numel() == 0) return grad_input;
  p.grad_y = call.data(grad_output);
  fill_strides(grad_output, p.grad_y_strides);
  p.w = call.data(weight);
  fill_strides(weight, p.w_strides);
  p.bias = call.data(dense_bias);
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
  check_grad_output(kOp, grad_output, p.geometry, input.dim() - 2);
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

void register_kernels(torch::Library& m) {
  m.impl("convolution", convolution);
  m.impl("convolution_grad_input", convolution_grad_input);
  m.impl("convolution_grad_weight", convolution_grad_weight);
  m.impl("convolution_grad_bias", convolution_grad_bias);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastnn, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, CUDA, m) { register_kernels(m); }

}  // namespace fastnn::bindings
