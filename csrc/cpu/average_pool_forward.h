// Forward of average and L_p pooling; average_pool.cpp says when each variant is taken.
#pragma once

#include <algorithm>
#include <type_traits>

#include "average_pool_power.h"
#include "constant_loop.h"
#include "max_pool_geometry.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND::pool {

// Sums of columns lie on the stack, beside the numbers of positions: half an L1 data cache each in float32.
inline constexpr int64_t kColumns = 2048;
// What vector loads may read past the last column.
inline constexpr int64_t kSlack = 64;

// What sums of windows are multiplied with: 1 / divisor, or the ratio under the root of L_p. Numbers of
// positions of adaptive windows cost divisions, so those of rows are worked out once a call.
template <typename acc_t>
class Divisors {
 public:
  const acc_t numerator;

  Divisors(const PoolGeometry& geometry, const AveragePoolOptions& options)
      : numerator(options.power ? static_cast<acc_t>(volume(geometry.kernel)) : acc_t(1)),
        g_(geometry),
        count_pad_(options.count_pad),
        divisor_(static_cast<acc_t>(options.divisor)),
        tabulated_(geometry.out[1] <= kRows),
        depth_(static_cast<acc_t>(pool_count(geometry, 0, 0, options.count_pad))) {
    for (int64_t oh = 0; tabulated_ && oh < g_.out[1]; ++oh) rows_[oh] = count(1, oh);
  }

  acc_t of_rows(int64_t od, int64_t oh) const {
    if (divisor_ != 0) return divisor_;
    return (g_.out[0] == 1 ? depth_ : count(0, od)) * (tabulated_ ? rows_[oh] : count(1, oh));
  }
  acc_t of_column(int64_t ow) const { return divisor_ != 0 ? acc_t(1) : count(2, ow); }

 private:
  static constexpr int64_t kRows = 256;

  acc_t count(int d, int64_t o) const { return static_cast<acc_t>(pool_count(g_, d, o, count_pad_)); }

  const PoolGeometry& g_;
  bool count_pad_;
  acc_t divisor_;  // 0 for the number of positions
  bool tabulated_;
  acc_t depth_, rows_[kRows];
};

// A window's rows: from `first`, in each of `depths` slices `rows` rows of x.
template <typename scalar_t>
struct WindowRows {
  const scalar_t* first;
  int64_t depths, rows, slice, row;  // elements from one to the next

  WindowRows(const PoolGeometry& g, const scalar_t* plane, int64_t od, int64_t oh) {
    const PoolRange d = pool_window(g, 0, od), h = pool_window(g, 1, oh);
    row = g.in[2];
    slice = g.in[1] * row;
    first = plane + d.begin * slice + h.begin * row;
    depths = d.end - d.begin;
    rows = h.end - h.begin;
  }
};

// Whether windows are summed one by one along their rows, rather than by columns that they share.
template <typename acc_t>
bool has_wide_windows(const PoolGeometry& g) {
  if (g.out[2] == 1) return true;
  const bool adaptive = g.windows == Windows::kAdaptive;
  const int64_t width = adaptive ? g.in[2] / g.out[2] + 2 : g.kernel[2];
  const int64_t step = adaptive ? width : g.stride[2];
  return width > kColumns / 2 || (width >= 2 * kLanes<acc_t> && 2 * step >= width);
}

// Whether each plane, folded to a row, is one window.
inline bool is_global(const PoolGeometry& g) {
  return volume(g.out) == 1 && volume(g.in) == g.in[2] && g.kernel[2] == g.in[2] && g.pad[2] == 0;
}

