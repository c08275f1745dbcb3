// wgmma (sm_90a): D = A B, or D += A B, of 64 x N x K by the four warps of a warpgroup, asynchronously, with B
// and perhaps A read from shared memory (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions"). K is 16
// for fp16 and bf16 and 8 for tf32, 32 bytes in all cases; accumulators are fp32. Older devices trap.
//
//   store tiles of A and B;
//   fence_proxy_async();  __syncthreads();   // a TMA load's mbarrier does both
//   wgmma_fence(d);
//   for (int k = 0; k < kSteps; ++k)         // unrolled
//     wgmma_mma_async<T, N>(d, wgmma_advance(a, 32 * k), wgmma_advance(b, 32 * k));
//   wgmma_commit_group();
//   wgmma_wait_group<0>(d);
//
// All threads of the warpgroup, whose first warp is a multiple of 4, call the functions alike. Between a wgmma
// and the wait for its group the matrices may not be overwritten, nor d and the registers of A be touched; they
// must live until then. wgmma_fence() stands before the first wgmma and wherever the program has touched d or
// the registers of A since the last one; wgmmas of one shape may follow each other on the same d without it.
// fence and wait take the registers they are about, up to two arrays of any rank: a compiler knows nothing of
// the instructions' asynchrony, and could move computations with d over them. Where a branch stands between a
// fence and its wgmmas, ptxas loses sight of the registers and adds fences and waits (it says so with -v).
//
// Accumulators. With w = warp % 4, g = lane / 4, t = lane % 4, d[i] is row 16 w + g + 8 (i / 2 % 2), column
// 8 (i / 4) + 2 t + i % 2. Registers of A: as in mma.cuh, for these 16 rows.
//
// Matrices in shared memory, as the descriptor says. Let x be the row of A or the column of B and k the other
// index, s the size of an element, S = 32, 64, 128 the swizzle (16 without), and L and R the leading and the
// stride byte offset. The byte offset from the start, before the swizzle, is
//   K-major    S (x % 8) + R (x / 8) + s k                                        swizzled; L is not used
//              16 (x % 8) + R (x / 8) + L (s k / 16) + s k % 16                   without swizzle
//   MN-major   s (x % (S / s)) + L (x / (S / s)) + S (k % 8) + R (k / 8)          swizzled
//              s (x % 8) + R (x / 8) + 16 (k % 8) + L (k / 8)                     without swizzle
// (16-bit types; tf32 is K-major only). The swizzle then xors address bits 7.. into bits 4..: one bit for 32
// bytes, two for 64, three for 128, as TMA does; so the start is aligned to 8 S, but for steps along k within a
// row of S bytes (wgmma_advance). A pattern that starts elsewhere, at address p, has base offset p / 128 % 8.
#pragma once

#include "platform.cuh"

#if defined(FASTNN_EMULATOR)

#include "intrinsics/wgmma.h"

#else

#include <cstdint>
#include <type_traits>

#include "mma.cuh"

namespace fastnn::cuda {

// The values are those of the instructions.
enum class WgmmaSwizzle : uint8_t { kNone = 0, k128Bytes = 1, k64Bytes = 2, k32Bytes = 3 };
enum class WgmmaMajor : uint8_t { kK = 0, kMN = 1 };

// start: in shared memory. start and the offsets are multiples of 16 below 2^18 ("Matrix Descriptor Format").
__device__ __forceinline__ uint64_t wgmma_descriptor(const void* start, uint32_t leading_bytes,
                                                     uint32_t stride_bytes, WgmmaSwizzle swizzle,
                                                     unsigned base_offset = 0) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(start));
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<uint64_t>((leading_bytes & 0x3ffff) >> 4) << 16 |
         static_cast<uint64_t>((stride_bytes & 0x3ffff) >> 4) << 32 | static_cast<uint64_t>(base_offset) << 49 |
         static_cast<uint64_t>(swizzle) << 62;
}

// That of a matrix `bytes` further on.
__device__ __forceinline__ uint64_t wgmma_advance(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

// Registers that are to hold their values at this point of the program.
__device__ __forceinline__ void settle_registers(float& value) { asm volatile("" : "+f"(value)::"memory"); }
__device__ __forceinline__ void settle_registers(uint32_t& value) { asm volatile("" : "+r"(value)::"memory"); }
template <typename T, int kCount>
__device__ __forceinline__ void settle_registers(T (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) settle_registers(values[i]);
}

// In what follows, __CUDA_ARCH_FEAT_SM90_ALL: the device code is for sm_90a.

// From here on the threads of this warpgroup, whose warps all call it alike, have kCount registers, a multiple
// of 8 from 24 to 256: fewer than before, or more, for which they wait until others have given them. The kernel
// must be compiled for a fixed number (__launch_bounds__), and each role go its own way to its end, or ptxas
// leaves it out.
template <int kCount>
__device__ __forceinline__ void give_registers() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#else
  __trap();
#endif
}
template <int kCount>
__device__ __forceinline__ void take_registers() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#else
  __trap();
#endif
}

