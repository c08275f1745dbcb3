// Mean and variance per channel: how a batch's are found, and where evaluation takes them from instead.
//
// Each value is first shifted by its channel's first value, so that a mean large beside the
// deviation takes no digits from what follows. Then a thread takes its values in chunks that it holds in
// registers: the chunk's mean, by a tree of halved sums, which cannot overflow; the sum of squared differences
// from that mean; and one step of Chan, Golub and LeVeque joins the chunk to what came before. Nothing is
// squared before a mean near it has been taken away, whatever the order of the values, even where the first is
// an outlier. This costs 5 to 7 instructions an element, against some 12 for Welford's update of one value at a
// time, whose division is here shared by the whole chunk.
#pragma once

#include <cstdint>

#include "../ops/batch_norm_math.h"
#include "batch_norm_activation.cuh"
#include "channels.cuh"
#include "dispatch.cuh"

namespace fastnn::cuda {

// One of the [C] parameters, in the input's type or, beside a half type, in float32.
template <typename scalar_t>
struct ParamReader {
  using acc_t = acc_type<scalar_t>;
  const void* data = nullptr;
  bool wide = false;

  ParamReader() = default;
  ParamReader(const void* p, DType param_dtype, DType dtype) : data(p), wide(param_dtype != dtype) {}

  __device__ __forceinline__ acc_t get(int64_t c, acc_t absent) const {
    if (data == nullptr) return absent;
    return wide ? static_cast<const acc_t*>(data)[c] : to_acc(static_cast<const scalar_t*>(data)[c]);
  }
};

template <typename scalar_t>
struct ParamWriter {
  using acc_t = acc_type<scalar_t>;
  void* data;
  bool wide;

  ParamWriter(void* p, DType param_dtype, DType dtype) : data(p), wide(param_dtype != dtype) {}

  __device__ __forceinline__ void set(int64_t c, acc_t value) const {
    if (data == nullptr) return;
    if (wide) {
      static_cast<acc_t*>(data)[c] = value;
    } else {
      static_cast<scalar_t*>(data)[c] = from_acc<scalar_t>(value);
    }
  }
};

template <typename acc_t>
__device__ __forceinline__ acc_t inverse_std(acc_t var, acc_t eps) {
  return acc_t(1) / sqrt(var + eps);
}

// How a kernel names xhat of one channel.
template <typename acc_t>
struct Normaliser {
  acc_t mean, invstd;
  __device__ __forceinline__ acc_t xhat(acc_t x) const { return (x - mean) * invstd; }
};

// Adds sum(gy), sum(gy * xhat) of values gy, x, ...
template <typename acc_t, int kInputs, int kCount>
__device__ __forceinline__ void add_gradients(Sums<acc_t, 2>& sums, const Normaliser<acc_t>& channel,
                                              const acc_t (&values)[kInputs][kCount]) {
  Sums<acc_t, 2> chunk{};
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    chunk.v[0] += values[0][k];
    chunk.v[1] += values[0][k] * channel.xhat(values[1][k]);
  }
  sums = combine(sums, chunk);
}

// Mean of a power of two of values by halving: sums of halves cannot overflow, and equal values give
// themselves.
template <typename acc_t, int kCount>
__device__ __forceinline__ acc_t mean_of(const acc_t (&values)[kCount]) {
  if constexpr (kCount == 1) {
    return values[0];
  } else {
    acc_t half[kCount / 2];
#pragma unroll
    for (int k = 0; k < kCount / 2; ++k) half[k] = acc_t(0.5) * values[2 * k] + acc_t(0.5) * values[2 * k + 1];
    return mean_of(half);
  }
}

// What the values of a channel are shifted by: the first of them, or 0 where that is no number.
template <typename scalar_t>
struct Shift {
  using acc_t = acc_type<scalar_t>;
  const scalar_t* x;
  int64_t stride;     // from one channel's first value to the next one's
  int64_t C, sample;  // channels of a sample, and from one sample's first value on to the next one's

  Shift(const scalar_t* x_, const ChannelShape& shape)
      : x(x_),
        stride(shape.planes ? shape.S : 1),
        C(shape.samples > 1 ? shape.C : 0),
        sample(shape.rows() * shape.C) {}

  __device__ __forceinline__ static acc_t finite(acc_t first) {
    return first - first == acc_t(0) ? first : acc_t(0);
  }
  __device__ __forceinline__ acc_t get(int64_t c) const {
    return finite(to_acc(x[C == 0 ? c * stride : c / C * sample + c % C]));
  }
};

// Moments of the shifted values.
template <typename scalar_t_>
struct Statistics {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  using Partial = Moments<acc_t>;
  static constexpr int kInputs = 1;
  using Channel = acc_t;  // the shift
  struct State {
    acc_t mean, m2;
  };
  struct Step {
    acc_t share;   // of the chunk in the values so far
    acc_t spread;  // weight of the squared distance between the means
  };

  const scalar_t* input[kInputs];
  Shift<scalar_t> shift;

  __device__ __forceinline__ Channel channel(int64_t c) const { return shift.get(c); }
  __device__ __forceinline__ Step step(int64_t seen, int count) const {
    const acc_t before = static_cast<acc_t>(seen);
    const acc_t share = static_cast<acc_t>(count) / (before + static_cast<acc_t>(count));
    return {share, before * share};
  }

  template <int kCount>
  __device__ __forceinline__ void add(State& state, Channel origin, const acc_t (&values)[kInputs][kCount],
                                      const Step& step) const {
    acc_t x[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) x[k] = values[0][k] - origin;
    const acc_t mean = mean_of(x);
    acc_t m2 = 0;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const acc_t d = x[k] - mean;
      m2 += d * d;
    }
    const acc_t delta = mean - state.mean;
    state.mean = combined_mean(state.mean, mean, step.share);
    state.m2 += m2 + delta * (delta * step.spread);  // in this order, a spread of 0 hides a delta of 1e30
  }

  __device__ __forceinline__ Partial partial(const State& state, int64_t seen) const {
    return {static_cast<acc_t>(seen), state.mean, state.m2};
  }
};

