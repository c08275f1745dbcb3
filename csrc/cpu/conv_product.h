// The blocked matrix product behind all three directions of the convolution.
//
//   out[i][j] = bias + sum over d of rows(i, d) * columns(j, d),  for every batch (groups, splits)
//
// Both operands are patch matrices (conv_patches.h); the reduction runs over their depth, or over their
// positions where `reduce_positions` is set. A task is a tile of the output. It walks the reduction in blocks
// of kDepthBlock: finds or packs the tile's panels of both operands for that block and lets the micro-kernel
// add every pair of panels to sums that lie in the output, or in a tile of accumulators that is rounded into it
// once at the end. The operand that every task needs whole (the weights) is packed beforehand, once per call,
// by all threads; activations stay in place where they are such that the micro-kernel can read them
// (conv_in_place.h).
//
// An output element is the same sequence of operations whatever the tile it is in, so tiles and threads may be
// chosen freely: the bits do not depend on them.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "conv_gemm.h"
#include "conv_in_place.h"
#include "conv_pack_weights.h"
#include "conv_patches.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND {

enum class Prepacked { kNone, kRows, kColumns };

// Tiles are at most kLongTile x kShortTile: the longer side belongs to the operand that is packed beforehand,
// so that each patch is packed once for up to 512 filters. The accumulator tile (512 x 192 floats, 384 KB), a
// panel of columns (48 KB) and the rows' panels (192 x 272 floats, 204 KB, when they are packed by the task)
// lie in L2 together.
inline constexpr int64_t kLongTile = 512;
inline constexpr int64_t kShortTile = 192;

// Where one operand is packed by the task and the other is not packed at all, the longer side belongs to the
// one in place: 24 micro-kernels for a packed panel cost 3 % on top, 144 nothing.
inline constexpr int64_t kInPlaceRowTile = 1152;
inline constexpr int64_t kInPlaceColumnTile = 96;

// Columns in place are short runs, one for each channel, that the micro-kernel finds in L2 for every panel of
// rows; packed once they are a stream. From this many panels of rows on the copy costs less.
inline constexpr int64_t kMaxInPlacePanels = 16;

// Waking the thread pool costs 5 to 10 us, the time of about half a million multiply-adds: a thread is worth it
// from twice that on.
inline constexpr int64_t kMinMultiplyAddsPerThread = 1 << 20;

// Tiles per thread that parallelism asks for, when tiles can be cut small enough.
inline constexpr int64_t kTilesPerThread = 4;

// Elements that a thread packs at least, when packing an operand beforehand.
inline constexpr int64_t kMinPackPerThread = 1 << 16;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// A batch of products, each with the same shape: batch index = group * splits + split. Each split has its part
// of the reduction.
template <typename scalar_t, typename out_t>
struct Product {
  PatchMatrix<scalar_t> rows, columns;
  bool reduce_positions;
  Prepacked prepacked;
  int64_t groups;
  int64_t rows_group_stride, columns_group_stride;  // in elements of data
  int64_t splits = 1;
  // Output: element (i, j) of a batch is at the sum of the two axes' offsets.
  out_t* out;
  Axis out_rows, out_columns;
  int64_t out_group_stride, out_split_stride = 0;
  // One value per row, or per column where bias_on_columns is set; null for none.
  const scalar_t* bias = nullptr;
  bool bias_on_columns = false;
  int64_t bias_group_stride = 0;
};

// How a product is cut up. A function of its shape and of the number of threads, which only tiles depend on.
template <typename acc_t>
struct ProductPlan {
  int64_t rows, columns, reduction;
  int64_t split_length;                   // of the reduction
  int64_t depth_block, num_depth_blocks;  // of a whole split
  int64_t panel_height, row_panels;
  int64_t panel_vecs, panel_width, column_panels;
  int64_t row_tile, column_tile, row_tiles, column_tiles;  // tiles are whole panels
  int64_t tasks, workers;
  // Whether an operand that is not packed beforehand is read where it is.
  bool rows_in_place = false, columns_in_place = false;  // columns: where that pays
  bool rows_are_even;                                    // in the output
  // Workspace, in elements: [prepacked operand][worker: row panels, column panel, accumulators]
  int64_t row_panel_size, column_panel_size, prepacked_batch_size, prepacked_size;
  int64_t row_buffer, column_buffer, accumulators, worker_size;

