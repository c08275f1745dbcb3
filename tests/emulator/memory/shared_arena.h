// The memory behind a running block's shared arrays. Arenas of the blocks that run together lie one after
// another, kStride bytes apart, so that an address tells whose it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

namespace fastnn::emulator {

// What a block may have: 227 KB in all on sm_90, 48 KB of it static on every device.
inline constexpr size_t kMaxSharedBytes = 227 * 1024;
inline constexpr size_t kMaxStaticSharedBytes = 48 * 1024;

class SharedArena {
 public:
  // Of address space: twice what a block may have, for guards.
  static constexpr size_t kStride = 512 * 1024;

  struct Array {
    const void* tag;  // null for the dynamic memory
    const char* name;
    size_t offset, bytes, alignment;
    std::source_location where;
  };

  // memory: kStride bytes. places: kStride / 4 bytes, zero; here it is kept which bytes of a word belong to an
  // array.
  SharedArena(char* memory, uint8_t* places) : memory_(memory), places_(places) {}

  // Forgets the last block's arrays.
  void begin_block(size_t dynamic_bytes);
  // The dynamic memory: aligned to `alignment`, a power of two up to 1024, and to no more, as nothing else is
  // promised. Null, with `error` set, when another alignment was asked for before.
  void* dynamic(size_t alignment, std::string& error);
  // The static array that tag stands for; null, with `error` set, when the block may not have so much.
  void* static_array(const void* tag, const char* name, size_t bytes, size_t alignment,
                     std::source_location where, std::string& error);
  // The array that contains the byte at `offset`, or else the nearest one; null when there is none.
  const Array* nearest(size_t offset) const;
  const Array* find(const void* tag) const;
  char* memory() const { return memory_; }
  size_t used() const { return used_; }
  // Whether the bytes around every array are as they were; if not, says which array was overrun.
  bool check(std::string& error) const;

 private:
  void* add(const Array& array, size_t alignment, size_t skew);

  char* memory_;
  uint8_t* places_;
  size_t used_ = 0;
  size_t static_bytes_ = 0;
  size_t dynamic_bytes_ = 0, dynamic_alignment_ = 0;
  std::vector<Array> arrays_;
};

// "conv.cu:120"
std::string describe(std::source_location where);

}  // namespace fastnn::emulator
