// Pooling with switches: unpooling, adaptive and fractional max pooling. The dispatcher's ops, their checks,
// autograd and Python functions.
//
// Switches are int64 positions in a plane. Of what they choose, `switch_gather` is the derivative, and of that
// `switch_sum`, its transpose; these two are each other's, so that derivatives of every order exist.
// max_unpool1d to 3d call `switch_place`, adaptive_max_pool1d to 3d and fractional_max_pool2d and 3d call
// `switch_pool`. Adaptive windows of one size are sliding ones, which `max_pool` takes, and saves a byte for
// each.
//
// The kernels have planes one after another: other layouts are copied, and the result has the layout that came
// in.
#include "../ops/pool_switches.h"

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

using SwitchEntry = Status (*Backend::*)(const SwitchParams&, Stream);

// [N, C, spatial] and indices of that shape (sum, place) or of another (gather), to [N, C, size].
at::Tensor run_switches(const char* op, SwitchEntry entry, const at::Tensor& from, const at::Tensor& indices,
                        IntArrayRef size, bool gathers) {
  SwitchParams p;
  p.dtype = dtype_of(op, "input", from);
  TORCH_CHECK(from.dim() >= 3 && from.dim() <= 5 && indices.dim() == from.dim(), op,
              ": expected input and indices of 3 to 5 dimensions, got ", from.sizes(), " and ",
              indices.sizes());
  TORCH_CHECK(indices.scalar_type() == at::kLong, op,
              ": elements in indices should be type int64 but got: ", indices.scalar_type());
  TORCH_CHECK(indices.device() == from.device(), op,
              ": expected input and indices to be on the same device, but got ", from.device(), " and ",
              indices.device());
  if (gathers) {
    TORCH_CHECK(indices.size(0) == from.size(0) && indices.size(1) == from.size(1), op,
                ": expected indices to have the batch and the channels of an input of shape ", from.sizes(),
                ", got shape ", indices.sizes());
  } else {
    TORCH_CHECK(indices.sizes() == from.sizes(), op,
                ": Expected shape of indices to be same as that of the input tensor (", from.sizes(),
                ") but got indices tensor with shape: ", indices.sizes());
  }
  const IntArrayRef choices = gathers ? from.sizes().slice(2) : size;
  p.planes = from.size(0) * from.size(1);
  p.count = c10::multiply_integers(indices.sizes().slice(2));
  p.size = c10::multiply_integers(choices);

  BackendCall call(from);
  Sizes shape{from.size(0), from.size(1)};
  shape.append(size.begin(), size.end());
  at::Tensor to = at::empty(shape, from.options());
  int64_t first_invalid = -1;
  if (to.numel() > 0 || indices.numel() > 0) {
    const at::Tensor x = from.contiguous(), switches = indices.contiguous();
    p.from = call.data(x);
    p.indices = static_cast<const int64_t*>(call.data(switches));
    p.to = call.output(to);
    p.first_invalid = call.runs_cuda_kernels() ? nullptr : &first_invalid;
    call(entry, p);
    TORCH_CHECK(first_invalid < 0, op, ": Found an invalid max index: ",
                first_invalid < 0 ? 0 : switches.data_ptr<int64_t>()[first_invalid], " (expected one of [0, ",
                p.size, "), positions of a plane of size ", choices, ")");
  }
  return suggests_channels_last(from) ? to.contiguous(memory_format(true, to.dim())) : to;
}

at::Tensor switch_gather(const at::Tensor& input, const at::Tensor& indices) {
  return run_switches("switch_gather", &Backend::switch_gather, input, indices, indices.sizes().slice(2), true);
}

at::Tensor switch_sum(const at::Tensor& input, const at::Tensor& indices, IntArrayRef size) {
  return run_switches("switch_sum", &Backend::switch_sum, input, indices, size, false);
}

at::Tensor switch_place(const at::Tensor& input, const at::Tensor& indices, IntArrayRef size) {
  return run_switches("switch_place", &Backend::switch_place, input, indices, size, false);
}