  template <typename scalar_t, typename out_t>
  explicit ProductPlan(const Product<scalar_t, out_t>& product) {
    rows = product.out_rows.length();
    columns = product.out_columns.length();
    reduction = product.reduce_positions ? product.rows.positions.length() : product.rows.depth.length();

    split_length = ceil_div(reduction, product.splits);
    num_depth_blocks = ceil_div(split_length, kDepthBlock);
    depth_block = num_depth_blocks == 0 ? 0 : ceil_div(split_length, num_depth_blocks);

    const int64_t* const row_dims = product.out_rows.size;
    rows_are_even = row_dims[0] * row_dims[1] * row_dims[2] == 1;
    panel_height = panel_rows(rows);
    row_panels = ceil_div(rows, panel_height);
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      rows_in_place = product.prepacked == Prepacked::kNone
                          ? product.rows.depth.size[3] % panel_height == 0
                          : product.prepacked == Prepacked::kColumns && product.rows.depth.stride[3] == 1 &&
                                product.rows.depth.size[3] >= kMinAddressedRun;
      columns_in_place = product.prepacked == Prepacked::kRows && product.columns.positions.stride[3] == 1;
    }
    const int64_t vecs = ceil_div(columns, kLanes<acc_t>);
    // Panels of even width: 4 vectors are 2 + 2, not 3 + 1.
    panel_vecs = vecs == 0 ? 1 : ceil_div(vecs, ceil_div(vecs, kMaxVecs));
    panel_width = panel_vecs * kLanes<acc_t>;
    column_panels = ceil_div(columns, panel_width);

    const int64_t threads = at::get_num_threads();
    const int64_t batch = product.groups * product.splits;
    const double multiply_adds = static_cast<double>(batch) * rows * columns * split_length;
    const int64_t useful_threads =
        std::max<int64_t>(1, std::min<int64_t>(threads, multiply_adds / kMinMultiplyAddsPerThread));
    choose_tiles(product.prepacked, batch, useful_threads);
    tasks = batch * row_tiles * column_tiles;
    workers = std::min(useful_threads, tasks);

