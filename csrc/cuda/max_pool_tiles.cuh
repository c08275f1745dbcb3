// Tiles of planes for max pooling: how the result is cut among blocks, how a tile's part of an array moves
// between global and shared memory, and how a block's threads share it out.
//
// A tile is some whole planes, or rows of one plane, or where rows are long a piece of some rows. In the first
// two cases its part of every array is one run of memory; a piece of rows is a run a row. Runs move in aligned
// vectors of 16 bytes, whatever the width of a row and wherever the array begins: in shared memory a run lies
// as it does in global memory, modulo 16 bytes, and only what is left at its two ends moves by elements.
//
// Everything here follows from the shape and changes no bit of a result.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <numeric>

#include "../ops/max_pool.h"
#include "async_copy.cuh"
#include "divisor.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kTileThreads = 256;
constexpr int kTileWarps = kTileThreads / kWarpSize;
// Shared memory of a block. Six such blocks fit a multiprocessor of sm_90, four one of sm_80: while some wait
// for their loads others compute. About two thirds of it are loads: 128 KiB a multiprocessor on sm_90, where
// some 32 KiB in flight (4.8 TB/s for 900 ns, by 132) keep the memory busy.
constexpr int64_t kTileBytes = 47 * 1024;
// Small tensors take smaller tiles, so that there is one for every block that fits.
constexpr int64_t kSmallTileBytes = 8 * 1024;
constexpr int64_t kWantedTiles = 4 * 132;
// Where one window's rows do not fit that; a multiprocessor of sm_86 has 99 KiB.
constexpr int64_t kLargeTileBytes = 96 * 1024;
// A piece of rows is taken where fewer whole rows fit a tile: two pieces side by side, or one above the other,
// read what their windows share twice.
constexpr int64_t kFewRows = 8;
// A tile's offsets, of a byte each, should begin where a sector of 32 bytes does.
constexpr int64_t kSectorElements = 32;

enum class Direction { kForward, kBackward };

// The largest n in [1, most] for which fits(n), which holds up to some n and no further; 0 if there is none.
template <typename Fits>
int64_t largest(int64_t most, Fits fits) {
  int64_t good = 0, bad = most + 1;
  while (bad - good > 1) {
    const int64_t n = good + (bad - good) / 2;
    (fits(n) ? good : bad) = n;
  }
  return good;
}

// How many of `all` a tile takes, where it can take `most`: as many as make tiles of one size, or a few more or
// less where that makes the tile's elements, `elements` of each, a multiple of sectors.
inline int64_t even_tile(int64_t all, int64_t most, int64_t elements) {
  if (most >= all) return all;
  const int64_t even = ceil_div(all, ceil_div(all, most));
  const int64_t step = kSectorElements / std::gcd(kSectorElements, elements);
  const int64_t more = ceil_div(even, step) * step, less = most - most % step;
  return more <= most ? more : 4 * less >= 3 * most ? less : even;
}

// ---- one dimension ------------------------------------------------------------------------------------------

// What a tile has of one dimension: `results` from result_begin on, which need `sources` from source_begin on.
// `origin` relates the two. Forward: where, counted from the first source, the first result's window begins.
// Backward: where, counted from the beginning of the first source's window, the first result is.
struct TileSpan {
  int64_t result_begin, source_begin;
  int results, sources, origin;
};

// Rows or columns of the planes. Results are y's forward and x's backward, sources the other's.
template <Direction kDirection>
struct TileAxis {
  static constexpr bool kForward = kDirection == Direction::kForward;
  int64_t results, sources, stride, pad, extent;  // extent: of a window, holes included, less 1
  int64_t tile;                                   // results of a tile
  Divisor by_stride, by_tiles;

  TileAxis(const PoolGeometry& g, int d)
      : results(kForward ? g.out[d] : g.in[d]),
        sources(kForward ? g.in[d] : g.out[d]),
        stride(g.stride[d]),
        pad(g.pad[d]),
        extent(g.dilation[d] * (g.kernel[d] - 1)),
        tile(results),
        by_stride(g.stride[d], g.in[d] + g.pad[d] + g.stride[d]),
        by_tiles(1, 0) {}

  int64_t tiles() const { return ceil_div(results, tile); }
  __host__ __device__ bool whole() const { return tile == results; }

