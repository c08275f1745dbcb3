// The blocked product of conv_product.h for bfloat16, in steps of two elements (conv_pairs.h).
//
// Tiles, panels and blocks are ProductPlan's, of a product with half the reduction. Which form rows take:
//
//   filters (channels-first)   packed beforehand, [step][row]
//   activations                in place if channels are contiguous, even in number and 16 or more: a tap's are
//                              a segment of the reduction, zeros where it is outside; else copied, [row][step]
//   patches of grad_weight     copied, [row][step], or interleaved, [step][row], as memory has them
//
// Columns are always packed, [step][column]. The last block of the reduction rounds its sums from the registers
// into the output where a panel is one run there, without a pass over them.
//
// One core of Zen 4 (236 to 240 GFLOP/s by vdpbf16ps alone) reached these shares of it in ResNet-50's 3x3
// layers of stride 1 with 64 to 512 channels: channels-last forward 0.83 to 0.91, grad_input 0.74 to 0.89,
// grad_weight 0.75 to 0.82; channels-first 0.75 to 0.87, 0.77 to 0.87 and 0.55 to 0.71. What is left goes to
// packing, and in grad_weight to fetching x once for each tap. Few channels (a first layer, groups of four)
// reach far less.
#pragma once

#include "conv_pairs_pack.h"
#include "conv_product.h"

#if defined(__AVX512BF16__)

namespace fastnn::FASTNN_BACKEND {

// The same product with a step of the reduction for each two elements, as ProductPlan is to see it.
template <typename out_t>
Product<Bf16, out_t> in_steps(Product<Bf16, out_t> product) {
  Axis& axis = product.reduce_positions ? product.rows.positions : product.rows.depth;
  axis = {{1, 1, 1, ceil_div(axis.length(), 2)}, {0, 0, 0, 0}};
  return product;
}

// Rows of a tile that the task copies (192 x 272 pairs, 204 KB), and columns for which it does so once: with
// the accumulators they lie in L2 together.
inline constexpr int64_t kCopiedRowTile = 192, kCopiedColumnTile = 512;

// Rows in place cost nothing to read again, and fewer of them need fewer accumulators. While the packed filters
// stay in L2 64 rows do; from L3 they are read half as often for 128.
inline constexpr int64_t kPairsInPlaceRowTile = 64, kPairsInPlaceLongRowTile = 128;
inline constexpr int64_t kPackedInL2 = int64_t{1} << 17;

// ProductPlan's parts, with room for what a task keeps of a tile: its rows and all of its sums.
struct PairPlan : ProductPlan<float> {
  bool pairs_in_place;  // rows are, and a table has their addresses
  int64_t tile_rows, row_buffer, row_offsets;

  template <typename out_t>
  explicit PairPlan(const Product<Bf16, out_t>& product) : ProductPlan<float>(in_steps(product)) {
    const Axis& depth = product.rows.depth;
    pairs_in_place = product.prepacked == Prepacked::kColumns && depth.stride[3] == 1 &&
                     depth.size[3] % 2 == 0 && depth.size[3] >= kMinAddressedRun;
    if (product.prepacked == Prepacked::kNone) {
      row_tile = std::min(row_panels, kCopiedRowTile / panel_height);
      column_tile = std::min(column_panels, std::max<int64_t>(1, kCopiedColumnTile / panel_width));
    }
    if (pairs_in_place) {
      const int64_t most =
          prepacked_group_size <= kPackedInL2 ? kPairsInPlaceRowTile : kPairsInPlaceLongRowTile;
      row_tile = std::min(row_panels, most / panel_height);
    }
    if (product.prepacked != Prepacked::kRows) row_panel_size = panel_height * kRowPitch;
    tile_rows = row_tile * panel_height;
    row_buffer = product.prepacked == Prepacked::kRows ? 0
                 : pairs_in_place ? round_up(tile_rows * kMaxAddressedPairs * kPointerSize, 16)
                                  : row_tile * row_panel_size;
    column_buffer = product.prepacked == Prepacked::kColumns ? 0 : column_panel_size;
    // Sums of one block, without a bias, go from registers to the output where its rows are runs.
    const bool unkept = std::is_same_v<out_t, Bf16> && product.out_columns.stride[3] == 1 &&
                        product.out_columns.length() == product.out_columns.size[3] && num_depth_blocks == 1 &&
                        product.splits == 1 && product.bias == nullptr;
    accumulators = unkept ? 0 : tile_rows * column_tile * panel_width;
    row_offsets = round_up(row_buffer + column_buffer + accumulators, 16);
    worker_size = round_up(row_offsets + tile_rows * kPointerSize, 16);
  }

