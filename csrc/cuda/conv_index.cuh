// Index arithmetic that every convolution kernel shares: ranges written as digits, and the taps of a filter
// that meet a given position of x.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>

#include "../ops/conv.h"
#include "../ops/host_device.h"
#include "platform.cuh"
#include "reduce.cuh"

namespace fastnn::cuda {

// a / b of non-negative numbers. A 64-bit division costs the device about four 32-bit ones, and nearly every
// number here fits 32 bits.
FASTNN_HOST_DEVICE int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<int64_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b));
  return a / b;
}

// A range of indices, each written as four digits: a lead digit (a batch element or a channel) and a spatial
// triple. The triple's digits run in the order depth, height, width, the last fastest; the lead digit is the
// slowest of all, or with lead_fastest the fastest of all.
struct IndexRange {
  int64_t lead;
  int64_t spatial[kSpatialDims];
  bool lead_fastest;

  FASTNN_HOST_DEVICE int64_t size() const { return lead * spatial[0] * spatial[1] * spatial[2]; }
};

template <typename coord_t>
struct Digits {
  coord_t lead, d, h, w;
};

// The digits of `index`; the slowest digit takes whatever is left, so an index past the end is still written
// down, as one whose slowest digit is too large. No extent may be 0.
template <typename coord_t>
FASTNN_HOST_DEVICE Digits<coord_t> digits_of(int64_t index, const IndexRange& range) {
  int64_t lead = 0;
  if (range.lead_fastest) {
    const int64_t rest = quotient(index, range.lead);
    lead = index - rest * range.lead;
    index = rest;
  }
  int64_t rest = quotient(index, range.spatial[2]);
  const int64_t w = index - rest * range.spatial[2];
  index = rest;
  rest = quotient(index, range.spatial[1]);
  const int64_t h = index - rest * range.spatial[1];
  int64_t d = rest;
  if (!range.lead_fastest) {
    lead = quotient(rest, range.spatial[0]);
    d = rest - lead * range.spatial[0];
  }
  return {static_cast<coord_t>(lead), static_cast<coord_t>(d), static_cast<coord_t>(h),
          static_cast<coord_t>(w)};
}

// value += step in the number system of `range`: the digits of a sum without a division. Both must be digits of
// numbers, so that no digit carries more than one.
template <typename coord_t>
FASTNN_HOST_DEVICE void advance(Digits<coord_t>& value, const Digits<coord_t>& step, const IndexRange& range) {
  coord_t carry = 0;
  const auto add = [&carry](coord_t& digit, coord_t by, int64_t extent) {
    digit += by + carry;
    carry = digit >= static_cast<coord_t>(extent) ? 1 : 0;
    if (carry) digit -= static_cast<coord_t>(extent);
  };
  if (range.lead_fastest) add(value.lead, step.lead, range.lead);
  add(value.w, step.w, range.spatial[2]);
  add(value.h, step.h, range.spatial[1]);
  if (range.lead_fastest) {
    value.d += step.d + carry;
  } else {
    add(value.d, step.d, range.spatial[0]);
    value.lead += step.lead + carry;
  }
}

// One dimension of the data gradient. Position i of x is met by tap r at output o when
// o * stride + r * dilation = i + pad: the taps that meet it are first, first + tap_step, first + 2 * tap_step
// ..., the outputs that they meet it at are origin, origin - output_step, origin - 2 * output_step ...
struct TapDimension {
  int64_t kernel, stride, dilation, pad;
  int64_t gcd;          // of stride and dilation
  int64_t tap_step;     // stride / gcd
  int64_t output_step;  // dilation / gcd
  int64_t inverse;      // of output_step modulo tap_step
};

struct TapsOfPosition {
  int64_t first;
  int64_t count;   // taps from `first` to the end of the filter; 0 when no tap meets the position
  int64_t origin;  // output met by tap `first`; may lie outside y
};

FASTNN_HOST_DEVICE TapsOfPosition taps_of_position(const TapDimension& t, int64_t position) {
  const int64_t padded = position + t.pad;
  if (t.stride == 1) return {0, t.kernel, padded};
  const int64_t reduced = quotient(padded, t.gcd);
  if (reduced * t.gcd != padded) return {0, 0, 0};
  const int64_t residue = reduced - quotient(reduced, t.tap_step) * t.tap_step;
  const int64_t product = residue * t.inverse;
  const int64_t first = product - quotient(product, t.tap_step) * t.tap_step;
  if (first >= t.kernel) return {0, 0, 0};
  const int64_t distance = padded - first * t.dilation;  // a multiple of the stride, of either sign
  const int64_t origin = distance < 0 ? -quotient(-distance, t.stride) : quotient(distance, t.stride);
  return {first, quotient(t.kernel - 1 - first, t.tap_step) + 1, origin};
}

inline TapDimension make_tap_dimension(const ConvGeometry& g, int dim) {
  TapDimension t{g.kernel[dim], g.stride[dim], g.dilation[dim], g.pad[dim], 1, 1, 1, 0};
  t.gcd = std::gcd(t.stride, t.dilation);
  t.tap_step = t.stride / t.gcd;
  t.output_step = t.dilation / t.gcd;
  // Extended Euclid on (tap_step, output_step): s * output_step = r modulo tap_step throughout.
  int64_t r = t.tap_step, next_r = t.output_step, s = 0, next_s = 1;
  while (next_r != 0) {
    const int64_t q = r / next_r;
    r = std::exchange(next_r, r - q * next_r);
    s = std::exchange(next_s, s - q * next_s);
  }
  t.inverse = (s % t.tap_step + t.tap_step) % t.tap_step;
  return t;
}

// How many of 32 consecutive threads share what one of them fetches, up to a constant: what decides which index
// consecutive threads run along. A stride of 0 is as good as 1: one element for all.
inline double coalescing(int64_t extent, int64_t stride) {
  const int64_t magnitude = std::max<int64_t>(stride < 0 ? -stride : stride, 1);
  return static_cast<double>(std::min<int64_t>(extent, 32)) / static_cast<double>(magnitude);
}

// Whether some position, before padding is cut off, does not fit 32 bits.
inline bool needs_wide_coordinates(const ConvGeometry& g) {
  constexpr int64_t kLimit = std::numeric_limits<int32_t>::max() / 4;
  bool wide = g.N > kLimit || g.C > kLimit || g.K > kLimit;
  for (int d = 0; d < kSpatialDims; ++d) {
    for (const int64_t size : {g.in[d], g.out[d], g.kernel[d], g.stride[d], g.dilation[d], g.pad[d]}) {
      wide |= size > kLimit;
    }
    if (wide) return true;
    wide |= g.in[d] + g.pad[d] + g.kernel[d] * g.dilation[d] > kLimit || g.out[d] * g.stride[d] > kLimit;
  }
  return wide;
}

// Enough blocks for one on each multiprocessor of an H100 or H200 (132; an A100 has 108), and the number that
// splitting aims at. Constants, not queries of the device: the order of sums must not depend on where they run.
inline constexpr int64_t kFullGrid = 132;
inline constexpr int64_t kSplitGrid = 264;

// One dimension of grid, since x alone reaches beyond 65,535. What needs more than 2^31 - 1 blocks has more
// outputs than any device has memory for.
inline Status grid_of(int64_t blocks, const char* name, dim3& grid) {
  if (blocks > std::numeric_limits<int32_t>::max())
    return Status::error("the output is too large for one grid", name);
  grid = dim3(static_cast<unsigned>(blocks));
  return Status::success();
}

}  // namespace fastnn::cuda
