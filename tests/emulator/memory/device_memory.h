// Device memory as the checkers know it: what kernels may touch, whether it has been written, and by whom last.
//
// Memory is known in two ways. The host allocates it here, between guard zones; or it announces memory of its
// own, such as a tensor, for the time of a call. A kernel that touches anything else is reported. Two announced
// tensors that are neighbours in memory have at least the allocator's own bytes between them, so that an access
// beyond the end of one by a few elements is seen; one far beyond it may hit another tensor that the call uses
// too.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastnn::emulator {

void* allocate_device_memory(size_t bytes, bool uninitialized);
void free_device_memory(void* memory);

// Last accesses of one aligned word of four bytes; how the fields are packed is for races.cpp.
struct GlobalCell {
  std::atomic<uint64_t> write, read;
};

struct Region {
  uintptr_t begin;
  uint64_t bytes;
  bool writable;
  const char* what;                   // may be null
  GlobalCell* cells;                  // of the word that holds the first byte, and on
  std::atomic<uint8_t>* initialized;  // a bit for each byte, four to an entry; null when all have been written
};

// What a launch may touch, by address. The regions stay as they are until the launch is over.
const std::vector<Region>& regions();
// Clears what is known of past accesses: their time stamps are about to be reused.
void forget_accesses();

enum AnnounceFlags : uint32_t { kWritable = 1, kUninitialized = 2 };
void begin_call();
void announce(const void* begin, uint64_t bytes, uint32_t flags, const char* what);
void end_call();

}  // namespace fastnn::emulator
