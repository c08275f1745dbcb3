// The last pass of batch normalisation: every output is an affine function of the values at its place, with
// coefficients of its channel.
#pragma once

#include <algorithm>
#include <cstdint>

#include "batch_norm_activation.h"
#include "batch_norm_plan.h"
#include "cache_hints.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND::bn {

// Bytes of an output beyond which it is stored around the cache: half of a typical L3, of which nothing would
// be left for whoever reads the output from its beginning. A line that is not read before it is written makes
// the last pass 1.4 times as fast.
inline constexpr int64_t kAroundCacheBytes = 16 * 1024 * 1024;
// Bytes of the rows that are finished at a time, from the last to the first: what the sums read last is what
// the cache still holds.
inline constexpr int64_t kSegmentBytes = 256 * 1024;

// The terms of an Affine, known when compiled: a test a vector would cost more than its arithmetic.
enum Terms : unsigned {
  kGx = 1,         // gx * k_gx
  kGy = 2,         // gy * k_gy
  kUnitGy = 4,     // gy
  kX = 8,          // (x - mean) * k_x
  kOne = 16,       // k_one
  kOut = 32,       // the sum of the others is multiplied by k_out
  kOptional = 64,  // terms whose tensor or coefficient is null are left out: tested for each vector
  kCentred = 128,  // no term: the activation wants x - mean
};

// out = (k_one + gx * k_gx + gy * k_gy + (x - mean) * k_x) * k_out, coefficients per channel. An activation
// takes its part in kUnitGy and after the last of these (batch_norm_activation.h).
template <typename scalar_t, unsigned kTerms, typename Act = NoActivation<scalar_t>>
struct Affine {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;

  const scalar_t *gx, *gy, *x;
  scalar_t* out;                                          // null: there is nothing to do
  const acc_t *k_gx, *k_gy, *mean, *k_x, *k_one, *k_out;  // [C]
  Act activation{};

  // kStreams runs of `length` values of channel c, `pitch` apart.
  template <bool kAroundCache>
  void runs(int64_t c, int64_t at, int64_t length, int64_t pitch) const {
    put_runs<kAroundCache>(of_channel(c), at, length, pitch);
  }

  // Values [at, end) of channel c.
  template <bool kAroundCache>
  void run(int64_t c, int64_t at, int64_t end) const {
    const Coefficients k = of_channel(c);
    for_each_part<kLanes<acc_t>, sizeof(scalar_t)>(
        at, end, [&](int64_t i, int64_t length, int64_t pitch) { put_runs<kAroundCache>(k, i, length, pitch); },
        [&](int64_t i, int64_t last) {
          for_each_vector<acc_t>(i, last, [&](int64_t j, int64_t count) __attribute__((always_inline)) {
            put<kAroundCache>(j, count, k);
          });
        });
  }

  // The same of a few, where it takes longer to share them out among runs than to walk them.
  template <bool kAroundCache>
  void short_run(int64_t c, int64_t at, int64_t end) const {
    const Affine self = *this;
    const Coefficients k = of_channel(c);
    for_each_vector<acc_t>(at, end, [=](int64_t j, int64_t count) __attribute__((always_inline)) {
      self.template put<kAroundCache>(j, count, k);
    });
  }

  // Rows [begin, end) of C channels.
  template <bool kAroundCache>
  void rows(int64_t C, int64_t begin, int64_t end) const {
    const int64_t bytes = C * static_cast<int64_t>(sizeof(scalar_t));
    const int64_t segment = std::max<int64_t>(1, kSegmentBytes / kStreams / bytes) * kStreams;
    for (int64_t to = end; to > begin;) {
      const int64_t from = std::max(begin, to - segment), part = spread((to - from) / kStreams, bytes);
      const int64_t ahead = staggered<kLanes<acc_t>>(part * bytes, C);
      int64_t row = from;
      for (; row < from + part; ++row) {
        if (ahead > 0) {
          put_staggered<kAroundCache>(C, row, part, ahead);
        } else {
          put_rows<kAroundCache, kStreams>(C, row, part);
        }
      }
      for (row = from + kStreams * part; row + kStreams <= to; row += kStreams) {
        put_rows<kAroundCache, kStreams>(C, row, 1);
      }
      for (; row < to; ++row) put_rows<kAroundCache, 1>(C, row, 0);
      to = from;
    }
  }

