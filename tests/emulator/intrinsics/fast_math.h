// CUDA's mathematical functions with an error of their own: the standard ones, whose results are not correctly
// rounded on the device, and the fast intrinsics (__expf). Here each result lies within the documented bound
// and is disturbed within it, by an amount that depends on the function and the bits of its arguments alone: so
// a kernel or a test that leans on the last bits of the host's libm fails, and fails alike in every order of
// execution. Nothing between the bounds is meant to resemble a device.
//
// What is documented as exact stays so: of an argument that is zero, infinite or NaN comes the correctly
// rounded result, as of 1 for logarithms and powers; odd and even functions are so to the last bit; and sine,
// cosine, tanh and erf stay within [-1, 1], erfc within [0, 2], and saturate: of what lies next to nothing
// below such an end comes the end itself. No document says so, but a device computes tanh(20) as 1 less
// something that vanishes. sqrt, fma, division, fmod, rounding to whole numbers are exact on the device too and
// stay the C library's. What the compiler computes itself of constants is the host's result here, and nvcc's
// there.
//
// Of a kernel's names the C library declares most, so the functions cannot be defined anew: a second
// declaration names another symbol to link to instead. That catches std::exp and the compiler's own
// __builtin_expf as well, wherever a kernel's translation unit calls them, inline functions of csrc/ops
// included. Left out, for nothing here calls them: the Bessel functions, gamma functions and inverses of erf
// (the C library's results where it has them), norms of more than two numbers.
#pragma once

#include <math.h>

#include <cmath>

#include "fast_math_table.h"

#define FASTNN_EMULATOR_LINKED_TO(symbol) noexcept __asm__("fastnn_emulator_" #symbol)

extern "C" {

#define FASTNN_EMULATOR_DECLARE_UNARY(name, ...)           \
  float name##f(float) FASTNN_EMULATOR_LINKED_TO(name##f); \
  double name(double) FASTNN_EMULATOR_LINKED_TO(name);
FASTNN_EMULATOR_UNARY_MATH(FASTNN_EMULATOR_DECLARE_UNARY)
#undef FASTNN_EMULATOR_DECLARE_UNARY

#define FASTNN_EMULATOR_DECLARE_BINARY(name, ...)                 \
  float name##f(float, float) FASTNN_EMULATOR_LINKED_TO(name##f); \
  double name(double, double) FASTNN_EMULATOR_LINKED_TO(name);
FASTNN_EMULATOR_BINARY_MATH(FASTNN_EMULATOR_DECLARE_BINARY)
#undef FASTNN_EMULATOR_DECLARE_BINARY

// sincos() and sincosf() are not declared anew, for the compiler makes calls to them of a sine and a cosine of
// one number, and those ignore it: fast_math.cpp defines functions of these names, which the library links to.

// The intrinsics, with the bounds of the Programming Guide's table of single-precision intrinsic functions.
float __expf(float) FASTNN_EMULATOR_LINKED_TO(fast_expf);      // 2 + floor(|1.173 x|) ulp
float __exp10f(float) FASTNN_EMULATOR_LINKED_TO(fast_exp10f);  // 2 + floor(|2.97 x|) ulp
float __logf(float) FASTNN_EMULATOR_LINKED_TO(fast_logf);      // 2^-21.41 for x in [0.5, 2], otherwise 3 ulp
float __log2f(float) FASTNN_EMULATOR_LINKED_TO(fast_log2f);    // 2^-22 for x in [0.5, 2], otherwise 2 ulp
float __log10f(float) FASTNN_EMULATOR_LINKED_TO(fast_log10f);  // 2^-24 for x in [0.5, 2], otherwise 3 ulp
// 2^-21.41 and 2^-21.19 in [-pi, pi]; beyond that they grow with |x| and stay below what the PTX ISA gives for
// sin and cos: 2^-20.5 in [-2 pi, 2 pi], 2^-14.7 in [-100 pi, 100 pi]. Subnormal sines are flushed to zero.
float __sinf(float) FASTNN_EMULATOR_LINKED_TO(fast_sinf);
float __cosf(float) FASTNN_EMULATOR_LINKED_TO(fast_cosf);
float __tanf(float) FASTNN_EMULATOR_LINKED_TO(fast_tanf);         // __fdividef(__sinf(x), __cosf(x))
float __powf(float, float) FASTNN_EMULATOR_LINKED_TO(fast_powf);  // exp2f(y * __log2f(x))
float __tanhf(float) FASTNN_EMULATOR_LINKED_TO(fast_tanhf);       // 2^-11, relative
// x / y: 2 ulp for |y| in [2^-126, 2^126]; 0 beyond that, or NaN if x is infinite.
float __fdividef(float, float) FASTNN_EMULATOR_LINKED_TO(fast_dividef);

// Not approximate, but the C library leaves open which of two zeros comes: -0 is the lesser on the device.
float fminf(float, float) FASTNN_EMULATOR_LINKED_TO(fminf);
float fmaxf(float, float) FASTNN_EMULATOR_LINKED_TO(fmaxf);
double fmin(double, double) FASTNN_EMULATOR_LINKED_TO(fmin);
double fmax(double, double) FASTNN_EMULATOR_LINKED_TO(fmax);

// These store through a kernel's pointers, which the kernel's translation unit must do for the stores to be
// checked.
inline void __sincosf(float v, float* sine, float* cosine) noexcept {
  *sine = __sinf(v);
  *cosine = __cosf(v);
}
inline void sincospif(float v, float* sine, float* cosine) noexcept {
  *sine = sinpif(v);
  *cosine = cospif(v);
}
inline void sincospi(double v, double* sine, double* cosine) noexcept {
  *sine = sinpi(v);
  *cosine = cospi(v);
}
inline float fdividef(float a, float b) noexcept { return a / b; }
inline double fdivide(double a, double b) noexcept { return a / b; }
}

#undef FASTNN_EMULATOR_LINKED_TO

// Overloads that CUDA adds to those of the C++ library.
inline float exp10(float v) noexcept { return exp10f(v); }
inline float sinpi(float v) noexcept { return sinpif(v); }
inline float cospi(float v) noexcept { return cospif(v); }
inline float rcbrt(float v) noexcept { return rcbrtf(v); }
inline float rsqrt(float v) noexcept { return rsqrtf(v); }
inline float rhypot(float a, float b) noexcept { return rhypotf(a, b); }
