#include "tensors.h"

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

c10::SmallVector<int64_t, 6> expand_list(const char* op, const char* argument, at::IntArrayRef values,
                                         int64_t rank) {
  const auto size = static_cast<int64_t>(values.size());
  TORCH_CHECK(size == 1 || size == rank, op, ": expected ", argument,
              " to be a single integer value or a list of ", rank,
              " values to match the spatial dimensions, but got ", argument, "=", values);
  if (size == rank) return {values.begin(), values.end()};
  return c10::SmallVector<int64_t, 6>(rank, values[0]);
}

}  // namespace fastnn::bindings
