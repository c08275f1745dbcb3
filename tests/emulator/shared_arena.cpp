#include "shared_arena.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <string_view>

namespace fastnn::emulator {
namespace {

constexpr size_t kGuardBytes = 128;
// NaN in every floating-point type, so that a read beyond an array shows too, and unlike the poison, so that
// a write of -1 does.
constexpr uint16_t kGuardPattern = 0xfffe;
constexpr size_t kMaxArrays = 128;
// Arrays are aligned as if vector loads were coming, plus what guards can take.
constexpr size_t kMinAlignment = 16;
constexpr size_t kArenaBytes = kMaxSharedBytes + (kMaxArrays + 1) * 3 * kGuardBytes;

void write_guard(char* memory) {
  for (size_t i = 0; i < kGuardBytes; i += sizeof(kGuardPattern)) {
    std::memcpy(memory + i, &kGuardPattern, sizeof(kGuardPattern));
  }
}

// Offset of the first byte that differs, or kGuardBytes.
size_t find_damage(const char* memory) {
  char expected[sizeof(kGuardPattern)];
  std::memcpy(expected, &kGuardPattern, sizeof(kGuardPattern));
  for (size_t i = 0; i < kGuardBytes; ++i) {
    if (memory[i] != expected[i % sizeof(kGuardPattern)]) return i;
  }
  return kGuardBytes;
}

}  // namespace

std::string describe(std::source_location where) {
  const std::string_view path = where.file_name();
  return std::string(path.substr(path.rfind('/') + 1)) + ":" + std::to_string(where.line());
}

SharedArena::SharedArena() {
  void* const memory =
      mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  arrays_.reserve(kMaxArrays);
}

SharedArena::~SharedArena() { munmap(memory_, kArenaBytes); }

void* SharedArena::add(const Array& array, size_t alignment) {
  const size_t begin = (used_ + kGuardBytes + alignment - 1) / alignment * alignment;
  char* const data = memory_ + begin;
  write_guard(data - kGuardBytes);
  std::memset(data, 0xff, array.bytes);
  write_guard(data + array.bytes);
  used_ = begin + array.bytes + kGuardBytes;
  arrays_.push_back(array);
  arrays_.back().offset = begin;
  return data;
}

void SharedArena::begin_block(size_t dynamic_bytes) {
  arrays_.clear();
  used_ = static_bytes_ = 0;
  add({.tag = nullptr, .name = "dynamic shared memory", .offset = 0, .bytes = dynamic_bytes, .where = {}},
      kMinAlignment);
}

void* SharedArena::static_array(const void* tag, const char* name, size_t bytes, size_t alignment,
                                std::source_location where, std::string& error) {
  for (const Array& array : arrays_) {
    if (array.tag == tag) return memory_ + array.offset;
  }
  static_bytes_ = (static_bytes_ + alignment - 1) / alignment * alignment + bytes;
  if (static_bytes_ > kMaxStaticSharedBytes) {
    error = "static shared memory of " + std::to_string(static_bytes_) + " bytes with '" + name + "' (" +
            describe(where) + "); a block may have " + std::to_string(kMaxStaticSharedBytes);
    return nullptr;
  }
  if (static_bytes_ + arrays_.front().bytes > kMaxSharedBytes) {
    error = "shared memory of " + std::to_string(static_bytes_ + arrays_.front().bytes) + " bytes with '" +
            name + "' (" + describe(where) + "); a block may have " + std::to_string(kMaxSharedBytes);
    return nullptr;
  }
  if (arrays_.size() == kMaxArrays) {
    error = "more than " + std::to_string(kMaxArrays - 1) + " static shared arrays";
    return nullptr;
  }
  const Array array{.tag = tag, .name = name, .offset = 0, .bytes = bytes, .where = where};
  return add(array, alignment < kMinAlignment ? kMinAlignment : alignment);
}

bool SharedArena::check(std::string& error) const {
  for (const Array& array : arrays_) {
    const size_t before = find_damage(memory_ + array.offset - kGuardBytes);
    const size_t after = find_damage(memory_ + array.offset + array.bytes);
    if (before == kGuardBytes && after == kGuardBytes) continue;
    error = array.tag == nullptr
                ? "dynamic shared memory"
                : std::string("shared array '") + array.name + "' (" + describe(array.where) + ")";
    error += " of " + std::to_string(array.bytes) + " bytes was overrun: ";
    error += after < kGuardBytes
                 ? "written " + std::to_string(after) + " bytes after its end"
                 : "written " + std::to_string(kGuardBytes - before) + " bytes before its start";
    return false;
  }
  return true;
}

}  // namespace fastnn::emulator
