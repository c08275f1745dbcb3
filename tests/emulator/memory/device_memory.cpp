#include "device_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>

namespace fastnn::emulator {
namespace {

// On both sides of an allocation; NaN in every floating-point type.
constexpr size_t kGuardBytes = 4096;
constexpr unsigned char kPoison = 0xff;
// The device aligns allocations to 256 bytes at least. Here to no more than that, so that a kernel which needs
// more is seen.
constexpr size_t kAlignment = 256;

// Zeroed pages that cost nothing until they are touched.
class Pages {
 public:
  explicit Pages(size_t bytes) : bytes_(bytes) {
    memory_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
  }
  ~Pages() { munmap(memory_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  char* data() const { return static_cast<char*>(memory_); }
  void clear(size_t bytes) { madvise(memory_, bytes, MADV_DONTNEED); }

 private:
  void* memory_;
  size_t bytes_;
};

size_t words(uintptr_t begin, uint64_t bytes) { return (begin % 4 + bytes + 3) / 4; }

struct Allocation {
  explicit Allocation(size_t bytes)
      : memory(bytes + 2 * kGuardBytes + 2 * kAlignment), cells(bytes * 4 + 32), initialized(bytes / 4 + 2) {}
  Pages memory, cells, initialized;
  Region region{};
};

struct State {
  std::mutex mutex;
  std::vector<std::unique_ptr<Allocation>> allocations;
  std::vector<Region> announced;
  // Shadows of what is announced, cut off one after another; those of the last call are used again, as every
  // cell is older than the next launch.
  Pages cells{size_t{1} << 38}, initialized{size_t{1} << 34};
  size_t cells_used = 0, initialized_used = 0, cells_touched = 0;
  std::vector<Region> merged;
  bool changed = true;
};

State& state() {
  static auto& instance = *new State;
  return instance;
}

}  // namespace

void* allocate_device_memory(size_t bytes, bool uninitialized) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  auto allocation = std::make_unique<Allocation>(bytes);
  auto begin = reinterpret_cast<uintptr_t>(allocation->memory.data()) + kGuardBytes;
  begin = (begin + 2 * kAlignment - 1) / (2 * kAlignment) * (2 * kAlignment) + kAlignment;
  std::memset(reinterpret_cast<void*>(begin), uninitialized ? kPoison : 0, bytes);
  allocation->region = {
      .begin = begin,
      .bytes = bytes,
      .writable = true,
      .what = nullptr,
      .cells = reinterpret_cast<GlobalCell*>(allocation->cells.data()),
      .initialized =
          uninitialized ? reinterpret_cast<std::atomic<uint8_t>*>(allocation->initialized.data()) : nullptr};
  all.allocations.push_back(std::move(allocation));
  all.changed = true;
  return reinterpret_cast<void*>(begin);
}

void free_device_memory(void* memory) {
  if (memory == nullptr) return;
  State& all = state();
  const std::lock_guard lock(all.mutex);
  std::erase_if(all.allocations,
                [&](const auto& a) { return a->region.begin == reinterpret_cast<uintptr_t>(memory); });
  all.changed = true;
}

void begin_call() {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.announced.clear();
  constexpr size_t kKeep = size_t{1} << 28;
  if (all.cells_touched > kKeep) {
    all.cells.clear(all.cells_touched);
    all.cells_touched = 0;
  }
  all.initialized.clear(all.initialized_used);
  all.cells_used = all.initialized_used = 0;
  all.changed = true;
}

void announce(const void* memory, uint64_t bytes, uint32_t flags, const char* what) {
  if (memory == nullptr || bytes == 0) return;
  State& all = state();
  const std::lock_guard lock(all.mutex);
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  Region region{.begin = begin,
                .bytes = bytes,
                .writable = (flags & kWritable) != 0,
                .what = what,
                .cells = nullptr,
                .initialized = nullptr};
  region.cells = reinterpret_cast<GlobalCell*>(all.cells.data() + all.cells_used);
  all.cells_used += words(begin, bytes) * sizeof(GlobalCell);
  all.cells_touched = std::max(all.cells_touched, all.cells_used);
  if ((flags & kUninitialized) != 0) {
    std::memset(const_cast<void*>(memory), kPoison, bytes);
    region.initialized = reinterpret_cast<std::atomic<uint8_t>*>(all.initialized.data() + all.initialized_used);
    all.initialized_used += words(begin, bytes);
  }
  all.announced.push_back(region);
  all.changed = true;
}

void end_call() {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.announced.clear();
  all.changed = true;
}

const std::vector<Region>& regions() {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  if (!all.changed) return all.merged;
  all.changed = false;
  all.merged.clear();
  for (const auto& allocation : all.allocations) all.merged.push_back(allocation->region);
  std::vector<Region> sorted = all.announced;
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const Region& a, const Region& b) { return a.begin < b.begin; });
  for (const Region& region : sorted) {
    // Views of one tensor are one region, or an access through one would not meet those through the other.
    Region* const last = all.merged.empty() ? nullptr : &all.merged.back();
    if (last == nullptr || region.begin >= last->begin + last->bytes || last->begin > region.begin) {
      all.merged.push_back(region);
      continue;
    }
    const uint64_t bytes = std::max(last->begin + last->bytes, region.begin + region.bytes) - last->begin;
    if (region.initialized == nullptr || bytes > last->bytes) last->initialized = nullptr;
    last->bytes = bytes;
    last->writable = last->writable || region.writable;
    if (words(last->begin, last->bytes) * sizeof(GlobalCell) >
        static_cast<size_t>(all.cells.data() + all.cells_used - reinterpret_cast<char*>(last->cells))) {
      last->cells = reinterpret_cast<GlobalCell*>(all.cells.data() + all.cells_used);
      all.cells_used += words(last->begin, last->bytes) * sizeof(GlobalCell);
    }
  }
  std::sort(all.merged.begin(), all.merged.end(),
            [](const Region& a, const Region& b) { return a.begin < b.begin; });
  return all.merged;
}

void forget_accesses() {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.cells.clear(std::max(all.cells_touched, all.cells_used));
  for (const auto& allocation : all.allocations) {
    allocation->cells.clear(allocation->region.bytes * 4 + 32);
  }
}

}  // namespace fastnn::emulator

#define FASTNN_EXPORT extern "C" __attribute__((visibility("default")))

FASTNN_EXPORT void fastnn_emulator_begin_call() { fastnn::emulator::begin_call(); }
FASTNN_EXPORT void fastnn_emulator_announce(const void* begin, uint64_t bytes, uint32_t flags,
                                            const char* what) {
  fastnn::emulator::announce(begin, bytes, flags, what);
}
FASTNN_EXPORT void fastnn_emulator_end_call() { fastnn::emulator::end_call(); }