 private:
  struct Coefficients {
    V gx, gy, mean, x, one, out;
    typename Act::Channel act;
  };

  template <unsigned kTerm>
  bool has(const void* pointer) const {
    return (kTerms & kTerm) != 0 && ((kTerms & kOptional) == 0 || pointer != nullptr);
  }

  template <typename Load>
  __attribute__((always_inline)) Coefficients coefficients(const Load& load) const {
    Coefficients k;
    if (has<kGx>(gx)) k.gx = load(k_gx);
    if (has<kGy>(gy)) k.gy = load(k_gy);
    if (has<kX | kCentred>(x)) k.mean = load(mean);
    if (has<kX>(x)) k.x = load(k_x);
    if (has<kOne>(k_one)) k.one = load(k_one);
    if (has<kOut>(k_out)) k.out = load(k_out);
    k.act = activation.channel(load);
    return k;
  }

  // gy joins k_one before the rest: in backward they are a gradient and its mean, whose difference is exact
  // when they are close.
  __attribute__((always_inline)) V value(int64_t at, int64_t count, const Coefficients& k) const {
    V sum(0), d(0);
    if (has<kX | kCentred>(x)) d = load_acc(x + at, count) - k.mean;
    if (has<kOne>(k_one)) sum = k.one;
    if (has<kUnitGy>(gy)) sum = sum + activation.gradient(load_acc(gy + at, count), d, at, count, k.act);
    if (has<kGy>(gy)) sum = at::vec::fmadd(load_acc(gy + at, count), k.gy, sum);
    if (has<kX>(x)) sum = at::vec::fmadd(d, k.x, sum);
    if (has<kGx>(gx)) sum = at::vec::fmadd(load_acc(gx + at, count), k.gx, sum);
    if (has<kOut>(k_out)) sum = sum * k.out;
    return activation.activated(sum, at, count);
  }

  template <bool kAroundCache>
  __attribute__((always_inline)) void put(int64_t at, int64_t count, const Coefficients& k) const {
    if (kAroundCache && count == kLanes<acc_t>) {
      store_stream(out + at, value(at, count, k));
    } else {
      store_acc(out + at, value(at, count, k), count);
    }
  }

  Coefficients of_channel(int64_t c) const {
    return coefficients([c](const acc_t* values) { return V(values[c]); });
  }

  template <bool kAroundCache>
  __attribute__((always_inline)) void put_runs(const Coefficients& k, int64_t at, int64_t length,
                                               int64_t pitch) const {
    const Affine self = *this;
    for_each_vector<acc_t>(at, at + length, [=](int64_t i, int64_t count) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int run = 0; run < kStreams; ++run) self.template put<kAroundCache>(i + run * pitch, count, k);
    });
  }

  // kStreams rows, each `ahead` channels before the next.
  template <bool kAroundCache>
  __attribute__((always_inline)) void put_staggered(int64_t C, int64_t row, int64_t pitch,
                                                    int64_t ahead) const {
    for (int64_t i = 0; i < C; i += kLanes<acc_t>) {
#pragma GCC unroll 4
      for (int r = 0; r < kStreams; ++r) {
        const int64_t c = i + r * ahead < C ? i + r * ahead : i + r * ahead - C;
        const Coefficients k = coefficients(
            [c](const acc_t* values) __attribute__((always_inline)) { return V::loadu(values + c); });
        put<kAroundCache>((row + r * pitch) * C + c, kLanes<acc_t>, k);
      }
    }
  }

  template <bool kAroundCache, int kRows>
  __attribute__((always_inline)) void put_rows(int64_t C, int64_t row, int64_t pitch) const {
    // A copy: its pointers would be read again after every store.
    const Affine self = *this;
    for_each_vector<acc_t>(0, C, [=](int64_t c, int64_t count) __attribute__((always_inline)) {
      const Coefficients k = self.coefficients(
          [&](const acc_t* values) __attribute__((always_inline)) { return load_acc(values + c, count); });
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) self.template put<kAroundCache>((row + r * pitch) * C + c, count, k);
    });
  }
};

}  // namespace fastnn::FASTNN_BACKEND::bn
