// Weight gradient of a depthwise convolution with a filter a channel, all taps in one pass.
//
//   grad_w[c, r] = sum over n, o of grad_y[n, c, o] * x[n, c, o * stride + r - pad]
//
// Arrays whose channels are innermost: a thread owns a vector of channels and the sums of all taps, 36 (3x3,
// four channels) or 50 (5x5, two) in registers, and walks over runs of 4 results of a row. Neighbouring threads
// have neighbouring vectors; the places of a block, and then its next ones, lie below each other, so that the
// rows of x that they share come from L1. At the end the block adds its threads' sums as a tree and leaves them
// as partial sums, which combine_partials_kernel adds over the blocks.
//
// What bounds it: bytes. grad_y and x are read once from device memory, where a kernel a tap would read them
// kernel^2 times, if from L2. Of 3x3, a run reads 3 x 6 vectors of x and 4 of grad_y for 4 results: 22 bytes a
// channel and result from L1 in float32, where a multiprocessor can have 128 bytes a cycle, for 8 from device
// memory, of which it gets 20 a cycle.
//
// How many blocks there are, and which has what, follows from the shape. Error: chains of results / (threads of
// a channel), two trees:
//   |error| <= (4 * runs of a thread + log2(threads) + splits / 32 + 6) * eps(acc_t) * sum of |terms|.
#pragma once

#include <algorithm>

#include "conv_depthwise_channels.cuh"
#include "conv_depthwise_window.cuh"
#include "dispatch.cuh"
#include "divisor.cuh"
#include "reduce.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kWeightGradResults = 4;
// Runs that each thread has at least, where there are that many: a block's partial sums are written and read
// once, and so small against what it reads.
constexpr int64_t kLeastRuns = 4;

// Channels of a vector: the sums of 5x5 leave room for two.
template <typename scalar_t, typename Window>
constexpr int kWeightGradVec = Window::kSize > 3 ? 2 : 4;

struct WeightGradPlan {
  int lanes, places;  // of a block: threads along x and y; places are a power of two
  int64_t channel_tiles, runs, splits, split_runs;
  int row_runs;  // runs of a row
  Divisor by_tiles, by_rows, by_row_runs;
};

inline WeightGradPlan plan_weight_grad(const DepthwiseConv& c, int vec) {
  const int64_t vectors = c.channels / vec;
  const int64_t tiles = ceil_div(vectors, kMostLanes);
  const int lanes = static_cast<int>(ceil_div(vectors, tiles));
  int places = 1;
  while (places * 2 * lanes <= kChannelsThreads) places *= 2;
  const int64_t row_runs = ceil_div(c.results[1], kWeightGradResults);
  const int64_t runs = c.images * c.results[0] * row_runs;
  const int64_t wanted =
      std::max<int64_t>(1, std::min(ceil_div(kTargetBlocks, tiles), runs / (kLeastRuns * places)));
  const int64_t split_runs = ceil_div(std::max<int64_t>(runs, 1), wanted);
  const int64_t splits = ceil_div(std::max<int64_t>(runs, 1), split_runs);
  return {lanes,
          places,
          tiles,
          runs,
          splits,
          split_runs,
          static_cast<int>(row_runs),
          Divisor(tiles, tiles * splits),
          Divisor(c.results[0], runs),
          Divisor(row_runs, runs)};
}

// partial[split][tap][channel]
template <typename scalar_t, typename Window, int kVec>
__global__ void __launch_bounds__(kChannelsThreads, 2)
    conv_depthwise_weight_channels_kernel(DepthwiseConv c, WeightGradPlan plan, const scalar_t* __restrict__ x,
                                          const scalar_t* __restrict__ grad_y,
                                          acc_type<scalar_t>* __restrict__ partial, bool x_aligned,
                                          bool grad_y_aligned) {
  using acc_t = acc_type<scalar_t>;
  using Column = Sums<acc_t, kVec>;
  constexpr int kSize = Window::kSize, kStride = Window::kStride, kRun = kWeightGradResults;
  constexpr int kSources = Window::sources(kRun);
  FASTNN_SHARED(Column, scratch, kChannelsThreads);
  int64_t split = blockIdx.x;
  const int tile = static_cast<int>(plan.by_tiles.digit(split));
  const int channel = (tile * plan.lanes + static_cast<int>(threadIdx.x)) * kVec;
  Column sums[Window::kTaps];
#pragma unroll
  for (int t = 0; t < Window::kTaps; ++t) sums[t] = Column{};
  const int64_t end = min(plan.runs, (split + 1) * plan.split_runs);
  const int rows = static_cast<int>(c.sources[0]), columns = static_cast<int>(c.sources[1]);
  const int x_step = static_cast<int>(c.source_strides[3]), grad_step = static_cast<int>(c.result_strides[3]);
#pragma unroll 1
  for (int64_t run = split * plan.split_runs + threadIdx.y; channel < c.channels && run < end;
       run += blockDim.y) {
    int64_t image = run;
    const int row = static_cast<int>(plan.by_rows.digit(image));
    const int first = static_cast<int>(plan.by_row_runs.digit(image)) * kRun;
    const int count = min(kRun, static_cast<int>(c.results[1]) - first);
    const scalar_t* const grad_line = grad_y + image * c.result_strides[0] + row * c.result_strides[2] +
                                      first * c.result_strides[3] + channel;
    const int row_begin = row * kStride - static_cast<int>(c.pad[0]);
    const int column_begin = first * kStride - static_cast<int>(c.pad[1]);
    const scalar_t* const x_image =
        x + image * c.source_strides[0] + column_begin * c.source_strides[3] + channel;
    acc_t grad[kRun][kVec];
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (i < count) read_vec<kVec>(grad_line + i * grad_step, grad_y_aligned, grad[i]);
    }
    const bool whole = count == kRun && column_begin >= 0 && column_begin + kSources <= columns;
#pragma unroll
    for (int r = 0; r < kSize; ++r) {
      if (!in_range(row_begin + r, rows)) continue;
      const scalar_t* const line = x_image + (row_begin + r) * c.source_strides[2];
      const auto add = [&](int i, int t, const acc_t(&value)[kVec]) {
#pragma unroll
        for (int k = 0; k < kVec; ++k) sums[r * kSize + t].v[k] += grad[i][k] * value[k];
      };
      if (whole) {
        acc_t values[kSources][kVec];
#pragma unroll
        for (int j = 0; j < kSources; ++j) read_vec<kVec>(line + j * x_step, x_aligned, values[j]);
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
#pragma unroll
          for (int t = 0; t < kSize; ++t) add(i, t, values[i * kStride + t]);
        }
      } else {
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
#pragma unroll
          for (int t = 0; t < kSize; ++t) {
            if (i >= count || !in_range(column_begin + i * kStride + t, columns)) continue;
            acc_t value[kVec];
            read_vec<kVec>(line + (i * kStride + t) * x_step, x_aligned, value);
            add(i, t, value);
          }
        }
      }
    }
  }
