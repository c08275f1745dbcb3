// Depthwise convolution with any strides, any filters a channel and coordinates of 64 bits, forward and data
// gradient: each filter sees one channel (C == groups), so a GEMM tile would multiply mostly by nothing.
//
//   y[n, k, o]      = bias[k] + sum over r of x[n, k / m, o * stride + r * dilation - pad] * w[k, r],  m = K /
//   C grad_x[n, c, i] = sum over j < m and the taps r that meet i of grad_y[n, c * m + j, o] * w[c * m + j, r]
//
// A thread owns one element of the result; consecutive threads run along the index that is contiguous in it.
// What bounds it: bytes. A tap is one multiply-add on one element that the neighbouring threads read too (from
// L1), so memory moves each tensor about once: R multiply-adds for 2 elements.
// Padding is skipped, not multiplied. Error: one chain of R (grad_x: of m * R / strides) multiply-adds in
// acc_t.
#pragma once

#include <type_traits>

#include "conv_activation.cuh"
#include "conv_index.cuh"
#include "dispatch.cuh"
#include "platform.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kDepthwiseThreads = 256;
// Blocks a multiprocessor: 24 warps hide the latency of L1; 64-bit coordinates need the registers instead.
template <typename coord_t>
constexpr int depthwise_blocks() {
  return sizeof(coord_t) == 4 ? 3 : 1;
}
template <typename scalar_t, typename coord_t>
__global__ void __launch_bounds__(kDepthwiseThreads, depthwise_blocks<coord_t>())
    conv_depthwise_forward_kernel(ConvForwardParams p, IndexRange range) {
  using acc_t = acc_type<scalar_t>;
  using unsigned_t = std::make_unsigned_t<coord_t>;
  const ConvGeometry& g = p.geometry;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kDepthwiseThreads + threadIdx.x;
  const int64_t per_image = range.size();
  const int64_t n = quotient(index, per_image);
  if (n >= g.N) return;
  const auto o = digits_of<coord_t>(index - n * per_image, range);
  const int64_t k = o.lead;
  const scalar_t* const x =
      static_cast<const scalar_t*>(p.x) + n * p.x_strides[0] + quotient(k, g.K / g.groups) * p.x_strides[1];
  const scalar_t* const w = static_cast<const scalar_t*>(p.w) + k * p.w_strides[0];
  const coord_t begin_d = static_cast<coord_t>(o.d * g.stride[0] - g.pad[0]);
  const coord_t begin_h = static_cast<coord_t>(o.h * g.stride[1] - g.pad[1]);
  const coord_t begin_w = static_cast<coord_t>(o.w * g.stride[2] - g.pad[2]);
  const auto outside = [](coord_t position, int64_t size) {
    return static_cast<unsigned_t>(position) >= static_cast<unsigned_t>(size);
  };
  acc_t sum = 0;
  for (coord_t rd = 0; rd < static_cast<coord_t>(g.kernel[0]); ++rd) {
    const coord_t d = begin_d + rd * static_cast<coord_t>(g.dilation[0]);
    if (outside(d, g.in[0])) continue;
    for (coord_t rh = 0; rh < static_cast<coord_t>(g.kernel[1]); ++rh) {
      const coord_t h = begin_h + rh * static_cast<coord_t>(g.dilation[1]);
      if (outside(h, g.in[1])) continue;
      const scalar_t* const x_line = x + d * p.x_strides[2] + h * p.x_strides[3];
      const scalar_t* const w_line = w + rd * p.w_strides[2] + rh * p.w_strides[3];
      for (coord_t rw = 0; rw < static_cast<coord_t>(g.kernel[2]); ++rw) {
        const coord_t v = begin_w + rw * static_cast<coord_t>(g.dilation[2]);
        if (outside(v, g.in[2])) continue;
        sum += to_acc(x_line[v * p.x_strides[4]]) * to_acc(w_line[rw * p.w_strides[4]]);
      }
    }
  }
  if (p.bias != nullptr) sum += to_acc(static_cast<const scalar_t*>(p.bias)[k]);
  static_cast<scalar_t*>(p.y)[n * p.y_strides[0] + k * p.y_strides[1] + o.d * p.y_strides[2] +
                              o.h * p.y_strides[3] + o.w * p.y_strides[4]] =
      activated(p.activation, from_acc<scalar_t>(sum));
}

struct DepthwiseTaps {
  TapDimension dim[kSpatialDims];
};