tuple<at::Tensor, at::Tensor> switch_pool(const at::Tensor& input, IntArrayRef output_size,
                                          IntArrayRef kernel_size, const OptionalTensor& samples) {
  static constexpr const char* kOp = "switch_pool";
  SwitchPoolParams p;
  p.dtype = dtype_of(kOp, "input", input);
  const auto rank = static_cast<int>(input.dim()) - 2;
  const Sizes ones(rank, 1), none(rank, 0);
  const bool adaptive = kernel_size.empty();
  TORCH_CHECK(adaptive != samples.has_value(), kOp, ": fractional windows have a kernel_size and samples");
  p.geometry =
      make_pool_geometry(kOp, input.sizes(), adaptive ? IntArrayRef(ones) : kernel_size, ones, none, ones);
  p.geometry.windows = adaptive ? Windows::kAdaptive : Windows::kFractional;
  p.geometry.layout = Layout::kChannelsFirst;
  TORCH_CHECK(static_cast<int>(output_size.size()) == rank, kOp, ": expected output_size to have ", rank,
              " values, got output_size=", output_size);
  fill_spatial(output_size, 1, p.geometry.out);
  p.rank = rank;
  p.samples = nullptr;

  BackendCall call(input);
  Sizes shape{input.size(0), input.size(1)};
  shape.append(output_size.begin(), output_size.end());
  at::Tensor output = at::empty(shape, input.options());
  at::Tensor indices = at::empty(shape, input.options().dtype(at::kLong));
  at::Tensor drawn;
  if (!adaptive) {
    const PoolGeometry& g = p.geometry;
    for (int d = 0; d < kSpatialDims; ++d) {
      TORCH_CHECK(g.out[d] + g.kernel[d] - 1 <= g.in[d], kOp, ": kernel_size=", kernel_size,
                  " is too large for output_size=", output_size, " of an input of shape ", input.sizes());
    }
    TORCH_CHECK(samples->scalar_type() == input.scalar_type(), kOp,
                ": Expect _random_samples to have the same dtype as input, ", input.scalar_type(), ", got ",
                samples->scalar_type());
    TORCH_CHECK(samples->device() == input.device(), kOp, ": expected _random_samples on ", input.device(),
                ", got ", samples->device());
    TORCH_CHECK(samples->dim() == 3 && samples->size(0) >= input.size(0) && samples->size(1) == input.size(1) &&
                    samples->size(2) == rank,
                kOp, ": expected _random_samples of shape [", input.size(0), ", ", input.size(1), ", ", rank,
                "], got ", samples->sizes());
    drawn = samples->narrow(0, 0, input.size(0));
    // torch's numbers of a plane are width first, those of a volume depth first.
    drawn = rank == 2 ? drawn.flip(2) : drawn.contiguous();
    p.samples = call.data(drawn);
  }
  if (output.numel() > 0) {
    const at::Tensor x = input.contiguous();
    p.x = call.data(x);
    p.y = call.output(output);
    p.indices = static_cast<int64_t*>(call.output(indices));
    call(&Backend::switch_pool, p);
  }
  if (adaptive && suggests_channels_last(input)) {
    const auto format = memory_format(true, output.dim());
    return {output.contiguous(format), indices.contiguous(format)};
  }
  return {output, indices};
}

// ---- the dispatcher's handles ------------------------------------------------------------------------------

const auto& gather_op() {
  static const auto op = find_op<decltype(switch_gather)>("fastnn::switch_gather");
  return op;
}

using Scatter = at::Tensor(const at::Tensor&, const at::Tensor&, SymIntArrayRef);

const auto& sum_op() {
  static const auto op = find_op<Scatter>("fastnn::switch_sum");
  return op;
}

const auto& place_op() {
  static const auto op = find_op<Scatter>("fastnn::switch_place");
  return op;
}

const auto& pool_op() {
  static const auto op = find_op<tuple<at::Tensor, at::Tensor>(const at::Tensor&, SymIntArrayRef, IntArrayRef,
                                                               const OptionalTensor&)>("fastnn::switch_pool");
  return op;
}

// ---- autograd ----------------------------------------------------------------------------------------------

// Of sum and place: each value has the gradient of the position that it went to.
struct SwitchScatterNode final : Node {
  SavedVariable indices;

  std::string name() const override { return "FastnnSwitchScatterBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {grads[0].defined() ? gather_op().call(grads[0], indices.unpack()) : at::Tensor()};
  }
  void release_variables() override { indices.reset_data(); }
};

