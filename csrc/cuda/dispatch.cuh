// The only switches from run-time types to C++ types.
#pragma once

#include <utility>

#include "../ops/max_pool.h"
#include "platform.cuh"

namespace fastnn::cuda {

template <typename T>
struct TypeTag {
  using type = T;
};

// The type in which sums of scalar_t are kept.
template <typename scalar_t>
struct AccType {
  using type = float;
};
template <>
struct AccType<double> {
  using type = double;
};
template <typename scalar_t>
using acc_type = typename AccType<scalar_t>::type;

// Calls f(TypeTag<scalar_t>{}) for the element type that dtype names.
template <typename F>
Status dispatch_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat64:
      return f(TypeTag<double>{});
    case DType::kFloat32:
      return f(TypeTag<float>{});
    case DType::kBFloat16:
      return f(TypeTag<bfloat16_t>{});
    case DType::kFloat16:
      return f(TypeTag<float16_t>{});
  }
  return Status::error("unknown dtype");
}

// Calls f(TypeTag<offset_t>{}) for the type in which pooling keeps window offsets.
template <typename F>
Status dispatch_offset_type(OffsetType type, F&& f) {
  switch (type) {
    case OffsetType::kUInt8:
      return f(TypeTag<uint8_t>{});
    case OffsetType::kUInt16:
      return f(TypeTag<uint16_t>{});
    case OffsetType::kInt32:
      return f(TypeTag<int32_t>{});
  }
  return Status::error("unknown offset type");
}

}  // namespace fastnn::cuda
