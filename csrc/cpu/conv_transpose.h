// Copies that exchange rows and columns, by vectors.
//
// Element by element a transposed copy costs one to three cycles for each (more when its lines fall out of L1);
// by squares of vectors it costs 4 loads, 4 stores and 16 shuffles for 64 floats of AVX-512.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "conv_gemm.h"
#include "dispatch.h"

namespace fastnn::FASTNN_BACKEND {

// dst[j * dst_pitch + i] = src[i * src_pitch + j] for i < rows, j < columns, both at most kLanes.
template <typename acc_t>
void transpose_square(const acc_t* src, int64_t src_pitch, int64_t rows, int64_t columns, acc_t* dst,
                      int64_t dst_pitch) {
  constexpr int64_t lanes = kLanes<acc_t>;
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

// dst[j * dst_pitch + i] = src[i * src_pitch + j] for i < rows, j < columns.
template <typename scalar_t>
void copy_transposed(const scalar_t* src, int64_t src_pitch, int64_t rows, int64_t columns,
                     acc_type<scalar_t>* dst, int64_t dst_pitch) {
  using acc_t = acc_type<scalar_t>;
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    constexpr int64_t lanes = kLanes<acc_t>;
    for (int64_t i = 0; i < rows; i += lanes) {
      for (int64_t j = 0; j < columns; j += lanes) {
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
