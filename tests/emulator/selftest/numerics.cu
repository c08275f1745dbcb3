// Correct kernels whose results depend on how arithmetic is rounded: in 16 bits, in a direction, to tf32, and
// within the documented error of a function.
#include <cmath>
#include <cstdint>

#include "selftest.h"

namespace fastnn::selftest {
namespace {

using fastnn::cuda::bfloat16_t, fastnn::cuda::bfloat16x2_t, fastnn::cuda::float16_t, fastnn::cuda::float16x2_t;

struct HalfRow {
  uint16_t a, b, c;
  uint16_t fma, sum, product, quotient, least;  // what must come of them
};

// One thread a row.
__global__ void half_rows_kernel(const HalfRow* rows, HalfRow* results) {
  HalfRow row = rows[threadIdx.x];
  const float16_t a = __ushort_as_half(row.a), b = __ushort_as_half(row.b), c = __ushort_as_half(row.c);
  row.fma = __half_as_ushort(__hfma(a, b, c));
  row.sum = __half_as_ushort(__hadd_rn(a, b));
  row.product = __half_as_ushort(__hmul_rn(a, b));
  row.quotient = __half_as_ushort(__hdiv(a, b));
  row.least = __half_as_ushort(__hmin(a, b));
  results[threadIdx.x] = row;
}

__global__ void bfloat16_rows_kernel(const HalfRow* rows, HalfRow* results) {
  HalfRow row = rows[threadIdx.x];
  const bfloat16_t a = __ushort_as_bfloat16(row.a), b = __ushort_as_bfloat16(row.b),
                   c = __ushort_as_bfloat16(row.c);
  row.fma = __bfloat16_as_ushort(__hfma(a, b, c));
  row.sum = __bfloat16_as_ushort(__hadd_rn(a, b));
  row.product = __bfloat16_as_ushort(__hmul_rn(a, b));
  row.quotient = __bfloat16_as_ushort(__hdiv(a, b));
  row.least = __bfloat16_as_ushort(__hmin(a, b));
  results[threadIdx.x] = row;
}

const char* compare_rows(const DeviceArray<HalfRow>& expected, const DeviceArray<HalfRow>& results) {
  for (size_t i = 0; i < expected.size(); ++i) {
    const HalfRow &r = results[i], &e = expected[i];
    FASTNN_EXPECT(r.fma == e.fma && r.sum == e.sum && r.product == e.product && r.quotient == e.quotient &&
                      r.least == e.least,
                  "row %zu: fma %04x, sum %04x, product %04x, quotient %04x, least %04x", i, r.fma, r.sum,
                  r.product, r.quotient, r.least);
  }
  return nullptr;
}

FASTNN_CORRECT(half_arithmetic_is_rounded_once) {
  const DeviceArray<HalfRow> rows{
      // (1 + 2^-10)^2 - (1 + 2^-9) = 2^-20: nothing is left of it where the product is rounded first
      {0x3c01, 0x3c01, 0xbc02, 0x0010, 0x4001, 0x3c02, 0x3c00, 0x3c01},
      {0x0001, 0x3800, 0x0000, 0x0000, 0x3800, 0x0000, 0x0002, 0x0001},  // 2^-25 is a tie; subnormals are kept
      {0x7bff, 0x4000, 0xfbff, 0x7bff, 0x7bff, 0x7c00, 0x77ff, 0x4000},  // 65504 * 2 - 65504 does not overflow
      {0x0000, 0x8000, 0x8000, 0x8000, 0x0000, 0x8000, 0x7fff, 0x8000},  // signs of zeros; 0 / -0
      {0x7e00, 0x3c00, 0x3c00, 0x7fff, 0x7fff, 0x7fff, 0x7fff, 0x3c00},  // every NaN is 0x7fff
      {0x3c00, 0x4200, 0x0000, 0x4200, 0x4400, 0x4200, 0x3555, 0x3c00},  // 1 / 3
  };
  DeviceArray<HalfRow> results(rows.size());
  FASTNN_RUN("half_rows_kernel", half_rows_kernel, dim3(1), dim3(static_cast<unsigned>(rows.size())), 0,
             nullptr, rows.data(), results.data());
  return compare_rows(rows, results);
}

FASTNN_CORRECT(bfloat16_arithmetic_is_rounded_once) {
  const DeviceArray<HalfRow> rows{
      // (1 + 2^-7)^2 - (1 + 2^-6) = 2^-14
      {0x3f81, 0x3f81, 0xbf82, 0x3880, 0x4001, 0x3f82, 0x3f80, 0x3f81},
      // 1 + 2^-8 is a tie, and 2^-133 decides it: neither a float nor a double holds the sum
      {0x3f81, 0x3f80, 0x0001, 0x3f81, 0x4000, 0x3f81, 0x3f81, 0x3f80},
      {0x0001, 0x3f00, 0x0000, 0x0000, 0x3f00, 0x0000, 0x0002, 0x0001},  // subnormals are kept
      {0x7f7f, 0x4000, 0xff7f, 0x7f7f, 0x7f7f, 0x7f80, 0x7eff, 0x4000},
      {0x0000, 0x8000, 0x8000, 0x8000, 0x0000, 0x8000, 0x7fff, 0x8000},
      {0x7fc0, 0x3f80, 0x3f80, 0x7fff, 0x7fff, 0x7fff, 0x7fff, 0x3f80},
      {0x3f80, 0x4040, 0x0000, 0x4040, 0x4080, 0x4040, 0x3eab, 0x3f80},  // 1 / 3
  };
  DeviceArray<HalfRow> results(rows.size());
  FASTNN_RUN("bfloat16_rows_kernel", bfloat16_rows_kernel, dim3(1), dim3(static_cast<unsigned>(rows.size())), 0,
             nullptr, rows.data(), results.data());
  return compare_rows(rows, results);
}

// A dot product in pairs and one in halves: a pair is two halves, to the last bit.
__global__ void half_pairs_kernel(const float* x, const float* y, int count, float2* pairs, float2* halves) {
  float16x2_t both = __float2half2_rn(0.0f);
  float16_t low = __low2half(both), high = __high2half(both);
  for (int i = 0; i < count; i += 2) {
    const float16x2_t a = __floats2half2_rn(x[i], x[i + 1]), b = __floats2half2_rn(y[i], y[i + 1]);
    both = __hfma2(a, b, both);
    low = __hfma(__low2half(a), __low2half(b), low);
    high = __hfma(__high2half(a), __high2half(b), high);
  }
  *pairs = __half22float2(both);
  *halves = {__half2float(low), __half2float(high)};
}

FASTNN_CORRECT(half_pairs_are_two_halves) {
  DeviceArray<float> x(64), y(64);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(static_cast<int>(i * 37 % 64) - 32) / 7;
    y[i] = static_cast<float>(static_cast<int>(i * 11 % 64) - 20) / 3;
  }
  DeviceArray<float2> pairs(1), halves(1);
  FASTNN_RUN("half_pairs_kernel", half_pairs_kernel, dim3(1), dim3(1), 0, nullptr, x.data(), y.data(), 64,
             pairs.data(), halves.data());
  FASTNN_EXPECT(pairs[0].x == halves[0].x && pairs[0].y == halves[0].y, "(%g, %g) instead of (%g, %g)",
                pairs[0].x, pairs[0].y, halves[0].x, halves[0].y);
  return nullptr;
}

// --- single precision ---

__global__ void directions_kernel(float one, float tiny, float* sums, float* products) {
  sums[0] = __fadd_rn(one, tiny);
  sums[1] = __fadd_rz(one, tiny);
  sums[2] = __fadd_rd(one, -tiny);
  sums[3] = __fadd_ru(one, tiny);
  sums[4] = __fadd_rd(one, -one);
  // Never contracted: an fma would give 2^-24, as it does below.
  const float factor = one + 0x1p-12f, square = one + 0x1p-11f;
  products[0] = __fmul_rn(factor, factor) - square;
  products[1] = fmaf(factor, factor, -square);
}

FASTNN_CORRECT(sums_are_rounded_in_the_direction_of_their_name) {
  DeviceArray<float> sums(5), products(2);
  FASTNN_RUN("directions_kernel", directions_kernel, dim3(1), dim3(1), 0, nullptr, 1.0f, 0x1p-30f, sums.data(),
             products.data());
  FASTNN_EXPECT(sums[0] == 1 && sums[1] == 1 && sums[2] == 1 - 0x1p-24f && sums[3] == 1 + 0x1p-23f,
                "%.9g %.9g %.9g %.9g", sums[0], sums[1], sums[2], sums[3]);
  FASTNN_EXPECT(sums[4] == 0 && std::signbit(sums[4]), "1 - 1 rounded down is %g", sums[4]);
  FASTNN_EXPECT(products[0] == 0 && products[1] == 0x1p-24f, "%g, %g", products[0], products[1]);
  return nullptr;
}

__global__ void tf32_kernel(const float* x, float* rounded) {
  rounded[threadIdx.x] = fastnn::cuda::round_to_tf32(x[threadIdx.x]);
}

FASTNN_CORRECT(tf32_is_rounded_with_ties_away) {
  const DeviceArray<float> x{1 + 0x1p-11f,   -1 - 0x1p-11f,   1 + 0x1.ffcp-12f,
                             1 + 0x1.8p-10f, 0x1.fffffep127f, 0.1f};
  const DeviceArray<float> expected{1 + 0x1p-10f, -1 - 0x1p-10f, 1.0f, 1 + 0x1p-9f, INFINITY, 0x1.998p-4f};
  DeviceArray<float> rounded(x.size());
  FASTNN_RUN("tf32_kernel", tf32_kernel, dim3(1), dim3(static_cast<unsigned>(x.size())), 0, nullptr, x.data(),
             rounded.data());
  for (size_t i = 0; i < x.size(); ++i)
    FASTNN_EXPECT(rounded[i] == expected[i], "%.9g became %.9g", x[i], rounded[i]);
  return nullptr;
}

// --- functions with an error of their own ---

struct Results {
  float exp, fast_exp, tanh, fast_sin, log, rsqrt;
  double double_exp;
};

__global__ void functions_kernel(const float* x, Results* results) {
  const float v = x[threadIdx.x];
  results[blockIdx.x * blockDim.x + threadIdx.x] = {
      expf(v), __expf(v), tanhf(v), __sinf(v), logf(fabsf(v)), rsqrtf(fabsf(v)), exp(static_cast<double>(v))};
}

double places(double result, double exact, int fraction_bits) {
  int exponent;
  std::frexp(exact, &exponent);
  return std::fabs(result - exact) / std::ldexp(1.0, exponent - 1 - fraction_bits);
}

// The bounds are the documented ones; every block must get the same bits.
FASTNN_CORRECT(functions_err_as_documented) {
  constexpr unsigned kThreads = 128, kBlocks = 5;
  DeviceArray<float> x(kThreads);
  for (unsigned i = 0; i < kThreads; ++i) x[i] = (static_cast<float>(i) - 60.3f) / 21;
  DeviceArray<Results> results(kBlocks * kThreads);
  FASTNN_RUN("functions_kernel", functions_kernel, dim3(kBlocks), dim3(kThreads), 0, nullptr, x.data(),
             results.data());
  for (unsigned i = 0; i < kBlocks * kThreads; ++i) {
    const Results &r = results[i], &first = results[i % kThreads];
    const double v = x[i % kThreads];
    FASTNN_EXPECT(places(r.exp, std::exp(v), 23) < 2.01, "expf(%.9g) = %.9g", v, r.exp);
    FASTNN_EXPECT(places(r.fast_exp, std::exp(v), 23) < 2.01 + std::floor(std::fabs(1.173 * v)),
                  "__expf(%.9g) = %.9g", v, r.fast_exp);
    FASTNN_EXPECT(places(r.tanh, std::tanh(v), 23) < 2.01, "tanhf(%.9g) = %.9g", v, r.tanh);
    FASTNN_EXPECT(std::fabs(r.fast_sin - std::sin(v)) <= std::exp2(-21.41), "__sinf(%.9g) = %.9g", v,
                  r.fast_sin);
    FASTNN_EXPECT(places(r.log, std::log(std::fabs(v)), 23) < 1.01, "logf(%.9g) = %.9g", std::fabs(v), r.log);
    FASTNN_EXPECT(places(r.rsqrt, 1 / std::sqrt(std::fabs(v)), 23) < 2.01, "rsqrtf(%.9g) = %.9g", v, r.rsqrt);
    FASTNN_EXPECT(places(r.double_exp, std::exp(v), 52) < 2.5, "exp(%.9g) = %.17g", v, r.double_exp);
    FASTNN_EXPECT(r.exp == first.exp && r.fast_exp == first.fast_exp && r.tanh == first.tanh &&
                      r.fast_sin == first.fast_sin && r.double_exp == first.double_exp,
                  "two threads got different results of %.9g", v);
  }
  return nullptr;
}

}  // namespace
}  // namespace fastnn::selftest