  // The most sources that n results need. One tile for all of them takes all sources, so that planes follow
  // each other without gaps.
  int64_t most_sources(int64_t n) const {
    if (n == results) return sources;
    const int64_t most = kForward ? (n - 1) * stride + extent + 1 : (n - 1 + extent) / stride + 1;
    return most < sources ? most : sources;
  }

  __device__ __forceinline__ TileSpan span(int64_t index) const {
    TileSpan s;
    s.result_begin = index * tile;
    const int64_t rest = results - s.result_begin;
    s.results = static_cast<int>(rest < tile ? rest : tile);
    int64_t first = 0, last = sources - 1;
    if (tile < results) {
      if constexpr (kForward) {
        const int64_t begin = s.result_begin * stride - pad, end = begin + (s.results - 1) * stride + extent;
        first = begin > 0 ? begin : 0;
        last = end < sources ? end : sources - 1;
      } else {
        const int64_t begin = s.result_begin + pad, end = by_stride.divide(begin + s.results - 1);
        first = begin > extent ? by_stride.divide(begin - extent + stride - 1) : 0;
        last = end < sources ? end : sources - 1;
      }
    }
    s.source_begin = first;
    s.sources = static_cast<int>(last < first ? 0 : last - first + 1);
    s.origin = static_cast<int>(kForward ? s.result_begin * stride - pad - first
                                         : s.result_begin + pad - first * stride);
    return s;
  }
};

// ---- runs ---------------------------------------------------------------------------------------------------

// A tile's part of one array. Elements of shared memory are counted from its first.
struct TileRuns {
  int64_t begin;               // the first element, of the array
  int64_t global_stride;       // elements from a run to the next
  int runs, elements;          // elements: of a run
  int row_pitch, plane_pitch;  // elements from a row or a plane to the next, in shared memory
};

// How many elements p lies behind an address that is a multiple of 16 bytes.
template <typename T>
__device__ __forceinline__ int elements_past_vector(const T* p) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(p) % kVecBytes) / static_cast<int>(sizeof(T));
}

// Moves one run, by kThreads threads of which this is number `rank`: vector(i) for each aligned vector of it,
// single(i) for each element before the first and behind the last, i counted from the beginning.
template <int kThreads, typename T, typename Vector, typename Single>
__device__ __forceinline__ void move_run(const T* global, int elements, int rank, Vector vector,
                                         Single single) {
  constexpr int kVec = kVecSize<T>;
  static_assert(2 * kVec <= kThreads);
  int before = -elements_past_vector(global) & (kVec - 1);
  before = before < elements ? before : elements;
  const int vectors = static_cast<int>(static_cast<unsigned>(elements - before) / kVec);
#pragma unroll 4
  for (int v = rank; v < vectors; v += kThreads) vector(before + v * kVec);
  const int behind = before + vectors * kVec;
  if (rank < before) single(rank);
  if (rank >= kVec && rank < kVec + elements - behind) single(behind + rank - kVec);
}

// Moves a tile. A single run is the whole block's; of several each warp has its own, which takes no division.
template <typename T, typename Vector, typename Single>
__device__ __forceinline__ void move_tile(const T* global, const TileRuns& tile, Vector vector, Single single) {
  const int thread = static_cast<int>(threadIdx.x);
  if (tile.runs == 1) {
    move_run<kTileThreads>(
        global, tile.elements, thread, [&](int i) { vector(0, 0, i); }, [&](int i) { single(0, 0, i); });
    return;
  }
  for (int run = thread / kWarpSize; run < tile.runs; run += kTileWarps) {
    const int64_t from = run * tile.global_stride;
    const int at = run * tile.row_pitch;
    move_run<kWarpSize>(
        global + from, tile.elements, thread % kWarpSize, [&](int i) { vector(from, at, i); },
        [&](int i) { single(from, at, i); });
  }
}

// Where the tile's first element goes in a piece of shared memory, so that vectors there are vectors here.
template <typename T>
__device__ __forceinline__ T* place_of_tile(unsigned char* shared, const T* global) {
  return reinterpret_cast<T*>(shared) + elements_past_vector(global);
}

// Starts to copy a tile from `global`, its first element, to `shared`.
template <typename T>
__device__ __forceinline__ void load_tile(T* shared, const T* global, const TileRuns& tile) {
  move_tile(
      global, tile,
      [&](int64_t from, int at, int i) { cp_async<kVecBytes>(shared + at + i, global + from + i); },
      [&](int64_t from, int at, int i) { shared[at + i] = global[from + i]; });
}