    row_panel_size = product.prepacked == Prepacked::kRows ? round_up(panel_height * depth_block, 16)
                                                           : panel_height * kRowPitch;
    column_panel_size = round_up(panel_width * depth_block, 16);
    prepacked_batch_size =
        num_depth_blocks * (product.prepacked == Prepacked::kRows      ? row_panels * row_panel_size
                            : product.prepacked == Prepacked::kColumns ? column_panels * column_panel_size
                                                                       : 0);
    prepacked_size = product.groups * prepacked_batch_size;
    row_buffer = product.prepacked == Prepacked::kRows ? 0 : row_tile / panel_height * row_panel_size;
    if (rows_in_place) {
      row_buffer = product.prepacked == Prepacked::kNone
                       ? 0
                       : round_up(row_tile * kMaxAddressedTaps, 16) *
                             static_cast<int64_t>(sizeof(acc_t*) / sizeof(acc_t));
    }
    column_buffer = product.prepacked == Prepacked::kColumns ? 0 : column_panel_size;
    accumulators = round_up(row_tile * column_tile, 16);
    worker_size = row_buffer + column_buffer + accumulators;
  }

  int64_t bytes() const {
    return (prepacked_size + workers * worker_size) * static_cast<int64_t>(sizeof(acc_t));
  }

 private:
  void choose_tiles(Prepacked prepacked, int64_t batch, int64_t threads) {
    int64_t row_limit = kShortTile, column_limit = kLongTile;
    if (prepacked == Prepacked::kRows) std::swap(row_limit, column_limit);
    if (prepacked == Prepacked::kNone && rows_in_place) {
      row_limit = std::min(kInPlaceRowTile, (kMaxPanelSpan - 1) * panel_height);  // as many taps at most
      column_limit = kInPlaceColumnTile;
    }
    set_tile(row_tile, row_tiles, rows, row_panels, panel_height, row_limit);
    set_tile(column_tile, column_tiles, columns, column_panels, panel_width, column_limit);
    if (threads == 1) return;
    // First the operand that tasks pack themselves is cut, since that costs nothing twice; then the other.
    const int64_t wanted = threads * kTilesPerThread;
    for (int step = 0; step < 2; ++step) {
      const bool cut_columns = (prepacked == Prepacked::kRows) == (step == 0);
      const int64_t others = batch * (cut_columns ? row_tiles : column_tiles);
      if (others == 0 || others * (cut_columns ? column_tiles : row_tiles) >= wanted) return;
      if (cut_columns) {
        set_tile(column_tile, column_tiles, columns, column_panels, panel_width,
                 columns / ceil_div(wanted, others));
      } else {
        set_tile(row_tile, row_tiles, rows, row_panels, panel_height, rows / ceil_div(wanted, others));
      }
    }
  }

  static void set_tile(int64_t& tile, int64_t& tiles, int64_t size, int64_t panels, int64_t panel,
                       int64_t limit) {
    tiles = std::min(panels, ceil_div(size, std::max(limit, panel)));
    tile = tiles == 0 ? 0 : ceil_div(panels, tiles) * panel;
    tiles = tile == 0 ? 0 : ceil_div(size, tile);
  }
};

// Packs the panel of rows [first, last) over [k0, k1) of the reduction: panel[m][kRowPitch].
template <typename scalar_t>
void pack_row_panel(const PatchMatrix<scalar_t>& matrix, bool reduce_positions, int64_t first, int64_t last,
                    int64_t k0, int64_t k1, acc_type<scalar_t>* panel) {
  if (reduce_positions) {
    // Whole vectors: kRowPitch leaves room for them.
    pack_positions_contiguous(matrix, PositionRuns(matrix, k0, k1), TapRuns(matrix, first, last), panel,
                              kRowPitch, round_up(k1 - k0, kLanes<acc_type<scalar_t>>));
  } else {
    pack_depth_contiguous(matrix, PositionRuns(matrix, first, last), TapRuns(matrix, k0, k1), panel, kRowPitch,
                          k1 - k0);
  }
}

// Packs the panel of columns [first, last) over [k0, k1) of the reduction: panel[d][width].
template <typename scalar_t>
void pack_column_panel(const PatchMatrix<scalar_t>& matrix, bool reduce_positions, int64_t first, int64_t last,
                       int64_t width, int64_t k0, int64_t k1, acc_type<scalar_t>* panel) {
  if (reduce_positions) {
    pack_depth_contiguous(matrix, PositionRuns(matrix, k0, k1), TapRuns(matrix, first, last), panel, width,
                          width);
  } else {
    pack_positions_contiguous(matrix, PositionRuns(matrix, first, last), TapRuns(matrix, k0, k1), panel, width,
                              width);
  }
}

// Scatters sums along an axis, from the cursor's place on.
template <typename out_t, typename acc_t>
void store_along(AxisCursor cursor, int64_t count, const acc_t* src, out_t* dst) {
  const int64_t stride = cursor.axis.stride[3];
  while (count > 0) {
    const int64_t length = cursor.run(count);
    out_t* const place = dst + cursor.offset();
    if (stride == 1) {
      store_run(place, src, length);
    } else {
      for (int64_t i = 0; i < length; ++i) place[i * stride] = static_cast<out_t>(src[i]);
    }
    cursor.advance(length);
    src += length;
    count -= length;
  }
}

