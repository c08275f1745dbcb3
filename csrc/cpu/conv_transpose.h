// Copies that exchange rows and columns, by vectors.
//
// Element by element a transposed copy costs one to three cycles for each (more when its lines fall out of L1);
// by squares of vectors a quarter of a cycle (floats of AVX-512), twice that at the edges.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "conv_gemm.h"
#include "dispatch.h"

namespace fastnn::FASTNN_BACKEND {

// dst[j * dst_pitch + i] = src[i * src_pitch + j] for a whole square of vectors; false where there is no faster
// way than that of any square.
template <typename acc_t>
bool transpose_whole_square(const acc_t* src, int64_t src_pitch, acc_t* dst, int64_t dst_pitch) {
  if constexpr (std::is_same_v<acc_t, float>) {
#if defined(CPU_CAPABILITY_AVX512)
    // Squares of four by four, four of them in a vector. They change places while they are loaded, which leaves
    // two steps of shuffles, on 16 registers.
#pragma GCC unroll 4
    for (int64_t j = 0; j < 16; j += 4) {
      __m512 row[4];
#pragma GCC unroll 4
      for (int64_t i = 0; i < 4; ++i) {
        const float* const piece = src + i * src_pitch + j;
        row[i] = _mm512_castps128_ps512(_mm_loadu_ps(piece));
        row[i] = _mm512_insertf32x4(row[i], _mm_loadu_ps(piece + 4 * src_pitch), 1);
        row[i] = _mm512_insertf32x4(row[i], _mm_loadu_ps(piece + 8 * src_pitch), 2);
        row[i] = _mm512_insertf32x4(row[i], _mm_loadu_ps(piece + 12 * src_pitch), 3);
      }
      const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(row[0], row[1])),
                    high01 = _mm512_castps_pd(_mm512_unpackhi_ps(row[0], row[1])),
                    low23 = _mm512_castps_pd(_mm512_unpacklo_ps(row[2], row[3])),
                    high23 = _mm512_castps_pd(_mm512_unpackhi_ps(row[2], row[3]));
      _mm512_storeu_pd(dst + j * dst_pitch, _mm512_unpacklo_pd(low01, low23));
      _mm512_storeu_pd(dst + (j + 1) * dst_pitch, _mm512_unpackhi_pd(low01, low23));
      _mm512_storeu_pd(dst + (j + 2) * dst_pitch, _mm512_unpacklo_pd(high01, high23));
      _mm512_storeu_pd(dst + (j + 3) * dst_pitch, _mm512_unpackhi_pd(high01, high23));
    }
    return true;
#elif defined(CPU_CAPABILITY_AVX2)
    at::vec::transpose_mxn<float, 8, 8>(src, src_pitch, dst, dst_pitch);
    return true;
#endif
  }
  return false;
}

// The same for i < rows, j < columns, both at most kLanes.
template <typename acc_t>
void transpose_square(const acc_t* src, int64_t src_pitch, int64_t rows, int64_t columns, acc_t* dst,
                      int64_t dst_pitch) {
  constexpr int64_t lanes = kLanes<acc_t>;
  if (rows == lanes && columns == lanes && transpose_whole_square(src, src_pitch, dst, dst_pitch)) return;
  Vec<acc_t> a[lanes], b[lanes];
  for (int64_t i = 0; i < lanes; ++i) {
    a[i] = i >= rows          ? Vec<acc_t>(acc_t(0))
           : columns == lanes ? Vec<acc_t>::loadu(src + i * src_pitch)
                              : Vec<acc_t>::loadu(src + i * src_pitch, columns);
  }
  // Interleaving row i with row i + lanes / 2 rotates the bits of (row, column) by one; after as many steps as
  // a column number has bits, rows and columns have changed places.
#pragma GCC unroll 4
  for (int64_t step = 1; step < lanes; step *= 2) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < lanes / 2; ++i) {
      std::tie(b[2 * i], b[2 * i + 1]) = at::vec::interleave2(a[i], a[i + lanes / 2]);
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < lanes; ++i) a[i] = b[i];
  }
  for (int64_t j = 0; j < columns; ++j) {
    if (rows == lanes) {
      a[j].store(dst + j * dst_pitch);
    } else {
      a[j].store(dst + j * dst_pitch, static_cast<int>(rows));
    }
  }
}

// How many squares ahead their lines are fetched: some 100 cycles each.
inline constexpr int64_t kTransposeAhead = 4;

// dst[j * dst_pitch + i] = src[i * src_pitch + j] for i < rows, j < columns.
template <typename scalar_t>
void copy_transposed(const scalar_t* src, int64_t src_pitch, int64_t rows, int64_t columns,
                     acc_type<scalar_t>* dst, int64_t dst_pitch) {
  using acc_t = acc_type<scalar_t>;
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    constexpr int64_t lanes = kLanes<acc_t>;
    for (int64_t i = 0; i < rows; i += lanes) {
      for (int64_t j = 0; j < columns; j += lanes) {
        // Rows are short, and more than the processor follows by itself.
        for (int64_t row = i; row < std::min(rows, i + lanes); ++row) {
          __builtin_prefetch(src + row * src_pitch + j + kTransposeAhead * lanes);
        }
        transpose_square(src + i * src_pitch + j, src_pitch, std::min(lanes, rows - i),
                         std::min(lanes, columns - j), dst + j * dst_pitch + i, dst_pitch);
      }
    }
  } else {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) dst[j * dst_pitch + i] = static_cast<acc_t>(src[i * src_pitch + j]);
    }
  }
}

}  // namespace fastnn::FASTNN_BACKEND
