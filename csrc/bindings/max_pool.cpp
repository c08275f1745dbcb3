// Max pooling: the dispatcher's ops, their checks, autograd and Python functions.
//
// max_pool1d, 2d and 3d take torch's arguments and call `max_pool`, which is free of rank. Its derivative,
// max_pool_backward, is linear in the gradient; the derivative of that, max_pool_gather, is linear too and has
// max_pool_backward as its own: derivatives of every order exist.
#include "../ops/max_pool.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <string>

#include "autocast.h"
#include "autograd.h"
#include "backend.h"
#include "pool.h"
#include "python.h"

namespace fastnn::bindings {

namespace {

using c10::IntArrayRef;
using c10::SymInt;
using c10::SymIntArrayRef;
using std::tuple;

// ---- kernels ----------------------------------------------------------------------------------------------

void set_output_size(const char* op, IntArrayRef x_size, bool ceil_mode, PoolGeometry& g) {
  for (int d = 0; d < kSpatialDims; ++d) {
    g.out[d] = pool_out_size(g.in[d], g.kernel[d], g.stride[d], g.pad[d], g.dilation[d], ceil_mode);
    TORCH_CHECK(g.out[d] >= 1, op, ": Given input of size ", x_size, " and kernel ", IntArrayRef(g.kernel, 3),
                " (depth, height, width): calculated output size ", g.out[d], " is too small");
  }
}

// With dilation a window can step over the whole input; torch then returns an index outside of it.
void check_windows(const char* op, const PoolGeometry& g) {
  for (int d = 0; d < kSpatialDims; ++d) {
    if (g.dilation[d] == 1) continue;
    for (int64_t o = 0; o < g.out[d]; ++o) {
      const int64_t start = o * g.stride[d] - g.pad[d];
      const int64_t skipped = start < 0 ? (-start + g.dilation[d] - 1) / g.dilation[d] : 0;
      TORCH_CHECK(skipped < g.kernel[d] && start + skipped * g.dilation[d] < g.in[d], op, ": window ", o,
                  " has no position inside the input: input size ", g.in[d], ", kernel_size ", g.kernel[d],
                  ", stride ", g.stride[d], ", padding ", g.pad[d], ", dilation ", g.dilation[d]);
    }
  }
}

at::ScalarType scalar_type_of(OffsetType type) {
  switch (type) {
    case OffsetType::kUInt8:
      return at::kByte;
    case OffsetType::kUInt16:
      return at::kUInt16;
    default:
      return at::kInt;
  }
}

OffsetType offset_type_of(const PoolGeometry& g) {
  return pool_offset_type(g.kernel[0] * g.kernel[1] * g.kernel[2]);
}

Sizes output_size(const PoolGeometry& g, int64_t rank) {
  Sizes size{g.N, g.C};
  size.append(g.out + kSpatialDims - rank, g.out + kSpatialDims);
  return size;
}

tuple<at::Tensor, at::Tensor, at::Tensor> max_pool(const at::Tensor& input, IntArrayRef kernel_size,
                                                   IntArrayRef stride, IntArrayRef padding,
                                                   IntArrayRef dilation, bool ceil_mode, bool save_offsets,
                                                   bool return_indices) {
  static constexpr const char* kOp = "max_pool";
  MaxPoolForwardParams p;
  p.dtype = dtype_of(kOp, "input", input);
  p.geometry = make_pool_geometry(kOp, input.sizes(), kernel_size, stride, padding, dilation);
  set_output_size(kOp, input.sizes(), ceil_mode, p.geometry);
  check_windows(kOp, p.geometry);
  p.offset_type = offset_type_of(p.geometry);
  const bool channels_last = suggests_channels_last(input);
  const at::MemoryFormat format = memory_format(channels_last, input.dim());
  p.geometry.layout = channels_last ? Layout::kChannelsLast : Layout::kChannelsFirst;

  BackendCall call(input);
  const Sizes size = output_size(p.geometry, input.dim() - 2);
  const auto options = [&](at::ScalarType type) { return input.options().dtype(type).memory_format(format); };
  const auto offsets_type = scalar_type_of(p.offset_type);
  at::Tensor output = at::empty(size, options(input.scalar_type()));
  at::Tensor offsets =
      save_offsets ? at::empty(size, options(offsets_type)) : absent(input.options().dtype(offsets_type));
  at::Tensor indices =
      return_indices ? at::empty(size, options(at::kLong)) : absent(input.options().dtype(at::kLong));
  if (output.numel() > 0) {
    const at::Tensor x = input.contiguous(format);
    p.x = call.data(x);
    p.y = call.output(output);
    p.offsets = save_offsets ? call.output(offsets) : nullptr;
    p.indices = return_indices ? static_cast<int64_t*>(call.output(indices)) : nullptr;
    call(&Backend::max_pool_forward, p);
  }
  return {output, offsets, indices};
}

// The geometry that the offsets were made with, for an x of x_size.
PoolGeometry geometry_of_offsets(const char* op, const at::Tensor& offsets, IntArrayRef x_size,
                                 IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
                                 IntArrayRef dilation) {
  PoolGeometry g = make_pool_geometry(op, x_size, kernel, stride, padding, dilation);
  TORCH_CHECK(offsets.dim() == static_cast<int64_t>(x_size.size()), op, ": offsets must have ", x_size.size(),
              " dimensions, got shape ", offsets.sizes());
  fill_spatial(offsets.sizes().slice(2), 1, g.out);
  const auto type = scalar_type_of(offset_type_of(g));
  TORCH_CHECK(offsets.scalar_type() == type, op, ": offsets must have dtype ", type, ", got ",
              offsets.scalar_type());
  TORCH_CHECK(offsets.size(0) == g.N && offsets.size(1) == g.C, op, ": offsets of shape ", offsets.sizes(),
              " do not belong to an input of shape ", x_size);
  for (int d = 0; d < kSpatialDims; ++d) {
    const int64_t floor = pool_out_size(g.in[d], g.kernel[d], g.stride[d], g.pad[d], g.dilation[d], false);
    const int64_t ceil = pool_out_size(g.in[d], g.kernel[d], g.stride[d], g.pad[d], g.dilation[d], true);
    TORCH_CHECK(g.out[d] == floor || g.out[d] == ceil, op, ": offsets of shape ", offsets.sizes(),
                " do not belong to an input of shape ", x_size);
  }
  g.layout = suggests_channels_last(offsets) ? Layout::kChannelsLast : Layout::kChannelsFirst;
  return g;
}

at::Tensor max_pool_backward(const at::Tensor& grad_output, const at::Tensor& offsets, IntArrayRef input_size,
                             IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                             IntArrayRef dilation) {
  static constexpr const char* kOp = "max_pool_backward";
  MaxPoolBackwardParams p;
  p.dtype = dtype_of(kOp, "grad_output", grad_output);
  p.geometry = geometry_of_offsets(kOp, offsets, input_size, kernel_size, stride, padding, dilation);
  TORCH_CHECK(grad_output.sizes() == offsets.sizes() && grad_output.device() == offsets.device(), kOp,
              ": grad_output must have the shape and device of offsets, ", offsets.sizes(), " on ",
              offsets.device(), ", got ", grad_output.sizes(), " on ", grad_output.device());
  p.offset_type = offset_type_of(p.geometry);
  const at::MemoryFormat format = memory_format(p.geometry.layout == Layout::kChannelsLast, offsets.dim());
  BackendCall call(grad_output);
  at::Tensor grad_input = at::empty(input_size, grad_output.options().memory_format(format));
  if (grad_input.numel() == 0) return grad_input;
  const at::Tensor g = grad_output.contiguous(format);
  const at::Tensor o = offsets.contiguous(format);
  p.grad_y = call.data(g);
  p.offsets = call.data(o);
  p.grad_x = call.output(grad_input);
  call(&Backend::max_pool_backward, p);
  return grad_input;
}

at::Tensor max_pool_gather(const at::Tensor& input, const at::Tensor& offsets, IntArrayRef kernel_size,
                           IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation) {
  static constexpr const char* kOp = "max_pool_gather";
  MaxPoolGatherParams p;
  p.dtype = dtype_of(kOp, "input", input);
  p.geometry = geometry_of_offsets(kOp, offsets, input.sizes(), kernel_size, stride, padding, dilation);
  TORCH_CHECK(input.device() == offsets.device(), kOp,
              ": expected input and offsets to be on the same device, but got ", input.device(), " and ",
              offsets.device());
  p.offset_type = offset_type_of(p.geometry);
  const at::MemoryFormat format = memory_format(p.geometry.layout == Layout::kChannelsLast, offsets.dim());
  BackendCall call(input);
  at::Tensor output = at::empty(offsets.sizes(), input.options().memory_format(format));
  if (output.numel() == 0) return output;
  const at::Tensor x = input.contiguous(format);
  const at::Tensor o = offsets.contiguous(format);
  p.x = call.data(x);
  p.offsets = call.data(o);
  p.y = call.output(output);
  call(&Backend::max_pool_gather, p);
  return output;
}

// ---- the dispatcher's handles ------------------------------------------------------------------------------

const auto& backward_op() {
  static const auto op =
      find_op<at::Tensor(const at::Tensor&, const at::Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef,
                         IntArrayRef, IntArrayRef)>("fastnn::max_pool_backward");
  return op;
}

const auto& gather_op() {
  static const auto op = find_op<decltype(max_pool_gather)>("fastnn::max_pool_gather");
  return op;
}

// ---- autograd ----------------------------------------------------------------------------------------------

// What every node of this file holds: where the maxima were, and the window's options.
struct PoolNode : Node {
  Sizes kernel_size, stride, padding, dilation;
  std::vector<SymInt> input_size;
  SavedVariable offsets;