template <typename scalar_t, typename out_t>
class ProductRunner {
 public:
  using acc_t = acc_type<scalar_t>;

  ProductRunner(const Product<scalar_t, out_t>& product, void* workspace)
      : product_(product), plan_(product), prepacked_(static_cast<acc_t*>(workspace)) {}

  void run() {
    if (plan_.tasks == 0) return;
    if (product_.prepacked != Prepacked::kNone) pack_beforehand();
    const int64_t per_worker = ceil_div(plan_.tasks, plan_.workers);
    parallel_for(plan_.workers, 1, [&](int64_t first_worker, int64_t last_worker) {
      for (int64_t worker = first_worker; worker < last_worker; ++worker) {
        acc_t* const buffer = prepacked_ + plan_.prepacked_size + worker * plan_.worker_size;
        const int64_t end = std::min(plan_.tasks, (worker + 1) * per_worker);
        for (int64_t task = worker * per_worker; task < end; ++task) compute_tile(task, buffer);
      }
    });
  }

 private:
  // Operand of one group.
  static PatchMatrix<scalar_t> of_group(PatchMatrix<scalar_t> matrix, int64_t group_stride, int64_t group) {
    matrix.data += group * group_stride;
    return matrix;
  }

  void pack_beforehand() {
    const bool rows = product_.prepacked == Prepacked::kRows;
    const int64_t panels = rows ? plan_.row_panels : plan_.column_panels;
    const int64_t panel_size = rows ? plan_.row_panel_size : plan_.column_panel_size;
    const int64_t span = rows ? plan_.panel_height : plan_.panel_width;
    const int64_t extent = rows ? plan_.rows : plan_.columns;
    // A task packs a panel for the whole reduction: filters may have taps innermost, and then each line of them
    // is needed by every block.
    const int64_t items = product_.groups * panels;
    const int64_t grain =
        std::max<int64_t>(1, kMinPackPerThread / (span * std::max<int64_t>(1, plan_.reduction)));
    parallel_for(items, grain, [&](int64_t first_item, int64_t last_item) {
      for (int64_t item = first_item; item < last_item; ++item) {
        const int64_t panel = item % panels, group = item / panels;
        const int64_t first = panel * span, last = std::min(extent, first + span);
        if (rows) {
          pack_filter_panel(of_group(product_.rows, product_.rows_group_stride, group), first, last,
                            plan_.panel_height, plan_.depth_block,
                            prepacked_ + group * plan_.prepacked_batch_size + panel * panel_size,
                            panels * panel_size);
          continue;
        }
        for (int64_t block = 0; block < plan_.num_depth_blocks; ++block) {
          const int64_t k0 = block * plan_.depth_block, k1 = std::min(plan_.reduction, k0 + plan_.depth_block);
          acc_t* const dst =
              prepacked_ + group * plan_.prepacked_batch_size + (block * panels + panel) * panel_size;
          pack_column_panel(of_group(product_.columns, product_.columns_group_stride, group),
                            product_.reduce_positions, first, last, round_up(last - first, kLanes<acc_t>), k0,
                            k1, dst);
        }
      }
    });
  }

