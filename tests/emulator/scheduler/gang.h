// Runs the blocks that must run together, a gang, on the OS thread that calls: one block, or those of a
// cluster, or the whole grid of a cooperative launch. A CUDA thread is a fiber from its first wait on.
//
// A fiber takes threads of the gang one by one and runs each to its end. A thread that must wait keeps the
// fiber that it is on, and another fiber goes on with the rest; so a kernel that never waits uses one fiber and
// pays no switch, and one that waits pays one switch for each wait of each thread. Fibers and their stacks are
// kept from gang to gang and from launch to launch.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <source_location>
#include <string>
#include <unordered_map>
#include <vector>

#include "../checkers/clock.h"
#include "../checkers/profile.h"
#include "../intrinsics/cuda_types.h"
#include "../intrinsics/synchronization.h"
#include "../memory/device_memory.h"
#include "../memory/shared_arena.h"
#include "../runtime.h"
#include "context.h"

namespace fastnn::emulator {

inline constexpr unsigned kMaxThreads = 1024;
inline constexpr unsigned kWarpLanes = 32;
inline constexpr unsigned kMaxWarps = kMaxThreads / kWarpLanes;
inline constexpr unsigned kBarriers = 16;
inline constexpr unsigned kMaxGang = 1024;

struct Launch {
  const char* name;
  dim3 grid, block, cluster;
  bool cooperative;
  size_t dynamic_shared_bytes;
  void (*run_thread)(const void*);
  const void* arguments;
  size_t argument_bytes;
  uint64_t seed;                    // 0: natural order of threads
  uint32_t begin;                   // the launch's first tick: what is older was ordered by the host
  bool alone;                       // the gang is the whole grid
  std::atomic<uint64_t>* finished;  // gangs
  LaunchProfile* profile;           // null: not profiled
};

struct Block;
struct Fiber;

enum class Wait : uint8_t { kNone, kBarrier, kGangBarrier, kWarp, kCondition };

struct alignas(64) Thread {
  uint3 index;
  uint16_t linear;
  Wait wait;
  bool exited;
  BlockOp block_op;
  uint8_t barrier;
  Block* block;
  Fiber* fiber;
  std::source_location where;
  WarpArgs warp;
  uint64_t result;
  // Of WarpOp::kMeet and Wait::kCondition.
  const char* name;
  void* operand;
  void (*compute)(void* const (&operands)[kWarpLanes], unsigned mask);
  bool (*ready)(void*);
  // Clocks: who this is, its present step, what it knows beyond its block's and warp's barriers.
  uint32_t owner, clock;
  uint32_t proxy_fence;  // step of the last fence.proxy.async
  SyncClock known;
  // What the next atomic operation gives on: what was known at the last fence, of the device or of the block
  // alone.
  SyncClock fenced, fenced_for_block;
  // What atomic operations have seen, of other blocks and of the own; it counts from the next fence on.
  SyncClock seen, seen_in_block;
  bool at_gang_barrier;
  uint32_t gang_phase;  // in which it arrived there
  unsigned spins;
  std::unique_ptr<Extension> extensions[kExtensionKinds];

  unsigned warp_number() const { return linear / kWarpLanes; }
  unsigned lane() const { return linear % kWarpLanes; }
};

struct Warp {
  unsigned existing;  // lanes that the block has
  unsigned exited;
  unsigned waiting;  // lanes in a collective
  uint32_t before;   // everything that its lanes did earlier is known to all of them
};

struct Barrier {
  unsigned arrived, expected;
  const Thread* first;
  unsigned nonzero;  // arrived with a predicate that holds
  bool mixed;        // at several places or with several operations
  int result;
  SyncClock clock;
};

struct Block {
  Block(char* memory, uint8_t* places) : arena(memory, places), threads(kMaxThreads) {}

  uint3 index;
  uint32_t number;  // within the grid, the blocks of a gang in a row
  unsigned rank;    // within the gang
  unsigned exited;
  uint32_t before;  // as Warp's, for all threads
  uint32_t birth;
  SyncClock known;
  // What atomic operations of its threads had seen before a barrier: a fence of any thread makes it count.
  SyncClock seen;
  Barrier barriers[kBarriers];
  Warp warps[kMaxWarps];
  SharedArena arena;
  std::vector<Thread> threads;
  std::unordered_map<const void*, SyncClock> atomics;  // of the block's threads, by address
  // Last accesses of other blocks of the cluster to this one's shared memory, by owner.
  std::unordered_map<uint32_t, uint32_t> visitors;
  std::unique_ptr<Extension> extensions[kExtensionKinds];
};

struct Fiber {
  class GangRunner* runner;
  Context context;
};

class SharedShadow;

class GangRunner {
 public:
  GangRunner();
  ~GangRunner();
  // Makes this the calling OS thread's runner. The launch must live until the last run().
  void begin_launch(const Launch& launch);
  void end_launch();
  // False when the gang failed: error() says why. `indices` are its blocks, `number` that of the first.
  bool run(const std::vector<uint3>& indices, uint32_t number, uint64_t random);
  const std::string& error() const { return error_; }

