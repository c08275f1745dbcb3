// wgmma: the host meaning of csrc/cuda/wgmma.cuh, which documents layouts and rules.
//
// A wgmma is computed at the wgmma_wait_group() that orders it, from what shared memory and the registers hold
// then. Until then its accumulators hold NaN, so that to read them early, or to forget the wait, shows in the
// results; to write them, or the registers of A, is reported. Each warp does its 16 rows.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../runtime.h"
#include "tensor_cores.h"

namespace fastnn::cuda {

enum class WgmmaSwizzle : uint8_t { kNone, k128Bytes, k64Bytes, k32Bytes };
enum class WgmmaMajor : uint8_t { kK, kMN };

}  // namespace fastnn::cuda

namespace fastnn::emulator {

// On the registers of one lane.
struct WgmmaOperands {
  MmaType type;
  bool mn_major_a, mn_major_b, accumulate;
  unsigned n;
  float* d;
  const uint32_t* a;  // null when A is in shared memory
  uint64_t a_descriptor, b_descriptor;
};

uint64_t wgmma_descriptor(const void* start, uint32_t leading_bytes, uint32_t stride_bytes,
                          cuda::WgmmaSwizzle swizzle, unsigned base_offset, Where where);
void wgmma_fence(Where where);
void wgmma_mma_async(WgmmaOperands operands, Where where);
void wgmma_commit_group(Where where);
void wgmma_wait_group(unsigned pending, Where where);

}  // namespace fastnn::emulator

namespace fastnn::cuda {

inline uint64_t wgmma_descriptor(const void* start, uint32_t leading_bytes, uint32_t stride_bytes,
                                 WgmmaSwizzle swizzle, unsigned base_offset = 0, FASTNN_EMULATOR_HERE) {
  return emulator::wgmma_descriptor(start, leading_bytes, stride_bytes, swizzle, base_offset, where);
}

constexpr uint64_t wgmma_advance(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

// A fiber has all the registers that it wants.
template <int kCount>
void give_registers() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256);
}
template <int kCount>
void take_registers() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256);
}

inline void wgmma_fence(FASTNN_EMULATOR_HERE) { emulator::wgmma_fence(where); }
template <typename Registers>
void wgmma_fence(Registers&, FASTNN_EMULATOR_HERE) {
  emulator::wgmma_fence(where);
}
template <typename Registers, typename MoreRegisters>
void wgmma_fence(Registers&, MoreRegisters&, FASTNN_EMULATOR_HERE) {
  emulator::wgmma_fence(where);
}

template <typename T, int kN, WgmmaMajor kMajorA = WgmmaMajor::kK, WgmmaMajor kMajorB = WgmmaMajor::kK>
void wgmma_mma_async(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate = true, FASTNN_EMULATOR_HERE) {
  static_assert(kN >= 8 && kN <= 256 && kN % 8 == 0, "N is a multiple of 8 up to 256");
  static_assert(sizeof(T) == 2 || (kMajorA == WgmmaMajor::kK && kMajorB == WgmmaMajor::kK), "tf32 is K-major");
  emulator::wgmma_mma_async({.type = emulator::mma_type<T>(),
                             .mn_major_a = kMajorA == WgmmaMajor::kMN,
                             .mn_major_b = kMajorB == WgmmaMajor::kMN,
                             .accumulate = accumulate,
                             .n = kN,
                             .d = d,
                             .a = nullptr,
                             .a_descriptor = a,
                             .b_descriptor = b},
                            where);
}

template <typename T, int kN, WgmmaMajor kMajorB = WgmmaMajor::kK>
void wgmma_mma_async(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate = true,
                     FASTNN_EMULATOR_HERE) {
  static_assert(kN >= 8 && kN <= 256 && kN % 8 == 0, "N is a multiple of 8 up to 256");
  static_assert(sizeof(T) == 2 || kMajorB == WgmmaMajor::kK, "tf32 is K-major");
  emulator::wgmma_mma_async({.type = emulator::mma_type<T>(),
                             .mn_major_a = false,
                             .mn_major_b = kMajorB == WgmmaMajor::kMN,
                             .accumulate = accumulate,
                             .n = kN,
                             .d = d,
                             .a = a,
                             .a_descriptor = 0,
                             .b_descriptor = b},
                            where);
}

inline void wgmma_commit_group(FASTNN_EMULATOR_HERE) { emulator::wgmma_commit_group(where); }

template <int kPending>
void wgmma_wait_group(FASTNN_EMULATOR_HERE) {
  static_assert(kPending >= 0 && kPending <= 7);
  emulator::wgmma_wait_group(kPending, where);
}
template <int kPending, typename Registers>
void wgmma_wait_group(Registers&, FASTNN_EMULATOR_HERE) {
  static_assert(kPending >= 0 && kPending <= 7);
  emulator::wgmma_wait_group(kPending, where);
}
template <int kPending, typename Registers, typename MoreRegisters>
void wgmma_wait_group(Registers&, MoreRegisters&, FASTNN_EMULATOR_HERE) {
  static_assert(kPending >= 0 && kPending <= 7);
  emulator::wgmma_wait_group(kPending, where);
}

}  // namespace fastnn::cuda
