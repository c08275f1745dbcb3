// Depthwise convolution, one filter for each channel:
//
//   multiply     out[p, c] = bias[c] + sum over taps t of patches(p, t)[c] * filters[t, c]
//   grad_weight  grad_w[t, c] = sum over p of patches(p, t)[c] * grad_y[p, c]
//
// The first is forward, and grad_input once for each residue of the position modulo the stride. A matrix
// product would fill one row or one lane of each vector here. Two forms:
//
//   by channels  channels contiguous (channels-last): vectors of channels. Bound by loads: two for each
//   multiply-add in
//                `multiply` (one of them a filter in L1), three memory accesses for each in `grad_weight`,
//                whose sums (taps x 64 channels) stay in L1.
//   by planes    positions contiguous (channels-first, patches at stride 1): vectors of positions. What lies
//   inside is
//                found once for a tile of 4 vectors and all channels; then each vector of a tap is one to three
//                masked loads and a multiply-add.
//
// Others (channels-first with a stride, or too many taps) are ordinary products with one row.
//
// Error: sums of as many terms as there are taps in `multiply`; in `grad_weight` sums of kDepthBlock terms, a
// chain over those, and the splits.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv_patches.h"
#include "conv_product.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND {

// Vectors of channels that are summed at once: four independent chains hide the latency of the multiply-add.
inline constexpr int64_t kDepthwiseVecs = 4;

// Multiply-adds that are worth waking a thread for, and at most as many tasks for each thread.
inline constexpr int64_t kMinDepthwisePerThread = 1 << 18;

template <typename acc_t>
int64_t padded_channels(int64_t channels) {
  return round_up(channels, kLanes<acc_t>);
}

// Calls f(tap, offset) for the taps at which position `p` of `run` lies inside: tap is the index over all taps,
// offset that of the element.
template <typename scalar_t, typename F>
void for_each_inside(const PatchMatrix<scalar_t>& patches, const TapRuns& taps, const PositionRun& run,
                     int64_t p, F&& f) {
  const int64_t offset = run.offset + p * patches.positions.stride[3];
  const int64_t width = (run.width + p) * patches.step[2];
  for (int64_t t = 0; t < taps.count; ++t) {
    const TapRun& tap = taps.run[t];
    if (!inside(run.depth + tap.depth, patches.extent[0]) ||
        !inside(run.height + tap.height, patches.extent[1]) || !inside(width + tap.width, patches.extent[2])) {
      continue;
    }
    for (int64_t i = 0; i < tap.channels; ++i) {
      f(tap.begin + i, offset + tap.offset + i * patches.depth.stride[3]);
    }
  }
}

// Workspace of depthwise_multiply: the filters as [tap][padded channels].
template <typename acc_t>
int64_t depthwise_multiply_bytes(int64_t taps, int64_t channels) {
  return taps * padded_channels<acc_t>(channels) * static_cast<int64_t>(sizeof(acc_t));
}

