// Max pooling of planes whose rows are whole runs of memory, by tiles in shared memory (max_pool_tiles.cuh). A
// block stages what its tile of the result needs, computes it there, and stores it: global memory moves in
// vectors of 16 bytes, whatever the width, and everything that is narrow or strided happens in shared memory.
//
//   forward   a thread walks down a column of windows of y in its strip of the tile
//   backward  a thread walks down a column of cells, or of positions, of x
//
// Planes are those of channels-first memory; with the channels innermost, an image is one plane of rows of
// W * C elements, whose columns are C elements apart.
//
// Square windows of fixed size walk in registers (max_pool_walk.cuh). Any other window goes the slower way:
// forward first keeps, for each row of x and each column of windows, the best of the row's places, and then
// compares down the columns, kernel height + kernel width places for an output and not their product; backward
// looks at every window over a position.
//
// What bounds it: bytes. A multiprocessor's share of 4.3 TB/s is 16.4 bytes in a cycle of 1.98 GHz, in which it
// issues four instructions of a warp: 7.8 for each byte of a thread, 163 for the 21 bytes of an output of 3x3/2
// in float32, 85 in bfloat16. The walks take some 60; 3x3/1 of two bytes, with 39 allowed, comes near its
// limit.
#pragma once

#include <cstdint>
#include <type_traits>

#include "dispatch.cuh"
#include "max_pool_tiles.cuh"
#include "max_pool_walk.cuh"

namespace fastnn::cuda {
namespace {

// 64 registers a thread; max_pool_tiles.cuh has the shared memory.
constexpr int kTileBlocks = 4;

// Neighbouring columns of one thread. At a stride of one elements of two bytes fill half of a word of shared
// memory: two columns a thread read their common taps once, and find the best of those once.
template <typename scalar_t, typename Window>
constexpr int neighbours_of() {
  return sizeof(scalar_t) == 2 && Window::kStride == 1 && Window::kSize == 3 ? 2 : 1;
}

// Neighbouring threads have neighbouring elements at a stride of two. With elements of 4 or 8 bytes half of the
// banks would be asked twice and half not at all. So the threads of every other half of what goes at once take
// two elements in the other order. Narrower elements have a bank each.
template <typename scalar_t, int kStride>
__device__ __forceinline__ bool second_comes_first() {
  constexpr unsigned kLanes = 64 / sizeof(scalar_t);
  return kStride == 2 && sizeof(scalar_t) >= 4 && (threadIdx.x & kLanes) != 0;
}

template <typename T>
__device__ __forceinline__ T* bytes_after(T* p, int bytes) {
  using byte_t = std::conditional_t<std::is_const_v<T>, const unsigned char, unsigned char>;
  return reinterpret_cast<T*>(reinterpret_cast<byte_t*>(p) + bytes);
}

// ---- forward ------------------------------------------------------------------------------------------------

struct WindowShape {
  int height, width;
  int row_stride, column_stride;
  int row_dilation, column_dilation;

  explicit WindowShape(const PoolGeometry& g)
      : height(static_cast<int>(g.kernel[1])),
        width(static_cast<int>(g.kernel[2])),
        row_stride(static_cast<int>(g.stride[1])),
        column_stride(static_cast<int>(g.stride[2])),
        row_dilation(static_cast<int>(g.dilation[1])),
        column_dilation(static_cast<int>(g.dilation[2])) {}
};

// The parts of a block's shared memory. Nobody asks for places in inference: place_t is void then.
template <typename scalar_t, typename place_t>
struct ForwardParts {
  const scalar_t* x;
  scalar_t* y;
  place_t* places;

