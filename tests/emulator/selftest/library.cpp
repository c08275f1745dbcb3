// What Python calls of the self tests.
#include <cstring>
#include <string>

#include "selftest.h"

using fastnn::selftest::cases;

#define FASTNN_EXPORT extern "C" __attribute__((visibility("default")))

// The cases, one a line: name, tool and, for a faulty one, the regular expression of what must be said; between
// them tabulators.
FASTNN_EXPORT const char* fastnn_emulator_selftest_list() {
  static std::string text;
  if (text.empty()) {
    for (const auto& entry : cases()) {
      text += std::string(entry.name) + "\t" + entry.tool + "\t";
      text += std::string(entry.expected == nullptr ? "" : entry.expected) + "\n";
    }
  }
  return text.c_str();
}

// Null when the case found everything right.
FASTNN_EXPORT const char* fastnn_emulator_selftest_run(const char* name) {
  for (const auto& entry : cases()) {
    if (std::strcmp(entry.name, name) == 0) return entry.run();
  }
  return "there is no such case";
}
