// Convolution on the CPU: forward, data gradient, weight gradient, bias gradient.
//
//   y[n, k, o] = bias[k] + sum over r, c of x[n, c, o * stride + r * dilation - pad] * w[k, c, r]
//
// Each of the first three is an implicit matrix product (conv_product.h) of two patch matrices
// (conv_patches.h), computed a panel at a time by one register micro-kernel (conv_gemm.h), which reads
// activations in place where it can (conv_in_place.h); per group:
//
//   forward      [K x R C] [R C x positions of y]
//   grad_input   [C x R K] [R K x positions of x], once for each residue of the position modulo the stride:
//                the positions of one residue see the same taps, and see grad_y at stride 1, so nothing is
//                multiplied by the zeros between strides
//   grad_weight  [K x positions of y] [positions of y x R C], the reduction cut in parts by the shape alone
//
// Which operand is rows (broadcast) and which is columns (vectors) follows the memory format, so that reading
// in place, or packing, sees runs and results are stored as runs: channels-first has positions as columns,
// channels-last has channels there, and so have small planes, of which a copy is read
// (conv_channels_innermost.h). grad_weight packs both operands (conv_grad_weight.h) or has patches as rows, in
// place (conv_grad_weight_in_place.h).
//
// bfloat16 is multiplied by pairs where the processor has an instruction for that (conv_pairs_product.h), at
// twice the rate of float; elsewhere, as float16 everywhere, it is widened while it is packed.
//
// FLOPs: 2 N K (C / groups) R |out| for each direction; bound by multiply-adds. With few channels packing
// patches would cost as much: such convolutions read rows of the image that are copied with their padding
// (conv_staged_gather.h, conv_staged_grad_weight.h), and grad_input at a stride multiplies all taps of a
// position of y at once and adds them up afterwards (conv_spread.h). Depthwise convolutions (one channel and
// one filter a group) are bound by loads and have kernels of their own (conv_depthwise.h).
//
// Error: sums of at most 256 products, then a chain over those sums and the bias, all in acc_t; an element of y
// lies within (256 + R C / groups / 256 + 1) * eps(acc_t) * sum |x w| of the exact one, plus one rounding to
// scalar_t; the same for grad_input with K for C, and for grad_weight with the number of positions for R C. By
// pairs, 512 stands for 256, and subnormal factors, sums and results are 0 (conv_pairs.h). The depthwise
// kernels and the bias gradient state their own.
//
// Bits do not depend on the number of threads. A sample's do not depend on its batch in forward and grad_input.
#include "../ops/conv.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "conv_depthwise_channels.h"
#include "conv_depthwise_channels_grad.h"
#include "conv_depthwise_planes.h"
#include "conv_depthwise_planes_grad.h"
#include "conv_gather.h"
#include "conv_grad_bias.h"
#include "conv_grad_weight.h"
#include "conv_grad_weight_in_place.h"
#include "conv_operands.h"
#include "conv_pairs_product.h"
#include "conv_spread.h"
#include "conv_staged_gather.h"
#include "conv_staged_grad_weight.h"
#include "dispatch.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND {
namespace {

// Which kernel computes a convolution; kSpread grad_input alone.
enum class Variant { kProduct, kStaged, kSpread, kDepthwiseByChannels, kDepthwiseByPlanes };

// Channels (in grad_input: filters) up to which a convolution of planes reads staged rows. Beyond, runs of the
// reduction are long enough to be addressed in place, and a band of rows would outgrow its buffer.
constexpr int64_t kMaxStagedChannels = 16;

template <typename acc_t>
bool reads_staged_rows(const ConvGeometry& g, bool grad_input) {
  if (!std::is_same_v<acc_t, float> || g.groups != 1) return false;
  if (g.in[0] != 1 || g.kernel[0] != 1 || g.out[0] != 1) return false;
  if (grad_input && (g.stride[1] != 1 || g.stride[2] != 1)) return false;
  const PlaneGeometry planes = grad_input ? grad_input_geometry(g) : plane_geometry(g);
  return planes.channels <= kMaxStagedChannels && staged_rows_fit(planes);
}

// y_strides: of the activation on the output's side, which grad_input reads.
template <typename scalar_t>
Variant choose_variant(const ConvGeometry& g, const ConvStrides& x_strides, const ConvStrides& y_strides,
                       bool grad_input) {
  using acc_t = acc_type<scalar_t>;
  if (reads_staged_rows<acc_t>(g, grad_input)) return Variant::kStaged;
  if (grad_input && SpreadGradInput<scalar_t>::takes(g)) return Variant::kSpread;
  if (g.C != g.groups || g.K != g.groups || g.groups == 1 || volume(g.kernel) > kMaxTaps)
    return Variant::kProduct;
  if (grad_input && *std::max_element(g.stride, g.stride + kSpatialDims) > kMaxResidues)
    return Variant::kProduct;
  const bool x_by_channels = channels_contiguous(g.in, x_strides);
  if (x_by_channels && channels_contiguous(g.out, y_strides)) return Variant::kDepthwiseByChannels;
  const auto columns_contiguous = [](const int64_t (&size)[kSpatialDims], const ConvStrides& strides) {
    return strides[4] == 1 || size[2] <= 1;
  };
  if (x_by_channels || !columns_contiguous(g.in, x_strides) || !columns_contiguous(g.out, y_strides)) {
    return Variant::kProduct;
  }
  const auto make = grad_input ? DepthwiseDim::grad_input : DepthwiseDim::forward;
  const DepthwiseDim dim[] = {make(g, 0), make(g, 1), make(g, 2)};
  return PlanePlan<acc_t>(dim, g.C, false).fits ? Variant::kDepthwiseByPlanes : Variant::kProduct;
}

// ---- grad_weight ----

// Which of the two ways computes grad_weight: both operands packed with channels as columns, or patches in
// place. Channels-first images are packed where filters make up for transposing them.
template <typename scalar_t>
bool channels_are_packed(const ConvGradWeightParams& params) {
  using acc_t = acc_type<scalar_t>;
  const ConvGeometry& g = params.geometry;
  const int64_t channels = g.C / g.groups, filters = g.K / g.groups;
  if (kByPairs<scalar_t>) return false;
  if (8 * round_up(channels, kLanes<acc_t>) > 9 * channels) return false;  // too many lanes would be empty
  if (params.x_strides[1] == 1) return true;
  return std::is_same_v<scalar_t, acc_t> && 4 * filters >= g.N * volume(g.out);
}

}  // namespace