template <typename scalar_t, typename coord_t>
__global__ void __launch_bounds__(kDepthwiseThreads, depthwise_blocks<coord_t>())
    conv_depthwise_grad_input_kernel(ConvGradInputParams p, IndexRange range, DepthwiseTaps taps) {
  using acc_t = acc_type<scalar_t>;
  using unsigned_t = std::make_unsigned_t<coord_t>;
  const ConvGeometry& g = p.geometry;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kDepthwiseThreads + threadIdx.x;
  const int64_t per_image = range.size();
  const int64_t n = quotient(index, per_image);
  if (n >= g.N) return;
  const auto i = digits_of<coord_t>(index - n * per_image, range);
  const int64_t c = i.lead, filters = quotient(g.K, g.C);
  const TapsOfPosition td = taps_of_position(taps.dim[0], i.d);
  const TapsOfPosition th = taps_of_position(taps.dim[1], i.h);
  const TapsOfPosition tw = taps_of_position(taps.dim[2], i.w);
  const auto outside = [](coord_t position, int64_t size) {
    return static_cast<unsigned_t>(position) >= static_cast<unsigned_t>(size);
  };
  acc_t sum = 0;
  for (int64_t k = c * filters; k < (c + 1) * filters; ++k) {
    const scalar_t* const grad_y =
        static_cast<const scalar_t*>(p.grad_y) + n * p.grad_y_strides[0] + k * p.grad_y_strides[1];
    const scalar_t* const w = static_cast<const scalar_t*>(p.w) + k * p.w_strides[0] +
                              td.first * p.w_strides[2] + th.first * p.w_strides[3] + tw.first * p.w_strides[4];
    for (coord_t rd = 0; rd < static_cast<coord_t>(td.count); ++rd) {
      const coord_t d = static_cast<coord_t>(td.origin) - rd * static_cast<coord_t>(taps.dim[0].output_step);
      if (outside(d, g.out[0])) continue;
      for (coord_t rh = 0; rh < static_cast<coord_t>(th.count); ++rh) {
        const coord_t h = static_cast<coord_t>(th.origin) - rh * static_cast<coord_t>(taps.dim[1].output_step);
        if (outside(h, g.out[1])) continue;
        const scalar_t* const grad_y_line = grad_y + d * p.grad_y_strides[2] + h * p.grad_y_strides[3];
        const scalar_t* const w_line =
            w + rd * taps.dim[0].tap_step * p.w_strides[2] + rh * taps.dim[1].tap_step * p.w_strides[3];
        for (coord_t rw = 0; rw < static_cast<coord_t>(tw.count); ++rw) {
          const coord_t v =
              static_cast<coord_t>(tw.origin) - rw * static_cast<coord_t>(taps.dim[2].output_step);
          if (outside(v, g.out[2])) continue;
          sum += to_acc(grad_y_line[v * p.grad_y_strides[4]]) *
                 to_acc(w_line[rw * taps.dim[2].tap_step * p.w_strides[4]]);
        }
      }
    }
  }
  if (p.bias != nullptr) sum += to_acc(static_cast<const scalar_t*>(p.bias)[c]);
  static_cast<scalar_t*>(
      p.grad_x)[n * p.grad_x_strides[0] + c * p.grad_x_strides[1] + i.d * p.grad_x_strides[2] +
                i.h * p.grad_x_strides[3] + i.w * p.grad_x_strides[4]] = from_acc<scalar_t>(sum);
}

// The channels and positions of one image of a result, in the order of its memory.
inline IndexRange image_range(int64_t channels, const int64_t (&spatial)[kSpatialDims],
                              const ConvStrides& strides) {
  return {channels, {spatial[0], spatial[1], spatial[2]}, strides[1] < strides[4]};
}

template <typename scalar_t>
Status launch_depthwise_forward(const ConvForwardParams& p, Stream stream) {
  constexpr const char* kName = "conv_depthwise_forward_kernel";
  const IndexRange range = image_range(p.geometry.K, p.geometry.out, p.y_strides);
  dim3 grid;
  const Status status = grid_of(ceil_div(p.geometry.N * range.size(), kDepthwiseThreads), kName, grid);
  if (!status.ok()) return status;
  return launch(kName,
                needs_wide_coordinates(p.geometry) ? conv_depthwise_forward_kernel<scalar_t, int64_t>
                                                   : conv_depthwise_forward_kernel<scalar_t, int32_t>,
                grid, dim3(kDepthwiseThreads), 0, stream, p, range);
}

template <typename scalar_t>
Status launch_depthwise_grad_input(const ConvGradInputParams& p, Stream stream) {
  constexpr const char* kName = "conv_depthwise_grad_input_kernel";
  const IndexRange range = image_range(p.geometry.C, p.geometry.in, p.grad_x_strides);
  DepthwiseTaps taps;
  for (int d = 0; d < kSpatialDims; ++d) taps.dim[d] = make_tap_dimension(p.geometry, d);
  dim3 grid;
  const Status status = grid_of(ceil_div(p.geometry.N * range.size(), kDepthwiseThreads), kName, grid);
  if (!status.ok()) return status;
  return launch(kName,
                needs_wide_coordinates(p.geometry) ? conv_depthwise_grad_input_kernel<scalar_t, int64_t>
                                                   : conv_depthwise_grad_input_kernel<scalar_t, int32_t>,
                grid, dim3(kDepthwiseThreads), 0, stream, p, range, taps);
}

}  // namespace
}  // namespace fastnn::cuda