#pragma unroll
  for (int t = 0; t < Window::kTaps; ++t) {
    const Column sum = column_reduce(sums[t], scratch);
    if (threadIdx.y == 0 && channel < c.channels) {
      acc_t* const out = partial + (split * Window::kTaps + t) * c.channels + channel;
#pragma unroll
      for (int k = 0; k < kVec; ++k) out[k] = sum.v[k];
    }
  }
}

// The sum of column tap * channels + channel goes where the filter has it.
template <typename scalar_t>
struct StoreWeightGrad {
  scalar_t* grad_w;
  int64_t strides[3];  // of channels, rows and columns of taps
  int channels, width;

  __device__ __forceinline__ void operator()(int64_t column, acc_type<scalar_t> sum) const {
    const int tap = static_cast<int>(column / channels),
              channel = static_cast<int>(column - int64_t{tap} * channels);
    const int row = tap / width;
    grad_w[channel * strides[0] + row * strides[1] + (tap - row * width) * strides[2]] =
        from_acc<scalar_t>(sum);
  }
};

// ---- launchers ----------------------------------------------------------------------------------------------

// Whether the window is one of those whose sums of all taps fit registers; c is forward's.
inline bool has_window_of_all_taps(const DepthwiseConv& c) {
  return c.square(c.kernel[0] == 5 ? 5 : 3, c.stride[0] == 2 ? 2 : 1);
}

inline bool takes_weight_channels(const DepthwiseConv& c) {
  return c.channels % 4 == 0 && has_window_of_all_taps(c) &&
         channels_innermost(c.source_strides, c.channels, c.sources) &&
         channels_innermost(c.result_strides, c.channels, c.results);
}

inline int64_t weight_channels_splits(const DepthwiseConv& c) {
  return plan_weight_grad(c, c.kernel[0] > 3 ? 2 : 4).splits;
}

template <typename scalar_t, typename Window>
Status launch_weight_channels(const DepthwiseConv& c, const void* x, const void* grad_y, void* partial,
                              Stream stream) {
  constexpr const char* kName = "conv_depthwise_weight_channels_kernel";
  constexpr int kVec = kWeightGradVec<scalar_t, Window>;
  const WeightGradPlan plan = plan_weight_grad(c, kVec);
  dim3 grid;
  const Status status = grid_of(plan.channel_tiles * plan.splits, kName, grid);
  if (!status.ok()) return status;
  return launch(kName, conv_depthwise_weight_channels_kernel<scalar_t, Window, kVec>, grid,
                dim3(plan.lanes, plan.places), 0, stream, c, plan, static_cast<const scalar_t*>(x),
                static_cast<const scalar_t*>(grad_y), static_cast<acc_type<scalar_t>*>(partial),
                vectors_aligned<scalar_t, kVec>(x, c.source_strides),
                vectors_aligned<scalar_t, kVec>(grad_y, c.result_strides));
}

// Adds what the blocks have left.
template <typename scalar_t>
Status combine_weight_grad(const DepthwiseConv& c, void* partial, int64_t splits, void* grad_w, Stream stream) {
  const StoreWeightGrad<scalar_t> store{static_cast<scalar_t*>(grad_w),
                                        {c.w_strides[0], c.w_strides[1], c.w_strides[2]},
                                        c.channels,
                                        static_cast<int>(c.kernel[1])};
  using acc_t = acc_type<scalar_t>;
  const int64_t columns = c.taps() * c.channels;
  const ColumnArrays<acc_t> partials{static_cast<acc_t*>(partial), columns};
  return combine_partials("conv_depthwise_weight_combine", store, partials, splits, columns, stream);
}

}  // namespace
}  // namespace fastnn::cuda
