// Depthwise convolution of arrays whose channels are innermost, forward and data gradient
// (conv_depthwise_window.cuh): a thread owns a vector of channels of a block of results.
//
//   window   3x3, 5x5 with stride 1 or 2      2 x 4 results a thread (2 x 2 forward with stride 2), unrolled
//            any other, and float64           1 x 4 results, tap by tap
//
// Neighbouring threads have neighbouring vectors, up to 32 of them; a block's threads are so many lanes of
// channels by about 8 places of an area that is as square as it can be. The filters of the block's channels are
// staged in shared memory once, transposed, since a tap's channels lie kernel^2 elements apart. A block walks
// down several such areas, which pays for the staging.
//
// What bounds it: bytes. x and y once from and to device memory. What blocks of results share they read from
// L1: of a 3x3 window a thread reads 4 x 6 vectors for 2 x 4 results, three reads of each; of an area of 8 x 8
// results some 10 x 10 come from L2. Instructions of a result in bfloat16, window 3x3: 9 multiply-adds, 3
// conversions of sources, 2 of weights, some 2 for addresses and stores: 16 for 4 bytes, which all
// multiprocessors of an H200 issue at 7.4 TB/s where the memory gives 4.8. 5x5 has 25 multiply-adds and is
// bound by them in halves: 3.6 TB/s.
//
// Error: one chain of at most kernel^2 multiply-adds in acc_t, in the order of the taps.
#pragma once

#include <limits>
#include <type_traits>

#include "conv_areas.cuh"
#include "conv_depthwise_window.cuh"
#include "dispatch.cuh"