// One group of `product` is one channel: rows are filters, columns are patches. Channels are contiguous in both
// activations.
template <typename scalar_t>
void depthwise_multiply(const Product<scalar_t, scalar_t>& product, void* workspace) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  const PatchMatrix<scalar_t>& patches = product.columns;
  const int64_t channels = product.groups, pitch = padded_channels<acc_t>(channels);
  const int64_t num_taps = patches.depth.length(), positions = patches.positions.length();
  if (positions == 0) return;

  acc_t* const filters = static_cast<acc_t*>(workspace);
  for (int64_t t = 0; t < num_taps; ++t) {
    const scalar_t* const src =
        product.rows.data + product.rows.origin_offset + AxisCursor(product.rows.depth, t).offset();
    copy_run(filters + t * pitch, src, product.rows_group_stride, channels);
    fill_zero(filters + t * pitch + channels, pitch - channels);
  }

  const int64_t grain = std::max<int64_t>(
      1, kMinDepthwisePerThread / std::max<int64_t>(1, channels * std::max<int64_t>(1, num_taps)));
  parallel_for(positions, grain, [&](int64_t begin, int64_t end) {
    const TapRuns taps(patches, 0, num_taps);
    AxisCursor place(product.out_columns, begin);
    for (int64_t first = begin; first < end; first += kMaxPanelSpan) {
      const PositionRuns runs(patches, first, std::min(end, first + kMaxPanelSpan));
      for (int64_t r = 0; r < runs.count; ++r) {
        for (int64_t p = 0; p < runs.run[r].count; ++p, place.advance(1)) {
          scalar_t* const out = product.out + place.offset();
          for (int64_t c = 0; c < channels; c += kDepthwiseVecs * lanes) {
            const int64_t vecs = std::min(kDepthwiseVecs, ceil_div(channels - c, lanes));
            Vec<acc_t> sum[kDepthwiseVecs];
            for (int64_t v = 0; v < kDepthwiseVecs; ++v) {
              const int64_t left = channels - c - v * lanes;
              sum[v] = product.bias == nullptr || left <= 0 ? Vec<acc_t>(acc_t(0))
                                                            : load_channels(product.bias + c + v * lanes, left);
            }
            if (channels - c >= kDepthwiseVecs * lanes) {
              for_each_inside(patches, taps, runs.run[r], p, [&](int64_t tap, int64_t offset) {
                const scalar_t* const x = patches.data + offset + c;
                const acc_t* const w = filters + tap * pitch + c;
                for (int64_t v = 0; v < kDepthwiseVecs; ++v) {
                  sum[v] = at::vec::fmadd(load_as_acc(x + v * lanes), Vec<acc_t>::loadu(w + v * lanes), sum[v]);
                }
              });
            } else {
              for_each_inside(patches, taps, runs.run[r], p, [&](int64_t tap, int64_t offset) {
                const scalar_t* const x = patches.data + offset + c;
                const acc_t* const w = filters + tap * pitch + c;
                for (int64_t v = 0; v < vecs; ++v) {
                  sum[v] = at::vec::fmadd(load_channels(x + v * lanes, channels - c - v * lanes),
                                          Vec<acc_t>::loadu(w + v * lanes), sum[v]);
                }
              });
            }
            for (int64_t v = 0; v < vecs; ++v) {
              store_channels(out + c + v * lanes, sum[v], channels - c - v * lanes);
            }
          }
        }
      }
    }
  });
}

// Workspace of depthwise_grad_weight: [split][chain, total][tap][padded channels].
template <typename acc_t>
int64_t depthwise_grad_weight_bytes(int64_t splits, int64_t taps, int64_t channels) {
  return splits * 2 * taps * padded_channels<acc_t>(channels) * static_cast<int64_t>(sizeof(acc_t));
}

// rows are grad_y, columns are patches. Channel c of grad_w is at c * channel_stride, its taps along
// place_axis.
template <typename scalar_t>
void depthwise_grad_weight(const Product<scalar_t, acc_type<scalar_t>>& product, const Axis& place_axis,
                           int64_t channel_stride, scalar_t* grad_w, void* workspace) {
  const PatchMatrix<scalar_t>& grad_y = product.rows;
  const PatchMatrix<scalar_t>& patches = product.columns;
  const int64_t channels = product.groups, splits = product.splits;
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  const int64_t pitch = padded_channels<acc_t>(channels);
  const int64_t num_taps = patches.depth.length(), positions = patches.positions.length();
  const int64_t size = num_taps * pitch;
  const int64_t split_length = ceil_div(positions, splits);
  const int64_t blocks = ceil_div(channels, kDepthwiseVecs * lanes);
  acc_t* const sums = static_cast<acc_t*>(workspace);

  const int64_t work = split_length * num_taps * std::min(channels, kDepthwiseVecs * lanes);
  const int64_t grain = std::max<int64_t>(1, kMinDepthwisePerThread / std::max<int64_t>(1, work));
  parallel_for(splits * blocks, grain, [&](int64_t first_task, int64_t last_task) {
    const TapRuns taps(patches, 0, num_taps);
    for (int64_t task = first_task; task < last_task; ++task) {
      const int64_t split = task / blocks, c = task % blocks * kDepthwiseVecs * lanes;
      const int64_t vecs = std::min(kDepthwiseVecs, ceil_div(channels - c, lanes));
      acc_t* const chain = sums + split * 2 * size + c;
      acc_t* const total = chain + size;
      for (int64_t t = 0; t < num_taps; ++t) {
        fill_zero(chain + t * pitch, vecs * lanes);
        fill_zero(total + t * pitch, vecs * lanes);
      }
      const int64_t end = std::min(positions, (split + 1) * split_length);
      for (int64_t first = split * split_length; first < end; first += kDepthBlock) {
        const int64_t last = std::min(end, first + kDepthBlock);
        const PositionRuns runs(patches, first, last);
        AxisCursor place(grad_y.positions, first);
        for (int64_t r = 0; r < runs.count; ++r) {
          for (int64_t p = 0; p < runs.run[r].count; ++p, place.advance(1)) {
            const scalar_t* const g = grad_y.data + place.offset() + c;
            Vec<acc_t> g_vec[kDepthwiseVecs];
            for (int64_t v = 0; v < vecs; ++v)
              g_vec[v] = load_channels(g + v * lanes, channels - c - v * lanes);
            for_each_inside(patches, taps, runs.run[r], p, [&](int64_t tap, int64_t offset) {
              const scalar_t* const x = patches.data + offset + c;
              acc_t* const sum = chain + tap * pitch;
              for (int64_t v = 0; v < vecs; ++v) {
                at::vec::fmadd(load_channels(x + v * lanes, channels - c - v * lanes), g_vec[v],
                               Vec<acc_t>::loadu(sum + v * lanes))
                    .store(sum + v * lanes);
              }
            });
          }
        }
        for (int64_t t = 0; t < num_taps; ++t) {
          for (int64_t i = t * pitch; i < t * pitch + vecs * lanes; ++i) {
            total[i] += chain[i];
            chain[i] = acc_t(0);
          }
        }
      }
    }
  });

  AxisCursor place(place_axis, 0);
  for (int64_t t = 0; t < num_taps; ++t, place.advance(1)) {
    for (int64_t c = 0; c < channels; ++c) {
      acc_t sum = 0;
      for (int64_t split = 0; split < splits; ++split) sum += sums[(split * 2 + 1) * size + t * pitch + c];
      grad_w[place.offset() + c * channel_stride] = static_cast<scalar_t>(sum);
    }
  }
}

