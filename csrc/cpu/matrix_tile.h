// The register micro-kernel of matrix products whose operands are read where they lie.
//
//   c[m][j] = (start +) sum over d of a[m][d] * b[d][j]
//
// Elements of a are broadcast, each row of b is loaded as vectors, rows * vecs sums stay in registers. A step
// of the reduction is `rows` broadcasts and `vecs` loads for rows * vecs fused multiply-adds; with AVX-512,
// where a core has one multiply-add and two loads a cycle, tiles of 8 x 1 and larger run at the multiply-adds'
// speed.
//
// Every sum is one chain in ascending d, whatever the tile and however the reduction is cut into pieces (a
// piece starts from what c holds), so the bits of a result depend on its own row and column alone: neither on
// the number of threads nor on the rest of the batch.
//
// Weights are met once a call and mostly come from memory. The operand that is not in a cache therefore names
// what comes next, and the kernel asks for it a line at a time while it multiplies.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cache_hints.h"
#include "conv_gemm.h"

namespace fastnn::FASTNN_BACKEND {

// Elements of a cache line.
template <typename acc_t>
inline constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(acc_t));

template <typename acc_t>
struct Tile {
  int64_t depth;
  const acc_t* a;  // element (m, d) at a[m * a_pitch + d * a_step + d / kLine * a_jump]
  int64_t a_pitch, a_step, a_jump = 0;
  const acc_t* b;  // element (d, j) at b[d * b_pitch + j]
  int64_t b_pitch;
  acc_t* c;  // element (m, j) at c[m * c_pitch + j]
  int64_t c_pitch;
  // Whether c, whole aligned lines, goes past the caches (see store_stream).
  bool stream = false;
  bool resume;  // c holds the sums so far; otherwise they start from 0
  // To be fetched meanwhile; each may be null or 0. Rows of a (with a_step = 1) as long as these, in the next
  // tiles; what lies as far from b as this; and the next tile's c, which is about to be written.
  const acc_t* next_a = nullptr;
  int64_t next_a_pitch = 0;
  int64_t b_ahead = 0;
  acc_t* next_c = nullptr;
};

// A step of the reduction by itself: one product of numbers of acc_t.
template <typename acc_t>
struct MultiplyAdd {
  using Register = RegisterVec<acc_t>;
  static Register apply(const Register& a, const Register& b, const Register& c) { return fmadd(a, b, c); }
};

