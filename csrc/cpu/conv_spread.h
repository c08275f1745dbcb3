// grad_input of few channels: products first, sums over taps afterwards. What a transposed convolution to an
// image is.
//
//   product[q][r, c] = sum over k of grad_y[n, k, q] * w[k, c, r]
//   grad_x[n, c, i]  = bias[c] + the sum of product[q][r, c] over the taps r that position q sees at i
//
// With the channels of x as columns most lanes of a vector would be empty; here all taps of all channels are,
// which for 4x4 filters and three channels are 48. A thread owns bands of rows of x, whose sums it keeps in L2;
// a row of grad_y that reaches two bands is multiplied for each.
//
// What bounds it: the multiply-adds, and for each of them 1 / K of an addition in L1. Error: K roundings of a
// product's sum, those of the sums over taps, in ascending order of rows of y and of positions by residues of
// the windows that overlap, and one of the bias: the order follows from the shape alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../ops/conv.h"
#include "conv_operands.h"
#include "conv_plan.h"
#include "matrix_tile.h"
#include "parallel.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {

template <typename scalar_t>
class SpreadGradInput {
 public:
  using acc_t = acc_type<scalar_t>;
  static constexpr int64_t L = kLanes<acc_t>;

  // Whether it is the way for a convolution: one of planes whose channels fill less than half of a vector, and
  // with their taps at least one.
  static bool takes(const ConvGeometry& g) {
    if (!std::is_same_v<scalar_t, acc_t> || g.groups != 1 || g.stride[1] * g.stride[2] == 1) return false;
    if (g.in[0] != 1 || g.out[0] != 1 || g.kernel[0] != 1 || g.pad[0] != 0 || g.dilation[2] != 1) return false;
    const int64_t columns = volume(g.kernel) * g.C;
    return 2 * g.C <= L && g.K >= kLeastFilters && g.K + volume(g.kernel) <= kDepthBlock && columns >= L &&
           columns <= kMostColumns && row_size(g) <= kSums;
  }

  explicit SpreadGradInput(const ConvGradInputParams& p)
      : p_(p),
        g_(p.geometry),
        run_(g_.kernel[2] * g_.C),
        columns_(round_up(g_.kernel[1] * run_, L)),
        row_size_(row_size(g_)),
        packed_(static_cast<acc_t*>(p.workspace)) {}

  int64_t workspace_bytes() const { return g_.K * columns_ * static_cast<int64_t>(sizeof(acc_t)); }

  void run() const {
    pack();
    const int64_t H = g_.in[1], threads = at::get_num_threads();
    // As many bands as keep the threads busy, of rows enough that few are multiplied twice.
    const int64_t wanted = ceil_div(H, ceil_div(kTilesPerThread * threads, std::max<int64_t>(1, g_.N)));
    const int64_t least = std::min(H, kRowsForKernel * ((g_.kernel[1] - 1) * g_.dilation[1] + 1));
    const int64_t rows = std::clamp<int64_t>(std::max(wanted, least), 1, kSums / row_size_);
    const int64_t bands = ceil_div(H, rows);
    const int64_t work = rows * g_.in[2] * g_.K * columns_ / (g_.stride[1] * g_.stride[2]);
    parallel_for(g_.N * bands, std::max<int64_t>(1, kMinWork / std::max<int64_t>(1, work)),
                 [&](int64_t begin, int64_t end) {
                   alignas(64) acc_t sums[kSums];
                   for (int64_t i = begin; i < end; ++i) {
                     const int64_t first = i % bands * rows, last = std::min(H, first + rows);
                     std::fill(sums, sums + (last - first) * row_size_, acc_t(0));
                     add_rows(i / bands, first, last, sums);
                     store(i / bands, first, last, sums);
                   }
                 });
  }

 private:
  static constexpr int64_t kLeastFilters = 16;
  static constexpr int64_t kMostColumns = 256;
  static constexpr int64_t kPositions = 16;     // whose products are kept at a time
  static constexpr int64_t kSums = 16 * 1024;   // of a band, on the stack
  static constexpr int64_t kRowsForKernel = 4;  // rows of a band for each that a filter reaches over
  static constexpr int64_t kMinWork = 30000;    // multiply-adds of a task

  // Sums of a row of x, with the positions beside it that filters see.
  static int64_t row_size(const ConvGeometry& g) {
    return std::max((g.out[2] - 1) * g.stride[2] + g.kernel[2], g.pad[2] + g.in[2]) * g.C;
  }

