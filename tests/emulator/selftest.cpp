// The list of cases and what Python calls.
#include "selftest.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace fastnn::emulator::selftest {
namespace {

std::vector<Case>& cases() {
  static std::vector<Case> list;
  return list;
}

}  // namespace

Registered::Registered(const char* name, const char* (*run)()) { cases().push_back({name, run}); }

const char* complain(const char* format, ...) {
  static thread_local std::string text;
  text.resize(512);
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text.data(), text.size(), format, arguments);
  va_end(arguments);
  return text.c_str();
}

}  // namespace fastnn::emulator::selftest

#define FASTNN_EXPORT extern "C" __attribute__((visibility("default")))

// The cases' names, one a line.
FASTNN_EXPORT const char* fastnn_emulator_selftest_names() {
  static std::string names;
  if (names.empty()) {
    for (const auto& entry : fastnn::emulator::selftest::cases()) names += std::string(entry.name) + "\n";
  }
  return names.c_str();
}

FASTNN_EXPORT const char* fastnn_emulator_selftest_run(const char* name) {
  for (const auto& entry : fastnn::emulator::selftest::cases()) {
    if (std::strcmp(entry.name, name) == 0) return entry.run();
  }
  return "there is no such case";
}

// Element by element: bits of the type named, from a double or from a float.
FASTNN_EXPORT void fastnn_emulator_to_half(const double* values, bool from_float, bool bfloat16, uint16_t* bits,
                                           int64_t count) {
  using fastnn::cuda::bfloat16_t, fastnn::cuda::float16_t, fastnn::cuda::from_acc;
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
    values[i] = bfloat16 ? fastnn::cuda::to_acc(fastnn::cuda::bfloat16_t{bits[i]})
                         : fastnn::cuda::to_acc(fastnn::cuda::float16_t{bits[i]});
  }
}
