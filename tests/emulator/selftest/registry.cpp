// The list of cases, shared by the emulator's library and the program that runs them on a device.
#include <cstdarg>
#include <cstdio>
#include <string>

#include "selftest.h"

namespace fastnn::selftest {
namespace {

std::vector<Case>& list() {
  static std::vector<Case> instance;
  return instance;
}

}  // namespace

Registered::Registered(const Case& entry) { list().push_back(entry); }

const std::vector<Case>& cases() { return list(); }

const char* complain(const char* format, ...) {
  static thread_local std::string text;
  text.resize(2048);
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text.data(), text.size(), format, arguments);
  va_end(arguments);
  return text.c_str();
}

}  // namespace fastnn::selftest
