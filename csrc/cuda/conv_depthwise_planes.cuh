// Depthwise convolution of contiguous planes, forward and data gradient (conv_depthwise_window.cuh), and the
// weight gradient of all taps: by tiles in shared memory (max_pool_tiles.cuh).
//
// A block has a tile: many small planes, or rows of one plane. What it needs of the sources comes as runs of
// aligned vectors of 16 bytes, the results leave likewise, so that neither a row's width nor a plane's costs
// sectors. Between, a thread owns strips of a column, or of two where elements are halves or lie two to a cell
// of a transposed window, and takes 4 rows of it at a time from registers:
//
//   window   3x3, 5x5 with stride 1 or 2      unrolled, the filter in registers
//            any other, and float64           tap by tap, 4 results a thread down the column
//
// What bounds it: bytes, x and y once, and the filters once a tile. From shared memory 3x3 reads 18 elements
// for 4 results, 24 for 8 of halves; with what staging moves some 7 wavefronts for 32 results where the memory
// gives a multiprocessor of an H200 12 cycles in float32 and 6 in halves: the former is bound by memory, the
// latter by shared memory a little before it. Neighbouring threads read neighbouring words; forward with stride
// 2 in float32 every other one, two wavefronts where one would do, in half as much time as the memory takes.
//
// Weight gradient: x and grad_y are staged likewise. Some lanes of a warp, 8 to 32, own a plane (or all warps
// have parts of one), keep the sums of all taps in registers, and add them by shuffles; each plane or tile of
// one leaves its sums, [image and tile][tap][channel], for combine_partials_kernel. Of planes of 7 x 7 in
// halves those are 37 % of the bytes, of 14 x 14 9 %.
// Error: chains of positions / threads, a tree, and combine_partials_kernel's:
//   |error| <= (positions of a thread + log2(lanes) + warps + images * tiles / 32 + 6) * eps(acc_t) * sum
//   |terms|.
#pragma once

#include <type_traits>

#include "conv_activation.cuh"
#include "conv_depthwise_channels.cuh"
#include "conv_depthwise_weight.cuh"
#include "conv_depthwise_window.cuh"
#include "max_pool_tiles.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kStripRows = 4;
// More filters than this fill no tile: they are as many as the tensor's elements.
constexpr int64_t kMostFilterBytes = 16 * 1024;

// Blocks that a multiprocessor's registers have room for: the filter, sums and sources of 5x5 want 85 a thread.
template <typename Window>
constexpr int kPlanesBlocks = Window::kSize > 3 ? 3 : 4;

// Columns of a thread.
template <typename scalar_t, typename Window>
constexpr int strip_columns() {
  if (Window::kTransposed) return 2;
  return sizeof(scalar_t) == 2 && Window::kStride == 1 ? 2 : 1;
}

constexpr Direction tile_direction(bool transposed) {
  return transposed ? Direction::kBackward : Direction::kForward;
}

// The geometry of the tiles: of pooling by windows that lie where the filter's do.
inline PoolGeometry tile_geometry(const DepthwiseConv& c) {
  PoolGeometry g{};
  g.N = c.images;
  g.C = c.channels;
  g.layout = Layout::kChannelsFirst;
  for (int d = 0; d < kSpatialDims; ++d) g.in[d] = g.out[d] = g.kernel[d] = g.stride[d] = g.dilation[d] = 1;
  for (int d = 0; d < 2; ++d) {
    g.in[d + 1] = c.transposed ? c.results[d] : c.sources[d];
    g.out[d + 1] = c.transposed ? c.sources[d] : c.results[d];
    g.kernel[d + 1] = c.kernel[d];
    g.stride[d + 1] = c.stride[d];
    g.pad[d + 1] = c.pad[d];
    g.dilation[d + 1] = c.dilation[d];
  }
  return g;
}

// The axis of a window in a tile: counted from the tile's first result and source.
template <typename Window>
__device__ __forceinline__ WindowAxis axis_in_tile(const TileSpan& span) {
  WindowAxis a{span.results, span.sources, 0, span.origin};
  if constexpr (Window::kTransposed) {
    a.result_shift = span.origin % Window::kStride;
    a.source_shift = span.origin / Window::kStride - Window::kReach;
  }
  return a;
}

