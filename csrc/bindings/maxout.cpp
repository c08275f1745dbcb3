// Maxout (Goodfellow et al. 2013): the maximum over pieces of the channels.
//
// It is max pooling with a window over channels: of an image's values as a plane in which the pieces of an
// output lie one below the other, or one beside the other. Kernels and derivatives of every order are
// max_pool's, the place of a maximum is its byte.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "autograd.h"
#include "pool.h"
#include "python.h"
#include "tensors.h"

namespace fastnn::bindings {

namespace {

using c10::SymInt;

// The maxima of planes [a, b, height, width], in windows of `rows` x `columns` side by side.
at::Tensor pool_planes(const at::Tensor& planes, int64_t rows, int64_t columns) {
  return std::get<0>(
      max_pool_op().call(planes, {rows, columns}, {rows, columns}, {0, 0}, {1, 1}, false, false, false));
}

at::Tensor maxout(const at::Tensor& input, int64_t pieces, bool pieces_first) {
  TORCH_CHECK(input.dim() >= 2, "maxout: expected input with 2 or more dimensions [N, C, ...], got shape ",
              input.sym_sizes());
  TORCH_CHECK(pieces >= 1, "maxout: pieces must be at least 1, but got pieces=", pieces);
  const SymInt N = input.sym_size(0), channels = input.sym_size(1), C = channels / pieces;
  TORCH_CHECK_VALUE(C * pieces == channels,
                    "maxout: the channels of input must be a multiple of pieces, but got input ",
                    input.sym_sizes(), " and pieces=", pieces);
  dtype_of("maxout", "input", input);
  if (input.sym_numel() == 0) {
    const auto apart = pieces_first ? std::vector<SymInt>{pieces, C} : std::vector<SymInt>{C, pieces};
    return input.unflatten_symint(1, apart).select(pieces_first ? 1 : 2, 0).clone();
  }
  const SymInt S = input.sym_numel() / (N * channels);
  const bool channels_last = suggests_channels_last(input);
  const at::MemoryFormat format = memory_format(channels_last, input.dim());
  std::vector<SymInt> size(input.sym_sizes().begin(), input.sym_sizes().end());
  if (!channels_last && input.dim() > 2) {
    size[1] = C;
    const at::Tensor x = input.contiguous();
    const auto planes =
        pieces_first ? std::vector<SymInt>{N, 1, pieces, C * S} : std::vector<SymInt>{N, 1, channels, S};
    return pool_planes(x.view_symint(planes), pieces, 1).view_symint(size);
  }
  // Rows of channels; S of them an image, which for [N, C] all are.
  size.erase(size.begin() + 1);
  size.push_back(C);
  const at::Tensor x = input.contiguous(format).movedim(1, -1);
  const at::Tensor y = pieces_first ? pool_planes(x.reshape_symint({N, S, pieces, C}), pieces, 1)
                                    : pool_planes(x.reshape_symint({1, 1, N * S, channels}), 1, pieces);
  return y.reshape_symint(size).movedim(-1, 1);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("maxout(Tensor input, int pieces, bool pieces_first=False) -> Tensor", maxout);
}

void export_maxout(pybind11::module_& m) {
  namespace py = pybind11;
  static const auto op = find_op<decltype(maxout)>("fastnn::maxout");
  m.def(
      "maxout",
      [](const at::Tensor& input, int64_t pieces, bool pieces_first) {
        return op.call(input, pieces, pieces_first);
      },
      py::arg("input"), py::arg("pieces"), py::arg("pieces_first") = false,
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace fastnn::bindings
