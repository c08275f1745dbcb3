// The mathematical functions that the device rounds otherwise than correctly, with the largest errors that the
// CUDA C++ Programming Guide gives (release 13.0, "Mathematical Functions": the tables of single-precision and
// of double-precision functions), in units of the last place.
#pragma once

// name, ulps of the float function (name with an f), ulps of the double function, symmetry, largest magnitude
// of the result (0: none).
#define FASTNN_EMULATOR_UNARY_MATH(ROW) \
  ROW(exp, 2, 1, kNone, 0)              \
  ROW(exp2, 2, 1, kNone, 0)             \
  ROW(exp10, 2, 1, kNone, 0)            \
  ROW(expm1, 1, 1, kNone, 0)            \
  ROW(log, 1, 1, kNone, 0)              \
  ROW(log2, 1, 1, kNone, 0)             \
  ROW(log10, 2, 1, kNone, 0)            \
  ROW(log1p, 1, 1, kNone, 0)            \
  ROW(sin, 2, 2, kOdd, 1)               \
  ROW(cos, 2, 2, kEven, 1)              \
  ROW(tan, 4, 2, kOdd, 0)               \
  ROW(sinpi, 1, 2, kOdd, 1)             \
  ROW(cospi, 1, 2, kEven, 1)            \
  ROW(asin, 2, 2, kOdd, 0)              \
  ROW(acos, 2, 2, kNone, 0)             \
  ROW(atan, 2, 2, kOdd, 0)              \
  ROW(sinh, 3, 2, kOdd, 0)              \
  ROW(cosh, 2, 1, kEven, 0)             \
  ROW(tanh, 2, 1, kOdd, 1)              \
  ROW(asinh, 3, 3, kOdd, 0)             \
  ROW(acosh, 4, 3, kNone, 0)            \
  ROW(atanh, 3, 2, kOdd, 0)             \
  ROW(erf, 2, 2, kOdd, 1)               \
  ROW(erfc, 4, 5, kNone, 2)             \
  ROW(cbrt, 1, 1, kOdd, 0)              \
  ROW(rcbrt, 1, 1, kOdd, 0)             \
  ROW(rsqrt, 2, 1, kNone, 0)

// name, ulps of the float function, ulps of the double function, whether the operands' signs and order are
// nothing to it.
#define FASTNN_EMULATOR_BINARY_MATH(ROW) \
  ROW(pow, 4, 2, false)                  \
  ROW(atan2, 3, 2, false)                \
  ROW(hypot, 3, 2, true)                 \
  ROW(rhypot, 2, 1, true)
