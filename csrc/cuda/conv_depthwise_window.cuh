// Depthwise convolution with a filter a channel (K == C == groups), seen from its results: one description of
// forward and of the data gradient, and the sums that a thread keeps of a block of neighbouring results.
//
//   forward        result[o] = sum over r of source[o * stride + r - pad] * w[r]
//   grad_input     result[i] = sum over r of source[o] * w[r] for the o with o * stride + r - pad = i
//
// With stride 1 the second is the first with the filter turned round and pad = kernel - 1 - pad, and is
// computed as such; with a stride it is "transposed": results are then counted from the padding on,
// p = i + pad, and a thread's block of them begins at a multiple of the stride, so that which tap joins which
// source and result is known at compile time.
//
// Padding is skipped, not multiplied: a weight that is not finite meets only values of the tensor.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "../ops/conv.h"
#include "conv_index.cuh"
#include "platform.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

// A square window without dilation, and the same stride each way. Sources are counted from the first that any
// of a block's results needs.
template <int kSize_, int kStride_, bool kTransposed_>
struct DepthwiseWindow {
  static constexpr int kSize = kSize_, kStride = kStride_, kTaps = kSize * kSize;
  static constexpr bool kTransposed = kTransposed_;
  static constexpr int kReach = (kSize - 1) / kStride;  // transposed: sources before the one at a result
  static_assert(!kTransposed || kStride > 1, "stride 1 is forward with the filter turned round");

  static constexpr int sources(int results) {
    return kTransposed ? (results - 1) / kStride + kReach + 1 : (results - 1) * kStride + kSize;
  }
  // The tap that joins them, or -1.
  static constexpr int tap(int result, int source) {
    const int t = kTransposed ? result - kStride * (source - kReach) : source - result * kStride;
    return t >= 0 && t < kSize ? t : -1;
  }
};

// One dimension of the results and sources of a DepthwiseWindow. Run q of kResults results begins at
// q * kResults - result_shift, its sources at q * source_step + source_shift; both may lie outside.
struct WindowAxis {
  int results, sources, result_shift, source_shift;
};

template <typename Window>
WindowAxis window_axis(int64_t results, int64_t sources, int64_t pad) {
  WindowAxis a{static_cast<int>(results), static_cast<int>(sources), 0, static_cast<int>(-pad)};
  if constexpr (Window::kTransposed) {
    a.result_shift = static_cast<int>(pad % Window::kStride);
    a.source_shift = static_cast<int>(pad / Window::kStride) - Window::kReach;
  }
  return a;
}

template <typename Window>
constexpr int source_step(int results) {
  return Window::kTransposed ? results / Window::kStride : results * Window::kStride;
}

constexpr int runs_of(const WindowAxis& a, int results) {
  return (a.results + a.result_shift + results - 1) / results;
}

__device__ __forceinline__ bool in_range(int i, int size) {
  return static_cast<unsigned>(i) < static_cast<unsigned>(size);
}

// sums[row][column][k] += what the taps give, row by row of the filter and tap by tap. load_row(row, values)
// reads the sources of a row, zeros where there is none; load_weights(tap row, w) a row of taps.
template <typename Window, int kRows, int kColumns, int kVec, typename acc_t, typename LoadRow,
          typename LoadWeights>
__device__ __forceinline__ void add_windows(acc_t (&sums)[kRows][kColumns][kVec], int row_begin, int rows,
                                            int column_begin, int columns, LoadRow load_row,
                                            LoadWeights load_weights) {
  constexpr int kSourceRows = Window::sources(kRows), kSourceColumns = Window::sources(kColumns);
#pragma unroll
  for (int s = 0; s < kSourceRows; ++s) {
    if (!in_range(row_begin + s, rows)) continue;
    acc_t values[kSourceColumns][kVec];
    load_row(row_begin + s, values);
    acc_t w[kRows][Window::kSize][kVec];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (Window::tap(r, s) >= 0) load_weights(Window::tap(r, s), w[r]);
    }
#pragma unroll
    for (int j = 0; j < kSourceColumns; ++j) {
      if (!in_range(column_begin + j, columns)) continue;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (Window::tap(r, s) < 0) continue;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const int tap = Window::tap(c, j);
          if (tap < 0) continue;
#pragma unroll
          for (int k = 0; k < kVec; ++k) sums[r][c][k] += values[j][k] * w[r][tap][k];
        }
      }
    }
  }
}