// Of gather and of pooling: each position has the gradients of the values that chose it.
struct SwitchGatherNode final : Node {
  SavedVariable indices;
  std::vector<SymInt> size;

  std::string name() const override { return "FastnnSwitchGatherBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {grads[0].defined() ? sum_op().call(grads[0], indices.unpack(), size) : at::Tensor()};
  }
  void release_variables() override { indices.reset_data(); }
};

at::Tensor scatter_autograd(const c10::TypedOperatorHandle<Scatter>& op, c10::DispatchKeySet keys,
                            const at::Tensor& input, const at::Tensor& indices, SymIntArrayRef size) {
  const auto node = make_node<SwitchScatterNode>(input);
  at::Tensor output;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    output = op.redispatch(keys & c10::after_autograd_keyset, input, indices, size);
  }
  if (node) {
    node->indices = save(indices);
    torch::autograd::set_history(output, node);
  }
  if (has_tangent(input)) set_tangent(output, op.call(tangent(input), indices, size));
  return output;
}

at::Tensor switch_sum_autograd(c10::DispatchKeySet keys, const at::Tensor& input, const at::Tensor& indices,
                               SymIntArrayRef size) {
  return scatter_autograd(sum_op(), keys, input, indices, size);
}

at::Tensor switch_place_autograd(c10::DispatchKeySet keys, const at::Tensor& input, const at::Tensor& indices,
                                 SymIntArrayRef size) {
  return scatter_autograd(place_op(), keys, input, indices, size);
}

at::Tensor switch_gather_autograd(c10::DispatchKeySet keys, const at::Tensor& input,
                                  const at::Tensor& indices) {
  const auto node = make_node<SwitchGatherNode>(input);
  at::Tensor output;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    output = gather_op().redispatch(keys & c10::after_autograd_keyset, input, indices);
  }
  if (node) {
    node->indices = save(indices);
    node->size = input.sym_sizes().slice(2).vec();
    torch::autograd::set_history(output, node);
  }
  if (has_tangent(input)) set_tangent(output, gather_op().call(tangent(input), indices));
  return output;
}

tuple<at::Tensor, at::Tensor> switch_pool_autograd(c10::DispatchKeySet keys, const at::Tensor& input,
                                                   SymIntArrayRef output_size, IntArrayRef kernel_size,
                                                   const OptionalTensor& samples) {
  const auto node = make_node<SwitchGatherNode>(input);
  tuple<at::Tensor, at::Tensor> result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = pool_op().redispatch(keys & c10::after_autograd_keyset, input, output_size, kernel_size, samples);
  }
  const auto& [output, indices] = result;
  if (node) {
    node->indices = save(indices);
    node->size = input.sym_sizes().slice(2).vec();
    torch::autograd::set_history(output, node);
  }
  if (has_tangent(input)) set_tangent(output, gather_op().call(tangent(input), indices));
  return result;
}

// ---- torch's signatures ------------------------------------------------------------------------------------

template <int kRank>
at::Tensor max_unpool(const at::Tensor& input, const at::Tensor& indices, IntArrayRef kernel_size,
                      IntArrayRef stride, IntArrayRef padding, at::OptionalSymIntArrayRef output_size) {
  static constexpr const char* kOp = kRank == 1 ? "max_unpool1d" : kRank == 2 ? "max_unpool2d" : "max_unpool3d";
  check_input_rank(kOp, kRank, input);
  const Sizes kernels = expand_list(kOp, "kernel_size", kernel_size, kRank);
  const Sizes strides = stride.empty() ? kernels : expand_list(kOp, "stride", stride, kRank);
  const Sizes pads = expand_list(kOp, "padding", padding, kRank);
  const at::Tensor x = with_batch(kRank, input);
  SymSizes size;
  for (int d = 0; d < kRank; ++d) {
    TORCH_CHECK(strides[d] > 0, kOp,
                ": strides should be greater than zero, but got stride=", IntArrayRef(strides));
    size.push_back((x.sym_size(d + 2) - 1) * strides[d] + kernels[d] - 2 * pads[d]);
  }
  if (output_size.has_value()) {
    SymIntArrayRef wanted = *output_size;
    if (wanted.size() == kRank + 2) wanted = wanted.slice(2);
    TORCH_CHECK_VALUE(wanted.size() == kRank, kOp, ": output_size should be a sequence containing ", kRank,
                      " or ", kRank + 2, " elements, but it has a length of ", output_size->size());
    for (int d = 0; d < kRank; ++d) {
      TORCH_CHECK_VALUE(wanted[d] > size[d] - strides[d] && wanted[d] < size[d] + strides[d], kOp,
                        ": invalid output_size ", *output_size, ": size ", d, " must lie between ",
                        size[d] - strides[d], " and ", size[d] + strides[d], ", these two not included");
      size[d] = wanted[d];
    }
  }
  for (int d = 0; d < kRank; ++d) {
    TORCH_CHECK_VALUE(size[d] >= 0, kOp, ": output_size must not be negative, but got ", SymIntArrayRef(size));
  }
  TORCH_CHECK(indices.sym_sizes() == input.sym_sizes(), kOp,
              ": Expected shape of indices to be same as that of the input tensor (", input.sym_sizes(),
              ") but got indices tensor with shape: ", indices.sym_sizes());
  for (int64_t d = 1; d < x.dim(); ++d) {
    TORCH_CHECK(x.sym_size(d) > 0, kOp,
                ": Expected input to have non-zero size for non-batch dimensions, but got input of size: ",
                input.sym_sizes());
  }
  return without_batch(kRank, input, place_op().call(x, with_batch(kRank, indices), size));
}