// Global pooling: a thread owns planes.
template <typename scalar_t, bool kPower>
void average_pool_forward_global(const AveragePoolForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  constexpr int64_t W = kLanes<acc_t>;
  const PoolGeometry& g = p.geometry;
  const Power<acc_t, kPower> power(p.options);
  const Divisors<acc_t> divisors(g, p.options);
  const acc_t divisor = divisors.of_rows(0, 0) * divisors.of_column(0);
  const int64_t size = g.in[2], rest = size % W;

  parallel_for(g.N * g.C, grain(size), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const scalar_t* const x = static_cast<const scalar_t*>(p.x) + plane * size;
      V sum(0), next(0);
      int64_t c = 0;
      for (; c + 2 * W <= size; c += 2 * W) {
        sum = sum + power.of(load_acc(x + c));
        next = next + power.of(load_acc(x + c + W));
      }
      if (c + W <= size) {
        sum = sum + power.of(load_acc(x + c));
        c += W;
      }
      if (rest != 0) {
        const V value = power.of(load_acc(x + c, rest));
        next = next + (kPower ? first_lanes<acc_t>(value, rest) : value);
      }
      acc_t total = sum_lanes<acc_t>(sum + next);
      if constexpr (kPower) {
        alignas(64) acc_t lanes[W];
        power.root(V(total * (divisors.numerator / divisor))).store(lanes);
        total = lanes[0];
      } else {
        total = total / divisor;
      }
      static_cast<scalar_t*>(p.y)[plane] = static_cast<scalar_t>(total);
    }
  });
}

// A thread owns outputs; vectors run along the rows of one window.
template <typename scalar_t, bool kPower>
void average_pool_forward_windows(const AveragePoolForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  constexpr int64_t W = kLanes<acc_t>;
  const PoolGeometry& g = p.geometry;
  const Power<acc_t, kPower> power(p.options);
  const Divisors<acc_t> divisors(g, p.options);
  const int64_t row_work = volume(g.in) / (g.out[0] * g.out[1]) + g.out[2];

  parallel_for(g.N * g.C * g.out[0] * g.out[1], grain(row_work), [&](int64_t begin, int64_t end) {
    OutputRow row(g, begin);
    for (int64_t r = begin; r < end; ++r, row.next(g)) {
      const WindowRows<scalar_t> window(g, static_cast<const scalar_t*>(p.x) + row.plane * volume(g.in), row.d,
                                        row.h);
      const acc_t divisor_of_rows = divisors.of_rows(row.d, row.h);
      for (int64_t ow = 0; ow < g.out[2]; ++ow) {
        const PoolRange columns = pool_window(g, 2, ow);
        V sum(0), next(0);
        for (int64_t d = 0; d < window.depths; ++d) {
          for (int64_t h = 0; h < window.rows; ++h) {
            const scalar_t* const x = window.first + d * window.slice + h * window.row;
            int64_t c = columns.begin;
            for (; c + 2 * W <= columns.end; c += 2 * W) {
              sum = sum + power.of(load_acc(x + c));
              next = next + power.of(load_acc(x + c + W));
            }
            for (; c < columns.end; c += W) {
              const int64_t count = std::min(W, columns.end - c);
              const V value = power.of(load_acc(x + c, count));
              // Lanes that are not there hold 0, but a power of 0 need not be 0.
              sum = sum + (kPower && count < W ? first_lanes<acc_t>(value, count) : value);
            }
          }
        }
        acc_t total = sum_lanes<acc_t>(sum + next);
        const acc_t divisor = divisor_of_rows * divisors.of_column(ow);
        if constexpr (kPower) {
          alignas(64) acc_t lanes[W];
          power.root(V(total * (divisors.numerator / divisor))).store(lanes);
          total = lanes[0];
        } else {
          total = total / divisor;
        }
        static_cast<scalar_t*>(p.y)[r * g.out[2] + ow] = static_cast<scalar_t>(total);
      }
    }
  });
}

