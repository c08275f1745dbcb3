// The emulator's own tests: kernels with a known outcome, which tests/test_emulator.py runs by name.
#pragma once

#include "../../csrc/cuda/platform.cuh"

namespace fastnn::emulator::selftest {

struct Case {
  const char* name;
  // Null when everything was right; otherwise what was wrong, or what the launch said.
  const char* (*run)();
};

// A case adds itself by being defined.
class Registered {
 public:
  Registered(const char* name, const char* (*run)());
};

// Formats a message that lives until the next one.
__attribute__((format(printf, 1, 2))) const char* complain(const char* format, ...);

#define FASTNN_SELFTEST(name)                             \
  const char* run_##name();                               \
  const Registered registered_##name{#name, &run_##name}; \
  const char* run_##name()

// Within a case: ends it with what the launch said when it failed.
#define FASTNN_RUN(...)                                                        \
  do {                                                                         \
    const Status status = fastnn::cuda::launch(__VA_ARGS__);                   \
    if (!status.ok()) return complain("%s: %s", status.where, status.message); \
  } while (false)

#define FASTNN_EXPECT(condition, ...)               \
  do {                                              \
    if (!(condition)) return complain(__VA_ARGS__); \
  } while (false)

}  // namespace fastnn::emulator::selftest
