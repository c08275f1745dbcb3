// The memory behind a running block's shared arrays.
#pragma once

#include <cstddef>
#include <source_location>
#include <string>
#include <vector>

namespace fastnn::emulator {

// What a block may have: 227 KB in all on sm_90, 48 KB of it static on every device.
inline constexpr size_t kMaxSharedBytes = 227 * 1024;
inline constexpr size_t kMaxStaticSharedBytes = 48 * 1024;

class SharedArena {
 public:
  SharedArena();
  ~SharedArena();
  SharedArena(const SharedArena&) = delete;
  SharedArena& operator=(const SharedArena&) = delete;

  // Forgets the last block's arrays and makes this one's dynamic memory.
  void begin_block(size_t dynamic_bytes);
  void* dynamic() const { return memory_ + arrays_.front().offset; }
  // The static array that tag stands for; null, with `error` set, when the block may not have so much.
  void* static_array(const void* tag, const char* name, size_t bytes, size_t alignment,
                     std::source_location where, std::string& error);
  // Whether the bytes around every array are as they were; if not, says which array was overrun.
  bool check(std::string& error) const;

 private:
  struct Array {
    const void* tag;  // null for the dynamic memory
    const char* name;
    size_t offset, bytes;
    std::source_location where;
  };
  void* add(const Array& array, size_t alignment);

  char* memory_ = nullptr;
  size_t used_ = 0;
  size_t static_bytes_ = 0;
  std::vector<Array> arrays_;
};

// "conv.cu:120"
std::string describe(std::source_location where);

}  // namespace fastnn::emulator
