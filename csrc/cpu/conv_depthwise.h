// Depthwise convolution, one filter for each channel: the geometry that its two forms share, and which form is
// chosen.
//
//   gather       out[n, c, o] = bias[c] + sum over taps t of filters[c, t] * in[n, c, position(o, t)]
//   grad_weight  grad_w[c, t] = sum over n and o of grad_y[n, c, o] * x[n, c, position(o, t)]
//
// The first is forward, and grad_input with its input and output exchanged and the filter turned. A matrix
// product would fill one row or one lane of each vector here. The forms:
//
//   by channels  (conv_depthwise_channels.h) channels contiguous in both activations: vectors of channels.
//   by planes    (conv_depthwise_planes.h) columns contiguous in both: vectors of columns.
//
// Other layouts, strides above kMaxResidues and filters above kMaxTaps are ordinary products with one row.
//
// Bits do not depend on the number of threads: `gather` computes each output element by one sequence of
// operations wherever it lies, and `grad_weight` is cut by its shape alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../ops/conv.h"
#include "constant_loop.h"
#include "conv_activation.h"
#include "conv_product.h"
#include "dispatch.h"

namespace fastnn::FASTNN_BACKEND {

// Most residues of a position modulo the stride, in one dimension, and most taps of a filter: what the forms
// find out about them is kept on the stack.
inline constexpr int64_t kMaxResidues = 4;
inline constexpr int64_t kMaxTaps = 128;

// Multiply-adds that are worth waking a thread for (5 to 10 us).
inline constexpr int64_t kMinDepthwisePerThread = 1 << 18;

// Sums of products in grad_weight have at most this many terms; they are then added to a chain of such sums.
inline constexpr int64_t kMaxTermsPerSum = 256;

// The taps that reach some of the positions of one dimension: those with position % residues == residue. The
// j-th of them reads coordinate j * step + origin + t * move for tap t, if that lies inside.
struct DimTaps {
  int64_t first = 0, stride = 1, count = 0;  // tap t is number first + t * stride of the filter
  int64_t origin = 0, move = 1;              // move >= 0
  int64_t positions = 0;

  // The taps [first, last) that position j reaches.
  struct Range {
    int64_t first, last;
  };
  Range inside(int64_t j, int64_t step, int64_t extent) const {
    const int64_t at = j * step + origin;
    if (move == 0) return count > 0 && at >= 0 && at < extent ? Range{0, count} : Range{0, 0};
    if (move == 1) {
      const int64_t first_tap = std::clamp<int64_t>(-at, 0, count);
      return {first_tap, std::clamp(extent - at, first_tap, count)};
    }
    const int64_t first_tap = at >= 0 ? 0 : ceil_div(-at, move);
    const int64_t last_tap = at >= extent ? 0 : (extent - 1 - at) / move + 1;
    return {std::min(first_tap, count), std::max(std::min(first_tap, count), std::min(last_tap, count))};
  }
};

// One dimension of a depthwise convolution.
struct DepthwiseDim {
  int64_t size, extent;  // of the output and of the input
  int64_t step;
  int64_t residues;
  DimTaps taps[kMaxResidues];

  static DepthwiseDim forward(const ConvGeometry& g, int dim) {
    DepthwiseDim d{g.out[dim], g.in[dim], g.stride[dim], 1, {}};
    d.taps[0] = {0, 1, g.kernel[dim], -g.pad[dim], g.kernel[dim] > 1 ? g.dilation[dim] : 0, g.out[dim]};
    return d;
  }

