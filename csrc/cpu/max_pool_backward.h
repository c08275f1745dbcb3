// Backward of max pooling; max_pool.cpp says when each variant is taken. Windows are added in ascending order
// in all of them, so that they leave the same bits.
#pragma once

#include <algorithm>

#include "max_pool_vectors.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND::pool {

// ---- channels first, by whole planes ----

// Values of a plane whose sums stay in L1 while windows are added to them in no order.
inline constexpr int64_t kPlaneElements = 4 * 1024;

inline bool fits_planes(const PoolGeometry& g) {
  return volume(g.in) <= kPlaneElements && volume(g.out) <= kPlaneElements;
}

// A thread owns planes of grad_x, small or of windows that few places share: zeroed, then every window adds to
// the place that it chose. One scalar addition an output, but no work for places that were not chosen; loops
// over short rows, or over many taps, would cost more.
template <typename scalar_t, typename offset_t>
void max_pool_backward_planes(const MaxPoolBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const PoolGeometry& g = p.geometry;
  const DisplacementTable table(g);
  const int64_t in = volume(g.in), outputs = volume(g.out);

  parallel_for(g.N * g.C, grain(in + 4 * outputs), [&](int64_t begin, int64_t end) {
    int32_t starts[kPlaneElements];  // where the windows begin; negative in the padding
    int32_t flat[256];
    acc_t widened[kPlaneElements];
    for (int64_t o = 0; o < outputs; ++o) {
      const OutputRow row(g, o / g.out[2]);
      starts[o] = static_cast<int32_t>(window_start(g, row.d, row.h, o % g.out[2]));
    }
    if constexpr (sizeof(offset_t) == 1) {
      for (int i = 0; i < 256; ++i) flat[i] = static_cast<int32_t>(table.flat(i));
    }
    for (int64_t plane = begin; plane < end; ++plane) {
      const scalar_t* grad_y = static_cast<const scalar_t*>(p.grad_y) + plane * outputs;
      const offset_t* offsets = static_cast<const offset_t*>(p.offsets) + plane * outputs;
      scalar_t* grad_x = static_cast<scalar_t*>(p.grad_x) + plane * in;
      acc_t* sums = widened;
      if constexpr (std::is_same_v<scalar_t, acc_t>) sums = grad_x;
      std::fill(sums, sums + in, acc_t(0));
      for (int64_t o = 0; o < outputs; ++o) {
        int64_t place = starts[o];
        if constexpr (sizeof(offset_t) == 1) {
          place += flat[offsets[o]];
        } else {
          place += table.flat(offsets[o]);
        }
        // The comparison is for offsets that max_pool_forward did not make.
        if (static_cast<uint64_t>(place) < static_cast<uint64_t>(in))
          sums[place] += static_cast<acc_t>(grad_y[o]);
      }
      if constexpr (!std::is_same_v<scalar_t, acc_t>) {
        for_each_vector<acc_t>(0, in, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
          store_acc(grad_x + i, load_acc(static_cast<const acc_t*>(sums) + i, count), count);
        });
      }
    }
  });
}

// ---- channels first, by tiles ----

// grad_x's tile lies on the stack. The size of an L1 data cache.
inline constexpr int64_t kTileBytes = 32 * 1024;

// A thread owns tiles of grad_x, zeroed and added to in L1, to which it scatters every window that can reach
// them.
template <typename scalar_t, typename offset_t>
void max_pool_backward_tiles(const MaxPoolBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t W = kLanes<acc_t>;
  constexpr int64_t kTileElements = kTileBytes / sizeof(acc_t);
  const PoolGeometry& g = p.geometry;
  const DisplacementTable table(g);
  const int64_t tile_w = std::min(g.in[2], kTileElements);
  const int64_t tile_h = std::min(g.in[1], kTileElements / tile_w);
  const bool whole_rows = tile_w == g.in[2] && g.kernel[0] == 1;
  const int64_t tiles_w = ceil_div(g.in[2], tile_w), tiles_h = ceil_div(g.in[1], tile_h);

  parallel_for(
      g.N * g.C * g.in[0] * tiles_h * tiles_w, grain(tile_h * tile_w), [&](int64_t begin, int64_t end) {
        alignas(64) acc_t tile[kTileElements];
        for (int64_t t = begin; t < end; ++t) {
          const int64_t w0 = t % tiles_w * tile_w, h0 = t / tiles_w % tiles_h * tile_h;
          const int64_t slice = t / (tiles_w * tiles_h);
          const int64_t plane = slice / g.in[0], id = slice % g.in[0];
          const int64_t width = std::min(tile_w, g.in[2] - w0), height = std::min(tile_h, g.in[1] - h0);
          std::fill(tile, tile + width * height, acc_t(0));

          const Range outputs_d = covering_outputs(g, 0, id, id + 1);
          const Range outputs_h = covering_outputs(g, 1, h0, h0 + height);
          const Range outputs_w = covering_outputs(g, 2, w0, w0 + width);
          for (int64_t od = outputs_d.begin; od < outputs_d.end; ++od) {
            const int64_t depth = id - (od * g.stride[0] - g.pad[0]);
            for (int64_t oh = outputs_h.begin; oh < outputs_h.end; ++oh) {
              const int64_t line = ((plane * g.out[0] + od) * g.out[1] + oh) * g.out[2];
              const scalar_t* grad_y = static_cast<const scalar_t*>(p.grad_y) + line;
              const offset_t* offsets = static_cast<const offset_t*>(p.offsets) + line;
              const int64_t row = oh * g.stride[1] - g.pad[1] - h0;
              const bool above = row < 0 && h0 > 0, below = row + span(g, 1) > height && h0 + height < g.in[1];
              if (whole_rows && !above && !below) {
                // Every place that this row's windows can name lies in the tile. The comparison is for offsets
                // that max_pool_forward did not make.
                const int64_t start = row * width - g.pad[2];
                const auto inside = static_cast<uint64_t>(width * height);
                for (int64_t ow = outputs_w.begin; ow < outputs_w.end; ++ow) {
                  const int64_t place = start + ow * g.stride[2] + table.flat(offsets[ow]);
                  if (static_cast<uint64_t>(place) < inside) tile[place] += static_cast<acc_t>(grad_y[ow]);
                }
                continue;
              }
              for (int64_t ow = outputs_w.begin; ow < outputs_w.end; ++ow) {
                const Displacement at = table(offsets[ow]);
                const int64_t h = row + at.h, w = ow * g.stride[2] - g.pad[2] - w0 + at.w;
                // One comparison a side: negative positions are huge unsigned numbers.
                if (at.d == depth && static_cast<uint64_t>(h) < static_cast<uint64_t>(height) &&
                    static_cast<uint64_t>(w) < static_cast<uint64_t>(width)) {
                  tile[h * width + w] += static_cast<acc_t>(grad_y[ow]);
                }
              }
            }
          }

          for (int64_t h = 0; h < height; ++h) {
            scalar_t* grad_x = static_cast<scalar_t*>(p.grad_x) + (slice * g.in[1] + h0 + h) * g.in[2] + w0;
            const acc_t* sums = tile + h * width;
            int64_t w = 0;
            for (; w + W <= width; w += W) store_acc(grad_x + w, Vec<acc_t>::loadu(sums + w));
            for (; w < width; ++w) grad_x[w] = static_cast<scalar_t>(sums[w]);
          }
        }
      });
}

