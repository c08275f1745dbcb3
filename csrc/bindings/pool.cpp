#include "pool.h"

namespace fastnn::bindings {

void check_pool_input(const char* op, at::IntArrayRef x_size) {
  for (size_t d = 1; d < x_size.size(); ++d) {
    TORCH_CHECK(x_size[d] > 0, op,
                ": Expected input with an optional 0 dim batch size and no other dimension of size 0, "
                "but got input of size: ",
                x_size);
  }
}

const c10::TypedOperatorHandle<MaxPoolOp>& max_pool_op() {
  static const auto op = find_op<MaxPoolOp>("fastnn::max_pool");
  return op;
}

PoolGeometry make_pool_geometry(const char* op, at::IntArrayRef x_size, at::IntArrayRef kernel,
                                at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  const auto rank = static_cast<int64_t>(x_size.size()) - 2;
  TORCH_CHECK(rank >= 1 && rank <= kSpatialDims, op, ": expected input with 3 to 5 dimensions, got shape ",
              x_size);
  const auto check_list = [&](const char* name, at::IntArrayRef values, int64_t least, const char* complaint) {
    TORCH_CHECK(static_cast<int64_t>(values.size()) == rank, op, ": ", name, " must have ", rank,
                " values, got ", name, "=", values);
    for (const int64_t v : values) {
      TORCH_CHECK(v >= least, op, ": ", complaint, ", but got ", name, "=", values, " (each must be at least ",
                  least, ")");
    }
  };
  check_list("kernel_size", kernel, 1, "kernel size should be greater than zero");
  check_list("stride", stride, 1, "stride should be greater than zero");
  check_list("padding", padding, 0, "pad must be non-negative");
  check_list("dilation", dilation, 1, "dilation should be greater than zero");
  check_pool_input(op, x_size);
  PoolGeometry g;
  g.N = x_size[0];
  g.C = x_size[1];
  fill_spatial(x_size.slice(2), 1, g.in);
  fill_spatial(kernel, 1, g.kernel);
  fill_spatial(stride, 1, g.stride);
  fill_spatial(padding, 0, g.pad);
  fill_spatial(dilation, 1, g.dilation);
  for (int d = 0; d < kSpatialDims; ++d) {
    const int64_t reach = (g.kernel[d] - 1) * g.dilation[d] + 1;
    TORCH_CHECK(g.pad[d] <= reach / 2, op,
                ": pad should be at most half of effective kernel size, but got padding=", padding,
                ", kernel_size=", kernel, " and dilation=", dilation);
  }
  return g;
}

PoolGeometry make_sized_geometry(const char* op, at::IntArrayRef x_size, at::IntArrayRef y_size,
                                 at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding) {
  const Sizes ones(x_size.size() - 2, 1), none(x_size.size() - 2, 0);
  const bool adaptive = kernel.empty();
  PoolGeometry g = adaptive ? make_pool_geometry(op, x_size, ones, ones, none, ones)
                            : make_pool_geometry(op, x_size, kernel, stride, padding, ones);
  g.windows = adaptive ? Windows::kAdaptive : Windows::kSliding;
  TORCH_CHECK(y_size.size() == x_size.size() - 2, op, ": expected output_size to have ", x_size.size() - 2,
              " values, got output_size=", y_size);
  fill_spatial(y_size, 1, g.out);
  for (int d = 0; d < kSpatialDims; ++d) {
    const auto sliding = [&](bool ceil) {
      return pool_out_size(g.in[d], g.kernel[d], g.stride[d], g.pad[d], 1, ceil);
    };
    const bool fits = adaptive ? g.out[d] >= 0 : g.out[d] == sliding(false) || g.out[d] == sliding(true);
    TORCH_CHECK(fits, op, ": an output of size ", y_size, " does not belong to an input of shape ", x_size);
  }
  return g;
}

SymSizes pooled_sizes(const char* op, const at::Tensor& input, at::IntArrayRef kernel, at::IntArrayRef stride,
                      at::IntArrayRef padding, bool ceil_mode) {
  SymSizes sizes;
  for (size_t d = 0; d < kernel.size(); ++d) {
    TORCH_CHECK(stride[d] > 0, op, ": stride should be greater than zero, but got stride=", stride);
    const c10::SymInt in = input.sym_size(static_cast<int64_t>(d) + 2);
    const c10::SymInt span = in + 2 * padding[d] - kernel[d] + (ceil_mode ? stride[d] - 1 : 0);
    TORCH_CHECK(span >= 0, op, ": Given input of size ", input.sym_sizes(), " and kernel_size=", kernel,
                ", stride=", stride, ", padding=", padding, ": the output size is too small");
    c10::SymInt size = span / stride[d] + 1;
    // The last window begins inside x or its leading padding.
    if (ceil_mode && (size - 1) * stride[d] >= in + padding[d]) size = size - 1;
    sizes.push_back(std::move(size));
  }
  return sizes;
}

}  // namespace fastnn::bindings