  // Most taps of a block, and the size of a pointer or an offset in elements.
  static constexpr int64_t kMaxAddressedPairs = 2 * kDepthBlock / kMinAddressedRun + 2;
  static constexpr int64_t kPointerSize = sizeof(int64_t) / sizeof(uint32_t);
};

template <typename out_t>
class PairRunner {
 public:
  static int64_t bytes(const Product<Bf16, out_t>& product) { return PairPlan(product).bytes(); }

  PairRunner(const Product<Bf16, out_t>& product, void* workspace)
      : product_(product),
        plan_(product),
        elements_(product.reduce_positions ? product.rows.positions.length() : product.rows.depth.length()),
        prepacked_(static_cast<uint32_t*>(workspace)) {}

  void run() {
    if (plan_.tasks == 0) return;
    if (product_.prepacked != Prepacked::kNone) pack_beforehand();
    parallel_for(plan_.workers, 1, [&](int64_t first_worker, int64_t last_worker) {
      for (int64_t worker = first_worker; worker < last_worker; ++worker) {
        uint32_t* const buffer = prepacked_ + plan_.prepacked_size + worker * plan_.worker_size;
        const int64_t end = cut(plan_.tasks, plan_.workers, worker + 1);
        for (int64_t task = cut(plan_.tasks, plan_.workers, worker); task < end; ++task) {
          plan_.for_each_tile(product_.splits, task, [&](const PairPlan::Tile& place) {
            compute_tile(place, buffer);
            activate(place);
          });
        }
      }
    });
  }

 private:
  struct Tile : PairPlan::Tile {
    uint32_t *rows, *columns;
    float* sums;
    int64_t* out_rows;  // where each row is, from the output's first element
  };
  struct Place {
    float* sums;
    int64_t pitch;
    bool direct;
  };

  void pack_beforehand() {
    for_each_filter_panel(
        plan_, product_, prepacked_,
        [&](const PatchMatrix<Bf16>& filters, int64_t first, int64_t last, int64_t width, uint32_t* panel) {
          pack_filter_pairs(filters, first, last,
                            {panel, width, plan_.depth_block, plan_.prepacked_block_size});
        });
  }

  void compute_tile(const PairPlan::Tile& place, uint32_t* buffer) {
    const int64_t split_begin = place.split * plan_.split_length;
    const int64_t split_end = std::min(plan_.reduction, split_begin + plan_.split_length);
    const Tile tile{place, buffer, buffer + plan_.row_buffer,
                    reinterpret_cast<float*>(buffer + plan_.row_buffer + plan_.column_buffer),
                    reinterpret_cast<int64_t*>(buffer + plan_.row_offsets)};
    AxisCursor row(product_.out_rows, tile.i0);
    for (int64_t i = tile.i0; i < tile.i1; ++i, row.advance(1)) tile.out_rows[i - tile.i0] = row.offset();
    if (split_begin >= split_end && product_.bias == nullptr) return store_zeros(tile);
    const bool empty = split_begin >= split_end;
    bool accumulate = init_sums(tile);
    for (int64_t k0 = split_begin, block = 0; k0 < split_end; k0 += plan_.depth_block, ++block) {
      multiply_block(tile, block, k0, std::min(split_end, k0 + plan_.depth_block), split_end, accumulate);
      accumulate = true;
    }
    if (empty)
      for_each_column_panel(tile, [&](int64_t j, int64_t last, int64_t) { store_sums(tile, j, last); });
  }

  void activate(const PairPlan::Tile& t) const {
    const ConvActivator<out_t> activator(product_.activation);
    if (!activator) return;
    activator.run(product_.out + t.group * product_.out_group_stride + t.split * product_.out_split_stride,
                  product_.out_rows, product_.out_columns, t.i0, t.i1, t.j0, t.j1);
  }

  // Calls f(begin, end) for pieces of a block's elements that a packer takes at once.
  template <typename F>
  void for_each_piece(int64_t k0, int64_t k1, F&& f) const {
    const int64_t end = std::min(elements_, 2 * k1);
    for (int64_t k = 2 * k0; k < end; k += kMaxPanelSpan) f(k, std::min(end, k + kMaxPanelSpan));
  }

