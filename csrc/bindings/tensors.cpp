#include "tensors.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

namespace fastnn::bindings {

DType dtype_of(const char* op, const char* argument, const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return DType::kFloat64;
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(false, "fastnn ", op, ": ", argument, " has dtype ", tensor.scalar_type(),
                                  "; expected float64, float32, bfloat16 or float16");
  }
}

at::ScalarType acc_scalar_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

at::MemoryFormat memory_format(bool channels_last, int64_t dim) {
  if (!channels_last) return at::MemoryFormat::Contiguous;
  return dim == 5 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
}

bool suggests_channels_last(const at::Tensor& t) {
  if (t.dim() != 4 && t.dim() != 5) return false;
  return t.suggest_memory_format() == memory_format(true, t.dim());
}

ActivationForm::ActivationForm(const char* op, const at::Tensor& x) {
  TORCH_CHECK_INDEX(x.dim() >= 2, op, ": expected input with 2 or more dimensions [N, C, ...], got shape ",
                    x.sizes());
  const bool channels_last = suggests_channels_last(x);
  N = x.size(0);
  C = x.size(1);
  S = 1;
  for (const int64_t size : x.sizes().slice(2)) S *= size;
  // Rows of a 2-D input are dense in C, as in channels_last.
  layout = channels_last || x.dim() == 2 ? Layout::kChannelsLast : Layout::kChannelsFirst;
  format = memory_format(channels_last, x.dim());
}

at::Tensor ActivationForm::empty_like(const at::Tensor& x) const {
  return at::empty(x.sizes(), x.options().memory_format(format));
}

void check_like_input(const char* op, const char* name, const at::Tensor& t, const at::Tensor& x) {
  TORCH_CHECK(t.sizes() == x.sizes() && t.scalar_type() == x.scalar_type() && t.device() == x.device(), op,
              ": ", name, " must be like input, ", x.scalar_type(), " ", x.sizes(), " on ", x.device(),
              ", got ", t.scalar_type(), " ", t.sizes(), " on ", t.device());
}

void fill_strides(const at::Tensor& t, ConvStrides& strides) {
  const int64_t rank = t.dim() - 2;
  strides[0] = t.stride(0);
  strides[1] = t.stride(1);
  for (int64_t i = 0; i < kSpatialDims; ++i) {
    const int64_t dim = i - (kSpatialDims - rank);
    strides[2 + i] = dim < 0 ? 0 : t.stride(2 + dim);
  }
}

void fill_spatial(at::IntArrayRef values, int64_t missing, int64_t (&triple)[kSpatialDims], int64_t step) {
  const int64_t rank = (static_cast<int64_t>(values.size()) + step - 1) / step;
  for (int64_t i = 0; i < kSpatialDims; ++i) {
    const int64_t dim = i - (kSpatialDims - rank);
    triple[i] = dim < 0 ? missing : values[dim * step];
  }
}

Sizes expand_list(const char* op, const char* argument, at::IntArrayRef values, int64_t rank) {
  const auto size = static_cast<int64_t>(values.size());
  TORCH_CHECK(size == 1 || size == rank, op, ": expected ", argument,
              " to be a single integer value or a list of ", rank,
              " values to match the spatial dimensions, but got ", argument, "=", values);
  if (size == rank) return {values.begin(), values.end()};
  return Sizes(rank, values[0]);
}

void check_input_rank(const char* op, int64_t rank, const at::Tensor& input) {
  TORCH_CHECK(input.dim() == rank + 1 || input.dim() == rank + 2, op, ": Expected ", rank + 1,
              "D (unbatched) or ", rank + 2, "D (batched) input, but got input of size: ", input.sym_sizes());
}

}  // namespace fastnn::bindings