  void compute_tile(int64_t task, acc_t* buffer) {
    const int64_t column_tile = task % plan_.column_tiles;
    const int64_t row_tile = task / plan_.column_tiles % plan_.row_tiles;
    const int64_t split = task / plan_.column_tiles / plan_.row_tiles % product_.splits;
    const int64_t group = task / plan_.column_tiles / plan_.row_tiles / product_.splits;
    const int64_t i0 = row_tile * plan_.row_tile, i1 = std::min(plan_.rows, i0 + plan_.row_tile);
    const int64_t j0 = column_tile * plan_.column_tile, j1 = std::min(plan_.columns, j0 + plan_.column_tile);
    const int64_t split_begin = split * plan_.split_length;
    const int64_t split_end = std::min(plan_.reduction, split_begin + plan_.split_length);

    const Tile tile{group,
                    split,
                    i0,
                    i1,
                    j0,
                    j1,
                    buffer,
                    buffer + plan_.row_buffer,
                    buffer + plan_.row_buffer + plan_.column_buffer};
    bool accumulate = init_sums(tile, split_begin >= split_end);
    for (int64_t k0 = split_begin, block = 0; k0 < split_end; k0 += plan_.depth_block, ++block) {
      const int64_t k1 = std::min(split_end, k0 + plan_.depth_block);
      if (!plan_.rows_in_place) {
        multiply_packed_rows(tile, block, k0, k1, accumulate);
      } else if (product_.reduce_positions) {
        multiply_rows_along_positions(tile, k0, k1, accumulate);
      } else {
        multiply_rows_along_channels(tile, block, k0, k1, accumulate);
      }
      accumulate = true;
    }
    store_sums(tile);
  }

  struct Tile {
    int64_t group, split, i0, i1, j0, j1;
    acc_t *rows, *columns, *sums;
  };

  PatchMatrix<scalar_t> rows_of(const Tile& tile) const {
    return of_group(product_.rows, product_.rows_group_stride, tile.group);
  }
  PatchMatrix<scalar_t> columns_of(const Tile& tile) const {
    return of_group(product_.columns, product_.columns_group_stride, tile.group);
  }

  // Calls f(j, last column, vectors) for each panel of columns of a tile.
  template <typename F>
  void for_each_column_panel(const Tile& tile, F&& f) const {
    for (int64_t j = tile.j0; j < tile.j1; j += plan_.panel_width) {
      const int64_t last = std::min(tile.j1, j + plan_.panel_width);
      f(j, last, ceil_div(last - j, kLanes<acc_t>));
    }
  }

  // Calls f(i, height) for each micro-tile of the rows of a tile. What is left of the last panel is 4, 2 and 1,
  // so that no row is written that is not there.
  template <typename F>
  void for_each_rows(const Tile& tile, F&& f) const {
    int64_t height = kMaxRows;
    for (int64_t i = tile.i0; i < tile.i1; i += height) {
      while (height > tile.i1 - i) height /= 2;
      f(i, height);
    }
  }

  // Where the sums of a panel of columns are: in the output itself, if that has their type and holds the panel
  // as whole vectors in evenly spaced rows that begin on vectors, or else in the tile's accumulators.
  struct Place {
    acc_t* sums;
    int64_t pitch;
    bool direct;
  };

  Place place_of(const Tile& tile, int64_t j) const {
    if constexpr (std::is_same_v<out_t, acc_t>) {
      const int64_t width = std::min(tile.j1 - j, plan_.panel_width);
      const int64_t pitch = product_.out_rows.stride[3];
      if (plan_.rows_are_even && product_.out_columns.stride[3] == 1 && (width | pitch) % kLanes<acc_t> == 0) {
        const AxisCursor column(product_.out_columns, j);
        if (column.run(width) == width) {
          return {out_of(tile) + column.offset() + tile.i0 * pitch, pitch, true};
        }
      }
    }
    return {tile.sums + (j - tile.j0), plan_.column_tile, false};
  }

  out_t* out_of(const Tile& tile) const {
    return product_.out + tile.group * product_.out_group_stride + tile.split * product_.out_split_stride;
  }