template <typename T>
__device__ __forceinline__ void store_tile(T* global, const T* shared, const TileRuns& tile) {
  move_tile(
      global, tile,
      [&](int64_t from, int at, int i) {
        store_vec(global + from + i, load_vec<kVecSize<T>>(shared + at + i, true), true);
      },
      [&](int64_t from, int at, int i) { global[from + i] = shared[at + i]; });
}

// ---- what threads do ----------------------------------------------------------------------------------------

// Quotients of n >= 0 by `divisor` >= 1 with n * divisor < 2^31, as of what lies in shared memory: a
// multiplication by the reciprocal, rounded up.
class SmallDivisor {
 public:
  explicit SmallDivisor(int divisor = 1)
      : reciprocal_(((1u << 31) + static_cast<uint32_t>(divisor) - 1) / divisor) {}

  __device__ __forceinline__ int divide(int n) const {
    return static_cast<int>(__umulhi(2u * static_cast<unsigned>(n), reciprocal_));
  }

 private:
  uint32_t reciprocal_;  // of 2^31
};

// How the threads of a warp lie in one array in shared memory: bytes of an element, and from a column and from
// a plane to the next.
struct WarpAccess {
  int bytes;
  int64_t column, plane;

  // Wavefronts of an access, 3 standing for more, by `across` neighbouring columns of planes that are `spread`
  // apart. Each plane's threads ask for the same banks, turned by what lies between the planes.
  int wavefronts(int across, int spread) const {
    uint32_t of_plane = 0;
    for (int i = 0; i < across; ++i) of_plane |= 1u << (i * column / kBankBytes % kWarpSize);
    if (bytes > kBankBytes) of_plane |= std::rotl(of_plane, 1);
    uint32_t once = 0, twice = 0, thrice = 0;
    for (int thread = 0, i = 0; thread < kWarpSize; thread += across, ++i) {
      const uint32_t banks = std::rotl(of_plane, static_cast<int>(i * spread * plane / kBankBytes % kWarpSize));
      thrice |= twice & banks;
      twice |= once & banks;
      once |= banks;
    }
    return 1 + (twice != 0) + (thrice != 0);
  }

 private:
  static constexpr int kBankBytes = 4;
};

// Strips of rows, one column wide or a few, of the planes of a tile. Threads next to each other have columns
// next to each other; where that leaves threads over, planes and then parts of a column are shared out among
// them. Which planes a warp has together decides how often its threads meet in a bank of shared memory: they
// are those that lie `spread` apart.
struct TileStrips {
  int across, slots, planes, groups, rows;
  int spread, turns;  // strip i of the order is i * spread modulo `turns`
  SmallDivisor by_across, by_planes, by_turns;

  TileStrips(int64_t planes_, int64_t all_rows, int64_t columns, const WarpAccess& read,
             const WarpAccess& written)
      : planes(static_cast<int>(planes_)) {
    across = static_cast<int>(columns < kTileThreads ? columns : kTileThreads);
    slots = kTileThreads / across;
    const int64_t parts = slots / planes;
    groups = static_cast<int>(parts < 1 ? 1 : parts < all_rows ? parts : all_rows);
    rows = static_cast<int>(ceil_div(all_rows, groups));
    choose_order(read, written);
    by_across = SmallDivisor(across);
    by_planes = SmallDivisor(planes);
    by_turns = SmallDivisor(turns);
  }

  // f(plane, column, first row, row behind the last) for each strip of this thread.
  template <typename F>
  __device__ __forceinline__ void for_each(int of_planes, int all_rows, int columns, F f) const {
    const int thread = static_cast<int>(threadIdx.x);
    const int slot = by_across.divide(thread), first = thread - slot * across;
    if (slot >= slots) return;
    for (int i = slot; i < turns; i += slots) {
      const int far = i * spread, strip = far - by_turns.divide(far) * turns;
      const int group = by_planes.divide(strip), plane = strip - group * planes;
      const int begin = group * rows, end = begin + rows < all_rows ? begin + rows : all_rows;
      if (group >= groups || plane >= of_planes || begin >= end) continue;
      for (int column = first; column < columns; column += across) f(plane, column, begin, end);
    }
  }