namespace fastnn::cuda {
namespace {

// 128 registers a thread; two blocks have some 40 KB of loads under way, which covers the latency.
constexpr int kChannelsBlocks = 2;
// ptxas needs a few registers more than 128 of 5x5 for sm_80.
template <typename Window>
constexpr int channels_blocks() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if (Window::kSize == 5) return 1;
#endif
  return kChannelsBlocks;
}
// Channels of a vector: 16 bytes, 8 of halves, of which 16 would want 64 registers more for the sums.
template <typename scalar_t>
constexpr int kChannelVec = sizeof(scalar_t) == 8 ? 2 : 4;
// Taps whose weights an unspecialised window stages at a time.
constexpr int kTapsAtOnce = 25;

// From one line of taps to the next in shared memory: some more than the channels, so that the taps of a
// channel, which consecutive threads write, fall on other banks.
template <int kVec>
constexpr int kWeightPitch = (kMostLanes + 1) * kVec;

// Stages taps `begin` to `end` of the block's channels. Consecutive threads read consecutive taps.
template <int kVec, typename scalar_t>
__device__ __forceinline__ void stage_weights(const DepthwiseConv& c, const scalar_t* w, int first_channel,
                                              int channels, int begin, int end, scalar_t* staged) {
  const int taps = end - begin, width = static_cast<int>(c.kernel[1]);
  for (int i = static_cast<int>(threadIdx.x); i < channels * taps; i += kChannelsThreads) {
    const int channel = i / taps, of_chunk = i - channel * taps, tap = begin + of_chunk;
    const int row = tap / width, column = tap - row * width;
    staged[of_chunk * kWeightPitch<kVec> + channel] = w[c.w_begin + (first_channel + channel) * c.w_strides[0] +
                                                        row * c.w_strides[1] + column * c.w_strides[2]];
  }
}

template <typename Window>
struct ChannelsBlock {
  static constexpr int kRows = 2;
  // With stride 2 four columns would need eleven columns of sources.
  static constexpr int kColumns = !Window::kTransposed && Window::kStride == 2 ? 2 : 4;
};

template <typename scalar_t, typename Window, int kVec>
__global__ void __launch_bounds__(kChannelsThreads, channels_blocks<Window>())
    conv_depthwise_channels_kernel(DepthwiseConv c, ChannelsPlan plan, WindowAxis rows, WindowAxis columns,
                                   const scalar_t* __restrict__ source, const scalar_t* __restrict__ w,
                                   const scalar_t* __restrict__ bias, scalar_t* __restrict__ result,
                                   bool source_aligned, bool result_aligned) {
  using acc_t = acc_type<scalar_t>;
  using Block = ChannelsBlock<Window>;
  constexpr int kRows = Block::kRows, kColumns = Block::kColumns;
  using Weights = Vec<scalar_t, kVec>;
  FASTNN_SHARED(Weights, staged, Window::kTaps * (kMostLanes + 1));
  scalar_t* const weights = staged[0].v;
  const ChannelsPlace place(plan);
  const int first_channel = (place.vector - place.lane) * kVec;
  const int channels = min(plan.lanes * kVec, c.channels - first_channel);
  stage_weights<kVec>(c, w, first_channel, channels, 0, Window::kTaps, weights);
  __syncthreads();
  const int channel = place.vector * kVec;
  if (place.image < 0 || place.image >= c.images || channel >= c.channels ||
      place.column_run >= plan.column_runs) {
    return;
  }
  source += place.image * c.source_strides[0] + channel;
  result += place.image * c.result_strides[0] + channel;
  const int column_begin = place.column_run * kColumns - columns.result_shift;
  const int source_column = place.column_run * source_step<Window>(kColumns) + columns.source_shift;
  const int source_stride = static_cast<int>(c.source_strides[3]);
  acc_t start[kVec] = {};
  if (bias != nullptr) read_vec<kVec>(bias + channel, false, start);
#pragma unroll 1
  for (int step = 0; step < plan.steps; ++step) {
    const int row_run = place.row_run + step * plan.down;
    if (row_run >= plan.row_runs) break;
    acc_t sums[kRows][kColumns][kVec] = {};
    add_windows<Window>(
        sums, row_run * source_step<Window>(kRows) + rows.source_shift, rows.sources, source_column,
        columns.sources,
        [&](int row, auto& values) {
          const scalar_t* const line = source + row * c.source_strides[2] + source_column * c.source_strides[3];
#pragma unroll
          for (int j = 0; j < Window::sources(kColumns); ++j) {
            if (in_range(source_column + j, columns.sources)) {
              read_vec<kVec>(line + j * source_stride, source_aligned, values[j]);
            }
          }
        },
        [&](int tap_row, auto& taps) {
#pragma unroll
          for (int t = 0; t < Window::kSize; ++t) {
            read_vec<kVec>(weights + (tap_row * Window::kSize + t) * kWeightPitch<kVec> + place.lane * kVec,
                           true, taps[t]);
          }
        });
    const int row_begin = row_run * kRows - rows.result_shift;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (!in_range(row_begin + r, rows.results)) continue;
      scalar_t* const line = result + (row_begin + r) * c.result_strides[2];
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        if (!in_range(column_begin + i, columns.results)) continue;
#pragma unroll
        for (int k = 0; k < kVec; ++k) sums[r][i][k] += start[k];
        write_rectified<kVec>(line + (column_begin + i) * c.result_strides[3], result_aligned, c.activation,
                              sums[r][i]);
      }
    }
    if (!is_curved(c.activation)) continue;
#pragma unroll 1
    for (int at = 0; at < kRows * kColumns; ++at) {
      const int row = row_begin + at / kColumns, column = column_begin + at % kColumns;
      if (!in_range(row, rows.results) || !in_range(column, columns.results)) continue;
      activate_stored<kVec>(result + row * c.result_strides[2] + column * c.result_strides[3], result_aligned,
                            c.activation);
    }
  }
}

