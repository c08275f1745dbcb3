// Sums over the batch and the positions of y, one for each channel: the weight gradient of a depthwise
// convolution, and the bias gradient of a gradient with gaps or none (conv_grad_bias.cu has the others).
//
//   grad_bias[k] = sum over n, o of grad_y[n, k, o]
//   grad_w[k, r] = sum over n, o of grad_y[n, k, o] * x[n, k / m, o * stride + r * dilation - pad],  m = K / C
//
// A block is `lanes` channels wide and blockDim.y positions high. Where positions are contiguous lanes is 1;
// where channels are, it is one 32-byte sector of them: enough for full use of what is fetched, and few enough
// that the channels of one layer make several blocks. A thread walks positions blockDim.y apart, four sums at a
// time, so that four loads are under way; then the block adds its threads' sums as a tree. What bounds it:
// bytes. grad_bias reads grad_y once. grad_w reads grad_y and x once for each of the R taps, from L2 after the
// first. Splits: grad_w has a workspace, so few channels are spread over the device by cutting the positions
// into splits, added in order by conv_sum_splits_kernel. grad_bias has none: its blocks are as many as its
// channel tiles. Error: chains of length positions / (4 * blockDim.y * splits), then a tree:
//   |error| <= (positions / (4 * blockDim.y * splits) + log2(blockDim.y) + 2 + splits) * eps(acc_t) * sum of
//   |terms|.
#pragma once

#include <type_traits>

#include "conv_index.cuh"
#include "dispatch.cuh"
#include "platform.cuh"
#include "reduce.cuh"