  // The same, from an element of the tile of results on.
  __device__ __forceinline__ ForwardParts from(int elements) const {
    if constexpr (std::is_void_v<place_t>) {
      return {x, y + elements, nullptr};
    } else {
      return {x, y + elements, places + elements};
    }
  }
  __device__ __forceinline__ void emit(int at, acc_type<scalar_t> value, int place) const {
    y[at] = from_acc<scalar_t>(value);
    if constexpr (!std::is_void_v<place_t>) places[at] = static_cast<place_t>(place);
  }
};

// The best of a row of taps for windows of three places that begin one place apart. Places are counted from the
// first's.
template <typename acc_t>
__device__ __forceinline__ Best<acc_t, 2> best_of_neighbours(const acc_t (&values)[4], const Taps<4>& taps) {
  Best<acc_t, 1> common{{values[1]}, {taps.offset[1]}};
  common.take(0, values[2], taps.offset[2]);
  Best<acc_t, 2> best{{values[0], common.value[0]}, {taps.offset[0], common.place[0]}};
  best.take(0, common.value[0], common.place[0]);
  best.take(1, values[3], taps.offset[3]);
  return best;
}

template <typename Window, typename scalar_t, typename place_t>
__device__ __forceinline__ void forward_strips(const Tile& tile, const ForwardParts<scalar_t, place_t>& parts,
                                               const TileInner& inner, const TileStrips& strips) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kSize = Window::kSize, kStride = Window::kStride, kColumns = neighbours_of<scalar_t, Window>();
  constexpr int kTaps = kSize + (kColumns - 1) * kStride, kBytes = static_cast<int>(sizeof(scalar_t));
  const bool swapped = second_comes_first<scalar_t, kStride>();
  const int in_pitch = tile.sources.row_pitch, row_bytes = tile.source_row_bytes,
            out_pitch = tile.results.row_pitch;
  const int columns = (tile.columns.results + kColumns - 1) / kColumns;
  strips.for_each(
      tile.planes, tile.rows.results, columns * inner.elements, [&](int plane, int item, int begin, int end) {
        const int group = inner.position(item), channel = item - group * inner.elements;
        const int column = group * kColumns, start = tile.columns.origin + column * kStride;
        // Where there is no second column it goes where the first does, and before it.
        const int next = column + 1 < tile.columns.results ? inner.elements : 0;
        const Taps<kTaps> taps(start, tile.columns.sources);
        // In bytes, so that an address is one addition.
        int tap[kTaps];
#pragma unroll
        for (int t = 0; t < kTaps; ++t) tap[t] = (taps.offset[t] - taps.offset[0]) * inner.elements * kBytes;
        const int first_tap = swapped ? tap[1] : 0, second_tap = swapped ? 0 : tap[1];
        const int origin = tile.rows.origin + begin * kStride;
        const scalar_t* const x = parts.x + plane * tile.sources.plane_pitch + origin * in_pitch +
                                  (start + taps.offset[0]) * inner.elements + channel;
        const int out =
            plane * tile.results.plane_pitch + begin * out_pitch + column * inner.elements + channel;
        ForwardParts<scalar_t, place_t> at = parts.from(out);
        const int least = -origin, most = tile.rows.sources - 1 - origin;
        walk_forward<Window, acc_t, kColumns>(
            end - begin, [&](int row) { return clamped(row, least, most); },
            [&](int row) {
              const scalar_t* const line = bytes_after(x, row * row_bytes);
              const scalar_t a = *bytes_after(line, first_tap), b = *bytes_after(line, second_tap);
              const acc_t first = to_acc(swapped ? b : a), second = to_acc(swapped ? a : b);
              if constexpr (kColumns == 2) {
                const acc_t third = to_acc(*bytes_after(line, tap[2])),
                            fourth = to_acc(*bytes_after(line, tap[3]));
                return best_of_neighbours({first, second, third, fourth}, taps);
              } else {
                acc_t values[kSize][1] = {{first}, {second}};
                if constexpr (kSize == 3) values[2][0] = to_acc(*bytes_after(line, tap[2]));
                return best_of_row(values, taps);
              }
            },
            [&](int, const Best<acc_t, kColumns>& best) {
              if constexpr (kColumns == 2) at.emit(next, best.value[1], best.place[1] - 1);
              at.emit(0, best.value[0], best.place[0]);
              at = at.from(out_pitch);
            });
      });
}

constexpr int kFewTaps = 3;

// The first of a window's taps that is inside, and the number behind the last; tap 0 is at `start` of the
// positions 0 to size - 1.
struct TapRange {
  int first, end;

