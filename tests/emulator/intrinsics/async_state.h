// What the asynchronous copies keep for a block and for a thread: async_copy, mbarrier and tma share it, and
// nobody else sees it.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "../runtime.h"
#include "mbarrier.h"

namespace fastnn::emulator {

// A bulk or tensor copy that was issued and has not moved its bytes yet.
class Transfer {
 public:
  virtual ~Transfer() = default;
  // May be called by any thread, and so calls nothing of runtime.h.
  virtual void perform() = 0;

  uint32_t bytes = 0;  // as the mbarrier counts them
  AsyncOperation operation{};
  Where issued_at;
};

// One cp.async.
struct CpAsync {
  unsigned char* destination;
  const unsigned char* source;
  uint8_t bytes, source_bytes;
};

// A thread's copies that have not landed, in order. They are waited for in that order, so that one operation
// stands for all up to it.
struct CpAsyncQueue {
  std::deque<CpAsync> copies;
  uint64_t landed = 0;  // since the thread began

  uint64_t issued() const { return landed + copies.size(); }
  void land(uint64_t end);  // those before number `end`
};

// The copies of a thread before number `end`, and the newest of them.
struct CpAsyncPrefix {
  uint64_t end = 0;
  AsyncOperation newest{};  // of no meaning when end is 0
};

// A bulk store. Its bytes leave shared memory, and are written, at wait_group_read; it is known at wait_group
// that they were written.
struct BulkStore {
  std::unique_ptr<Transfer> transfer;  // null once performed
  AsyncOperation source, destination;
};

struct ThreadCopies final : Extension {
  std::shared_ptr<CpAsyncQueue> queue = std::make_shared<CpAsyncQueue>();
  CpAsyncPrefix issued;
  std::deque<CpAsyncPrefix> groups;  // committed and not waited for

  std::deque<std::vector<BulkStore>> store_groups;
  std::vector<BulkStore> uncommitted_stores;

  // A bulk store that the thread leaves behind reads shared memory that may be another block's by then.
  void end_thread() override;
};

// A cp.async.mbarrier.arrive: the arrival that follows when copies have landed.
struct DeferredArrival {
  std::shared_ptr<CpAsyncQueue> queue;
  CpAsyncPrefix copies;
};

// The bytes of a phase are counted as PTX has it (tx-count), but land all together: when somebody asks for the
// phase and it lacks nothing else.
struct MbarrierState {
  bool published = false;  // to asynchronous copies
  unsigned initialiser = 0;
  uint32_t expected = 0;  // arrivals a phase
  uint32_t pending = 0;   // arrivals that this phase lacks
  int64_t expected_bytes = 0, issued_bytes = 0;
  uint64_t phase = 0;
  bool observed = true;  // a wait has seen the phase before complete
  unsigned waiters = 0;
  uint64_t changes = 0;
  std::deque<DeferredArrival> deferred;
  std::deque<std::unique_ptr<Transfer>> transfers;
  SyncClock arriving, complete;

  bool done(uint32_t parity) const { return (phase & 1) != parity; }
  // All arrivals were made, but for those that copies make.
  bool arrived() const { return pending == deferred.size(); }
  // More bytes are on their way than the phase, which lacks nothing else, expects: it may complete without
  // them.
  bool overrun() const { return arrived() && issued_bytes > expected_bytes; }
  // Completes the phase if it lacks nothing.
  void settle();
  // As that, but first lets land what is on its way, if that makes the phase complete.
  void land();
};

struct BlockCopies final : Extension {
  std::unordered_map<const Mbarrier*, MbarrierState> mbarriers;
  unsigned unpublished = 0;  // of them

  // A load that nobody waited for writes to shared memory that may be another block's by then.
  void end_thread() override;
};

ThreadCopies& thread_copies();
BlockCopies& block_copies(unsigned rank);

// The mbarrier that is at this address in the shared memory of block `rank`; an error when there is none.
MbarrierState& find_mbarrier(const Mbarrier* barrier, unsigned rank, Where where);
// As that, checked as a read by the running thread, though it may change the barrier: only the initialisation
// must be ordered before it, and the invalidation after.
MbarrierState& use_mbarrier(const Mbarrier* barrier, unsigned rank, Where where);
// Puts a copy on it, to be performed at a wait.
void track_transfer(const Mbarrier* barrier, unsigned rank, std::unique_ptr<Transfer> transfer, Where where);

}  // namespace fastnn::emulator
