// Sums per channel that batch normalisation needs: statistics of x, and the sums of backward and double
// backward. Each function sums one chunk (batch_norm_plan.h) and leaves float64 partial sums. batch_norm.cpp
// states the method and its error.
//
// What is summed is one of the Terms below: kSums numbers of each value. Terms are walked along planes, where
// a vector holds values of one channel (broadcast() gives what belongs to it), or along rows, where a lane is a
// channel (load()).
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "../ops/batch_norm_math.h"
#include "batch_norm_activation.h"
#include "batch_norm_plan.h"
#include "cache_hints.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND::bn {

// ---- terms ----

// sum = term, or sum += term.
template <bool kFirst, typename V>
__attribute__((always_inline)) inline void add_to(V& sum, const V& term) {
  sum = kFirst ? term : sum + term;
}

template <bool kFirst, typename V>
__attribute__((always_inline)) inline void add_product_to(V& sum, const V& a, const V& b) {
  sum = kFirst ? a * b : at::vec::fmadd(a, b, sum);
}

// What a vector of one channel, or of several, is seen from. Lanes behind the last value hold 0, and must not
// become 0 - centre.
template <typename acc_t>
struct Centre {
  Vec<acc_t> centre;
  Centre first_lanes(int64_t count) const { return {FASTNN_BACKEND::first_lanes<acc_t>(centre, count)}; }
};

// x - centre and, with kSums = 2, its square.
template <typename scalar_t, int kSumsOfDeviations>
struct Deviations {
  using scalar = scalar_t;
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  static constexpr int kSums = kSumsOfDeviations;

  const scalar_t* x;
  const acc_t* centre;  // of channels from c0 on
  int64_t c0 = 0;

  Centre<acc_t> broadcast(int64_t c) const { return {V(centre[c - c0])}; }
  Centre<acc_t> load(int64_t c, int64_t count) const { return {load_acc(centre + c, count)}; }

  template <bool kFirst>
  __attribute__((always_inline)) void add(V* sums, int64_t at, int64_t count, const Centre<acc_t>& k) const {
    const V d = load_acc(x + at, count) - k.centre;
    add_to<kFirst>(sums[0], d);
    if constexpr (kSums == 2) add_product_to<kFirst>(sums[1], d, d);
  }
};

template <typename T>
T* moved(T* pointer, int64_t by) {
  return pointer == nullptr ? nullptr : pointer + by;
}

// g, g * (x - mean) and x - mean, where g = gy * y' of an activation (batch_norm_activation.h); and g itself,
// where a residual's gradient is wanted.
template <typename scalar_t, typename Act>
struct GradientTerms {
  using scalar = scalar_t;
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  static constexpr int kSums = 3;

  const scalar_t *gy, *x;
  const acc_t* mean;  // [C]
  Act activation;
  scalar_t* grad_residual;  // null when not wanted

  struct Channel {
    V centre;
    typename Act::Channel act;
    Channel first_lanes(int64_t count) const {
      return {FASTNN_BACKEND::first_lanes<acc_t>(centre, count), act};
    }
  };

  GradientTerms from(int64_t c) const {
    return {gy + c, x + c, mean + c, activation.from(c), moved(grad_residual, c)};
  }
  Channel broadcast(int64_t c) const {
    const auto load = [c](const acc_t* values) { return V(values[c]); };
    return {load(mean), activation.channel(load)};
  }
  Channel load(int64_t c, int64_t count) const {
    const auto load = [=](const acc_t* values) { return load_acc(values + c, count); };
    return {load(mean), activation.channel(load)};
  }

  template <bool kFirst>
  __attribute__((always_inline)) void add(V* sums, int64_t at, int64_t count, const Channel& k) const {
    const V d = load_acc(x + at, count) - k.centre;
    const V g = activation.gradient(load_acc(gy + at, count), d, at, count, k.act);
    if (grad_residual != nullptr) store_acc(grad_residual + at, g, count);
    add_to<kFirst>(sums[0], g);
    add_product_to<kFirst>(sums[1], g, d);
    add_to<kFirst>(sums[2], d);
  }
};

// g and g * (x - mean), and on the way grad_x = g * scale: evaluation's backward, which needs no sum for it.
template <typename scalar_t, bool kAroundCache, typename Act>
struct EvaluationGradientTerms {
  using scalar = scalar_t;
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  static constexpr int kSums = 2;

