// Convolution on CUDA: the choice of kernel for each direction.
//
// The first of these that takes it:
//   conv_small_groups.h        groups of few channels; not the weight gradient
//   conv_wgmma.h, conv_mma.h   products large enough for pipelined tiles
//   conv_depthwise.h           C == groups, few filters a channel
//   conv_implicit_gemm.cuh     everything else: float64, few rows, coordinates beyond 32 bits
// The bias gradient is conv_channel_sum.cuh's, a block a tile of channels.
//
// What each kernel owns, what bounds it and how its error grows stand at the head of its file. This file turns
// the contract's parameters into the kernels' and chooses, by shape alone.
#include <type_traits>

#include "../ops/conv.h"
#include "conv_channel_sum.cuh"
#include "conv_depthwise.h"
#include "conv_gemm_problem.cuh"
#include "conv_implicit_gemm.cuh"
#include "conv_index.cuh"
#include "conv_mma.h"
#include "conv_small_groups.h"
#include "conv_wgmma.h"
#include "dispatch.cuh"
#include "platform.cuh"

namespace fastnn::cuda {
namespace {

constexpr bool is_float64(DType dtype) { return dtype == DType::kFloat64; }

enum class Kernels { kSmallGroups, kWgmma, kMma, kDepthwise, kImplicitGemm };

template <typename Params>
Kernels choose(const Params& p) {
  if constexpr (!std::is_same_v<Params, ConvGradWeightParams>) {
    if (takes_small_groups(p)) return Kernels::kSmallGroups;
  }
  if (takes_wgmma(p)) return Kernels::kWgmma;
  if (takes_mma(p)) return Kernels::kMma;
  return is_depthwise(p.geometry) ? Kernels::kDepthwise : Kernels::kImplicitGemm;
}

ConvGemm problem_of(const ConvForwardParams& p) { return forward_problem(p); }
ConvGemm problem_of(const ConvGradInputParams& p) { return grad_input_problem(p); }
ConvGemm problem_of(const ConvGradWeightParams& p) { return grad_weight_problem(p); }

template <typename Params>
int64_t workspace(const Params& p) {
  switch (choose(p)) {
    case Kernels::kSmallGroups:
      return 0;
    case Kernels::kWgmma:
      return wgmma_workspace(p);
    case Kernels::kMma:
      return mma_workspace(p);
    case Kernels::kDepthwise:
      if constexpr (std::is_same_v<Params, ConvGradWeightParams>) return depthwise_workspace(p);
      return 0;
    case Kernels::kImplicitGemm:
      return gemm_workspace(problem_of(p), is_float64(p.dtype));
  }
  return 0;
}

// `gemm` launches the implicit GEMM of conv_implicit_gemm.cuh for the scalar type of its tag.
template <typename Params, typename Gemm>
Status run(const Params& p, Stream stream, Gemm gemm) {
  switch (choose(p)) {
    case Kernels::kSmallGroups:
      if constexpr (!std::is_same_v<Params, ConvGradWeightParams>) return launch_small_groups(p, stream);
      break;
    case Kernels::kWgmma:
      return launch_wgmma(p, stream);
    case Kernels::kMma:
      return launch_mma(p, stream);
    case Kernels::kDepthwise:
      return launch_depthwise(p, stream);
    case Kernels::kImplicitGemm:
      return dispatch_dtype(p.dtype, gemm);
  }
  return Status::error("no kernel", "conv");
}

}  // namespace

int64_t conv_forward_workspace(const ConvForwardParams& p) { return workspace(p); }
int64_t conv_grad_input_workspace(const ConvGradInputParams& p) { return workspace(p); }
int64_t conv_grad_weight_workspace(const ConvGradWeightParams& p) { return workspace(p); }

Status conv_forward(const ConvForwardParams& p, Stream stream) {
  return run(p, stream, [&](auto tag) {
    return launch_gemm<typename decltype(tag)::type>(problem_of(p), p.w, p.x, p.bias, p.y, p.workspace, stream);
  });
}

Status conv_grad_input(const ConvGradInputParams& p, Stream stream) {
  return run(p, stream, [&](auto tag) {
    return launch_gemm<typename decltype(tag)::type>(problem_of(p), p.w, p.grad_y, nullptr, p.grad_x,
                                                     p.workspace, stream);
  });
}

Status conv_grad_weight(const ConvGradWeightParams& p, Stream stream) {
  return run(p, stream, [&](auto tag) {
    return launch_gemm<typename decltype(tag)::type>(problem_of(p), p.grad_y, p.x, nullptr, p.grad_w,
                                                     p.workspace, stream);
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