  void keep(const at::Tensor& where, SymIntArrayRef size, IntArrayRef k, IntArrayRef s, IntArrayRef p,
            IntArrayRef d) {
    offsets = save(where);
    input_size = size.vec();
    kernel_size = Sizes(k.begin(), k.end());
    stride = Sizes(s.begin(), s.end());
    padding = Sizes(p.begin(), p.end());
    dilation = Sizes(d.begin(), d.end());
  }
  at::Tensor scatter(const at::Tensor& g) {
    return backward_op().call(g, offsets.unpack(), input_size, kernel_size, stride, padding, dilation);
  }
  at::Tensor gather(const at::Tensor& x) {
    return gather_op().call(x, offsets.unpack(), kernel_size, stride, padding, dilation);
  }
  void release_variables() override { offsets.reset_data(); }
};

// Of max_pool and of max_pool_gather alike: both send a gradient to the places that the offsets name.
struct MaxPoolNode final : PoolNode {
  std::string name() const override { return "FastnnMaxPoolBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {grads[0].defined() ? scatter(grads[0]) : at::Tensor()};
  }
};

struct MaxPoolBackwardNode final : PoolNode {
  std::string name() const override { return "FastnnMaxPoolBackwardBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {grads[0].defined() ? gather(grads[0]) : at::Tensor()};
  }
};

tuple<at::Tensor, at::Tensor, at::Tensor> max_pool_autograd(c10::DispatchKeySet keys, const at::Tensor& input,
                                                            IntArrayRef kernel_size, IntArrayRef stride,
                                                            IntArrayRef padding, IntArrayRef dilation,
                                                            bool ceil_mode, bool save_offsets,
                                                            bool return_indices) {
  const auto node = make_node<MaxPoolNode>(input);
  tuple<at::Tensor, at::Tensor, at::Tensor> result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = max_pool_op().redispatch(keys & c10::after_autograd_keyset, input, kernel_size, stride, padding,
                                      dilation, ceil_mode, save_offsets || node || has_tangent(input),
                                      return_indices);
  }
  const auto& [output, offsets, indices] = result;
  if (node) {
    node->keep(offsets, input.sym_sizes(), kernel_size, stride, padding, dilation);
    torch::autograd::set_history(output, node);
  }
  if (has_tangent(input)) {
    set_tangent(output, gather_op().call(tangent(input), offsets, kernel_size, stride, padding, dilation));
  }
  return result;
}

at::Tensor max_pool_backward_autograd(c10::DispatchKeySet keys, const at::Tensor& grad_output,
                                      const at::Tensor& offsets, SymIntArrayRef input_size,
                                      IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                                      IntArrayRef dilation) {
  const auto node = make_node<MaxPoolBackwardNode>(grad_output);
  if (node) node->keep(offsets, input_size, kernel_size, stride, padding, dilation);
  at::Tensor grad_input;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    grad_input = backward_op().redispatch(keys & c10::after_autograd_keyset, grad_output, offsets, input_size,
                                          kernel_size, stride, padding, dilation);
  }
  if (node) torch::autograd::set_history(grad_input, node);
  if (has_tangent(grad_output)) {
    set_tangent(grad_input, backward_op().call(tangent(grad_output), offsets, input_size, kernel_size, stride,
                                               padding, dilation));
  }
  return grad_input;
}