  // Position i of x sees grad_y at (i + pad - r * dilation) / stride for the taps r where that is whole: an
  // arithmetic progression of them for each residue of i, here in the order of rising coordinates.
  static DepthwiseDim grad_input(const ConvGeometry& g, int dim) {
    const int64_t stride = g.stride[dim], dilation = g.dilation[dim];
    DepthwiseDim d{g.in[dim], g.out[dim], 1, stride, {}};
    for (int64_t residue = 0; residue < stride; ++residue) {
      DimTaps& taps = d.taps[residue];
      taps.positions = residue < d.size ? ceil_div(d.size - residue, stride) : 0;
      int64_t last = 0, before = 0;
      for (int64_t r = 0; r < g.kernel[dim]; ++r) {
        if ((residue + g.pad[dim] - r * dilation) % stride != 0) continue;
        before = last;
        last = r;
        ++taps.count;
      }
      taps.first = last;
      taps.stride = before - last;
      taps.origin = (residue + g.pad[dim] - last * dilation) / stride;
      taps.move = taps.count > 1 ? (last - before) * dilation / stride : 0;
    }
    return d;
  }
};

// Asks for the rows of a plane that is small and will be copied soon. Small planes are taken in blocks of a few
// KB, too short for the hardware to see a stream, and in L3 they would otherwise be waited for. It may point
// anywhere.
template <typename scalar_t>
void prefetch_plane(const scalar_t* plane, int64_t rows, int64_t row_stride) {
  constexpr int64_t kLine = 64;
  const char* const bytes = reinterpret_cast<const char*>(plane);
  const int64_t size = rows * row_stride * static_cast<int64_t>(sizeof(scalar_t));
  for (int64_t at = 0; at < size; at += kLine) __builtin_prefetch(bytes + at);
}

template <typename scalar_t>
struct DepthwiseGather {
  int64_t N, C;
  DepthwiseDim dim[kSpatialDims];
  const scalar_t* in;
  const int64_t* in_strides;  // [N, C, D, H, W]
  scalar_t* out;
  const int64_t* out_strides;
  const scalar_t* w;
  const int64_t* w_strides;  // [K, -, R_d, R_h, R_w]
  int64_t kernel[kSpatialDims];
  const scalar_t* bias;  // null for none
  ConvActivator<scalar_t> activate;

  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  int64_t w_offset(int64_t d, int64_t h, int64_t w) const {
    return d * w_strides[2] + h * w_strides[3] + w * w_strides[4];
  }
};

template <typename scalar_t>
DepthwiseGather<scalar_t> depthwise_forward(const ConvForwardParams& params) {
  const ConvGeometry& g = params.geometry;
  return {g.N,
          g.C,
          {DepthwiseDim::forward(g, 0), DepthwiseDim::forward(g, 1), DepthwiseDim::forward(g, 2)},
          static_cast<const scalar_t*>(params.x),
          params.x_strides,
          static_cast<scalar_t*>(params.y),
          params.y_strides,
          static_cast<const scalar_t*>(params.w),
          params.w_strides,
          {g.kernel[0], g.kernel[1], g.kernel[2]},
          static_cast<const scalar_t*>(params.bias),
          ConvActivator<scalar_t>(params.activation)};
}

template <typename scalar_t>
DepthwiseGather<scalar_t> depthwise_grad_input(const ConvGradInputParams& params) {
  const ConvGeometry& g = params.geometry;
  return {g.N,
          g.C,
          {DepthwiseDim::grad_input(g, 0), DepthwiseDim::grad_input(g, 1), DepthwiseDim::grad_input(g, 2)},
          static_cast<const scalar_t*>(params.grad_y),
          params.grad_y_strides,
          static_cast<scalar_t*>(params.grad_x),
          params.grad_x_strides,
          static_cast<const scalar_t*>(params.w),
          params.w_strides,
          {g.kernel[0], g.kernel[1], g.kernel[2]},
          static_cast<const scalar_t*>(params.bias),
          {}};
}

// The output of `gather`, or grad_y in grad_weight, is walked in strips: rows of one image, one depth and one
// segment of columns, which stay in a near cache while one block of channels after the other is computed.
struct Strip {
  int64_t n, depth, segment, row, rows;
};

// Calls f(strip) for the rows [begin, end) of [n][depth][segment][row], at most max_rows at a time.
template <typename F>
void for_each_strip(int64_t begin, int64_t end, int64_t depths, int64_t segments, int64_t rows,
                    int64_t max_rows, F&& f) {
  while (begin < end) {
    const int64_t row = begin % rows, outer = begin / rows;
    const int64_t count = std::min({max_rows, rows - row, end - begin});
    f(Strip{outer / segments / depths, outer / segments % depths, outer % segments, row, count});
    begin += count;
  }
}

}  // namespace fastnn::FASTNN_BACKEND
