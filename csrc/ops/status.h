// What a kernel's entry point returns: kernels raise nothing, the bindings turn a Status into an exception.
#pragma once

namespace fastnn {

struct Status {
  // Null when the call succeeded; otherwise a string with static lifetime.
  const char* message = nullptr;
  // What was being done when it failed (a kernel's name), static lifetime; may be null.
  const char* where = nullptr;

  bool ok() const { return message == nullptr; }
  static Status success() { return {}; }
  static Status error(const char* message, const char* where = nullptr) { return {message, where}; }
};

}  // namespace fastnn
