// A context of execution with its own stack, and the switch from one to another. Boost.Context where the
// build found it; else contexts are made by the C library's ucontext, and switched by _setjmp and _longjmp,
// because swapcontext makes two system calls.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(FASTNN_EMULATOR_BOOST_CONTEXT)
#include <boost/context/detail/fcontext.hpp>
#else
#include <setjmp.h>
#endif

namespace fastnn::emulator {

class Context {
 public:
  // The context of whoever runs now: to be switched away from.
  Context() = default;
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // Gives this context a stack. `index` spreads the stacks' tops over the cache's sets.
  // False when there is no memory.
  bool allocate_stack(size_t index);
  uintptr_t stack_begin() const { return reinterpret_cast<uintptr_t>(stack_); }
  size_t stack_bytes() const { return stack_bytes_; }
  // The next switch to this context calls entry(argument), which never returns; what ran there is abandoned.
  void reset(void (*entry)(void*), void* argument);
  // Leaves the running context `from` and continues this one.
  void switch_from(Context& from);

 private:
  // Tell AddressSanitizer, where it is on, of the change of stacks: before it, and after it on the new stack.
  void announce_switch_from(Context& from);
  void announce_arrival();

  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  bool started_ = true;
  char* mapping_ = nullptr;
  char* stack_ = nullptr;
  size_t stack_bytes_ = 0;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack_ = nullptr;
#endif
#if defined(FASTNN_EMULATOR_BOOST_CONTEXT)
  static void enter(boost::context::detail::transfer_t from);
  boost::context::detail::fcontext_t handle_ = nullptr;
#else
  static void enter();
  [[noreturn]] void start();
  jmp_buf registers_;
#endif
};

}  // namespace fastnn::emulator
