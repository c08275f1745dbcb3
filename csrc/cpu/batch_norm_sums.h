// Sums per channel that batch normalisation needs: statistics of x, and the sums of backward and double
// backward. Each function sums one chunk (batch_norm_plan.h) and leaves float64 partial sums. batch_norm.cpp
// states the method and its error.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "../ops/batch_norm_math.h"
#include "batch_norm_plan.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND::bn {

// ---- statistics ----

// Moments of `count` values in L1.
template <typename acc_t>
Moments<double> moments(const acc_t* values, int64_t count) {
  using V = Vec<acc_t>;
  constexpr int64_t W = kLanes<acc_t>;
  constexpr int kWays = 4;  // independent sums, to hide the latency of an addition
  const int64_t body = count / (W * kWays) * (W * kWays);
  const double n = static_cast<double>(count);

  // An infinity to subtract would turn into NaN what should remain an infinite mean.
  const acc_t first = std::isfinite(values[0]) ? values[0] : acc_t(0);
  V sums[kWays] = {V(0), V(0), V(0), V(0)};
  for (int64_t i = 0; i < body; i += W * kWays) {
    for (int k = 0; k < kWays; ++k) sums[k] = sums[k] + (V::loadu(values + i + k * W) - V(first));
  }
  acc_t tail(0);
  for (int64_t i = body; i < count; ++i) tail += values[i] - first;
  const double mean =
      static_cast<double>(first) +
      (static_cast<double>(sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]))) + static_cast<double>(tail)) /
          n;

  if (!std::isfinite(mean)) return {n, mean, mean - mean};

  const acc_t center = static_cast<acc_t>(mean);
  V squares[kWays] = {V(0), V(0), V(0), V(0)};
  for (int k = 0; k < kWays; ++k) sums[k] = V(0);
  for (int64_t i = 0; i < body; i += W * kWays) {
    for (int k = 0; k < kWays; ++k) {
      const V d = V::loadu(values + i + k * W) - V(center);
      sums[k] = sums[k] + d;
      squares[k] = at::vec::fmadd(d, d, squares[k]);
    }
  }
  acc_t tail_squares(0);
  tail = 0;
  for (int64_t i = body; i < count; ++i) {
    const acc_t d = values[i] - center;
    tail += d;
    tail_squares += d * d;
  }
  const double shift =
      static_cast<double>(sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]))) + static_cast<double>(tail);
  const double m2 = static_cast<double>(sum_lanes((squares[0] + squares[1]) + (squares[2] + squares[3]))) +
                    static_cast<double>(tail_squares) - shift * shift / n;
  return {n, static_cast<double>(center) + shift / n, m2 < 0 ? 0 : m2};
}

template <typename scalar_t>
Moments<double> chunk_moments(const Plan& plan, const scalar_t* x, int64_t c, int64_t i) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t W = kLanes<acc_t>;
  const ChunkOfChannel chunk(plan, i);
  const scalar_t* begin = x + (chunk.n * plan.C + c) * plan.S + chunk.s;
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    if (chunk.rows == 1) return moments(begin, chunk.length);
  }
  // Widened and without gaps, so that short rows fill vectors. Each row's last store runs over by up to W - 1.
  alignas(64) acc_t packed[kChunkBytes / sizeof(acc_t) + W];
  for (int64_t row = 0; row < chunk.rows; ++row) {
    const scalar_t* from = begin + row * plan.C * plan.S;
    acc_t* to = packed + row * chunk.length;
    for_each_vector<acc_t>(0, chunk.length, [&](int64_t j, int64_t count) __attribute__((always_inline)) {
      load_acc(from + j, count).store(to + j);
    });
  }
  return moments(packed, chunk.count());
}

// Moments of up to kBlockRows rows, T vectors of channels from c (the last one `count` lanes wide), combined
// with those of `before` rows of the same chunk in mean[] and m2[].
template <int T, typename scalar_t>
void add_block_moments(const Plan& plan, const scalar_t* x, int64_t rows, int64_t before, int64_t count,
                       double* mean, double* m2) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  constexpr int W = kLanes<acc_t>;
  V first[T], sums[T], squares[T];
  for (int t = 0; t < T; ++t) {
    const V row = load_acc(x + t * W, T == 1 ? count : W);
    // As in moments(), an infinity is not subtracted: it would make the infinite mean NaN.
    const V zero = row - row;
    first[t] = V::blendv(row, V(0), zero != zero);
    sums[t] = squares[t] = V(0);
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (int t = 0; t < T; ++t) {
      const V d = load_acc(x + row * plan.C + t * W, T == 1 ? count : W) - first[t];
      sums[t] = sums[t] + d;
      squares[t] = at::vec::fmadd(d, d, squares[t]);
    }
  }
  alignas(64) acc_t lane_first[T * W], lane_sums[T * W], lane_squares[T * W];
  for (int t = 0; t < T; ++t) {
    first[t].store(lane_first + t * W);
    sums[t].store(lane_sums + t * W);
    squares[t].store(lane_squares + t * W);
  }
  const double n = static_cast<double>(rows), n_before = static_cast<double>(before);
  const int64_t lanes = T == 1 ? count : T * W;
  for (int64_t i = 0; i < lanes; ++i) {
    const double sum = lane_sums[i], square = lane_squares[i] - sum * sum / n;
    const Moments<double> block{n, lane_first[i] + sum / n, square < 0 ? 0 : square};
    const Moments<double> all = combine({n_before, mean[i], m2[i]}, block);
    mean[i] = all.mean;
    m2[i] = all.m2;
  }
}