Status conv_forward(const ConvForwardParams& params, Stream) {
  return dispatch_dtype(params.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    switch (choose_variant<scalar_t>(params.geometry, params.x_strides, params.y_strides, false)) {
      case Variant::kStaged:
        StagedGatherRunner<scalar_t>(staged_forward<scalar_t>(params)).run(params.workspace);
        break;
      case Variant::kDepthwiseByChannels:
        channels_gather(depthwise_forward<scalar_t>(params), params.workspace);
        break;
      case Variant::kDepthwiseByPlanes:
        planes_gather(depthwise_forward<scalar_t>(params));
        break;
      case Variant::kProduct:
        run_forward_product<scalar_t>(params);
        break;
    }
    return Status::success();
  });
}

int64_t conv_forward_workspace(const ConvForwardParams& params) {
  int64_t bytes = 0;
  dispatch_dtype(params.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = acc_type<scalar_t>;
    switch (choose_variant<scalar_t>(params.geometry, params.x_strides, params.y_strides, false)) {
      case Variant::kStaged:
        bytes = StagedGatherRunner<scalar_t>(staged_forward<scalar_t>(params)).workspace_bytes();
        break;
      case Variant::kDepthwiseByChannels:
        bytes = channels_gather_bytes<acc_t>(volume(params.geometry.kernel), params.geometry.C);
        break;
      case Variant::kDepthwiseByPlanes:
        break;
      case Variant::kProduct:
        bytes = forward_product_bytes<scalar_t>(params);
        break;
    }
    return Status::success();
  });
  return bytes;
}

