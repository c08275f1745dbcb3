// Between the sums of normalisation's chunks and the coefficients of its last pass: numbers by channel, in
// float64, a tile of channels at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../ops/batch_norm_math.h"
#include "batch_norm_plan.h"
#include "dispatch.h"

namespace fastnn::FASTNN_BACKEND::bn {

// Channels whose sums become coefficients side by side.
inline constexpr int64_t kTile = 64;
using Tile = double[kTile];

template <typename T>
void load_as(const void* values, int64_t c, int64_t count, double* to) {
  const T* from = static_cast<const T*>(values) + c;
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<acc_type<T>>(from[i]);
}

// to[i] = values[c + i], `missing` where there are none.
inline void load_params(const void* values, DType dtype, int64_t c, int64_t count, double missing, Tile& to) {
  if (values == nullptr) {
    std::fill(to, to + count, missing);
    return;
  }
  dispatch_dtype(dtype, [&](auto type) {
    load_as<typename decltype(type)::type>(values, c, count, to);
    return Status::success();
  });
}

// values[c + i] = from[i].
inline void store_params(void* values, DType dtype, int64_t c, int64_t count, const Tile& from) {
  if (values == nullptr) return;
  dispatch_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    T* to = static_cast<T*>(values) + c;
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(static_cast<acc_type<T>>(from[i]));
    return Status::success();
  });
}

// f(c, count) for tiles of [c_begin, c_end).
template <typename F>
void for_each_tile(int64_t c_begin, int64_t c_end, const F& f) {
  for (int64_t c = c_begin; c < c_end; c += kTile) f(c, std::min(kTile, c_end - c));
}

// to[i] = sum k of channel c + i, chunks in ascending order.
template <typename Work>
void total_of(const Work& work, int64_t k, int64_t c, int64_t count, Tile& to) {
  std::fill(to, to + count, 0.0);
  for (int64_t chunk = 0; chunk < work.plan.chunks; ++chunk) {
    const double* partial = work.partial(chunk, k) + c;
    for (int64_t i = 0; i < count; ++i) to[i] += partial[i];
  }
}

// Mean, from the origins, and sum of squared differences of channels c + i.
template <typename Work>
void combined_moments(const Work& work, int64_t c, int64_t count, Tile& mean, Tile& m2) {
  std::fill(mean, mean + count, 0.0);
  std::fill(m2, m2 + count, 0.0);
  double before = 0;
  for (int64_t chunk = 0; chunk < work.plan.chunks; ++chunk) {
    const double *chunk_mean = work.partial(chunk, 0) + c, *chunk_m2 = work.partial(chunk, 1) + c;
    const double n = static_cast<double>(ChunkOfChannel(work.plan, chunk).count());
    const double share = n / (before + n), weight = before * share;
    for (int64_t i = 0; i < count; ++i) {
      const double delta = chunk_mean[i] - mean[i];
      mean[i] = combined_mean(mean[i], chunk_mean[i], share);
      m2[i] = m2[i] + chunk_m2[i] + delta * delta * weight;
    }
    before += n;
  }
}

}  // namespace fastnn::FASTNN_BACKEND::bn