// The filters of the tile's planes, [plane][tap]; the tile's first plane is number `first`.
template <typename scalar_t>
__device__ __forceinline__ void stage_filters(const DepthwiseConv& c, const scalar_t* w, int64_t first,
                                              int planes, scalar_t* staged) {
  const int width = static_cast<int>(c.kernel[1]), taps = static_cast<int>(c.kernel[0]) * width;
  const int first_channel = static_cast<int>(first % c.channels);
  for (int i = static_cast<int>(threadIdx.x); i < planes * taps; i += kTileThreads) {
    const int plane = i / taps, tap = i - plane * taps, row = tap / width;
    const int channel = (first_channel + plane) % c.channels;
    staged[i] =
        w[c.w_begin + channel * c.w_strides[0] + row * c.w_strides[1] + (tap - row * width) * c.w_strides[2]];
  }
}

// A block's view of its tile.
template <typename scalar_t>
struct DepthwiseTile {
  const Tile& tile;
  const scalar_t* source;
  const scalar_t* filters;
  const scalar_t* bias;  // of all channels, or null
  scalar_t* result;
  int channels, first_channel;

  __device__ __forceinline__ acc_type<scalar_t> start(int plane) const {
    if (bias == nullptr) return 0;
    return to_acc(bias[(first_channel + plane) % channels]);
  }
};

template <typename Window, typename scalar_t>
__device__ __forceinline__ void compute_window(const DepthwiseTile<scalar_t>& t, const TileStrips& strips) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kColumns = strip_columns<scalar_t, Window>(), kSize = Window::kSize;
  const WindowAxis rows = axis_in_tile<Window>(t.tile.rows), columns = axis_in_tile<Window>(t.tile.columns);
  const int source_pitch = t.tile.sources.row_pitch, result_pitch = t.tile.results.row_pitch;
  strips.for_each(
      t.tile.planes, runs_of(rows, kStripRows), runs_of(columns, kColumns),
      [&](int plane, int column_run, int begin, int end) {
        acc_t w[kSize][kSize];
#pragma unroll
        for (int i = 0; i < Window::kTaps; ++i)
          w[i / kSize][i % kSize] = to_acc(t.filters[plane * Window::kTaps + i]);
        const acc_t start = t.start(plane);
        const int column_begin = column_run * kColumns - columns.result_shift;
        const int source_column = column_run * source_step<Window>(kColumns) + columns.source_shift;
        const scalar_t* const source = t.source + plane * t.tile.sources.plane_pitch + source_column;
        scalar_t* const result = t.result + plane * t.tile.results.plane_pitch + column_begin;
#pragma unroll 1
        for (int run = begin; run < end; ++run) {
          acc_t sums[kStripRows][kColumns][1] = {};
          add_windows<Window>(
              sums, run * source_step<Window>(kStripRows) + rows.source_shift, rows.sources, source_column,
              columns.sources,
              [&](int row, auto& values) {
#pragma unroll
                for (int j = 0; j < Window::sources(kColumns); ++j) {
                  if (in_range(source_column + j, columns.sources)) {
                    values[j][0] = to_acc(source[row * source_pitch + j]);
                  }
                }
              },
              [&](int tap_row, auto& taps) {
#pragma unroll
                for (int i = 0; i < kSize; ++i) taps[i][0] = w[tap_row][i];
              });
          const int row_begin = run * kStripRows - rows.result_shift;
#pragma unroll
          for (int r = 0; r < kStripRows; ++r) {
            if (!in_range(row_begin + r, rows.results)) continue;
#pragma unroll
            for (int i = 0; i < kColumns; ++i) {
              if (!in_range(column_begin + i, columns.results)) continue;
              result[(row_begin + r) * result_pitch + i] = from_acc<scalar_t>(sums[r][i][0] + start);
            }
          }
        }
      });
}

// A window that is known at run time. Sources of a result's taps, in a tile: forward begin + tap * dilation;
// transposed (begin - tap * dilation) / stride, where that is whole.
struct TileWindowAxis {
  int kernel, stride, dilation, bias;
  Divisor by_stride;

  TileWindowAxis(const DepthwiseConv& c, int d, int64_t longest)
      : kernel(static_cast<int>(c.kernel[d])),
        stride(static_cast<int>(c.stride[d])),
        dilation(static_cast<int>(c.dilation[d])),
        bias(static_cast<int>(ceil_div(c.dilation[d] * (c.kernel[d] - 1), c.stride[d]) * c.stride[d])),
        by_stride(c.stride[d], longest + 2 * bias + 8 * c.stride[d]) {}