  const scalar_t *gy, *x;
  const acc_t *mean, *scale;  // [C]
  scalar_t* grad_x;           // null when not wanted
  Act activation;
  scalar_t* grad_residual;  // null when not wanted

  struct Channel {
    V centre, scale;
    typename Act::Channel act;
    Channel first_lanes(int64_t count) const {
      return {FASTNN_BACKEND::first_lanes<acc_t>(centre, count), scale, act};
    }
  };

  EvaluationGradientTerms from(int64_t c) const {
    return {gy + c, x + c, mean + c, scale + c, moved(grad_x, c), activation.from(c), moved(grad_residual, c)};
  }
  Channel broadcast(int64_t c) const {
    const auto load = [c](const acc_t* values) { return V(values[c]); };
    return {load(mean), load(scale), activation.channel(load)};
  }
  Channel load(int64_t c, int64_t count) const {
    const auto load = [=](const acc_t* values) { return load_acc(values + c, count); };
    return {load(mean), load(scale), activation.channel(load)};
  }

  template <bool kFirst>
  __attribute__((always_inline)) void add(V* sums, int64_t at, int64_t count, const Channel& k) const {
    const V d = load_acc(x + at, count) - k.centre;
    const V g = activation.gradient(load_acc(gy + at, count), d, at, count, k.act);
    if (grad_residual != nullptr) store_acc(grad_residual + at, g, count);
    add_to<kFirst>(sums[0], g);
    add_product_to<kFirst>(sums[1], g, d);
    if (grad_x == nullptr) return;
    if constexpr (kAroundCache) {
      if (count == kLanes<acc_t>) return store_stream(grad_x + at, g * k.scale);
    }
    store_acc(grad_x + at, g * k.scale, count);
  }
};

// The members of BatchNormDoubleBackwardSums, with x - mean for xhat. Null tensors count as 0.
template <typename scalar_t>
struct DoubleBackwardTerms {
  using scalar = scalar_t;
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  static constexpr int kSums = 5;

  const scalar_t *gx, *gy, *x;
  const acc_t* mean;  // [C]

  DoubleBackwardTerms from(int64_t c) const { return {moved(gx, c), moved(gy, c), x + c, mean + c}; }
  Centre<acc_t> broadcast(int64_t c) const { return {V(mean[c])}; }
  Centre<acc_t> load(int64_t c, int64_t count) const { return {load_acc(mean + c, count)}; }

  template <bool kFirst>
  __attribute__((always_inline)) void add(V* sums, int64_t at, int64_t count, const Centre<acc_t>& k) const {
    const V d = load_acc(x + at, count) - k.centre;
    const V g = gy == nullptr ? V(0) : load_acc(gy + at, count);
    const V h = gx == nullptr ? V(0) : load_acc(gx + at, count);
    add_to<kFirst>(sums[0], h);
    add_to<kFirst>(sums[1], g);
    add_product_to<kFirst>(sums[2], h, d);
    add_product_to<kFirst>(sums[3], g, d);
    add_product_to<kFirst>(sums[4], h, g);
  }
};

// ---- along planes ----

// Adds the values of kStreams runs of one channel, `pitch` apart. Each run has sums of its own on the way,
// which also hides the latency of an addition.
template <typename Terms, typename Channel, typename V>
__attribute__((always_inline)) inline void sum_runs(const Terms terms, const Channel k, int64_t at,
                                                    int64_t length, int64_t pitch, V (&sums)[Terms::kSums]) {
  constexpr int64_t W = V::size();
  V of_run[kStreams][Terms::kSums];
  int64_t j = std::min(W, length);
  if (j == W) {
#pragma GCC unroll 4
    for (int run = 0; run < kStreams; ++run) terms.template add<true>(of_run[run], at + run * pitch, W, k);
    for (; j + W <= length; j += W) {
#pragma GCC unroll 4
      for (int run = 0; run < kStreams; ++run)
        terms.template add<false>(of_run[run], at + run * pitch + j, W, k);
    }
    if (j < length) {
      const Channel last = k.first_lanes(length - j);
#pragma GCC unroll 4
      for (int run = 0; run < kStreams; ++run) {
        terms.template add<false>(of_run[run], at + run * pitch + j, length - j, last);
      }
    }
  } else {
    const Channel last = k.first_lanes(length);
#pragma GCC unroll 4
    for (int run = 0; run < kStreams; ++run)
      terms.template add<true>(of_run[run], at + run * pitch, length, last);
  }
  static_assert(kStreams == 4);
#pragma GCC unroll 5
  for (int s = 0; s < Terms::kSums; ++s) {
    sums[s] = sums[s] + ((of_run[0][s] + of_run[1][s]) + (of_run[2][s] + of_run[3][s]));
  }
}