// Most taps of the form by planes: their pieces are on the stack (1.7 KB each).
inline constexpr int64_t kMaxPlaneTaps = 32;

// Channels that share what was found out about a tile's positions, in one task of grad_weight.
inline constexpr int64_t kPlaneChannels = 16;

// The positions [first, first + count) of a plane, at most kDepthwiseVecs vectors, as pieces for each tap.
template <typename scalar_t>
struct PlaneTile {
  static constexpr int64_t kLanesHere = kLanes<acc_type<scalar_t>>;
  static constexpr int64_t kSpan = kDepthwiseVecs * kLanesHere;

  int64_t vecs;
  RowPieces<kSpan> tap[kMaxPlaneTaps];

  PlaneTile(const PatchMatrix<scalar_t>& patches, const TapRuns& taps, int64_t first, int64_t count)
      : vecs(ceil_div(count, kLanesHere)) {
    const PositionRuns runs(patches, first, first + count);
    for (int64_t t = 0; t < taps.count; ++t) {
      for (int64_t i = 0; i < taps.run[t].channels; ++i) {
        TapRun one = taps.run[t];
        one.offset += i * patches.depth.stride[3];
        tap[one.begin + i] = RowPieces<kSpan>(RowCopies(patches, runs, one), kLanesHere, vecs);
      }
    }
  }
};

// Workspace of plane_multiply: the filters as [channel][tap].
template <typename acc_t>
int64_t plane_multiply_bytes(int64_t taps, int64_t channels) {
  return taps * channels * static_cast<int64_t>(sizeof(acc_t));
}

