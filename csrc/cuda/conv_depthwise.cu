// Depthwise convolution on CUDA: the choice of kernel for each direction, by shape and strides alone.
//
//                 one filter a channel, planar, 32 bits                             anything else
//                 channels innermost                contiguous planes
//   forward       conv_depthwise_channels.cuh       conv_depthwise_planes.cuh       conv_depthwise_general.cuh
//   grad_input    conv_depthwise_channels.cuh       conv_depthwise_planes.cuh       conv_depthwise_general.cuh
//   grad_weight   conv_depthwise_weight.cuh         conv_depthwise_planes.cuh       conv_channel_sum.cuh
//
// The weight gradient of other windows than 3x3 and 5x5 with stride 1 or 2, and in float64, is always
// conv_channel_sum.cuh; so is that of channels innermost that are no multiple of 4. Planes that fit no tile are
// the general kernels'.
#include "conv_channel_sum.cuh"
#include "conv_depthwise.h"
#include "conv_depthwise_channels.cuh"
#include "conv_depthwise_general.cuh"
#include "conv_depthwise_planes.cuh"
#include "conv_depthwise_weight.cuh"
#include "conv_depthwise_window.cuh"
#include "conv_gemm_problem.cuh"
#include "conv_sum_splits.cuh"
#include "dispatch.cuh"

namespace fastnn::cuda {
namespace {

ChannelSum depthwise_weight_sum(const ConvGradWeightParams& params) {
  const ConvGeometry& g = params.geometry;
  ChannelSum p{};
  p.channels = g.K;
  p.positions = {g.N, {g.out[0], g.out[1], g.out[2]}, false};
  p.filters_per_channel = g.K / g.groups;
  p.taps = g.kernel[0] * g.kernel[1] * g.kernel[2];
  for (int d = 0; d < kSpatialDims; ++d) {
    p.kernel[d] = g.kernel[d];
    p.stride[d] = g.stride[d];
    p.pad[d] = g.pad[d];
    p.dilation[d] = g.dilation[d];
    p.in[d] = g.in[d];
  }
  std::copy_n(params.grad_y_strides, 2 + kSpatialDims, p.grad_y_strides);
  std::copy_n(params.x_strides, 2 + kSpatialDims, p.x_strides);
  std::copy_n(params.grad_w_strides, 2 + kSpatialDims, p.grad_w_strides);
  return p;
}

constexpr bool is_float64(DType dtype) { return dtype == DType::kFloat64; }

int scalar_size(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 8;
    case DType::kFloat32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
      return 2;
  }
  return 0;
}

DepthwiseConv conv_of(const ConvForwardParams& p) {
  DepthwiseConv c = depthwise_conv(p.geometry, p.x_strides, p.y_strides, p.w_strides, false);
  c.activation = p.activation;
  return c;
}
DepthwiseConv conv_of(const ConvGradInputParams& p) {
  return depthwise_conv(p.geometry, p.grad_x_strides, p.grad_y_strides, p.w_strides, true);
}
DepthwiseConv conv_of(const ConvGradWeightParams& p) {
  return depthwise_conv(p.geometry, p.x_strides, p.grad_y_strides, p.grad_w_strides, false);
}

DepthwiseOperands operands_of(const ConvForwardParams& p) { return {p.x, p.w, p.bias, p.y}; }
DepthwiseOperands operands_of(const ConvGradInputParams& p) { return {p.grad_y, p.w, p.bias, p.grad_x}; }

bool takes_channels(const DepthwiseConv& c) {
  return channels_innermost(c.source_strides, c.channels, c.sources) &&
         channels_innermost(c.result_strides, c.channels, c.results);
}

enum class Kernels { kChannels, kPlanes, kGeneral };

// Forward's and the data gradient's.
template <typename Params>
Kernels choose(const Params& p) {
  if (!is_planar_depthwise(p.geometry)) return Kernels::kGeneral;
  const DepthwiseConv c = conv_of(p);
  if (takes_channels(c)) return Kernels::kChannels;
  return takes_planes(c, scalar_size(p.dtype)) ? Kernels::kPlanes : Kernels::kGeneral;
}

Kernels choose(const ConvGradWeightParams& p) {
  if (!is_planar_depthwise(p.geometry) || is_float64(p.dtype)) return Kernels::kGeneral;
  const DepthwiseConv c = conv_of(p);
  if (takes_weight_channels(c)) return Kernels::kChannels;
  return takes_weight_planes(c, scalar_size(p.dtype)) ? Kernels::kPlanes : Kernels::kGeneral;
}

template <typename Params>
Status run(const Params& p, Stream stream) {
  const Kernels kernels = choose(p);
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    if (kernels == Kernels::kChannels) {
      return launch_depthwise_channels<scalar_t>(conv_of(p), operands_of(p), stream);
    }
    if (kernels == Kernels::kPlanes) {
      return launch_depthwise_planes<scalar_t>(conv_of(p), operands_of(p), stream);
    }
    if constexpr (std::is_same_v<Params, ConvForwardParams>) {
      return launch_depthwise_forward<scalar_t>(p, stream);
    } else {
      return launch_depthwise_grad_input<scalar_t>(p, stream);
    }
  });
}

