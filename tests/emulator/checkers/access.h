// Every load and store of a kernel, as it happens. Kernels are compiled with -fsanitize=thread,alignment, which
// has the compiler call a function before each; here are these functions (the sanitizers' own libraries are not
// linked).
#pragma once

#include <cstddef>
#include <cstdint>

#include "../runtime.h"

namespace fastnn::emulator {

class GangRunner;
struct Thread;

// What an access is compared with first. `thread` is null while no kernel runs on this OS thread.
struct Probe {
  Thread* thread;
  uintptr_t stack_begin;
  size_t stack_bytes;
  uintptr_t arenas_begin;
  size_t arenas_bytes;
  GangRunner* runner;
};
extern constinit thread_local __attribute__((tls_model("initial-exec"), visibility("hidden"))) Probe probe;

// An access of the running thread to shared or global memory, at a return address in the kernel.
void check_kernel_access(uintptr_t address, size_t bytes, Access kind, uintptr_t pc);

}  // namespace fastnn::emulator
