// From run-time types to the C++ types of the CUDA kernels.
#pragma once

#include <utility>

#include "../ops/dispatch.h"
#include "platform.cuh"

namespace fastnn::cuda {

// Calls f(TypeTag<scalar_t>{}) for the element type that dtype names; f returns a Status.
template <typename F>
Status dispatch_dtype(DType dtype, F&& f) {
  return dispatch_dtype_as<bfloat16_t, float16_t>(dtype, std::forward<F>(f));
}

}  // namespace fastnn::cuda