// Adds the values [at, end) of one channel.
template <typename Terms, typename Channel, typename V>
__attribute__((always_inline)) inline void sum_run(const Terms& terms, const Channel& k, int64_t at,
                                                   int64_t end, V (&sums)[Terms::kSums]) {
  constexpr int64_t W = V::size();
  for_each_part<W, sizeof(typename Terms::scalar)>(
      at, end, [&](int64_t i, int64_t length, int64_t pitch) { sum_runs(terms, k, i, length, pitch, sums); },
      [&](int64_t i, int64_t last) {
        for (; i + W <= last; i += W) terms.template add<false>(sums, i, W, k);
        if (i < last) terms.template add<false>(sums, i, last - i, k.first_lanes(last - i));
      });
}

// f(channel, its sums) for channels [c_begin, c_end), a group, in chunk i.
template <typename Terms, typename F>
inline void sum_planes(const Plan& plan, const Terms& terms, int64_t i, int64_t c_begin, int64_t c_end,
                       const F& f) {
  using V = typename Terms::V;
  const ChunkOfChannel chunk(plan, i);
  if (plan.planes == 1) {
    // Apart: vectors begin as zeros, and those of kMostPlanes take longer than a small plane.
    V sums[Terms::kSums];
    for (int64_t n = chunk.n; n < chunk.n + chunk.rows; ++n) {
      const int64_t at = (n * plan.C + c_begin) * plan.S + chunk.s;
      sum_run(terms, terms.broadcast(c_begin), at, at + chunk.length, sums);
    }
    return f(c_begin, sums);
  }
  V sums[kMostPlanes][Terms::kSums];
  for (int64_t c = 0; c < c_end - c_begin; ++c) {
    for (V& sum : sums[c]) sum = V(0);
  }
  const int64_t pitch = plan.C * plan.S, grouped = chunk.n + plan.grouped(chunk.rows);
  int64_t n = chunk.n;
  for (; n < grouped; n += kStreams) {
    for (int64_t c = c_begin; c < c_end; ++c) {
      sum_runs(terms, terms.broadcast(c), (n * plan.C + c) * plan.S, plan.S, pitch, sums[c - c_begin]);
    }
  }
  for (; n < chunk.n + chunk.rows; ++n) {
    for (int64_t c = c_begin; c < c_end; ++c) {
      const int64_t at = (n * plan.C + c) * plan.S + chunk.s;
      sum_run(terms, terms.broadcast(c), at, at + chunk.length, sums[c - c_begin]);
    }
  }
  for (int64_t c = c_begin; c < c_end; ++c) f(c, sums[c - c_begin]);
}

// partial(i, k)[c] = sum k of channel c, of [c_begin, c_end), in chunk i.
template <typename Terms, typename Work>
void plane_sums(const Work& work, const Terms& terms, int64_t i, int64_t c_begin, int64_t c_end) {
  using V = typename Terms::V;
  sum_planes(work.plan, terms, i, c_begin, c_end, [&](int64_t c, const V(&sums)[Terms::kSums]) {
    for (int s = 0; s < Terms::kSums; ++s) {
      work.partial(i, s)[c] = static_cast<double>(sum_lanes<typename Terms::acc_t>(sums[s]));
    }
  });
}

// What means are seen from: the channel's first value, 0 if that is not finite. Near the mean as it is, a
// difference from it is exact or nearly so, where the mean itself would be rounded to its own unit.
template <typename scalar_t>
double origin(const Plan& plan, const scalar_t* x, int64_t c) {
  const auto first = static_cast<double>(static_cast<acc_type<scalar_t>>(x[plan.first(c)]));
  return first - first == 0 ? first : 0;
}

