// The register micro-kernel that all three directions of the convolution share: a product of two panels.
//
//   c[m][j] (+)= sum over d of a[m][d] * b[d][j]
//
// Elements of a are broadcast, elements of b are loaded as vectors. rows * vecs accumulators stay in registers,
// and each step costs `vecs` loads and `rows` broadcasts for rows * vecs fused multiply-adds, so both operands
// may lie anywhere: what counts is that stepping from d to d + 1 is one addition to an address. The reduction
// is therefore given as segments along which it is, and activations are read where they are: packing each
// patch, which holds every element of x once per tap, costs an eighth of the time at 64 filters.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2) || defined(__aarch64__)
// What the micro-kernel keeps in a register.
template <typename acc_t>
using RegisterVec = Vec<acc_t>;
#else
// Without an instruction set of its own ATen's vector is an array, which compilers leave in memory: the
// micro-kernel is several times slower with it. This is the compiler's own vector of 16 bytes.
template <typename acc_t>
struct RegisterVec {
  typedef acc_t Lanes __attribute__((vector_size(16)));
  Lanes lanes;

  RegisterVec() = default;
  explicit RegisterVec(acc_t value) : lanes(Lanes{} + value) {}
  static constexpr int size() { return 16 / sizeof(acc_t); }
  static RegisterVec loadu(const acc_t* src) {
    RegisterVec v;
    std::memcpy(&v.lanes, src, sizeof(Lanes));
    return v;
  }
  void store(acc_t* dst) const { std::memcpy(dst, &lanes, sizeof(Lanes)); }
};

template <typename acc_t>
RegisterVec<acc_t> operator+(RegisterVec<acc_t> a, RegisterVec<acc_t> b) {
  a.lanes += b.lanes;
  return a;
}

template <typename acc_t>
RegisterVec<acc_t> fmadd(RegisterVec<acc_t> a, RegisterVec<acc_t> b, RegisterVec<acc_t> c) {
  c.lanes += a.lanes * b.lanes;
  return c;
}
#endif

// The largest micro-tile is 8 x 3 vectors with 32 registers (24 accumulators, 3 vectors of b, 1 broadcast) and
// 4 x 3 with the 16 of AVX2 (12 + 3 + 1). Fewer rows and more vectors than the square that would load least,
// because channel counts are multiples of 8 more often than of 6 or 12. Without AVX, ATen's vector is two
// registers wide, hence 4 x 1.
#if defined(CPU_CAPABILITY_AVX512) || defined(__aarch64__)
inline constexpr int64_t kMaxRows = 8;
inline constexpr int64_t kMaxVecs = 3;
#elif defined(CPU_CAPABILITY_AVX2)
inline constexpr int64_t kMaxRows = 4;
inline constexpr int64_t kMaxVecs = 3;
#else
inline constexpr int64_t kMaxRows = 4;
inline constexpr int64_t kMaxVecs = 1;
#endif

// Longest piece of the reduction that one panel holds. A panel of a (8 x 256 floats, 8 KB) stays in L1 (32 KB)
// while panels of b (at most 256 x 48 floats, 48 KB) stream from L2 (1 MB) at 8 bytes a cycle, a quarter of
// what L2 delivers; adding the micro-tile to c costs one load and one store for 256 multiply-adds. The same
// split also bounds the error: sums of 256 terms, then a sum of those sums.
inline constexpr int64_t kDepthBlock = 256;

// Distance between the rows of a panel of a: a cache line more than a power of two, so that the rows lie in
// different L1 sets.
inline constexpr int64_t kRowPitch = kDepthBlock + 16;

// A panel shorter than kMaxRows has the next power of two as its height.
inline int64_t panel_rows(int64_t rows) {
  int64_t height = 1;
  while (height < rows && height < kMaxRows) height *= 2;
  return height;
}

// A run of the reduction along which neither operand's address jumps.
template <typename acc_t>
struct Segment {
  int64_t begin, count;  // within the block of the reduction
  int64_t row_offset;    // from where the table says that a row is, to its element at `begin`
  const acc_t* columns;  // the first vector at `begin`
  int64_t column_pitch;  // from there to the next step's
  // The lanes of each vector that are in memory; the others are 0. Looked at by kernels that are told to.
  uint32_t mask[kMaxVecs];
};

// Where a panel's rows are: row m of segment s starts at address[s * segment_stride + m] + its row_offset, and
// has one element each `step`.
template <typename acc_t>
struct RowTable {
  const acc_t* const* address;
  int64_t segment_stride, step;
  int64_t column_shift = 0;  // from where segments say that columns are
};