  template <bool kTransposed>
  __device__ __forceinline__ int source(int origin, int result, int tap) const {
    if constexpr (!kTransposed) return origin + result * stride + tap * dilation;
    const int t = origin + result - tap * dilation + bias;
    if (t < 0) return std::numeric_limits<int>::min();
    const int q = static_cast<int>(by_stride.divide(t));
    return q * stride == t ? q - bias / stride : std::numeric_limits<int>::min();
  }
};

template <bool kTransposed, typename scalar_t>
__device__ __forceinline__ void compute_any(const DepthwiseTile<scalar_t>& t, const TileStrips& strips,
                                            const TileWindowAxis& rows, const TileWindowAxis& columns) {
  using acc_t = acc_type<scalar_t>;
  // Rows of a thread: neighbours forward, `stride` apart transposed.
  const int apart = kTransposed ? rows.stride : 1, source_apart = kTransposed ? 1 : rows.stride;
  const int height = t.tile.rows.results,
            groups = (height + apart * kStripRows - 1) / (apart * kStripRows) * apart;
  const int source_pitch = t.tile.sources.row_pitch, result_pitch = t.tile.results.row_pitch;
  strips.for_each(
      t.tile.planes, groups, t.tile.columns.results, [&](int plane, int column, int begin, int end) {
        const acc_t start = t.start(plane);
        const scalar_t* const w = t.filters + plane * rows.kernel * columns.kernel;
        const scalar_t* const source = t.source + plane * t.tile.sources.plane_pitch;
        scalar_t* const result = t.result + plane * t.tile.results.plane_pitch + column;
#pragma unroll 1
        for (int group = begin; group < end; ++group) {
          const int block = group / apart, first = block * apart * kStripRows + group - block * apart;
          acc_t sums[kStripRows] = {};
#pragma unroll 1
          for (int tap_row = 0; tap_row < rows.kernel; ++tap_row) {
            const int row = rows.template source<kTransposed>(t.tile.rows.origin, first, tap_row);
            if (row == std::numeric_limits<int>::min()) continue;
#pragma unroll 1
            for (int tap = 0; tap < columns.kernel; ++tap) {
              const int at = columns.template source<kTransposed>(t.tile.columns.origin, column, tap);
              if (!in_range(at, t.tile.columns.sources)) continue;
              const acc_t weight = to_acc(w[tap_row * columns.kernel + tap]);
#pragma unroll
              for (int i = 0; i < kStripRows; ++i) {
                const int line = row + i * source_apart;
                if (in_range(line, t.tile.rows.sources))
                  sums[i] += to_acc(source[line * source_pitch + at]) * weight;
              }
            }
          }
#pragma unroll
          for (int i = 0; i < kStripRows; ++i) {
            const int row = first + i * apart;
            if (row < height) result[row * result_pitch] = from_acc<scalar_t>(sums[i] + start);
          }
        }
      });
}

// The results of a block, once they are all there: where they are computed there are no registers for it.
template <typename scalar_t>
__device__ __forceinline__ void activate_tile(const ConvActivation& activation, const Tile& tile,
                                              scalar_t* results) {
  const int width = tile.columns.results, of_plane = tile.rows.results * width;
  for (int i = static_cast<int>(threadIdx.x); i < tile.planes * of_plane; i += kTileThreads) {
    const int plane = i / of_plane, in_plane = i - plane * of_plane, row = in_plane / width;
    scalar_t& z =
        results[plane * tile.results.plane_pitch + row * tile.results.row_pitch + in_plane - row * width];
    z = activated(activation, z);
  }
}

// Any window of a direction.
template <bool kTransposed_>
struct AnyDepthwiseWindow {
  static constexpr bool kTransposed = kTransposed_;
  static constexpr int kSize = 0, kStride = 0;
};

template <typename Window>
constexpr bool is_any_window = Window::kStride == 0;

