#include "shared_arena.h"

#include <cstring>
#include <string_view>

namespace fastnn::emulator {
namespace {

constexpr size_t kGuardBytes = 128;
// NaN in every floating-point type, so that a read beyond an array shows too, and unlike the poison, so that
// a write of -1 does.
constexpr uint16_t kGuardPattern = 0xfffe;
constexpr size_t kMaxArrays = 128;
// Static arrays are aligned as if vector loads were coming.
constexpr size_t kMinAlignment = 16;
// The first array begins here, which leaves room for a guard and is a multiple of any alignment.
constexpr size_t kFirstOffset = 1024;

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

void* SharedArena::add(const Array& array, size_t alignment, size_t skew) {
  const size_t begin = (used_ + kGuardBytes + alignment - 1) / alignment * alignment + skew;
  char* const data = memory_ + begin;
  write_guard(data - kGuardBytes);
  std::memset(data, 0xff, array.bytes);
  write_guard(data + array.bytes);
  used_ = begin + array.bytes + kGuardBytes;
  std::memset(places_ + begin / 4, 0xf, array.bytes / 4);
  if (array.bytes % 4 != 0) {
    places_[(begin + array.bytes) / 4] = static_cast<uint8_t>((1u << array.bytes % 4) - 1);
  }
  arrays_.push_back(array);
  arrays_.back().offset = begin;
  return data;
}

void SharedArena::begin_block(size_t dynamic_bytes) {
  std::memset(places_, 0, (used_ + 3) / 4);
  arrays_.clear();
  used_ = kFirstOffset - kGuardBytes;
  static_bytes_ = dynamic_alignment_ = 0;
  dynamic_bytes_ = dynamic_bytes;
}

void* SharedArena::dynamic(size_t alignment, std::string& error) {
  if (alignment == dynamic_alignment_) return memory_ + find(nullptr)->offset;
  if (dynamic_alignment_ != 0) {
    error = "dynamic shared memory is declared with an alignment of " + std::to_string(alignment) + " and of " +
            std::to_string(dynamic_alignment_) + " bytes";
    return nullptr;
  }
  dynamic_alignment_ = alignment;
  return add({.tag = nullptr,
              .name = "dynamic shared memory",
              .offset = 0,
              .bytes = dynamic_bytes_,
              .alignment = alignment,
              .where = {}},
             2 * alignment, alignment);
}

void* SharedArena::static_array(const void* tag, const char* name, size_t bytes, size_t alignment,
                                std::source_location where, std::string& error) {
  if (const Array* const array = find(tag)) return memory_ + array->offset;
  static_bytes_ = (static_bytes_ + alignment - 1) / alignment * alignment + bytes;
  if (static_bytes_ > kMaxStaticSharedBytes) {
    error = "static shared memory of " + std::to_string(static_bytes_) + " bytes with '" + name + "' (" +
            describe(where) + "); a block may have " + std::to_string(kMaxStaticSharedBytes);
    return nullptr;
  }
  if (static_bytes_ + dynamic_bytes_ > kMaxSharedBytes) {
    error = "shared memory of " + std::to_string(static_bytes_ + dynamic_bytes_) + " bytes with '" + name +
            "' (" + describe(where) + "); a block may have " + std::to_string(kMaxSharedBytes);
    return nullptr;
  }
  if (arrays_.size() == kMaxArrays) {
    error = "more than " + std::to_string(kMaxArrays) + " shared arrays";
    return nullptr;
  }
  const Array array{
      .tag = tag, .name = name, .offset = 0, .bytes = bytes, .alignment = alignment, .where = where};
  return add(array, alignment < kMinAlignment ? kMinAlignment : alignment, 0);
}

const SharedArena::Array* SharedArena::find(const void* tag) const {
  for (const Array& array : arrays_) {
    if (array.tag == tag) return &array;
  }
  return nullptr;
}

const SharedArena::Array* SharedArena::nearest(size_t offset) const {
  const Array* best = nullptr;
  size_t least = SIZE_MAX;
  for (const Array& array : arrays_) {
    const size_t distance = offset < array.offset                  ? array.offset - offset
                            : offset >= array.offset + array.bytes ? offset - (array.offset + array.bytes) + 1
                                                                   : 0;
    if (distance < least) {
      least = distance;
      best = &array;
    }
  }
  return best;
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