#if defined(CPU_CAPABILITY_AVX512)
inline constexpr bool kMaskedLoads = true;
inline Vec<float> masked_load(uint32_t mask, const float* src) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), src);
}
inline Vec<double> masked_load(uint32_t mask, const double* src) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), src);
}
#else
inline constexpr bool kMaskedLoads = false;
#endif

template <typename acc_t, int rows, int vecs, bool masked>
void multiply_segments(const Segment<acc_t>* segments, int64_t num_segments, RowTable<acc_t> table, acc_t* c,
                       int64_t c_pitch, bool accumulate) {
  using Register = RegisterVec<acc_t>;
  constexpr int lanes = Register::size();
  constexpr int columns = vecs * (kLanes<acc_t> / lanes);
  // Loops over rows and vectors are unrolled by order: where GCC does it late, it keeps the sums in memory.
  Register sum[rows][columns];
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < columns; ++v) sum[m][v] = Register(acc_t(0));
  }
  // The sums lie in L2; they are there when the reduction is done.
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < columns; ++v) __builtin_prefetch(c + m * c_pitch + v * lanes, 1);
  }
  for (const Segment<acc_t>* s = segments; s < segments + num_segments; ++s) {
    const acc_t* a[rows];
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) a[m] = table.address[m] + s->row_offset;
    table.address += table.segment_stride;
    const acc_t* b = s->columns + table.column_shift;
    const int64_t pitch = s->column_pitch;
    uint32_t mask[vecs];
#pragma GCC unroll 4
    for (int v = 0; v < vecs; ++v) mask[v] = s->mask[v];
    int64_t at = 0;
    for (int64_t left = s->count; left > 0; --left, at += table.step, b += pitch) {
      Register b_vec[columns];
#pragma GCC unroll 4
      for (int v = 0; v < columns; ++v) {
        if constexpr (masked) {
          b_vec[v] = masked_load(mask[v], b + v * lanes);
        } else {
          b_vec[v] = Register::loadu(b + v * lanes);
        }
      }
#pragma GCC unroll 8
      for (int m = 0; m < rows; ++m) {
        const Register a_vec(a[m][at]);
#pragma GCC unroll 4
        for (int v = 0; v < columns; ++v) sum[m][v] = fmadd(a_vec, b_vec[v], sum[m][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < columns; ++v) {
      acc_t* const place = c + m * c_pitch + v * lanes;
      if (accumulate) sum[m][v] = sum[m][v] + Register::loadu(place);
      sum[m][v].store(place);
    }
  }
}

template <typename acc_t>
using MicroKernel = void (*)(const Segment<acc_t>* segments, int64_t num_segments, RowTable<acc_t> table,
                             acc_t* c, int64_t c_pitch, bool accumulate);

// rows: 1, 2, 4 .. kMaxRows; vecs: 1 .. kMaxVecs.
template <typename acc_t, bool masked>
MicroKernel<acc_t> select_micro_kernel(int64_t rows, int64_t vecs) {
  if constexpr (kMaxVecs == 1) {
    static constexpr MicroKernel<acc_t> kTable[] = {multiply_segments<acc_t, 1, 1, masked>,
                                                    multiply_segments<acc_t, 2, 1, masked>,
                                                    multiply_segments<acc_t, 4, 1, masked>};
    return kTable[rows / 2];
  } else {
    static constexpr MicroKernel<acc_t> kTable[][3] = {
        {multiply_segments<acc_t, 1, 1, masked>, multiply_segments<acc_t, 1, 2, masked>,
         multiply_segments<acc_t, 1, 3, masked>},
        {multiply_segments<acc_t, 2, 1, masked>, multiply_segments<acc_t, 2, 2, masked>,
         multiply_segments<acc_t, 2, 3, masked>},
        {multiply_segments<acc_t, 4, 1, masked>, multiply_segments<acc_t, 4, 2, masked>,
         multiply_segments<acc_t, 4, 3, masked>},
        {multiply_segments<acc_t, kMaxRows, 1, masked>, multiply_segments<acc_t, kMaxRows, 2, masked>,
         multiply_segments<acc_t, kMaxRows, 3, masked>},
    };
    // 1, 2, 4, 8 -> 0, 1, 2, 3
    return kTable[rows == 8 ? 3 : rows / 2][vecs - 1];
  }
}

}  // namespace fastnn::FASTNN_BACKEND