template <typename scalar_t, typename Window>
__global__ void __launch_bounds__(kTileThreads, kPlanesBlocks<Window>)
    conv_depthwise_planes_kernel(DepthwiseConv c, const scalar_t* source, const scalar_t* w,
                                 const scalar_t* bias, scalar_t* result,
                                 PlaneTiles<tile_direction(Window::kTransposed)> plan, TileStrips strips,
                                 int64_t of_plane, TileWindowAxis rows, TileWindowAxis columns) {
  FASTNN_DYNAMIC_SHARED(unsigned char, shared);
  FASTNN_SHARED(Tile, of_block, 1);
  FASTNN_SHARED(int64_t, first_plane, 1);
  if (threadIdx.x == 0) {
    of_block[0] = plan.tile(blockIdx.x, sizeof(scalar_t));
    first_plane[0] = quotient(blockIdx.x, of_plane) * plan.tile_planes;
  }
  __syncthreads();
  const Tile& tile = of_block[0];
  scalar_t* const sources = place_of_tile(shared + plan.parts.source, source + tile.sources.begin);
  load_tile(sources, source + tile.sources.begin, tile.sources);
  scalar_t* const filters = reinterpret_cast<scalar_t*>(shared + plan.parts.bytes);
  stage_filters(c, w, first_plane[0], tile.planes, filters);
  scalar_t* const results = place_of_tile(shared + plan.parts.result, result + tile.results.begin);
  cp_async_wait_all();
  __syncthreads();
  const DepthwiseTile<scalar_t> t{
      tile, sources, filters, bias, results, c.channels, static_cast<int>(first_plane[0] % c.channels)};
  if constexpr (is_any_window<Window>) {
    compute_any<Window::kTransposed>(t, strips, rows, columns);
  } else {
    compute_window<Window>(t, strips);
  }
  __syncthreads();
  if (c.activation.kind != Activation::kNone) {
    activate_tile(c.activation, tile, results);
    __syncthreads();
  }
  store_tile(result + tile.results.begin, results, tile.results);
}

// ---- weight gradient ----------------------------------------------------------------------------------------

constexpr int kLeastLanes = 8, kMostGroups = kTileThreads / kLeastLanes;

// Lanes of a plane, how many such groups of lanes share one, in parts, and the columns of a tile.
struct PlaneLanes {
  int lanes, parts, columns;
  SmallDivisor by_columns;
};

