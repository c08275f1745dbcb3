// Average, L_p and adaptive average pooling: the dispatcher's ops, their checks, autograd and Python functions.
//
// avg_pool1d to 3d and adaptive_avg_pool1d to 3d call `average_pool`, which is free of rank and, without a
// kernel, adaptive. It and average_pool_backward are each other's derivatives. lp_pool1d to 3d call `lp_pool`,
// and the derivative of that lp_pool_backward; where a derivative of this one is wanted, it is made of the
// average's and of torch's pointwise ops instead of its kernel, so that derivatives of every order exist.
#include "../ops/average_pool.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>

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

// ---- kernels ----------------------------------------------------------------------------------------------

Sizes with_channels(IntArrayRef like, IntArrayRef spatial) {
  Sizes size{like[0], like[1]};
  size.append(spatial.begin(), spatial.end());
  return size;
}

void check_divisor(const char* op, std::optional<int64_t> divisor) {
  TORCH_CHECK(!divisor.has_value() || *divisor != 0, op, ": divisor must be not zero, got divisor_override=0");
}

// The output of either forward, in the input's layout.
at::Tensor forward(const char* op, const at::Tensor& input, IntArrayRef output_size, IntArrayRef kernel_size,
                   IntArrayRef stride, IntArrayRef padding, const AveragePoolOptions& options) {
  AveragePoolForwardParams p;
  p.dtype = dtype_of(op, "input", input);
  p.geometry = make_sized_geometry(op, input.sizes(), output_size, kernel_size, stride, padding);
  p.options = options;
  const bool channels_last = suggests_channels_last(input);
  const at::MemoryFormat format = memory_format(channels_last, input.dim());
  p.geometry.layout = channels_last ? Layout::kChannelsLast : Layout::kChannelsFirst;

  BackendCall call(input);
  at::Tensor output =
      at::empty(with_channels(input.sizes(), output_size), input.options().memory_format(format));
  if (output.numel() == 0) return output;
  const at::Tensor x = input.contiguous(format);
  p.x = call.data(x);
  p.y = call.output(output);
  call(&Backend::average_pool_forward, p);
  return output;
}

// grad_output and, of L_p, the input and output of forward; in the layout of `like`.
at::Tensor backward(const char* op, const at::Tensor& grad_output, const at::Tensor& input,
                    const at::Tensor& output, const at::Tensor& like, IntArrayRef input_size,
                    IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                    const AveragePoolOptions& options) {
  AveragePoolBackwardParams p;
  p.dtype = dtype_of(op, "grad_output", grad_output);
  TORCH_CHECK(grad_output.dim() == static_cast<int64_t>(input_size.size()) && grad_output.dim() >= 3 &&
                  grad_output.size(0) == input_size[0] && grad_output.size(1) == input_size[1],
              op, ": grad_output of shape ", grad_output.sizes(), " does not belong to an input of shape ",
              input_size);
  p.geometry = make_sized_geometry(op, input_size, grad_output.sizes().slice(2), kernel_size, stride, padding);
  p.options = options;
  const bool channels_last = suggests_channels_last(like);
  const at::MemoryFormat format = memory_format(channels_last, grad_output.dim());
  p.geometry.layout = channels_last ? Layout::kChannelsLast : Layout::kChannelsFirst;

  BackendCall call(grad_output);
  at::Tensor grad_input = at::empty(input_size, grad_output.options().memory_format(format));
  if (grad_input.numel() == 0) return grad_input;
  if (grad_output.numel() == 0) return grad_input.zero_();
  const at::Tensor g = grad_output.contiguous(format);
  const at::Tensor x = input.defined() ? input.contiguous(format) : input;
  const at::Tensor y = output.defined() ? output.contiguous(format) : output;
  p.grad_y = call.data(g);
  p.x = call.data(x);
  p.y = call.data(y);
  p.grad_x = call.output(grad_input);
  call(&Backend::average_pool_backward, p);
  return grad_input;
}

at::Tensor average_pool(const at::Tensor& input, IntArrayRef output_size, IntArrayRef kernel_size,
                        IntArrayRef stride, IntArrayRef padding, bool count_include_pad,
                        std::optional<int64_t> divisor_override) {
  check_divisor("average_pool", divisor_override);
  return forward("average_pool", input, output_size, kernel_size, stride, padding,
                 {count_include_pad, divisor_override.value_or(0), false, 1});
}