  __device__ __forceinline__ TapRange(int start, int taps, int dilation, int size) {
    if (dilation == 1) {
      first = start < 0 ? -start : 0;
      end = size - start < taps ? size - start : taps;
    } else {
      first = start < 0 ? (dilation - 1 - start) / dilation : 0;
      const int reach = (size - start + dilation - 1) / dilation;
      end = reach < taps ? reach : taps;
    }
  }
};

// The best of a row of x for a column of windows. Up to three taps are read in one go, those outside once more
// the last inside.
template <bool kFew, typename scalar_t>
__device__ __forceinline__ Best<acc_type<scalar_t>, 1> best_of_taps(const scalar_t* line, const TapRange& taps,
                                                                    int step) {
  Best<acc_type<scalar_t>, 1> best{{to_acc(line[taps.first * step])}, {taps.first}};
  if constexpr (kFew) {
#pragma unroll
    for (int t = 1; t < kFewTaps; ++t) {
      const int inside = taps.first + t < taps.end ? taps.first + t : taps.end - 1;
      best.take(0, to_acc(line[inside * step]), inside);
    }
  } else {
#pragma unroll 4
    for (int t = taps.first + 1; t < taps.end; ++t) best.take(0, to_acc(line[t * step]), t);
  }
  return best;
}

// Row by row of x: the best of each for every column of windows. With windows of one row those are the outputs.
template <bool kFew, typename scalar_t, typename place_t>
__device__ __forceinline__ void forward_rows(const Tile& tile, const ForwardParts<scalar_t, place_t>& parts,
                                             const TileInner& inner, const TileStrips& strips,
                                             const WindowShape& window, scalar_t* row_best,
                                             uint16_t* row_place) {
  const int width = tile.columns.results * inner.elements, step = window.column_dilation * inner.elements;
  strips.for_each(tile.planes, tile.rows.sources, width, [&](int plane, int column, int begin, int end) {
    const int position = inner.position(column);
    const int start = tile.columns.origin + position * window.column_stride;
    const TapRange taps(start, window.width, window.column_dilation, tile.columns.sources);
    const scalar_t* const x = parts.x + plane * tile.sources.plane_pitch + start * inner.elements + column -
                              position * inner.elements;
#pragma unroll 1
    for (int row = begin; row < end; ++row) {
      const auto best = best_of_taps<kFew>(x + row * tile.sources.row_pitch, taps, step);
      if (window.height == 1) {
        parts.emit(plane * tile.results.plane_pitch + row * tile.results.row_pitch + column, best.value[0],
                   best.place[0]);
      } else {
        const int at = (plane * tile.rows.sources + row) * width + column;
        row_best[at] = from_acc<scalar_t>(best.value[0]);
        row_place[at] = static_cast<uint16_t>(best.place[0]);
      }
    }
  });
}

// Then down each column of windows.
template <typename scalar_t, typename place_t>
__device__ __forceinline__ void forward_columns(const Tile& tile, const ForwardParts<scalar_t, place_t>& parts,
                                                const TileInner& inner, const TileStrips& strips,
                                                const WindowShape& window, const scalar_t* row_best,
                                                const uint16_t* row_place) {
  const int width = tile.columns.results * inner.elements;
  strips.for_each(tile.planes, tile.rows.results, width, [&](int plane, int column, int begin, int end) {
#pragma unroll 1
    for (int o = begin; o < end; ++o) {
      const int start = tile.rows.origin + o * window.row_stride;
      const TapRange taps(start, window.height, window.row_dilation, tile.rows.sources);
      const int step = window.row_dilation * width;
      const int line = (plane * tile.rows.sources + start) * width + column;
      Best<acc_type<scalar_t>, 1> best{{to_acc(row_best[line + taps.first * step])}, {taps.first}};
#pragma unroll 4
      for (int t = taps.first + 1; t < taps.end; ++t) best.take(0, to_acc(row_best[line + t * step]), t);
      const int tap = best.place[0];
      parts.emit(plane * tile.results.plane_pitch + o * tile.results.row_pitch + column, best.value[0],
                 tap * window.width + row_place[line + tap * step]);
    }
  });
}

template <typename scalar_t, typename place_t>
__device__ __forceinline__ void forward_any(const Tile& tile, const ForwardParts<scalar_t, place_t>& parts,
                                            const TileInner& inner, const TileStrips& row_strips,
                                            const TileStrips& strips, const WindowShape& window,
                                            scalar_t* row_best, uint16_t* row_place) {
  if (window.width <= kFewTaps) {
    forward_rows<true>(tile, parts, inner, row_strips, window, row_best, row_place);
  } else {
    forward_rows<false>(tile, parts, inner, row_strips, window, row_best, row_place);
  }
  if (window.height == 1) return;
  __syncthreads();
  forward_columns(tile, parts, inner, strips, window, row_best, row_place);
}

// The index of each output's place in its plane of x, which only few callers want.
template <typename place_t>
__device__ __forceinline__ void store_indices(int64_t* indices, const place_t* places, const Tile& tile,
                                              const TileInner& inner, int64_t x_width, const TileStrips& strips,
                                              const WindowShape& window) {
  strips.for_each(tile.planes, tile.rows.results, tile.columns.results * inner.elements,
                  [&](int plane, int column, int begin, int end) {
                    const int position = inner.position(column);
                    const int64_t start =
                        tile.columns.source_begin + tile.columns.origin + position * window.column_stride;
#pragma unroll 1
                    for (int o = begin; o < end; ++o) {
                      const int row = plane * tile.rows.results + o;
                      const int place = places[row * tile.results.row_pitch + column];
                      const int tap_row = place / window.width, tap = place - tap_row * window.width;
                      indices[row * tile.results.global_stride + column] =
                          (tile.rows.source_begin + tile.rows.origin + o * window.row_stride +
                           tap_row * window.row_dilation) *
                              x_width +
                          start + tap * window.column_dilation;
                    }
                  });
}

template <typename scalar_t, typename Window>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    max_pool_planes_forward_kernel(const scalar_t* x, scalar_t* y, void* offsets, bool wide_places,
                                   int64_t* indices, PlaneTiles<Direction::kForward> plan,
                                   TileStrips row_strips, TileStrips strips, WindowShape window) {
  FASTNN_DYNAMIC_SHARED(unsigned char, shared);
  FASTNN_SHARED(Tile, of_block, 1);
  if (threadIdx.x == 0) of_block[0] = plan.tile(blockIdx.x, sizeof(scalar_t));
  __syncthreads();
  const Tile& tile = of_block[0];
  const TileInner& inner = plan.inner;
  scalar_t* const staged = place_of_tile(shared + plan.parts.source, x + tile.sources.begin);
  load_tile(staged, x + tile.sources.begin, tile.sources);

  scalar_t* const results = place_of_tile(shared + plan.parts.result, y + tile.results.begin);
  cp_async_wait_all();
  __syncthreads();

  constexpr bool kAny = std::is_same_v<Window, AnyWindow>;
  const auto compute = [&](auto* places) {
    const ForwardParts<scalar_t, std::remove_pointer_t<decltype(places)>> parts{staged, results, places};
    if constexpr (kAny) {
      forward_any(tile, parts, inner, row_strips, strips, window,
                  reinterpret_cast<scalar_t*>(shared + plan.parts.rows),
                  reinterpret_cast<uint16_t*>(shared + plan.parts.row_places));
    } else {
      forward_strips<Window>(tile, parts, inner, strips);
    }
    __syncthreads();
    store_tile(y + tile.results.begin, results, tile.results);
  };
  const auto compute_with_places = [&](auto* all_places) {
    auto* const y_places = all_places + tile.results.begin;
    auto* const places = place_of_tile(shared + plan.parts.result_places, y_places);
    compute(places);
    if (offsets != nullptr) store_tile(y_places, places, tile.results);
    if (indices != nullptr) {
      store_indices(indices + tile.results.begin, places, tile, inner, plan.columns.sources, strips, window);
    }
  };
  if constexpr (kAny) {
    // Places that nobody asks for cost less here than their absence would cost in code.
    if (wide_places) {
      compute_with_places(static_cast<uint16_t*>(offsets));
    } else {
      compute_with_places(static_cast<uint8_t*>(offsets));
    }
  } else if (offsets == nullptr && indices == nullptr) {
    compute(static_cast<void*>(nullptr));
  } else {
    compute_with_places(static_cast<uint8_t*>(offsets));
  }
}

// ---- backward -----------------------------------------------------------------------------------------------

// The parts of a block's shared memory.
template <typename scalar_t, typename place_t>
struct BackwardParts {
  const scalar_t* gradients;
  const place_t* places;
  scalar_t* grad_x;
};

// What backward knows of a window.
template <typename scalar_t>
struct PlaneWindow {
  uint8_t place;
  scalar_t gradient;

