// What the intrinsics of the emulator use of its scheduler and its checkers. Kernels never see this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <vector>

namespace fastnn::emulator {

using Where = std::source_location;

// --- the thread that runs ---

struct CurrentThread {
  unsigned thread;  // within its block, x fastest
  unsigned warp, lane;
  unsigned rank;  // of its block within the cluster; 0 without one
};
CurrentThread current_thread();

// Ends the launch with a report that names kernel, block and thread. Frames are not unwound: a caller owns
// nothing that must be destroyed.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(Where where, const char* format, ...);

// --- waiting ---

// The lanes that `mask` names meet; the last one runs compute(operands, mask), operands[lane] being what that
// lane brought (null for lanes outside the mask), and all go on. Lanes that meet must bring the same mask and
// compute. Orders no memory.
void warp_meet(const char* name, unsigned mask, void* operand,
               void (*compute)(void* const (&operands)[32], unsigned mask), Where where);

// Waits until ready(state) holds. It is called in turns with other threads, by any of them, and must not wait.
// When no thread can go on the launch ends with a report of who waits for what: `name` says it.
void wait_until(const char* name, bool (*ready)(void* state), void* state, Where where);

// Lets other threads run.
void yield();

// --- memory ---

enum class Access : uint8_t {
  kRead,
  kWrite,
  kAtomic,  // reads and writes; this and the next two do not race with each other
  kAtomicRead,
  kAtomicWrite,
};
constexpr bool is_write(Access kind) { return kind != Access::kRead && kind != Access::kAtomicRead; }
constexpr bool is_read(Access kind) { return kind != Access::kWrite && kind != Access::kAtomicWrite; }
constexpr bool is_atomic(Access kind) { return kind >= Access::kAtomic; }

// Checks an access that an intrinsic makes for the thread that runs as if the thread had made it: bounds,
// alignment (in bytes), reads of what was never written, races; and counts it. The caller moves the data.
void check_access(const void* address, size_t bytes, size_t alignment, Access kind, Where where);

// A pointer into shared memory as the 32-bit address that PTX takes, and back (of the block with that rank in
// the cluster).
bool is_shared(const void* address);
uint32_t shared_address(const void* address);
void* shared_pointer(uint32_t address);
// Where the block with this rank has what the caller's block has at `address`.
void* map_shared(const void* address, unsigned rank, Where where);

// --- what is known to have happened ---

// A vector clock: for each thread or operation that somebody has synchronised with, up to which of its steps
// everything is known to be over.
class SyncClock {
 public:
  // What the running thread did, and knows of, becomes known to the clock.
  void release();
  // What the clock knows becomes known to the running thread.
  void acquire() const;
  // As release(), of one asynchronous operation alone.
  void add(uint32_t owner, uint32_t stamp);
  void join(const SyncClock& other);
  void clear() {
    entries_.clear();
    name_ = joined_ = 0;
  }
  // Gives what this knows now a name, by which copies of it are recognised: they are joined once.
  void name();

  bool empty() const { return entries_.empty(); }
  // Whether the step `stamp` of `owner` is over. (What an owner is: checkers/clock.h.)
  bool covers(uint32_t owner, uint32_t stamp) const;
  // Drops what a barrier of the block with this number has made common knowledge: steps of its threads.
  void drop_threads_of(uint32_t block);

 private:
  struct Entry {
    uint32_t owner, stamp;
  };
  uint32_t stamp_of(uint32_t owner) const;
  std::vector<Entry> entries_;  // sorted by owner
  uint32_t name_ = 0;           // 0: none, or more is known since
  uint32_t joined_ = 0;         // the name of a clock of which everything is known
};

// --- asynchronous operations ---

// An operation that a thread starts and that touches memory until some wait is over. Issuing it checks its
// spans as accesses of the thread at that moment (so what went before must be ordered before it), and marks
// them: until a thread has learnt of the completion it may not touch what is written, nor write what is read.
struct Span {
  const void* address;
  size_t bytes;
  Access kind;
};
struct AsyncOperation {
  uint32_t owner, stamp;
};
enum class Proxy : uint8_t {
  kGeneric,  // cp.async: sees what the thread sees
  kAsync,    // bulk copies, wgmma: see only what a fence.proxy.async of the writing thread has published
};
AsyncOperation issue_async(const Span* spans, size_t count, size_t alignment, Proxy proxy, Where where);
// The running thread learns that it has completed. (Others learn through SyncClock::add(owner, stamp).)
void complete_async(AsyncOperation operation);
// fence.proxy.async
void proxy_fence();

// --- state of the intrinsics ---

// Whatever an intrinsic keeps for a block or a thread: made by whoever finds it null, dropped when the block
// ends.
class Extension {
 public:
  virtual ~Extension() = default;
  // Called for a thread's when that thread exits, which still is the one that runs: it may fail(). Nothing that
  // is kept for a thread may be touched after.
  virtual void end_thread() {}
};
enum class ExtensionKind : uint8_t { kAsyncCopy, kTensorCores };
inline constexpr unsigned kExtensionKinds = 2;
std::unique_ptr<Extension>& block_extension(ExtensionKind kind, unsigned rank);
std::unique_ptr<Extension>& thread_extension(ExtensionKind kind);

}  // namespace fastnn::emulator

#define FASTNN_EMULATOR_HERE std::source_location where = std::source_location::current()