// partial(i, 0)[c] = mean - origin and partial(i, 1)[c] = sum of (x - mean)^2, of channels [c_begin, c_end) in
// chunk i, whose values stay in L1 or L2 from the first pass to the second.
template <typename scalar_t, typename Work>
void plane_moments(const Work& work, const scalar_t* x, int64_t i, int64_t c_begin, int64_t c_end) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  const Plan& plan = work.plan;
  const ChunkOfChannel chunk(plan, i);
  const double n = static_cast<double>(chunk.count());
  acc_t centre[kMostPlanes];
  for (int64_t c = c_begin; c < c_end; ++c) {
    // An infinity to subtract would turn into NaN what should remain an infinite mean.
    const acc_t head = static_cast<acc_t>(x[(chunk.n * plan.C + c) * plan.S + chunk.s]);
    centre[c - c_begin] = head - head == 0 ? head : acc_t(0);
  }
  double* mean = work.partial(i, 0);
  double* m2 = work.partial(i, 1);
  const Deviations<scalar_t, 1> first{x, centre, c_begin};
  sum_planes(plan, first, i, c_begin, c_end, [&](int64_t c, const V(&sums)[1]) {
    acc_t& seen_from = centre[c - c_begin];
    const double shift = static_cast<double>(sum_lanes<acc_t>(sums[0])) / n;
    const acc_t rounded = static_cast<acc_t>(static_cast<double>(seen_from) + shift);
    // Without a finite mean there is nothing to see the squares from, and they are NaN whatever is done.
    if (rounded - rounded == 0) seen_from = rounded;
  });
  const Deviations<scalar_t, 2> second{x, centre, c_begin};
  sum_planes(plan, second, i, c_begin, c_end, [&](int64_t c, const V(&sums)[2]) {
    const double shift = static_cast<double>(sum_lanes<acc_t>(sums[0]));
    const double squares = static_cast<double>(sum_lanes<acc_t>(sums[1])) - shift * shift / n;
    mean[c] = static_cast<double>(centre[c - c_begin]) - origin(plan, x, c) + shift / n;
    m2[c] = squares < 0 ? 0 : squares;
  });
}

// ---- along rows ----

// The sums of up to kBlockRows rows, by channel.
template <typename acc_t, int K>
struct BlockSums {
  alignas(64) acc_t sums[K][kChannelBlock + kLanes<acc_t>];

  void clear(int64_t channels) {
    for (auto& sum : sums) std::fill(sum, sum + channels + kLanes<acc_t>, acc_t(0));
  }

  // Adds kRows rows, `pitch` elements apart, from element `at`, which is channel 0 of terms.
  template <int kRows, typename Terms>
  void add(const Terms terms, int64_t at, int64_t pitch, int64_t channels) {
    // Captured as values: their pointers would be read again after every store.
    for_each_vector<acc_t>(0, channels, [=, this](int64_t c, int64_t count) __attribute__((always_inline)) {
      const auto k = terms.load(c, count);
      V total[K];
      terms.template add<true>(total, at + c, count, k);
#pragma GCC unroll 4
      for (int row = 1; row < kRows; ++row) terms.template add<false>(total, at + row * pitch + c, count, k);
      add_to_sums(c, total);
    });
  }

 private:
  using V = Vec<acc_t>;

  __attribute__((always_inline)) void add_to_sums(int64_t c, const V (&total)[K]) {
#pragma GCC unroll 5
    for (int s = 0; s < K; ++s) (V::loadu(sums[s] + c) + total[s]).store(sums[s] + c);
  }
};

// Adds rows [begin, end) of terms, whose channel 0 is the first of `channels`, to block. After about kBlockRows
// rows comes flush(rows), which takes the sums. kStreams rows are added at once, each from another part of the
// chunk.
template <typename Terms, typename Block, typename Flush>
inline void sum_rows(const Plan& plan, const Terms& terms, int64_t begin, int64_t end, int64_t channels,
                     Block& block, const Flush& flush) {
  constexpr int64_t kSize = sizeof(typename Terms::scalar);
  const int64_t part = spread((end - begin) / kStreams, plan.C * kSize);
  int64_t rows = 0;
  const auto added = [&](int64_t count) {
    rows += count;
    if (rows < kBlockRows) return;
    flush(rows);
    block.clear(channels);
    rows = 0;
  };
  block.clear(channels);
  for (int64_t row = begin; row < begin + part; ++row) {
    block.template add<kStreams>(terms, row * plan.C, part * plan.C, channels);
    added(kStreams);
  }
  int64_t row = begin + kStreams * part;
  for (; row + kStreams <= end; row += kStreams) {
    block.template add<kStreams>(terms, row * plan.C, plan.C, channels);
    added(kStreams);
  }
  for (; row < end; ++row) {
    block.template add<1>(terms, row * plan.C, 0, channels);
    added(1);
  }
  if (rows > 0) flush(rows);
}