  __device__ __forceinline__ void get(int (&places)[1], acc_type<scalar_t> (&gradients)[1]) const {
    places[0] = place;
    gradients[0] = to_acc(gradient);
  }
};

template <typename Window, typename scalar_t>
__device__ __forceinline__ void backward_cells(const Tile& tile, const BackwardParts<scalar_t, uint8_t>& parts,
                                               const uint8_t* no_place, const TileInner& inner,
                                               const TileStrips& strips) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kSize = Window::kSize, kStride = Window::kStride, kCells = neighbours_of<scalar_t, Window>();
  constexpr int kColumns = kCells * kStride, kWindows = Window::kCovering + kCells - 1;
  const bool swapped = second_comes_first<scalar_t, kStride>();
  const int in_pitch = tile.sources.row_pitch, out_pitch = tile.results.row_pitch;
  // Cells that begin where a window does; the first and the last may be in the tile in part.
  const int first_row = tile.rows.origin / kStride, first_column = tile.columns.origin / kStride;
  const int rows = (tile.rows.origin + tile.rows.results - 1) / kStride - first_row + 1;
  const int columns = (tile.columns.origin + tile.columns.results - 1) / kStride - first_column + 1;
  const int window_rows = tile.columns.sources > 0 ? tile.rows.sources : 0;
  strips.for_each(
      tile.planes, rows, (columns + kCells - 1) / kCells * inner.elements,
      [&](int plane, int item, int begin, int end) {
        const int group = inner.position(item), channel = item - group * inner.elements;
        const int cell_column = first_column + group * kCells;
        const int position = cell_column * kStride - tile.columns.origin;
        // The windows over these columns, from the last cell's on to the left. Where there is none its place is
        // always `no_place`.
        const int line = plane * tile.sources.plane_pitch + channel;
        const scalar_t* gradients[kWindows];
        const uint8_t* places[kWindows];
        int pitch[kWindows];
#pragma unroll
        for (int i = 0; i < kWindows; ++i) {
          const int column = cell_column + kCells - 1 - i;
          const bool there = static_cast<unsigned>(column) < static_cast<unsigned>(tile.columns.sources);
          const int at = line + (there ? column * inner.elements : 0);
          gradients[i] = parts.gradients + at;
          places[i] = there ? parts.places + at : no_place;
          pitch[i] = there ? in_pitch : 0;
        }
        // A cell's columns in the order in which they are written; some of the first and the last may not be
        // there.
        scalar_t* const grad_x =
            parts.grad_x + plane * tile.results.plane_pitch + position * inner.elements + channel;
        scalar_t* const early = swapped ? grad_x + inner.elements : grad_x;
        scalar_t* const late = swapped ? grad_x : grad_x + inner.elements;
        const bool has_first = position >= 0, has_last = position + kColumns <= tile.columns.results;
        const bool has_early = swapped ? has_last : has_first, has_late = swapped ? has_first : has_last;
        walk_backward<Window, kCells, acc_t, 1>(
            first_row + begin, first_row + end, window_rows,
            [&](int row, int ahead) {
              const int i = ahead + kCells - 1;
              return PlaneWindow<scalar_t>{places[i][row * pitch[i]],
                                           *bytes_after(gradients[i], row * tile.source_row_bytes)};
            },
            [&](int cell, const acc_t(&sum)[kSize][kColumns][1]) {
#pragma unroll
              for (int r = 0; r < kStride; ++r) {
                const int row = cell * kStride + r - tile.rows.origin;
                if (kStride == 2 && (r == 0 ? row < 0 : row >= tile.rows.results)) continue;
                const int line = row * tile.result_row_bytes;
                if constexpr (kColumns == 1) {
                  *bytes_after(grad_x, line) = from_acc<scalar_t>(sum[r][0][0]);
                } else {
                  const acc_t first = sum[r][0][0], last = sum[r][1][0];
                  if (has_early) *bytes_after(early, line) = from_acc<scalar_t>(swapped ? last : first);
                  if (has_late) *bytes_after(late, line) = from_acc<scalar_t>(swapped ? first : last);
                }
              }
            });
      });
}

