// Max pooling of rank 1 to 3.
//
//   y[n, c, o] = max over r of x[n, c, o * stride + r * dilation - pad], over positions inside x
//
// The place of the maximum is kept as the offset of r within its window (row-major over the kernel's depth,
// height, width), in the smallest unsigned type that fits: one byte for windows of up to 256 places, where
// torch keeps eight. As in torch: a NaN wins over every number and a later NaN over an earlier one; among
// equal values the first wins; a window of nothing but -inf has its first position inside x as its place.
// Backward is then a gather: each position of x sums, in a fixed order, the gradients of the windows that
// chose it, so there are no atomics and the same bits on every run.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "pool.h"
#include "status.h"
#include "stream.h"

namespace fastnn {

enum class OffsetType : int { kUInt8, kUInt16, kInt32 };

// The type in which window offsets are kept.
inline OffsetType pool_offset_type(int64_t window_size) {
  return window_size <= 256     ? OffsetType::kUInt8
         : window_size <= 65536 ? OffsetType::kUInt16
                                : OffsetType::kInt32;
}

struct MaxPoolForwardParams {
  DType dtype;
  PoolGeometry geometry;
  const void* x;
  void* y;
  OffsetType offset_type;  // pool_offset_type(kernel volume)
  void* offsets;           // shape of y; null when nobody will ask for a gradient
  int64_t* indices;        // shape of y: index into x's flattened [D, H, W]; null when not wanted
};

// grad_x[i] = sum of grad_y[o] over the windows o whose maximum was at i
struct MaxPoolBackwardParams {
  DType dtype;
  PoolGeometry geometry;
  const void* grad_y;
  OffsetType offset_type;
  const void* offsets;
  void* grad_x;  // written whole
};

// y[o] = x[place that offsets[o] names]: the derivative of backward, and the tangent of forward
struct MaxPoolGatherParams {
  DType dtype;
  PoolGeometry geometry;
  const void* x;
  OffsetType offset_type;
  const void* offsets;
  void* y;
};

FASTNN_DECLARE_OP(max_pool_forward, MaxPoolForwardParams)
FASTNN_DECLARE_OP(max_pool_backward, MaxPoolBackwardParams)
FASTNN_DECLARE_OP(max_pool_gather, MaxPoolGatherParams)

}  // namespace fastnn
