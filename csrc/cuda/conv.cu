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
#include "conv_depthwise.h"
#include "conv_gemm_problem.cuh"
#include "conv_implicit_gemm.cuh"
#include "conv_index.cuh"
#include "conv_mma.h"
#include "conv_small_groups.h"
#include "conv_sum_splits.cuh"
#include "dispatch.cuh"
#include "platform.cuh"

namespace fastnn::cuda {
namespace {

constexpr bool is_float64(DType dtype) { return dtype == DType::kFloat64; }

}  // namespace

int64_t conv_forward_workspace(const ConvForwardParams& p) {
  if (takes_small_groups(p)) return 0;
  if (takes_mma(p)) return mma_workspace(p);
  return is_depthwise(p.geometry) ? 0 : gemm_workspace(forward_problem(p), is_float64(p.dtype));
}

Status conv_forward(const ConvForwardParams& p, Stream stream) {
  if (takes_small_groups(p)) return launch_small_groups(p, stream);
  if (takes_mma(p)) return launch_mma(p, stream);
  if (is_depthwise(p.geometry)) return launch_depthwise(p, stream);
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    return launch_gemm<scalar_t>(forward_problem(p), p.w, p.x, p.bias, p.y, p.workspace, stream);
  });
}

int64_t conv_grad_input_workspace(const ConvGradInputParams& p) {
  if (takes_small_groups(p)) return 0;
  if (takes_mma(p)) return mma_workspace(p);
  return is_depthwise(p.geometry) ? 0 : gemm_workspace(grad_input_problem(p), is_float64(p.dtype));
}

Status conv_grad_input(const ConvGradInputParams& p, Stream stream) {
  if (takes_small_groups(p)) return launch_small_groups(p, stream);
  if (takes_mma(p)) return launch_mma(p, stream);
  if (is_depthwise(p.geometry)) return launch_depthwise(p, stream);
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    return launch_gemm<scalar_t>(grad_input_problem(p), p.w, p.grad_y, nullptr, p.grad_x, p.workspace, stream);
  });
}

int64_t conv_grad_weight_workspace(const ConvGradWeightParams& p) {
  if (takes_mma(p)) return mma_workspace(p);
  if (is_depthwise(p.geometry)) return depthwise_workspace(p);
  return gemm_workspace(grad_weight_problem(p), is_float64(p.dtype));
}

Status conv_grad_weight(const ConvGradWeightParams& p, Stream stream) {
  if (takes_mma(p)) return launch_mma(p, stream);
  if (is_depthwise(p.geometry)) return launch_depthwise(p, stream);
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    return launch_gemm<scalar_t>(grad_weight_problem(p), p.grad_y, p.x, nullptr, p.grad_w, p.workspace, stream);
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
