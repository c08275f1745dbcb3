// Average and power-average (L_p) pooling of rank 1 to 3, over sliding or adaptive windows.
//
//   average   y[o] = sum over window o of x / divisor(o)
//   L_p       y[o] = (sum over window o of x^p * kernel volume / divisor(o))^(1/p); 0 has the gradient 0
//
// The divisor is the number of the window's positions, or one for all. Backward is a gather: each position of x
// sums, in a fixed order, what the windows that it lies in give, so there are no atomics and the same bits on
// every run.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "pool.h"
#include "status.h"
#include "stream.h"

namespace fastnn {

struct AveragePoolOptions {
  bool count_pad;   // whether positions of the padding count in the divisor
  int64_t divisor;  // instead of the number of positions; 0 for that number
  bool power;       // L_p; sliding windows without padding
  double norm;      // its p
};

struct AveragePoolForwardParams {
  DType dtype;
  PoolGeometry geometry;  // no dilation
  AveragePoolOptions options;
  const void* x;
  void* y;
};

// average   grad_x[i] = sum over the windows o that i lies in of grad_y[o] / divisor(o)
// L_p       the same of grad_y[o] * y[o]^(1 - p) * kernel volume / divisor(o), times x[i]^(p - 1)
struct AveragePoolBackwardParams {
  DType dtype;
  PoolGeometry geometry;
  AveragePoolOptions options;
  const void* grad_y;
  const void* x;  // these two of L_p alone, null otherwise
  const void* y;
  void* grad_x;  // written whole
};

// The same pooling in simpler form: adaptive windows of one size are sliding ones, and where windows span whole
// rows of x these become one longer row, so that a plane of global pooling is one.
inline void simplify(PoolGeometry& g, AveragePoolOptions& options) {
  if (g.windows == Windows::kAdaptive) {
    for (int d = 0; d < kSpatialDims; ++d) {
      if (g.in[d] % g.out[d] != 0) return;
    }
    g.windows = Windows::kSliding;
    for (int d = 0; d < kSpatialDims; ++d) {
      g.kernel[d] = g.stride[d] = g.in[d] / g.out[d];
      g.pad[d] = 0;
    }
    options.count_pad = false;
  }
  // A fold merges dimensions whose padding and overhang would have to be counted apart.
  for (int d = 0; d < kSpatialDims; ++d) {
    if (g.pad[d] != 0 || (g.out[d] - 1) * g.stride[d] + g.kernel[d] > g.in[d]) return;
  }
  g = folded(g);
}

FASTNN_DECLARE_OP(average_pool_forward, AveragePoolForwardParams)
FASTNN_DECLARE_OP(average_pool_backward, AveragePoolBackwardParams)

}  // namespace fastnn
