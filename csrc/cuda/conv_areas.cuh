// Convolutions whose threads own vectors of channels of neighbouring results: how the results are cut among
// threads and blocks, what a run-time window joins, and how vectors move.
#pragma once

#include <algorithm>
#include <limits>

#include "conv_activation.cuh"
#include "conv_depthwise_window.cuh"
#include "dispatch.cuh"
#include "divisor.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kChannelsThreads = 256;
constexpr int kMostLanes = 32;
// Areas that a block walks down, where there are enough blocks.
constexpr int kMostSteps = 4;
constexpr int64_t kWantedBlocks = 8 * kFullGrid;

// How threads and blocks share the results: `lanes` vectors of channels by `across` runs of columns by `down`
// of rows by `images`; a block takes `steps` of these below each other.
struct ChannelsPlan {
  int lanes, across, down, images, steps;
  int channel_tiles, column_tiles, row_tiles;
  int column_runs, row_runs;
  Divisor by_lanes, by_across, by_down, by_channel_tiles, by_column_tiles, by_row_tiles;
  int64_t blocks;
};

inline ChannelsPlan plan_channels(int64_t images, int vectors, int column_runs, int row_runs, int rows_of_run,
                                  int columns_of_run, int most_steps, int most_lanes = kMostLanes) {
  const int channel_tiles = static_cast<int>(ceil_div(vectors, most_lanes));
  const int lanes = static_cast<int>(ceil_div(vectors, channel_tiles));
  const int places = kChannelsThreads / lanes;
  int across = 1;
  while (across < column_runs && (across + 1) * columns_of_run * across <= places * rows_of_run) ++across;
  int down = std::min(row_runs, places / across);
  across = std::min(column_runs, places / down);
  // Even areas, that the last one of a row is not nearly empty.
  const int column_tiles = static_cast<int>(ceil_div(column_runs, across));
  across = static_cast<int>(ceil_div(column_runs, column_tiles));
  down = std::min(row_runs, places / across);
  const int of_images = column_tiles == 1 && down == row_runs
                            ? static_cast<int>(std::min<int64_t>(images, places / (across * down)))
                            : 1;
  const int64_t areas = ceil_div(images, of_images) * column_tiles * channel_tiles;
  int steps = 1;
  while (steps < most_steps && steps * down < row_runs &&
         areas * ceil_div(row_runs, int64_t{down} * steps * 2) >= kWantedBlocks) {
    steps *= 2;
  }
  const int row_tiles = static_cast<int>(ceil_div(row_runs, int64_t{down} * steps));
  const int64_t blocks = areas * row_tiles;
  const int64_t threads = kChannelsThreads;
  return {lanes,
          across,
          down,
          of_images,
          steps,
          channel_tiles,
          column_tiles,
          row_tiles,
          column_runs,
          row_runs,
          Divisor(lanes, threads),
          Divisor(across, threads),
          Divisor(down, threads),
          Divisor(channel_tiles, blocks),
          Divisor(column_tiles, blocks),
          Divisor(row_tiles, blocks),
          blocks};
}

// What a thread has of the plan.
struct ChannelsPlace {
  int64_t image;
  int vector, lane, column_run, row_run;  // row_run: of the first step

  __device__ __forceinline__ ChannelsPlace(const ChannelsPlan& plan) {
    int64_t block = blockIdx.x, thread = threadIdx.x;
    const int channel_tile = static_cast<int>(plan.by_channel_tiles.digit(block));
    const int column_tile = static_cast<int>(plan.by_column_tiles.digit(block));
    const int row_tile = static_cast<int>(plan.by_row_tiles.digit(block));
    lane = static_cast<int>(plan.by_lanes.digit(thread));
    const int in_across = static_cast<int>(plan.by_across.digit(thread));
    const int in_down = static_cast<int>(plan.by_down.digit(thread));
    vector = channel_tile * plan.lanes + lane;
    column_run = column_tile * plan.across + in_across;
    row_run = row_tile * plan.down * plan.steps + in_down;
    image = thread < plan.images ? block * plan.images + thread : -1;
  }
};

