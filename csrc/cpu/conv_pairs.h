// The micro-kernel of bfloat16 on processors that multiply pairs of it (AVX512-BF16: vdpbf16ps).
//
//   c[m][j] (+)= sum over steps p of a[m][2p] * b[2p][j] + a[m][2p + 1] * b[2p + 1][j]
//
// A step of the reduction is a pair of elements, 32 bits: rows are broadcast pair by pair, and a vector of
// columns holds one pair for each of its 16 lanes. Against float that is twice the multiply-adds for the same
// loads and half the memory, so panels, tiles and blocks have the shape of conv_gemm.h's with steps for
// elements. 24 of them need 3 loads of vectors and 8 broadcasts: the multiply-adds alone bound the loop.
//
// The instruction adds its two products one after the other, each rounded to nearest: products of bfloat16 are
// exact in float, so n terms have the n roundings that fused multiply-adds have. It takes subnormal inputs as 0
// and flushes subnormal sums to 0: an error of at most 2^-126 (1.2e-38) for each term where neither factor is
// subnormal.
#pragma once

#include "conv_gemm.h"

#if defined(__AVX512BF16__)

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace fastnn::FASTNN_BACKEND {

// Two neighbours of the reduction, the first in the low half. Rows in place may lie at odd elements.
typedef uint32_t Pair __attribute__((aligned(2), may_alias));

// Where a panel's rows are: row m of segment s starts at address[s * segment_stride + m] and has one pair each
// `step`.
struct PairRows {
  const Pair* const* address;
  int64_t segment_stride, step;
};

// Where a micro-tile's sums go. They are added to what c holds where `accumulate` is set; rounded to out[m] if
// that is not null, or else written to c. `tail`: lanes of the last vector that are there.
struct PairSums {
  float* c;
  int64_t pitch;
  bool accumulate;
  c10::BFloat16* const* out;
  uint32_t tail;
};

// Segments of the reduction have count[s] steps; columns are packed, [step][vecs * 16].
template <int rows, int vecs>
void multiply_pairs(const int64_t* count, int64_t num_segments, PairRows table, const uint32_t* columns,
                    const PairSums& sums) {
  __m512 sum[rows][vecs];
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < vecs; ++v) sum[m][v] = _mm512_setzero_ps();
  }
  // What the sums are added to or written to is there when the reduction is done.
  if (sums.out == nullptr || sums.accumulate) {
    for (int m = 0; m < rows; ++m) {
      for (int v = 0; v < vecs; ++v) __builtin_prefetch(sums.c + m * sums.pitch + v * 16, 1);
    }
  }
  if (sums.out != nullptr) {
    for (int m = 0; m < rows; ++m) {
      __builtin_prefetch(sums.out[m], 1);
      if (vecs > 1) __builtin_prefetch(sums.out[m] + (vecs - 1) * 16, 1);
    }
  }
  for (int64_t s = 0; s < num_segments; ++s, table.address += table.segment_stride) {
    const Pair* a[rows];
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) a[m] = table.address[m];
    int64_t at = 0;
    for (int64_t left = count[s]; left > 0; --left, at += table.step, columns += vecs * 16) {
      __m512bh b[vecs];
#pragma GCC unroll 4
      for (int v = 0; v < vecs; ++v) b[v] = (__m512bh)_mm512_loadu_si512(columns + v * 16);
#pragma GCC unroll 8
      for (int m = 0; m < rows; ++m) {
        const __m512bh pair = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[m][at]));
#pragma GCC unroll 4
        for (int v = 0; v < vecs; ++v) sum[m][v] = _mm512_dpbf16_ps(sum[m][v], pair, b[v]);
      }
    }
  }
  if (sums.accumulate) {
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < vecs; ++v)
        sum[m][v] = _mm512_add_ps(sum[m][v], _mm512_loadu_ps(sums.c + m * sums.pitch + v * 16));
    }
  }
  if (sums.out != nullptr) {
    const __mmask16 tail = static_cast<__mmask16>(sums.tail);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < vecs; ++v) {
        const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(sum[m][v]);
        c10::BFloat16* const place = sums.out[m] + v * 16;
        if (v + 1 < vecs) {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(place), rounded);
        } else {
          _mm256_mask_storeu_epi16(place, tail, rounded);
        }
      }
    }
  } else {
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < vecs; ++v) _mm512_storeu_ps(sums.c + m * sums.pitch + v * 16, sum[m][v]);
    }
  }
}

using PairKernel = void (*)(const int64_t* count, int64_t num_segments, PairRows table, const uint32_t* columns,
                            const PairSums& sums);

// rows: 1, 2, 4, 8; vecs: 1, 2, 3.
inline PairKernel select_pair_kernel(int64_t rows, int64_t vecs) {
  static constexpr PairKernel kTable[][3] = {
      {multiply_pairs<1, 1>, multiply_pairs<1, 2>, multiply_pairs<1, 3>},
      {multiply_pairs<2, 1>, multiply_pairs<2, 2>, multiply_pairs<2, 3>},
      {multiply_pairs<4, 1>, multiply_pairs<4, 2>, multiply_pairs<4, 3>},
      {multiply_pairs<8, 1>, multiply_pairs<8, 2>, multiply_pairs<8, 3>},
  };
  return kTable[rows == 8 ? 3 : rows / 2][vecs - 1];
}

}  // namespace fastnn::FASTNN_BACKEND

#endif