// The windows over a position in one dimension, in rising order: the first, how many, and the tap of the first
// that the position is. From one to the next the window rises by a step and the tap falls by another.
struct CoveringDim {
  int stride, dilation, extent;
  int window_step, tap_step;
  Divisor by_stride, by_dilation;

  CoveringDim(const PoolGeometry& g, int d, int64_t longest)
      : stride(static_cast<int>(g.stride[d])),
        dilation(static_cast<int>(g.dilation[d])),
        extent(static_cast<int>(g.dilation[d] * (g.kernel[d] - 1))),
        window_step(static_cast<int>(g.dilation[d] / std::gcd(g.stride[d], g.dilation[d]))),
        tap_step(static_cast<int>(g.stride[d] / std::gcd(g.stride[d], g.dilation[d]))),
        by_stride(g.stride[d], longest + extent + g.stride[d]),
        by_dilation(g.dilation[d], longest + extent + g.stride[d]) {}

  struct Range {
    int first, end, tap;
  };

  // `at` is counted from the first place of window 0, of which there are `windows`.
  __device__ __forceinline__ Range covering(int at, int windows) const {
    Range r{0, 0, 0};
    if (at < 0) return r;
    const int last = static_cast<int>(by_stride.divide(at));
    r.end = last < windows ? last + 1 : windows;
    r.first = at > extent ? static_cast<int>(by_stride.divide(at - extent + stride - 1)) : 0;
    int rest = at - r.first * stride;
    r.tap = static_cast<int>(by_dilation.divide(rest));
    // Between the places of dilated windows the next few windows may have the position.
    for (int i = 1; r.tap * dilation != rest && r.first < r.end; ++i) {
      if (i == window_step) {
        r.first = r.end;
        break;
      }
      ++r.first;
      rest -= stride;
      r.tap = static_cast<int>(by_dilation.divide(rest));
    }
    return r;
  }
};

