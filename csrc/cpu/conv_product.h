// The blocked matrix product behind all three directions of the convolution.
//
//   out[i][j] = bias + sum over d of rows(i, d) * columns(j, d),  for every batch (groups, splits)
//
// Both operands are patch matrices (conv_patches.h); the reduction runs over their depth, or over their
// positions where `reduce_positions` is set. A task is a part of the output (conv_plan.h), walked in tiles. A
// tile walks the reduction in blocks of kDepthBlock: finds or packs panels of both operands for that block and
// lets the micro-kernel add every pair of panels to the output. The operand that every task needs whole (the
// weights) is packed beforehand, once per call, by all threads; activations stay in place where they are such
// that the micro-kernel can read them (conv_in_place.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "conv_activation.h"
#include "conv_gemm.h"
#include "conv_in_place.h"
#include "conv_pack_weights.h"
#include "conv_patches.h"
#include "conv_plan.h"
#include "conv_prefetch.h"
#include "conv_sums.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND {

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

template <typename scalar_t, typename out_t>
class ProductRunner {
 public:
  using acc_t = acc_type<scalar_t>;

  ProductRunner(const Product<scalar_t, out_t>& product, void* workspace)
      : product_(product), plan_(product), prepacked_(static_cast<acc_t*>(workspace)) {}

  void run() {
    if (plan_.tasks == 0) return;
    if (product_.prepacked != Prepacked::kNone) pack_beforehand();
    parallel_for(plan_.workers, 1, [&](int64_t first_worker, int64_t last_worker) {
      for (int64_t worker = first_worker; worker < last_worker; ++worker) {
        acc_t* const buffer = prepacked_ + plan_.prepacked_size + worker * plan_.worker_size;
        const int64_t end = cut(plan_.tasks, plan_.workers, worker + 1);
        for (int64_t task = cut(plan_.tasks, plan_.workers, worker); task < end; ++task)
          compute_part(task, buffer);
      }
    });
  }

 private:
  using Sums = TileSums<acc_t, out_t>;

  struct Tile : ProductPlan<acc_t>::Tile {
    acc_t* columns;  // panels that the task packs
    const Sums* sums;
  };

  // A block of the reduction.
  struct Block {
    int64_t index, k0, k1;
    bool accumulate;  // to sums that are there
  };

  void pack_beforehand() {
    for_each_filter_panel(
        plan_, product_, prepacked_,
        [&](const PatchMatrix<scalar_t>& filters, int64_t first, int64_t last, int64_t width, acc_t* panel) {
          pack_filter_panel(filters, first, last, width, plan_.depth_block, panel, plan_.prepacked_block_size);
        });
  }

  void compute_part(int64_t task, acc_t* buffer) {
    plan_.for_each_tile(product_.splits, task, [&](const typename ProductPlan<acc_t>::Tile& place) {
      const Sums sums(
          product_.out + place.group * product_.out_group_stride + place.split * product_.out_split_stride,
          product_.out_rows, product_.out_columns,
          plan_.accumulators == 0 ? nullptr : buffer + plan_.column_buffer,
          plan_.column_tile * plan_.panel_width, place.i0, place.i1, place.j0, place.j1);
      compute_tile({place, buffer, &sums});
    });
  }

  void compute_tile(const Tile& tile) {
    const int64_t split_begin = tile.split * plan_.split_length;
    const int64_t split_end = std::min(plan_.reduction, split_begin + plan_.split_length);
    // Sums start from the bias. Without one the first block gives them a value, unless there is none.
    const bool fill = product_.bias != nullptr || split_begin >= split_end;
    if (fill) {
      tile.sums->fill(
          product_.bias == nullptr ? nullptr : product_.bias + tile.group * product_.bias_group_stride,
          product_.bias_on_columns);
    }
    Block block{0, split_begin, 0, fill};
    for (; block.k0 < split_end; block = {block.index + 1, block.k1, 0, true}) {
      block.k1 = std::min(split_end, block.k0 + plan_.depth_block);
      if (product_.prepacked == Prepacked::kRows) {
        multiply_filters_by_positions(tile, block);
      } else if (!plan_.rows_in_place) {
        multiply_packed_rows(tile, block);
      } else if (product_.reduce_positions) {
        multiply_rows_along_positions(tile, block);
      } else {
        multiply_rows_along_channels(tile, block);
      }
    }
    tile.sums->store();
    if (const ConvActivator<out_t> activate(product_.activation); activate) {
      activate.run(
          product_.out + tile.group * product_.out_group_stride + tile.split * product_.out_split_stride,
          product_.out_rows, product_.out_columns, tile.i0, tile.i1, tile.j0, tile.j1);
    }
  }