// ---- host: one description of both directions ---------------------------------------------------------------

// A planar depthwise convolution with a filter a channel. Arrays: rows, columns.
struct DepthwiseConv {
  int64_t images;
  int channels;
  bool transposed;
  int64_t results[2], sources[2], kernel[2], stride[2], dilation[2], pad[2];
  // Of image, channel, row, column.
  int64_t source_strides[4], result_strides[4];
  // Of channel, row and column of taps, and where tap (0, 0) is: a filter turned round has negative strides.
  int64_t w_strides[3], w_begin;
  ConvActivation activation;  // of results

  int64_t taps() const { return kernel[0] * kernel[1]; }
  bool square(int size, int step) const {
    return kernel[0] == size && kernel[1] == size && stride[0] == step && stride[1] == step &&
           dilation[0] == 1 && dilation[1] == 1;
  }
};

// Whether there is one depth, nothing is empty, and positions and strides leave room in 32 bits.
inline bool is_planar_convolution(const ConvGeometry& g) {
  return g.kernel[0] == 1 && g.in[0] == 1 && g.out[0] == 1 && g.pad[0] == 0 && !needs_wide_coordinates(g) &&
         std::max(g.stride[1], g.stride[2]) < (1 << 20) && g.N > 0 && g.in[1] > 0 && g.in[2] > 0 &&
         g.out[1] > 0 && g.out[2] > 0;
}

inline bool is_planar_depthwise(const ConvGeometry& g) {
  return g.C == g.groups && g.K == g.groups && is_planar_convolution(g);
}

inline DepthwiseConv depthwise_conv(const ConvGeometry& g, const ConvStrides& x, const ConvStrides& y,
                                    const ConvStrides& w, bool grad_input) {
  DepthwiseConv c{};
  c.images = g.N;
  c.channels = static_cast<int>(g.C);
  c.transposed = grad_input && (g.stride[1] != 1 || g.stride[2] != 1);
  const bool turned = grad_input && !c.transposed;
  const ConvStrides& sources = grad_input ? y : x;
  const ConvStrides& results = grad_input ? x : y;
  const int kept[4] = {0, 1, 3, 4};
  for (int i = 0; i < 4; ++i) {
    c.source_strides[i] = sources[kept[i]];
    c.result_strides[i] = results[kept[i]];
  }
  c.w_strides[0] = w[0];
  for (int d = 0; d < 2; ++d) {
    c.results[d] = grad_input ? g.in[d + 1] : g.out[d + 1];
    c.sources[d] = grad_input ? g.out[d + 1] : g.in[d + 1];
    c.kernel[d] = g.kernel[d + 1];
    c.stride[d] = g.stride[d + 1];
    c.dilation[d] = g.dilation[d + 1];
    c.pad[d] = turned ? c.dilation[d] * (c.kernel[d] - 1) - g.pad[d + 1] : g.pad[d + 1];
    c.w_strides[d + 1] = turned ? -w[3 + d] : w[3 + d];
    if (turned) c.w_begin += (c.kernel[d] - 1) * w[3 + d];
  }
  return c;
}

// Whether channels are innermost in an array of [images, channels, rows, columns].
inline bool channels_innermost(const int64_t (&strides)[4], int channels, const int64_t (&size)[2]) {
  return channels > 1 && strides[1] == 1 && (size[1] == 1 || std::abs(strides[3]) >= channels) &&
         std::abs(strides[3]) < (int64_t{1} << 27);
}

}  // namespace
}  // namespace fastnn::cuda
