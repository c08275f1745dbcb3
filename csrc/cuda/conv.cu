// Convolution on CUDA: the choice of kernel for each direction.
//
// The first of these that takes it:
//   conv_small_groups.h            groups of few channels; not the weight gradient
//   conv_wgmma.h, conv_product.h   products large enough for pipelined tiles
//   conv_depthwise.h               C == groups, few filters a channel
//   conv_implicit_gemm.cuh         everything else: float64, few rows, coordinates beyond 32 bits
// The bias gradient is conv_grad_bias.cu's.
//
// What each kernel owns, what bounds it and how its error grows stand at the head of its file. This file turns
// the contract's parameters into the kernels' and chooses, by shape alone, or does what a variant asks for
// (conv_variant.h).
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <type_traits>

#include "../ops/conv.h"
#include "conv_depthwise.h"
#include "conv_gemm_problem.cuh"
#include "conv_implicit_gemm.cuh"
#include "conv_index.cuh"
#include "conv_product.h"
#include "conv_small_groups.h"
#include "conv_variant.h"
#include "conv_wgmma.h"
#include "dispatch.cuh"
#include "platform.cuh"

namespace fastnn::cuda {
namespace {

constexpr bool is_float64(DType dtype) { return dtype == DType::kFloat64; }

template <typename Params>
bool takes(ConvKernels kernels, const Params& p) {
  switch (kernels) {
    case ConvKernels::kSmallGroups:
      if constexpr (std::is_same_v<Params, ConvGradWeightParams>)
        return false;
      else
        return takes_small_groups(p);
    case ConvKernels::kWgmma:
      return takes_wgmma(p);
    case ConvKernels::kProduct:
      return takes_product(p);
    case ConvKernels::kDepthwise:
      return is_depthwise(p.geometry);
    case ConvKernels::kImplicitGemm:
      return true;
  }
  return false;
}

template <typename Params>
ConvKernels choose(const Params& p) {
  if (p.variant != 0) {
    const auto asked = static_cast<ConvKernels>((p.variant - 1) / kMostWays);
    if (takes(asked, p)) return asked;
  }
  for (int i = 0; i < kConvKernels; ++i) {
    if (takes(static_cast<ConvKernels>(i), p)) return static_cast<ConvKernels>(i);
  }
  return ConvKernels::kImplicitGemm;
}

ConvGemm problem_of(const ConvForwardParams& p) { return forward_problem(p); }
ConvGemm problem_of(const ConvGradInputParams& p) { return grad_input_problem(p); }
ConvGemm problem_of(const ConvGradWeightParams& p) { return grad_weight_problem(p); }

template <typename Params>
int64_t workspace(const Params& p) {
  switch (choose(p)) {
    case ConvKernels::kSmallGroups:
      return 0;
    case ConvKernels::kWgmma:
      return wgmma_workspace(p);
    case ConvKernels::kProduct:
      return product_workspace(p);
    case ConvKernels::kDepthwise:
      if constexpr (std::is_same_v<Params, ConvGradWeightParams>) return depthwise_workspace(p);
      return 0;
    case ConvKernels::kImplicitGemm:
      return gemm_workspace(problem_of(p), is_float64(p.dtype));
  }
  return 0;
}

// `gemm` launches the implicit GEMM of conv_implicit_gemm.cuh for the scalar type of its tag.
template <typename Params, typename Gemm>
Status run(const Params& p, Stream stream, Gemm gemm) {
  switch (choose(p)) {
    case ConvKernels::kSmallGroups:
      if constexpr (!std::is_same_v<Params, ConvGradWeightParams>) return launch_small_groups(p, stream);
      break;
    case ConvKernels::kWgmma:
      return launch_wgmma(p, stream);
    case ConvKernels::kProduct:
      return launch_product(p, stream);
    case ConvKernels::kDepthwise:
      return launch_depthwise(p, stream);
    case ConvKernels::kImplicitGemm:
      return dispatch_dtype(p.dtype, gemm);
  }
  return Status::error("no kernel", "conv");
}

template <typename Params>
ConvWay way_of_kernels(ConvKernels kernels, const Params& p) {
  if (kernels == ConvKernels::kWgmma) return wgmma_way(p);
  if (kernels == ConvKernels::kProduct) return product_way(p);
  ConvWay way;
  std::snprintf(way.name, sizeof(way.name), "%s",
                kernels == ConvKernels::kSmallGroups ? "small groups"
                : kernels == ConvKernels::kDepthwise ? "depthwise"
                                                     : "implicit gemm");
  return way;
}

// Variant 0's way, the others of the same kernels, and those of other kernels that do it. The implicit GEMM,
// slower by far than pipelined products, is listed where it alone does.
template <typename Params>
void list_variants(Params p, ConvVariant* variants, int& count) {
  p.variant = 0;
  const ConvKernels own = choose(p);
  const ConvWay first = way_of_kernels(own, p);
  count = 0;
  const auto add = [&](int32_t number, bool same_bits, const ConvWay& way) {
    const auto is_same = [&](const ConvVariant& v) { return std::strcmp(v.name, way.name) == 0; };
    if (count == kMaxConvVariants || std::any_of(variants, variants + count, is_same)) return;
    ConvVariant& variant = variants[count++];
    variant.number = number;
    variant.same_bits = same_bits;
    std::copy_n(way.name, sizeof(way.name), variant.name);
  };
  add(0, true, first);
  for (int i = 0; i < kConvKernels; ++i) {
    const auto kernels = static_cast<ConvKernels>(i);
    if (kernels != own && (kernels == ConvKernels::kImplicitGemm || !takes(kernels, p))) continue;
    p.variant = variant_of(kernels, 0);
    const int ways = way_of_kernels(kernels, p).ways;
    for (int w = 0; w < ways; ++w) {
      if (kernels == own && w == first.way) continue;
      p.variant = variant_of(kernels, w);
      const ConvWay way = way_of_kernels(kernels, p);
      // Far behind, and perhaps with partial sums larger than anything else.
      if (kernels == own && way.cycles > 2 * first.cycles) continue;
      add(p.variant, kernels == own && way.order == first.order, way);
    }
  }
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
    return launch_gemm<typename decltype(tag)::type>(problem_of(p), p.w, p.grad_y, p.bias, p.grad_x,
                                                     p.workspace, stream);
  });
}

Status conv_grad_weight(const ConvGradWeightParams& p, Stream stream) {
  return run(p, stream, [&](auto tag) {
    return launch_gemm<typename decltype(tag)::type>(problem_of(p), p.grad_y, p.x, nullptr, p.grad_w,
                                                     p.workspace, stream);
  });
}

Status conv_variants(const ConvVariantsParams& p, Stream) {
  if (p.forward != nullptr) list_variants(*p.forward, p.variants, *p.count);
  if (p.grad_input != nullptr) list_variants(*p.grad_input, p.variants, *p.count);
  if (p.grad_weight != nullptr) list_variants(*p.grad_weight, p.variants, *p.count);
  return Status::success();
}

}  // namespace fastnn::cuda