at::Tensor average_pool_backward(const at::Tensor& grad_output, IntArrayRef input_size, IntArrayRef kernel_size,
                                 IntArrayRef stride, IntArrayRef padding, bool count_include_pad,
                                 std::optional<int64_t> divisor_override) {
  check_divisor("average_pool_backward", divisor_override);
  return backward("average_pool_backward", grad_output, {}, {}, grad_output, input_size, kernel_size, stride,
                  padding, {count_include_pad, divisor_override.value_or(0), false, 1});
}

// torch's L_p pooling has no padding, and counts what ceil_mode hangs over the end in no divisor.
AveragePoolOptions power_options(double norm_type) { return {true, 0, true, norm_type}; }

Sizes no_padding(IntArrayRef kernel_size) { return Sizes(kernel_size.size(), 0); }

at::Tensor lp_pool(const at::Tensor& input, IntArrayRef output_size, IntArrayRef kernel_size,
                   IntArrayRef stride, double norm_type) {
  return forward("lp_pool", input, output_size, kernel_size, stride, no_padding(kernel_size),
                 power_options(norm_type));
}

at::Tensor lp_pool_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& output,
                            IntArrayRef kernel_size, IntArrayRef stride, double norm_type) {
  static constexpr const char* kOp = "lp_pool_backward";
  for (const at::Tensor& t : {input, output}) {
    TORCH_CHECK(t.device() == grad_output.device() && t.scalar_type() == grad_output.scalar_type(), kOp,
                ": expected tensors of the type and device of grad_output, ", grad_output.scalar_type(), " on ",
                grad_output.device(), ", got ", t.scalar_type(), " on ", t.device());
  }
  TORCH_CHECK(output.sizes() == grad_output.sizes(), kOp, ": output must have the shape of grad_output, ",
              grad_output.sizes(), ", got ", output.sizes());
  return backward(kOp, grad_output, input, output, input, input.sizes(), kernel_size, stride,
                  no_padding(kernel_size), power_options(norm_type));
}

// ---- the dispatcher's handles ------------------------------------------------------------------------------

using Divisor = std::optional<int64_t>;

const auto& average_op() {
  static const auto op = find_op<at::Tensor(const at::Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef,
                                            IntArrayRef, bool, Divisor)>("fastnn::average_pool");
  return op;
}

const auto& average_backward_op() {
  static const auto op = find_op<at::Tensor(const at::Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef,
                                            IntArrayRef, bool, Divisor)>("fastnn::average_pool_backward");
  return op;
}

const auto& lp_op() {
  static const auto op =
      find_op<at::Tensor(const at::Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef, double)>(
          "fastnn::lp_pool");
  return op;
}

const auto& lp_backward_op() {
  static const auto op = find_op<decltype(lp_pool_backward)>("fastnn::lp_pool_backward");
  return op;
}

// ---- autograd ----------------------------------------------------------------------------------------------

// Of an average and of its backward: `transposed` is the other's call.
struct AveragePoolNode final : Node {
  Sizes kernel_size, stride, padding;
  bool count_include_pad = false, of_backward = false;
  Divisor divisor;
  std::vector<SymInt> size;  // of the other's result: of the input, or the spatial one of the output

  std::string name() const override {
    return of_backward ? "FastnnAveragePoolBackwardBackward" : "FastnnAveragePoolBackward";
  }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return {at::Tensor()};
    const auto& op = of_backward ? average_op() : average_backward_op();
    return {op.call(grads[0], size, kernel_size, stride, padding, count_include_pad, divisor)};
  }
};

at::Tensor linear_autograd(c10::DispatchKeySet keys, bool of_backward, const at::Tensor& argument,
                           SymIntArrayRef size, IntArrayRef kernel_size, IntArrayRef stride,
                           IntArrayRef padding, bool count_include_pad, Divisor divisor) {
  const auto& op = of_backward ? average_backward_op() : average_op();
  const auto node = make_node<AveragePoolNode>(argument);
  at::Tensor result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = op.redispatch(keys & c10::after_autograd_keyset, argument, size, kernel_size, stride, padding,
                           count_include_pad, divisor);
  }
  if (node) {
    node->kernel_size = Sizes(kernel_size.begin(), kernel_size.end());
    node->stride = Sizes(stride.begin(), stride.end());
    node->padding = Sizes(padding.begin(), padding.end());
    node->count_include_pad = count_include_pad;
    node->of_backward = of_backward;
    node->divisor = divisor;
    const SymIntArrayRef own = argument.sym_sizes();
    node->size = (of_backward ? own.slice(2) : own).vec();
    torch::autograd::set_history(result, node);
  }
  if (has_tangent(argument)) {
    set_tangent(result,
                op.call(tangent(argument), size, kernel_size, stride, padding, count_include_pad, divisor));
  }
  return result;
}