  void multiply_block(const Tile& tile, int64_t block, int64_t k0, int64_t k1, int64_t end,
                      bool accumulate) const {
    const PatchMatrix<Bf16> rows = of_group(product_.rows, product_.rows_group_stride, tile.group);
    const PatchMatrix<Bf16> columns = of_group(product_.columns, product_.columns_group_stride, tile.group);
    const int64_t height = plan_.panel_height;
    int64_t count[PairPlan::kMaxAddressedPairs] = {k1 - k0}, segments = 1;
    const uint32_t* panels = tile.rows;
    int64_t row_pitch = 1, row_step = height;  // between the rows of a panel, and between steps
    const Pair** const table = reinterpret_cast<const Pair**>(tile.rows);
    if (product_.prepacked == Prepacked::kRows) {
      panels = prepacked_panel(tile.group, block, tile.i0 / height, plan_.row_panel_size);
    } else if (plan_.pairs_in_place) {
      const PositionRuns positions(rows, tile.i0, tile.i1);
      const TapRuns taps(rows, 2 * k0, std::min(elements_, 2 * k1));
      segments = taps.count;
      for (int64_t t = 0; t < segments; ++t) {
        count[t] = taps.run[t].channels / 2;
        address_positions(rows, positions, taps.run[t], table + t * plan_.tile_rows);
      }
    } else {
      const bool interleaved =
          product_.reduce_positions && rows.depth.stride[3] == 1 && rows.positions.stride[3] != 1;
      if (!interleaved) row_pitch = kRowPitch, row_step = 1;
      // Panels follow each other without a gap. A packer takes so many rows at once.
      for (int64_t i = tile.i0; i < tile.i1; i += kMaxPanelSpan) {
        const int64_t last = std::min(tile.i1, i + kMaxPanelSpan);
        uint32_t* const panel = tile.rows + (i - tile.i0) * kRowPitch;
        for_each_piece(k0, k1, [&](int64_t begin, int64_t end) {
          const int64_t done = begin / 2 - k0;
          Bf16* const run = reinterpret_cast<Bf16*>(panel + done);
          if (interleaved) {
            interleave_positions(rows, PositionRuns(rows, begin, end), end - begin, TapRuns(rows, i, last),
                                 {panel + done * height, height, plan_.row_panel_size});
          } else if (product_.reduce_positions) {
            copy_position_runs(rows, PositionRuns(rows, begin, end), end - begin, TapRuns(rows, i, last), run,
                               2 * kRowPitch);
          } else {
            copy_depth_runs(rows, PositionRuns(rows, i, last), begin, end, run, 2 * kRowPitch);
          }
        });
      }
    }
    for_each_column_panel(tile, [&](int64_t j, int64_t last, int64_t vecs) {
      const int64_t width = vecs * 16;
      const uint32_t* packed = tile.columns;
      if (product_.prepacked == Prepacked::kColumns) {
        packed = prepacked_panel(tile.group, block, j / plan_.panel_width, plan_.column_panel_size);
      } else {
        for_each_piece(k0, k1, [&](int64_t begin, int64_t end) {
          uint32_t* const dst = tile.columns + (begin / 2 - k0) * width;
          if (!product_.reduce_positions) {
            pack_position_pairs(columns, PositionRuns(columns, j, last), begin, end, width, dst);
          } else if (columns.depth.stride[3] == 1 && columns.positions.stride[3] != 1) {
            interleave_positions(columns, PositionRuns(columns, begin, end), end - begin,
                                 TapRuns(columns, j, last), {dst, width, 0});
          } else {
            alignas(64) Bf16 runs[kMaxVecs * 16 * kRunPitch];
            copy_position_runs(columns, PositionRuns(columns, begin, end), end - begin,
                               TapRuns(columns, j, last), runs, kRunPitch);
            transpose_pairs(runs, kRunPitch, last - j, end - begin, dst, width);
          }
        });
      }
      const Place place = place_of(tile, j);
      // The last block rounds its sums into the output, if they are one run there.
      const AxisCursor column(product_.out_columns, j);
      const bool round = std::is_same_v<out_t, Bf16> && k1 == end && product_.out_columns.stride[3] == 1 &&
                         column.run(last - j) == last - j;
      int64_t step = kMaxRows;
      for (int64_t i = tile.i0; i < tile.i1; i += step) {
        while (step > tile.i1 - i) step /= 2;
        const int64_t row = i - tile.i0;
        const Pair* address[kMaxRows];
        PairRows at{table + row, plan_.tile_rows, 1};
        if (!plan_.pairs_in_place) {
          const uint32_t* const first = panels + row / height * plan_.row_panel_size + row % height * row_pitch;
          for (int64_t m = 0; m < step; ++m) address[m] = first + m * row_pitch;
          at = {address, 0, row_step};
        }
        Bf16* out[kMaxRows];
        PairSums sums{place.sums + row * place.pitch, place.pitch, accumulate, nullptr,
                      first_lanes(last - j - (vecs - 1) * 16)};
        if constexpr (std::is_same_v<out_t, Bf16>) {
          if (round) {
            for (int64_t m = 0; m < step; ++m) out[m] = out_of(tile) + tile.out_rows[row + m] + column.offset();
            sums.out = out;
          }
        }
        select_pair_kernel(step, vecs)(count, segments, at, packed, sums);
      }
      if (k1 == end && !round) store_sums(tile, j, last);
    });
  }