namespace fastnn::cuda {
namespace {

// At most: one block a channel must keep a multiprocessor's loads busy. The weight gradient needs twice the
// registers, and has a block for each tap besides.
constexpr int kBiasThreads = 1024, kWeightThreads = 512;
constexpr int kSectorBytes = 32;
constexpr int kSumUnroll = 4;
// Positions a split must have: fewer do not pay for the second kernel.
constexpr int64_t kMinSplitPositions = 4096;

struct ChannelSum {
  int64_t channels;
  IndexRange positions;  // N and the spatial size of y
  ConvStrides grad_y_strides;
  // What follows only the weight gradient reads.
  int64_t filters_per_channel;
  int64_t kernel[kSpatialDims], stride[kSpatialDims], pad[kSpatialDims], dilation[kSpatialDims],
      in[kSpatialDims];
  ConvStrides x_strides;
  ConvStrides grad_w_strides;
  int64_t taps;  // product of `kernel`
};

struct ChannelSumPlan {
  int lanes, rows;
  int64_t tiles;  // of channels
  int64_t splits, split_positions;
};

inline ChannelSumPlan choose_channel_sum_plan(const ChannelSum& p, int scalar_size, bool weight) {
  const int64_t positions = p.positions.size();
  // The fastest index of the positions that is one.
  double along_positions = 0;
  const int64_t extents[] = {p.positions.lead, p.positions.spatial[0], p.positions.spatial[1],
                             p.positions.spatial[2]};
  const int64_t strides[] = {p.grad_y_strides[0], p.grad_y_strides[2], p.grad_y_strides[3],
                             p.grad_y_strides[4]};
  for (int i = 0; i < 4; ++i) {
    if (extents[i] > 1) along_positions = coalescing(extents[i], strides[i]);
  }
  ChannelSumPlan plan{};
  plan.lanes = 1;
  if (coalescing(p.channels, p.grad_y_strides[1]) > along_positions) {
    while (plan.lanes < p.channels && plan.lanes < kSectorBytes / scalar_size) plan.lanes *= 2;
  }
  int threads = kWarpSize;
  while (threads < (weight ? kWeightThreads : kBiasThreads) && threads < positions * plan.lanes) threads *= 2;
  plan.rows = threads / plan.lanes;
  plan.tiles = ceil_div(p.channels, plan.lanes);
  plan.splits = 1;
  plan.split_positions = positions;
  const int64_t blocks = plan.tiles * p.taps;
  if (weight && blocks > 0 && blocks < kFullGrid) {
    const int64_t wanted = std::min(ceil_div(kSplitGrid, blocks), positions / kMinSplitPositions);
    if (wanted > 1) {
      plan.split_positions = ceil_div(positions, wanted);
      plan.splits = ceil_div(positions, plan.split_positions);
    }
  }
  return plan;
}

// result: grad_bias, or grad_w, or with several splits partial sums [splits, channels, taps] of acc_t.
template <typename scalar_t, typename coord_t, bool kWeight>
__global__ void __launch_bounds__(kWeight ? kWeightThreads : kBiasThreads, 1)
    conv_channel_sum_kernel(ChannelSum p, ChannelSumPlan plan, const scalar_t* __restrict__ grad_y,
                            const scalar_t* __restrict__ x, scalar_t* __restrict__ result,
                            acc_type<scalar_t>* __restrict__ partial) {
  using acc_t = acc_type<scalar_t>;
  using unsigned_t = std::make_unsigned_t<coord_t>;
  FASTNN_SHARED(acc_t, scratch, kWeight ? kWeightThreads : kBiasThreads);
  int64_t rest = quotient(blockIdx.x, plan.tiles);
  const int64_t channel = (blockIdx.x - rest * plan.tiles) * plan.lanes + threadIdx.x;
  int64_t tap = 0, split = 0;
  Digits<coord_t> r{};
  if constexpr (kWeight) {
    split = quotient(rest, p.taps);
    tap = rest - split * p.taps;
    r = digits_of<coord_t>(tap, IndexRange{1, {p.kernel[0], p.kernel[1], p.kernel[2]}, true});
  }
  const int64_t begin = split * plan.split_positions + threadIdx.y;
  const int64_t total = p.positions.size(), split_end = (split + 1) * plan.split_positions;
  const int64_t end = split_end < total ? split_end : total;

  acc_t sums[kSumUnroll] = {};
  if (channel < p.channels && begin < end) {
    grad_y += channel * p.grad_y_strides[1];
    coord_t origin_d = 0, origin_h = 0, origin_w = 0;
    if constexpr (kWeight) {
      x += quotient(channel, p.filters_per_channel) * p.x_strides[1];
      origin_d = static_cast<coord_t>(r.d * p.dilation[0] - p.pad[0]);
      origin_h = static_cast<coord_t>(r.h * p.dilation[1] - p.pad[1]);
      origin_w = static_cast<coord_t>(r.w * p.dilation[2] - p.pad[2]);
    }
    const auto inside = [](coord_t position, int64_t size) {
      return static_cast<unsigned_t>(position) < static_cast<unsigned_t>(size);
    };
    const auto term = [&](const Digits<coord_t>& o) -> acc_t {
      const acc_t grad = to_acc(grad_y[o.lead * p.grad_y_strides[0] + o.d * p.grad_y_strides[2] +
                                       o.h * p.grad_y_strides[3] + o.w * p.grad_y_strides[4]]);
      if constexpr (kWeight) {
        const coord_t d = o.d * static_cast<coord_t>(p.stride[0]) + origin_d;
        const coord_t h = o.h * static_cast<coord_t>(p.stride[1]) + origin_h;
        const coord_t w = o.w * static_cast<coord_t>(p.stride[2]) + origin_w;
        if (!(inside(d, p.in[0]) && inside(h, p.in[1]) && inside(w, p.in[2]))) return 0;
        return grad *
               to_acc(
                   x[o.lead * p.x_strides[0] + d * p.x_strides[2] + h * p.x_strides[3] + w * p.x_strides[4]]);
      } else {
        return grad;
      }
    };
    auto o = digits_of<coord_t>(begin, p.positions);
    const auto row_step = digits_of<coord_t>(plan.rows, p.positions);
    for (int64_t position = begin; position < end; position += int64_t{kSumUnroll} * plan.rows) {
      acc_t terms[kSumUnroll];
#pragma unroll
      for (int u = 0; u < kSumUnroll; ++u) {
        terms[u] = position + int64_t{u} * plan.rows < end ? term(o) : acc_t(0);
        advance(o, row_step, p.positions);
      }
#pragma unroll
      for (int u = 0; u < kSumUnroll; ++u) sums[u] += terms[u];
    }
  }
  acc_t sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  sum = plan.lanes == 1 ? block_reduce(sum, scratch) : column_reduce(sum, scratch);
  if (threadIdx.y != 0 || channel >= p.channels) return;
  if (partial != nullptr) {
    partial[(split * p.channels + channel) * p.taps + tap] = sum;
  } else if constexpr (kWeight) {
    result[channel * p.grad_w_strides[0] + r.d * p.grad_w_strides[2] + r.h * p.grad_w_strides[3] +
           r.w * p.grad_w_strides[4]] = from_acc<scalar_t>(sum);
  } else {
    result[channel] = from_acc<scalar_t>(sum);
  }
}

template <typename scalar_t, bool kWeight>
Status launch_channel_sum(const ChannelSum& p, const ChannelSumPlan& plan, bool wide, const void* grad_y,
                          const void* x, void* result, void* partial, Stream stream) {
  constexpr const char* kName = "conv_channel_sum_kernel";
  dim3 grid;
  const Status status = grid_of(plan.tiles * p.taps * plan.splits, kName, grid);
  if (!status.ok()) return status;
  return launch(kName,
                wide ? conv_channel_sum_kernel<scalar_t, int64_t, kWeight>
                     : conv_channel_sum_kernel<scalar_t, int32_t, kWeight>,
                grid, dim3(plan.lanes, plan.rows), 0, stream, p, plan, static_cast<const scalar_t*>(grad_y),
                static_cast<const scalar_t*>(x), static_cast<scalar_t*>(result),
                static_cast<acc_type<scalar_t>*>(partial));
}

}  // namespace
}  // namespace fastnn::cuda