at::Tensor average_pool_autograd(c10::DispatchKeySet keys, const at::Tensor& input, SymIntArrayRef output_size,
                                 IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                                 bool count_include_pad, Divisor divisor) {
  return linear_autograd(keys, false, input, output_size, kernel_size, stride, padding, count_include_pad,
                         divisor);
}

at::Tensor average_pool_backward_autograd(c10::DispatchKeySet keys, const at::Tensor& grad_output,
                                          SymIntArrayRef input_size, IntArrayRef kernel_size,
                                          IntArrayRef stride, IntArrayRef padding, bool count_include_pad,
                                          Divisor divisor) {
  return linear_autograd(keys, true, grad_output, input_size, kernel_size, stride, padding, count_include_pad,
                         divisor);
}

// K y^(1 - p) g with the window's volume K, 0 where y is: what multiplies the average's derivatives in those of
// L_p.
at::Tensor by_root(const at::Tensor& g, const at::Tensor& y, IntArrayRef kernel_size, double norm_type) {
  const auto volume = static_cast<double>(c10::multiply_integers(kernel_size));
  const at::Tensor zero = y == 0;
  return (g * volume * at::where(zero, 1, y).pow(1 - norm_type)).masked_fill(zero, 0);
}

struct LpPoolNode final : Node {
  Sizes kernel_size, stride;
  double norm_type = 0;
  SavedVariable input, output;

  std::string name() const override { return "FastnnLpPoolBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return {at::Tensor()};
    return {lp_backward_op().call(grads[0], input.unpack(), output.unpack(getptr()), kernel_size, stride,
                                  norm_type)};
  }
  void release_variables() override {
    input.reset_data();
    output.reset_data();
  }
};

at::Tensor lp_pool_autograd(c10::DispatchKeySet keys, const at::Tensor& input, SymIntArrayRef output_size,
                            IntArrayRef kernel_size, IntArrayRef stride, double norm_type) {
  const auto node = make_node<LpPoolNode>(input);
  at::Tensor output;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    output = lp_op().redispatch(keys & c10::after_autograd_keyset, input, output_size, kernel_size, stride,
                                norm_type);
  }
  if (node) {
    node->kernel_size = Sizes(kernel_size.begin(), kernel_size.end());
    node->stride = Sizes(stride.begin(), stride.end());
    node->norm_type = norm_type;
    node->input = save(input);
    torch::autograd::set_history(output, node);
  }
  if (has_tangent(input)) {
    const at::Tensor x = primal(input);
    const at::Tensor average =
        average_op().call(x.pow(norm_type - 1) * tangent(input), output_size, kernel_size, stride,
                          no_padding(kernel_size), true, std::nullopt);
    set_tangent(output, by_root(average, output, kernel_size, norm_type));
  }
  // With its tangent: the gradient has one by it.
  if (node) node->output = SavedVariable(output, /*is_output=*/true);
  return output;
}

