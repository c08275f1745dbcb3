// The only switch from a run-time dtype to a C++ type. A backend names its two half types in a dispatch header
// of its own.
#pragma once

#include "dtype.h"
#include "status.h"

namespace fastnn {

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

// Calls f(TypeTag<scalar_t>{}) for the element type that dtype names; f returns a Status.
template <typename bfloat16_t, typename float16_t, typename F>
Status dispatch_dtype_as(DType dtype, F&& f) {
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

}  // namespace fastnn