__device__ __forceinline__ void wgmma_fence() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  __trap();
#endif
}
template <typename Registers>
__device__ __forceinline__ void wgmma_fence(Registers& registers) {
  settle_registers(registers);
  wgmma_fence();
}
template <typename Registers, typename MoreRegisters>
__device__ __forceinline__ void wgmma_fence(Registers& registers, MoreRegisters& more_registers) {
  settle_registers(registers);
  settle_registers(more_registers);
  wgmma_fence();
}

// The wgmmas since the last call become the newest group.
__device__ __forceinline__ void wgmma_commit_group() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  __trap();
#endif
}

// Waits for all groups but the newest kPending.
template <int kPending>
__device__ __forceinline__ void wgmma_wait_group() {
  static_assert(kPending >= 0 && kPending <= 7);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#else
  __trap();
#endif
}
template <int kPending, typename Registers>
__device__ __forceinline__ void wgmma_wait_group(Registers& registers) {
  wgmma_wait_group<kPending>();
  settle_registers(registers);
}
template <int kPending, typename Registers, typename MoreRegisters>
__device__ __forceinline__ void wgmma_wait_group(Registers& registers, MoreRegisters& more_registers) {
  wgmma_wait_group<kPending>();
  settle_registers(registers);
  settle_registers(more_registers);
}

// One instruction for each N: its accumulators are N / 2 operands of an asm statement, which can neither loop
// nor name them.
template <int kN>
struct WgmmaInstruction;

// clang-format off
#define FASTNN_WGMMA_TEXT_4 "%0, %1, %2, %3"
#define FASTNN_WGMMA_TEXT_8 FASTNN_WGMMA_TEXT_4 ", %4, %5, %6, %7"
#define FASTNN_WGMMA_TEXT_16 FASTNN_WGMMA_TEXT_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define FASTNN_WGMMA_TEXT_32 FASTNN_WGMMA_TEXT_16 \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FASTNN_WGMMA_TEXT_48 FASTNN_WGMMA_TEXT_32 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define FASTNN_WGMMA_TEXT_64 FASTNN_WGMMA_TEXT_48 \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FASTNN_WGMMA_TEXT_96 FASTNN_WGMMA_TEXT_64 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define FASTNN_WGMMA_TEXT_128 FASTNN_WGMMA_TEXT_96 \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define FASTNN_WGMMA_LIST_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FASTNN_WGMMA_LIST_8(i) FASTNN_WGMMA_LIST_4(i), FASTNN_WGMMA_LIST_4(i + 4)
#define FASTNN_WGMMA_LIST_16(i) FASTNN_WGMMA_LIST_8(i), FASTNN_WGMMA_LIST_8(i + 8)
#define FASTNN_WGMMA_LIST_32(i) FASTNN_WGMMA_LIST_16(i), FASTNN_WGMMA_LIST_16(i + 16)
#define FASTNN_WGMMA_LIST_48(i) FASTNN_WGMMA_LIST_32(i), FASTNN_WGMMA_LIST_16(i + 32)
#define FASTNN_WGMMA_LIST_64(i) FASTNN_WGMMA_LIST_32(i), FASTNN_WGMMA_LIST_32(i + 32)
#define FASTNN_WGMMA_LIST_96(i) FASTNN_WGMMA_LIST_64(i), FASTNN_WGMMA_LIST_32(i + 64)
#define FASTNN_WGMMA_LIST_128(i) FASTNN_WGMMA_LIST_64(i), FASTNN_WGMMA_LIST_64(i + 64)

// kind: shape and types; words: how many accumulators; operands, predicate and majorness of A and B by the numbers of
// their asm operands.
#define FASTNN_WGMMA(kind, words, operands, predicate, majors, ...)                              \
  asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" #predicate ", 0;\n\t"                      \
               "wgmma.mma_async.sync.aligned." kind " {" FASTNN_WGMMA_TEXT_##words "}, " operands  \
               ", p, 1, 1" majors ";\n\t}"                                                         \
               : FASTNN_WGMMA_LIST_##words(0)                                                      \
               : __VA_ARGS__)

