// Backward of average and L_p pooling; average_pool.cpp says when each variant is taken. Windows are added in
// ascending order in each row and column.
#pragma once

#include <algorithm>
#include <vector>

#include "average_pool_forward.h"
#include "cache_hints.h"

namespace fastnn::FASTNN_BACKEND::pool {

// What output (row, column) gives each position of its window, but for the factor of its column.
template <typename scalar_t, bool kPower>
inline Vec<acc_type<scalar_t>> given(const AveragePoolBackwardParams& p,
                                     const Power<acc_type<scalar_t>, kPower>& power, int64_t at, int64_t n) {
  const auto grad = load_acc(static_cast<const scalar_t*>(p.grad_y) + at, n);
  if constexpr (!kPower) return grad;
  return power.by_sum(grad, load_acc(static_cast<const scalar_t*>(p.y) + at, n));
}

// Global pooling: a thread owns planes, each of one gradient.
template <typename scalar_t, bool kPower>
void average_pool_backward_global(const AveragePoolBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  const PoolGeometry& g = p.geometry;
  const Power<acc_t, kPower> power(p.options);
  const Divisors<acc_t> divisors(g, p.options);
  const acc_t divisor = divisors.of_rows(0, 0) * divisors.of_column(0);
  const int64_t size = g.in[2];

  parallel_for(g.N * g.C, grain(size), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const V grad(static_cast<acc_t>(static_cast<const scalar_t*>(p.grad_y)[plane]));
      V value = grad / V(divisor);
      if constexpr (kPower) {
        const V y(static_cast<acc_t>(static_cast<const scalar_t*>(p.y)[plane]));
        value = power.by_sum(grad, y) * V(divisors.numerator / divisor);
      }
      const scalar_t* const x = static_cast<const scalar_t*>(p.x) + (kPower ? plane * size : 0);
      scalar_t* const grad_x = static_cast<scalar_t*>(p.grad_x) + plane * size;
      for_each_vector<acc_t>(0, size, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
        store_acc(grad_x + c, kPower ? value * power.slope(load_acc(x + c, n)) : value, n);
      });
    }
  });
}

// spread[t] = sum over the kernel columns k of line[(t - k) / stride] where stride divides t - k, for t in [0,
// count); line holds zeros `kernel` before its first output and behind its last.
template <typename acc_t>
inline void spread_columns(const acc_t* line, int64_t kernel, int64_t stride, int64_t count, acc_t* spread) {
  using V = Vec<acc_t>;
  constexpr int64_t W = kLanes<acc_t>;
  if (stride == 1) {
    for (int64_t t = 0; t < count; t += W) {
      V sum(0);
      for (int64_t k = kernel - 1; k >= 0; --k) sum = sum + V::loadu(line + t - k);
      sum.store(spread + t);
    }
  } else {  // 2: even and odd columns see windows of their own
    for (int64_t j = 0; 2 * j < count; j += W) {
      V even(0), odd(0);
      for (int64_t m = (kernel - 1) / 2; m >= 0; --m) {
        const V value = V::loadu(line + j - m);
        even = even + value;
        if (2 * m + 1 < kernel) odd = odd + value;
      }
      const auto [low, high] = at::vec::interleave2(even, odd);
      low.store(spread + 2 * j);
      high.store(spread + 2 * j + W);
    }
  }
}

// Kernels of up to this many columns, at strides 1 and 2, spread their gradient in vectors.
inline constexpr int64_t kSpreadKernel = 32;