 private:
  void choose_order(const WarpAccess& read, const WarpAccess& written) {
    constexpr int kMostSpread = 16, kMostStrips = 1 << 13;  // by_turns divides up to their product
    const int strips = planes * groups;
    spread = 1;
    turns = strips;
    if (planes == 1 || across >= kWarpSize || strips > kMostStrips) return;
    int least = std::numeric_limits<int>::max();
    for (int n = 1; n < kMostSpread && n < planes; ++n) {
      int with_gaps =
          strips;  // the next number without a factor in common, so that the multiples meet all strips
      while (std::gcd(n, with_gaps) != 1) ++with_gaps;
      const int cost = 2 * read.wavefronts(across, n) + written.wavefronts(across, n);
      if (cost < least && (with_gaps - 1) / slots == (strips - 1) / slots) {
        least = cost;
        spread = n;
        turns = with_gaps;
      }
    }
  }
};

// ---- the plan -----------------------------------------------------------------------------------------------

// A block's tile. One thread finds it and leaves it in shared memory: 64-bit arithmetic that all threads would
// repeat, and registers that they need elsewhere.
struct Tile {
  TileSpan rows, columns;
  TileRuns sources, results;
  int planes;
  // The row pitches in bytes: factors that compilers take as they are, so that an address is one instruction.
  int source_row_bytes, result_row_bytes;
};

// What a position consists of: an element, or where they lie innermost one of each channel.
struct TileInner {
  int elements;
  SmallDivisor by_elements;

  explicit TileInner(int n) : elements(n), by_elements(n) {}
  __device__ __forceinline__ int position(int item) const { return by_elements.divide(item); }
};

// Bytes of an element of each array of a tile; 0 for one that is not there. The rows are what forward keeps of
// each row of x for each column of windows.
struct TileElementBytes {
  int source, source_places, rows, row_places, result, result_places;
};

// Where they lie in shared memory.
struct TileParts {
  int source, source_places, rows, row_places, result, result_places, bytes;
};

template <Direction kDirection>
struct PlaneTiles {
  int64_t planes;  // in all
  TileInner inner;
  TileAxis<kDirection> rows, columns;
  int tile_planes = 1;
  TileElementBytes bytes;
  int source_pitch = 0, result_pitch = 0;  // elements from a row to the next, in shared memory
  TileParts parts{};
  int64_t blocks = 0;  // 0: no tile fits

  PlaneTiles(const PoolGeometry& g, const TileElementBytes& element_bytes)
      : planes(g.N * g.in[0] * (g.layout == Layout::kChannelsFirst ? g.C : 1)),
        inner(static_cast<int>(g.layout == Layout::kChannelsFirst ? 1 : g.C)),
        rows(g, 1),
        columns(g, 2),
        bytes(element_bytes) {
    const int64_t all = planes * inner.elements *
                        (rows.sources * columns.sources * (bytes.source + bytes.source_places) +
                         rows.results * columns.results * (bytes.result + bytes.result_places));
    int64_t most = all / kWantedTiles;
    most = most < kSmallTileBytes ? kSmallTileBytes : most > kTileBytes ? kTileBytes : most;
    if (!choose(most, kTileBytes) && !choose(kLargeTileBytes, kLargeTileBytes)) return;
    place(tile_planes, rows.tile, columns.tile);
    const int64_t of_plane = rows.tiles() * columns.tiles();
    blocks = ceil_div(planes, tile_planes) * of_plane;
    columns.by_tiles = Divisor(columns.tiles(), blocks);
    rows.by_tiles = Divisor(rows.tiles(), blocks);
  }

  __device__ __forceinline__ Tile tile(int64_t index, int element_bytes) const {
    Tile t;
    t.columns = columns.span(columns.by_tiles.digit(index));
    t.rows = rows.span(rows.by_tiles.digit(index));
    const int64_t first = index * tile_planes, rest = planes - first;
    t.planes = static_cast<int>(rest < tile_planes ? rest : tile_planes);
    const auto runs = [&](int64_t height, int64_t width, int64_t row, int64_t column, int of_rows,
                          int of_columns, int pitch) {
      TileRuns r;
      r.begin = ((first * height + row) * width + column) * inner.elements;
      r.global_stride = width * inner.elements;
      r.runs = columns.whole() ? 1 : of_rows;
      r.elements = (columns.whole() ? t.planes * of_rows * of_columns : of_columns) * inner.elements;
      r.row_pitch = pitch;
      r.plane_pitch = of_rows * pitch;
      return r;
    };
    t.sources = runs(rows.sources, columns.sources, t.rows.source_begin, t.columns.source_begin, t.rows.sources,
                     t.columns.sources, source_pitch);
    t.results = runs(rows.results, columns.results, t.rows.result_begin, t.columns.result_begin, t.rows.results,
                     t.columns.results, result_pitch);
    t.source_row_bytes = t.sources.row_pitch * element_bytes;
    t.result_row_bytes = t.results.row_pitch * element_bytes;
    return t;
  }

