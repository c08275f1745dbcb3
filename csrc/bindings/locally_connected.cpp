// Locally connected layers: the dispatcher's ops, autograd, autocast and Python functions.
//
// locally_connected1d and locally_connected2d take convolution's arguments and call `locally_connected`, which
// is free of rank. It and its two gradients are the derivatives of one trilinear form (trilinear.h).
#include "../ops/locally_connected.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <string>

#include "autocast.h"
#include "backend.h"
#include "conv_ops.h"
#include "conv_rank.h"
#include "python.h"
#include "tensors.h"
#include "trilinear.h"

namespace fastnn::bindings {

namespace {

// ---- kernels ----------------------------------------------------------------------------------------------

// Of x_size [N, C, spatial...] and w_size [positions..., K, C, kernel...]; padding has a value a dimension.
ConvGeometry local_geometry(const char* op, IntArrayRef x_size, IntArrayRef w_size, IntArrayRef stride,
                            IntArrayRef padding, IntArrayRef dilation) {
  TORCH_CHECK(w_size.size() % 2 == 0 && w_size.size() >= 4 && w_size.size() <= 2 + 2 * kSpatialDims, op,
              ": weight must have shape [positions..., filters, channels, kernel...], got shape ", w_size);
  const size_t rank = w_size.size() / 2 - 1;
  Sizes pairs;
  for (const int64_t each : padding) pairs.append(2, each);
  const ConvGeometry g = make_geometry(op, x_size, w_size.slice(rank), stride, pairs, dilation, 1);
  for (size_t d = 0; d < rank; ++d) {
    const int64_t expected = g.out[kSpatialDims - rank + d];
    TORCH_CHECK(w_size[d] == expected, op, ": weight of size ", w_size, " has filters for ", w_size[d],
                " positions in dimension ", d, ", but input ", x_size, " has ", expected,
                " with stride=", stride, ", padding=", padding, ", dilation=", dilation);
  }
  return g;
}

at::Tensor locally_connected(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                             IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation) {
  static constexpr const char* kOp = "locally_connected";
  check_same(kOp, input, "input", weight, "weight");
  LocallyConnectedForwardParams p;
  p.dtype = dtype_of(kOp, "input", input);
  p.geometry = local_geometry(kOp, input.sizes(), weight.sizes(), stride, padding, dilation);
  const Sizes size = output_size(p.geometry, input.dim() - 2);
  at::Tensor dense_bias;
  if (bias.has_value()) {
    check_same(kOp, input, "input", *bias, "bias");
    const IntArrayRef expected = IntArrayRef(size).slice(1);
    TORCH_CHECK(bias->sizes() == expected, kOp, ": expected bias of shape ", expected,
                " (filters, positions...), but got bias of size ", bias->sizes());
    dense_bias = bias->contiguous();
  }
  BackendCall call(input);
  at::Tensor output =
      at::empty(size, input.options().memory_format(memory_format(suggests_channels_last(input), input.dim())));
  if (output.numel() == 0) return output;
  const at::Tensor w = weight.contiguous();
  p.x = call.data(input);
  fill_strides(input, p.x_strides);
  p.w = call.data(w);
  p.bias = call.data(dense_bias);
  p.y = call.output(output);
  fill_strides(output, p.y_strides);
  call(&Backend::locally_connected_forward, &Backend::locally_connected_forward_workspace, p);
  return output;
}

at::Tensor locally_connected_grad_input(const at::Tensor& grad_output, const at::Tensor& weight,
                                        IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding,
                                        IntArrayRef dilation, bool channels_last) {
  static constexpr const char* kOp = "locally_connected_grad_input";
  check_same(kOp, grad_output, "grad_output", weight, "weight");
  LocallyConnectedGradInputParams p;
  p.dtype = dtype_of(kOp, "grad_output", grad_output);
  p.geometry = local_geometry(kOp, input_size, weight.sizes(), stride, padding, dilation);
  const auto rank = static_cast<int64_t>(input_size.size()) - 2;
  check_grad_output(kOp, grad_output, p.geometry, rank);
  BackendCall call(grad_output);
  at::Tensor grad_input =
      at::empty(input_size, grad_output.options().memory_format(memory_format(channels_last, rank + 2)));
  if (grad_input.numel() == 0) return grad_input;
  const at::Tensor w = weight.contiguous();
  p.grad_y = call.data(grad_output);
  fill_strides(grad_output, p.grad_y_strides);
  p.w = call.data(w);
  p.grad_x = call.output(grad_input);
  fill_strides(grad_input, p.grad_x_strides);
  call(&Backend::locally_connected_grad_input, &Backend::locally_connected_grad_input_workspace, p);
  return grad_input;
}

at::Tensor locally_connected_grad_weight(const at::Tensor& input, const at::Tensor& grad_output,
                                         IntArrayRef weight_size, IntArrayRef stride, IntArrayRef padding,
                                         IntArrayRef dilation) {
  static constexpr const char* kOp = "locally_connected_grad_weight";
  check_same(kOp, input, "input", grad_output, "grad_output");
  LocallyConnectedGradWeightParams p;
  p.dtype = dtype_of(kOp, "input", input);
  p.geometry = local_geometry(kOp, input.sizes(), weight_size, stride, padding, dilation);
  check_grad_output(kOp, grad_output, p.geometry, input.dim() - 2);
  BackendCall call(input);
  at::Tensor grad_weight = at::empty(weight_size, input.options());
  if (grad_weight.numel() == 0) return grad_weight;
  p.x = call.data(input);
  fill_strides(input, p.x_strides);
  p.grad_y = call.data(grad_output);
  fill_strides(grad_output, p.grad_y_strides);
  p.grad_w = call.output(grad_weight);
  call(&Backend::locally_connected_grad_weight, &Backend::locally_connected_grad_weight_workspace, p);
  return grad_weight;
}

// ---- the dispatcher's handles ------------------------------------------------------------------------------

const auto& forward_op() {
  static const auto op = find_op<decltype(locally_connected)>("fastnn::locally_connected");
  return op;
}

using GradInput = at::Tensor(const at::Tensor&, const at::Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef,
                             IntArrayRef, bool);
const auto& local_grad_input_op() {
  static const auto op = find_op<GradInput>("fastnn::locally_connected_grad_input");
  return op;
}

using GradWeight = at::Tensor(const at::Tensor&, const at::Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef,
                              IntArrayRef);
const auto& local_grad_weight_op() {
  static const auto op = find_op<GradWeight>("fastnn::locally_connected_grad_weight");
  return op;
}

// ---- autograd ----------------------------------------------------------------------------------------------

struct LocalMap {
  Sizes stride, padding, dilation;

