// Tensor cores as a warp uses them: mma.sync, and ldmatrix, stmatrix, movmatrix, which move 8x8 matrices of
// 16-bit elements between shared memory and fragments. Each function is one PTX instruction (PTX ISA, "Warp
// Level Matrix Instructions"); all 32 lanes call it together. stmatrix needs sm_90, the rest sm_80.
//
// Fragments. An mma computes D = A B + D with A of 16 x K, B of K x 8 and D of 16 x 8; operands are registers
// of 32 bits, two 16-bit elements (the lower index in the low half) or one tf32. With g = lane / 4, t = lane %
// 4 and E = 4 / sizeof(element) elements to a register, e = 0..E-1:
//   A  a[r] holds rows  g + 8 (r % 2),       columns 4 E (r / 2) + E t + e     r < K / (2 E)
//   B  b[r] holds rows  4 E r + E t + e,     column  g                        r < K / (4 E)
//   D  d[i] holds row   g + 8 (i / 2),       column  2 t + i % 2              i < 4
//      with fp16 accumulators d[r] holds row g + 8 r, columns 2 t + e         r < 2
// Each register of A or B in 16 bits is an 8 x 8 matrix of ldmatrix: of A stored row by row; of B stored column
// by column (n by k), or row by row with ldmatrix_trans. ldmatrix also loads tf32, as pairs of 16 bits.
//
// Arithmetic, by measurement (Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores",
// 2021; Xie, Wang, Yang, Yang, "MMA-Sim", 2025): products are exact; an instruction's products and the
// accumulator are cut, toward zero, at a common last place, 2^-24 (Ampere) or 2^-25 (Hopper) of the largest
// exponent among them, and added exactly; an fp32 result is cut toward zero too, an fp16 result is rounded to
// nearest even. Ampere adds the products of m16n8k16 (and of m16n8k8 in tf32) in two halves, one after the
// other. The low 13 bits of a tf32 operand are ignored: round_to_tf32() first, or lose a bit of accuracy.
#pragma once

#include "platform.cuh"

#if defined(FASTNN_EMULATOR)

#include "intrinsics/tensor_cores.h"

#else

#include <cstdint>
#include <type_traits>

namespace fastnn::cuda {

// The type of operands that are floats of which the tensor cores read 19 bits.
struct tfloat32_t {
  float value;
};

// Registers of A and B in an mma of depth K.
template <typename T, int K>
inline constexpr int kMmaWordsA = K * int{sizeof(T)} / 8;
template <typename T, int K>
inline constexpr int kMmaWordsB = K * int{sizeof(T)} / 16;

// d += A B
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[kMmaWordsA<T, 16>],
                                             const uint32_t (&b)[kMmaWordsB<T, 16>]) {
  if constexpr (std::is_same_v<T, float16_t>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(std::is_same_v<T, bfloat16_t>, "m16n8k16 takes float16_t and bfloat16_t");
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

template <typename T>
__device__ __forceinline__ void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[kMmaWordsA<T, 8>],
                                            const uint32_t (&b)[kMmaWordsB<T, 8>]) {
  if constexpr (std::is_same_v<T, float16_t>) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
  } else if constexpr (std::is_same_v<T, bfloat16_t>) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
  } else {
    static_assert(std::is_same_v<T, tfloat32_t>, "m16n8k8 takes float16_t, bfloat16_t and tfloat32_t");
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

template <typename T>
__device__ __forceinline__ void mma_m16n8k4(float (&d)[4], const uint32_t (&a)[kMmaWordsA<T, 4>],
                                            const uint32_t (&b)[kMmaWordsB<T, 4>]) {
  static_assert(std::is_same_v<T, tfloat32_t>, "m16n8k4 takes tfloat32_t");
  asm volatile(
      "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

// With fp16 accumulators.
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(uint32_t (&d)[2], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, float16_t>, "fp16 accumulators go with float16_t");
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
      : "+r"(d[0]), "+r"(d[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <typename T>
__device__ __forceinline__ void mma_m16n8k8(uint32_t (&d)[2], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
  static_assert(std::is_same_v<T, float16_t>, "fp16 accumulators go with float16_t");
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3}, {%4}, {%0, %1};"
               : "+r"(d[0]), "+r"(d[1])
               : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

// Reads 1, 2 or 4 matrices of 8 x 8 16-bit elements. Lane 8 i + j gives the address of row j of matrix i (the
// other lanes' addresses are not looked at): 16 bytes, aligned to 16, in shared memory. matrices[i] gets
// elements 2 t and 2 t + 1 of row g. Eight rows are read at a time: no bank conflicts when they lie in
// different 16-byte columns of the 128-byte line of banks.
template <int kCount>
__device__ __forceinline__ void ldmatrix(uint32_t (&matrices)[kCount], const void* row) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kCount == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(matrices[0])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kCount == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(matrices[0]), "=r"(matrices[1])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
  }
}

// Transposed: matrices[i] gets element g of rows 2 t and 2 t + 1.
template <int kCount>
__device__ __forceinline__ void ldmatrix_trans(uint32_t (&matrices)[kCount], const void* row) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kCount == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(matrices[0])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kCount == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(matrices[0]), "=r"(matrices[1])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
  }
}

// The opposite of ldmatrix and ldmatrix_trans: writes rows of 16 bytes. sm_90.
template <int kCount>
__device__ __forceinline__ void stmatrix(void* row, const uint32_t (&matrices)[kCount]) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
#if __CUDA_ARCH__ >= 900
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kCount == 1) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(address), "r"(matrices[0])
                 : "memory");
  } else if constexpr (kCount == 2) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(matrices[0]),
                 "r"(matrices[1])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
                 : "memory");
  }
#else
  __trap();
#endif
}

template <int kCount>
__device__ __forceinline__ void stmatrix_trans(void* row, const uint32_t (&matrices)[kCount]) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
#if __CUDA_ARCH__ >= 900
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kCount == 1) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address), "r"(matrices[0])
                 : "memory");
  } else if constexpr (kCount == 2) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address),
                 "r"(matrices[0]), "r"(matrices[1])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
                 : "memory");
  }
#else
  __trap();
#endif
}

// An 8 x 8 matrix of 16-bit elements in the registers of a warp (a lane holds elements 2 t and 2 t + 1 of row
// g), transposed.
__device__ __forceinline__ uint32_t movmatrix_trans(uint32_t matrix) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(matrix));
  return transposed;
}

}  // namespace fastnn::cuda

#endif
