// CUDA's language extensions and built-in types, for a host compiler.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// A plain __shared__ variable would be one per process here: the macros of shared_memory.h are the way.
#define __shared__ static_assert(false, "declare shared memory with FASTNN_SHARED or FASTNN_DYNAMIC_SHARED");

#define FASTNN_EMULATOR_VECTOR(type, scalar, align1, align2, align4)                   \
  struct alignas(align1) type##1 { scalar x; };                                        \
  struct alignas(align2) type##2 { scalar x, y; };                                     \
  struct alignas(align1) type##3 { scalar x, y, z; };                                  \
  struct alignas(align4) type##4 { scalar x, y, z, w; };                               \
  constexpr type##1 make_##type##1(scalar x) { return {x}; }                           \
  constexpr type##2 make_##type##2(scalar x, scalar y) { return {x, y}; }              \
  constexpr type##3 make_##type##3(scalar x, scalar y, scalar z) { return {x, y, z}; } \
  constexpr type##4 make_##type##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

FASTNN_EMULATOR_VECTOR(char, signed char, 1, 2, 4)
FASTNN_EMULATOR_VECTOR(uchar, unsigned char, 1, 2, 4)
FASTNN_EMULATOR_VECTOR(short, short, 2, 4, 8)
FASTNN_EMULATOR_VECTOR(ushort, unsigned short, 2, 4, 8)
FASTNN_EMULATOR_VECTOR(int, int, 4, 8, 16)
FASTNN_EMULATOR_VECTOR(uint, unsigned int, 4, 8, 16)
FASTNN_EMULATOR_VECTOR(long, long, 8, 16, 16)
FASTNN_EMULATOR_VECTOR(ulong, unsigned long, 8, 16, 16)
FASTNN_EMULATOR_VECTOR(longlong, long long, 8, 16, 16)
FASTNN_EMULATOR_VECTOR(ulonglong, unsigned long long, 8, 16, 16)
FASTNN_EMULATOR_VECTOR(float, float, 4, 8, 16)
FASTNN_EMULATOR_VECTOR(double, double, 8, 16, 16)
#undef FASTNN_EMULATOR_VECTOR

struct dim3 {
  unsigned int x = 1, y = 1, z = 1;
  constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

namespace fastnn::emulator {
// What blockDim and gridDim are here: without a constructor, which would make a const variable one that is
// written.
struct Extent {
  unsigned int x, y, z;
  constexpr operator dim3() const { return {x, y, z}; }
};
}  // namespace fastnn::emulator

// The scheduler sets these for the CUDA thread that it resumes, and defines them without the const: within a
// thread they are constant, so that the compiler need not read one twice, nor the checkers look at it. They
// live in the static TLS block, where reading one is a single load even in a library that was loaded late.
#if !defined(FASTNN_EMULATOR_BUILTIN)
#define FASTNN_EMULATOR_BUILTIN(type) extern constinit const thread_local type
#endif
#define FASTNN_EMULATOR_TLS __attribute__((tls_model("initial-exec"), visibility("hidden")))
FASTNN_EMULATOR_BUILTIN(uint3) FASTNN_EMULATOR_TLS threadIdx;
FASTNN_EMULATOR_BUILTIN(uint3) FASTNN_EMULATOR_TLS blockIdx;
FASTNN_EMULATOR_BUILTIN(fastnn::emulator::Extent) FASTNN_EMULATOR_TLS blockDim;
FASTNN_EMULATOR_BUILTIN(fastnn::emulator::Extent) FASTNN_EMULATOR_TLS gridDim;
#undef FASTNN_EMULATOR_TLS
#undef FASTNN_EMULATOR_BUILTIN

inline constexpr int warpSize = 32;
