// mma.sync, ldmatrix, stmatrix and movmatrix: the host meaning of csrc/cuda/mma.cuh, which documents fragments
// and arithmetic. All are collectives of a whole warp.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../runtime.h"
#include "half_types.h"
#include "tensor_core_arithmetic.h"

namespace fastnn::cuda {

struct tfloat32_t {
  float value;
};

template <typename T, int K>
inline constexpr int kMmaWordsA = K * int{sizeof(T)} / 8;
template <typename T, int K>
inline constexpr int kMmaWordsB = K * int{sizeof(T)} / 16;

}  // namespace fastnn::cuda

namespace fastnn::emulator {

template <typename T>
constexpr MmaType mma_type() {
  if constexpr (std::is_same_v<T, cuda::float16_t>) {
    return MmaType::kFloat16;
  } else if constexpr (std::is_same_v<T, cuda::bfloat16_t>) {
    return MmaType::kBfloat16;
  } else {
    static_assert(std::is_same_v<T, cuda::tfloat32_t>, "operands are float16_t, bfloat16_t or tfloat32_t");
    return MmaType::kTfloat32;
  }
}

// An mma of depth `depth` on the registers of one lane.
struct MmaOperands {
  MmaType type;
  unsigned depth;
  bool half_accumulators;
  void* d;
  const uint32_t* a;
  const uint32_t* b;
  Where where;
};

// Rows g and g + 8 of A, and column g of B, from the registers of the lanes 4 g..4 g + 3.
void unpack_a(MmaVector (&rows)[16], MmaType type, unsigned depth, const uint32_t* const (&a)[32]);
void unpack_b(MmaVector (&columns)[8], MmaType type, unsigned depth, const uint32_t* const (&b)[32]);

// warp_meet() of all 32 lanes, which the warp must have.
void meet_all(const char* name, void* operand, void (*compute)(void* const (&lanes)[32], unsigned mask),
              Where where);

void mma_sync(MmaOperands operands);
void load_matrices(uint32_t* matrices, unsigned count, bool transposed, const void* row, Where where);
void store_matrices(void* row, unsigned count, bool transposed, const uint32_t* matrices, Where where);
uint32_t transpose_matrix(uint32_t matrix, Where where);

}  // namespace fastnn::emulator

namespace fastnn::cuda {

template <typename T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[kMmaWordsA<T, 16>], const uint32_t (&b)[kMmaWordsB<T, 16>],
                  FASTNN_EMULATOR_HERE) {
  static_assert(sizeof(T) == 2, "m16n8k16 takes float16_t and bfloat16_t");
  emulator::mma_sync({emulator::mma_type<T>(), 16, false, d, a, b, where});
}

template <typename T>
void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[kMmaWordsA<T, 8>], const uint32_t (&b)[kMmaWordsB<T, 8>],
                 FASTNN_EMULATOR_HERE) {
  emulator::mma_sync({emulator::mma_type<T>(), 8, false, d, a, b, where});
}

template <typename T>
void mma_m16n8k4(float (&d)[4], const uint32_t (&a)[kMmaWordsA<T, 4>], const uint32_t (&b)[kMmaWordsB<T, 4>],
                 FASTNN_EMULATOR_HERE) {
  static_assert(std::is_same_v<T, tfloat32_t>, "m16n8k4 takes tfloat32_t");
  emulator::mma_sync({emulator::mma_type<T>(), 4, false, d, a, b, where});
}

template <typename T>
void mma_m16n8k16(uint32_t (&d)[2], const uint32_t (&a)[4], const uint32_t (&b)[2], FASTNN_EMULATOR_HERE) {
  static_assert(std::is_same_v<T, float16_t>, "fp16 accumulators go with float16_t");
  emulator::mma_sync({emulator::MmaType::kFloat16, 16, true, d, a, b, where});
}

template <typename T>
void mma_m16n8k8(uint32_t (&d)[2], const uint32_t (&a)[2], const uint32_t (&b)[1], FASTNN_EMULATOR_HERE) {
  static_assert(std::is_same_v<T, float16_t>, "fp16 accumulators go with float16_t");
  emulator::mma_sync({emulator::MmaType::kFloat16, 8, true, d, a, b, where});
}

template <int kCount>
void ldmatrix(uint32_t (&matrices)[kCount], const void* row, FASTNN_EMULATOR_HERE) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  emulator::load_matrices(matrices, kCount, false, row, where);
}

template <int kCount>
void ldmatrix_trans(uint32_t (&matrices)[kCount], const void* row, FASTNN_EMULATOR_HERE) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  emulator::load_matrices(matrices, kCount, true, row, where);
}

template <int kCount>
void stmatrix(void* row, const uint32_t (&matrices)[kCount], FASTNN_EMULATOR_HERE) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  emulator::store_matrices(row, kCount, false, matrices, where);
}

template <int kCount>
void stmatrix_trans(void* row, const uint32_t (&matrices)[kCount], FASTNN_EMULATOR_HERE) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  emulator::store_matrices(row, kCount, true, matrices, where);
}

inline uint32_t movmatrix_trans(uint32_t matrix, FASTNN_EMULATOR_HERE) {
  return emulator::transpose_matrix(matrix, where);
}

}  // namespace fastnn::cuda