// A thread owns rows of grad_x: first the rows of windows that reach one are added output by output, then each
// sum goes to the columns of its window. Rows that the same windows reach, as where windows do not overlap, are
// computed once.
template <typename scalar_t, bool kPower>
void average_pool_backward_rows(const AveragePoolBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  const PoolGeometry& g = p.geometry;
  const Power<acc_t, kPower> power(p.options);
  const Divisors<acc_t> divisors(g, p.options);
  const bool in_vectors =
      g.windows == Windows::kSliding && g.stride[2] <= 2 && g.kernel[2] <= kSpreadKernel && g.out[2] > 1;
  const int64_t tile = std::min(g.in[2], kColumns - 2 * kSlack);
  const int64_t outputs = volume(g.out);
  PoolGeometry inputs = g;  // for walking along the rows of x as along those of y
  std::copy(g.in, g.in + kSpatialDims, inputs.out);

  parallel_for(g.N * g.C * g.in[0] * g.in[1], grain(2 * g.in[2]), [&](int64_t begin, int64_t end) {
    alignas(64) acc_t padded[kColumns + 2 * kSlack], factors[kColumns + kSlack], spread[kColumns + kSlack];
    int32_t begins[kColumns], ends[kColumns];  // what a window has of the tile's columns
    acc_t* const line = padded + kSlack;       // room for kSpreadKernel zeros before it
    for (int64_t first = 0; first < g.in[2]; first += tile) {
      const int64_t last = std::min(first + tile, g.in[2]);
      const PoolRange all{pool_cover(g, 2, first).begin, pool_cover(g, 2, last - 1).end};
      const auto prepare = [&](int64_t from, int64_t to) {
        for (int64_t o = from; o < to; ++o) {
          const PoolRange w = pool_window(g, 2, o);
          factors[o - from] = divisors.numerator / divisors.of_column(o);
          begins[o - from] = static_cast<int32_t>(std::max(w.begin, first) - first);
          ends[o - from] = static_cast<int32_t>(std::min(w.end, last) - first);
        }
      };
      const bool one_chunk = all.end - all.begin <= kColumns;
      if (one_chunk) prepare(all.begin, all.end);
      // Vectors count columns from one that a window begins at, maybe of the padding or of the tile before.
      const int64_t base = in_vectors ? (first + g.pad[2]) / g.stride[2] : 0;
      std::fill(padded, padded + kColumns + 2 * kSlack, acc_t(0));
      OutputRow row(inputs, begin);
      PoolRange ds{}, hs{};
      const acc_t* sums = spread;
      for (int64_t r = begin; r < end; ++r, row.next(inputs)) {
        const PoolRange held_d = ds, held_h = hs;
        if (g.in[0] > 1 || r == begin) ds = pool_cover(g, 0, row.d);
        if (g.in[1] > 1 || r == begin) hs = pool_cover(g, 1, row.h);
        const bool held = r > begin && row.d + row.h > 0 && ds.begin == held_d.begin && ds.end == held_d.end &&
                          hs.begin == held_h.begin && hs.end == held_h.end;
        if (!held) {
          // Sums of outputs [from, to) of the row, with the factors of their columns.
          const auto add_rows = [&](int64_t from, int64_t to, acc_t* into) {
            for_each_vector<acc_t>(from, to, [&](int64_t o, int64_t n) __attribute__((always_inline)) {
              V sum(0);
              for (int64_t od = ds.begin; od < ds.end; ++od) {
                for (int64_t oh = hs.begin; oh < hs.end; ++oh) {
                  const int64_t at = row.plane * outputs + (od * g.out[1] + oh) * g.out[2] + o;
                  sum = sum + given<scalar_t, kPower>(p, power, at, n) * V(1 / divisors.of_rows(od, oh));
                }
              }
              sum = sum * V::loadu(factors + o - from);
              if (n == kLanes<acc_t>) {
                sum.store(into + o - from);
              } else {
                sum.store(into + o - from, static_cast<int>(n));
              }
            });
          };
          if (in_vectors) {
            add_rows(all.begin, all.end, line + kSpreadKernel + all.begin - base);
            const int64_t t = first + g.pad[2] - base * g.stride[2];
            spread_columns(static_cast<const acc_t*>(line + kSpreadKernel), g.kernel[2], g.stride[2],
                           t + last - first, spread);
            sums = spread + t;
          } else {
            std::fill(spread, spread + last - first, acc_t(0));
            for (int64_t from = all.begin; from < all.end; from += kColumns) {
              const int64_t to = std::min(from + kColumns, all.end);
              if (!one_chunk) prepare(from, to);
              add_rows(from, to, padded);
              for (int64_t j = 0; j < to - from; ++j) {
                const acc_t sum = padded[j];
                for (int32_t c = begins[j]; c < ends[j]; ++c) spread[c] += sum;
              }
            }
          }
        }
        const scalar_t* const x = static_cast<const scalar_t*>(p.x) + (kPower ? r * g.in[2] + first : 0);
        scalar_t* const grad_x = static_cast<scalar_t*>(p.grad_x) + r * g.in[2] + first;
        for_each_vector<acc_t>(0, last - first, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
          V sum = V::loadu(sums + c);
          if constexpr (kPower) sum = sum * power.slope(load_acc(x + c, n));
          store_acc(grad_x + c, sum, n);
        });
      }
    }
  });
}

