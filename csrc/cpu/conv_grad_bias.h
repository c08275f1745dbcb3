// Gradient of a convolution's bias: grad_bias[k] = sum over n and positions of grad_y[n, k, o].
//
// Memory-bound: grad_y is read once, with one addition per element. Channels-first: a thread owns whole
// channels and sums their planes run by run. Channels-last: a thread owns blocks of neighbouring channels and
// adds up positions, so that it reads whole cache lines. Sums of kChainLength terms or vectors are combined
// pairwise: the error is within (kChainLength + log2(count)) * eps(acc_t) * sum |grad_y|, whatever the size of
// the batch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv_patches.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND {

inline constexpr int64_t kChainLength = 64;

// Vectors of channels that one task sums at once when channels are contiguous: enough chains to hide the
// latency of the addition.
inline constexpr int64_t kChannelVecs = 4;

// Elements that are worth a thread's waking (5 to 10 us) at a few bytes a cycle.
inline constexpr int64_t kMinSumPerThread = 1 << 16;

// Adds terms up as a balanced tree would: level l holds the sum of 2^l terms.
template <typename T>
class PairwiseSum {
 public:
  void add(T term) {
    int level = 0;
    for (uint64_t carry = count_; carry & 1; carry >>= 1) term = level_[level++] + term;
    level_[level] = term;
    ++count_;
  }

  // zero is the sum of no terms.
  T total(T zero) const {
    T sum = zero;
    for (int level = 0; level < kLevels; ++level) {
      if (count_ >> level & 1) sum = level_[level] + sum;
    }
    return sum;
  }

 private:
  static constexpr int kLevels = 64;
  T level_[kLevels];
  uint64_t count_ = 0;
};

// Sum of at most 4 * kChainLength * kLanes contiguous elements.
template <typename scalar_t>
acc_type<scalar_t> sum_run(const scalar_t* src, int64_t count) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  // Four chains hide the latency of the addition.
  Vec<acc_t> sum[4] = {Vec<acc_t>(0), Vec<acc_t>(0), Vec<acc_t>(0), Vec<acc_t>(0)};
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    for (int v = 0; v < 4; ++v) sum[v] = sum[v] + load_as_acc(src + i + v * lanes);
  }
  for (; i + lanes <= count; i += lanes) sum[0] = sum[0] + load_as_acc(src + i);
  acc_t lane[lanes];
  ((sum[0] + sum[1]) + (sum[2] + sum[3])).store(lane);
  acc_t total = 0;
  for (; i < count; ++i) total += static_cast<acc_t>(src[i]);
  for (int64_t l = 0; l < lanes; ++l) total += lane[l];
  return total;
}

template <typename scalar_t>
acc_type<scalar_t> sum_channel(const scalar_t* src, const Axis& positions) {
  using acc_t = acc_type<scalar_t>;
  const int64_t stride = positions.stride[3];
  const int64_t longest = stride == 1 ? 4 * kChainLength * kLanes<acc_t> : kChainLength;
  PairwiseSum<acc_t> sum;
  AxisCursor cursor(positions, 0);
  for (int64_t left = positions.length(); left > 0;) {
    const int64_t count = std::min(longest, cursor.run(left));
    const scalar_t* const run = src + cursor.offset();
    if (stride == 1) {
      sum.add(sum_run(run, count));
    } else {
      acc_t chain = 0;
      for (int64_t i = 0; i < count; ++i) chain += static_cast<acc_t>(run[i * stride]);
      sum.add(chain);
    }
    cursor.advance(count);
    left -= count;
  }
  return sum.total(acc_t(0));
}

// Sums of kChannelVecs vectors of neighbouring channels.
template <typename acc_t>
struct ChannelSums {
  Vec<acc_t> value[kChannelVecs];

  ChannelSums() {
    for (Vec<acc_t>& v : value) v = Vec<acc_t>(acc_t(0));
  }

  friend ChannelSums operator+(const ChannelSums& a, const ChannelSums& b) {
    ChannelSums sum;
    for (int64_t v = 0; v < kChannelVecs; ++v) sum.value[v] = a.value[v] + b.value[v];
    return sum;
  }
};

// Sums `channels` contiguous channels, at most kChannelVecs vectors of them.
template <typename scalar_t>
ChannelSums<acc_type<scalar_t>> sum_channel_block(const scalar_t* src, int64_t channels,
                                                  const Axis& positions) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  PairwiseSum<ChannelSums<acc_t>> sum;
  AxisCursor cursor(positions, 0);
  for (int64_t left = positions.length(); left > 0;) {
    const int64_t count = std::min(kChainLength, cursor.run(left));
    const scalar_t* position = src + cursor.offset();
    ChannelSums<acc_t> chain;
    if (channels == kChannelVecs * lanes) {
      for (int64_t i = 0; i < count; ++i, position += positions.stride[3]) {
        for (int64_t v = 0; v < kChannelVecs; ++v)
          chain.value[v] = chain.value[v] + load_as_acc(position + v * lanes);
      }
    } else {
      for (int64_t i = 0; i < count; ++i, position += positions.stride[3]) {
        for (int64_t v = 0; v * lanes < channels; ++v) {
          chain.value[v] = chain.value[v] + load_channels(position + v * lanes, channels - v * lanes);
        }
      }
    }
    sum.add(chain);
    cursor.advance(count);
    left -= count;
  }
  return sum.total(ChannelSums<acc_t>());
}

template <typename scalar_t>
void grad_bias(const ConvGradBiasParams& params) {
  using acc_t = acc_type<scalar_t>;
  const ConvStrides& strides = params.grad_y_strides;
  Axis positions = {{params.N, params.out[0], params.out[1], params.out[2]},
                    {strides[0], strides[2], strides[3], strides[4]}};
  positions.merge();
  const scalar_t* const grad_y = static_cast<const scalar_t*>(params.grad_y);
  scalar_t* const grad_bias = static_cast<scalar_t*>(params.grad_bias);
  const int64_t count = positions.length();
  if (count == 0) {
    std::fill_n(grad_bias, params.K, scalar_t(0));
    return;
  }
  // A block is as many channels as a task sums at once; what a block holds does not depend on the threads.
  const bool by_blocks = strides[1] == 1 && positions.stride[3] != 1;
  const int64_t block = by_blocks ? kChannelVecs * kLanes<acc_t> : 1;
  const int64_t grain = std::max<int64_t>(1, kMinSumPerThread / (block * count));
  parallel_for((params.K + block - 1) / block, grain, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t k = b * block;
      if (by_blocks) {
        const int64_t channels = std::min(block, params.K - k);
        const ChannelSums<acc_t> sums = sum_channel_block(grad_y + k, channels, positions);
        for (int64_t c = 0; c < channels; c += kLanes<acc_t>) {
          store_channels(grad_bias + k + c, sums.value[c / kLanes<acc_t>], channels - c);
        }
      } else {
        grad_bias[k] = static_cast<scalar_t>(sum_channel(grad_y + k * strides[1], positions));
      }
    }
  });
}

}  // namespace fastnn::FASTNN_BACKEND
