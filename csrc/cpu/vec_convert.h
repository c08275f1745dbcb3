// Vectors of the accumulation type, loaded from and stored to memory of any element type.
//
// Vec<acc_t> has one width W for one accumulation type: a half tensor is read W elements at a time and widened,
// so that kernels are written once, over acc_t. Halves are rounded to nearest even when stored, NaN stays NaN.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dispatch.h"
#include "masked_lanes.h"
#include "partial_vectors_avx2.h"

namespace fastnn::FASTNN_BACKEND {

template <typename acc_t>
using Vec = at::vec::Vectorized<acc_t>;

template <typename acc_t>
inline constexpr int64_t kLanes = Vec<acc_t>::size();

// The W elements at p.
template <typename scalar_t>
inline Vec<acc_type<scalar_t>> load_acc(const scalar_t* p) {
  using acc_t = acc_type<scalar_t>;
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    return Vec<acc_t>::loadu(p);
  } else {
    Vec<acc_t> v;
    if constexpr (std::is_same_v<scalar_t, c10::BFloat16>) {
      at::vec::load_fp32_from_bf16(p, v);
    } else {
      at::vec::load_fp32_from_fp16(p, v);
    }
    return v;
  }
}

// The first `count` < W elements at p, with 0 in the lanes behind them; reads no further.
#if defined(CPU_CAPABILITY_AVX512)
template <typename scalar_t>
inline Vec<acc_type<scalar_t>> load_some(const scalar_t* p, int64_t count) {
  using acc_t = acc_type<scalar_t>;
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    return Vec<acc_t>::loadu(p, count);
  } else {
    return load_lanes(p, first_lanes(count));
  }
}
#elif defined(CPU_CAPABILITY_AVX2)
template <typename scalar_t>
inline Vec<acc_type<scalar_t>> load_some(const scalar_t* p, int64_t count) {
  if constexpr (std::is_same_v<scalar_t, acc_type<scalar_t>>) {
    return load_first(p, count);
  } else {
    __m256 v;
    if constexpr (std::is_same_v<scalar_t, c10::BFloat16>) {
      at::vec::cvtbf16_fp32(load_first_halves(p, count), v);
    } else {
      at::vec::cvtfp16_fp32(load_first_halves(p, count), v);
    }
    return v;
  }
}
#else
// Not inlined: loops in every loop's end would be most of the kernels' code.
template <typename scalar_t>
__attribute__((noinline)) Vec<acc_type<scalar_t>> load_some(const scalar_t* p, int64_t count) {
  alignas(64) scalar_t buffer[kLanes<acc_type<scalar_t>>];
  std::memset(static_cast<void*>(buffer), 0, sizeof(buffer));
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return load_acc(static_cast<const scalar_t*>(buffer));
}
#endif

// The same of `count` <= W.
template <typename scalar_t>
inline Vec<acc_type<scalar_t>> load_acc(const scalar_t* p, int64_t count) {
  return count >= kLanes<acc_type<scalar_t>> ? load_acc(p) : load_some(p, count);
}

#if defined(CPU_CAPABILITY_AVX512)
template <typename scalar_t>
inline __m256i pack_halves(const Vec<float>& v) {
  if constexpr (std::is_same_v<scalar_t, c10::BFloat16>) {
    return at::vec::cvtfp32_bf16(static_cast<__m512>(v));
  } else {
    return at::vec::cvtfp32_fp16(static_cast<__m512>(v));
  }
}
#elif defined(CPU_CAPABILITY_AVX2)
template <typename scalar_t>
inline __m128i pack_halves(const Vec<float>& v) {
  if constexpr (std::is_same_v<scalar_t, c10::BFloat16>) {
    return at::vec::cvtfp32_bf16(static_cast<__m256>(v));
  } else {
    return at::vec::cvtfp32_fp16(static_cast<__m256>(v));
  }
}
#endif

