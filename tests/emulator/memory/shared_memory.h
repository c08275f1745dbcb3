// Shared memory: one arena for each block that is running. Arrays are poisoned with 0xFF bytes, which are NaN
// in every floating-point type and -1 in every integer, before the block starts; bytes on both sides are
// checked when it ends.
#pragma once

#include <cstddef>
#include <source_location>
#include <type_traits>

namespace fastnn::emulator {

// The running block's array for one place in the code, made when the first of its threads comes there.
void* static_shared(const void* tag, const char* name, size_t bytes, size_t alignment,
                    std::source_location where = std::source_location::current());
// The bytes that the launch asked for.
void* dynamic_shared(size_t alignment, std::source_location where = std::source_location::current());

template <typename T, size_t kCount>
T (&shared_array(const void* tag, const char* name, std::source_location where))
[kCount] {
  static_assert(std::is_trivially_default_constructible_v<T> && std::is_trivially_destructible_v<T>,
                "shared memory is never constructed");
  return *static_cast<T(*)[kCount]>(static_shared(tag, name, sizeof(T) * kCount, alignof(T), where));
}

}  // namespace fastnn::emulator

// The lambda's type, and so the address of its static, is unique to this place and template instantiation.
#define FASTNN_SHARED(T, name, count)                   \
  T(&name)                                              \
  [count] = ::fastnn::emulator::shared_array<T, count>( \
      [] {                                              \
        static const char tag = 0;                      \
        return static_cast<const void*>(&tag);          \
      }(),                                              \
      #name, std::source_location::current())
#define FASTNN_DYNAMIC_SHARED(T, name) FASTNN_DYNAMIC_SHARED_ALIGNED(T, name, 16)
#define FASTNN_DYNAMIC_SHARED_ALIGNED(T, name, alignment) \
  T* const name = static_cast<T*>(::fastnn::emulator::dynamic_shared(alignment))
