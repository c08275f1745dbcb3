// What the tests of the emulator's arithmetic call, a whole array at a time.
#include <functional>
#include <map>
#include <string>
#include <utility>

#include "../intrinsics/arithmetic.h"
#include "../intrinsics/fast_math.h"
#include "../intrinsics/half_arithmetic.h"

namespace {

using fastnn::cuda::bfloat16_t, fastnn::cuda::bfloat16x2_t, fastnn::cuda::float16_t, fastnn::cuda::float16x2_t;

// Reads element i of each operand's array and writes element i of the results.
using Batch = std::function<void(const void* const* operands, void* results, int64_t count)>;

template <typename Result, typename... Operands>
Batch batch(Result (*function)(Operands...)) {
  return [function](const void* const* operands, void* results, int64_t count) {
    [&]<size_t... k>(std::index_sequence<k...>) {
      for (int64_t i = 0; i < count; ++i)
        static_cast<Result*>(results)[i] = function(static_cast<const Operands*>(operands[k])[i]...);
    }(std::index_sequence_for<Operands...>{});
  };
}

// The other ways to the same functions: all must end at them.
float std_exp(float v) { return std::exp(v); }
double std_exp(double v) { return std::exp(v); }
float overloaded_tanh(float v) { return tanh(v); }
float std_pow(float a, float b) { return std::pow(a, b); }
float std_fmax(float a, float b) { return std::fmax(a, b); }
// The compiler makes one call of both.
float2 sine_and_cosine(float v) { return {sinf(v), std::cos(v)}; }
double2 sine_and_cosine(double v) { return {sin(v), std::cos(v)}; }
float2 by_sincosf(float v) {
  float2 both;
  sincosf(v, &both.x, &both.y);
  return both;
}
float2 by_fast_sincosf(float v) {
  float2 both;
  __sincosf(v, &both.x, &both.y);
  return both;
}
float product_and_sum(float a, float b, float c) { return __fmul_rn(a, b) + c; }

using Batches = std::map<std::string, Batch>;

// Functions of one type each.
#define ADD(name) batches.emplace(#name, batch(&name))
// One of several overloads, chosen by the types of its operands.
#define ADD_AS(key, name, Result, ...) batches.emplace(key, batch(static_cast<Result (*)(__VA_ARGS__)>(&name)))

void add_mathematics(Batches& batches) {
#define ADD_UNARY(name, ...) ADD_AS(#name "f", name##f, float, float), ADD_AS(#name, name, double, double);
  FASTNN_EMULATOR_UNARY_MATH(ADD_UNARY)
#undef ADD_UNARY
#define ADD_BINARY(name, ...) \
  ADD_AS(#name "f", name##f, float, float, float), ADD_AS(#name, name, double, double, double);
  FASTNN_EMULATOR_BINARY_MATH(ADD_BINARY)
#undef ADD_BINARY
  ADD(__expf), ADD(__exp10f), ADD(__logf), ADD(__log2f), ADD(__log10f), ADD(__sinf), ADD(__cosf), ADD(__tanf);
  ADD(__tanhf), ADD(__powf), ADD(__fdividef), ADD(fminf), ADD(fmaxf);
  ADD_AS("fmin", fmin, double, double, double), ADD_AS("fmax", fmax, double, double, double);
  ADD_AS("std::exp(float)", std_exp, float, float), ADD_AS("std::exp(double)", std_exp, double, double);
  ADD_AS("sine_and_cosine(float)", sine_and_cosine, float2, float);
  ADD_AS("sine_and_cosine(double)", sine_and_cosine, double2, double);
  ADD(overloaded_tanh), ADD(std_pow), ADD(std_fmax), ADD(by_sincosf), ADD(by_fast_sincosf);
}

void add_arithmetic(Batches& batches) {
#define ADD_ROUNDED(suffix)                                                                                   \
  ADD(__fadd_##suffix), ADD(__fsub_##suffix), ADD(__fmul_##suffix), ADD(__fdiv_##suffix),                     \
      ADD(__frcp_##suffix);                                                                                   \
  ADD(__fsqrt_##suffix), ADD(__fmaf_##suffix), ADD(__double2float_##suffix), ADD(__int2float_##suffix);       \
  ADD(__uint2float_##suffix), ADD(__ll2float_##suffix), ADD(__ull2float_##suffix);                            \
  ADD(__float2int_##suffix), ADD(__float2uint_##suffix), ADD(__float2ll_##suffix), ADD(__float2ull_##suffix); \
  ADD(__double2int_##suffix), ADD(__double2uint_##suffix), ADD(__double2ll_##suffix), ADD(__double2ull_##suffix)
  ADD_ROUNDED(rn);
  ADD_ROUNDED(rz);
  ADD_ROUNDED(rd);
  ADD_ROUNDED(ru);
#undef ADD_ROUNDED
  ADD(__frsqrt_rn), ADD(__saturatef), ADD(product_and_sum);
  ADD_AS("min(float)", min, float, float, float), ADD_AS("max(float)", max, float, float, float);
  ADD_AS("dp4a(int)", __dp4a, int, int, int, int);
  ADD_AS("dp4a(unsigned)", __dp4a, unsigned, unsigned, unsigned, unsigned);
  ADD_AS("hadd(int)", __hadd, int, int, int);
  ADD(__rhadd), ADD(__uhadd), ADD(__urhadd), ADD(__sad), ADD(__usad), ADD(__mulhi), ADD(__umulhi), ADD(__mul24);
  ADD(__funnelshift_l), ADD(__funnelshift_r), ADD(__funnelshift_lc), ADD(__funnelshift_rc);
  ADD_AS("round_to_tf32", fastnn::cuda::round_to_tf32, float, float);
  ADD_AS("truncate_to_tf32", fastnn::emulator::truncate_to_tf32, float, float);
}

template <typename T, typename T2>
void add_half(Batches& batches, const std::string& type) {
#define ADD_UNARY(name, name2) ADD_AS(#name + type, name, T, T), ADD_AS(#name2 + type, name2, T2, T2)
#define ADD_BINARY(name, name2) ADD_AS(#name + type, name, T, T, T), ADD_AS(#name2 + type, name2, T2, T2, T2)
#define ADD_TERNARY(name, name2) \
  ADD_AS(#name + type, name, T, T, T, T), ADD_AS(#name2 + type, name2, T2, T2, T2, T2)
#define ADD_COMPARISON(name)                                                                                   \
  ADD_AS("__h" #name + type, __h##name, bool, T, T), ADD_AS("__h" #name "u" + type, __h##name##u, bool, T, T); \
  ADD_AS("__h" #name "2" + type, __h##name##2, T2, T2, T2),                                                    \
      ADD_AS("__h" #name "u2" + type, __h##name##u2, T2, T2, T2);                                              \
  ADD_AS("__hb" #name "2" + type, __hb##name##2, bool, T2, T2);                                                \
  ADD_AS("__hb" #name "u2" + type, __hb##name##u2, bool, T2, T2)
  ADD_UNARY(__hneg, __hneg2), ADD_UNARY(__habs, __habs2);
  ADD_BINARY(__hadd, __hadd2), ADD_BINARY(__hsub, __hsub2), ADD_BINARY(__hmul, __hmul2),
      ADD_BINARY(__hdiv, __h2div);
  ADD_BINARY(__hadd_rn, __hadd2_rn), ADD_BINARY(__hsub_rn, __hsub2_rn), ADD_BINARY(__hmul_rn, __hmul2_rn);
  ADD_BINARY(__hadd_sat, __hadd2_sat), ADD_BINARY(__hsub_sat, __hsub2_sat), ADD_BINARY(__hmul_sat, __hmul2_sat);
  ADD_BINARY(__hmin, __hmin2), ADD_BINARY(__hmax, __hmax2);
  ADD_BINARY(__hmin_nan, __hmin2_nan), ADD_BINARY(__hmax_nan, __hmax2_nan);
  ADD_TERNARY(__hfma, __hfma2), ADD_TERNARY(__hfma_sat, __hfma2_sat), ADD_TERNARY(__hfma_relu, __hfma2_relu);
  ADD_COMPARISON(eq);
  ADD_COMPARISON(ne);
  ADD_COMPARISON(lt);
  ADD_COMPARISON(le);
  ADD_COMPARISON(gt);
  ADD_COMPARISON(ge);
  ADD_AS("__hisnan" + type, __hisnan, bool, T), ADD_AS("__hisnan2" + type, __hisnan2, T2, T2);
  ADD_AS("__hisinf" + type, __hisinf, int, T);
  ADD_AS("__low2float" + type, __low2float, float, T2), ADD_AS("__high2float" + type, __high2float, float, T2);
  ADD_AS("__lowhigh2highlow" + type, __lowhigh2highlow, T2, T2);
#undef ADD_UNARY
#undef ADD_BINARY
#undef ADD_TERNARY
#undef ADD_COMPARISON
}

void add_conversions(Batches& batches) {
#define ADD_ROUNDED(name, suffix)                                                               \
  ADD(__float2##name##_##suffix), ADD(__int2##name##_##suffix), ADD(__uint2##name##_##suffix);  \
  ADD(__short2##name##_##suffix), ADD(__ushort2##name##_##suffix), ADD(__ll2##name##_##suffix); \
  ADD(__ull2##name##_##suffix), ADD(__##name##2int_##suffix), ADD(__##name##2uint_##suffix);    \
  ADD(__##name##2short_##suffix), ADD(__##name##2ushort_##suffix), ADD(__##name##2ll_##suffix); \
  ADD(__##name##2ull_##suffix)
#define ADD_CONVERSIONS(name)                                                                             \
  ADD_ROUNDED(name, rn);                                                                                  \
  ADD_ROUNDED(name, rz);                                                                                  \
  ADD_ROUNDED(name, rd);                                                                                  \
  ADD_ROUNDED(name, ru);                                                                                  \
  ADD(__##name##2char_rz), ADD(__##name##2uchar_rz), ADD(__float2##name), ADD(__double2##name);           \
  ADD(__##name##2float), ADD(__##name##_as_short), ADD(__##name##_as_ushort), ADD(__short_as_##name);     \
  ADD(__ushort_as_##name), ADD(__halves2##name##2), ADD(__##name##2##name##2), ADD(__float2##name##2_rn); \
  ADD(__floats2##name##2_rn), ADD(__float22##name##2_rn), ADD(__##name##22float2), ADD(__low2##name);     \
  ADD(__high2##name), ADD(__low2##name##2), ADD(__high2##name##2), ADD(__lows2##name##2), ADD(__highs2##name##2)
  ADD_CONVERSIONS(half);
  ADD_CONVERSIONS(bfloat16);
#undef ADD_ROUNDED
#undef ADD_CONVERSIONS
}

#undef ADD
#undef ADD_AS

const Batches& all_batches() {
  static const Batches instance = [] {
    Batches batches;
    add_mathematics(batches);
    add_arithmetic(batches);
    add_half<float16_t, float16x2_t>(batches, "(half)");
    add_half<bfloat16_t, bfloat16x2_t>(batches, "(bfloat16)");
    add_conversions(batches);
    return batches;
  }();
  return instance;
}

}  // namespace

#define FASTNN_EXPORT extern "C" __attribute__((visibility("default")))

// Calls the function of that name for each element; false if there is none.
FASTNN_EXPORT bool fastnn_emulator_call(const char* name, const void* const* operands, void* results,
                                        int64_t count) {
  const auto found = all_batches().find(name);
  if (found == all_batches().end()) return false;
  found->second(operands, results, count);
  return true;
}

// Element by element: bits of the type named, from a double or from a float.
FASTNN_EXPORT void fastnn_emulator_to_half(const double* values, bool from_float, bool bfloat16, uint16_t* bits,
                                           int64_t count) {
  using fastnn::cuda::from_acc;
  for (int64_t i = 0; i < count; ++i) {
    const double v = values[i];
    const auto f = static_cast<float>(v);
    bits[i] = bfloat16 ? (from_float ? from_acc<bfloat16_t>(f) : from_acc<bfloat16_t>(v)).bits
                       : (from_float ? from_acc<float16_t>(f) : from_acc<float16_t>(v)).bits;
  }
}

FASTNN_EXPORT void fastnn_emulator_from_half(const uint16_t* bits, bool bfloat16, float* values,
                                             int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    values[i] = bfloat16 ? fastnn::cuda::to_acc(bfloat16_t{bits[i]}) : fastnn::cuda::to_acc(float16_t{bits[i]});
  }
}
