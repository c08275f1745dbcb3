// Where threads wait for each other: barriers of a block and of a gang, and the collectives of a warp.
#include <bit>
#include <utility>

#include "../checkers/races.h"
#include "gang.h"

namespace fastnn::emulator {
namespace {

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

// All threads of the block are at one place: what one of them knows, all know.
void join_block(Block& block, unsigned thread_count, uint32_t now) {
  for (unsigned i = 0; i < thread_count; ++i) {
    Thread& thread = block.threads[i];
    if (!thread.known.empty()) {
      block.known.join(thread.known);
      thread.known.clear();
    }
    if (!thread.seen.empty()) block.seen.join(thread.seen);
    thread.clock = now;
  }
  block.before = now;
  for (unsigned w = 0; w * kWarpLanes < thread_count; ++w) block.warps[w].before = now;
  block.known.drop_threads_of(block.number);
}

}  // namespace

// --- the block ---

int GangRunner::block_barrier(BlockOp op, int predicate, std::source_location where) {
  Thread& self = *current_;
  Block& block = *self.block;
  Barrier& barrier = block.barriers[0];
  self.wait = Wait::kBarrier;
  self.barrier = 0;
  self.block_op = op;
  self.where = where;
  if (barrier.arrived++ == 0) {
    barrier.first = &self;
    barrier.nonzero = 0;
    barrier.mixed = false;
    barrier.expected = thread_count_;
  } else if (barrier.expected != thread_count_ || op != barrier.first->block_op ||
             !same_place(where, barrier.first->where)) {
    barrier.mixed = true;
  }
  barrier.nonzero += predicate != 0;
  if (barrier.arrived == thread_count_ && !barrier.mixed) {
    const unsigned nonzero = barrier.nonzero;
    // Read by every thread before any can complete the next barrier.
    barrier.result = static_cast<int>(op == BlockOp::kCount ? nonzero
                                      : op == BlockOp::kAnd ? nonzero == thread_count_
                                                            : nonzero != 0);
    complete_barrier(block, barrier);
  }
  wait_current();
  return barrier.result;
}

void GangRunner::complete_barrier(Block& block, Barrier& barrier) {
  note_progress();
  const size_t begin = ready_end_;
  const auto id = static_cast<uint8_t>(&barrier - block.barriers);
  barrier.arrived = 0;
  if (barrier.expected == thread_count_ && barrier.clock.empty()) {
    join_block(block, thread_count_, tick());
    shadow_->end_step(block.rank);
    if (profiled_) {
      for (unsigned w = 0; w * kWarpLanes < thread_count_; ++w) profile_->meet(block.rank * kMaxWarps + w);
    }
    for (unsigned i = 0; i < thread_count_; ++i) release(block.threads[i], begin);
    return;
  }
  for (unsigned i = 0; i < thread_count_; ++i) {
    Thread& thread = block.threads[i];
    if (thread.exited || thread.wait != Wait::kBarrier || thread.barrier != id) continue;
    emulator::release(thread, barrier.clock);
  }
  barrier.clock.name();
  for (unsigned i = 0; i < thread_count_; ++i) {
    Thread& thread = block.threads[i];
    if (thread.exited || thread.wait != Wait::kBarrier || thread.barrier != id) continue;
    thread.known = barrier.clock;  // which has what the thread knew
    release(thread, begin);
  }
  barrier.clock.clear();
}

void GangRunner::named_barrier(unsigned id, unsigned expected, bool wait, std::source_location where) {
  Thread& self = *current_;
  Block& block = *self.block;
  self.where = where;
  self.barrier = static_cast<uint8_t>(id);
  self.block_op = BlockOp::kNamed;
  if (id >= kBarriers) {
    report(self, "names barrier " + std::to_string(id) + " of 16 (" + describe(where) + ")");
    stop();
  }
  if (expected == 0 || expected % kWarpLanes != 0 || expected > (thread_count_ + 31) / 32 * 32) {
    report(self, "waits at barrier " + std::to_string(id) + " for " + std::to_string(expected) +
                     " threads, which is no multiple of 32 up to the block's (" + describe(where) + ")");
    stop();
  }
  Barrier& barrier = block.barriers[id];
  if (barrier.arrived == 0) {
    barrier.first = &self;
    barrier.expected = expected;
    barrier.mixed = false;
  } else if (barrier.expected != expected) {
    report(self, "waits at barrier " + std::to_string(id) + " for " + std::to_string(expected) + " threads (" +
                     describe(where) + ") and thread " + triple(barrier.first->index) + " for " +
                     std::to_string(barrier.expected) + " (" + describe(barrier.first->where) + ")");
    stop();
  }
  ++barrier.arrived;
  if (wait) {
    self.wait = Wait::kBarrier;
  } else {
    emulator::release(self, barrier.clock);
  }
  if (barrier.arrived == expected) complete_barrier(block, barrier);
  if (wait) wait_current();
}

// --- the gang: a cluster, or a cooperative grid ---

void GangRunner::gang_arrive(bool apart, std::source_location where) {
  Thread& self = *current_;
  if (self.at_gang_barrier) {
    report(self, "arrives twice at the barrier of the cluster (" + describe(where) + ")");
    stop();
  }
  self.at_gang_barrier = true;
  self.gang_phase = gang_phase_;
  self.where = where;
  // Between its arrival and its wait a thread goes on, and what it does there is not covered.
  if (apart) emulator::release(self, gang_clock_);
  gang_apart_ = gang_apart_ || apart;
  if (++gang_arrived_ < order_.size()) return;
  note_progress();
  ++gang_phase_;
  gang_arrived_ = 0;
  const size_t begin = ready_end_;
  if (!gang_apart_) {
    const uint32_t now = tick();
    SyncClock all;
    for (unsigned b = 0; b < gang_size_; ++b) {
      join_block(*blocks_[b], thread_count_, now);
      shadow_->end_step(b);
      all.join(blocks_[b]->known);
    }
    gang_before_ = now;
    for (unsigned b = 0; b < gang_size_; ++b) blocks_[b]->known = all;
  } else {
    for (Thread* const thread : order_) {
      if (thread->wait == Wait::kGangBarrier || thread == &self) emulator::release(*thread, gang_clock_);
    }
    gang_known_ = std::exchange(gang_clock_, SyncClock());
    gang_apart_ = false;
  }
  for (Thread* const thread : order_) {
    if (thread->wait != Wait::kGangBarrier) continue;
    if (!gang_known_.empty()) emulator::acquire(*thread, gang_known_);
    release(*thread, begin);
  }
}

void GangRunner::gang_wait(std::source_location where) {
  Thread& self = *current_;
  if (!self.at_gang_barrier) {
    report(self, "waits at the barrier of the cluster without having arrived (" + describe(where) + ")");
    stop();
  }
  self.where = where;
  if (self.gang_phase == gang_phase_) {
    self.wait = Wait::kGangBarrier;
    wait_current();
  } else {
    emulator::acquire(self, gang_known_);
  }
  self.at_gang_barrier = false;
}

// --- the warp ---

void GangRunner::check_mask(Thread& self, unsigned mask) {
  const Warp& warp = self.block->warps[self.warp_number()];
  if ((mask & 1u << self.lane()) == 0) {
    report_wait(self, "without naming its own lane");
    stop();
  }
  const unsigned gone = mask & warp.existing & warp.exited;
  if (gone != 0) {
    report_exited_lane(self, static_cast<unsigned>(std::countr_zero(gone)));
    stop();
  }
}

uint64_t GangRunner::warp_collective(const WarpArgs& args, std::source_location where) {
  Thread& self = *current_;
  Warp& warp = self.block->warps[self.warp_number()];
  self.wait = Wait::kWarp;
  self.where = where;
  self.warp = args;
  if (args.width == 0 || (args.width & (args.width - 1)) != 0) {
    report_wait(self, "with a width that is no power of two up to 32");
    stop();
  }
  check_mask(self, args.mask);
  const unsigned group = args.mask & warp.existing;
  warp.waiting |= 1u << self.lane();
  if ((warp.waiting & group) == group) complete_collective(*self.block, self.warp_number(), group, self);
  // A lane that meets nobody but itself does not wait.
  if (self.wait == Wait::kWarp) wait_current();
  return self.result;
}

void GangRunner::warp_meet(const char* name, unsigned mask, void* operand,
                           void (*compute)(void* const (&operands)[kWarpLanes], unsigned mask),
                           std::source_location where) {
  Thread& self = *current_;
  self.name = name;
  self.operand = operand;
  self.compute = compute;
  warp_collective({.op = WarpOp::kMeet, .mask = mask}, where);
}

// All existing lanes of the warp are at one place, or only some.
void GangRunner::join_lanes(Block& block, unsigned warp_number, unsigned group) {
  Thread* const lanes = &block.threads[warp_number * kWarpLanes];
  bool known = false;
  for (unsigned rest = group; rest != 0; rest &= rest - 1)
    known |= !lanes[std::countr_zero(rest)].known.empty();
  if (group == block.warps[warp_number].existing && !known) {
    const uint32_t now = tick();
    block.warps[warp_number].before = now;
    for (unsigned rest = group; rest != 0; rest &= rest - 1) lanes[std::countr_zero(rest)].clock = now;
    return;
  }
  SyncClock all;
  for (unsigned rest = group; rest != 0; rest &= rest - 1)
    emulator::release(lanes[std::countr_zero(rest)], all);
  all.name();
  for (unsigned rest = group; rest != 0; rest &= rest - 1) lanes[std::countr_zero(rest)].known = all;
}

void GangRunner::complete_collective(Block& block, unsigned warp_number, unsigned group, Thread& caller) {
  Thread* const lanes = &block.threads[warp_number * kWarpLanes];
  Thread* members[kWarpLanes];
  unsigned count = 0;
  const WarpOp op = caller.warp.op;
  for (unsigned rest = group; rest != 0; rest &= rest - 1) {
    Thread& member = lanes[std::countr_zero(rest)];
    if (member.warp.op != op || member.warp.mask != caller.warp.mask ||
        (op == WarpOp::kMeet && member.compute != caller.compute)) {
      return;
    }
    members[count++] = &member;
  }
  uint64_t common = 0;
  switch (op) {
    case WarpOp::kSync:
      join_lanes(block, warp_number, group);
      break;
    case WarpOp::kMeet: {
      void* operands[kWarpLanes] = {};
      for (unsigned i = 0; i < count; ++i) operands[members[i]->lane()] = members[i]->operand;
      caller.compute(operands, group);
      break;
    }
    case WarpOp::kShuffle:
    case WarpOp::kShuffleUp:
    case WarpOp::kShuffleDown:
    case WarpOp::kShuffleXor:
      for (unsigned i = 0; i < count; ++i) {
        const unsigned source = shuffle_source(members[i]->warp, members[i]->lane());
        members[i]->result = (group >> source & 1) != 0 ? lanes[source].warp.value : ~uint64_t{0};
      }
      break;
    case WarpOp::kMatchAny:
      for (unsigned i = 0; i < count; ++i) {
        unsigned equal = 0;
        for (unsigned j = 0; j < count; ++j) {
          if (members[j]->warp.value == members[i]->warp.value) equal |= 1u << members[j]->lane();
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
        if (members[i]->warp.value != 0) votes |= 1u << members[i]->lane();
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
  note_progress();
  Warp& warp = block.warps[warp_number];
  if (profiled_ && group == (warp.existing & ~warp.exited))
    profile_->meet(block.rank * kMaxWarps + warp_number);
  warp.waiting &= ~group;
  if (count == 1) {
    caller.wait = Wait::kNone;
  } else {
    const size_t begin = ready_end_;
    for (unsigned i = 0; i < count; ++i) release(*members[i], begin);
  }
}

}  // namespace fastnn::emulator
