// The kernel of conv_small_groups.cuh: from the contract's parameters to its launch.
#include "conv_small_groups.cuh"
#include "conv_small_groups.h"

namespace fastnn::cuda {
namespace {

template <typename Params>
bool takes(const Params& p) {
  return takes_small_groups(p.geometry, p.dtype, p.dtype != DType::kFloat32 || p.allow_tf32);
}

Status run(DType dtype, const GroupConv& conv, const DepthwiseOperands& operands, Stream stream) {
  switch (dtype) {
    case DType::kFloat32:
      return launch_small_groups<float>(conv, operands, stream);
    case DType::kBFloat16:
      return launch_small_groups<bfloat16_t>(conv, operands, stream);
    case DType::kFloat16:
      return launch_small_groups<float16_t>(conv, operands, stream);
    case DType::kFloat64:
      break;
  }
  return Status::error("not a dtype of small groups", "conv_small_groups");
}

}  // namespace

bool takes_small_groups(const ConvForwardParams& p) { return takes(p); }
bool takes_small_groups(const ConvGradInputParams& p) { return takes(p); }

Status launch_small_groups(const ConvForwardParams& p, Stream stream) {
  auto conv = depthwise_conv(p.geometry, p.x_strides, p.y_strides, p.w_strides, false);
  conv.activation = p.activation;
  return run(p.dtype, group_conv(p.geometry, conv, p.w_strides, false), {p.x, p.w, p.bias, p.y}, stream);
}

Status launch_small_groups(const ConvGradInputParams& p, Stream stream) {
  const auto conv = depthwise_conv(p.geometry, p.grad_x_strides, p.grad_y_strides, p.w_strides, true);
  return run(p.dtype, group_conv(p.geometry, conv, p.w_strides, true), {p.grad_y, p.w, p.bias, p.grad_x},
             stream);
}

}  // namespace fastnn::cuda
