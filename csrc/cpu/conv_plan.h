// How a product is cut up: in panels for the micro-kernel, in tiles for the caches, in parts for the threads.
//
// An output element is the same sequence of operations whatever the tile it is in, so all of this may depend on
// the number of threads: the bits do not.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "../ops/conv.h"
#include "conv_gemm.h"
#include "conv_in_place.h"
#include "conv_patches.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND {

// The operand that every task needs whole, packed before the product by all threads.
enum class Prepacked { kNone, kRows, kColumns };

// Rows packed beforehand: each column panel is packed, by the task, once for up to 512 of them; and few columns
// at a time, so that the sums (512 x 192 floats, 384 KB) stay in L2 while the rows stream through it.
inline constexpr int64_t kFilterRowTile = 512;
inline constexpr int64_t kPositionColumnTile = 192;

// Columns packed beforehand: a block of 512 (512 KB) stays in L2 for 192 rows, whose sums and activations take
// as much again.
inline constexpr int64_t kPositionRowTile = 192;
inline constexpr int64_t kFilterColumnTile = 512;

// Rows of a tile whose sums have a buffer, where the packed columns stay in L2 (512 KB of floats) and may be
// read three times as often for a third of the buffer; from L3 that would cost up to a tenth of the time.
inline constexpr int64_t kApartRowTile = 64, kColumnsInL2 = int64_t{1} << 17;

// Neither: a task packs a block of so many columns (384 KB), which stays in L2 for all of its rows.
inline constexpr int64_t kTaskColumnTile = 384;

// Columns in place are read from L2 for every panel of rows, in short runs or at a large pitch; packed once
// they are a stream. From this many panels of rows on the copy costs less.
inline constexpr int64_t kMaxInPlacePanels = 16;

// Elements that a thread packs, or adds, at least.
inline constexpr int64_t kMinPackPerThread = 1 << 16;

// Waking the thread pool costs 5 to 10 us, the time of about half a million multiply-adds: a thread is worth it
// from twice that on.
inline constexpr int64_t kMinMultiplyAddsPerThread = 1 << 20;

// Parts per thread at most, where fewer cannot be made equal.
inline constexpr int64_t kTilesPerThread = 4;

// What it costs, in multiply-adds of vectors for one step of the reduction, to pack a vector of columns or a
// row, and to bring one from memory that stays in place.
inline constexpr double kColumnPackCost = 8, kRowPackCost = 1, kColumnCost = 4, kRowCost = 0.5;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Where piece `i` begins when n things are cut in `pieces` that differ by one at most.
inline int64_t cut(int64_t n, int64_t pieces, int64_t i) { return n * i / pieces; }

// What a task spends, beside multiplying, for each vector of its columns and for each of its rows.
struct PartCosts {
  double column_vector, row;
};

// Parts of each product of a batch, in which its output is cut.
struct Parts {
  int64_t by_rows = 1, by_columns = 1;
  int64_t tasks = 0, workers = 0;
};

// Cuts outputs in rectangles of panels such that the thread with most to do has least to do.
template <typename acc_t>
Parts cut_in_parts(int64_t batch, int64_t rows, int64_t row_panels, int64_t panel_height, int64_t vecs,
                   int64_t column_panels, int64_t reduction, PartCosts costs) {
  Parts parts;
  if (batch * row_panels * column_panels == 0) return parts;
  const double multiply_adds = static_cast<double>(batch) * rows * vecs * kLanes<acc_t> * reduction;
  const int64_t threads =
      std::clamp<int64_t>(multiply_adds / kMinMultiplyAddsPerThread, 1, at::get_num_threads());
  double least = std::numeric_limits<double>::infinity();
  const auto consider = [&](int64_t by_rows, int64_t by_columns) {
    const int64_t part_rows = std::min(rows, ceil_div(row_panels, by_rows) * panel_height);
    const double part_vecs = static_cast<double>(vecs) * ceil_div(column_panels, by_columns) / column_panels;
    const double cost = part_rows * part_vecs + costs.column_vector * part_vecs + costs.row * part_rows;
    const double most = cost * ceil_div(batch * by_rows * by_columns, threads);
    if (most < least) {
      least = most;
      parts.by_rows = by_rows;
      parts.by_columns = by_columns;
    }
  };
  consider(1, 1);
  for (int64_t turns = 1; threads > 1 && turns <= kTilesPerThread; ++turns) {
    const int64_t of_product = turns * threads / batch;
    for (int64_t by_rows = 1; by_rows <= std::min(of_product, row_panels); ++by_rows) {
      consider(by_rows, std::min(of_product / by_rows, column_panels));
    }
  }
  parts.tasks = batch * parts.by_rows * parts.by_columns;
  parts.workers = std::min(threads, parts.tasks);
  return parts;
}

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
  ConvActivation activation;
  // Whether a tile's sums have a buffer of their own: its columns are no runs in the output.
  bool sums_apart = false;
};