// Blocks' sums that the weight gradient of all taps leaves.
int64_t weight_splits(const DepthwiseConv& c, Kernels kernels, DType dtype) {
  return kernels == Kernels::kChannels ? weight_channels_splits(c)
                                       : weight_planes_splits(c, scalar_size(dtype));
}

template <typename scalar_t>
Status run_weight_of_all_taps(const ConvGradWeightParams& p, Kernels kernels, Stream stream) {
  const DepthwiseConv c = conv_of(p);
  const auto launch_window = [&](auto window) {
    using Window = typename decltype(window)::type;
    if constexpr (!Window::kTransposed) {
      return kernels == Kernels::kChannels
                 ? launch_weight_channels<scalar_t, Window>(c, p.x, p.grad_y, p.workspace, stream)
                 : launch_weight_planes<scalar_t, Window>(c, p.x, p.grad_y, p.workspace, stream);
    } else {
      return Status::error("a weight gradient has no transposed window", "conv_depthwise");
    }
  };
  const Status status = dispatch_window(
      c, launch_window, [] { return Status::error("no window of all taps", "conv_depthwise"); });
  if (!status.ok()) return status;
  return combine_weight_grad<scalar_t>(c, p.workspace, weight_splits(c, kernels, p.dtype), p.grad_w, stream);
}

}  // namespace

// Beyond so many filters a channel a GEMM tile is at least half full, and reuses what it fetches.
bool is_depthwise(const ConvGeometry& g) {
  constexpr int64_t kMostFilters = 8;
  return g.C == g.groups && g.K / g.groups <= kMostFilters;
}

int64_t depthwise_workspace(const ConvGradWeightParams& p) {
  const Kernels kernels = choose(p);
  if (kernels != Kernels::kGeneral) {
    const DepthwiseConv c = conv_of(p);
    return weight_splits(c, kernels, p.dtype) * c.taps() * c.channels * static_cast<int64_t>(sizeof(float));
  }
  const ChannelSum sum = depthwise_weight_sum(p);
  const ChannelSumPlan plan = choose_channel_sum_plan(sum, scalar_size(p.dtype), true);
  if (plan.splits == 1) return 0;
  return plan.splits * sum.channels * sum.taps * (is_float64(p.dtype) ? sizeof(double) : sizeof(float));
}

Status launch_depthwise(const ConvForwardParams& p, Stream stream) { return run(p, stream); }
Status launch_depthwise(const ConvGradInputParams& p, Stream stream) { return run(p, stream); }

Status launch_depthwise(const ConvGradWeightParams& p, Stream stream) {
  const Kernels kernels = choose(p);
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    if constexpr (sizeof(scalar_t) < 8) {
      if (kernels != Kernels::kGeneral) return run_weight_of_all_taps<scalar_t>(p, kernels, stream);
    }
    const ChannelSum sum = depthwise_weight_sum(p);
    const ChannelSumPlan plan = choose_channel_sum_plan(sum, sizeof(scalar_t), true);
    void* const partial = plan.splits > 1 ? p.workspace : nullptr;
    const Status status = launch_channel_sum<scalar_t, true>(sum, plan, needs_wide_coordinates(p.geometry),
                                                             p.grad_y, p.x, p.grad_w, partial, stream);
    if (!status.ok() || partial == nullptr) return status;
    return launch_sum_splits<scalar_t>(grad_weight_problem(p), plan.splits, partial, nullptr, p.grad_w, stream);
  });
}

}  // namespace fastnn::cuda