  PatchMatrix<scalar_t> rows_of(const Tile& tile) const {
    return of_group(product_.rows, product_.rows_group_stride, tile.group);
  }
  PatchMatrix<scalar_t> columns_of(const Tile& tile) const {
    return of_group(product_.columns, product_.columns_group_stride, tile.group);
  }

  const acc_t* prepacked(const Tile& tile, const Block& block) const {
    return prepacked_ + tile.group * plan_.prepacked_group_size + block.index * plan_.prepacked_block_size;
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

  // What the panel of columns after that at `j` will read, where it is a plain matrix.
  Prefetch<scalar_t> next_columns(const Tile& tile, const Block& block, int64_t j) const {
    if constexpr (!std::is_same_v<scalar_t, acc_t>) return {};
    const PatchMatrix<scalar_t> columns = columns_of(tile);
    if (columns.depth.size[0] * columns.depth.size[1] * columns.depth.size[2] > 1) return {};
    int64_t next = j + plan_.panel_width, k0 = block.k0;
    if (next >= tile.j1 && block.k1 < plan_.reduction) {
      next = tile.j0;
      k0 = block.k1;
    } else if (next >= tile.j1) {
      k0 = 0;
    }
    if (next >= tile.part_j1) return {};
    const int64_t k1 = std::min(plan_.reduction, k0 + plan_.depth_block);
    const AxisCursor position(columns.positions, next);
    return {columns.data + columns.origin_offset + position.offset() + k0 * columns.depth.stride[3],
            columns.depth.stride[3], k1 - k0, position.run(plan_.panel_width) * columns.positions.stride[3]};
  }

  // Rows are filters, packed beforehand and interleaved; columns are in place, or packed now.
  void multiply_filters_by_positions(const Tile& tile, const Block& block) const {
    const acc_t* const row_panels =
        prepacked(tile, block) + tile.i0 / plan_.panel_height * plan_.row_panel_size;
    const int64_t step = plan_.panel_height;
    const PatchMatrix<scalar_t> columns = columns_of(tile);
    const TapRuns taps(columns, block.k0, block.k1);
    alignas(64) acc_t panel[kDepthBlock * kMaxVecs * kLanes<acc_t>];
    for_each_column_panel(tile, [&](int64_t j, int64_t last_column, int64_t vecs) {
      const int64_t width = vecs * kLanes<acc_t>;
      const PositionRuns positions(columns, j, last_column);
      Segment<acc_t> segments[kDepthBlock];
      int64_t num_segments = 1;
      bool masked = false;
      if constexpr (std::is_same_v<scalar_t, acc_t>) {
        if (plan_.columns_in_place) {
          const bool in_place = plan_.row_panels <= kMaxInPlacePanels;
          num_segments = segment_columns(columns, positions, taps, in_place, step, width, panel, segments);
          masked = in_place && kMaskedLoads;
        }
      }
      if (!plan_.columns_in_place) {
        pack_positions_contiguous(columns, positions, taps, panel, width, width);
        segments[0] = packed_segment<acc_t>(0, block.k1 - block.k0, panel, width);
      }
      const typename Sums::Columns place = tile.sums->columns(j, last_column);
      Prefetch<scalar_t> ahead = next_columns(tile, block, j);
      ahead.spread(ceil_div(tile.i1 - tile.i0, kMaxRows));
      for_each_rows(tile, [&](int64_t i, int64_t height) {
        ahead.advance();
        const int64_t row = i - tile.i0;
        const acc_t* const first =
            row_panels + row / plan_.panel_height * plan_.row_panel_size + row % plan_.panel_height;
        const acc_t* address[kMaxRows];
        for (int64_t m = 0; m < height; ++m) address[m] = first + m;
        MicroKernel<acc_t> kernel = select_micro_kernel<acc_t, false>(height, vecs);
        if constexpr (kMaskedLoads) {
          if (masked) kernel = select_micro_kernel<acc_t, true>(height, vecs);
        }
        tile.sums->add(tile.sums->rows(i, height), place, block.accumulate,
                       [&](acc_t* c, int64_t pitch, bool accumulate) {
                         kernel(segments, num_segments, {address, 0, step}, c, pitch, accumulate);
                       });
      });
    });
  }

  // The panels of columns of a tile for a block, and the rows of a micro-tile times all of them. Segments are
  // those of the first panel.
  class ColumnPanels {
   public:
    ColumnPanels(const ProductPlan<acc_t>& plan, const Tile& tile, const acc_t* first)
        : plan_(plan), tile_(tile), first_(first), panels_(ceil_div(tile.j1 - tile.j0, plan.panel_width)) {
      for (int64_t p = 0; p < panels_; ++p) {
        const int64_t j = tile.j0 + p * plan.panel_width;
        columns_[p] = tile.sums->columns(j, std::min(tile.j1, j + plan.panel_width));
      }
      first_width_ = width(0);
      last_width_ = width(panels_ - 1);
    }

    Segment<acc_t> segment(int64_t begin, int64_t count) const {
      return packed_segment(begin, count, first_, first_width_);
    }

    void multiply(int64_t i, int64_t height, const Segment<acc_t>* segments, int64_t num_segments,
                  RowTable<acc_t> table, bool accumulate, Prefetch<scalar_t>* ahead = nullptr) const {
      if (ahead != nullptr) ahead->spread(panels_);
      const typename Sums::Rows rows = tile_.sums->rows(i, height);
      const auto multiply_panel = [&](int64_t p, const Segment<acc_t>* of_panel, MicroKernel<acc_t> kernel) {
        if (ahead != nullptr) ahead->advance();
        table.column_shift = p * plan_.column_panel_size;
        tile_.sums->add(rows, columns_[p], accumulate, [&](acc_t* c, int64_t pitch, bool add) {
          kernel(of_panel, num_segments, table, c, pitch, add);
        });
      };
      const int64_t even = last_width_ == first_width_ ? panels_ : panels_ - 1;
      const MicroKernel<acc_t> kernel = select_micro_kernel<acc_t, false>(height, first_width_ / kLanes<acc_t>);
      for (int64_t p = 0; p < even; ++p) multiply_panel(p, segments, kernel);
      if (even == panels_) return;
      Segment<acc_t> narrow[kDepthBlock];
      for (int64_t s = 0; s < num_segments; ++s) {
        narrow[s] = packed_segment(segments[s].begin, segments[s].count, first_, last_width_);
        narrow[s].row_offset = segments[s].row_offset;
      }
      multiply_panel(even, narrow, select_micro_kernel<acc_t, false>(height, last_width_ / kLanes<acc_t>));
    }

   private:
    int64_t width(int64_t panel) const {
      return std::min(plan_.panel_width,
                      round_up(tile_.j1 - tile_.j0 - panel * plan_.panel_width, kLanes<acc_t>));
    }

    const ProductPlan<acc_t>& plan_;
    const Tile& tile_;
    const acc_t* const first_;
    const int64_t panels_;
    int64_t first_width_, last_width_;
    typename Sums::Columns columns_[kFilterColumnTile / kLanes<acc_t>];
  };

  // Panels of columns that were packed beforehand, or are now.
  ColumnPanels column_panels(const Tile& tile, const Block& block) const {
    if (product_.prepacked == Prepacked::kColumns) {
      return {plan_, tile, prepacked(tile, block) + tile.j0 / plan_.panel_width * plan_.column_panel_size};
    }
    const PatchMatrix<scalar_t> columns = columns_of(tile);
    acc_t* panel = tile.columns;
    for_each_column_panel(tile, [&](int64_t j, int64_t last_column, int64_t vecs) {
      pack_column_panel(columns, product_.reduce_positions, j, last_column, vecs * kLanes<acc_t>, block.k0,
                        block.k1, panel);
      panel += plan_.column_panel_size;
    });
    return {plan_, tile, tile.columns};
  }

  // Rows are packed now, a panel at a time.
  void multiply_packed_rows(const Tile& tile, const Block& block) const {
    const ColumnPanels columns = column_panels(tile, block);
    const PatchMatrix<scalar_t> rows = rows_of(tile);
    const Segment<acc_t> segment = columns.segment(0, block.k1 - block.k0);
    alignas(64) acc_t panel[kMaxRows * kRowPitch];
    for_each_rows(tile, [&](int64_t i, int64_t height) {
      pack_row_panel(rows, product_.reduce_positions, i, i + height, block.k0, block.k1, panel);
      const acc_t* address[kMaxRows];
      for (int64_t m = 0; m < height; ++m) address[m] = panel + m * kRowPitch;
      columns.multiply(i, height, &segment, 1, {address, 0, 1}, block.accumulate);
    });
  }

  // What the panel of rows from `next` on will read, as far as that is known. table: the tile's rows at the
  // last tap of the block, of which `channels` are read; it is the one that sees new lines of the image first.
  Prefetch<scalar_t> next_rows(const Tile& tile, const Block& block, int64_t next,
                               const PatchMatrix<scalar_t>& rows, const acc_t* const* table,
                               int64_t channels) const {
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      if (next < tile.i1) return {table + (next - tile.i0), std::min(kMaxRows, tile.i1 - next), channels};
      if (rows.has_outside() || rows.depth.size[2] > 1) return {};
      int64_t k0 = 0;
      if (block.k1 < plan_.reduction) {
        next = tile.i0;
        k0 = block.k1;
      }
      if (next >= tile.part_i1) return {};
      const AxisCursor position(rows.positions, next);
      return {rows.data + rows.origin_offset + position.offset() + k0, rows.positions.stride[3],
              position.run(kMaxRows), std::min(plan_.reduction, k0 + plan_.depth_block) - k0};
    }
    return {};
  }

