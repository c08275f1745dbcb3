// Atomic functions, with the overloads that CUDA has, on real atomics: blocks run on several OS threads.
//
// As on the device they order nothing but themselves: what a thread did before is known to whoever sees the
// atomic's result only if both have a fence between, the one before and the other after it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace fastnn::emulator {

// Around an atomic operation of the thread that runs: checks the access and passes on what fences have
// published.
void begin_atomic(void* address, size_t bytes, uintptr_t pc);
void end_atomic(void* address);
// A store that races with no atomic operation.
void atomic_store(void* address, size_t bytes, uintptr_t pc);
// A load that races with no atomic operation.
void atomic_load(void* address, size_t bytes, uintptr_t pc);
// What fences and atomic operations of a launch have published is nothing to the next.
void forget_published();

// The compiler would have the checkers called for the atomics within; and the caller's place is what they
// report.
#define FASTNN_EMULATOR_UNCHECKED __attribute__((no_sanitize("thread"), noinline))

// Replaces *address by f(*address); returns the old value.
template <typename T, typename F>
FASTNN_EMULATOR_UNCHECKED T fetch_modify(T* address, F f) {
  begin_atomic(address, sizeof(T), reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
  T old;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  for (;;) {
    T desired = f(old);
    if (__atomic_compare_exchange(address, &old, &desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) break;
  }
  end_atomic(address);
  return old;
}

template <typename T>
FASTNN_EMULATOR_UNCHECKED T compare_and_swap(T* address, T expected, T desired) {
  begin_atomic(address, sizeof(T), reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
  // By value's bits, so that -0.0, 0.0 and NaN are told apart.
  __atomic_compare_exchange(address, &expected, &desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  end_atomic(address);
  return expected;
}

#undef FASTNN_EMULATOR_UNCHECKED

}  // namespace fastnn::emulator

#define FASTNN_EMULATOR_ATOMIC(name, type, expression)                                                \
  inline type name(type* address, type value) {                                                       \
    return fastnn::emulator::fetch_modify(address, [value](type old) -> type { return expression; }); \
  }
#define FASTNN_EMULATOR_ATOMIC_INTEGER(type)                             \
  FASTNN_EMULATOR_ATOMIC(atomicMin, type, old < value ? old : value)     \
  FASTNN_EMULATOR_ATOMIC(atomicMax, type, old > value ? old : value)     \
  FASTNN_EMULATOR_ATOMIC(atomicAnd, type, (old & value))                 \
  FASTNN_EMULATOR_ATOMIC(atomicOr, type, (old | value))                  \
  FASTNN_EMULATOR_ATOMIC(atomicXor, type, (old ^ value))                 \
  inline type atomicCAS(type* address, type expected, type value) {      \
    return fastnn::emulator::compare_and_swap(address, expected, value); \
  }
FASTNN_EMULATOR_ATOMIC_INTEGER(int)
FASTNN_EMULATOR_ATOMIC_INTEGER(unsigned int)
FASTNN_EMULATOR_ATOMIC_INTEGER(unsigned long long)
FASTNN_EMULATOR_ATOMIC(atomicMin, long long, old < value ? old : value)
FASTNN_EMULATOR_ATOMIC(atomicMax, long long, old > value ? old : value)

FASTNN_EMULATOR_ATOMIC(atomicAdd, int,
                       static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
FASTNN_EMULATOR_ATOMIC(atomicAdd, unsigned int, old + value)
FASTNN_EMULATOR_ATOMIC(atomicAdd, unsigned long long, old + value)
FASTNN_EMULATOR_ATOMIC(atomicAdd, float, old + value)
FASTNN_EMULATOR_ATOMIC(atomicAdd, double, old + value)
FASTNN_EMULATOR_ATOMIC(atomicSub, int,
                       static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(value)))
FASTNN_EMULATOR_ATOMIC(atomicSub, unsigned int, old - value)
FASTNN_EMULATOR_ATOMIC(atomicInc, unsigned int, old >= value ? 0u : old + 1)
FASTNN_EMULATOR_ATOMIC(atomicDec, unsigned int, old == 0 || old > value ? value : old - 1)
FASTNN_EMULATOR_ATOMIC(atomicExch, int, (static_cast<void>(old), value))
FASTNN_EMULATOR_ATOMIC(atomicExch, unsigned int, (static_cast<void>(old), value))
FASTNN_EMULATOR_ATOMIC(atomicExch, unsigned long long, (static_cast<void>(old), value))
FASTNN_EMULATOR_ATOMIC(atomicExch, float, (static_cast<void>(old), value))

inline unsigned short atomicCAS(unsigned short* address, unsigned short expected, unsigned short value) {
  return fastnn::emulator::compare_and_swap(address, expected, value);
}
#undef FASTNN_EMULATOR_ATOMIC_INTEGER
#undef FASTNN_EMULATOR_ATOMIC