template <int kRank>
tuple<at::Tensor, at::Tensor> adaptive_max_pool(const at::Tensor& input, SymIntArrayRef output_size,
                                                bool return_indices) {
  static constexpr const char* kOp = kRank == 1   ? "adaptive_max_pool1d"
                                     : kRank == 2 ? "adaptive_max_pool2d"
                                                  : "adaptive_max_pool3d";
  check_input_rank(kOp, kRank, input);
  TORCH_CHECK(output_size.size() == kRank, kOp, ": 'output_size' should contain ", kRank,
              " values, got output_size=", output_size);
  const at::Tensor x = with_batch(kRank, input);
  Sizes kernels;
  for (int d = 0; d < kRank; ++d) {
    TORCH_CHECK(output_size[d] >= 0, kOp,
                ": elements of output_size must be greater than or equal to 0, got output_size=", output_size);
    const SymInt in = x.sym_size(d + 2);
    if (output_size[d] > 0 && in % output_size[d] == 0) {
      kernels.push_back((in / output_size[d]).guard_int(__FILE__, __LINE__));
    }
  }
  if (kernels.size() == kRank) {
    const auto [output, offsets, indices] =
        max_pool_op().call(x, kernels, kernels, Sizes(kRank, 0), Sizes(kRank, 1), false, false, return_indices);
    return {without_batch(kRank, input, output),
            return_indices ? without_batch(kRank, input, indices) : indices};
  }
  const auto [output, indices] = pool_op().call(x, output_size, {}, std::nullopt);
  return {without_batch(kRank, input, output), without_batch(kRank, input, indices)};
}

template <int kRank>
tuple<at::Tensor, at::Tensor> fractional_max_pool(const at::Tensor& input, IntArrayRef kernel_size,
                                                  SymIntArrayRef output_size,
                                                  const at::Tensor& random_samples) {
  static constexpr const char* kOp = kRank == 2 ? "fractional_max_pool2d" : "fractional_max_pool3d";
  check_input_rank(kOp, kRank, input);
  const Sizes kernels = expand_list(kOp, "kernel_size", kernel_size, kRank);
  TORCH_CHECK(output_size.size() == kRank, kOp, ": output_size must have ", kRank,
              " values, got output_size=", output_size);
  const auto [output, indices] = pool_op().call(with_batch(kRank, input), output_size, kernels, random_samples);
  return {without_batch(kRank, input, output), without_batch(kRank, input, indices)};
}

void register_kernels(torch::Library& m) {
  m.impl("switch_gather", switch_gather);
  m.impl("switch_sum", switch_sum);
  m.impl("switch_place", switch_place);
  m.impl("switch_pool", switch_pool);
}

