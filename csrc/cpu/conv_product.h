// The blocked matrix product behind all three directions of the convolution.
//
//   out[i][j] = bias + sum over d of rows(i, d) * columns(j, d),  for every batch (groups, splits)
//
// Both operands are patch matrices (conv_patches.h); the reduction runs over their depth, or over their
// positions where `reduce_positions` is set. A task is a tile of the output. It walks the reduction in blocks
// of kDepthBlock: packs the tile's panels of both operands for that block, lets the micro-kernel add every pair
// of panels to an accumulator tile, and at the end rounds that tile once into the output. The operand that
// every task needs whole (the weights) may be packed beforehand, once per call, by all threads.
//
// An output element is the same sequence of operations whatever the tile it is in, so tiles and threads may be
// chosen freely: the bits do not depend on them.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

#include "conv_gemm.h"
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

    panel_height = panel_rows(rows);
    row_panels = ceil_div(rows, panel_height);
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

    row_panel_size = panel_height * kRowPitch;
    column_panel_size = round_up(panel_width * depth_block, 16);
    prepacked_batch_size =
        num_depth_blocks * (product.prepacked == Prepacked::kRows      ? row_panels * row_panel_size
                            : product.prepacked == Prepacked::kColumns ? column_panels * column_panel_size
                                                                       : 0);
    prepacked_size = product.groups * prepacked_batch_size;
    row_buffer = product.prepacked == Prepacked::kRows ? 0 : row_tile / panel_height * row_panel_size;
    column_buffer = product.prepacked == Prepacked::kColumns ? 0 : column_panel_size;
    accumulators = round_up(row_tile * column_tile, 16);
    worker_size = row_buffer + column_buffer + accumulators;
  }

  int64_t bytes() const {
    return (prepacked_size + workers * worker_size) * static_cast<int64_t>(sizeof(acc_t));
  }

 private:
  void choose_tiles(Prepacked prepacked, int64_t batch, int64_t threads) {
    const int64_t row_limit = prepacked == Prepacked::kRows ? kLongTile : kShortTile;
    const int64_t column_limit = prepacked == Prepacked::kRows ? kShortTile : kLongTile;
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
                    int64_t height, int64_t k0, int64_t k1, acc_type<scalar_t>* panel) {
  if (reduce_positions) {
    // Whole vectors: kRowPitch leaves room for them.
    pack_positions_contiguous(matrix, PositionRuns(matrix, k0, k1), TapRuns(matrix, first, last), panel,
                              kRowPitch, round_up(k1 - k0, kLanes<acc_type<scalar_t>>));
  } else {
    pack_depth_contiguous(matrix, PositionRuns(matrix, first, last), TapRuns(matrix, k0, k1), panel, kRowPitch,
                          k1 - k0);
  }
  for (int64_t m = last - first; m < height; ++m) fill_zero(panel + m * kRowPitch, k1 - k0);
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
    const int64_t items = product_.groups * plan_.num_depth_blocks * panels;
    const int64_t grain =
        std::max<int64_t>(1, kMinPackPerThread / (span * std::max<int64_t>(1, plan_.depth_block)));
    parallel_for(items, grain, [&](int64_t first_item, int64_t last_item) {
      for (int64_t item = first_item; item < last_item; ++item) {
        const int64_t panel = item % panels;
        const int64_t block = item / panels % plan_.num_depth_blocks;
        const int64_t group = item / panels / plan_.num_depth_blocks;
        const int64_t first = panel * span, last = std::min(extent, first + span);
        const int64_t k0 = block * plan_.depth_block, k1 = std::min(plan_.reduction, k0 + plan_.depth_block);
        acc_t* const dst = prepacked_ + item * panel_size;
        if (rows) {
          pack_row_panel(of_group(product_.rows, product_.rows_group_stride, group), product_.reduce_positions,
                         first, last, panel_rows(last - first), k0, k1, dst);
        } else {
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

    acc_t* const row_buffer = buffer;
    acc_t* const column_buffer = row_buffer + plan_.row_buffer;
    acc_t* const sums = column_buffer + plan_.column_buffer;
    const int64_t pitch = plan_.column_tile;

    const PatchMatrix<scalar_t> rows = of_group(product_.rows, product_.rows_group_stride, group);
    const PatchMatrix<scalar_t> columns = of_group(product_.columns, product_.columns_group_stride, group);

    bool accumulate = init_sums(group, i0, i1, j0, j1, split_begin >= split_end, sums, pitch);
    for (int64_t k0 = split_begin, block = 0; k0 < split_end; k0 += plan_.depth_block, ++block) {
      const int64_t k1 = std::min(split_end, k0 + plan_.depth_block);
      const acc_t* row_panels = row_buffer;
      if (product_.prepacked == Prepacked::kRows) {
        row_panels =
            prepacked_panel(group, block, i0 / plan_.panel_height, plan_.row_panels, plan_.row_panel_size);
      } else {
        acc_t* panel = row_buffer;
        for (int64_t i = i0; i < i1; i += plan_.panel_height, panel += plan_.row_panel_size) {
          const int64_t last = std::min(i1, i + plan_.panel_height);
          pack_row_panel(rows, product_.reduce_positions, i, last, panel_rows(last - i), k0, k1, panel);
        }
      }
      for (int64_t j = j0; j < j1; j += plan_.panel_width) {
        const int64_t last_column = std::min(j1, j + plan_.panel_width);
        const int64_t vecs = ceil_div(last_column - j, kLanes<acc_t>);
        const acc_t* column_panel = column_buffer;
        if (product_.prepacked == Prepacked::kColumns) {
          column_panel = prepacked_panel(group, block, j / plan_.panel_width, plan_.column_panels,
                                         plan_.column_panel_size);
        } else {
          pack_column_panel(columns, product_.reduce_positions, j, last_column, vecs * kLanes<acc_t>, k0, k1,
                            column_buffer);
        }
        const acc_t* row_panel = row_panels;
        for (int64_t i = i0; i < i1; i += plan_.panel_height, row_panel += plan_.row_panel_size) {
          const int64_t height = panel_rows(std::min(i1 - i, plan_.panel_height));
          select_micro_kernel<acc_t>(height, vecs)(k1 - k0, row_panel, column_panel,
                                                   sums + (i - i0) * pitch + (j - j0), pitch, accumulate);
        }
      }
      accumulate = true;
    }
    store_sums(group, split, i0, i1, j0, j1, sums, pitch);
  }

  const acc_t* prepacked_panel(int64_t group, int64_t block, int64_t panel, int64_t panels,
                               int64_t size) const {
    return prepacked_ + group * plan_.prepacked_batch_size + (block * panels + panel) * size;
  }

  // Sums start from the bias. Returns whether they were given a value at all; without a bias the first block of
  // the reduction does that, unless there is none. What pads the last panels is set too: it is computed with.
  bool init_sums(int64_t group, int64_t i0, int64_t i1, int64_t j0, int64_t j1, bool empty, acc_t* sums,
                 int64_t pitch) const {
    if (product_.bias == nullptr && !empty) return false;
    const scalar_t* const bias =
        product_.bias == nullptr ? nullptr : product_.bias + group * product_.bias_group_stride;
    const int64_t height = round_up(i1 - i0, plan_.panel_height);
    for (int64_t i = 0; i < height; ++i, sums += pitch) {
      if (bias != nullptr && product_.bias_on_columns) {
        copy_run(sums, bias + j0, j1 - j0);
        fill_zero(sums + (j1 - j0), pitch - (j1 - j0));
      } else {
        std::fill_n(sums, pitch, bias == nullptr || i >= i1 - i0 ? acc_t(0) : static_cast<acc_t>(bias[i0 + i]));
      }
    }
    return true;
  }

  void store_sums(int64_t group, int64_t split, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                  const acc_t* sums, int64_t pitch) const {
    out_t* const out = product_.out + group * product_.out_group_stride + split * product_.out_split_stride;
    AxisCursor row(product_.out_rows, i0);
    const AxisCursor column(product_.out_columns, j0);
    for (int64_t i = i0; i < i1; ++i, sums += pitch) {
      store_along(column, j1 - j0, sums, out + row.offset());
      row.advance(1);
    }
  }

  const Product<scalar_t, out_t>& product_;
  const ProductPlan<acc_t> plan_;
  acc_t* const prepacked_;
};

}  // namespace fastnn::FASTNN_BACKEND
