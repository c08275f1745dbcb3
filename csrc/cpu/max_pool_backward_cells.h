// Backward of max pooling with channels last, for the common windows; max_pool.cpp says when it is taken.
// Windows are added in ascending order.
//
// A thread owns rows of cells: 2 x 2 positions of grad_x for windows at a distance of 2, one position for
// windows at each. The same windows reach every position of a cell, four of them or nine, at most; for one
// vector of channels each is loaded once and compared with the taps that it has there. Cells are gone through
// in the order of memory, all channels of one before the next: of x's rows and of y's only a few runs are open
// at a time.
//
// 3x3 at a distance of 2: 8 loads and 9 compare-and-adds for 4 stores; at 1: 18 and 9 for one.
#pragma once

#include <algorithm>

#include "cache_hints.h"
#include "max_pool_vectors.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND::pool {

// Channels that are taken at a time: what stands for windows and positions that are not there has as many.
inline constexpr int64_t kCellChannels = 512;

template <typename scalar_t, int kKernel, int kStride, int kPad>
void max_pool_backward_cells(const MaxPoolBackwardParams& p) {
  static_assert((kKernel == 3 || kPad == 0) && (kStride == 2 || (kKernel == 3 && kStride == 1 && kPad == 1)));
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  constexpr int64_t W = kLanes<acc_t>;
  // Windows o - kBefore to o - kBefore + kWindows - 1 reach the cell o, in each of the two dimensions.
  constexpr int kWindows = kStride == 1 ? 3 : kKernel == 3 ? 2 : 1;
  constexpr int kBefore = kStride == 2 && kPad == 1 ? 0 : kWindows == 1 ? 0 : 1;
  const PoolGeometry& g = p.geometry;
  const int64_t rows = ceil_div(g.in[1], kStride), columns = ceil_div(g.in[2], kStride), C = g.C;
  const bool stream = streams_lines(static_cast<scalar_t*>(p.grad_x), g.N * volume(g.in) * C) && C % W == 0;

  parallel_for(g.N * g.in[0] * rows, grain(columns * C * kWindows * kWindows), [&](int64_t begin, int64_t end) {
    // A window that is not there chose no tap; a position that is not there is written nowhere.
    alignas(64) scalar_t no_grads[kCellChannels] = {};
    uint8_t no_offsets[kCellChannels];
    alignas(64) scalar_t nowhere[kCellChannels];
    std::fill(no_offsets, no_offsets + kCellChannels, uint8_t(255));
    FetchAhead grads_ahead, offsets_ahead, outputs_ahead;
    const int64_t y_row = g.out[2] * C, x_row = g.in[2] * C;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t plane = r / rows, row = r % rows;
      // Windows' rows and rows of positions; those that are not there are not read or written.
      const scalar_t* const grad_y = static_cast<const scalar_t*>(p.grad_y) + plane * g.out[1] * y_row;
      const uint8_t* const chosen = static_cast<const uint8_t*>(p.offsets) + plane * g.out[1] * y_row;
      scalar_t* const grad_x = static_cast<scalar_t*>(p.grad_x) + (plane * g.in[1] + row * kStride) * x_row;
      // Windows that reach one cell alone are read once, from one row: the hardware sees those coming.
      if (kWindows > 1) {
        const int64_t y_end = (row - kBefore + kWindows) * y_row;
        grads_ahead.plan(grad_y + (row - kBefore) * y_row, grad_y + y_end, grad_y + y_end + y_row, columns);
        offsets_ahead.plan(chosen + (row - kBefore) * y_row, chosen + y_end, chosen + y_end + y_row, columns);
        if (!stream) {
          outputs_ahead.plan(grad_x, grad_x + kStride * x_row, grad_x + 2 * kStride * x_row, columns);
        }
      }
      for (int64_t column = 0; column < columns; ++column) {
        if (kWindows > 1) {
          grads_ahead.next();
          offsets_ahead.next();
          outputs_ahead.next();
        }
        const scalar_t* grads[kWindows * kWindows];
        const uint8_t* offsets[kWindows * kWindows];
        bool there[kWindows * kWindows];
        for (int i = 0; i < kWindows * kWindows; ++i) {
          const int64_t oh = row - kBefore + i / kWindows, ow = column - kBefore + i % kWindows;
          there[i] = oh >= 0 && oh < g.out[1] && ow >= 0 && ow < g.out[2];
          grads[i] = there[i] ? grad_y + oh * y_row + ow * C : no_grads;
          offsets[i] = there[i] ? chosen + oh * y_row + ow * C : no_offsets;
        }
        scalar_t* to[kStride * kStride];
        for (int i = 0; i < kStride * kStride; ++i) {
          const int64_t iw = column * kStride + i % kStride;
          to[i] = row * kStride + i / kStride < g.in[1] && iw < g.in[2] ? grad_x + i / kStride * x_row + iw * C
                                                                        : nowhere;
        }
        for (int64_t first = 0; first < C; first += kCellChannels) {
          for_each_vector<acc_t>(0, std::min(C - first, kCellChannels),
                                 [&](int64_t c, int64_t count) __attribute__((always_inline)) {
                                   V sums[kStride * kStride];
                                   for (V& sum : sums) sum = V(0);
#pragma GCC unroll 9
                                   for (int i = 0; i < kWindows * kWindows; ++i) {
                                     const V grad = load_acc(grads[i] + c, count);
#pragma GCC unroll 4
                                     for (int j = 0; j < kStride * kStride; ++j) {
                                       // The tap at which window i sees position j.
                                       const int kh = j / kStride + kPad - (i / kWindows - kBefore) * kStride;
                                       const int kw = j % kStride + kPad - (i % kWindows - kBefore) * kStride;
                                       if (kh < 0 || kh >= kKernel || kw < 0 || kw >= kKernel) continue;
                                       sums[j] = add_where_chosen<acc_t>(sums[j], offsets[i] + c, count,
                                                                         kh * kKernel + kw, grad);
                                     }
                                   }
#pragma GCC unroll 4
                                   for (int j = 0; j < kStride * kStride; ++j) {
                                     if (stream && to[j] != nowhere) {
                                       store_stream(to[j] + c, sums[j]);
                                     } else {
                                       store_acc(to[j] + c, sums[j], count);
                                     }
                                   }
                                 });
          for (int i = 0; i < kWindows * kWindows; ++i) {
            if (!there[i]) continue;
            grads[i] += kCellChannels;
            offsets[i] += kCellChannels;
          }
          for (scalar_t*& t : to) {
            if (t != nowhere) t += kCellChannels;
          }
        }
      }
    }
    if (stream) end_stream();
  });
}

}  // namespace fastnn::FASTNN_BACKEND::pool