template <typename scalar_t, typename Window>
__global__ void __launch_bounds__(kTileThreads, kPlanesBlocks<Window>)
    conv_depthwise_weight_planes_kernel(DepthwiseConv c, const scalar_t* x, const scalar_t* grad_y,
                                        acc_type<scalar_t>* partial, PlaneTiles<Direction::kForward> plan,
                                        int64_t of_plane, PlaneLanes share) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kSize = Window::kSize, kTaps = Window::kTaps, kSourceRows = Window::sources(kStripRows);
  FASTNN_DYNAMIC_SHARED(unsigned char, shared);
  FASTNN_SHARED(Tile, of_block, 1);
  FASTNN_SHARED(acc_t, of_parts, kMostGroups * kTaps);
  if (threadIdx.x == 0) of_block[0] = plan.tile(blockIdx.x, sizeof(scalar_t));
  __syncthreads();
  const Tile& tile = of_block[0];
  scalar_t* const sources = place_of_tile(shared + plan.parts.source, x + tile.sources.begin);
  scalar_t* const gradients = place_of_tile(shared + plan.parts.result, grad_y + tile.results.begin);
  load_tile(sources, x + tile.sources.begin, tile.sources);
  load_tile(gradients, grad_y + tile.results.begin, tile.results);
  cp_async_wait_all();
  __syncthreads();

  const int thread = static_cast<int>(threadIdx.x), lane = thread & (share.lanes - 1);
  const int group = thread / share.lanes, groups = kTileThreads / share.lanes;
  const WindowAxis rows = axis_in_tile<Window>(tile.rows), columns = axis_in_tile<Window>(tile.columns);
  const int row_runs = runs_of(rows, kStripRows), items = row_runs * share.columns;
  // Where in the result of which image a plane's sums go.
  const int64_t tile_number = quotient(blockIdx.x, of_plane), piece = blockIdx.x - tile_number * of_plane;
  const int64_t first_plane = tile_number * plan.tile_planes;
  const auto leave = [&](int plane, int tap, acc_t sum) {
    const int64_t image = (first_plane + plane) / c.channels,
                  channel = first_plane + plane - image * c.channels;
    partial[((image * of_plane + piece) * kTaps + tap) * c.channels + channel] = sum;
  };
  // Whole warps go round together, whether they have a plane or not: the sums are added by shuffles.
  const int planes_at_once = groups / share.parts;
  for (int base = 0; base < tile.planes; base += planes_at_once) {
    const int plane = base + group / share.parts, part = group % share.parts;
    acc_t sums[kTaps] = {};
    if (group < planes_at_once * share.parts && plane < tile.planes) {
      const scalar_t* const source = sources + plane * tile.sources.plane_pitch;
      const scalar_t* const grad = gradients + plane * tile.results.plane_pitch;
      for (int item = part * share.lanes + lane; item < items; item += share.parts * share.lanes) {
        const int run = share.by_columns.divide(item), column = item - run * share.columns;
        if (column >= columns.results) continue;  // the last tile of a row is narrower
        const int first = run * kStripRows, source_row = first * Window::kStride + rows.source_shift;
        const int source_column = column * Window::kStride + columns.source_shift;
        acc_t g[kStripRows];
#pragma unroll
        for (int r = 0; r < kStripRows; ++r) {
          if (first + r < rows.results) g[r] = to_acc(grad[(first + r) * tile.results.row_pitch + column]);
        }
#pragma unroll
        for (int s = 0; s < kSourceRows; ++s) {
          if (!in_range(source_row + s, rows.sources)) continue;
          const scalar_t* const line = source + (source_row + s) * tile.sources.row_pitch + source_column;
#pragma unroll
          for (int j = 0; j < kSize; ++j) {
            if (!in_range(source_column + j, columns.sources)) continue;
            const acc_t value = to_acc(line[j]);
#pragma unroll
            for (int r = 0; r < kStripRows; ++r) {
              const int tap = Window::tap(r, s);
              if (tap >= 0 && first + r < rows.results) sums[tap * kSize + j] += g[r] * value;
            }
          }
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      for (int lanes = share.lanes / 2; lanes > 0; lanes /= 2) sums[t] += shuffle_down(sums[t], lanes);
    }
    if (lane == 0) {
#pragma unroll
      for (int t = 0; t < kTaps; ++t) of_parts[group * kTaps + t] = sums[t];
    }
    __syncthreads();
    // Neighbouring threads write neighbouring channels.
    for (int i = thread; i < planes_at_once * kTaps; i += kTileThreads) {
      const int tap = i / planes_at_once, of = i - tap * planes_at_once;
      if (base + of >= tile.planes) continue;
      acc_t sum = 0;
      for (int q = 0; q < share.parts; ++q) sum += of_parts[(of * share.parts + q) * kTaps + tap];
      leave(base + of, tap, sum);
    }
    __syncthreads();
  }
}

// ---- launchers ----------------------------------------------------------------------------------------------

// Whether an array of [images, channels, rows, columns] is planes without gaps.
inline bool dense_planes(const int64_t (&strides)[4], int64_t images, int channels, const int64_t (&size)[2]) {
  const auto is = [](int64_t extent, int64_t stride, int64_t wanted) {
    return extent == 1 || stride == wanted;
  };
  const int64_t plane = size[0] * size[1];
  return is(size[1], strides[3], 1) && is(size[0], strides[2], size[1]) && is(channels, strides[1], plane) &&
         is(images, strides[0], plane * channels);
}

inline bool has_dense_planes(const DepthwiseConv& c) {
  return dense_planes(c.source_strides, c.images, c.channels, c.sources) &&
         dense_planes(c.result_strides, c.images, c.channels, c.results);
}

template <Direction kDirection>
PlaneTiles<kDirection> depthwise_tiles(const DepthwiseConv& c, int element) {
  return PlaneTiles<kDirection>(tile_geometry(c), TileElementBytes{element, 0, 0, 0, element, 0});
}

// Whether tiles fit shared memory, the filters of their planes included.
template <Direction kDirection>
bool tiles_fit(const DepthwiseConv& c, const PlaneTiles<kDirection>& plan, int element) {
  return plan.blocks > 0 && plan.blocks <= std::numeric_limits<int32_t>::max() &&
         plan.tile_planes * c.taps() * element <= kMostFilterBytes;
}

inline bool takes_planes(const DepthwiseConv& c, int element) {
  if (!has_dense_planes(c) || c.images * c.sources[0] * c.sources[1] == 0) return false;
  return c.transposed ? tiles_fit(c, depthwise_tiles<Direction::kBackward>(c, element), element)
                      : tiles_fit(c, depthwise_tiles<Direction::kForward>(c, element), element);
}

template <typename scalar_t, typename Window>
Status launch_planes_window(const DepthwiseConv& c, const DepthwiseOperands& o, Stream stream) {
  constexpr Direction kDirection = tile_direction(Window::kTransposed);
  constexpr int kElement = sizeof(scalar_t);
  const auto plan = depthwise_tiles<kDirection>(c, kElement);
  int64_t rows = plan.rows.tile, columns = plan.columns.tile, read_step = 1, written_step = 1;
  if constexpr (is_any_window<Window>) {
    const int64_t apart = Window::kTransposed ? c.stride[0] : 1;
    rows = ceil_div(rows, apart * kStripRows) * apart;
  } else {
    constexpr int kColumns = strip_columns<scalar_t, Window>();
    const int64_t shift = Window::kTransposed ? Window::kStride - 1 : 0;
    rows = ceil_div(rows + shift, kStripRows);
    columns = ceil_div(columns + shift, kColumns);
    read_step = source_step<Window>(kColumns);
    written_step = kColumns;
  }
  const int64_t filter_bytes = ceil_div(plan.tile_planes * c.taps() * kElement, kVecBytes) * kVecBytes;
  return launch("conv_depthwise_planes_kernel", conv_depthwise_planes_kernel<scalar_t, Window>,
                dim3(static_cast<unsigned>(plan.blocks)), dim3(kTileThreads),
                static_cast<size_t>(plan.parts.bytes + filter_bytes), stream, c,
                static_cast<const scalar_t*>(o.source), static_cast<const scalar_t*>(o.w),
                static_cast<const scalar_t*>(o.bias), static_cast<scalar_t*>(o.result), plan,
                plan.strips(rows, columns, read_step, written_step), plan.rows.tiles() * plan.columns.tiles(),
                TileWindowAxis(c, 0, plan.rows.tile), TileWindowAxis(c, 1, plan.columns.tile));
}

template <typename scalar_t>
Status launch_depthwise_planes(const DepthwiseConv& c, const DepthwiseOperands& o, Stream stream) {
  const auto any = [&] {
    return c.transposed ? launch_planes_window<scalar_t, AnyDepthwiseWindow<true>>(c, o, stream)
                        : launch_planes_window<scalar_t, AnyDepthwiseWindow<false>>(c, o, stream);
  };
  if constexpr (sizeof(scalar_t) == 8) {
    return any();
  } else {
    return dispatch_window(
        c,
        [&](auto window) {
          return launch_planes_window<scalar_t, typename decltype(window)::type>(c, o, stream);
        },
        any);
  }
}

inline bool takes_weight_planes(const DepthwiseConv& c, int element) {
  return element < 8 && has_window_of_all_taps(c) && takes_planes(c, element);
}

inline int64_t weight_planes_splits(const DepthwiseConv& c, int element) {
  const auto plan = depthwise_tiles<Direction::kForward>(c, element);
  return c.images * plan.rows.tiles() * plan.columns.tiles();
}

template <typename scalar_t, typename Window>
Status launch_weight_planes(const DepthwiseConv& c, const void* x, const void* grad_y, void* partial,
                            Stream stream) {
  const auto plan = depthwise_tiles<Direction::kForward>(c, sizeof(scalar_t));
  const int64_t items = ceil_div(plan.rows.tile, kStripRows) * plan.columns.tile;
  const int columns = static_cast<int>(plan.columns.tile);
  PlaneLanes share{kLeastLanes, 1, columns, SmallDivisor(columns)};
  while (share.lanes < kWarpSize && share.lanes * 2 <= items) share.lanes *= 2;
  if (share.lanes == kWarpSize) {
    share.parts = std::max(1, kTileWarps / plan.tile_planes);
  }
  return launch("conv_depthwise_weight_planes_kernel", conv_depthwise_weight_planes_kernel<scalar_t, Window>,
                dim3(static_cast<unsigned>(plan.blocks)), dim3(kTileThreads),
                static_cast<size_t>(plan.parts.bytes), stream, c, static_cast<const scalar_t*>(x),
                static_cast<const scalar_t*>(grad_y), static_cast<acc_type<scalar_t>*>(partial), plan,
                plan.rows.tiles() * plan.columns.tiles(), share);
}

}  // namespace
}  // namespace fastnn::cuda