at::Tensor max_pool_gather_autograd(c10::DispatchKeySet keys, const at::Tensor& input,
                                    const at::Tensor& offsets, IntArrayRef kernel_size, IntArrayRef stride,
                                    IntArrayRef padding, IntArrayRef dilation) {
  const auto node = make_node<MaxPoolNode>(input);
  if (node) node->keep(offsets, input.sym_sizes(), kernel_size, stride, padding, dilation);
  at::Tensor output;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    output = gather_op().redispatch(keys & c10::after_autograd_keyset, input, offsets, kernel_size, stride,
                                    padding, dilation);
  }
  if (node) torch::autograd::set_history(output, node);
  if (has_tangent(input)) {
    set_tangent(output, gather_op().call(tangent(input), offsets, kernel_size, stride, padding, dilation));
  }
  return output;
}

// ---- torch's signatures ------------------------------------------------------------------------------------

tuple<at::Tensor, at::Tensor> pool(int64_t rank, const at::Tensor& input, IntArrayRef kernel_size,
                                   IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                   bool ceil_mode, bool return_indices) {
  static constexpr const char* kOps[] = {"max_pool1d", "max_pool2d", "max_pool3d"};
  const char* const op = kOps[rank - 1];
  check_input_rank(op, rank, input);
  const Sizes kernels = expand_list(op, "kernel_size", kernel_size, rank);
  const Sizes strides = stride.empty() ? kernels : expand_list(op, "stride", stride, rank);
  const auto [output, offsets, indices] = max_pool_op().call(
      with_batch(rank, input), kernels, strides, expand_list(op, "padding", padding, rank),
      expand_list(op, "dilation", dilation, rank), ceil_mode, /*save_offsets=*/false, return_indices);
  return {without_batch(rank, input, output), return_indices ? without_batch(rank, input, indices) : indices};
}

