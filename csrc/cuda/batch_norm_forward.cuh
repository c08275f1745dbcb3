// Forward of batch norm, with what may follow in the same pass: the ops of its passes, and which are run.
//
//   training     statistics of each channel, then the map: one launch where a channel stays on the chip, else
//                three (channels_held.cuh, channels_two_pass.cuh). x is read once or twice, y written.
//   evaluation   the map alone, whose threads take a channel's scale and shift from the running statistics: a
//                square root and a division a vector, for which memory leaves time, against a launch.
//
// Whoever first needs to know of all channels comes in a launch of one block after them: whether a batch that
// is not finite is to be skipped; and the counter of batches, where the average is cumulative and every channel
// reads it.
#pragma once

#include "batch_norm_activation.cuh"
#include "batch_norm_statistics.cuh"
#include "channels_held.cuh"

namespace fastnn::cuda {
namespace {

// What the last pass of forward knows of a channel; and the counter of batches.
template <typename scalar_t_>
struct NormaliseOp {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  using Channel = NormaliseChannel<acc_t>;
  static constexpr int kOutputs = 1;

  const acc_t* mean;
  const acc_t* scale;
  const acc_t* shift;
  int64_t* batches = nullptr;  // null where it does not move, or not yet
  int64_t C = 0;               // evaluation: of channels that are found here; else 0
  RunningChannels<scalar_t> running = {};

  __device__ __forceinline__ void begin(int64_t thread, int64_t threads) const {
    if (batches != nullptr && thread == 0) ++*batches;
    for (int64_t c = thread; c < C; c += threads) running.store(c);
  }
  __device__ __forceinline__ Channel channel(int64_t c) const {
    return C > 0 ? running.find(c) : Channel{mean[c], scale[c], shift[c]};
  }
  __device__ __forceinline__ Channel channel(int64_t, const Channel& found) const { return found; }
};

template <typename scalar_t>
struct Normalise : NormaliseOp<scalar_t> {
  using acc_t = acc_type<scalar_t>;
  using Channel = NormaliseChannel<acc_t>;
  static constexpr int kInputs = 1;
  const scalar_t* input[kInputs];
  scalar_t* output[1];

  __device__ __forceinline__ void apply(const Channel& k, const acc_t (&in)[1], acc_t (&out)[1]) const {
    out[0] = k.z(in[0]);
  }
};

// With a residual, where there is one, and an activation; inputs x, residual.
template <typename scalar_t>
struct NormaliseActivate : NormaliseOp<scalar_t> {
  using acc_t = acc_type<scalar_t>;
  using Channel = NormaliseChannel<acc_t>;
  static constexpr int kInputs = 2;
  static constexpr Bits kBits = Bits::kWritten;
  const scalar_t* input[kInputs];
  scalar_t* output[1];
  ActivationOf<scalar_t> act;
  MaskBits<scalar_t> mask;

