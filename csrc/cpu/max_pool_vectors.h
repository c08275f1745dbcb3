// What the CPU kernels of max pooling do with W values at a time: running maxima with their places, sums where
// a place was chosen, and W planes turned so that a vector holds one position of each.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "max_pool_geometry.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND::pool {

// W maxima and their places. Places are integers kept as bit patterns in lanes of the values' type, so that
// one mask blends both; they take part in no arithmetic.
template <typename acc_t>
struct Best {
  using V = Vec<acc_t>;
  using place_t = std::conditional_t<sizeof(acc_t) == 8, int64_t, int32_t>;

  V value, place;

  static V as_lanes(int64_t place) { return V(std::bit_cast<acc_t>(static_cast<place_t>(place))); }

  // Takes x where it is greater or NaN: the first of equals and the last NaN stay.
  void offer(const V& x, const V& at) {
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (sizeof(acc_t) == 4) {
      const __mmask16 take = _mm512_cmp_ps_mask(x, value, _CMP_GT_OQ) | _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
      value = _mm512_mask_blend_ps(take, value, x);
      place = _mm512_mask_blend_ps(take, place, at);
    } else {
      const __mmask8 take = _mm512_cmp_pd_mask(x, value, _CMP_GT_OQ) | _mm512_cmp_pd_mask(x, x, _CMP_UNORD_Q);
      value = _mm512_mask_blend_pd(take, value, x);
      place = _mm512_mask_blend_pd(take, place, at);
    }
#else
    const V take = (x > value) | (x != x);
    value = V::blendv(value, x, take);
    place = V::blendv(place, at, take);
#endif
  }
};

// Stores the first `count` lanes of places as offsets.
template <typename acc_t, typename offset_t>
inline void store_offsets(offset_t* to, const Vec<acc_t>& places, int64_t count) {
  constexpr int W = kLanes<acc_t>;
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(acc_t) == 4 && sizeof(offset_t) == 1) {
    const __m128i narrow = _mm512_cvtepi32_epi8(_mm512_castps_si512(places));
    if (count == W) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow);
    } else {
      _mm_mask_storeu_epi8(to, static_cast<__mmask16>((1u << count) - 1), narrow);
    }
    return;
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (sizeof(acc_t) == 4 && sizeof(offset_t) == 1) {
    // The lowest byte of each number, four of each half.
    const __m256i low = _mm256_shuffle_epi8(_mm256_castps_si256(places),
                                            _mm256_set1_epi64x(static_cast<int64_t>(0x808080800c080400ull)));
    store_first_bytes(to, _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)),
                      count);
    return;
  }
#endif
  alignas(64) typename Best<acc_t>::place_t lanes[W];
  places.store(lanes);
  if (count == W) {
    for (int i = 0; i < W; ++i) to[i] = static_cast<offset_t>(lanes[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<offset_t>(lanes[i]);
  }
}

// The first `count` offsets as numbers of the accumulation type, to be compared with places: exact below 2^24.
template <typename acc_t, typename offset_t>
inline Vec<acc_t> load_offsets(const offset_t* from, int64_t count) {
  constexpr int W = kLanes<acc_t>;
  alignas(64) acc_t lanes[W];
  if (count == W) {
    for (int i = 0; i < W; ++i) lanes[i] = static_cast<acc_t>(from[i]);
  } else {
    for (int i = 0; i < W; ++i) lanes[i] = i < count ? static_cast<acc_t>(from[i]) : acc_t(0);
  }
  return Vec<acc_t>::loadu(lanes);
}

// sum + grad where `offset`, of load_offsets(), is `place`; sum elsewhere.
template <typename acc_t>
inline Vec<acc_t> add_where(const Vec<acc_t>& sum, const Vec<acc_t>& offset, acc_t place,
                            const Vec<acc_t>& grad) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(acc_t) == 4) {
    return _mm512_mask_add_ps(sum, _mm512_cmp_ps_mask(offset, _mm512_set1_ps(place), _CMP_EQ_OQ), sum, grad);
  } else {
    return _mm512_mask_add_pd(sum, _mm512_cmp_pd_mask(offset, _mm512_set1_pd(place), _CMP_EQ_OQ), sum, grad);
  }
#else
  return sum + (grad & (offset == Vec<acc_t>(place)));
#endif
}

#if defined(CPU_CAPABILITY_AVX2)
// sum + grad in the lanes whose byte is `place`.
inline Vec<float> add_where_byte(const Vec<float>& sum, __m128i bytes, int64_t place, const Vec<float>& grad) {
  const __m256i chosen =
      _mm256_cmpeq_epi32(_mm256_cvtepu8_epi32(bytes), _mm256_set1_epi32(static_cast<int>(place)));
  return _mm256_add_ps(sum, _mm256_and_ps(grad, _mm256_castsi256_ps(chosen)));
}
#endif