template <typename scalar_t, typename place_t>
__device__ __forceinline__ void backward_positions(const Tile& tile,
                                                   const BackwardParts<scalar_t, place_t>& parts,
                                                   const TileInner& inner, const TileStrips& strips,
                                                   const CoveringDim& by_rows, const CoveringDim& by_columns,
                                                   int kernel_width) {
  strips.for_each(
      tile.planes, tile.rows.results, tile.columns.results * inner.elements,
      [&](int plane, int item, int begin, int end) {
        const int position = inner.position(item);
        const auto across = by_columns.covering(tile.columns.origin + position, tile.columns.sources);
        const int source = plane * tile.sources.plane_pitch + item - position * inner.elements;
        scalar_t* const grad_x = parts.grad_x + plane * tile.results.plane_pitch + item;
        for (int row = begin; row < end; ++row) {
          const auto down = by_rows.covering(tile.rows.origin + row, tile.rows.sources);
          acc_type<scalar_t> sum = 0;
          int row_tap = down.tap;
          for (int i = down.first; i < down.end; i += by_rows.window_step, row_tap -= by_rows.tap_step) {
            const int line = source + i * tile.sources.row_pitch;
            int place = row_tap * kernel_width + across.tap;
            for (int j = across.first; j < across.end;
                 j += by_columns.window_step, place -= by_columns.tap_step) {
              const int at = line + j * inner.elements;
              if (static_cast<int>(parts.places[at]) == place) sum += to_acc(parts.gradients[at]);
            }
          }
          grad_x[row * tile.results.row_pitch] = from_acc<scalar_t>(sum);
        }
      });
}