#if defined(CPU_CAPABILITY_AVX512)
// Two steps of a reduction over bfloat16 at a time: an element of a and of b is a pair of them in the bits of a
// float, and a lane is added the products of both. Each addition is rounded to float; subnormal numbers count
// as 0.
#define FASTNN_BF16_DOT __attribute__((target("avx512bf16")))
struct DotPairs {
  FASTNN_BF16_DOT static Vec<float> apply(const Vec<float>& a, const Vec<float>& b, const Vec<float>& c) {
    return _mm512_dpbf16_ps(c, (__m512bh)(__m512)a, (__m512bh)(__m512)b);
  }
};
inline bool has_dot_pairs() {
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
}
// `count` <= 16 pairs of a number of `low` and one of `high`, null for zeros; writes 16.
inline void interleave_rows(const c10::BFloat16* low, const c10::BFloat16* high, int64_t count, float* pairs) {
  const __mmask16 lanes = static_cast<__mmask16>((1u << count) - 1);
  const __m256i even = _mm256_maskz_loadu_epi16(lanes, low);
  const __m256i odd = high == nullptr ? _mm256_setzero_si256() : _mm256_maskz_loadu_epi16(lanes, high);
  // 0, 16, 1, 17, ... by pairs of 16 bits
  const __m512i order = _mm512_add_epi32(
      _mm512_set1_epi32(0x00100000),
      _mm512_mullo_epi32(_mm512_set1_epi32(0x00010001),
                         _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)));
  const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1);
  _mm512_storeu_si512(pairs, _mm512_permutexvar_epi16(order, both));
}
// Rows of sums, rounded to bfloat16 (subnormal ones to 0). With `streamed`, past the caches: rows of whole
// lines.
FASTNN_BF16_DOT inline void store_rounded_rows(const float* src, int64_t src_pitch, int64_t rows,
                                               int64_t columns, c10::BFloat16* dst, int64_t dst_pitch,
                                               bool streamed) {
  const auto rounded = [](const float* p)
                           FASTNN_BF16_DOT { return (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(p)); };
  for (int64_t row = 0; row < rows; ++row, src += src_pitch, dst += dst_pitch) {
    int64_t j = 0;
    if (streamed) {
      for (; j < columns; j += 32) {
        const __m512i line =
            _mm512_inserti64x4(_mm512_castsi256_si512(rounded(src + j)), rounded(src + j + 16), 1);
        _mm512_stream_si512(reinterpret_cast<__m512i*>(dst + j), line);
      }
    }
    for (; j + 16 <= columns; j += 16)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + j), rounded(src + j));
    if (j < columns) {
      const __mmask16 lanes = static_cast<__mmask16>((1u << (columns - j)) - 1);
      const __m512 last = _mm512_maskz_loadu_ps(lanes, src + j);
      _mm256_mask_storeu_epi16(dst + j, lanes, (__m256i)_mm512_cvtneps_pbh(last));
    }
  }
}
#else
inline bool has_dot_pairs() { return false; }
inline void interleave_rows(const c10::BFloat16*, const c10::BFloat16*, int64_t, float*) {}
inline void store_rounded_rows(const float*, int64_t, int64_t, int64_t, c10::BFloat16*, int64_t, bool) {}
#endif

template <typename acc_t, int rows, int vecs, typename Step>
inline __attribute__((always_inline)) void run_tile(const Tile<acc_t>& t) {
  using Register = RegisterVec<acc_t>;
  constexpr int lanes = Register::size();
  constexpr int columns = vecs * (kLanes<acc_t> / lanes);
  constexpr int line = static_cast<int>(kLine<acc_t>);
  Register sum[rows][columns];
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 6
    for (int v = 0; v < columns; ++v) {
      sum[m][v] = t.resume ? Register::loadu(t.c + m * t.c_pitch + v * lanes) : Register(acc_t(0));
    }
  }
  if (t.next_c != nullptr) {
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
      for (int v = 0; v * line < columns * lanes; ++v)
        __builtin_prefetch(t.next_c + m * t.c_pitch + v * line, 1);
    }
  }
  // Two addresses and three distances reach eight rows; a pointer for each would not fit the registers.
  const acc_t *low = t.a, *high = t.a + 4 * t.a_pitch, *b = t.b;
  const int64_t pitch = t.a_pitch, step = t.a_step, b_pitch = t.b_pitch, b_ahead = t.b_ahead;
  for (int64_t d = 0; d < t.depth; d += line) {
    if (t.next_a != nullptr) {
#pragma GCC unroll 8
      for (int m = 0; m < rows; ++m) __builtin_prefetch(t.next_a + m * t.next_a_pitch + d, 0, 2);
    }
    for (int64_t left = std::min<int64_t>(line, t.depth - d); left > 0; --left) {
#pragma GCC unroll 6
      for (int v = 0; v * line < columns * lanes; ++v) __builtin_prefetch(b + b_ahead + v * line, 0, 2);
      Register b_vec[columns];
#pragma GCC unroll 6
      for (int v = 0; v < columns; ++v) b_vec[v] = Register::loadu(b + v * lanes);
#pragma GCC unroll 8
      for (int m = 0; m < rows; ++m) {
        acc_t number;  // perhaps not a number but the bits of two: see DotPairs
        std::memcpy(&number, (m < 4 ? low : high) + m % 4 * pitch, sizeof(number));
        const Register a_vec(number);
#pragma GCC unroll 6
        for (int v = 0; v < columns; ++v) sum[m][v] = Step::apply(a_vec, b_vec[v], sum[m][v]);
      }
      low += step;
      high += step;
      b += b_pitch;
    }
    low += t.a_jump;
    high += t.a_jump;
  }
  if constexpr (kHasStreamingStores) {
    if (t.stream) {
#pragma GCC unroll 8
      for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 6
        for (int v = 0; v < columns; ++v) store_stream(t.c + m * t.c_pitch + v * lanes, sum[m][v]);
      }
      return;
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 6
    for (int v = 0; v < columns; ++v) sum[m][v].store(t.c + m * t.c_pitch + v * lanes);
  }
}

