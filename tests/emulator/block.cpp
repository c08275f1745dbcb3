#include "block.h"

#include <bit>
#include <numeric>
#include <utility>

// The built-in variables of the thread that runs.
constinit thread_local uint3 threadIdx{};
constinit thread_local uint3 blockIdx{};
constinit thread_local dim3 blockDim{};
constinit thread_local dim3 gridDim{};

namespace fastnn::emulator {
namespace {

constinit thread_local __attribute__((tls_model("initial-exec"))) BlockRunner* this_runner = nullptr;

constexpr const char* kNoStack = "no memory for another thread's stack";

bool same_place(std::source_location a, std::source_location b) {
  return a.line() == b.line() && a.column() == b.column() && a.file_name() == b.file_name();
}

// The lane whose value a shuffle gives to `lane` (PTX ISA, shfl.sync).
unsigned shuffle_source(const WarpArgs& args, unsigned lane) {
  const unsigned first = lane & ~(args.width - 1u), last = first + args.width - 1;
  const unsigned distance = args.operand % kWarpLanes;
  switch (args.op) {
    case WarpOp::kShuffleUp:
      return lane >= first + distance ? lane - distance : lane;
    case WarpOp::kShuffleDown:
      return lane + distance <= last ? lane + distance : lane;
    case WarpOp::kShuffleXor:
      return (lane ^ distance) <= last ? lane ^ distance : lane;
    default:
      return first | (args.operand & (args.width - 1u));
  }
}

uint32_t reduce(WarpOp op, uint32_t a, uint32_t b) {
  const auto signed_a = static_cast<int32_t>(a), signed_b = static_cast<int32_t>(b);
  switch (op) {
    case WarpOp::kReduceAdd:
      return a + b;
    case WarpOp::kReduceMin:
      return a < b ? a : b;
    case WarpOp::kReduceMax:
      return a > b ? a : b;
    case WarpOp::kReduceMinSigned:
      return signed_a < signed_b ? a : b;
    case WarpOp::kReduceMaxSigned:
      return signed_a > signed_b ? a : b;
    case WarpOp::kReduceAnd:
      return a & b;
    case WarpOp::kReduceOr:
      return a | b;
    default:
      return a ^ b;
  }
}

}  // namespace

BlockRunner::BlockRunner() : threads_(kMaxThreads), order_(kMaxThreads) {}

void BlockRunner::begin_launch(const Launch& launch) {
  this_runner = this;
  launch_ = &launch;
  ::gridDim = launch.grid;
  ::blockDim = launch.block;
  thread_count_ = launch.block.x * launch.block.y * launch.block.z;
  unsigned i = 0;
  for (unsigned z = 0; z < launch.block.z; ++z) {
    for (unsigned y = 0; y < launch.block.y; ++y) {
      for (unsigned x = 0; x < launch.block.x; ++x, ++i) {
        threads_[i].index = {x, y, z};
        threads_[i].linear = static_cast<uint16_t>(i);
      }
    }
  }
  for (unsigned w = 0; w * kWarpLanes < thread_count_; ++w) {
    const unsigned lanes = thread_count_ - w * kWarpLanes;
    warps_[w].existing = lanes >= kWarpLanes ? 0xffffffffu : (1u << lanes) - 1;
  }
  std::iota(order_.begin(), order_.begin() + thread_count_, uint16_t{0});
}

uint64_t BlockRunner::next_random() {  // xorshift64* (Vigna 2016)
  random_ ^= random_ >> 12;
  random_ ^= random_ << 25;
  random_ ^= random_ >> 27;
  return random_ * 0x2545f4914f6cdd1dull >> 32;
}

void BlockRunner::begin_order(uint64_t random) {
  random_ = random | 1;
  // Warps in random order and the lanes of each: lanes of several warps mix only through their waits.
  const unsigned warps = (thread_count_ + kWarpLanes - 1) / kWarpLanes;
  uint16_t warp_order[kMaxThreads / kWarpLanes];
  for (unsigned i = 0; i < warps; ++i) {
    const auto j = static_cast<unsigned>(next_random() % (i + 1));
    warp_order[i] = warp_order[j];
    warp_order[j] = static_cast<uint16_t>(i);
  }
  unsigned end = 0;
  for (unsigned i = 0; i < warps; ++i) {
    const unsigned begin = end, first = warp_order[i] * kWarpLanes;
    for (unsigned thread = first; thread < first + kWarpLanes && thread < thread_count_; ++thread, ++end) {
      const unsigned j = begin + static_cast<unsigned>(next_random() % (end - begin + 1));
      order_[end] = order_[j];
      order_[j] = static_cast<uint16_t>(thread);
    }
  }
}

bool BlockRunner::run(uint3 block_index, uint64_t random) {
  ::blockIdx = block_index;
  error_.clear();
  if (launch_->seed != 0) begin_order(random);
  for (unsigned w = 0; w * kWarpLanes < thread_count_; ++w) warps_[w].exited = warps_[w].waiting = 0;
  started_ = exited_ = 0;
  ready_begin_ = ready_end_ = 0;
  barrier_ = {};
  shared_.begin_block(launch_->dynamic_shared_bytes);

  Fiber* const fiber = free_fiber();
  if (fiber != nullptr) {
    fiber->context.switch_from(main_);
    // Back here every thread has exited, or all that have not are waiting, or one has failed.
    if (error_.empty() && exited_ < thread_count_) error_ = report_deadlock();
    if (error_.empty()) shared_.check(error_);
  } else {
    error_ = kNoStack;
  }
  if (error_.empty()) return true;
  error_ = "block " + triple(block_index) + ": " + error_;
  abandon_fibers();
  return false;
}

// --- fibers ---

void BlockRunner::abandon_fibers() {
  free_fibers_.clear();
  for (const auto& fiber : fibers_) {
    fiber->context.reset(&fiber_main, fiber.get());
    free_fibers_.push_back(fiber.get());
  }
}

BlockRunner::Fiber* BlockRunner::free_fiber() {
  if (free_fibers_.empty()) {
    auto fiber = std::make_unique<Fiber>();
    fiber->runner = this;
    if (!fiber->context.allocate_stack(fibers_.size())) return nullptr;
    fiber->context.reset(&fiber_main, fiber.get());
    fibers_.push_back(std::move(fiber));
    return fibers_.back().get();
  }
  Fiber* const fiber = free_fibers_.back();
  free_fibers_.pop_back();
  return fiber;
}

// A fiber is continued at the head of this loop only when a thread is left to start.
void BlockRunner::fiber_main(void* argument) {
  Fiber& fiber = *static_cast<Fiber*>(argument);
  BlockRunner& runner = *fiber.runner;
  for (;;) {
    runner.start_thread(fiber);
    const bool ready = runner.prefer_ready();
    if (!ready && runner.has_unstarted()) continue;
    runner.free_fibers_.push_back(&fiber);
    Context& next = ready ? runner.pop_ready()->fiber->context : runner.main_;
    next.switch_from(fiber.context);
  }
}

void BlockRunner::start_thread(Fiber& fiber) {
  Thread& thread = threads_[order_[started_++]];
  thread.fiber = &fiber;
  thread.wait = Wait::kNone;
  current_ = &thread;
  ::threadIdx = thread.index;
  bool threw = false;
  try {
    launch_->run_thread(launch_->arguments);
  } catch (...) {
    threw = true;  // the handler must end before the fiber is left
  }
  if (threw) {
    report(thread, "threw a C++ exception");
    stop();
  }
  finish_thread(thread);
}

void BlockRunner::finish_thread(Thread& thread) {
  ++exited_;
  Warp& warp = warps_[thread.linear / kWarpLanes];
  const unsigned bit = 1u << thread.linear % kWarpLanes;
  warp.exited |= bit;
  for (unsigned waiting = warp.waiting; waiting != 0; waiting &= waiting - 1) {
    const Thread& other = threads_[thread.linear / kWarpLanes * kWarpLanes + std::countr_zero(waiting)];
    if ((other.warp.mask & bit) != 0) {
      report_exited_lane(other, thread.linear % kWarpLanes);
      stop();
    }
  }
}

void BlockRunner::stop() {
  main_.switch_from(current_->fiber->context);
  __builtin_unreachable();  // the fiber is abandoned
}

// With a seed, whether to go on with a waiting thread or to start one is thrown too.
bool BlockRunner::prefer_ready() {
  if (ready_begin_ == ready_end_) return false;
  return launch_->seed == 0 || !has_unstarted() || next_random() % 2 == 0;
}

BlockRunner::Fiber* BlockRunner::next_fiber() {
  if (prefer_ready()) return pop_ready()->fiber;
  if (!has_unstarted()) return nullptr;
  Fiber* const fiber = free_fiber();
  if (fiber == nullptr) {
    error_ = kNoStack;
    stop();
  }
  return fiber;
}

void BlockRunner::wait_current() {
  Thread& self = *current_;
  Fiber* const next = next_fiber();
  if (next != self.fiber) {
    (next == nullptr ? main_ : next->context).switch_from(self.fiber->context);
    current_ = &self;
    ::threadIdx = self.index;
  }
  self.wait = Wait::kNone;
}

// With a seed, those released since ready_[begin] go on in random order.
void BlockRunner::release(Thread& thread, unsigned begin) {
  push_ready(thread);
  if (launch_->seed == 0) return;
  const unsigned last = ready_end_ - 1,
                 other = begin + static_cast<unsigned>(next_random() % (ready_end_ - begin));
  std::swap(ready_[last % kMaxThreads], ready_[other % kMaxThreads]);
}

void BlockRunner::yield() {
  push_ready(*current_);
  wait_current();
}

// --- barriers and collectives ---

int BlockRunner::block_barrier(BlockOp op, int predicate, std::source_location where) {
  Thread& self = *current_;
  self.wait = Wait::kBlockBarrier;
  self.block_op = op;
  self.where = where;
  if (barrier_.arrived++ == 0) {
    barrier_.first = &self;
    barrier_.nonzero = 0;
    barrier_.mixed = false;
  } else if (op != barrier_.first->block_op || !same_place(where, barrier_.first->where)) {
    barrier_.mixed = true;
  }
  barrier_.nonzero += predicate != 0;
  if (barrier_.arrived == thread_count_ && !barrier_.mixed) {
    const unsigned nonzero = barrier_.nonzero;
    barrier_.arrived = 0;
    // Read by every thread before any can complete the next barrier.
    barrier_.result = static_cast<int>(op == BlockOp::kCount ? nonzero
                                       : op == BlockOp::kAnd ? nonzero == thread_count_
                                                             : nonzero != 0);
    const unsigned begin = ready_end_;
    for (unsigned i = 0; i < thread_count_; ++i) release(threads_[i], begin);
  }
  wait_current();
  return barrier_.result;
}

uint64_t BlockRunner::warp_collective(const WarpArgs& args, std::source_location where) {
  Thread& self = *current_;
  const unsigned number = self.linear / kWarpLanes, bit = 1u << self.linear % kWarpLanes;
  Warp& warp = warps_[number];
  self.wait = Wait::kWarp;
  self.where = where;
  self.warp = args;
  const unsigned group = args.mask & warp.existing;
  if (args.width == 0 || (args.width & (args.width - 1)) != 0) {
    report_wait(self, "with a width that is no power of two up to 32");
    stop();
  }
  if ((args.mask & bit) == 0) {
    report_wait(self, "without naming its own lane");
    stop();
  }
  if ((group & warp.exited) != 0) {
    report_exited_lane(self, static_cast<unsigned>(std::countr_zero(group & warp.exited)));
    stop();
  }
  warp.waiting |= bit;
  if ((warp.waiting & group) == group) complete_collective(number, group, self);
  // A lane that meets nobody but itself does not wait.
  if (self.wait == Wait::kWarp) wait_current();
  return self.result;
}

void BlockRunner::complete_collective(unsigned warp_number, unsigned group, Thread& caller) {
  Thread* const lanes = &threads_[warp_number * kWarpLanes];
  Thread* members[kWarpLanes];
  unsigned count = 0;
  const WarpOp op = caller.warp.op;
  for (unsigned rest = group; rest != 0; rest &= rest - 1) {
    Thread& member = lanes[std::countr_zero(rest)];
    if (member.warp.op != op || member.warp.mask != caller.warp.mask) return;
    members[count++] = &member;
  }
  uint64_t common = 0;
  switch (op) {
    case WarpOp::kSync:
      break;
    case WarpOp::kShuffle:
    case WarpOp::kShuffleUp:
    case WarpOp::kShuffleDown:
    case WarpOp::kShuffleXor:
      for (unsigned i = 0; i < count; ++i) {
        const unsigned source = shuffle_source(members[i]->warp, members[i]->linear % kWarpLanes);
        members[i]->result = (group >> source & 1) != 0 ? lanes[source].warp.value : ~uint64_t{0};
      }
      break;
    case WarpOp::kMatchAny:
      for (unsigned i = 0; i < count; ++i) {
        unsigned equal = 0;
        for (unsigned j = 0; j < count; ++j) {
          if (members[j]->warp.value == members[i]->warp.value) equal |= 1u << members[j]->linear % kWarpLanes;
        }
        members[i]->result = equal;
      }
      break;
    case WarpOp::kMatchAll:
      common = group;
      for (unsigned i = 1; i < count; ++i) {
        if (members[i]->warp.value != members[0]->warp.value) common = 0;
      }
      break;
    case WarpOp::kBallot:
    case WarpOp::kAny:
    case WarpOp::kAll: {
      unsigned votes = 0;
      for (unsigned i = 0; i < count; ++i) {
        if (members[i]->warp.value != 0) votes |= 1u << members[i]->linear % kWarpLanes;
      }
      common = op == WarpOp::kBallot ? votes : op == WarpOp::kAny ? votes != 0 : votes == group;
      break;
    }
    default:
      common = members[0]->warp.value;
      for (unsigned i = 1; i < count; ++i) {
        common = reduce(op, static_cast<uint32_t>(common), static_cast<uint32_t>(members[i]->warp.value));
      }
      break;
  }
  const bool shuffled = op == WarpOp::kShuffle || op == WarpOp::kShuffleUp || op == WarpOp::kShuffleDown ||
                        op == WarpOp::kShuffleXor || op == WarpOp::kMatchAny;
  if (!shuffled) {
    for (unsigned i = 0; i < count; ++i) members[i]->result = common;
  }
  warps_[warp_number].waiting &= ~group;
  if (count == 1) {
    caller.wait = Wait::kNone;
  } else {
    const unsigned begin = ready_end_;
    for (unsigned i = 0; i < count; ++i) release(*members[i], begin);
  }
}

// --- what the device functions call ---

int block_barrier(BlockOp op, int predicate, std::source_location where) {
  return this_runner->block_barrier(op, predicate, where);
}

uint64_t warp_collective(const WarpArgs& args, std::source_location where) {
  return this_runner->warp_collective(args, where);
}

void yield() { this_runner->yield(); }

void trap(std::source_location where) {
  this_runner->trap(where);
  this_runner->stop();
}

void* dynamic_shared() { return this_runner->dynamic_shared(); }

void* static_shared(const void* tag, const char* name, size_t bytes, size_t alignment,
                    std::source_location where) {
  void* const memory = this_runner->static_shared(tag, name, bytes, alignment, where);
  if (memory == nullptr) this_runner->stop();
  return memory;
}

}  // namespace fastnn::emulator

unsigned __activemask() { return 1u << fastnn::emulator::this_runner->current_lane(); }