// sums[j] = sum over kernel columns of line[j * stride + column], for `count` outputs; vectors of line may be
// read kSlack past the last that is meant.
template <typename acc_t>
inline void sum_columns(const acc_t* line, int64_t kernel, int64_t stride, int64_t count, acc_t* sums) {
  using V = Vec<acc_t>;
  constexpr int64_t W = kLanes<acc_t>;
  if (stride == 1) {
    for (int64_t j = 0; j < count; j += W) {
      V sum = V::loadu(line + j);
      for (int64_t k = 1; k < kernel; ++k) sum = sum + V::loadu(line + j + k);
      sum.store(sums + j);
    }
  } else if (stride == 2) {
    for (int64_t j = 0; j < count; j += W) {
      const acc_t* const from = line + 2 * j;
      V sum(0);
      for (int64_t k = 0; k < kernel; k += 2) {
        const auto [even, odd] = at::vec::deinterleave2(V::loadu(from + k), V::loadu(from + k + W));
        sum = k + 1 < kernel ? sum + (even + odd) : sum + even;
      }
      sum.store(sums + j);
    }
  } else {
    for (int64_t j = 0; j < count; ++j) {
      const acc_t* const from = line + j * stride;
      acc_t sum = from[0];
      for (int64_t k = 1; k < kernel; ++k) sum += from[k];
      sums[j] = sum;
    }
  }
}

// A thread owns rows of outputs: first the rows of a row of windows are added column by column, then columns
// are added within each window. kh + kw additions an output, not kh * kw, and the first kh in whole vectors.
template <typename scalar_t, bool kPower>
void average_pool_forward_rows(const AveragePoolForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  const PoolGeometry& g = p.geometry;
  const Power<acc_t, kPower> power(p.options);
  const Divisors<acc_t> divisors(g, p.options);
  const bool adaptive = g.windows == Windows::kAdaptive;
  // Outputs of a tile, whose windows together span at most kColumns.
  const int64_t tile = adaptive ? std::max<int64_t>(1, (kColumns - g.in[2] / g.out[2] - 2) * g.out[2] / g.in[2])
                                : (kColumns - g.kernel[2]) / g.stride[2] + 1;
  const int64_t row_work = g.in[2] * (volume(g.in) / (g.in[2] * g.out[0] * g.out[1]) + 1) + g.out[2];

  parallel_for(g.N * g.C * g.out[0] * g.out[1], grain(row_work), [&](int64_t begin, int64_t end) {
    alignas(64) acc_t line[kColumns + kSlack], sums[kColumns + kSlack], counts[kColumns + kSlack];
    int32_t begins[kColumns], ends[kColumns];  // of adaptive windows, counted from the tile's first column
    for (int64_t first = 0; first < g.out[2]; first += tile) {
      const int64_t count = std::min(tile, g.out[2] - first);
      // Where the tile's columns begin, maybe in the padding, and which of them are inside x.
      const int64_t origin = adaptive ? pool_window(g, 2, first).begin : first * g.stride[2] - g.pad[2];
      const PoolRange inside{pool_window(g, 2, first).begin, pool_window(g, 2, first + count - 1).end};
      for (int64_t j = 0; j < count; ++j) {
        const PoolRange w = pool_window(g, 2, first + j);
        counts[j] = divisors.of_column(first + j);
        begins[j] = static_cast<int32_t>(w.begin - origin);
        ends[j] = static_cast<int32_t>(w.end - origin);
      }
      std::fill(line, line + kColumns + kSlack, acc_t(0));
      OutputRow row(g, begin);
      for (int64_t r = begin; r < end; ++r, row.next(g)) {
        const WindowRows<scalar_t> window(g, static_cast<const scalar_t*>(p.x) + row.plane * volume(g.in),
                                          row.d, row.h);
        for_each_vector<acc_t>(inside.begin, inside.end,
                               [&](int64_t c, int64_t n) __attribute__((always_inline)) {
                                 V sum(0);
                                 for (int64_t d = 0; d < window.depths; ++d) {
                                   const scalar_t* x = window.first + d * window.slice + c;
                                   for (int64_t h = 0; h < window.rows; ++h, x += window.row)
                                     sum = sum + power.of(load_acc(x, n));
                                 }
                                 if (n == kLanes<acc_t>) {
                                   sum.store(line + c - origin);
                                 } else {
                                   sum.store(line + c - origin, static_cast<int>(n));
                                 }
                               });
        if (adaptive) {
          for (int64_t j = 0; j < count; ++j) {
            acc_t sum = line[begins[j]];
            for (int32_t c = begins[j] + 1; c < ends[j]; ++c) sum += line[c];
            sums[j] = sum;
          }
        } else {
          sum_columns(static_cast<const acc_t*>(line), g.kernel[2], g.stride[2], count, sums);
        }
        const V rows(divisors.of_rows(row.d, row.h)), numerator(divisors.numerator);
        scalar_t* const y = static_cast<scalar_t*>(p.y) + r * g.out[2] + first;
        for_each_vector<acc_t>(0, count, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
          const V divisor = rows * V::loadu(counts + j), sum = V::loadu(sums + j);
          store_acc(y + j, kPower ? power.root(sum * (numerator / divisor)) : sum / divisor, n);
        });
      }
    }
  });
}