// What the last pass of forward knows of a channel.
template <typename acc_t>
struct NormaliseChannel {
  acc_t mean, scale, shift;

  // Not x * scale + (shift - mean * scale), which cancels at large means.
  __device__ __forceinline__ acc_t z(acc_t x) const { return multiply_add(x - mean, scale, shift); }
};

// What forward finds of a channel and keeps: y = (x - mean) * scale + shift.
template <typename scalar_t>
struct ForwardChannels {
  using acc_t = acc_type<scalar_t>;
  ParamReader<scalar_t> weight, bias;
  acc_t eps;
  acc_t* mean;
  acc_t* invstd;
  acc_t* scale;
  acc_t* shift;

  __device__ __forceinline__ NormaliseChannel<acc_t> find(int64_t c, acc_t mean_c, acc_t var_c) const {
    return {mean_c, weight.get(c, 1) * inverse_std(var_c, eps), bias.get(c, 0)};
  }
  __device__ __forceinline__ void set(int64_t c, acc_t mean_c, acc_t var_c) const {
    const auto found = find(c, mean_c, var_c);
    mean[c] = mean_c;
    invstd[c] = inverse_std(var_c, eps);
    scale[c] = found.scale;
    shift[c] = found.shift;
  }
};

// How training moves the running statistics.
template <typename scalar_t>
struct RunningStatistics {
  using acc_t = acc_type<scalar_t>;
  double momentum;
  bool cumulative;
  const int64_t* num_batches_tracked;
  ParamReader<scalar_t> old_mean, old_var;
  ParamWriter<scalar_t> running_mean, running_var;

  __device__ __forceinline__ void move(int64_t c, acc_t mean, acc_t unbiased) const {
    double factor = momentum;
    // A cumulative average without its counter stays where it is.
    if (cumulative)
      factor = num_batches_tracked != nullptr ? 1 / (static_cast<double>(*num_batches_tracked) + 1) : 0;
    const acc_t keep = static_cast<acc_t>(1 - factor), take = static_cast<acc_t>(factor);
    running_mean.set(c, keep * old_mean.get(c, 0) + take * mean);
    running_var.set(c, keep * old_var.get(c, 0) + take * unbiased);
  }
};

// From the moments of a batch to what forward saves, and the running statistics.
template <typename scalar_t>
struct FinishStatistics {
  using acc_t = acc_type<scalar_t>;
  Shift<scalar_t> origin;
  int64_t count;
  ForwardChannels<scalar_t> channels;
  RunningStatistics<scalar_t> running;
  acc_t* held_back;  // null, or [2, C] for the batch's mean and unbiased variance, which then move nothing yet
  int64_t C;

  __device__ __forceinline__ NormaliseChannel<acc_t> find(int64_t c, const Moments<acc_t>& batch) const {
    return channels.find(c, origin.get(c) + batch.mean, batch.m2 / static_cast<acc_t>(count));
  }
  __device__ __forceinline__ void operator()(int64_t c, const Moments<acc_t>& batch) const {
    const acc_t mean = origin.get(c) + batch.mean;
    channels.set(c, mean, batch.m2 / static_cast<acc_t>(count));
    const acc_t unbiased = batch.m2 / static_cast<acc_t>(count > 1 ? count - 1 : 1);
    if (held_back == nullptr) {
      running.move(c, mean, unbiased);
    } else {
      held_back[c] = mean;
      held_back[C + c] = unbiased;
    }
  }
};

inline constexpr int kCommitThreads = 256;

// Moves the running statistics by what was held back if all of it is finite, and then counts the batch. One
// block: whether it does has to be known of every channel before the first is moved. With no channels it counts
// alone.
template <typename scalar_t>
__global__ void __launch_bounds__(kCommitThreads, 1)
    commit_statistics_kernel(RunningStatistics<scalar_t> running, const acc_type<scalar_t>* held_back,
                             int64_t C, int64_t* num_batches_tracked) {
  using acc_t = acc_type<scalar_t>;
  FASTNN_SHARED(float, scratch, kWarpSize);
  FASTNN_SHARED(bool, finite, 1);
  float others = 0;
  for (int64_t c = threadIdx.x; c < 2 * C; c += kCommitThreads) {
    others += held_back[c] - held_back[c] == acc_t(0) ? 0.0f : 1.0f;
  }
  others = block_reduce(others, scratch);
  if (threadIdx.x == 0) finite[0] = others == 0;
  __syncthreads();
  if (!finite[0]) return;
  for (int64_t c = threadIdx.x; c < C; c += kCommitThreads) running.move(c, held_back[c], held_back[C + c]);
  __syncthreads();  // all have read the counter
  if (threadIdx.x == 0 && num_batches_tracked != nullptr) ++*num_batches_tracked;
}

// Evaluation: the running statistics are the statistics.
template <typename scalar_t>
struct RunningChannels {
  using acc_t = acc_type<scalar_t>;
  ParamReader<scalar_t> mean, var;
  ForwardChannels<scalar_t> channels;

  __device__ __forceinline__ NormaliseChannel<acc_t> find(int64_t c) const {
    return channels.find(c, mean.get(c, 0), var.get(c, 1));
  }
  __device__ __forceinline__ void store(int64_t c) const { channels.set(c, mean.get(c, 0), var.get(c, 1)); }
};

}  // namespace fastnn::cuda