// ---- channels last ----

// Vectors of channels whose sums stay in registers.
inline constexpr int kChannelVectors = 4;

// A thread owns rows of grad_x; each position adds, W channels at a time, the windows that cover it where the
// offset names it.
template <typename scalar_t, typename offset_t>
void max_pool_backward_channels_last(const MaxPoolBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  constexpr int64_t W = kLanes<acc_t>;
  const PoolGeometry& g = p.geometry;
  const int64_t overlap = ceil_div(g.kernel[0], g.stride[0]) * ceil_div(g.kernel[1], g.stride[1]) *
                          ceil_div(g.kernel[2], g.stride[2]);

  parallel_for(g.N * g.in[0] * g.in[1], grain(g.in[2] * g.C * overlap), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t n = r / (g.in[0] * g.in[1]), id = r / g.in[1] % g.in[0], ih = r % g.in[1];
      const Range outputs_d = covering_outputs(g, 0, id, id + 1),
                  outputs_h = covering_outputs(g, 1, ih, ih + 1);
      CoveringColumns columns(g);
      for (int64_t iw = 0; iw < g.in[2]; ++iw) {
        const Range outputs_w = columns.of(iw);
        // f(output, place) for the windows over this position, in ascending order.
        const auto for_each_window = [&](const auto& f) __attribute__((always_inline)) {
          for (int64_t od = outputs_d.begin; od < outputs_d.end; ++od) {
            const int64_t kd = tap_of(g, 0, id, od);
            if (kd < 0) continue;
            for (int64_t oh = outputs_h.begin; oh < outputs_h.end; ++oh) {
              const int64_t kh = tap_of(g, 1, ih, oh);
              if (kh < 0) continue;
              const int64_t line = ((n * g.out[0] + od) * g.out[1] + oh) * g.out[2];
              for (int64_t ow = outputs_w.begin; ow < outputs_w.end; ++ow) {
                const int64_t kw = tap_of(g, 2, iw, ow);
                if (kw >= 0) f((line + ow) * g.C, (kd * g.kernel[1] + kh) * g.kernel[2] + kw);
              }
            }
          }
        };
        const scalar_t* grad_y = static_cast<const scalar_t*>(p.grad_y);
        const offset_t* offsets = static_cast<const offset_t*>(p.offsets);
        scalar_t* grad_x = static_cast<scalar_t*>(p.grad_x) + (r * g.in[2] + iw) * g.C;
        int64_t c = 0;
        for (; c + kChannelVectors * W <= g.C; c += kChannelVectors * W) {
          V sums[kChannelVectors];
          for (V& sum : sums) sum = V(0);
          for_each_window([&](int64_t at, int64_t place) __attribute__((always_inline)) {
#pragma GCC unroll 4
            for (int v = 0; v < kChannelVectors; ++v) {
              sums[v] = add_where_chosen<acc_t>(sums[v], offsets + at + c + v * W, W, place,
                                                load_acc(grad_y + at + c + v * W));
            }
          });
#pragma GCC unroll 4
          for (int v = 0; v < kChannelVectors; ++v) store_acc(grad_x + c + v * W, sums[v]);
        }
        for_each_vector<acc_t>(c, g.C, [&](int64_t from, int64_t count) __attribute__((always_inline)) {
          V sum(0);
          for_each_window([&](int64_t at, int64_t place) __attribute__((always_inline)) {
            sum = add_where_chosen<acc_t>(sum, offsets + at + from, count, place,
                                          load_acc(grad_y + at + from, count));
          });
          store_acc(grad_x + from, sum, count);
        });
      }
    }
  });
}

}  // namespace fastnn::FASTNN_BACKEND::pool
