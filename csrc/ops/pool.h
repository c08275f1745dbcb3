// Where the windows of pooling lie: what max pooling, average pooling and pooling with switches share, for rank
// 1 to 3.
//
//   sliding      [o * stride - pad, o * stride - pad + kernel), with `dilation` between its positions
//   adaptive     [floor(o * in / out), ceil((o + 1) * in / out)): they cover x, and overlap where out does not
//                divide in
//   fractional   `kernel` positions from a start that a random number moves (Graham 2014), fractional_start()
#pragma once

#include <cstdint>

#include "conv.h"
#include "host_device.h"

namespace fastnn {

enum class Windows : int { kSliding, kAdaptive, kFractional };

struct PoolGeometry {
  Layout layout;  // of every tensor of a call
  int64_t N, C;
  int64_t in[kSpatialDims];        // spatial size of x; lower ranks set the leading sizes to 1
  int64_t out[kSpatialDims];       // spatial size of y
  int64_t kernel[kSpatialDims];    // >= 1
  int64_t stride[kSpatialDims];    // >= 1
  int64_t pad[kSpatialDims];       // before x, at most half the kernel
  int64_t dilation[kSpatialDims];  // >= 1; every window has a position inside x
  Windows windows = Windows::kSliding;
};

// Half-open range of positions, or of windows.
struct PoolRange {
  int64_t begin, end;
};

// The part of window o that lies inside x, without dilation; of sliding and adaptive windows.
FASTNN_HOST_DEVICE PoolRange pool_window(const PoolGeometry& g, int d, int64_t o) {
  if (g.windows == Windows::kAdaptive)
    return {o * g.in[d] / g.out[d], ((o + 1) * g.in[d] + g.out[d] - 1) / g.out[d]};
  const int64_t begin = o * g.stride[d] - g.pad[d], end = begin + g.kernel[d];
  return {begin < 0 ? 0 : begin, end > g.in[d] ? g.in[d] : end};
}

// The windows that position i lies in: the reverse.
FASTNN_HOST_DEVICE PoolRange pool_cover(const PoolGeometry& g, int d, int64_t i) {
  if (g.windows == Windows::kAdaptive)
    return {i * g.out[d] / g.in[d], ((i + 1) * g.out[d] + g.in[d] - 1) / g.in[d]};
  const int64_t padded = i + g.pad[d], before = padded - g.kernel[d];
  const int64_t end = padded / g.stride[d] + 1;
  return {before < 0 ? 0 : before / g.stride[d] + 1, end > g.out[d] ? g.out[d] : end};
}

// Positions of window o, those of the padding too where it counts; what hangs over its end never does.
FASTNN_HOST_DEVICE int64_t pool_count(const PoolGeometry& g, int d, int64_t o, bool count_pad) {
  if (count_pad && g.windows == Windows::kSliding) {
    const int64_t left = g.in[d] + 2 * g.pad[d] - o * g.stride[d];
    return left < g.kernel[d] ? left : g.kernel[d];
  }
  const PoolRange w = pool_window(g, d, o);
  return w.end - w.begin;
}

// Where fractional window o begins, for a sample of [0, 1): torch's rule, whose last window ends with x.
template <typename acc_t>
FASTNN_HOST_DEVICE int64_t fractional_start(const PoolGeometry& g, int d, int64_t o, acc_t sample) {
  const int64_t room = g.in[d] - g.kernel[d];
  if (o == g.out[d] - 1) return room;
  const acc_t alpha = static_cast<acc_t>(room) / static_cast<acc_t>(g.out[d] - 1);
  return static_cast<int64_t>((static_cast<acc_t>(o) + sample) * alpha) - static_cast<int64_t>(sample * alpha);
}

// Size of one spatial dimension of y under sliding windows. With ceil_mode the last window may hang over the
// end but must begin inside x or its leading padding.
inline int64_t pool_out_size(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation,
                             bool ceil_mode) {
  const int64_t span = in + 2 * pad - dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : 0);
  // Floor division: torch rounds a negative span down, which yields a size that the checks refuse.
  int64_t size = (span >= 0 ? span / stride : -((-span + stride - 1) / stride)) + 1;
  if (ceil_mode && (size - 1) * stride >= in + pad) --size;
  return size;
}

// The same pooling with fewer dimensions: where windows span whole rows, the rows of a window are one longer
// row, and offsets, indices and memory stay as they are. Global pooling becomes one contiguous window a plane.
inline PoolGeometry folded(PoolGeometry g) {
  for (int d = 1; d >= 0; --d) {
    // What is left in the last dimension is `d + 1`'s, folded or not.
    if (g.kernel[2] != g.in[2] || g.pad[2] != 0 || g.dilation[2] != 1 || g.out[2] != 1 || g.dilation[d] != 1)
      break;
    const int64_t row = g.in[2];
    g.in[2] *= g.in[d];
    g.out[2] = g.out[d];
    g.kernel[2] *= g.kernel[d];
    g.stride[2] = g.stride[d] * row;
    g.pad[2] = g.pad[d] * row;
    g.in[d] = g.out[d] = g.kernel[d] = g.stride[d] = 1;
    g.pad[d] = 0;
  }
  return g;
}

}  // namespace fastnn