template <typename acc_t>
struct ProductPlan {
  int64_t rows, columns, reduction;
  int64_t split_length;                   // of the reduction
  int64_t depth_block, num_depth_blocks;  // of a whole split
  int64_t panel_height, row_panels;
  int64_t panel_vecs, panel_width, column_panels;
  int64_t row_tile, column_tile;    // in panels, at most
  int64_t row_parts, column_parts;  // of each product of the batch
  int64_t tasks, workers;
  // Whether an operand that is not packed beforehand is read where it is.
  bool rows_in_place = false, columns_in_place = false;  // columns: where that pays
  bool rows_are_even;                                    // in the output
  // Workspace, in elements: [prepacked operand][worker: column panels, accumulators]
  int64_t row_panel_size, column_panel_size, prepacked_block_size, prepacked_group_size, prepacked_size;
  int64_t column_buffer, accumulators, worker_size;

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
    const int64_t vecs = ceil_div(columns, kLanes<acc_t>);
    // Panels of even width: 4 vectors are 2 + 2, not 3 + 1.
    panel_vecs = vecs == 0 ? 1 : ceil_div(vecs, ceil_div(vecs, kMaxVecs));
    panel_width = panel_vecs * kLanes<acc_t>;
    column_panels = ceil_div(columns, panel_width);
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      rows_in_place = product.prepacked == Prepacked::kNone
                          ? product.rows.depth.size[3] % panel_height == 0
                          : product.prepacked == Prepacked::kColumns && product.rows.depth.stride[3] == 1 &&
                                product.rows.depth.size[3] >= kMinAddressedRun;
      columns_in_place = product.prepacked == Prepacked::kRows && product.columns.positions.stride[3] == 1;
    }
    limit_tiles(product.prepacked);
    if (product.sums_apart && product.prepacked == Prepacked::kColumns && columns * reduction <= kColumnsInL2) {
      row_tile = std::min(row_tile, std::max<int64_t>(1, kApartRowTile / panel_height));
    }
    const PartCosts costs{product.prepacked == Prepacked::kColumns ? 0
                          : columns_in_place                       ? kColumnCost
                                                                   : kColumnPackCost,
                          product.prepacked == Prepacked::kRows ? 0
                          : rows_in_place                       ? kRowCost
                                                                : kRowPackCost};
    const Parts parts = cut_in_parts<acc_t>(product.groups * product.splits, rows, row_panels, panel_height,
                                            vecs, column_panels, split_length, costs);
    row_parts = parts.by_rows;
    column_parts = parts.by_columns;
    tasks = parts.tasks;
    workers = parts.workers;

    row_panel_size = panel_height * depth_block;
    column_panel_size = panel_width * depth_block;
    prepacked_block_size = product.prepacked == Prepacked::kRows      ? row_panels * row_panel_size
                           : product.prepacked == Prepacked::kColumns ? vecs * kLanes<acc_t> * depth_block
                                                                      : 0;
    prepacked_group_size = round_up(num_depth_blocks * prepacked_block_size, kLanes<acc_t>);
    prepacked_size = round_up(product.groups * prepacked_group_size, 64 / static_cast<int64_t>(sizeof(acc_t)));
    // One panel of columns is on the stack.
    column_buffer = product.prepacked == Prepacked::kNone ? column_tile * column_panel_size : 0;
    // The micro-kernel adds to the output itself if that has the type of the sums.
    accumulators = std::is_same_v<out_t, acc_t> && !product.sums_apart
                       ? 0
                       : row_tile * panel_height * column_tile * panel_width;
    worker_size = round_up(column_buffer + accumulators, 64 / static_cast<int64_t>(sizeof(acc_t)));
  }

  int64_t bytes() const {
    return (prepacked_size + workers * worker_size) * static_cast<int64_t>(sizeof(acc_t));
  }

  // A tile: rows [i0, i1) and columns [j0, j1) of one product of the batch. Its part of the output ends at
  // (part_i1, part_j1).
  struct Tile {
    int64_t group, split, i0, i1, j0, j1, part_i1, part_j1;
  };

  // Calls f(tile) for the tiles of a task, the columns innermost.
  template <typename F>
  void for_each_tile(int64_t splits, int64_t task, F&& f) const {
    const int64_t column_part = task % column_parts, row_part = task / column_parts % row_parts;
    const int64_t split = task / column_parts / row_parts % splits,
                  group = task / column_parts / row_parts / splits;
    const int64_t row_begin = cut(row_panels, row_parts, row_part),
                  row_count = cut(row_panels, row_parts, row_part + 1) - row_begin,
                  row_tiles = ceil_div(row_count, row_tile);
    const int64_t column_begin = cut(column_panels, column_parts, column_part),
                  column_count = cut(column_panels, column_parts, column_part + 1) - column_begin,
                  column_tiles = ceil_div(column_count, column_tile);
    const auto row = [&](int64_t tile) {
      return std::min(rows, (row_begin + cut(row_count, row_tiles, tile)) * panel_height);
    };
    const auto column = [&](int64_t tile) {
      return std::min(columns, (column_begin + cut(column_count, column_tiles, tile)) * panel_width);
    };
    for (int64_t r = 0; r < row_tiles; ++r) {
      for (int64_t c = 0; c < column_tiles; ++c) {
        f(Tile{group, split, row(r), row(r + 1), column(c), column(c + 1), row(row_tiles),
               column(column_tiles)});
      }
    }
  }

 private:
  void limit_tiles(Prepacked prepacked) {
    const auto panels = [](int64_t elements, int64_t panel) { return std::max<int64_t>(1, elements / panel); };
    switch (prepacked) {
      case Prepacked::kRows:
        row_tile = panels(kFilterRowTile, panel_height);
        column_tile = panels(kPositionColumnTile, panel_width);
        break;
      case Prepacked::kColumns:
        row_tile = panels(kPositionRowTile, panel_height);
        column_tile = panels(kFilterColumnTile, panel_width);
        break;
      case Prepacked::kNone:
        row_tile = kMaxPanelSpan - 1;  // as many taps at most
        column_tile = panels(kTaskColumnTile, panel_width);
        break;
    }
    row_tile = std::min(row_tile, row_panels);
    column_tile = std::min(column_tile, column_panels);
  }
};