  __host__ __device__ __forceinline__ bool has_bits() const { return mask.bytes != nullptr; }
  __device__ __forceinline__ void apply(const Channel& k, const acc_t (&in)[2], acc_t (&out)[1],
                                        bool& bit) const {
    acc_t z = k.z(in[0]);
    if (input[1] != nullptr) z += in[1];  // 0 added to -0 would be +0
    bit = act.positive(z);
    out[0] = act.value(z);
  }
  __device__ __forceinline__ void store_bits(int64_t i, uint32_t bits, bool exists) const {
    if (has_bits()) mask.store(i, bits, exists);
  }
};

// The map of x by channels, as f takes it.
template <typename scalar_t, typename F>
auto with_normalise(const void* x, const BatchNormActivation& a, const NormaliseOp<scalar_t>& channels, void* y,
                    const F& f) {
  const auto* in = static_cast<const scalar_t*>(x);
  auto* out = static_cast<scalar_t*>(y);
  if (a.kind == Activation::kNone) return f(Normalise<scalar_t>{channels, {in}, {out}});
  return f(NormaliseActivate<scalar_t>{channels,
                                       {in, static_cast<const scalar_t*>(a.residual)},
                                       {out},
                                       ActivationOf<scalar_t>(a.kind, a.alpha),
                                       {static_cast<uint8_t*>(a.mask)}});
}

// The workspace of one call: scale and shift where the caller does not keep them, [2, C] of what is held back
// of the statistics where a batch may be skipped, then what the passes want.
template <typename acc_t>
int64_t forward_array_bytes(const BatchNormForwardParams& p) {
  const int64_t arrays = (p.activation.scale == nullptr ? 2 : 0) + (p.training && p.skip_nonfinite ? 2 : 0);
  return ceil_div(arrays * p.shape.C * static_cast<int64_t>(sizeof(acc_t)), 64) * 64;
}

template <typename scalar_t>
int64_t forward_workspace(const BatchNormForwardParams& p) {
  const int64_t arrays = forward_array_bytes<acc_type<scalar_t>>(p);
  if (!p.training) return arrays;
  const ChannelShape shape(p.shape.layout, p.shape.N, p.shape.C, p.shape.S);
  return arrays + with_normalise<scalar_t>(p.x, p.activation, {}, p.y, [&](const auto& map) {
           return reduce_and_map_workspace<Statistics<scalar_t>>(map, shape);
         });
}

template <typename scalar_t>
Status forward(const BatchNormForwardParams& p, Stream stream) {
  using acc_t = acc_type<scalar_t>;
  const ChannelShape shape(p.shape.layout, p.shape.N, p.shape.C, p.shape.S);
  const auto* x = static_cast<const scalar_t*>(p.x);
  auto* arrays = static_cast<acc_t*>(p.workspace);
  void* const passes = static_cast<unsigned char*>(p.workspace) + forward_array_bytes<acc_t>(p);
  auto* scale = static_cast<acc_t*>(p.activation.scale);
  auto* shift = static_cast<acc_t*>(p.activation.shift);
  if (scale == nullptr) {
    scale = arrays;
    shift = arrays + shape.C;
    arrays += 2 * shape.C;
  }
  acc_t* const held_back = p.skip_nonfinite ? arrays : nullptr;
  const ParamReader<scalar_t> running_mean(p.running_mean, p.param_dtype, p.dtype);
  const ParamReader<scalar_t> running_var(p.running_var, p.param_dtype, p.dtype);
  const ForwardChannels<scalar_t> channels{{p.weight, p.param_dtype, p.dtype},
                                           {p.bias, p.param_dtype, p.dtype},
                                           static_cast<acc_t>(p.eps),
                                           static_cast<acc_t*>(p.mean),
                                           static_cast<acc_t*>(p.invstd),
                                           scale,
                                           shift};
  NormaliseOp<scalar_t> normalise{channels.mean, channels.scale, channels.shift};
  if (!p.training) {
    normalise.C = shape.C;
    normalise.running = {running_mean, running_var, channels};
    return with_normalise(p.x, p.activation, normalise, p.y, [&](const auto& map) {
      return map_channels("batch_norm_normalise", map, shape, stream);
    });
  }

  if (shape.elements() == 0) return Status::success();  // no batch: nothing to learn from
  const RunningStatistics<scalar_t> running{p.momentum,
                                            p.cumulative,
                                            p.num_batches_tracked,
                                            running_mean,
                                            running_var,
                                            {p.running_mean, p.param_dtype, p.dtype},
                                            {p.running_var, p.param_dtype, p.dtype}};
  const bool after = held_back != nullptr || (p.cumulative && p.num_batches_tracked != nullptr);
  if (!after) normalise.batches = p.num_batches_tracked;
  const Shift<scalar_t> origin(x, shape);
  const Statistics<scalar_t> statistics{{x}, origin};
  const FinishStatistics<scalar_t> finish{origin, shape.rows(), channels, running, held_back, shape.C};
  constexpr PassNames kNames{"batch_norm_statistics", "batch_norm_normalise", "batch_norm_forward_held",
                             "batch_norm_forward_held_by_cluster", "batch_norm_forward_held_by_grid"};
  const Status status = with_normalise(p.x, p.activation, normalise, p.y, [&](const auto& map) {
    return reduce_and_map(kNames, statistics, finish, map, shape, passes, stream);
  });
  if (!status.ok() || !after) return status;
  return launch("batch_norm_commit_statistics", commit_statistics_kernel<scalar_t>, dim3(1),
                dim3(kCommitThreads), 0, stream, running, held_back, held_back != nullptr ? shape.C : 0,
                p.num_batches_tracked);
}

// What the last pass does, alone.
template <typename scalar_t>
Status normalise_again(const BatchNormApplyParams& p, const ChannelShape& shape, Stream stream) {
  using acc_t = acc_type<scalar_t>;
  const NormaliseOp<scalar_t> channels{static_cast<const acc_t*>(p.mean),
                                       static_cast<const acc_t*>(p.activation.scale),
                                       static_cast<const acc_t*>(p.activation.shift)};
  return with_normalise(p.x, p.activation, channels, p.out, [&](const auto& map) {
    return map_channels("batch_norm_normalise", map, shape, stream);
  });
}

}  // namespace
}  // namespace fastnn::cuda