template <typename scalar_t, bool kTransposed, int kVec>
__global__ void __launch_bounds__(kChannelsThreads, sizeof(scalar_t) == 8 ? 2 : 4)
    conv_depthwise_channels_any_kernel(DepthwiseConv c, ChannelsPlan plan, AnyAxis rows, AnyAxis columns,
                                       const scalar_t* __restrict__ source, const scalar_t* __restrict__ w,
                                       const scalar_t* __restrict__ bias, scalar_t* __restrict__ result,
                                       bool source_aligned, bool result_aligned) {
  using acc_t = acc_type<scalar_t>;
  using Weights = Vec<scalar_t, kVec>;
  FASTNN_SHARED(Weights, staged, kTapsAtOnce * (kMostLanes + 1));
  scalar_t* const weights = staged[0].v;
  const ChannelsPlace place(plan);
  const int first_channel = (place.vector - place.lane) * kVec;
  const int channels = min(plan.lanes * kVec, c.channels - first_channel);
  const int channel = place.vector * kVec;
  const bool there = place.image >= 0 && place.image < c.images && channel < c.channels &&
                     place.column_run < plan.column_runs && place.row_run < plan.row_runs;
  // Forward results follow each other; transposed the runs of a residue lie side by side.
  const int step = kTransposed ? columns.stride : 1;
  const int group = kTransposed ? place.column_run / columns.stride : place.column_run;
  const int first = kTransposed
                        ? group * columns.stride * kAnyResults + place.column_run - group * columns.stride
                        : group * kAnyResults;
  const int source_step = kTransposed ? 1 : columns.stride;
  if (there) {
    source += place.image * c.source_strides[0] + channel;
    result += place.image * c.result_strides[0] + place.row_run * c.result_strides[2] + channel;
  }
  acc_t sums[kAnyResults][kVec] = {};
  const int taps = rows.kernel * columns.kernel;
  for (int begin = 0; begin < taps; begin += kTapsAtOnce) {
    const int end = min(taps, begin + kTapsAtOnce);
    if (begin > 0) __syncthreads();
    stage_weights<kVec>(c, w, first_channel, channels, begin, end, weights);
    __syncthreads();
    if (!there) continue;
    int tap_row = begin / columns.kernel, tap_column = begin - tap_row * columns.kernel;
#pragma unroll 1
    for (int tap = begin; tap < end; ++tap) {
      const int row = rows.template source<kTransposed>(place.row_run, tap_row);
      const int column = columns.template source<kTransposed>(first, tap_column);
      if (in_range(row, rows.sources) && column != std::numeric_limits<int>::min()) {
        const scalar_t* const line = source + row * c.source_strides[2];
        acc_t weight[kVec];
        read_vec<kVec>(weights + (tap - begin) * kWeightPitch<kVec> + place.lane * kVec, true, weight);
#pragma unroll
        for (int i = 0; i < kAnyResults; ++i) {
          const int at = column + i * source_step;
          if (!in_range(at, columns.sources)) continue;
          acc_t value[kVec];
          read_vec<kVec>(line + at * c.source_strides[3], source_aligned, value);
#pragma unroll
          for (int k = 0; k < kVec; ++k) sums[i][k] += value[k] * weight[k];
        }
      }
      if (++tap_column == columns.kernel) {
        tap_column = 0;
        ++tap_row;
      }
    }
  }
  if (!there) return;
  acc_t start[kVec] = {};
  if (bias != nullptr) read_vec<kVec>(bias + channel, false, start);
#pragma unroll
  for (int i = 0; i < kAnyResults; ++i) {
    const int column = first + i * step;
    if (column >= columns.results) break;
#pragma unroll
    for (int k = 0; k < kVec; ++k) sums[i][k] += start[k];
    write_activated<kVec>(result + column * c.result_strides[3], result_aligned, c.activation, sums[i]);
  }
}

// ---- launchers ----------------------------------------------------------------------------------------------

