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

// v in the first `count` lanes, 0 behind them.
template <typename acc_t>
inline Vec<acc_t> first_lanes(const Vec<acc_t>& v, int64_t count) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(acc_t) == 4) {
    return _mm512_maskz_mov_ps(static_cast<__mmask16>((1u << count) - 1), v);
  } else {
    return _mm512_maskz_mov_pd(static_cast<__mmask8>((1u << count) - 1), v);
  }
#else
  alignas(64) acc_t lanes[kLanes<acc_t>];
  v.store(lanes);
  std::fill(lanes + count, lanes + kLanes<acc_t>, acc_t(0));
  return Vec<acc_t>::loadu(lanes);
#endif
}

// Independent sums, to hide the latency of an addition.
inline constexpr int kWays = 4;

// f(way, i, count) for the vectors of [0, length), in turn to kWays sums. The ways are constants where f is
// inlined, so that the sums stay in registers. Only the last vector may be partial.
template <typename acc_t, typename F>
inline __attribute__((always_inline)) void for_each_vector_in_ways(int64_t length, const F& f) {
  constexpr int64_t W = kLanes<acc_t>;
  static_assert(kWays == 4);
  int64_t i = 0;
  for (; i + kWays * W <= length; i += kWays * W) {
    f(0, i, W);
    f(1, i + W, W);
    f(2, i + 2 * W, W);
    f(3, i + 3 * W, W);
  }
  if (i + W <= length) f(0, i, W), i += W;
  if (i + W <= length) f(1, i, W), i += W;
  if (i + W <= length) f(2, i, W), i += W;
  if (i < length) f(3, i, length - i);
}

template <typename acc_t>
inline acc_t sum_ways(const Vec<acc_t> (&sums)[kWays]) {
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// Moments of `rows` rows of `length` values, `pitch` apart: few enough to stay in L1 from one pass to the next.
template <typename scalar_t>
Moments<double> moments(const scalar_t* values, int64_t rows, int64_t length, int64_t pitch) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  constexpr int64_t W = kLanes<acc_t>;
  const double n = static_cast<double>(rows * length);
  const int64_t rest = length % W;

  // An infinity to subtract would turn into NaN what should remain an infinite mean.
  const acc_t head = static_cast<acc_t>(values[0]);
  const acc_t first = std::isfinite(head) ? head : acc_t(0);
  V sums[kWays] = {V(0), V(0), V(0), V(0)};
  {
    const V center(first), last_center = first_lanes<acc_t>(center, rest);
    for (int64_t row = 0; row < rows; ++row) {
      const scalar_t* x = values + row * pitch;
      for_each_vector_in_ways<acc_t>(
          length, [&](int way, int64_t i, int64_t count) __attribute__((always_inline)) {
            sums[way] = sums[way] + (load_acc(x + i, count) - (count == W ? center : last_center));
          });
    }
  }
  const double mean = static_cast<double>(first) + static_cast<double>(sum_ways<acc_t>(sums)) / n;
  if (!std::isfinite(mean)) return {n, mean, mean - mean};

  const V center(static_cast<acc_t>(mean)), last_center = first_lanes<acc_t>(center, rest);
  V squares[kWays] = {V(0), V(0), V(0), V(0)};
  for (V& sum : sums) sum = V(0);
  for (int64_t row = 0; row < rows; ++row) {
    const scalar_t* x = values + row * pitch;
    for_each_vector_in_ways<acc_t>(length,
                                   [&](int way, int64_t i, int64_t count) __attribute__((always_inline)) {
                                     const V d = load_acc(x + i, count) - (count == W ? center : last_center);
                                     sums[way] = sums[way] + d;
                                     squares[way] = at::vec::fmadd(d, d, squares[way]);
                                   });
  }
  const double shift = static_cast<double>(sum_ways<acc_t>(sums));
  const double m2 = static_cast<double>(sum_ways<acc_t>(squares)) - shift * shift / n;
  return {n, static_cast<double>(static_cast<acc_t>(mean)) + shift / n, m2 < 0 ? 0 : m2};
}

template <typename scalar_t>
Moments<double> chunk_moments(const Plan& plan, const scalar_t* x, int64_t c, int64_t i) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t W = kLanes<acc_t>;
  const ChunkOfChannel chunk(plan, i);
  const scalar_t* begin = x + (chunk.n * plan.C + c) * plan.S + chunk.s;
  if (chunk.length >= W) return moments(begin, chunk.rows, chunk.length, plan.C * plan.S);
  // Rows of less than a vector are packed without gaps. Each row's store runs over by up to W - 1.
  alignas(64) acc_t packed[kChunkBytes / sizeof(acc_t) + W];
  for (int64_t row = 0; row < chunk.rows; ++row) {
    load_acc(begin + row * plan.C * plan.S, chunk.length).store(packed + row * chunk.length);
  }
  return moments(static_cast<const acc_t*>(packed), 1, chunk.count(), 0);
}