  // Rows are packed, beforehand or now; columns are in place, packed beforehand or packed now.
  void multiply_packed_rows(const Tile& tile, int64_t block, int64_t k0, int64_t k1, bool accumulate) const {
    // Packed beforehand rows are interleaved; packed here each is a run.
    const bool interleaved = product_.prepacked == Prepacked::kRows;
    const int64_t row_pitch = interleaved ? 1 : kRowPitch, row_step = interleaved ? plan_.panel_height : 1;
    const acc_t* row_panels = tile.rows;
    if (product_.prepacked == Prepacked::kRows) {
      row_panels = prepacked_panel(tile.group, block, tile.i0 / plan_.panel_height, plan_.row_panels,
                                   plan_.row_panel_size);
    } else {
      acc_t* panel = tile.rows;
      for (int64_t i = tile.i0; i < tile.i1; i += plan_.panel_height, panel += plan_.row_panel_size) {
        pack_row_panel(rows_of(tile), product_.reduce_positions, i, std::min(tile.i1, i + plan_.panel_height),
                       k0, k1, panel);
      }
    }
    for_each_column_panel(tile, [&](int64_t j, int64_t last_column, int64_t vecs) {
      const int64_t width = vecs * kLanes<acc_t>;
      Segment<acc_t> segments[kDepthBlock];
      int64_t num_segments = 1;
      bool masked = false;
      if (product_.prepacked == Prepacked::kColumns) {
        segments[0] = packed_segment(0, k1 - k0, prepacked_columns(tile, block, j), width);
      } else if (plan_.columns_in_place) {
        if constexpr (std::is_same_v<scalar_t, acc_t>) {
          const PatchMatrix<scalar_t> columns = columns_of(tile);
          const bool in_place = plan_.row_panels <= kMaxInPlacePanels;
          num_segments =
              segment_columns(columns, PositionRuns(columns, j, last_column), TapRuns(columns, k0, k1),
                              in_place, row_step, width, tile.columns, segments);
          masked = in_place && kMaskedLoads;
        }
      } else {
        pack_column_panel(columns_of(tile), product_.reduce_positions, j, last_column, width, k0, k1,
                          tile.columns);
        segments[0] = packed_segment<acc_t>(0, k1 - k0, tile.columns, width);
      }
      const Place place = place_of(tile, j);
      for_each_rows(tile, [&](int64_t i, int64_t height) {
        const int64_t row = i - tile.i0;
        const acc_t* const first =
            row_panels + row / plan_.panel_height * plan_.row_panel_size + row % plan_.panel_height * row_pitch;
        const acc_t* address[kMaxRows];
        for (int64_t m = 0; m < height; ++m) address[m] = first + m * row_pitch;
        MicroKernel<acc_t> kernel = select_micro_kernel<acc_t, false>(height, vecs);
        if constexpr (kMaskedLoads) {
          if (masked) kernel = select_micro_kernel<acc_t, true>(height, vecs);
        }
        kernel(segments, num_segments, {address, 0, row_step}, place.sums + row * place.pitch, place.pitch,
               accumulate);
      });
    });
  }