at::Tensor lp_pool_backward_autograd(c10::DispatchKeySet keys, const at::Tensor& grad_output,
                                     const at::Tensor& input, const at::Tensor& output, IntArrayRef kernel_size,
                                     IntArrayRef stride, double norm_type) {
  if (torch::autograd::compute_requires_grad(grad_output, input, output) ||
      any_tangent(grad_output, input, output)) {
    return input.pow(norm_type - 1) *
           average_backward_op().call(by_root(grad_output, output, kernel_size, norm_type), input.sym_sizes(),
                                      kernel_size, stride, no_padding(kernel_size), true, std::nullopt);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return lp_backward_op().redispatch(keys & c10::after_autograd_keyset, grad_output, input, output, kernel_size,
                                     stride, norm_type);
}

// ---- torch's signatures ------------------------------------------------------------------------------------

template <int kRank>
at::Tensor avg_pool(const at::Tensor& input, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                    bool ceil_mode, bool count_include_pad, Divisor divisor) {
  static constexpr const char* kOp = kRank == 1 ? "avg_pool1d" : kRank == 2 ? "avg_pool2d" : "avg_pool3d";
  check_input_rank(kOp, kRank, input);
  const Sizes kernels = expand_list(kOp, "kernel_size", kernel_size, kRank);
  const Sizes strides = stride.empty() ? kernels : expand_list(kOp, "stride", stride, kRank);
  const Sizes pads = expand_list(kOp, "padding", padding, kRank);
  const at::Tensor x = with_batch(kRank, input);
  for (int d = 0; d < kRank; ++d) {
    TORCH_CHECK(pads[d] >= 0, kOp, ": pad must be non-negative, but got padding=", IntArrayRef(pads));
    TORCH_CHECK(pads[d] <= kernels[d] / 2, kOp,
                ": pad should be at most half of effective kernel size, but got padding=", IntArrayRef(pads),
                " and kernel_size=", IntArrayRef(kernels));
    TORCH_CHECK(kRank < 3 || x.sym_size(d + 2) >= kernels[d], kOp, ": input of size ", input.sym_sizes(),
                " is smaller than kernel_size=", IntArrayRef(kernels));
  }
  check_divisor(kOp, divisor);
  const SymSizes size = pooled_sizes(kOp, x, kernels, strides, pads, ceil_mode);
  return without_batch(kRank, input,
                       average_op().call(x, size, kernels, strides, pads, count_include_pad, divisor));
}

at::Tensor avg_pool1d(const at::Tensor& input, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                      bool ceil_mode, bool count_include_pad) {
  return avg_pool<1>(input, kernel_size, stride, padding, ceil_mode, count_include_pad, std::nullopt);
}

template <int kRank>
at::Tensor lp_pool_of(const at::Tensor& input, double norm_type, IntArrayRef kernel_size, IntArrayRef stride,
                      bool ceil_mode) {
  static constexpr const char* kOp = kRank == 1 ? "lp_pool1d" : kRank == 2 ? "lp_pool2d" : "lp_pool3d";
  check_input_rank(kOp, kRank, input);
  const Sizes kernels = expand_list(kOp, "kernel_size", kernel_size, kRank);
  const Sizes strides = stride.empty() ? kernels : expand_list(kOp, "stride", stride, kRank);
  const at::Tensor x = with_batch(kRank, input);
  if (std::isinf(norm_type)) {
    // The largest magnitude, or the smallest.
    const bool largest = norm_type > 0;
    const at::Tensor magnitude = largest ? x.abs() : -x.abs();
    const at::Tensor y = std::get<0>(max_pool_op().call(magnitude, kernels, strides, no_padding(kernels),
                                                        Sizes(kRank, 1), ceil_mode, false, false));
    return without_batch(kRank, input, largest ? y : -y);
  }
  const SymSizes size = pooled_sizes(kOp, x, kernels, strides, no_padding(kernels), ceil_mode);
  return without_batch(kRank, input, lp_op().call(x, size, kernels, strides, norm_type));
}

template <int kRank>
at::Tensor adaptive_avg_pool(const at::Tensor& input, SymIntArrayRef output_size) {
  static constexpr const char* kOp = kRank == 1   ? "adaptive_avg_pool1d"
                                     : kRank == 2 ? "adaptive_avg_pool2d"
                                                  : "adaptive_avg_pool3d";
  check_input_rank(kOp, kRank, input);
  TORCH_CHECK(output_size.size() == kRank, kOp, ": 'output_size' should contain ", kRank,
              " values, got output_size=", output_size);
  for (const SymInt& size : output_size) {
    TORCH_CHECK(size >= 0, kOp,
                ": elements of output_size must be greater than or equal to 0, got output_size=", output_size);
  }
  const at::Tensor x = with_batch(kRank, input);
  return without_batch(kRank, input, average_op().call(x, output_size, {}, {}, {}, false, std::nullopt));
}

void register_kernels(torch::Library& m) {
  m.impl("average_pool", average_pool);
  m.impl("average_pool_backward", average_pool_backward);
  m.impl("lp_pool", lp_pool);
  m.impl("lp_pool_backward", lp_pool_backward);
}

template <int kRank>
void define(torch::Library& m) {
  const std::string rank = std::to_string(kRank), list = "int[" + rank + "]";
  const std::string window = list + " kernel_size, " + list + " stride=[], ";
  if constexpr (kRank > 1) {
    m.def(
        ("avg_pool" + rank + "d(Tensor input, " + window + list +
         " padding=0, bool ceil_mode=False, bool count_include_pad=True, int? divisor_override=None) -> Tensor")
            .c_str(),
        avg_pool<kRank>);
  }
  m.def(("lp_pool" + rank + "d(Tensor input, float norm_type, " + window + "bool ceil_mode=False) -> Tensor")
            .c_str(),
        lp_pool_of<kRank>);
  m.def(("adaptive_avg_pool" + rank + "d(Tensor input, SymInt[" + rank + "] output_size) -> Tensor").c_str(),
        adaptive_avg_pool<kRank>);
}

}  // namespace