// One group of `product` is one channel: rows are filters, columns are patches. Positions are contiguous.
template <typename scalar_t>
void plane_multiply(const Product<scalar_t, scalar_t>& product, void* workspace) {
  using acc_t = acc_type<scalar_t>;
  using Tile = PlaneTile<scalar_t>;
  const PatchMatrix<scalar_t>& patches = product.columns;
  const int64_t channels = product.groups;
  const int64_t num_taps = patches.depth.length(), positions = patches.positions.length();
  if (positions == 0) return;

  acc_t* const filters = static_cast<acc_t*>(workspace);
  for (int64_t t = 0; t < num_taps; ++t) {
    const scalar_t* const src =
        product.rows.data + product.rows.origin_offset + AxisCursor(product.rows.depth, t).offset();
    for (int64_t c = 0; c < channels; ++c) {
      filters[c * num_taps + t] = static_cast<acc_t>(src[c * product.rows_group_stride]);
    }
  }

  const int64_t work = Tile::kSpan * channels * std::max<int64_t>(1, num_taps);
  const int64_t grain = std::max<int64_t>(1, kMinDepthwisePerThread / std::max<int64_t>(1, work));
  parallel_for(ceil_div(positions, Tile::kSpan), grain, [&](int64_t first_tile, int64_t last_tile) {
    const TapRuns taps(patches, 0, num_taps);
    for (int64_t i = first_tile; i < last_tile; ++i) {
      const int64_t first = i * Tile::kSpan, count = std::min(Tile::kSpan, positions - first);
      const Tile tile(patches, taps, first, count);
      const AxisCursor place(product.out_columns, first);
      for (int64_t c = 0; c < channels; ++c) {
        const scalar_t* const x = patches.data + c * product.columns_group_stride;
        acc_t sums[Tile::kSpan];
        for (int64_t v = 0; v < tile.vecs; ++v) {
          Vec<acc_t> sum(product.bias == nullptr ? acc_t(0) : static_cast<acc_t>(product.bias[c]));
          for (int64_t t = 0; t < num_taps; ++t) {
            sum = at::vec::fmadd(tile.tap[t].load(x, v), Vec<acc_t>(filters[c * num_taps + t]), sum);
          }
          sum.store(sums + v * kLanes<acc_t>);
        }
        store_along(place, count, sums, product.out + c * product.out_group_stride);
      }
    }
  });
}

// Writes product.out, [split][channel][tap]: rows are patches, columns are grad_y, both with contiguous
// positions.
template <typename scalar_t>
void plane_grad_weight(const Product<scalar_t, acc_type<scalar_t>>& product) {
  using acc_t = acc_type<scalar_t>;
  using Tile = PlaneTile<scalar_t>;
  const PatchMatrix<scalar_t>& patches = product.rows;
  const PatchMatrix<scalar_t>& grad_y = product.columns;
  const int64_t channels = product.groups;
  const int64_t num_taps = patches.depth.length(), positions = patches.positions.length();
  const int64_t split_length = round_up(ceil_div(positions, product.splits), Tile::kSpan);
  const int64_t blocks = ceil_div(channels, kPlaneChannels);

  const int64_t work = split_length * num_taps * std::min(channels, kPlaneChannels);
  const int64_t grain = std::max<int64_t>(1, kMinDepthwisePerThread / std::max<int64_t>(1, work));
  parallel_for(product.splits * blocks, grain, [&](int64_t first_task, int64_t last_task) {
    const TapRuns taps(patches, 0, num_taps), one_tap(grad_y, 0, 1);
    for (int64_t task = first_task; task < last_task; ++task) {
      const int64_t split = task / blocks;
      const int64_t c0 = task % blocks * kPlaneChannels, c1 = std::min(channels, c0 + kPlaneChannels);
      acc_t* const out = product.out + split * product.out_split_stride;
      std::fill(out + c0 * product.out_group_stride, out + c1 * product.out_group_stride, acc_t(0));
      const int64_t end = std::min(positions, (split + 1) * split_length);
      for (int64_t first = split * split_length; first < end; first += Tile::kSpan) {
        const int64_t count = std::min(Tile::kSpan, end - first);
        const Tile tile(patches, taps, first, count);
        const RowPieces<Tile::kSpan> grad_pieces(
            RowCopies(grad_y, PositionRuns(grad_y, first, first + count), one_tap.run[0]), kLanes<acc_t>,
            tile.vecs);
        for (int64_t c = c0; c < c1; ++c) {
          const scalar_t* const x = patches.data + c * product.rows_group_stride;
          const scalar_t* const g = grad_y.data + c * product.columns_group_stride;
          Vec<acc_t> g_vec[kDepthwiseVecs];
          for (int64_t v = 0; v < tile.vecs; ++v) g_vec[v] = grad_pieces.load(g, v);
          for (int64_t t = 0; t < num_taps; ++t) {
            Vec<acc_t> sum(acc_t(0));
            for (int64_t v = 0; v < tile.vecs; ++v) sum = at::vec::fmadd(tile.tap[t].load(x, v), g_vec[v], sum);
            out[c * product.out_group_stride + t] +=
                at::vec::vec_reduce_all<acc_t>([](Vec<acc_t> a, Vec<acc_t> b) { return a + b; }, sum);
          }
        }
      }
    }
  });
}

}  // namespace fastnn::FASTNN_BACKEND