// partial(i, k)[c] = sum k of channel c, of [c_begin, c_end), in chunk i.
template <typename Terms, typename Work>
void row_sums(const Work& work, const Terms& terms, int64_t i, int64_t c_begin, int64_t c_end) {
  using acc_t = typename Terms::acc_t;
  const ChunkOfChannel chunk(work.plan, i);
  const int64_t channels = c_end - c_begin;
  for (int s = 0; s < Terms::kSums; ++s) {
    std::fill(work.partial(i, s) + c_begin, work.partial(i, s) + c_end, 0.0);
  }
  BlockSums<acc_t, Terms::kSums> block;
  sum_rows(work.plan, terms.from(c_begin), chunk.n, chunk.n + chunk.rows, channels, block, [&](int64_t) {
    for (int s = 0; s < Terms::kSums; ++s) {
      double* total = work.partial(i, s) + c_begin;
      for (int64_t c = 0; c < channels; ++c) total[c] += static_cast<double>(block.sums[s][c]);
    }
  });
}

// partial(i, 0)[c] = mean - origin and partial(i, 1)[c] = sum of (x - mean)^2, of channels [c_begin, c_end) in
// chunk i: one pass, each block's sums about the mean of those before it, the first block's about its first
// row.
template <typename scalar_t, typename Work>
void row_moments(const Work& work, const scalar_t* x, int64_t i, int64_t c_begin, int64_t c_end) {
  using acc_t = acc_type<scalar_t>;
  const Plan& plan = work.plan;
  const ChunkOfChannel chunk(plan, i);
  const int64_t channels = c_end - c_begin;
  double* mean = work.partial(i, 0) + c_begin;
  double* m2 = work.partial(i, 1) + c_begin;
  alignas(64) acc_t from[kChannelBlock];  // origins
  alignas(64) acc_t centre[kChannelBlock];
  const auto finite = [&](const scalar_t* row, acc_t* to) {
    for (int64_t c = 0; c < channels; ++c) {
      const acc_t value = static_cast<acc_t>(row[c]);
      // An infinity to subtract would turn into NaN what should remain an infinite mean.
      to[c] = value - value == 0 ? value : acc_t(0);
    }
  };
  finite(x + c_begin, from);  // origin(), of each
  finite(x + chunk.n * plan.C + c_begin, centre);
  std::fill(mean, mean + channels, 0.0);
  std::fill(m2, m2 + channels, 0.0);
  BlockSums<acc_t, 2> block;
  double before = 0;
  const Deviations<scalar_t, 2> terms{x + c_begin, centre};
  sum_rows(plan, terms, chunk.n, chunk.n + chunk.rows, channels, block, [&](int64_t rows) {
    // combine() of each channel with what stands before, whose share is the same in all of them: a loop of few
    // operations that the compiler turns into vectors.
    const double n = static_cast<double>(rows), scale = 1 / n;
    const double share = n / (before + n), weight = before * share;
    for (int64_t c = 0; c < channels; ++c) {
      const double shift = static_cast<double>(block.sums[0][c]) * scale;
      const double squares =
          static_cast<double>(block.sums[1][c]) - static_cast<double>(block.sums[0][c]) * shift;
      const double block_mean = static_cast<double>(centre[c]) - static_cast<double>(from[c]) + shift;
      const double delta = block_mean - mean[c];
      mean[c] = combined_mean(mean[c], block_mean, share);
      m2[c] = m2[c] + (squares < 0 ? 0 : squares) + delta * delta * weight;
      const acc_t rounded = static_cast<acc_t>(static_cast<double>(from[c]) + mean[c]);
      centre[c] = rounded - rounded == 0 ? rounded : from[c];
    }
    before += n;
  });
}

}  // namespace fastnn::FASTNN_BACKEND::bn
