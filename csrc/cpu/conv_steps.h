// The register micro-kernel of convolutions with few channels: a product of operands that tables lead to.
//
//   c[m][j] = base[m][j] + sum over steps s of a[step[s].a + row[m]] * b[step[s].b + j]
//
// With few channels a run of the reduction is short (seven taps of a row, or 21 with three channels next to
// each other), too short for the addresses of conv_gemm.h, which are set up for each run. Here every step has
// its own offset, the same for all micro-tiles of a call: one load of eight bytes for up to 24 fused
// multiply-adds.
#pragma once

#include <cstdint>

#include "conv_gemm.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {

// Where a step of the reduction finds its operands.
struct Step {
  int32_t a, b;
};

// Sums stay in registers: with 32 of them 8 x 3 or 6 x 4 vectors, 3 or 4 of b and one broadcast; with 16 of
// them 6 x 2, 2 and 1. Eight rows or fewer, so that their offsets stay in registers too; one vector wide, they
// are still as many sums as hide the latency of two multiply-adds a cycle.
#if defined(CPU_CAPABILITY_AVX512) || defined(__aarch64__)
inline constexpr int64_t kStepVecs = 4;
constexpr int64_t max_step_rows(int64_t vecs) { return vecs < 4 ? 8 : 6; }
#elif defined(CPU_CAPABILITY_AVX2)
inline constexpr int64_t kStepVecs = 2;
constexpr int64_t max_step_rows(int64_t vecs) { return vecs < 2 ? 8 : 6; }
#else
inline constexpr int64_t kStepVecs = 1;  // of two registers
constexpr int64_t max_step_rows(int64_t) { return 6; }
#endif
inline constexpr int64_t kStepRows = 8;

template <typename acc_t, int rows, int vecs>
void multiply_steps(const Step* step, int64_t steps, const acc_t* a, const int32_t* row, const acc_t* b,
                    const acc_t* base, int64_t base_pitch, acc_t* c, int64_t c_pitch) {
  using Register = RegisterVec<acc_t>;
  constexpr int lanes = Register::size();
  constexpr int columns = vecs * (kLanes<acc_t> / lanes);
  // Unrolled by order: where GCC does it late, it keeps the sums in memory.
  Register sum[rows][columns];
  int64_t row_offset[rows];
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) {
    row_offset[m] = row[m];
#pragma GCC unroll 8
    for (int v = 0; v < columns; ++v) sum[m][v] = Register(acc_t(0));
  }
  // Lines of the result are there when the sums are.
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < columns; ++v) __builtin_prefetch(c + m * c_pitch + v * lanes, 1);
  }
  for (const Step* const end = step + steps; step < end; ++step) {
    const acc_t* const a_step = a + step->a;
    const acc_t* const b_step = b + step->b;
    Register b_vec[columns];
#pragma GCC unroll 8
    for (int v = 0; v < columns; ++v) b_vec[v] = Register::loadu(b_step + v * lanes);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
      const Register a_vec(a_step[row_offset[m]]);
#pragma GCC unroll 8
      for (int v = 0; v < columns; ++v) sum[m][v] = fmadd(a_vec, b_vec[v], sum[m][v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < columns; ++v) {
      (sum[m][v] + Register::loadu(base + m * base_pitch + v * lanes)).store(c + m * c_pitch + v * lanes);
    }
  }
}

template <typename acc_t>
using StepKernel = void (*)(const Step*, int64_t, const acc_t*, const int32_t*, const acc_t*, const acc_t*,
                            int64_t, acc_t*, int64_t);

// rows: 1 .. max_step_rows(vecs); vecs: 1 .. kStepVecs.
template <typename acc_t>
StepKernel<acc_t> select_step_kernel(int64_t rows, int64_t vecs) {
#define FASTNN_STEP_KERNELS(v)                                                                 \
  {                                                                                            \
    multiply_steps<acc_t, 1, v>, multiply_steps<acc_t, 2, v>, multiply_steps<acc_t, 3, v>,     \
        multiply_steps<acc_t, 4, v>, multiply_steps<acc_t, 5, v>, multiply_steps<acc_t, 6, v>, \
        multiply_steps<acc_t, max_step_rows(v) < 7 ? 1 : 7, v>,                                \
        multiply_steps<acc_t, max_step_rows(v) < 8 ? 1 : 8, v>                                 \
  }
  static constexpr StepKernel<acc_t> kTable[][kStepRows] = {
      FASTNN_STEP_KERNELS(1),
#if defined(CPU_CAPABILITY_AVX512) || defined(__aarch64__)
      FASTNN_STEP_KERNELS(2),
      FASTNN_STEP_KERNELS(3),
      FASTNN_STEP_KERNELS(4),
#elif defined(CPU_CAPABILITY_AVX2)
      FASTNN_STEP_KERNELS(2),
#endif
  };
#undef FASTNN_STEP_KERNELS
  return kTable[vecs - 1][rows - 1];
}

}  // namespace fastnn::FASTNN_BACKEND