template <int kRank>
at::Tensor plain(const at::Tensor& input, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                 IntArrayRef dilation, bool ceil_mode) {
  return std::get<0>(pool(kRank, input, kernel_size, stride, padding, dilation, ceil_mode, false));
}

template <int kRank>
tuple<at::Tensor, at::Tensor> with_indices(const at::Tensor& input, IntArrayRef kernel_size, IntArrayRef stride,
                                           IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  return pool(kRank, input, kernel_size, stride, padding, dilation, ceil_mode, true);
}

template <int kRank>
void define(torch::Library& m) {
  const std::string name = "max_pool" + std::to_string(kRank) + "d",
                    list = "int[" + std::to_string(kRank) + "]";
  const std::string arguments = "(Tensor input, " + list + " kernel_size, " + list + " stride=[], " + list +
                                " padding=0, " + list + " dilation=1, bool ceil_mode=False) -> ";
  m.def((name + arguments + "Tensor").c_str(), plain<kRank>);
  m.def((name + "_with_indices" + arguments + "(Tensor, Tensor)").c_str(), with_indices<kRank>);
}

void register_kernels(torch::Library& m) {
  m.impl("max_pool", max_pool);
  m.impl("max_pool_backward", max_pool_backward);
  m.impl("max_pool_gather", max_pool_gather);
}

}  // namespace

// ---- registration ------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  define<1>(m);
  define<2>(m);
  define<3>(m);
  m.def(
      "max_pool(Tensor input, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode, "
      "bool save_offsets, bool return_indices) -> (Tensor output, Tensor offsets, Tensor indices)");
  m.def(
      "max_pool_backward(Tensor grad_output, Tensor offsets, SymInt[] input_size, int[] kernel_size, int[] "
      "stride, "
      "int[] padding, int[] dilation) -> Tensor");
  m.def(
      "max_pool_gather(Tensor input, Tensor offsets, int[] kernel_size, int[] stride, int[] padding, "
      "int[] dilation) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastnn, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, CUDA, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("max_pool", max_pool_autograd);
  m.impl("max_pool_backward", max_pool_backward_autograd);
  m.impl("max_pool_gather", max_pool_gather_autograd);
}

// On the CPU torch pools volumes in float32 under autocast.
TORCH_LIBRARY_IMPL(fastnn, AutocastCPU, m) {
  m.impl("max_pool3d", InFloat32<plain<3>>::call);
  m.impl("max_pool3d_with_indices", InFloat32<with_indices<3>>::call);
}

void export_max_pool(pybind11::module_& m) {
  namespace py = pybind11;
  const auto find = [](const std::string& name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(("fastnn::" + name).c_str(), "");
  };
  // `stride` may be None: the kernel's size.
  const auto define = [&](const std::string& name, const auto& op) {
    m.def(
        name.c_str(),
        [op](const at::Tensor& input, const IntList& kernel_size, const std::optional<IntList>& stride,
             const IntList& padding, const IntList& dilation, bool ceil_mode) {
          return op.call(input, kernel_size, stride.value_or(IntList{}), padding, dilation, ceil_mode);
        },
        py::arg("input"), py::arg("kernel_size"), py::arg("stride") = py::none(),
        py::arg("padding") = IntList{0}, py::arg("dilation") = IntList{1}, py::arg("ceil_mode") = false,
        py::call_guard<py::gil_scoped_release>());
  };
  for (const char* const name : {"max_pool1d", "max_pool2d", "max_pool3d"}) {
    define(name, find(name).typed<decltype(plain<2>)>());
    const std::string pair = std::string(name) + "_with_indices";
    define(pair, find(pair).typed<decltype(with_indices<2>)>());
  }
}

}  // namespace fastnn::bindings
