// Runs one block after another on the OS thread that calls: a CUDA thread is a fiber from its first wait on.
//
// A fiber takes threads of the block one by one and runs each to its end. A thread that must wait keeps the
// fiber that it is on, and another fiber goes on with the rest; so a kernel that never waits uses one fiber and
// pays no switch, and one that waits pays one switch for each wait of each thread. Fibers and their stacks are
// kept from block to block and from launch to launch.
#pragma once

#include <cstdint>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "context.h"
#include "cuda_types.h"
#include "shared_arena.h"
#include "synchronization.h"

namespace fastnn::emulator {

inline constexpr unsigned kMaxThreads = 1024;
inline constexpr unsigned kWarpLanes = 32;

struct Launch {
  dim3 grid, block;
  size_t dynamic_shared_bytes;
  void (*run_thread)(const void*);
  const void* arguments;
  uint64_t seed;  // 0: natural order of threads
};

class BlockRunner {
 public:
  BlockRunner();
  // Makes this the calling OS thread's runner. The launch must live until the last run().
  void begin_launch(const Launch& launch);
  // False when the block failed: error() says why.
  bool run(uint3 block_index, uint64_t random);
  const std::string& error() const { return error_; }

  // For the thread that runs now:
  int block_barrier(BlockOp op, int predicate, std::source_location where);
  uint64_t warp_collective(const WarpArgs& args, std::source_location where);
  void yield();
  unsigned current_lane() const { return current_->linear % kWarpLanes; }
  void* dynamic_shared() const { return shared_.dynamic(); }
  // Null when the block may not have it: error() is set.
  void* static_shared(const void* tag, const char* name, size_t bytes, size_t alignment,
                      std::source_location where) {
    return shared_.static_array(tag, name, bytes, alignment, where, error_);
  }
  // Sets error().
  void trap(std::source_location where);
  // Ends the block, after error() was set. Nothing of its threads runs again, nor are their frames unwound: a
  // caller must own nothing, which is why a report is made apart.
  [[noreturn]] void stop();

 private:
  enum class Wait : uint8_t { kNone, kBlockBarrier, kWarp };
  struct Fiber;
  struct alignas(64) Thread {
    uint3 index;
    uint16_t linear;
    Wait wait;
    BlockOp block_op;
    Fiber* fiber;
    std::source_location where;
    WarpArgs warp;
    uint64_t result;
  };
  struct Warp {
    unsigned existing;  // lanes that the block has
    unsigned exited;
    unsigned waiting;  // lanes in a collective
  };
  struct Fiber {
    BlockRunner* runner;
    Context context;
  };

  static void fiber_main(void* fiber);
  void start_thread(Fiber& fiber);
  void finish_thread(Thread& thread);
  void wait_current();
  Fiber* next_fiber();
  Fiber* free_fiber();
  bool prefer_ready();
  bool has_unstarted() const { return started_ < thread_count_; }
  void push_ready(Thread& thread) { ready_[ready_end_++ % kMaxThreads] = &thread; }
  Thread* pop_ready() { return ready_[ready_begin_++ % kMaxThreads]; }
  void release(Thread& thread, unsigned begin);
  void complete_collective(unsigned warp_number, unsigned group, Thread& caller);
  void report(const Thread& thread, const char* what);
  void report_wait(const Thread& thread, const char* what);
  void report_exited_lane(const Thread& thread, unsigned lane);
  std::string report_deadlock() const;
  std::string describe_wait(const Thread& thread) const;
  void abandon_fibers();
  void begin_order(uint64_t random);
  uint64_t next_random();

  const Launch* launch_ = nullptr;
  std::string error_;
  uint64_t random_ = 0;

  std::vector<Thread> threads_;
  std::vector<uint16_t> order_;  // in which threads start
  Warp warps_[kMaxThreads / kWarpLanes];
  unsigned thread_count_ = 0, started_ = 0, exited_ = 0;
  Thread* current_ = nullptr;

  Context main_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_fibers_;
  Thread* ready_[kMaxThreads];
  unsigned ready_begin_ = 0, ready_end_ = 0;

  struct {
    unsigned arrived;
    const Thread* first;
    unsigned nonzero;  // arrived with a predicate that holds
    bool mixed;        // at several places or with several operations
    int result;
  } barrier_{};

  SharedArena shared_;
};

// "(1, 2, 3)"
std::string triple(uint3 v);

}  // namespace fastnn::emulator