// Results of a thread where the window is not known at compile time: neighbours forward, `stride` apart
// transposed, so that the same taps meet them all, in neighbouring sources.
constexpr int kAnyResults = 4;

// The run-time window in one dimension.
struct AnyAxis {
  int results, sources, kernel, stride, dilation, pad;
  int bias;  // a multiple of the stride, so that what a tap is taken off stays positive
  Divisor by_stride;

  AnyAxis(const DepthwiseConv& c, int d)
      : results(static_cast<int>(c.results[d])),
        sources(static_cast<int>(c.sources[d])),
        kernel(static_cast<int>(c.kernel[d])),
        stride(static_cast<int>(c.stride[d])),
        dilation(static_cast<int>(c.dilation[d])),
        pad(static_cast<int>(c.pad[d])),
        bias(static_cast<int>(ceil_div(c.dilation[d] * (c.kernel[d] - 1), c.stride[d]) * c.stride[d])),
        by_stride(c.stride[d], c.results[d] + c.pad[d] + bias + c.stride[d] * (kAnyResults + 1)) {}

  // The source that `tap` joins with `result`; no source, not even one outside: the least of integers.
  template <bool kTransposed>
  __device__ __forceinline__ int source(int result, int tap) const {
    if constexpr (!kTransposed) return result * stride - pad + tap * dilation;
    const int t = result + pad - tap * dilation + bias;
    const int q = static_cast<int>(by_stride.divide(t));
    return q * stride == t ? q - bias / stride : std::numeric_limits<int>::min();
  }
};

template <int kVec, typename scalar_t, typename acc_t>
__device__ __forceinline__ void read_vec(const scalar_t* p, bool aligned, acc_t (&values)[kVec]) {
  const auto vec = load_vec<kVec>(p, aligned);
#pragma unroll
  for (int k = 0; k < kVec; ++k) values[k] = to_acc(vec.v[k]);
}

template <int kVec, typename scalar_t, typename acc_t>
__device__ __forceinline__ void write_activated(scalar_t* p, bool aligned, const ConvActivation& activation,
                                                const acc_t (&values)[kVec]) {
  Vec<scalar_t, kVec> vec;
#pragma unroll
  for (int k = 0; k < kVec; ++k) vec.v[k] = from_acc<scalar_t>(values[k]);
  store_vec(p, activated(activation, vec), aligned);
}

// The same in two parts, for kernels whose sums fill the registers, so that a call among them would have to
// spill some: curved activations are applied to what is stored, when the sums are spent.
template <int kVec, typename scalar_t, typename acc_t>
__device__ __forceinline__ void write_rectified(scalar_t* p, bool aligned, const ConvActivation& activation,
                                                const acc_t (&values)[kVec]) {
  const ActivationOf<scalar_t> act(activation.kind, activation.alpha);
  Vec<scalar_t, kVec> vec;
#pragma unroll
  for (int k = 0; k < kVec; ++k) {
    vec.v[k] = from_acc<scalar_t>(values[k]);
    if (activation.kind != Activation::kRectify) continue;
    const acc_t z = to_acc(vec.v[k]);
    vec.v[k] = from_acc<scalar_t>(act.rectified(z, act.positive(z)));
  }
  store_vec(p, vec, aligned);
}
template <int kVec, typename scalar_t>
__device__ __forceinline__ void activate_stored(scalar_t* p, bool aligned, const ConvActivation& activation) {
  store_vec(p, activated(activation, load_vec<kVec>(p, aligned)), aligned);
}

// Tensors of a launch.
struct DepthwiseOperands {
  const void* source;
  const void* w;
  const void* bias;
  void* result;
};

// Whether every vector of the array is aligned.
template <typename scalar_t, int kVec>
bool vectors_aligned(const void* p, const int64_t (&strides)[4]) {
  return all_aligned<scalar_t, kVec>({p}) && strides[0] % kVec == 0 && strides[2] % kVec == 0 &&
         strides[3] % kVec == 0;
}

}  // namespace
}  // namespace fastnn::cuda