// ---- registration ------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "avg_pool1d(Tensor input, int[1] kernel_size, int[1] stride=[], int[1] padding=0, bool ceil_mode=False, "
      "bool count_include_pad=True) -> Tensor",
      avg_pool1d);
  define<1>(m);
  define<2>(m);
  define<3>(m);
  m.def(
      "average_pool(Tensor input, SymInt[] output_size, int[] kernel_size, int[] stride, int[] padding, "
      "bool count_include_pad, int? divisor_override) -> Tensor");
  m.def(
      "average_pool_backward(Tensor grad_output, SymInt[] input_size, int[] kernel_size, int[] stride, "
      "int[] padding, bool count_include_pad, int? divisor_override) -> Tensor");
  m.def(
      "lp_pool(Tensor input, SymInt[] output_size, int[] kernel_size, int[] stride, float norm_type) -> "
      "Tensor");
  m.def(
      "lp_pool_backward(Tensor grad_output, Tensor input, Tensor output, int[] kernel_size, int[] stride, "
      "float norm_type) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastnn, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, CUDA, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("average_pool", average_pool_autograd);
  m.impl("average_pool_backward", average_pool_backward_autograd);
  m.impl("lp_pool", lp_pool_autograd);
  m.impl("lp_pool_backward", lp_pool_backward_autograd);
}
// As torch has it: on the CPU volumes are pooled in float32, on CUDA powers are taken in it.
TORCH_LIBRARY_IMPL(fastnn, AutocastCPU, m) {
  m.impl("avg_pool3d", InFloat32<avg_pool<3>>::call);
  m.impl("lp_pool3d", InFloat32<lp_pool_of<3>>::call);
  m.impl("adaptive_avg_pool3d", InFloat32<adaptive_avg_pool<3>>::call);
}
TORCH_LIBRARY_IMPL(fastnn, AutocastCUDA, m) {
  m.impl("lp_pool1d", InFloat32<lp_pool_of<1>>::call);
  m.impl("lp_pool2d", InFloat32<lp_pool_of<2>>::call);
  m.impl("lp_pool3d", InFloat32<lp_pool_of<3>>::call);
}

void export_average_pool(pybind11::module_& m) {
  namespace py = pybind11;
  const auto find = [](const std::string& name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(("fastnn::" + name).c_str(), "");
  };
  const auto release = py::call_guard<py::gil_scoped_release>();
  // `stride` may be None: the kernel's size.
  m.def(
      "avg_pool1d",
      [op = find("avg_pool1d").typed<decltype(avg_pool1d)>()](
          const at::Tensor& input, const IntList& kernel_size, const std::optional<IntList>& stride,
          const IntList& padding, bool ceil_mode, bool count_include_pad) {
        return op.call(input, kernel_size, stride.value_or(IntList{}), padding, ceil_mode, count_include_pad);
      },
      release);
  for (const std::string rank : {"1d", "2d", "3d"}) {
    if (rank != "1d") {
      m.def(
          ("avg_pool" + rank).c_str(),
          [op = find("avg_pool" + rank).typed<decltype(avg_pool<2>)>()](
              const at::Tensor& input, const IntList& kernel_size, const std::optional<IntList>& stride,
              const IntList& padding, bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor) {
            return op.call(input, kernel_size, stride.value_or(IntList{}), padding, ceil_mode,
                           count_include_pad, divisor);
          },
          release);
    }
    m.def(("lp_pool" + rank).c_str(),
          [op = find("lp_pool" + rank).typed<decltype(lp_pool_of<2>)>()](
              const at::Tensor& input, double norm_type, const IntList& kernel_size,
              const std::optional<IntList>& stride, bool ceil_mode) {
            return op.call(input, norm_type, kernel_size, stride.value_or(IntList{}), ceil_mode);
          },
          release);
    m.def(("adaptive_avg_pool" + rank).c_str(),
          [op = find("adaptive_avg_pool" + rank).typed<decltype(adaptive_avg_pool<2>)>(),
           size = static_cast<size_t>(rank[0] - '0')](const at::Tensor& input, const IntList& output_size) {
            SymSizes sizes(output_size.begin(), output_size.end());
            if (sizes.size() == 1) sizes.resize(size, sizes[0]);
            return op.call(input, sizes);
          },
          release);
  }
}

}  // namespace fastnn::bindings