// n, N / 2 and the seven numbers after it.
#define FASTNN_WGMMA_INSTRUCTION(n, words, w0, w1, w2, w3, w4, w5, w6)                                               \
  template <>                                                                                                        \
  struct WgmmaInstruction<n> {                                                                                       \
    template <typename T, int kMajorA, int kMajorB>                                                                  \
    __device__ __forceinline__ static void issue(float (&d)[n / 2], uint64_t a, uint64_t b, int accumulate) {        \
      if constexpr (std::is_same_v<T, float16_t>) {                                                                  \
        FASTNN_WGMMA("m64n" #n "k16.f32.f16.f16", words, "%" #w0 ", %" #w1, w2, ", %" #w3 ", %" #w4,                 \
                     "l"(a), "l"(b), "r"(accumulate), "n"(kMajorA), "n"(kMajorB));                                   \
      } else if constexpr (std::is_same_v<T, bfloat16_t>) {                                                          \
        FASTNN_WGMMA("m64n" #n "k16.f32.bf16.bf16", words, "%" #w0 ", %" #w1, w2, ", %" #w3 ", %" #w4,               \
                     "l"(a), "l"(b), "r"(accumulate), "n"(kMajorA), "n"(kMajorB));                                   \
      } else {                                                                                                       \
        FASTNN_WGMMA("m64n" #n "k8.f32.tf32.tf32", words, "%" #w0 ", %" #w1, w2, "",                                 \
                     "l"(a), "l"(b), "r"(accumulate));                                                               \
      }                                                                                                              \
    }                                                                                                                \
    template <typename T, int kMajorB>                                                                               \
    __device__ __forceinline__ static void issue(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b,              \
                                                 int accumulate) {                                                   \
      if constexpr (std::is_same_v<T, float16_t>) {                                                                  \
        FASTNN_WGMMA("m64n" #n "k16.f32.f16.f16", words,                                                             \
                     "{%" #w0 ", %" #w1 ", %" #w2 ", %" #w3 "}, %" #w4, w5, ", %" #w6,                               \
                     "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kMajorB));             \
      } else if constexpr (std::is_same_v<T, bfloat16_t>) {                                                          \
        FASTNN_WGMMA("m64n" #n "k16.f32.bf16.bf16", words,                                                           \
                     "{%" #w0 ", %" #w1 ", %" #w2 ", %" #w3 "}, %" #w4, w5, ", %" #w6,                               \
                     "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kMajorB));             \
      } else {                                                                                                       \
        FASTNN_WGMMA("m64n" #n "k8.f32.tf32.tf32", words,                                                            \
                     "{%" #w0 ", %" #w1 ", %" #w2 ", %" #w3 "}, %" #w4, w5, "",                                      \
                     "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));                           \
      }                                                                                                              \
    }                                                                                                                \
  };
FASTNN_WGMMA_INSTRUCTION(8, 4, 4, 5, 6, 7, 8, 9, 10)
FASTNN_WGMMA_INSTRUCTION(16, 8, 8, 9, 10, 11, 12, 13, 14)
FASTNN_WGMMA_INSTRUCTION(32, 16, 16, 17, 18, 19, 20, 21, 22)
FASTNN_WGMMA_INSTRUCTION(64, 32, 32, 33, 34, 35, 36, 37, 38)
FASTNN_WGMMA_INSTRUCTION(96, 48, 48, 49, 50, 51, 52, 53, 54)
FASTNN_WGMMA_INSTRUCTION(128, 64, 64, 65, 66, 67, 68, 69, 70)
FASTNN_WGMMA_INSTRUCTION(192, 96, 96, 97, 98, 99, 100, 101, 102)
FASTNN_WGMMA_INSTRUCTION(256, 128, 128, 129, 130, 131, 132, 133, 134)
// clang-format on

#undef FASTNN_WGMMA_INSTRUCTION
#undef FASTNN_WGMMA
#undef FASTNN_WGMMA_LIST_128
#undef FASTNN_WGMMA_LIST_96
#undef FASTNN_WGMMA_LIST_64
#undef FASTNN_WGMMA_LIST_48
#undef FASTNN_WGMMA_LIST_32
#undef FASTNN_WGMMA_LIST_16
#undef FASTNN_WGMMA_LIST_8
#undef FASTNN_WGMMA_LIST_4
#undef FASTNN_WGMMA_TEXT_128
#undef FASTNN_WGMMA_TEXT_96
#undef FASTNN_WGMMA_TEXT_64
#undef FASTNN_WGMMA_TEXT_48
#undef FASTNN_WGMMA_TEXT_32
#undef FASTNN_WGMMA_TEXT_16
#undef FASTNN_WGMMA_TEXT_8
#undef FASTNN_WGMMA_TEXT_4

// d = A B, plus d when accumulate. T is float16_t, bfloat16_t or tfloat32_t; N is 8, 16, 32, 64, 96, 128, 192
// or 256. A and B by descriptor.
template <typename T, int kN, WgmmaMajor kMajorA = WgmmaMajor::kK, WgmmaMajor kMajorB = WgmmaMajor::kK>
__device__ __forceinline__ void wgmma_mma_async(float (&d)[kN / 2], uint64_t a, uint64_t b,
                                                bool accumulate = true) {
  static_assert(sizeof(T) == 2 || (kMajorA == WgmmaMajor::kK && kMajorB == WgmmaMajor::kK), "tf32 is K-major");
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  WgmmaInstruction<kN>::template issue<T, static_cast<int>(kMajorA), static_cast<int>(kMajorB)>(d, a, b,
                                                                                                accumulate);
#else
  __trap();
#endif
}

// A in registers.
template <typename T, int kN, WgmmaMajor kMajorB = WgmmaMajor::kK>
__device__ __forceinline__ void wgmma_mma_async(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                                                bool accumulate = true) {
  static_assert(sizeof(T) == 2 || kMajorB == WgmmaMajor::kK, "tf32 is K-major");
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  WgmmaInstruction<kN>::template issue<T, static_cast<int>(kMajorB)>(d, a, b, accumulate);
#else
  __trap();
#endif
}

}  // namespace fastnn::cuda

#endif
