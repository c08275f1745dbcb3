// Convolution on CUDA: the choice of kernel for each direction.
//
//   direction     depthwise (C == groups, few filters a channel)     everything else
//   forward       conv_depthwise.cuh, a thread an output             conv_implicit_gemm.cuh
//   grad_input    conv_depthwise.cuh, a thread a position of x       conv_implicit_gemm.cuh, by residue class
//   grad_weight   conv_channel_sum.cuh, a block a tap                conv_implicit_gemm.cuh, k split
//   grad_bias                          conv_channel_sum.cuh, a block a channel tile
//
// What each kernel owns, what bounds it and how its error grows stand at the head of its file. This file turns
// the contract's parameters into the kernels' and chooses, by shape alone.
#include "../ops/conv.h"
#include "conv_channel_sum.cuh"
#include "conv_depthwise.cuh"
#include "conv_gemm_problem.cuh"
#include "conv_implicit_gemm.cuh"
#include "conv_index.cuh"
#include "conv_mma.h"
#include "conv_sum_splits.cuh"
#include "conv_wgmma.h"
#include "dispatch.cuh"
#include "platform.cuh"

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

}  // namespace

int64_t conv_forward_workspace(const ConvForwardParams& p) {
  if (takes_wgmma(p)) return wgmma_workspace(p);
  if (takes_mma(p)) return mma_workspace(p);
  return is_depthwise(p.geometry) ? 0 : gemm_workspace(forward_problem(p), is_float64(p.dtype));
}

Status conv_forward(const ConvForwardParams& p, Stream stream) {
  if (takes_wgmma(p)) return launch_wgmma(p, stream);
  if (takes_mma(p)) return launch_mma(p, stream);
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    if (is_depthwise(p.geometry)) return launch_depthwise_forward<scalar_t>(p, stream);
    return launch_gemm<scalar_t>(forward_problem(p), p.w, p.x, p.bias, p.y, p.workspace, stream);
  });
}

int64_t conv_grad_input_workspace(const ConvGradInputParams& p) {
  if (takes_wgmma(p)) return wgmma_workspace(p);
  if (takes_mma(p)) return mma_workspace(p);
  return is_depthwise(p.geometry) ? 0 : gemm_workspace(grad_input_problem(p), is_float64(p.dtype));
}

Status conv_grad_input(const ConvGradInputParams& p, Stream stream) {
  if (takes_wgmma(p)) return launch_wgmma(p, stream);
  if (takes_mma(p)) return launch_mma(p, stream);
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    if (is_depthwise(p.geometry)) return launch_depthwise_grad_input<scalar_t>(p, stream);
    return launch_gemm<scalar_t>(grad_input_problem(p), p.w, p.grad_y, nullptr, p.grad_x, p.workspace, stream);
  });
}

int64_t conv_grad_weight_workspace(const ConvGradWeightParams& p) {
  if (takes_wgmma(p)) return wgmma_workspace(p);
  if (takes_mma(p)) return mma_workspace(p);
  if (!is_depthwise(p.geometry)) return gemm_workspace(grad_weight_problem(p), is_float64(p.dtype));
  const ChannelSum sum = depthwise_weight_sum(p);
  const ChannelSumPlan plan = choose_channel_sum_plan(sum, scalar_size(p.dtype), true);
  if (plan.splits == 1) return 0;
  return plan.splits * sum.channels * sum.taps * (is_float64(p.dtype) ? sizeof(double) : sizeof(float));
}

Status conv_grad_weight(const ConvGradWeightParams& p, Stream stream) {
  if (takes_wgmma(p)) return launch_wgmma(p, stream);
  if (takes_mma(p)) return launch_mma(p, stream);
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const ConvGemm problem = grad_weight_problem(p);
    if (!is_depthwise(p.geometry)) {
      return launch_gemm<scalar_t>(problem, p.grad_y, p.x, nullptr, p.grad_w, p.workspace, stream);
    }
    const ChannelSum sum = depthwise_weight_sum(p);
    const ChannelSumPlan plan = choose_channel_sum_plan(sum, sizeof(scalar_t), true);
    void* const partial = plan.splits > 1 ? p.workspace : nullptr;
    const Status status = launch_channel_sum<scalar_t, true>(sum, plan, needs_wide_coordinates(p.geometry),
                                                             p.grad_y, p.x, p.grad_w, partial, stream);
    if (!status.ok() || partial == nullptr) return status;
    return launch_sum_splits<scalar_t>(problem, plan.splits, partial, nullptr, p.grad_w, stream);
  });
}

Status conv_grad_bias(const ConvGradBiasParams& p, Stream stream) {
  ChannelSum sum{};
  sum.channels = p.K;
  sum.positions = {p.N, {p.out[0], p.out[1], p.out[2]}, false};
  sum.taps = 1;
  std::copy_n(p.grad_y_strides, 2 + kSpatialDims, sum.grad_y_strides);
  bool wide = p.N > std::numeric_limits<int32_t>::max() / 4;
  for (const int64_t size : p.out) wide |= size > std::numeric_limits<int32_t>::max() / 4;
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const ChannelSumPlan plan = choose_channel_sum_plan(sum, sizeof(scalar_t), false);
    return launch_channel_sum<scalar_t, false>(sum, plan, wide, p.grad_y, nullptr, p.grad_bias, nullptr,
                                               stream);
  });
}

}  // namespace fastnn::cuda