template <typename scalar_t>
inline void store_acc(scalar_t* p, const Vec<acc_type<scalar_t>>& v) {
  using acc_t = acc_type<scalar_t>;
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    v.store(p);
  } else {
#if defined(CPU_CAPABILITY_AVX512)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), pack_halves<scalar_t>(v));
#elif defined(CPU_CAPABILITY_AVX2)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), pack_halves<scalar_t>(v));
#else
    alignas(64) acc_t buffer[kLanes<acc_t>];
    v.store(buffer);
    for (int i = 0; i < kLanes<acc_t>; ++i) p[i] = static_cast<scalar_t>(buffer[i]);
#endif
  }
}

// Stores the first `count` < W lanes and writes no further.
#if defined(CPU_CAPABILITY_AVX512)
template <typename scalar_t>
inline void store_some(scalar_t* p, const Vec<acc_type<scalar_t>>& v, int64_t count) {
  if constexpr (std::is_same_v<scalar_t, acc_type<scalar_t>>) {
    v.store(p, static_cast<int>(count));
  } else {
    _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << count) - 1), pack_halves<scalar_t>(v));
  }
}
#elif defined(CPU_CAPABILITY_AVX2)
template <typename scalar_t>
inline void store_some(scalar_t* p, const Vec<acc_type<scalar_t>>& v, int64_t count) {
  if constexpr (std::is_same_v<scalar_t, acc_type<scalar_t>>) {
    store_first(p, v, count);
  } else {
    store_first_halves(p, pack_halves<scalar_t>(v), count);
  }
}
#else
template <typename scalar_t>
__attribute__((noinline)) void store_some(scalar_t* p, const Vec<acc_type<scalar_t>>& v, int64_t count) {
  alignas(64) scalar_t buffer[kLanes<acc_type<scalar_t>>];
  store_acc(static_cast<scalar_t*>(buffer), v);
  for (int64_t i = 0; i < count; ++i) p[i] = buffer[i];
}
#endif

// The same of `count` <= W.
template <typename scalar_t>
inline void store_acc(scalar_t* p, const Vec<acc_type<scalar_t>>& v, int64_t count) {
  if (count >= kLanes<acc_type<scalar_t>>) {
    store_acc(p, v);
  } else {
    store_some(p, v, count);
  }
}

// Calls f(i, W) for every whole vector of [begin, end), then f(i, rest). f is inlined twice, so that loads and
// stores of a constant count W lose their test for a partial vector.
template <typename acc_t, typename F>
inline __attribute__((always_inline)) void for_each_vector(int64_t begin, int64_t end, const F& f) {
  constexpr int64_t W = kLanes<acc_t>;
  int64_t i = begin;
  for (; i + W <= end; i += W) f(i, W);
  if (i < end) f(i, end - i);
}

// v in the first `count` lanes, 0 behind them.
template <typename acc_t>
inline Vec<acc_t> first_lanes(const Vec<acc_t>& v, int64_t count) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(acc_t) == 4) {
    return _mm512_maskz_mov_ps(static_cast<__mmask16>((1u << count) - 1), v);
  } else {
    return _mm512_maskz_mov_pd(static_cast<__mmask8>((1u << count) - 1), v);
  }
#elif defined(CPU_CAPABILITY_AVX2)
  return choose_first(v, count);
#else
  alignas(64) acc_t lanes[kLanes<acc_t>];
  v.store(lanes);
  std::fill(lanes + count, lanes + kLanes<acc_t>, acc_t(0));
  return Vec<acc_t>::loadu(lanes);
#endif
}

// Sum of the lanes, by halves: a few shuffles, where lane after lane would wait for each addition.
template <typename acc_t>
inline acc_t sum_lanes(const Vec<acc_t>& v) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(acc_t) == 4) {
    return _mm512_reduce_add_ps(v);
  } else {
    return _mm512_reduce_add_pd(v);
  }
#elif defined(CPU_CAPABILITY_AVX2)
  return sum_of_lanes(v);
#else
  alignas(64) acc_t lanes[kLanes<acc_t>];
  v.store(lanes);
  for (int half = kLanes<acc_t> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
#endif
}

}  // namespace fastnn::FASTNN_BACKEND