  // [k][row of taps][column of taps][c], with zeros up to a whole vector.
  void pack() const {
    const auto* const w = static_cast<const scalar_t*>(p_.w);
    const ConvStrides& s = p_.w_strides;
    for (int64_t k = 0; k < g_.K; ++k) {
      acc_t* to = packed_ + k * columns_;
      acc_t* const end = to + columns_;
      for (int64_t h = 0; h < g_.kernel[1]; ++h) {
        for (int64_t r = 0; r < g_.kernel[2]; ++r) {
          for (int64_t c = 0; c < g_.C; ++c) *to++ = w[k * s[0] + c * s[1] + h * s[3] + r * s[4]];
        }
      }
      std::fill(to, end, acc_t(0));
    }
  }

  // Adds what rows of y give to rows [first, last) of x.
  void add_rows(int64_t n, int64_t first, int64_t last, acc_t* sums) const {
    const auto* const grad_y = static_cast<const scalar_t*>(p_.grad_y) + n * p_.grad_y_strides[0];
    const int64_t overlapping = ceil_div(g_.kernel[2], g_.stride[2]);
    alignas(64) acc_t products[kPositions * kMostColumns];
    for (int64_t oh = 0; oh < g_.out[1]; ++oh) {
      const int64_t top = oh * g_.stride[1] - g_.pad[1];
      if (top >= last || top + (g_.kernel[1] - 1) * g_.dilation[1] < first) continue;
      for (int64_t ow = 0; ow < g_.out[2]; ow += kPositions) {
        const int64_t count = std::min(kPositions, g_.out[2] - ow);
        multiply_positions(grad_y + oh * p_.grad_y_strides[3] + ow * p_.grad_y_strides[4], count, products);
        for (int64_t h = 0; h < g_.kernel[1]; ++h) {
          const int64_t row = top + h * g_.dilation[1];
          if (row < first || row >= last) continue;
          // Of windows that overlap each in a pass of its own: a sum that has just been stored in part would
          // be waited for.
          for (int64_t pass = 0; pass < overlapping; ++pass) {
            for (int64_t i = pass; i < count; i += overlapping) {
              add(sums + (row - first) * row_size_ + (ow + i) * g_.stride[2] * g_.C,
                  products + i * columns_ + h * run_);
            }
          }
        }
      }
    }
  }

  void multiply_positions(const scalar_t* grad_y, int64_t count, acc_t* products) const {
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      Tile<acc_t> tile{};
      tile.depth = g_.K;
      tile.a_pitch = p_.grad_y_strides[4];
      tile.a_step = p_.grad_y_strides[1];
      tile.b_pitch = tile.c_pitch = columns_;
      for (int64_t i = 0, rows; i < count; i += rows) {
        rows = tile_rows(count - i);
        tile.a = grad_y + i * tile.a_pitch;
        for (int64_t v = 0; v < columns_; v += kMaxVecs * L) {
          tile.b = packed_ + v;
          tile.c = products + i * columns_ + v;
          multiply(rows, std::min(kMaxVecs, (columns_ - v) / L), tile);
        }
      }
    }
  }

  void add(acc_t* sums, const acc_t* products) const {
    for_each_vector<acc_t>(0, run_, [=](int64_t j, int64_t count) __attribute__((always_inline)) {
      const Vec<acc_t> term = load_acc(products + j, count),
                       sum = load_acc(static_cast<const acc_t*>(sums) + j, count);
      store_acc(sums + j, sum + term, count);
    });
  }

  void store(int64_t n, int64_t first, int64_t last, const acc_t* sums) const {
    const ConvStrides& s = p_.grad_x_strides;
    const auto* const bias = static_cast<const scalar_t*>(p_.bias);
    for (int64_t c = 0; c < g_.C; ++c) {
      const acc_t added = bias == nullptr ? acc_t(0) : static_cast<acc_t>(bias[c]);
      for (int64_t h = first; h < last; ++h) {
        scalar_t* const to = static_cast<scalar_t*>(p_.grad_x) + n * s[0] + c * s[1] + h * s[3];
        const acc_t* const from = sums + (h - first) * row_size_ + g_.pad[2] * g_.C + c;
        for (int64_t x = 0; x < g_.in[2]; ++x) to[x * s[4]] = static_cast<scalar_t>(from[x * g_.C] + added);
      }
    }
  }

  const ConvGradInputParams& p_;
  const ConvGeometry& g_;
  const int64_t run_, columns_, row_size_;
  acc_t* const packed_;
};

}  // namespace fastnn::FASTNN_BACKEND