  LocalMap() = default;
  LocalMap(IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation)
      : stride(stride.begin(), stride.end()),
        padding(padding.begin(), padding.end()),
        dilation(dilation.begin(), dilation.end()) {}

  at::Tensor forward(const at::Tensor& x, const at::Tensor& w) const {
    return forward_op().call(x, w, std::nullopt, stride, padding, dilation);
  }
  at::Tensor grad_input(const at::Tensor& g, const at::Tensor& w, const Form& x) const {
    return local_grad_input_op().call(g, w, x.size, stride, padding, dilation, x.channels_last);
  }
  at::Tensor grad_weight(const at::Tensor& x, const at::Tensor& g, const Form& w) const {
    return local_grad_weight_op().call(x, g, w.size, stride, padding, dilation);
  }
  // A bias of every position is a summand: torch's sum over the batch, which memory bounds.
  at::Tensor grad_bias(const at::Tensor& g) const { return g.sum(0); }
  static at::Tensor expand_bias(const at::Tensor& bias, SymIntArrayRef size) {
    return bias.expand_symint(size);
  }

  static constexpr const char* kGradInputName = "FastnnLocallyConnectedGradInputBackward";
  static constexpr const char* kGradWeightName = "FastnnLocallyConnectedGradWeightBackward";
};

struct LocallyConnectedNode final : BilinearNode<LocalMap> {
  std::string name() const override { return "FastnnLocallyConnectedBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(3);
    const at::Tensor& g = grads[0];
    if (!g.defined()) return result;
    if (task_should_compute_output(0)) result[0] = map.grad_input(g, second.unpack(), first_form);
    if (task_should_compute_output(1)) result[1] = map.grad_weight(first.unpack(), g, second_form);
    if (task_should_compute_output(2)) result[2] = map.grad_bias(g);
    return result;
  }
};

at::Tensor locally_connected_autograd(c10::DispatchKeySet keys, const at::Tensor& input,
                                      const at::Tensor& weight, const OptionalTensor& bias, IntArrayRef stride,
                                      IntArrayRef padding, IntArrayRef dilation) {
  const auto node = make_node<LocallyConnectedNode>(input, weight, bias);
  const LocalMap map(stride, padding, dilation);
  if (node) {
    node->map = map;
    node->keep(input, weight);
  }
  at::Tensor output;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    output = forward_op().redispatch(keys & c10::after_autograd_keyset, input, weight, bias, stride, padding,
                                     dilation);
  }
  if (node) torch::autograd::set_history(output, node);
  if (any_tangent(input, weight, bias)) {
    at::Tensor t;
    if (has_tangent(input)) t = map.forward(tangent(input), primal(weight));
    if (has_tangent(weight)) t = sum_of(t, map.forward(primal(input), tangent(weight)));
    if (has_tangent(bias)) t = sum_of(t, LocalMap::expand_bias(tangent(*bias), output.sym_sizes()));
    set_tangent(output, t);
  }
  return output;
}

at::Tensor grad_input_autograd(c10::DispatchKeySet keys, const at::Tensor& grad_output,
                               const at::Tensor& weight, SymIntArrayRef size, IntArrayRef stride,
                               IntArrayRef padding, IntArrayRef dilation, bool channels_last) {
  const LocalMap map(stride, padding, dilation);
  return grad_input_with_autograd(map, grad_output, weight, std::nullopt, Form(size, channels_last), [&] {
    return local_grad_input_op().redispatch(keys & c10::after_autograd_keyset, grad_output, weight, size,
                                            stride, padding, dilation, channels_last);
  });
}

at::Tensor grad_weight_autograd(c10::DispatchKeySet keys, const at::Tensor& input,
                                const at::Tensor& grad_output, SymIntArrayRef size, IntArrayRef stride,
                                IntArrayRef padding, IntArrayRef dilation) {
  const LocalMap map(stride, padding, dilation);
  return grad_weight_with_autograd(map, input, grad_output, Form(size, false), [&] {
    return local_grad_weight_op().redispatch(keys & c10::after_autograd_keyset, input, grad_output, size,
                                             stride, padding, dilation);
  });
}

// ---- the functions of one rank ------------------------------------------------------------------------------

constexpr const char* kOps[] = {"locally_connected1d", "locally_connected2d"};

template <int64_t rank>
at::Tensor local(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                 IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation) {
  static constexpr const char* kOp = kOps[rank - 1];
  TORCH_CHECK(weight.dim() == 2 * rank + 2, kOp, ": Expected ", 2 * rank + 2,
              "D weight (positions, filters, channels, kernel), but got weight of size ", weight.sym_sizes());
  check_input_rank(kOp, rank, input);
  const Sizes strides = expand_list(kOp, "stride", stride, rank);
  const Sizes pads = expand_list(kOp, "padding", padding, rank);
  const Sizes dilations = expand_list(kOp, "dilation", dilation, rank);
  return batched(rank, input, [&](const at::Tensor& x) {
    return forward_op().call(x, weight, bias, strides, pads, dilations);
  });
}

template <int64_t rank>
const auto& rank_op() {
  static const auto op = find_op<decltype(locally_connected)>(std::string("fastnn::") + kOps[rank - 1]);
  return op;
}

template <int64_t rank>
at::Tensor local_autocast(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                          IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation) {
  const Autocast cast(input);
  return rank_op<rank>().call(cast(input), cast(weight), cast(bias), stride, padding, dilation);
}

template <int64_t rank>
void define(torch::Library& m) {
  const std::string list = c10::str("int[", rank, "]");
  m.def(c10::str(kOps[rank - 1], "(Tensor input, Tensor weight, Tensor? bias=None, ", list, " stride=1, ", list,
                 " padding=0, ", list, " dilation=1) -> Tensor")
            .c_str(),
        local<rank>);
}

template <int64_t rank>
void export_rank(pybind11::module_& m) {
  namespace py = pybind11;
  m.def(
      kOps[rank - 1],
      [](const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias, const IntList& stride,
         const IntList& padding, const IntList& dilation) {
        return rank_op<rank>().call(input, weight, bias, stride, padding, dilation);
      },
      py::arg("input"), py::arg("weight"), py::arg("bias") = py::none(), py::arg("stride") = IntList{1},
      py::arg("padding") = IntList{0}, py::arg("dilation") = IntList{1},
      py::call_guard<py::gil_scoped_release>());
}

void register_kernels(torch::Library& m) {
  m.impl("locally_connected", locally_connected);
  m.impl("locally_connected_grad_input", locally_connected_grad_input);
  m.impl("locally_connected_grad_weight", locally_connected_grad_weight);
}

void register_autocast(torch::Library& m) {
  m.impl(kOps[0], local_autocast<1>);
  m.impl(kOps[1], local_autocast<2>);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  define<1>(m);
  define<2>(m);
  m.def(
      "locally_connected(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] "
      "dilation) -> Tensor");
  m.def(
      "locally_connected_grad_input(Tensor grad_output, Tensor weight, SymInt[] input_size, int[] stride, "
      "int[] padding, int[] dilation, bool channels_last) -> Tensor");
  m.def(
      "locally_connected_grad_weight(Tensor input, Tensor grad_output, SymInt[] weight_size, int[] stride, "
      "int[] padding, int[] dilation) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastnn, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, CUDA, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, AutocastCPU, m) { register_autocast(m); }
TORCH_LIBRARY_IMPL(fastnn, AutocastCUDA, m) { register_autocast(m); }
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("locally_connected", locally_connected_autograd);
  m.impl("locally_connected_grad_input", grad_input_autograd);
  m.impl("locally_connected_grad_weight", grad_weight_autograd);
}

void export_locally_connected(pybind11::module_& m) {
  export_rank<1>(m);
  export_rank<2>(m);
}

}  // namespace fastnn::bindings