  // Rows are positions, in place; columns are packed beforehand.
  void multiply_rows_along_channels(const Tile& tile, int64_t block, int64_t k0, int64_t k1,
                                    bool accumulate) const {
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      const PatchMatrix<acc_t> rows = rows_of(tile);
      const TapRuns taps(rows, k0, k1);
      const acc_t** const table = reinterpret_cast<const acc_t**>(tile.rows);
      address_rows(rows, PositionRuns(rows, tile.i0, tile.i1), taps, plan_.row_tile, table);
      for_each_column_panel(tile, [&](int64_t j, int64_t, int64_t vecs) {
        const acc_t* const panel = prepacked_columns(tile, block, j);
        Segment<acc_t> segments[kMaxAddressedTaps];
        for (int64_t t = 0; t < taps.count; ++t) {
          segments[t] = packed_segment(taps.run[t].begin, taps.run[t].channels, panel, vecs * kLanes<acc_t>);
        }
        const Place place = place_of(tile, j);
        for_each_rows(tile, [&](int64_t i, int64_t height) {
          const int64_t row = i - tile.i0;
          select_micro_kernel<acc_t, false>(height, vecs)(
              segments, taps.count, {table + row, plan_.row_tile, 1}, place.sums + row * place.pitch,
              place.pitch, accumulate);
        });
      });
    }
  }

  // Rows are channels of taps, in place; columns are packed now.
  void multiply_rows_along_positions(const Tile& tile, int64_t k0, int64_t k1, bool accumulate) const {
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      const PatchMatrix<acc_t> rows = rows_of(tile), columns = columns_of(tile);
      const PositionRuns positions(rows, k0, k1), column_positions(columns, k0, k1);
      const TapRuns taps(rows, tile.i0, tile.i1);
      for_each_column_panel(tile, [&](int64_t j, int64_t last_column, int64_t vecs) {
        const int64_t width = vecs * kLanes<acc_t>;
        pack_depth_contiguous(columns, column_positions, TapRuns(columns, j, last_column), tile.columns, width,
                              width);
        const Place place = place_of(tile, j);
        for (int64_t t = 0; t < taps.count; ++t) {
          const TapRun& tap = taps.run[t];
          Segment<acc_t> segments[kDepthBlock];
          const int64_t num_segments =
              segment_positions<acc_t>(rows, positions, tap, tile.columns, width, segments);
          for (int64_t c = 0; c < tap.channels; c += plan_.panel_height) {
            // Offsets of segments hold the tap's, which starts at its own first channel.
            const acc_t* address[kMaxRows];
            for (int64_t m = 0; m < plan_.panel_height; ++m) {
              address[m] = rows.data + (c + m) * rows.depth.stride[3];
            }
            select_micro_kernel<acc_t, false>(plan_.panel_height, vecs)(
                segments, num_segments, {address, 0, rows.positions.stride[3]},
                place.sums + (tap.begin + c) * place.pitch, place.pitch, accumulate);
          }
        }
      });
    }
  }

  const acc_t* prepacked_columns(const Tile& tile, int64_t block, int64_t j) const {
    return prepacked_panel(tile.group, block, j / plan_.panel_width, plan_.column_panels,
                           plan_.column_panel_size);
  }

  const acc_t* prepacked_panel(int64_t group, int64_t block, int64_t panel, int64_t panels,
                               int64_t size) const {
    return prepacked_ + group * plan_.prepacked_batch_size + (block * panels + panel) * size;
  }

  // Sums start from the bias. Returns whether they were given a value at all; without a bias the first block of
  // the reduction does that, unless there is none.
  bool init_sums(const Tile& tile, bool empty) const {
    if (product_.bias == nullptr && !empty) return false;
    const scalar_t* const bias =
        product_.bias == nullptr ? nullptr : product_.bias + tile.group * product_.bias_group_stride;
    for_each_column_panel(tile, [&](int64_t j, int64_t last, int64_t vecs) {
      const int64_t width = vecs * kLanes<acc_t>;
      const Place place = place_of(tile, j);
      for (int64_t i = tile.i0; i < tile.i1; ++i) {
        acc_t* const sums = place.sums + (i - tile.i0) * place.pitch;
        if (bias != nullptr && product_.bias_on_columns) {
          copy_run(sums, bias + j, last - j);
          fill_zero(sums + (last - j), width - (last - j));
        } else {
          std::fill_n(sums, width, bias == nullptr ? acc_t(0) : static_cast<acc_t>(bias[i]));
        }
      }
    });
    return true;
  }

  void store_sums(const Tile& tile) const {
    for_each_column_panel(tile, [&](int64_t j, int64_t last, int64_t) {
      const Place place = place_of(tile, j);
      if (place.direct) return;
      AxisCursor row(product_.out_rows, tile.i0);
      const AxisCursor column(product_.out_columns, j);
      for (int64_t i = tile.i0; i < tile.i1; ++i) {
        store_along(column, last - j, place.sums + (i - tile.i0) * place.pitch, out_of(tile) + row.offset());
        row.advance(1);
      }
    });
  }

  const Product<scalar_t, out_t>& product_;
  const ProductPlan<acc_t> plan_;
  acc_t* const prepacked_;
};

}  // namespace fastnn::FASTNN_BACKEND