// Rows whose values of a vector's channels are added between loading and storing its sums, which lie in L1.
// Memory is read row by row, a walk that the processor's prefetching follows, unlike one down a few columns,
// whose sums could stay in registers. What lies in the cache needs no prefetching, and is read several rows at
// once, which spares most of those loads and stores. The order of additions is the same.
inline constexpr int kRowsAtOnce = 4;
inline constexpr int64_t kCachedBytes = 2 * 1024 * 1024;

// Rows of a block of `rows` that are read kRowsAtOnce at once.
template <typename scalar_t>
inline int64_t grouped_rows(const Plan& plan, int64_t rows) {
  const bool cached = plan.values() * plan.C * static_cast<int64_t>(sizeof(scalar_t)) <= kCachedBytes;
  return cached ? rows / kRowsAtOnce * kRowsAtOnce : 0;
}

// Sums over kBlockRows rows of up to kChannelBlock channels.
template <typename acc_t>
struct BlockMoments {
  alignas(64) acc_t first[kChannelBlock + kLanes<acc_t>];
  alignas(64) acc_t sums[kChannelBlock + kLanes<acc_t>];
  alignas(64) acc_t squares[kChannelBlock + kLanes<acc_t>];

  template <int kRows, typename scalar_t>
  void add(const scalar_t* x, int64_t pitch, int64_t channels) {
    using V = Vec<acc_t>;
    for_each_vector<acc_t>(0, channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      const V center = V::loadu(first + c);
      V sum = V::loadu(sums + c), square = V::loadu(squares + c);
#pragma GCC unroll 4
      for (int row = 0; row < kRows; ++row) {
        const V d = load_acc(x + row * pitch + c, count) - center;
        sum = sum + d;
        square = at::vec::fmadd(d, d, square);
      }
      sum.store(sums + c);
      square.store(squares + c);
    });
  }
};

template <typename scalar_t>
void row_chunk_moments(const Plan& plan, const scalar_t* x, int64_t chunk, int64_t c_begin, int64_t c_end,
                       double* partials) {
  using acc_t = acc_type<scalar_t>;
  const int64_t begin = chunk * plan.chunk, end = std::min(begin + plan.chunk, plan.N);
  const int64_t channels = c_end - c_begin;
  double* mean = partials + chunk * 2 * plan.C + c_begin;
  double* m2 = mean + plan.C;
  BlockMoments<acc_t> block;
  for (int64_t row = begin; row < end; row += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, end - row), before = row - begin;
    const scalar_t* from = x + row * plan.C + c_begin;
    for_each_vector<acc_t>(0, channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      // As in moments(), an infinity is not subtracted: it would make the infinite mean NaN.
      const Vec<acc_t> head = load_acc(from + c, count), zero = head - head;
      Vec<acc_t>::blendv(head, Vec<acc_t>(0), zero != zero).store(block.first + c);
      Vec<acc_t>(0).store(block.sums + c);
      Vec<acc_t>(0).store(block.squares + c);
    });
    int64_t r = 0;
    for (; r < grouped_rows<scalar_t>(plan, rows); r += kRowsAtOnce) {
      block.template add<kRowsAtOnce>(from + r * plan.C, plan.C, channels);
    }
    for (; r < rows; ++r) block.template add<1>(from + r * plan.C, plan.C, channels);

    // combine() of each channel with what stands before, whose share is the same in all of them: a loop of few
    // operations that the compiler turns into vectors.
    const double n = static_cast<double>(rows), n_before = static_cast<double>(before);
    const double share = n / (n + n_before), weight = n_before * share;
    for (int64_t c = 0; c < channels; ++c) {
      const double shift = block.sums[c] / n, square = block.squares[c] - block.sums[c] * shift;
      const double block_mean = block.first[c] + shift, block_m2 = square < 0 ? 0 : square;
      const double delta = block_mean - mean[c];
      const double moved =
          delta - delta == 0 ? mean[c] + delta * share : mean[c] * (1 - share) + block_mean * share;
      mean[c] = before == 0 ? block_mean : moved;
      m2[c] = before == 0 ? block_m2 : m2[c] + block_m2 + delta * delta * weight;
    }
  }
}

// ---- sums of backward and double backward ----