  // --- for the thread that runs ---
  Thread& current() { return *current_; }
  Block& block() { return *current_->block; }
  const Launch& launch() const { return *launch_; }
  unsigned gang_size() const { return gang_size_; }
  unsigned threads_of_a_block() const { return thread_count_; }
  Block& block_of_rank(unsigned rank) { return *blocks_[rank]; }
  // The gang's block with this number (see Block); null for another gang's.
  Block* find_block(uint32_t number_modulo, uint32_t modulus);
  int block_barrier(BlockOp op, int predicate, std::source_location where);
  void named_barrier(unsigned id, unsigned expected, bool wait, std::source_location where);
  // `apart`: the thread does something else before it waits.
  void gang_arrive(bool apart, std::source_location where);
  void gang_wait(std::source_location where);
  uint64_t warp_collective(const WarpArgs& args, std::source_location where);
  void warp_meet(const char* name, unsigned mask, void* operand,
                 void (*compute)(void* const (&operands)[kWarpLanes], unsigned mask),
                 std::source_location where);
  void wait_until(const char* name, bool (*ready)(void*), void* state, std::source_location where);
  void yield();
  // A loop that reads the same memory without a wait would never let others write it.
  void note_spin();
  // Something has been written or a wait is over: the gang is not spinning in vain.
  void note_progress() { idle_yields_ = 0; }

  // error() becomes "thread (x, y, z) WHAT".
  void report(const Thread& thread, const std::string& what);
  void set_error(std::string text) { error_ = std::move(text); }
  // Ends the gang, after error() was set. Nothing of its threads runs again, nor are their frames unwound: a
  // caller must own nothing, which is why a report is made apart.
  [[noreturn]] void stop();

  // --- for the checkers ---
  SharedShadow& shadow() { return *shadow_; }
  // Null when the gang is not profiled.
  AccessProfile* profile() { return profiled_ ? profile_.get() : nullptr; }
  uint32_t gang_before() const { return gang_before_; }
  uintptr_t arenas() const { return reinterpret_cast<uintptr_t>(arenas_); }
  // Which bytes of the words of a block's shared memory belong to an array.
  const uint8_t* places(unsigned rank) const { return places_ + rank * SharedArena::kStride / 4; }
  const Region* find_region(uintptr_t address, uintptr_t hint);
  // Kernel parameters and constants of the program.
  bool is_constant(uintptr_t address, size_t bytes) const;
  // Sets error(): an access to what no region holds.
  void report_outside(uintptr_t address, size_t bytes, const std::string& verb, const std::string& where);

 private:
  static void fiber_main(void* fiber);
  void prepare_block(unsigned rank, uint3 index, uint32_t number);
  void start_thread(Fiber& fiber);
  void finish_thread(Thread& thread);
  void check_visitors(Thread& last);
  void check_livelock();
  void wait_current();
  void resume_current(Thread& thread);
  Fiber* next_fiber();
  Fiber* free_fiber();
  bool prefer_ready();
  bool poll_conditions();
  bool has_unstarted() const { return started_ < order_.size(); }
  void push_ready(Thread& thread);
  Thread* pop_ready();
  void release(Thread& thread, size_t begin);
  void complete_barrier(Block& block, Barrier& barrier);
  void check_mask(Thread& self, unsigned mask);
  void complete_collective(Block& block, unsigned warp_number, unsigned group, Thread& caller);
  void join_lanes(Block& block, unsigned warp_number, unsigned group);
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
  unsigned thread_count_ = 0;  // of a block
  unsigned gang_size_ = 0;

  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Thread*> order_;  // in which threads start
  size_t started_ = 0, exited_ = 0;
  Thread* current_ = nullptr;
  bool yielding_ = false;
  uint64_t idle_yields_ = 0;
  uint64_t finished_when_idle_ = 0;
  std::chrono::steady_clock::time_point idle_since_;

  Context main_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_fibers_;
  std::vector<Thread*> ready_;  // a ring
  size_t ready_begin_ = 0, ready_end_ = 0;
  std::vector<Thread*> conditions_;

  size_t gang_arrived_ = 0;
  uint32_t gang_phase_ = 0;
  bool gang_apart_ = false;
  SyncClock gang_clock_;  // of the arrivals
  SyncClock gang_known_;  // after the last phase
  uint32_t gang_before_ = 0;

  char* arenas_ = nullptr;
  uint8_t* places_ = nullptr;
  std::unique_ptr<SharedShadow> shadow_;
  std::unique_ptr<AccessProfile> profile_;
  bool profiled_ = false;
  const std::vector<Region>* regions_ = nullptr;
  const Region* recent_[64] = {};
};

// The calling OS thread's; null before its first launch.
GangRunner* this_runner();

// "(1, 2, 3)"
std::string triple(uint3 v);

}  // namespace fastnn::emulator
