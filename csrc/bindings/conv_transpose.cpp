// conv_transpose1d, conv_transpose2d and conv_transpose3d: torch's arguments, autocast and Python functions.
//
// A transposed convolution is the data gradient of a convolution with the same filters, of which its input is
// the gradient: convolution_grad_input with a bias (conv_ops.h).
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <string>

#include "autocast.h"
#include "conv_ops.h"
#include "conv_rank.h"
#include "python.h"
#include "tensors.h"

namespace fastnn::bindings {

namespace {

constexpr const char* kOps[] = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"};

// input, weight, bias, stride, padding, output_padding, groups, dilation
using ConvTransposeOp = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, IntArrayRef,
                                   IntArrayRef, IntArrayRef, int64_t, IntArrayRef);

void at_least(const char* op, const char* name, const Sizes& values, int64_t least, const char* complaint) {
  for (const int64_t v : values) {
    TORCH_CHECK(v >= least, op, ": ", complaint, " (", name, " must be at least ", least, ", got ", name, "=",
                IntArrayRef(values), ")");
  }
}

template <int64_t rank>
at::Tensor conv_transpose(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                          IntArrayRef stride, IntArrayRef padding, IntArrayRef output_padding, int64_t groups,
                          IntArrayRef dilation) {
  static constexpr const char* kOp = kOps[rank - 1];
  check_rank(kOp, rank, input, weight);
  const Sizes strides = expand_list(kOp, "stride", stride, rank);
  const Sizes pads = expand_list(kOp, "padding", padding, rank);
  const Sizes more = expand_list(kOp, "output_padding", output_padding, rank);
  const Sizes dilations = expand_list(kOp, "dilation", dilation, rank);
  at_least(kOp, "stride", strides, 1, "non-positive stride is not supported");
  at_least(kOp, "padding", pads, 0, "negative padding is not supported");
  at_least(kOp, "output_padding", more, 0, "negative output_padding is not supported");
  at_least(kOp, "dilation", dilations, 1, "dilation should be greater than zero");
  TORCH_CHECK(groups >= 1, kOp,
              ": non-positive groups is not supported (groups must be at least 1, got groups=", groups, ")");
  return batched(rank, input, [&](const at::Tensor& x) {
    TORCH_CHECK(x.sym_size(1) == weight.sym_size(0), kOp, ": Given transposed=1, weight of size ",
                weight.sym_sizes(), ", expected input of size ", input.sym_sizes(), " to have ",
                weight.sym_size(0), " channels, but got ", x.sym_size(1), " channels instead");
    std::vector<SymInt> size = {x.sym_size(0), weight.sym_size(1) * groups};
    Sizes pairs;
    for (int64_t d = 0; d < rank; ++d) {
      TORCH_CHECK(more[d] < std::max(strides[d], dilations[d]), kOp,
                  ": output padding must be smaller than either stride or dilation, but got output_padding=",
                  IntArrayRef(more), ", stride=", IntArrayRef(strides), ", dilation=", IntArrayRef(dilations));
      TORCH_CHECK(x.sym_size(2 + d) >= 1, kOp,
                  ": expected input with at least one position, but got input of size ", input.sym_sizes());
      size.push_back((x.sym_size(2 + d) - 1) * strides[d] - 2 * pads[d] +
                     dilations[d] * (weight.sym_size(2 + d) - 1) + more[d] + 1);
      TORCH_CHECK(size.back() >= 0, kOp, ": the output is too small: ", size.back(), " positions, of input ",
                  input.sym_sizes(), ", weight ", weight.sym_sizes(), ", stride=", IntArrayRef(strides),
                  ", padding=", IntArrayRef(pads), ", output_padding=", IntArrayRef(more),
                  ", dilation=", IntArrayRef(dilations));
      pairs.push_back(pads[d]);
      pairs.push_back(pads[d] - more[d]);
    }
    const bool channels_last = suggests_channels_last(x) || suggests_channels_last(weight);
    return grad_input_op().call(x, weight, size, strides, pairs, dilations, groups, channels_last, bias);
  });
}

template <int64_t rank>
const auto& rank_op() {
  static const auto op = find_op<ConvTransposeOp>(std::string("fastnn::") + kOps[rank - 1]);
  return op;
}

template <int64_t rank>
at::Tensor conv_transpose_autocast(const at::Tensor& input, const at::Tensor& weight,
                                   const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding,
                                   IntArrayRef output_padding, int64_t groups, IntArrayRef dilation) {
  const Autocast cast(input);
  return rank_op<rank>().call(cast(input), cast(weight), cast(bias), stride, padding, output_padding, groups,
                              dilation);
}

template <int64_t rank>
void define(torch::Library& m) {
  const std::string list = c10::str("int[", rank, "]");
  m.def(c10::str(kOps[rank - 1], "(Tensor input, Tensor weight, Tensor? bias=None, ", list, " stride=1, ", list,
                 " padding=0, ", list, " output_padding=0, int groups=1, ", list, " dilation=1) -> Tensor")
            .c_str(),
        conv_transpose<rank>);
}

template <int64_t rank>
void export_rank(pybind11::module_& m) {
  namespace py = pybind11;
  m.def(
      kOps[rank - 1],
      [](const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias, const IntList& stride,
         const IntList& padding, const IntList& output_padding, int64_t groups, const IntList& dilation) {
        return rank_op<rank>().call(input, weight, bias, stride, padding, output_padding, groups, dilation);
      },
      py::arg("input"), py::arg("weight"), py::arg("bias") = py::none(), py::arg("stride") = IntList{1},
      py::arg("padding") = IntList{0}, py::arg("output_padding") = IntList{0}, py::arg("groups") = 1,
      py::arg("dilation") = IntList{1}, py::call_guard<py::gil_scoped_release>());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  for_each_rank([&](auto rank) { define<rank>(m); });
}
TORCH_LIBRARY_IMPL(fastnn, AutocastCPU, m) {
  for_each_rank([&](auto rank) { m.impl(kOps[rank - 1], conv_transpose_autocast<rank>); });
}
TORCH_LIBRARY_IMPL(fastnn, AutocastCUDA, m) {
  for_each_rank([&](auto rank) { m.impl(kOps[rank - 1], conv_transpose_autocast<rank>); });
}

void export_conv_transpose(pybind11::module_& m) {
  for_each_rank([&](auto rank) { export_rank<rank>(m); });
}

}  // namespace fastnn::bindings