template <typename scalar_t, typename Window>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    max_pool_planes_backward_kernel(const scalar_t* grad_y, const void* offsets, bool wide_places,
                                    scalar_t* grad_x, PlaneTiles<Direction::kBackward> plan, TileStrips strips,
                                    CoveringDim by_rows, CoveringDim by_columns, int kernel_width) {
  FASTNN_DYNAMIC_SHARED(unsigned char, shared);
  FASTNN_SHARED(Tile, of_block, 1);
  if (threadIdx.x == 0) of_block[0] = plan.tile(blockIdx.x, sizeof(scalar_t));
  __syncthreads();
  const Tile& tile = of_block[0];
  const TileInner& inner = plan.inner;
  scalar_t* const gradients = place_of_tile(shared + plan.parts.source, grad_y + tile.sources.begin);
  load_tile(gradients, grad_y + tile.sources.begin, tile.sources);
  scalar_t* const sums = place_of_tile(shared + plan.parts.result, grad_x + tile.results.begin);
  const auto sum_up = [&](auto* global_places, auto&& compute) {
    const auto* const of_tile = global_places + tile.sources.begin;
    using place_t = std::remove_cv_t<std::remove_pointer_t<decltype(global_places)>>;
    place_t* const places = place_of_tile(shared + plan.parts.source_places, of_tile);
    load_tile(places, of_tile, tile.sources);
    cp_async_wait_all();
    __syncthreads();
    compute(BackwardParts<scalar_t, place_t>{gradients, places, sums});
  };
  if constexpr (!std::is_same_v<Window, AnyWindow>) {
    FASTNN_SHARED(uint8_t, no_place, 1);
    if (threadIdx.x == 0) no_place[0] = kNoPlace;
    sum_up(static_cast<const uint8_t*>(offsets),
           [&](const auto& parts) { backward_cells<Window>(tile, parts, no_place, inner, strips); });
  } else {
    const auto compute = [&](const auto& parts) {
      backward_positions(tile, parts, inner, strips, by_rows, by_columns, kernel_width);
    };
    if (wide_places) {
      sum_up(static_cast<const uint16_t*>(offsets), compute);
    } else {
      sum_up(static_cast<const uint8_t*>(offsets), compute);
    }
  }
  __syncthreads();
  store_tile(grad_x + tile.results.begin, sums, tile.results);
}

// ---- launchers ----------------------------------------------------------------------------------------------

template <typename scalar_t, typename Window>
Status launch_planes_forward(const MaxPoolForwardParams& p, const PlaneTiles<Direction::kForward>& plan,
                             Stream stream) {
  const PoolGeometry& g = p.geometry;
  int64_t columns = plan.columns.tile, step = 1;
  if constexpr (!std::is_same_v<Window, AnyWindow>) {
    constexpr int kColumns = neighbours_of<scalar_t, Window>();
    columns = ceil_div(columns, kColumns);
    step = kColumns;
  }
  return launch("max_pool_planes_forward", max_pool_planes_forward_kernel<scalar_t, Window>,
                dim3(static_cast<unsigned>(plan.blocks)), dim3(kTileThreads),
                static_cast<size_t>(plan.parts.bytes), stream, static_cast<const scalar_t*>(p.x),
                static_cast<scalar_t*>(p.y), p.offsets, p.offset_type != OffsetType::kUInt8, p.indices, plan,
                plan.strips(plan.rows.most_sources(plan.rows.tile), columns, step * g.stride[2], step),
                plan.strips(plan.rows.tile, columns, step * g.stride[2], step), WindowShape(g));
}

template <typename scalar_t, typename Window>
Status launch_planes_backward(const MaxPoolBackwardParams& p, const PlaneTiles<Direction::kBackward>& plan,
                              Stream stream) {
  int64_t rows = plan.rows.tile, columns = plan.columns.tile, read_step = 1, written_step = 1;
  if constexpr (!std::is_same_v<Window, AnyWindow>) {
    // Cells, of which the first and the last may be in part in the tile.
    constexpr int kStride = Window::kStride, kCells = neighbours_of<scalar_t, Window>();
    rows = (rows - 2 + 2 * kStride) / kStride;
    columns = ceil_div((columns - 2 + 2 * kStride) / kStride, kCells);
    read_step = kCells;
    written_step = kCells * kStride;
  }
  return launch("max_pool_planes_backward", max_pool_planes_backward_kernel<scalar_t, Window>,
                dim3(static_cast<unsigned>(plan.blocks)), dim3(kTileThreads),
                static_cast<size_t>(plan.parts.bytes), stream, static_cast<const scalar_t*>(p.grad_y),
                p.offsets, p.offset_type != OffsetType::kUInt8, static_cast<scalar_t*>(p.grad_x), plan,
                plan.strips(rows, columns, read_step, written_step), CoveringDim(p.geometry, 1, plan.rows.tile),
                CoveringDim(p.geometry, 2, plan.columns.tile), static_cast<int>(p.geometry.kernel[2]));
}

}  // namespace
}  // namespace fastnn::cuda