// Tensors of one shape; null ones count as 0.
template <typename scalar_t>
struct Tensors {
  const scalar_t *gx, *gy, *x;
};

// K = 3: sums of gy, gy * (x - mean) and x - mean; no tensor of these is null. K = 5: the members of
// BatchNormDoubleBackwardSums, with x - mean for xhat. Lanes behind `count` add 0: those of the tensors are 0,
// and those of mean must be.
template <int K, typename scalar_t>
__attribute__((always_inline)) inline void add_terms(const Tensors<scalar_t>& in, int64_t at, int64_t count,
                                                     const Vec<acc_type<scalar_t>>& mean,
                                                     Vec<acc_type<scalar_t>> (&sums)[K]) {
  using V = Vec<acc_type<scalar_t>>;
  const V x = load_acc(in.x + at, count) - mean;
  if constexpr (K == 3) {
    const V gy = load_acc(in.gy + at, count);
    sums[0] = sums[0] + gy;
    sums[1] = at::vec::fmadd(gy, x, sums[1]);
    sums[2] = sums[2] + x;
  } else {
    static_assert(K == 5);
    const V gy = in.gy == nullptr ? V(0) : load_acc(in.gy + at, count);
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
  constexpr int64_t W = kLanes<acc_t>;
  const ChunkOfChannel chunk(plan, i);
  // Lanes behind the last value hold 0, and must not become 0 - mean.
  const V center(mean), last_center = first_lanes<acc_t>(center, chunk.length % W);
  V sums[kWays][K];
  for (auto& way : sums) {
    for (V& sum : way) sum = V(0);
  }
  for (int64_t row = 0; row < chunk.rows; ++row) {
    const int64_t begin = ((chunk.n + row) * plan.C + c) * plan.S + chunk.s;
    for_each_vector_in_ways<acc_t>(
        chunk.length, [&](int way, int64_t j, int64_t count) __attribute__((always_inline)) {
          add_terms<K>(in, begin + j, count, count == W ? center : last_center, sums[way]);
        });
  }
  for (int k = 0; k < K; ++k) {
    const V ways[kWays] = {sums[0][k], sums[1][k], sums[2][k], sums[3][k]};
    partials[k] = static_cast<double>(sum_ways<acc_t>(ways));
  }
}

// sums[k][c] of kRows rows from element `at`, which is channel 0 of mean and sums.
template <int K, int kRows, typename scalar_t, typename Sums>
inline void add_rows(const Plan& plan, const Tensors<scalar_t>& in, const acc_type<scalar_t>* mean, int64_t at,
                     int64_t channels, Sums& sums) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  for_each_vector<acc_t>(0, channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    const V center = load_acc(mean + c, count);
    V total[K];
#pragma GCC unroll 5
    for (int k = 0; k < K; ++k) total[k] = V::loadu(sums[k] + c);
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) add_terms<K>(in, at + row * plan.C + c, count, center, total);
#pragma GCC unroll 5
    for (int k = 0; k < K; ++k) total[k].store(sums[k] + c);
  });
}

template <int K, typename scalar_t>
void row_chunk_sums(const Plan& plan, const Tensors<scalar_t>& in, const acc_type<scalar_t>* mean,
                    int64_t chunk, int64_t c_begin, int64_t c_end, double* partials) {
  using acc_t = acc_type<scalar_t>;
  const int64_t begin = chunk * plan.chunk, end = std::min(begin + plan.chunk, plan.N);
  const int64_t channels = c_end - c_begin;
  double* total = partials + chunk * K * plan.C + c_begin;
  for (int k = 0; k < K; ++k) std::fill(total + k * plan.C, total + k * plan.C + channels, 0.0);
  alignas(64) acc_t sums[K][kChannelBlock + kLanes<acc_t>];
  for (int64_t row = begin; row < end; row += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, end - row);
    for (int k = 0; k < K; ++k) std::fill(sums[k], sums[k] + channels + kLanes<acc_t>, acc_t(0));
    int64_t r = 0;
    for (; r < grouped_rows<scalar_t>(plan, rows); r += kRowsAtOnce) {
      add_rows<K, kRowsAtOnce>(plan, in, mean + c_begin, (row + r) * plan.C + c_begin, channels, sums);
    }
    for (; r < rows; ++r)
      add_rows<K, 1>(plan, in, mean + c_begin, (row + r) * plan.C + c_begin, channels, sums);
    for (int k = 0; k < K; ++k) {
      for (int64_t c = 0; c < channels; ++c) total[k * plan.C + c] += static_cast<double>(sums[k][c]);
    }
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