// A thread owns positions of grad_x, a vector W channels of one position. What a position is given, and by
// which factor, is found once for all its channels.
template <typename scalar_t, bool kPower>
void average_pool_backward_channels_last(const AveragePoolBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  constexpr int64_t W = kLanes<acc_t>;
  const PoolGeometry& g = p.geometry;
  const Power<acc_t, kPower> power(p.options);
  const Divisors<acc_t> divisors(g, p.options);
  const int64_t outputs = volume(g.out);
  scalar_t* const grad_x = static_cast<scalar_t*>(p.grad_x);
  const bool stream = streams_lines(grad_x, g.N * volume(g.in) * g.C) && g.C % W == 0;
  PoolGeometry inputs = g;  // for walking along the rows of x as along those of y
  std::copy(g.in, g.in + kSpatialDims, inputs.out);
  struct Given {
    int64_t at;
    acc_t factor;
  };

  parallel_for(g.N * volume(g.in), grain(2 * g.C), [&](int64_t begin, int64_t end) {
    std::vector<Given> gives;
    OutputRow row(inputs, begin / g.in[2]);
    int64_t iw = begin % g.in[2];
    for (int64_t i = begin; i < end; row.next(inputs), iw = 0) {
      const PoolRange ds = pool_cover(g, 0, row.d), hs = pool_cover(g, 1, row.h);
      for (; iw < g.in[2] && i < end; ++iw, ++i) {
        const PoolRange ws = pool_cover(g, 2, iw);
        gives.clear();
        for (int64_t od = ds.begin; od < ds.end; ++od) {
          for (int64_t oh = hs.begin; oh < hs.end; ++oh) {
            const acc_t rows = divisors.of_rows(od, oh);
            for (int64_t ow = ws.begin; ow < ws.end; ++ow) {
              gives.push_back({(row.plane * outputs + (od * g.out[1] + oh) * g.out[2] + ow) * g.C,
                               divisors.numerator / (rows * divisors.of_column(ow))});
            }
          }
        }
        const int64_t place = i * g.C;
        for_each_vectors<acc_t>(0, g.C, [&](int64_t c, auto vectors, int64_t n) __attribute__((always_inline)) {
          V sums[vectors];
          for (V& sum : sums) sum = V(0);
          for (const Given& give : gives) {
            const V factor(give.factor);
            for_each_constant<vectors>([&](auto v) __attribute__((always_inline)) {
              sums[v] = sums[v] + given<scalar_t, kPower>(p, power, give.at + c + v * W, n) * factor;
            });
          }
          for_each_constant<vectors>([&](auto v) __attribute__((always_inline)) {
            const int64_t at = place + c + v * W;
            if constexpr (kPower)
              sums[v] = sums[v] * power.slope(load_acc(static_cast<const scalar_t*>(p.x) + at, n));
            if (stream) {
              store_stream(grad_x + at, sums[v]);
            } else {
              store_acc(grad_x + at, sums[v], n);
            }
          });
        });
      }
    }
    if (stream) end_stream();
  });
}

}  // namespace fastnn::FASTNN_BACKEND::pool