template <typename acc_t, int rows, int vecs>
void multiply_tile(const Tile<acc_t>& t) {
  run_tile<acc_t, rows, vecs, MultiplyAdd<acc_t>>(t);
}

#if defined(CPU_CAPABILITY_AVX512)
template <int rows, int vecs>
FASTNN_BF16_DOT void multiply_pairs_tile(const Tile<float>& t) {
  run_tile<float, rows, vecs, DotPairs>(t);
}
#endif

// Rows of the largest tile that `left` rows fill: a power of two, at most kMaxRows.
inline int64_t tile_rows(int64_t left) {
  int64_t rows = kMaxRows;
  while (rows > left) rows /= 2;
  return rows;
}

// Computes a tile of tile_rows() rows and 1 .. kMaxVecs vectors.
template <typename acc_t>
void multiply(int64_t rows, int64_t vecs, const Tile<acc_t>& tile) {
  using Kernel = void (*)(const Tile<acc_t>&);
  const int64_t row_index = rows == 8 ? 3 : rows / 2;  // 1, 2, 4, 8 -> 0, 1, 2, 3
  if constexpr (kMaxVecs == 1) {
    static constexpr Kernel kTable[] = {multiply_tile<acc_t, 1, 1>, multiply_tile<acc_t, 2, 1>,
                                        multiply_tile<acc_t, 4, 1>};
    kTable[row_index](tile);
  } else {
    static constexpr Kernel kTable[][3] = {
        {multiply_tile<acc_t, 1, 1>, multiply_tile<acc_t, 1, 2>, multiply_tile<acc_t, 1, 3>},
        {multiply_tile<acc_t, 2, 1>, multiply_tile<acc_t, 2, 2>, multiply_tile<acc_t, 2, 3>},
        {multiply_tile<acc_t, 4, 1>, multiply_tile<acc_t, 4, 2>, multiply_tile<acc_t, 4, 3>},
        {multiply_tile<acc_t, kMaxRows, 1>, multiply_tile<acc_t, kMaxRows, 2>,
         multiply_tile<acc_t, kMaxRows, 3>},
    };
    kTable[row_index][vecs - 1](tile);
  }
}

// The same of pairs of bfloat16; only where has_dot_pairs().
inline void multiply_pairs(int64_t rows, int64_t vecs, const Tile<float>& tile) {
#if defined(CPU_CAPABILITY_AVX512)
  static constexpr void (*kTable[][3])(const Tile<float>&) = {
      {multiply_pairs_tile<1, 1>, multiply_pairs_tile<1, 2>, multiply_pairs_tile<1, 3>},
      {multiply_pairs_tile<2, 1>, multiply_pairs_tile<2, 2>, multiply_pairs_tile<2, 3>},
      {multiply_pairs_tile<4, 1>, multiply_pairs_tile<4, 2>, multiply_pairs_tile<4, 3>},
      {multiply_pairs_tile<8, 1>, multiply_pairs_tile<8, 2>, multiply_pairs_tile<8, 3>},
  };
  kTable[rows == 8 ? 3 : rows / 2][vecs - 1](tile);
#else
  (void)rows, (void)vecs, (void)tile;
#endif
}

}  // namespace fastnn::FASTNN_BACKEND