template <typename scalar_t>
PatchMatrix<scalar_t> of_group(PatchMatrix<scalar_t> matrix, int64_t group_stride, int64_t group) {
  matrix.data += group * group_stride;
  return matrix;
}

// Calls pack(filters, first, last, width, panel) for each panel of the operand that is packed beforehand:
// filters [first, last) of one group, in steps of `width`, of which `panel` is the first block's place in
// `prepacked`. A task packs a panel for the whole reduction: filters may have taps innermost, and then each
// line of them is needed by every block.
template <typename acc_t, typename scalar_t, typename out_t, typename element_t, typename F>
void for_each_filter_panel(const ProductPlan<acc_t>& plan, const Product<scalar_t, out_t>& product,
                           element_t* prepacked, const F& pack) {
  const bool rows = product.prepacked == Prepacked::kRows;
  const int64_t panels = rows ? plan.row_panels : plan.column_panels;
  const int64_t panel_size = rows ? plan.row_panel_size : plan.column_panel_size;
  const int64_t span = rows ? plan.panel_height : plan.panel_width;
  const int64_t extent = rows ? plan.rows : plan.columns;
  const int64_t grain = std::max<int64_t>(1, kMinPackPerThread / (span * std::max<int64_t>(1, plan.reduction)));
  parallel_for(product.groups * panels, grain, [&](int64_t first_item, int64_t last_item) {
    for (int64_t item = first_item; item < last_item; ++item) {
      const int64_t panel = item % panels, group = item / panels;
      const int64_t first = panel * span, last = std::min(extent, first + span);
      pack(rows ? of_group(product.rows, product.rows_group_stride, group)
                : of_group(product.columns, product.columns_group_stride, group),
           first, last, rows ? span : round_up(last - first, kLanes<acc_t>),
           prepacked + group * plan.prepacked_group_size + panel * panel_size);
    }
  });
}

}  // namespace fastnn::FASTNN_BACKEND