// W offsets compared with one place.
template <typename acc_t, typename offset_t>
inline Vec<acc_t> add_where_chosen(const Vec<acc_t>& sum, const offset_t* offsets, int64_t count, int64_t place,
                                   const Vec<acc_t>& grad) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(acc_t) == 4 && sizeof(offset_t) == 1) {
    const __m128i here = count == kLanes<acc_t>
                             ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(offsets))
                             : _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << count) - 1), offsets);
    const __mmask16 chosen = _mm_cmpeq_epi8_mask(here, _mm_set1_epi8(static_cast<char>(place)));
    return _mm512_mask_add_ps(sum, chosen, sum, grad);
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (sizeof(acc_t) == 4 && sizeof(offset_t) == 1)
    return add_where_byte(sum, load_first_bytes(offsets, count), place, grad);
#endif
  return add_where<acc_t>(sum, load_offsets<acc_t>(offsets, count), static_cast<acc_t>(place), grad);
}

// How backward keeps offsets in L1 that several taps are compared with: as bytes where comparing those gives a
// mask of the lanes, or is as cheap: that spares loads over two cache lines; otherwise widened once.
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
template <typename acc_t>
using kept_offset_t = std::conditional_t<sizeof(acc_t) == 4, uint8_t, acc_t>;
#else
template <typename acc_t>
using kept_offset_t = acc_t;
#endif

// Keeps the first `count` offsets, of one byte, and lets W be overwritten.
template <typename acc_t>
inline void keep_offsets(kept_offset_t<acc_t>* to, const uint8_t* from, int64_t count) {
  if constexpr (std::is_same_v<kept_offset_t<acc_t>, uint8_t>) {
    std::memcpy(to, from, static_cast<size_t>(count));
  } else {
    load_offsets<acc_t>(from, count).store(to);
  }
}

template <typename acc_t>
inline Vec<acc_t> add_where_kept(const Vec<acc_t>& sum, const kept_offset_t<acc_t>* offsets, int place,
                                 const Vec<acc_t>& grad) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(acc_t) == 4) {
    const __m128i here = _mm_loadu_si128(reinterpret_cast<const __m128i*>(offsets));
    const __mmask16 chosen = _mm_cmpeq_epi8_mask(here, _mm_set1_epi8(static_cast<char>(place)));
    return _mm512_mask_add_ps(sum, chosen, sum, grad);
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (sizeof(acc_t) == 4) return add_where_byte(sum, load_first_bytes(offsets, 8), place, grad);
#endif
  if constexpr (std::is_same_v<kept_offset_t<acc_t>, acc_t>) {
    return add_where<acc_t>(sum, Vec<acc_t>::loadu(offsets), static_cast<acc_t>(place), grad);
  }
}

// Rows become columns: log2(W) rounds, each of which takes the highest bit of the row's number into the
// column's.
template <typename acc_t>
inline __attribute__((always_inline)) void transpose(Vec<acc_t> (&rows)[kLanes<acc_t>]) {
  constexpr int W = kLanes<acc_t>;
#pragma GCC unroll 4
  for (int round = 1; round < W; round *= 2) {
    Vec<acc_t> next[W];
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; ++i) {
      const auto pair = at::vec::interleave2(rows[i], rows[i + W / 2]);
      next[2 * i] = pair.first;
      next[2 * i + 1] = pair.second;
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = next[i];
  }
}

// to[i * W + lane] = plane `lane`, position i: load(lane, i, count) gives `count` positions of a plane from i
// on. Lanes of planes that are not there hold 0. Writes up to W - 1 vectors behind the last.
template <typename acc_t, typename Load>
inline void interleave_planes(int64_t planes, int64_t size, acc_t* to, const Load& load) {
  constexpr int W = kLanes<acc_t>;
  for_each_vector<acc_t>(0, size, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    Vec<acc_t> rows[W];
    if (planes == W) {
#pragma GCC unroll 16
      for (int lane = 0; lane < W; ++lane) rows[lane] = load(lane, i, count);
    } else {
#pragma GCC unroll 16
      for (int lane = 0; lane < W; ++lane) rows[lane] = lane < planes ? load(lane, i, count) : Vec<acc_t>(0);
    }
    transpose<acc_t>(rows);
#pragma GCC unroll 16
    for (int k = 0; k < W; ++k) rows[k].store(to + (i + k) * W);
  });
}

// The reverse for one block of up to W positions: store(lane, values) gets those of one plane.
template <typename acc_t, typename Store>
inline __attribute__((always_inline)) void store_planes(int64_t planes, const acc_t* block,
                                                        const Store& store) {
  constexpr int W = kLanes<acc_t>;
  Vec<acc_t> rows[W];
#pragma GCC unroll 16
  for (int k = 0; k < W; ++k) rows[k] = Vec<acc_t>::loadu(block + k * W);
  transpose<acc_t>(rows);
#pragma GCC unroll 16
  for (int lane = 0; lane < W; ++lane) {
    if (lane < planes) store(lane, rows[lane]);
  }
}

}  // namespace fastnn::FASTNN_BACKEND::pool
