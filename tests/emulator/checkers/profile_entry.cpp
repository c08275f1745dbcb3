// What Python calls of the access profile.
#include <mutex>
#include <string>

#include "profile.h"

#define FASTNN_EXPORT extern "C" __attribute__((visibility("default")))

// Returns what it was.
FASTNN_EXPORT bool fastnn_emulator_set_profiling(bool on) { return fastnn::emulator::set_profiling(on); }
FASTNN_EXPORT void fastnn_emulator_profile_reset() { fastnn::emulator::reset_profile(); }
// The text lives until the next call.
FASTNN_EXPORT const char* fastnn_emulator_profile_json() {
  static std::mutex mutex;
  static std::string text;
  const std::lock_guard lock(mutex);
  text = fastnn::emulator::profile_json();
  return text.c_str();
}