// Channels of a task of the channels-last kernels: enough to be worth the arithmetic of a position, few enough
// that one image of one position occupies several threads.
inline constexpr int64_t kChannelBlock = 256;

// Vectors of channels whose sums stay in registers: of fewer, a position's line would be waited for by itself.
inline constexpr int kSumVectors = 8;

// f(first channel, vectors, channels of the last one) for [from, to): kSumVectors at a time, then half of that,
// and what is left one by one. `vectors` is a constant.
template <typename acc_t, typename F>
inline __attribute__((always_inline)) void for_each_vectors(int64_t from, int64_t to, const F& f) {
  constexpr int64_t W = kLanes<acc_t>;
  int64_t c = from;
  for (; c + kSumVectors * W <= to; c += kSumVectors * W) f(c, std::integral_constant<int, kSumVectors>{}, W);
  for (; c + kSumVectors / 2 * W <= to; c += kSumVectors / 2 * W)
    f(c, std::integral_constant<int, kSumVectors / 2>{}, W);
  for_each_vector<acc_t>(c, to, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
    f(i, std::integral_constant<int, 1>{}, n);
  });
}

// A thread owns positions of y, a vector W channels of one position.
template <typename scalar_t, bool kPower>
void average_pool_forward_channels_last(const AveragePoolForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  constexpr int64_t W = kLanes<acc_t>;
  const PoolGeometry& g = p.geometry;
  const Power<acc_t, kPower> power(p.options);
  const Divisors<acc_t> divisors(g, p.options);
  const int64_t blocks = ceil_div(g.C, kChannelBlock), outputs = volume(g.out);
  const int64_t work = std::min(g.C, kChannelBlock) * (volume(g.in) / outputs + 1);

  parallel_for(g.N * outputs * blocks, grain(work), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t o = t / blocks, from = t % blocks * kChannelBlock;
      const int64_t ow = o % g.out[2];
      const OutputRow at(g, o / g.out[2]);
      const scalar_t* const x = static_cast<const scalar_t*>(p.x) + at.plane * volume(g.in) * g.C;
      const PoolRange ds = pool_window(g, 0, at.d), hs = pool_window(g, 1, at.h), ws = pool_window(g, 2, ow);
      const V divisor(divisors.of_rows(at.d, at.h) * divisors.of_column(ow));
      const V ratio = V(divisors.numerator) / divisor;
      scalar_t* const y = static_cast<scalar_t*>(p.y) + o * g.C;
      for_each_vectors<acc_t>(
          from, std::min(g.C, from + kChannelBlock),
          [&](int64_t c, auto vectors, int64_t n) __attribute__((always_inline)) {
            V sums[vectors];
            for (V& sum : sums) sum = V(0);
            for (int64_t d = ds.begin; d < ds.end; ++d) {
              for (int64_t h = hs.begin; h < hs.end; ++h) {
                const scalar_t* tap = x + ((d * g.in[1] + h) * g.in[2] + ws.begin) * g.C + c;
                for (int64_t w = ws.begin; w < ws.end; ++w, tap += g.C) {
                  for_each_constant<vectors>([&](auto v) __attribute__((always_inline)) {
                    sums[v] = sums[v] + power.of(load_acc(tap + v * W, n));
                  });
                }
              }
            }
            for_each_constant<vectors>([&](auto v) __attribute__((always_inline)) {
              store_acc(y + c + v * W, kPower ? power.root(sums[v] * ratio) : sums[v] / divisor, n);
            });
          });
    }
  });
}

}  // namespace fastnn::FASTNN_BACKEND::pool