  // The strips of a tile in which each plane has so many rows and columns. From what a thread reads and writes
  // to what the next one does are so many positions.
  TileStrips strips(int64_t of_rows, int64_t of_columns, int64_t read_step, int64_t written_step) const {
    const auto access = [&](int element, int64_t step, int64_t plane) {
      return WarpAccess{element, (inner.elements == 1 ? step : 1) * element, plane * element};
    };
    return TileStrips(tile_planes, of_rows, of_columns * inner.elements,
                      access(bytes.source, read_step, rows.most_sources(rows.tile) * source_pitch),
                      access(bytes.result, written_step, rows.tile * result_pitch));
  }

 private:
  // Elements from a row to the next. In pieces of rows the same as in global memory modulo every vector.
  int64_t pitch(int64_t of_tile, int64_t of_plane, bool whole) const {
    if (whole) return of_plane * inner.elements;
    constexpr int64_t kLongestVector = 16;
    const int64_t least = of_tile * inner.elements;
    return least + (of_plane * inner.elements - least) % kLongestVector;
  }

  // Bytes of a tile; where its parts lie is written down.
  int64_t place(int64_t n, int64_t tile_rows, int64_t tile_columns) {
    const int64_t source_rows = rows.most_sources(tile_rows), whole = tile_columns == columns.results;
    const int64_t in_row = pitch(columns.most_sources(tile_columns), columns.sources, whole);
    const int64_t out_row = pitch(tile_columns, columns.results, whole);
    int64_t end = 0;
    const auto part = [&](int64_t element, int64_t elements) {
      const int64_t at = end;
      // The end of the last vector and the beginning before the first element: a vector each.
      if (element > 0) end += (element * elements + 2 * kVecBytes - 1) / kVecBytes * kVecBytes;
      return static_cast<int>(at);
    };
    source_pitch = static_cast<int>(in_row);
    result_pitch = static_cast<int>(out_row);
    parts.source = part(bytes.source, n * source_rows * in_row);
    parts.source_places = part(bytes.source_places, n * source_rows * in_row);
    parts.rows = part(bytes.rows, n * source_rows * tile_columns * inner.elements);
    parts.row_places = part(bytes.row_places, n * source_rows * tile_columns * inner.elements);
    parts.result = part(bytes.result, n * tile_rows * out_row);
    parts.result_places = part(bytes.result_places, n * tile_rows * out_row);
    parts.bytes = static_cast<int>(end);
    return end;
  }

  // Sets the size of tiles to as much as fits in `wanted` bytes; where that is not even a few whole rows, to
  // those, and where they do not fit in `most` bytes to pieces of some rows that do. False if nothing does.
  bool choose(int64_t wanted, int64_t most) {
    const int64_t all_rows = rows.results, all_columns = columns.results;
    tile_planes = 1;
    rows.tile = all_rows;
    columns.tile = all_columns;
    if (place(1, all_rows, all_columns) <= wanted) {
      const int64_t n = largest(planes, [&](int64_t v) { return place(v, all_rows, all_columns) <= wanted; });
      tile_planes = static_cast<int>(even_tile(planes, n, all_rows * all_columns * inner.elements));
      return true;
    }
    const int64_t few = all_rows < kFewRows ? all_rows : kFewRows;
    if (place(1, few, all_columns) > most) {
      wanted = most;
      int64_t some = largest(all_columns, [&](int64_t v) { return place(1, few, v) <= most; });
      if (some == 0) some = largest(all_columns, [&](int64_t v) { return place(1, 1, v) <= most; });
      if (some == 0) return false;
      columns.tile = even_tile(all_columns, some, inner.elements);
    }
    const int64_t of_columns = columns.tile;
    int64_t some = largest(all_rows, [&](int64_t v) { return place(1, v, of_columns) <= wanted; });
    if (columns.whole() && some < few) some = few;
    rows.tile = even_tile(all_rows, some, of_columns * inner.elements);
    return true;
  }
};

}  // namespace
}  // namespace fastnn::cuda