template <typename scalar_t>
void row_chunk_moments(const Plan& plan, const scalar_t* x, int64_t chunk, int64_t c_begin, int64_t c_end,
                       double* partials) {
  constexpr int T = 4;
  constexpr int64_t W = kLanes<acc_type<scalar_t>>;
  const int64_t begin = chunk * plan.chunk, end = std::min(begin + plan.chunk, plan.N);
  double* mean = partials + chunk * 2 * plan.C;
  double* m2 = mean + plan.C;
  for (int64_t row = begin; row < end; row += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, end - row), before = row - begin;
    int64_t c = c_begin;
    for (; c + T * W <= c_end; c += T * W) {
      add_block_moments<T>(plan, x + row * plan.C + c, rows, before, W, mean + c, m2 + c);
    }
    for (; c < c_end; c += W) {
      add_block_moments<1>(plan, x + row * plan.C + c, rows, before, std::min(W, c_end - c), mean + c, m2 + c);
    }
  }
}

// ---- sums of backward and double backward ----

// Tensors of one shape; null ones count as 0.
template <typename scalar_t>
struct Tensors {
  const scalar_t *gx, *gy, *x;
};

// K = 3: sums of gy, gy * (x - mean) and x - mean. K = 5: the members of BatchNormDoubleBackwardSums, with x -
// mean for xhat. Lanes behind `count` add 0: those of the tensors are 0, and those of mean must be.
template <int K, typename scalar_t>
__attribute__((always_inline)) inline void add_terms(const Tensors<scalar_t>& in, int64_t at, int64_t count,
                                                     const Vec<acc_type<scalar_t>>& mean,
                                                     Vec<acc_type<scalar_t>> (&sums)[K]) {
  using V = Vec<acc_type<scalar_t>>;
  const V x = load_acc(in.x + at, count) - mean;
  const V gy = in.gy == nullptr ? V(0) : load_acc(in.gy + at, count);
  if constexpr (K == 3) {
    sums[0] = sums[0] + gy;
    sums[1] = at::vec::fmadd(gy, x, sums[1]);
    sums[2] = sums[2] + x;
  } else {
    static_assert(K == 5);
    const V gx = in.gx == nullptr ? V(0) : load_acc(in.gx + at, count);
    sums[0] = sums[0] + gx;
    sums[1] = sums[1] + gy;
    sums[2] = at::vec::fmadd(gx, x, sums[2]);
    sums[3] = at::vec::fmadd(gy, x, sums[3]);
    sums[4] = at::vec::fmadd(gx, gy, sums[4]);
  }
}

template <int K, typename scalar_t>
void chunk_sums(const Plan& plan, const Tensors<scalar_t>& in, acc_type<scalar_t> mean, int64_t c, int64_t i,
                double* partials) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  const ChunkOfChannel chunk(plan, i);
  V sums[K];
  for (V& sum : sums) sum = V(0);
  for (int64_t row = 0; row < chunk.rows; ++row) {
    const int64_t begin = ((chunk.n + row) * plan.C + c) * plan.S + chunk.s;
    for_each_vector<acc_t>(0, chunk.length, [&](int64_t j, int64_t count) __attribute__((always_inline)) {
      // Lanes behind `count` hold 0, and must not become 0 - mean.
      const V center = count == kLanes<acc_t> ? V(mean) : V::set(V(0), V(mean), count);
      add_terms<K>(in, begin + j, count, center, sums);
    });
  }
  for (int k = 0; k < K; ++k) partials[k] = sum_lanes(sums[k]);
}

template <int K, typename scalar_t>
void row_chunk_sums(const Plan& plan, const Tensors<scalar_t>& in, const acc_type<scalar_t>* mean,
                    int64_t chunk, int64_t c_begin, int64_t c_end, double* partials) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  constexpr int64_t W = kLanes<acc_t>;
  const int64_t begin = chunk * plan.chunk, end = std::min(begin + plan.chunk, plan.N);
  double* total = partials + chunk * K * plan.C;
  for (int k = 0; k < K; ++k) std::fill(total + k * plan.C + c_begin, total + k * plan.C + c_end, 0.0);
  for (int64_t block = begin; block < end; block += kBlockRows) {
    const int64_t block_end = std::min(block + kBlockRows, end);
    for_each_vector<acc_t>(c_begin, c_end, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      const V center = load_acc(mean + c, count);
      V sums[K];
      for (V& sum : sums) sum = V(0);
      for (int64_t row = block; row < block_end; ++row) add_terms<K>(in, row * plan.C + c, count, center, sums);
      for (int k = 0; k < K; ++k) {
        alignas(64) acc_t lanes[W];
        sums[k].store(lanes);
        for (int64_t i = 0; i < count; ++i) total[k * plan.C + c + i] += static_cast<double>(lanes[i]);
      }
    });
  }
}

// Partial sum k of one channel.
struct Partials {
  const double* begin;
  int64_t stride, chunks;

  Partials(const Plan& plan, const double* partials, int64_t sums, int64_t c, int64_t k)
      : begin(plan.rows ? partials + k * plan.C + c : partials + c * plan.chunks * sums + k),
        stride(plan.rows ? sums * plan.C : sums),
        chunks(plan.chunks) {}

  double operator[](int64_t i) const { return begin[i * stride]; }

  double sum() const {
    double total = 0;
    for (int64_t i = 0; i < chunks; ++i) total += (*this)[i];
    return total;
  }
};

}  // namespace fastnn::FASTNN_BACKEND::bn
