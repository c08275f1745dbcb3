#include "atomics.h"

#include <mutex>
#include <unordered_map>

#include "../checkers/access.h"
#include "../checkers/races.h"
#include "../scheduler/gang.h"

namespace fastnn::emulator {
namespace {

// What fences and atomic operations of this launch have published, by address.
struct Published {
  std::atomic<bool> any{false};
  std::mutex mutex;
  std::unordered_map<const void*, SyncClock> clocks;
};
Published& published() {
  static auto& instance = *new Published;
  return instance;
}

bool is_local(const void* address) {
  return probe.thread == nullptr ||
         reinterpret_cast<uintptr_t>(address) - probe.stack_begin < probe.stack_bytes;
}

void see(Thread& self, const void* address) {
  if (!published().any.load(std::memory_order_relaxed)) return;
  const auto own = self.block->atomics.find(address);
  if (own != self.block->atomics.end()) self.seen_in_block.join(own->second);
  Published& all = published();
  const std::lock_guard lock(all.mutex);
  const auto other = all.clocks.find(address);
  if (other != all.clocks.end()) self.seen.join(other->second);
}

}  // namespace

void forget_published() {
  Published& all = published();
  all.any = false;
  all.clocks.clear();
}

void fence_acquire(FenceScope scope) {
  Thread& self = *probe.thread;
  self.known.join(self.seen_in_block);
  self.seen_in_block.clear();
  if (scope == FenceScope::kDevice) {
    self.known.join(self.seen);
    self.known.join(self.block->seen);
    self.seen.clear();
  }
}

void fence_release(FenceScope scope) {
  Thread& self = *probe.thread;
  published().any = true;
  self.fenced_for_block.clear();
  release(self, self.fenced_for_block);
  if (scope == FenceScope::kDevice) self.fenced = self.fenced_for_block;
}

void fence(FenceScope scope) {
  fence_acquire(scope);
  fence_release(scope);
}

// Published before the operation, so that whoever sees its result finds it.
static void publish(void* address, size_t bytes, Access kind, uintptr_t pc) {
  if (is_local(address)) return;
  Thread& self = *probe.thread;
  check_kernel_access(reinterpret_cast<uintptr_t>(address), bytes, kind, pc);
  if (self.fenced_for_block.empty()) return;
  self.block->atomics[address].join(self.fenced_for_block);
  if (self.fenced.empty()) return;
  Published& all = published();
  const std::lock_guard lock(all.mutex);
  all.clocks[address].join(self.fenced);
}

void begin_atomic(void* address, size_t bytes, uintptr_t pc) { publish(address, bytes, Access::kAtomic, pc); }

void atomic_store(void* address, size_t bytes, uintptr_t pc) {
  publish(address, bytes, Access::kAtomicWrite, pc);
}

void end_atomic(void* address) {
  if (is_local(address)) return;
  see(*probe.thread, address);
  probe.runner->note_spin();
}

void atomic_load(void* address, size_t bytes, uintptr_t pc) {
  if (is_local(address)) return;
  // First, for it may let other threads run.
  probe.runner->note_spin();
  check_kernel_access(reinterpret_cast<uintptr_t>(address), bytes, Access::kAtomicRead, pc);
  see(*probe.thread, address);
}

}  // namespace fastnn::emulator