  template <typename F>
  void for_each_column_panel(const Tile& tile, F&& f) const {
    for (int64_t j = tile.j0; j < tile.j1; j += plan_.panel_width) {
      const int64_t last = std::min(tile.j1, j + plan_.panel_width);
      f(j, last, ceil_div(last - j, 16));
    }
  }

  Place place_of(const Tile& tile, int64_t j) const {
    if constexpr (std::is_same_v<out_t, float>) {
      const int64_t width = std::min(tile.j1 - j, plan_.panel_width);
      const int64_t pitch = product_.out_rows.stride[3];
      if (plan_.rows_are_even && product_.out_columns.stride[3] == 1 && (width | pitch) % 16 == 0) {
        const AxisCursor column(product_.out_columns, j);
        if (column.run(width) == width) return {out_of(tile) + column.offset() + tile.i0 * pitch, pitch, true};
      }
    }
    return {tile.sums + (j - tile.j0), plan_.column_tile * plan_.panel_width, false};
  }

  out_t* out_of(const Tile& tile) const {
    return product_.out + tile.group * product_.out_group_stride + tile.split * product_.out_split_stride;
  }

  const uint32_t* prepacked_panel(int64_t group, int64_t block, int64_t panel, int64_t size) const {
    return prepacked_ + group * plan_.prepacked_group_size + block * plan_.prepacked_block_size + panel * size;
  }

  // Sums start from the bias, if there is one. Returns whether they have a value.
  bool init_sums(const Tile& tile) const {
    if (product_.bias == nullptr) return false;
    const Bf16* const bias = product_.bias + tile.group * product_.bias_group_stride;
    for_each_column_panel(tile, [&](int64_t j, int64_t last, int64_t vecs) {
      const Place place = place_of(tile, j);
      for (int64_t i = tile.i0; i < tile.i1; ++i) {
        float* const sums = place.sums + (i - tile.i0) * place.pitch;
        if (product_.bias_on_columns) {
          copy_run(sums, bias + j, last - j);
        } else {
          std::fill_n(sums, vecs * 16, static_cast<float>(bias[i]));
        }
      }
    });
    return true;
  }

  // Residues of grad_input may have no tap.
  void store_zeros(const Tile& tile) const {
    const int64_t stride = product_.out_columns.stride[3];
    for (int64_t i = 0; i < tile.i1 - tile.i0; ++i) {
      AxisCursor column(product_.out_columns, tile.j0);
      for (int64_t left = tile.j1 - tile.j0; left > 0;) {
        const int64_t length = column.run(left);
        out_t* const place = out_of(tile) + tile.out_rows[i] + column.offset();
        if (stride == 1) {
          std::memset(static_cast<void*>(place), 0, length * sizeof(out_t));
        } else {
          for (int64_t p = 0; p < length; ++p) place[p * stride] = out_t(0);
        }
        column.advance(length);
        left -= length;
      }
    }
  }

  void store_sums(const Tile& tile, int64_t j, int64_t last) const {
    const Place place = place_of(tile, j);
    if (place.direct) return;
    const AxisCursor column(product_.out_columns, j);
    for (int64_t i = 0; i < tile.i1 - tile.i0; ++i) {
      store_along(column, last - j, place.sums + i * place.pitch, out_of(tile) + tile.out_rows[i]);
    }
  }

  static constexpr int64_t kRunPitch = kMaxPanelSpan + 32;

  const Product<Bf16, out_t>& product_;
  const PairPlan plan_;
  const int64_t elements_;
  uint32_t* const prepacked_;
};

}  // namespace fastnn::FASTNN_BACKEND

#endif

namespace fastnn::FASTNN_BACKEND {

// Whether bfloat16 is multiplied by pairs.
#if defined(__AVX512BF16__)
template <typename scalar_t>
inline constexpr bool kByPairs = std::is_same_v<scalar_t, c10::BFloat16>;
#else
template <typename scalar_t>
inline constexpr bool kByPairs = false;
#endif

template <typename scalar_t, typename out_t>
void run_product(const Product<scalar_t, out_t>& product, void* workspace) {
#if defined(__AVX512BF16__)
  if constexpr (kByPairs<scalar_t>) return PairRunner<out_t>(product, workspace).run();
#endif
  ProductRunner<scalar_t, out_t>(product, workspace).run();
}

template <typename scalar_t, typename out_t>
int64_t product_bytes(const Product<scalar_t, out_t>& product) {
#if defined(__AVX512BF16__)
  if constexpr (kByPairs<scalar_t>) return PairRunner<out_t>::bytes(product);
#endif
  return ProductPlan<acc_type<scalar_t>>(product).bytes();
}

}  // namespace fastnn::FASTNN_BACKEND