Status conv_grad_input(const ConvGradInputParams& params, Stream) {
  return dispatch_dtype(params.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    switch (choose_variant<scalar_t>(params.geometry, params.grad_x_strides, params.grad_y_strides, true)) {
      case Variant::kStaged:
        StagedGatherRunner<scalar_t>(staged_grad_input<scalar_t>(params)).run(params.workspace);
        break;
      case Variant::kSpread:
        SpreadGradInput<scalar_t>(params).run();
        break;
      case Variant::kDepthwiseByChannels:
        channels_gather(depthwise_grad_input<scalar_t>(params), params.workspace);
        break;
      case Variant::kDepthwiseByPlanes:
        planes_gather(depthwise_grad_input<scalar_t>(params));
        break;
      case Variant::kProduct:
        run_grad_input_products<scalar_t>(params);
        break;
    }
    return Status::success();
  });
}

int64_t conv_grad_input_workspace(const ConvGradInputParams& params) {
  int64_t bytes = 0;
  dispatch_dtype(params.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = acc_type<scalar_t>;
    switch (choose_variant<scalar_t>(params.geometry, params.grad_x_strides, params.grad_y_strides, true)) {
      case Variant::kStaged:
        bytes = StagedGatherRunner<scalar_t>(staged_grad_input<scalar_t>(params)).workspace_bytes();
        break;
      case Variant::kSpread:
        bytes = SpreadGradInput<scalar_t>(params).workspace_bytes();
        break;
      case Variant::kDepthwiseByChannels:
        bytes = channels_gather_bytes<acc_t>(volume(params.geometry.kernel), params.geometry.C);
        break;
      case Variant::kDepthwiseByPlanes:
        break;
      case Variant::kProduct:
        bytes = grad_input_products_bytes<scalar_t>(params);
        break;
    }
    return Status::success();
  });
  return bytes;
}

Status conv_grad_weight(const ConvGradWeightParams& params, Stream) {
  return dispatch_dtype(params.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const ConvGeometry& g = params.geometry;
    switch (choose_variant<scalar_t>(g, params.x_strides, params.grad_y_strides, false)) {
      case Variant::kStaged:
        StagedGradWeight<scalar_t>(params).run();
        break;
      case Variant::kDepthwiseByChannels:
        channels_grad_weight<scalar_t>(params);
        break;
      case Variant::kDepthwiseByPlanes:
        planes_grad_weight<scalar_t>(params);
        break;
      case Variant::kProduct:
        if (channels_are_packed<scalar_t>(params)) {
          GradWeightRunner<scalar_t>(params).run();
        } else {
          grad_weight_in_place<scalar_t>(params);
        }
        break;
    }
    return Status::success();
  });
}

int64_t conv_grad_weight_workspace(const ConvGradWeightParams& params) {
  int64_t bytes = 0;
  dispatch_dtype(params.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = acc_type<scalar_t>;
    const ConvGeometry& g = params.geometry;
    switch (choose_variant<scalar_t>(g, params.x_strides, params.grad_y_strides, false)) {
      case Variant::kStaged:
        bytes = StagedGradWeight<scalar_t>(params).workspace_bytes();
        break;
      case Variant::kDepthwiseByChannels:
        bytes = ChannelsGradPlan<acc_t>(g).bytes();
        break;
      case Variant::kDepthwiseByPlanes: {
        const DepthwiseDim dim[] = {DepthwiseDim::forward(g, 0), DepthwiseDim::forward(g, 1),
                                    DepthwiseDim::forward(g, 2)};
        bytes = PlanesGradPlan<acc_t>(g, dim, dense_rows(params)).bytes(g.C);
        break;
      }
      case Variant::kProduct:
        bytes = channels_are_packed<scalar_t>(params)
                    ? GradWeightPlan<acc_t>(flattened(params), std::is_same_v<scalar_t, acc_t>).bytes()
                    : grad_weight_in_place_bytes<scalar_t>(params);
        break;
    }
    return Status::success();
  });
  return bytes;
}

Status conv_grad_bias(const ConvGradBiasParams& params, Stream) {
  return dispatch_dtype(params.dtype, [&](auto tag) {
    grad_bias<typename decltype(tag)::type>(params);
    return Status::success();
  });
}

int64_t conv_grad_bias_workspace(const ConvGradBiasParams&) { return 0; }

// The choice among the kernels here is by shape alone.
Status conv_variants(const ConvVariantsParams& params, Stream) {
  *params.count = 0;
  return Status::success();
}

}  // namespace fastnn::FASTNN_BACKEND
