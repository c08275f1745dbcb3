// Gradient of a convolution's bias on CUDA: grad_bias[k] = sum over n, o of grad_y[n, k, o].
//
// Without gaps, in either layout, it is the reduction per channel that batch normalisation has too
// (channels_two_pass.cuh): bound by memory, grad_y read once, by vectors and by as many blocks as fill the
// device. With any other strides it is conv_channel_sum.cuh's.
#include <algorithm>
#include <limits>

#include "../ops/conv.h"
#include "channels_two_pass.cuh"
#include "conv_channel_sum.cuh"
#include "conv_index.cuh"
#include "dispatch.cuh"
#include "platform.cuh"

namespace fastnn::cuda {
namespace {

template <typename scalar_t_>
struct ChannelTotal {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  using State = Sums<acc_t, 1>;
  using Partial = State;
  static constexpr int kInputs = 1;
  struct Channel {};
  struct Step {};

  const scalar_t* input[kInputs];

  __device__ __forceinline__ Channel channel(int64_t) const { return {}; }
  __device__ __forceinline__ Step step(int64_t, int) const { return {}; }
  template <int kCount>
  __device__ __forceinline__ void add(State& sum, const Channel&, const acc_t (&values)[1][kCount],
                                      const Step&) const {
    State chunk{};
#pragma unroll
    for (int k = 0; k < kCount; ++k) chunk.v[0] += values[0][k];
    sum = combine(sum, chunk);
  }
  __device__ __forceinline__ Partial partial(const State& state, int64_t) const { return state; }
};

template <typename scalar_t>
struct StoreTotal {
  scalar_t* result;
  __device__ __forceinline__ void operator()(int64_t c, const Sums<acc_type<scalar_t>, 1>& total) const {
    result[c] = from_acc<scalar_t>(total.v[0]);
  }
};

// Whether positions and channels have these strides, those of extent 1 apart.
bool has_strides(const ConvGradBiasParams& p, int64_t channel, int64_t position) {
  const int64_t size[] = {p.N, p.K, p.out[0], p.out[1], p.out[2]};
  const int64_t spatial = p.out[0] * p.out[1] * p.out[2];
  const int64_t wanted[] = {p.K * spatial, channel, position * p.out[1] * p.out[2], position * p.out[2],
                            position};
  for (int i = 0; i < 5; ++i) {
    if (size[i] != 1 && p.grad_y_strides[i] != wanted[i]) return false;
  }
  return true;
}

bool is_dense(const ConvGradBiasParams& p, Layout& layout) {
  const int64_t spatial = p.out[0] * p.out[1] * p.out[2];
  layout = has_strides(p, spatial, 1) ? Layout::kChannelsFirst : Layout::kChannelsLast;
  return layout == Layout::kChannelsFirst || has_strides(p, 1, p.K);
}

ChannelShape shape_of(const ConvGradBiasParams& p, Layout layout) {
  return {layout, p.N, p.K, p.out[0] * p.out[1] * p.out[2]};
}

template <typename scalar_t>
Status sum_any_strides(const ConvGradBiasParams& p, Stream stream) {
  ChannelSum sum{};
  sum.channels = p.K;
  sum.positions = {p.N, {p.out[0], p.out[1], p.out[2]}, false};
  sum.taps = 1;
  std::copy_n(p.grad_y_strides, 2 + kSpatialDims, sum.grad_y_strides);
  bool wide = p.N > std::numeric_limits<int32_t>::max() / 4;
  for (const int64_t size : p.out) wide |= size > std::numeric_limits<int32_t>::max() / 4;
  const ChannelSumPlan plan = choose_channel_sum_plan(sum, sizeof(scalar_t), false);
  return launch_channel_sum<scalar_t, false>(sum, plan, wide, p.grad_y, nullptr, p.grad_bias, nullptr, stream);
}

}  // namespace

int64_t conv_grad_bias_workspace(const ConvGradBiasParams& p) {
  Layout layout;
  int64_t bytes = 0;
  if (is_dense(p, layout)) {
    dispatch_dtype(p.dtype, [&](auto tag) {
      bytes = reduce_channels_workspace<ChannelTotal<typename decltype(tag)::type>>(shape_of(p, layout));
      return Status::success();
    });
  }
  return bytes;
}

Status conv_grad_bias(const ConvGradBiasParams& p, Stream stream) {
  Layout layout;
  const bool dense = is_dense(p, layout);
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    if (!dense) return sum_any_strides<scalar_t>(p, stream);
    return reduce_channels(
        "conv_grad_bias_kernel", ChannelTotal<scalar_t>{{static_cast<const scalar_t*>(p.grad_y)}},
        StoreTotal<scalar_t>{static_cast<scalar_t*>(p.grad_bias)}, shape_of(p, layout), p.workspace, stream);
  });
}

}  // namespace fastnn::cuda
