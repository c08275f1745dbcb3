// conv1d, conv2d and conv3d: torch's arguments, autocast and Python functions.
//
// Each checks its arguments and calls `convolution`, which is free of rank (conv_ops.h).
#include <ATen/ATen.h>
#include <torch/library.h>

#include <string>
#include <type_traits>

#include "autocast.h"
#include "conv_choice.h"
#include "conv_ops.h"
#include "conv_rank.h"
#include "python.h"
#include "tensors.h"

namespace fastnn::bindings {

namespace {

constexpr const char* kOps[] = {"conv1d", "conv2d", "conv3d"};

// Runs a convolution of fixed rank on batched or unbatched input; `resolve_padding` gives (begin, end) pairs.
template <typename ResolvePadding>
at::Tensor convolve(const char* op, int64_t rank, const at::Tensor& input, const at::Tensor& weight,
                    const OptionalTensor& bias, IntArrayRef stride, IntArrayRef dilation, int64_t groups,
                    StringView activation, double alpha, const ResolvePadding& resolve_padding) {
  check_rank(op, rank, input, weight);
  conv_activation(op, activation, alpha);  // of the function that was called, and of tensors without data
  const Sizes strides = expand_list(op, "stride", stride, rank);
  const Sizes dilations = expand_list(op, "dilation", dilation, rank);
  const Sizes padding = resolve_padding(strides, dilations);
  return batched(rank, input, [&](const at::Tensor& x) {
    return convolution_op().call(x, weight, bias, strides, padding, dilations, groups, activation, alpha);
  });
}

template <int64_t rank>
at::Tensor conv(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                StringView activation, double alpha) {
  static constexpr const char* kOp = kOps[rank - 1];
  return convolve(kOp, rank, input, weight, bias, stride, dilation, groups, activation, alpha,
                  [&](const Sizes&, const Sizes&) {
                    Sizes pairs;
                    for (const int64_t each : expand_list(kOp, "padding", padding, rank)) pairs.append(2, each);
                    return pairs;
                  });
}

template <int64_t rank>
at::Tensor conv_padding(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                        IntArrayRef stride, StringView padding, IntArrayRef dilation, int64_t groups,
                        StringView activation, double alpha) {
  static constexpr const char* kOp = kOps[rank - 1];
  return convolve(
      kOp, rank, input, weight, bias, stride, dilation, groups, activation, alpha,
      [&](const Sizes& strides, const Sizes& dilations) {
        if (padding == "valid") return Sizes(2 * rank, 0);
        TORCH_CHECK(padding == "same", kOp, ": Invalid padding string: '", padding,
                    "'; expected 'same' or 'valid'");
        Sizes pairs;
        for (int64_t d = 0; d < rank; ++d) {
          TORCH_CHECK(
              strides[d] == 1, kOp,
              ": padding='same' is not supported for strided convolutions, got stride=", IntArrayRef(strides));
          // An odd total puts the extra zero at the end.
          const int64_t total = dilations[d] * (weight.sym_size(2 + d).guard_int(__FILE__, __LINE__) - 1);
          pairs.push_back(total / 2);
          pairs.push_back(total - total / 2);
        }
        return pairs;
      });
}

template <typename Signature, int64_t rank>
const auto& rank_op() {
  static constexpr const char* kOverload = std::is_same_v<Signature, ConvByName> ? "padding" : "";
  static const auto op = find_op<Signature>(std::string("fastnn::") + kOps[rank - 1], kOverload);
  return op;
}

template <int64_t rank, typename Signature, typename Padding>
at::Tensor conv_autocast(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                         IntArrayRef stride, Padding padding, IntArrayRef dilation, int64_t groups,
                         StringView activation, double alpha) {
  const Autocast cast(input);
  return rank_op<Signature, rank>().call(cast(input), cast(weight), cast(bias), stride, padding, dilation,
                                         groups, activation, alpha);
}

// ---- registration ------------------------------------------------------------------------------------------

template <int64_t rank>
void define(torch::Library& m) {
  const auto schema = [](const char* overload, const char* padding) {
    const std::string list = c10::str("int[", rank, "]");
    return c10::str(kOps[rank - 1], overload, "(Tensor input, Tensor weight, Tensor? bias=None, ", list,
                    " stride=1, ", padding[0] == 's' ? padding : list + padding, ", ", list,
                    " dilation=1, int groups=1, str activation=\"identity\", float alpha=0) -> Tensor");
  };
  m.def(schema("", " padding=0").c_str(), conv<rank>);
  m.def(schema(".padding", "str padding=\"valid\"").c_str(), conv_padding<rank>);
}

template <int64_t rank>
void register_autocast(torch::Library& m) {
  const std::string name = kOps[rank - 1];
  m.impl(name.c_str(), conv_autocast<rank, ConvBySize, IntArrayRef>);
  m.impl((name + ".padding").c_str(), conv_autocast<rank, ConvByName, StringView>);
}

template <int64_t rank>
void export_rank(pybind11::module_& m) {
  namespace py = pybind11;
  m.def(
      kOps[rank - 1],
      [](const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias, const IntList& stride,
         const std::variant<IntList, std::string>& padding, const IntList& dilation, int64_t groups,
         StringView activation, double alpha) {
        if (const auto* name = std::get_if<std::string>(&padding)) {
          return rank_op<ConvByName, rank>().call(input, weight, bias, stride, *name, dilation, groups,
                                                  activation, alpha);
        }
        return rank_op<ConvBySize, rank>().call(input, weight, bias, stride, std::get<IntList>(padding),
                                                dilation, groups, activation, alpha);
      },
      py::arg("input"), py::arg("weight"), py::arg("bias") = py::none(), py::arg("stride") = IntList{1},
      py::arg("padding") = IntList{0}, py::arg("dilation") = IntList{1}, py::arg("groups") = 1,
      py::arg("activation") = kIdentity, py::arg("alpha") = 0.0, py::call_guard<py::gil_scoped_release>());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  for_each_rank([&](auto rank) { define<rank>(m); });
}
TORCH_LIBRARY_IMPL(fastnn, AutocastCPU, m) {
  for_each_rank([&](auto rank) { register_autocast<rank>(m); });
}
TORCH_LIBRARY_IMPL(fastnn, AutocastCUDA, m) {
  for_each_rank([&](auto rank) { register_autocast<rank>(m); });
}

void export_conv(pybind11::module_& m) {
  for_each_rank([&](auto rank) { export_rank<rank>(m); });
  m.def("set_conv_choices_directory", &set_conv_choices_directory, pybind11::arg("path"),
        "Where the ways that torch.backends.cudnn.benchmark finds fastest are kept; empty: nowhere.");
}

}  // namespace fastnn::bindings