template <int kRank>
void define(torch::Library& m) {
  const std::string rank = std::to_string(kRank), list = "int[" + rank + "]", size = "SymInt[" + rank + "]";
  m.def(("max_unpool" + rank + "d(Tensor input, Tensor indices, " + list + " kernel_size, " + list +
         " stride=[], " + list + " padding=0, SymInt[]? output_size=None) -> Tensor")
            .c_str(),
        max_unpool<kRank>);
  m.def(("adaptive_max_pool" + rank + "d(Tensor input, " + size +
         " output_size, bool return_indices=True) -> (Tensor, Tensor)")
            .c_str(),
        adaptive_max_pool<kRank>);
  if constexpr (kRank > 1) {
    m.def(("fractional_max_pool" + rank + "d(Tensor input, " + list + " kernel_size, " + size +
           " output_size, Tensor random_samples) -> (Tensor, Tensor)")
              .c_str(),
          fractional_max_pool<kRank>);
  }
}

}  // namespace

// ---- registration ------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  define<1>(m);
  define<2>(m);
  define<3>(m);
  m.def("switch_gather(Tensor input, Tensor indices) -> Tensor");
  m.def("switch_sum(Tensor input, Tensor indices, SymInt[] size) -> Tensor");
  m.def("switch_place(Tensor input, Tensor indices, SymInt[] size) -> Tensor");
  m.def(
      "switch_pool(Tensor input, SymInt[] output_size, int[] kernel_size, Tensor? samples) -> (Tensor output, "
      "Tensor indices)");
}

TORCH_LIBRARY_IMPL(fastnn, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, CUDA, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("switch_gather", switch_gather_autograd);
  m.impl("switch_sum", switch_sum_autograd);
  m.impl("switch_place", switch_place_autograd);
  m.impl("switch_pool", switch_pool_autograd);
}
// As torch has it on the CPU.
TORCH_LIBRARY_IMPL(fastnn, AutocastCPU, m) {
  m.impl("max_unpool1d", InFloat32<max_unpool<1>>::call);
  m.impl("max_unpool2d", InFloat32<max_unpool<2>>::call);
  m.impl("max_unpool3d", InFloat32<max_unpool<3>>::call);
  m.impl("adaptive_max_pool3d", InFloat32<adaptive_max_pool<3>>::call);
  m.impl("fractional_max_pool2d", InFloat32<fractional_max_pool<2>>::call);
  m.impl("fractional_max_pool3d", InFloat32<fractional_max_pool<3>>::call);
}

void export_pool_switches(pybind11::module_& m) {
  namespace py = pybind11;
  const auto find = [](const std::string& name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(("fastnn::" + name).c_str(), "");
  };
  const auto expand = [](const IntList& list, size_t rank) {
    SymSizes sizes(list.begin(), list.end());
    if (sizes.size() == 1) sizes.resize(rank, sizes[0]);
    return sizes;
  };
  const auto release = py::call_guard<py::gil_scoped_release>();
  for (const std::string rank : {"1d", "2d", "3d"}) {
    const auto size = static_cast<size_t>(rank[0] - '0');
    m.def(("max_unpool" + rank).c_str(),
          [op = find("max_unpool" + rank).typed<decltype(max_unpool<2>)>()](
              const at::Tensor& input, const at::Tensor& indices, const IntList& kernel_size,
              const std::optional<IntList>& stride, const IntList& padding,
              const std::optional<IntList>& output_size) {
            const IntList given = output_size.value_or(IntList{});
            const SymSizes sizes(given.begin(), given.end());
            return op.call(input, indices, kernel_size, stride.value_or(IntList{}), padding,
                           output_size.has_value() ? at::OptionalSymIntArrayRef(sizes) : std::nullopt);
          },
          release);
    m.def(("adaptive_max_pool" + rank).c_str(),
          [op = find("adaptive_max_pool" + rank).typed<decltype(adaptive_max_pool<2>)>(), size, expand](
              const at::Tensor& input, const IntList& output_size, bool return_indices) {
            return op.call(input, expand(output_size, size), return_indices);
          },
          release);
    if (size == 1) continue;
    m.def(("fractional_max_pool" + rank).c_str(),
          [op = find("fractional_max_pool" + rank).typed<decltype(fractional_max_pool<2>)>(), size, expand](
              const at::Tensor& input, const IntList& kernel_size, const IntList& output_size,
              const at::Tensor& random_samples) {
            return op.call(input, kernel_size, expand(output_size, size), random_samples);
          },
          release);
  }
}

}  // namespace fastnn::bindings
