// From run-time types to the C++ types of the CPU kernels.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <utility>

#include "../ops/dispatch.h"
#include "../ops/max_pool.h"

namespace fastnn::FASTNN_BACKEND {

// Calls f(TypeTag<scalar_t>{}) for the element type that dtype names; f returns a Status.
template <typename F>
Status dispatch_dtype(DType dtype, F&& f) {
#if defined(FASTNN_ONLY_BFLOAT16)
  if (dtype == DType::kBFloat16) return f(TypeTag<c10::BFloat16>{});
  return Status::error("compiled for bfloat16 alone");
#else
  return dispatch_dtype_as<c10::BFloat16, c10::Half>(dtype, std::forward<F>(f));
#endif
}

// Calls f(TypeTag<offset_t>{}) for the type in which pooling keeps window offsets; f returns a Status.
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

}  // namespace fastnn::FASTNN_BACKEND