  // Rows are positions, in place.
  void multiply_rows_along_channels(const Tile& tile, const Block& block) const {
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      const ColumnPanels columns = column_panels(tile, block);
      const PatchMatrix<acc_t> rows = rows_of(tile);
      const TapRuns taps(rows, block.k0, block.k1);
      const acc_t* table[kMaxAddressedTaps * kPositionRowTile];
      address_rows(rows, PositionRuns(rows, tile.i0, tile.i1), taps, kPositionRowTile, table);
      for_each_rows(tile, [&](int64_t i, int64_t height) {
        // Taps that are outside at all of the panel's positions add nothing.
        Segment<acc_t> segments[kMaxAddressedTaps];
        const acc_t* address[kMaxAddressedTaps * kMaxRows];
        int64_t num_segments = 0;
        for (int64_t t = 0; t < taps.count; ++t) {
          const acc_t* const* const of_tap = table + t * kPositionRowTile + (i - tile.i0);
          bool inside = false;
          for (int64_t m = 0; m < height; ++m) {
            address[num_segments * kMaxRows + m] = of_tap[m];
            inside |= of_tap[m] != kZeros<acc_t>;
          }
          if (!inside) continue;
          segments[num_segments++] = columns.segment(taps.run[t].begin, taps.run[t].channels);
        }
        Prefetch<scalar_t> ahead =
            next_rows(tile, block, i + height, rows, table + (taps.count - 1) * kPositionRowTile,
                      taps.run[taps.count - 1].channels);
        columns.multiply(i, height, segments, num_segments, {address, kMaxRows, 1}, block.accumulate, &ahead);
      });
    }
  }

  // Rows are channels of taps, in place.
  void multiply_rows_along_positions(const Tile& tile, const Block& block) const {
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      const ColumnPanels columns = column_panels(tile, block);
      const PatchMatrix<acc_t> rows = rows_of(tile);
      const PositionRuns positions(rows, block.k0, block.k1);
      const TapRuns taps(rows, tile.i0, tile.i1);
      for (int64_t t = 0; t < taps.count; ++t) {
        const TapRun& tap = taps.run[t];
        const RowCopies inside(rows, positions, tap);
        Segment<acc_t> segments[kDepthBlock];
        for (int64_t s = 0; s < inside.count; ++s) {
          segments[s] = columns.segment(inside.copy[s].begin, inside.copy[s].count);
          segments[s].row_offset = inside.copy[s].offset;
        }
        for (int64_t c = 0; c < tap.channels; c += plan_.panel_height) {
          // Offsets of segments hold the tap's, which starts at its own first channel.
          const acc_t* address[kMaxRows];
          for (int64_t m = 0; m < plan_.panel_height; ++m)
            address[m] = rows.data + (c + m) * rows.depth.stride[3];
          columns.multiply(tile.i0 + tap.begin + c, plan_.panel_height, segments, inside.count,
                           {address, 0, rows.positions.stride[3]}, block.accumulate);
        }
      }
    }
  }

  const Product<scalar_t, out_t>& product_;
  const ProductPlan<acc_t> plan_;
  acc_t* const prepacked_;
};

}  // namespace fastnn::FASTNN_BACKEND