template <typename scalar_t, typename Window, int kVec>
Status launch_channels_window(const DepthwiseConv& c, const DepthwiseOperands& o, Stream stream) {
  constexpr const char* kName = "conv_depthwise_channels_kernel";
  using Block = ChannelsBlock<Window>;
  const WindowAxis rows = window_axis<Window>(c.results[0], c.sources[0], c.pad[0]);
  const WindowAxis columns = window_axis<Window>(c.results[1], c.sources[1], c.pad[1]);
  const ChannelsPlan plan =
      plan_channels(c.images, c.channels / kVec, runs_of(columns, Block::kColumns), runs_of(rows, Block::kRows),
                    Block::kRows, Block::kColumns, kMostSteps);
  dim3 grid;
  const Status status = grid_of(plan.blocks, kName, grid);
  if (!status.ok()) return status;
  return launch(kName, conv_depthwise_channels_kernel<scalar_t, Window, kVec>, grid, dim3(kChannelsThreads), 0,
                stream, c, plan, rows, columns, static_cast<const scalar_t*>(o.source),
                static_cast<const scalar_t*>(o.w), static_cast<const scalar_t*>(o.bias),
                static_cast<scalar_t*>(o.result), vectors_aligned<scalar_t, kVec>(o.source, c.source_strides),
                vectors_aligned<scalar_t, kVec>(o.result, c.result_strides));
}

template <typename scalar_t, bool kTransposed, int kVec>
Status launch_channels_any(const DepthwiseConv& c, const DepthwiseOperands& o, Stream stream) {
  constexpr const char* kName = "conv_depthwise_channels_any_kernel";
  const AnyAxis rows(c, 0), columns(c, 1);
  const int64_t spread = kTransposed ? c.stride[1] : 1;
  const int64_t column_runs = ceil_div(c.results[1], spread * kAnyResults) * spread;
  const ChannelsPlan plan = plan_channels(c.images, c.channels / kVec, static_cast<int>(column_runs),
                                          rows.results, 1, kAnyResults, 1);
  dim3 grid;
  const Status status = grid_of(plan.blocks, kName, grid);
  if (!status.ok()) return status;
  return launch(kName, conv_depthwise_channels_any_kernel<scalar_t, kTransposed, kVec>, grid,
                dim3(kChannelsThreads), 0, stream, c, plan, rows, columns,
                static_cast<const scalar_t*>(o.source), static_cast<const scalar_t*>(o.w),
                static_cast<const scalar_t*>(o.bias), static_cast<scalar_t*>(o.result),
                vectors_aligned<scalar_t, kVec>(o.source, c.source_strides),
                vectors_aligned<scalar_t, kVec>(o.result, c.result_strides));
}

// f(TypeTag<Window>{}) of the window that is known at compile time; otherwise `any()`.
template <typename F, typename Any>
Status dispatch_window(const DepthwiseConv& c, F f, Any any) {
  if (c.transposed) {
    if (c.square(3, 2)) return f(TypeTag<DepthwiseWindow<3, 2, true>>{});
    if (c.square(5, 2)) return f(TypeTag<DepthwiseWindow<5, 2, true>>{});
    return any();
  }
  if (c.square(3, 1)) return f(TypeTag<DepthwiseWindow<3, 1, false>>{});
  if (c.square(3, 2)) return f(TypeTag<DepthwiseWindow<3, 2, false>>{});
  if (c.square(5, 1)) return f(TypeTag<DepthwiseWindow<5, 1, false>>{});
  if (c.square(5, 2)) return f(TypeTag<DepthwiseWindow<5, 2, false>>{});
  return any();
}

template <typename scalar_t>
Status launch_depthwise_channels(const DepthwiseConv& c, const DepthwiseOperands& o, Stream stream) {
  constexpr int kVec = kChannelVec<scalar_t>;
  const auto any = [&](auto vec) {
    constexpr int kSize = decltype(vec)::value;
    return c.transposed ? launch_channels_any<scalar_t, true, kSize>(c, o, stream)
                        : launch_channels_any<scalar_t, false, kSize>(c, o, stream);
  };
  if (c.channels % kVec != 0) return any(std::integral_constant<int, 1>{});
  const auto by_vectors = [&] { return any(std::integral_constant<int, kVec>{}); };
  if constexpr (sizeof(scalar_t) == 8) {
    return by_vectors();
  } else {
    return dispatch_window(
        c,
        [&](auto window) {
          return launch_channels_window<scalar_t, typename decltype(window)::type, kVec>(c, o, stream);
        },
        by_vectors);
  }
}

}  // namespace
}  // namespace fastnn::cuda
