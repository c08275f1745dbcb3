// What is said of a block that failed.
#include <algorithm>
#include <cstdio>
#include <utility>

#include "gang.h"

namespace fastnn::emulator {
namespace {

const char* name_of(BlockOp op) {
  switch (op) {
    case BlockOp::kSync:
      return "__syncthreads";
    case BlockOp::kCount:
      return "__syncthreads_count";
    case BlockOp::kAnd:
      return "__syncthreads_and";
    case BlockOp::kOr:
      return "__syncthreads_or";
    case BlockOp::kNamed:
      return "a named barrier";
  }
  return "a barrier";
}

const char* name_of(WarpOp op) {
  switch (op) {
    case WarpOp::kSync:
      return "__syncwarp";
    case WarpOp::kShuffle:
      return "__shfl_sync";
    case WarpOp::kShuffleUp:
      return "__shfl_up_sync";
    case WarpOp::kShuffleDown:
      return "__shfl_down_sync";
    case WarpOp::kShuffleXor:
      return "__shfl_xor_sync";
    case WarpOp::kBallot:
      return "__ballot_sync";
    case WarpOp::kAny:
      return "__any_sync";
    case WarpOp::kAll:
      return "__all_sync";
    case WarpOp::kMatchAny:
      return "__match_any_sync";
    case WarpOp::kMatchAll:
      return "__match_all_sync";
    case WarpOp::kReduceAdd:
      return "__reduce_add_sync";
    case WarpOp::kReduceMin:
    case WarpOp::kReduceMinSigned:
      return "__reduce_min_sync";
    case WarpOp::kReduceMax:
    case WarpOp::kReduceMaxSigned:
      return "__reduce_max_sync";
    case WarpOp::kReduceAnd:
      return "__reduce_and_sync";
    case WarpOp::kReduceOr:
      return "__reduce_or_sync";
    case WarpOp::kReduceXor:
      return "__reduce_xor_sync";
    case WarpOp::kMeet:
      return "a collective";
  }
  return "a collective";
}

std::string hexadecimal(unsigned value) {
  char text[16];
  std::snprintf(text, sizeof(text), "0x%08x", value);
  return text;
}

}  // namespace

std::string triple(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

void GangRunner::report(const Thread& thread, const std::string& what) {
  error_ = "block " + triple(thread.block->index) + ": thread " + triple(thread.index) + " " + what;
}

void GangRunner::report_outside(uintptr_t address, size_t bytes, const std::string& verb,
                                const std::string& where) {
  std::string text = verb + " (" + where + ") " + std::to_string(bytes) + " bytes ";
  const Region* nearest = nullptr;
  uint64_t distance = 1 << 20;
  bool beyond = false;
  for (const Region& region : *regions_) {
    const uint64_t after = address - (region.begin + region.bytes), before = region.begin - address;
    if (after < distance) {
      nearest = &region;
      distance = after;
      beyond = true;
    }
    if (before < distance) {
      nearest = &region;
      distance = before;
      beyond = false;
    }
  }
  const bool other_stack = std::any_of(fibers_.begin(), fibers_.end(), [&](const auto& fiber) {
    return address - fiber->context.stack_begin() < fiber->context.stack_bytes();
  });
  if (address < 4096) {
    text += "at the null pointer";
  } else if (other_stack) {
    text += "of another thread's local memory";
  } else if (nearest == nullptr) {
    text += "of memory that is not the device's";
  } else {
    text += std::to_string(distance) + " bytes " + (beyond ? "after the end of " : "before ") +
            (nearest->what == nullptr ? "global memory" : nearest->what) + " of " +
            std::to_string(nearest->bytes) + " bytes";
  }
  report(*current_, text + ": out of bounds");
}

void GangRunner::report_wait(const Thread& thread, const char* what) {
  report(thread, (describe_wait(thread) + " " + what).c_str());
}

void GangRunner::report_exited_lane(const Thread& thread, unsigned lane) {
  report_wait(thread, ("naming lane " + std::to_string(lane) + ", which has exited").c_str());
}

std::string GangRunner::describe_wait(const Thread& thread) const {
  const std::string where = " (" + describe(thread.where) + ")";
  switch (thread.wait) {
    case Wait::kNone:
      return "spins";
    case Wait::kBarrier:
      if (thread.block_op == BlockOp::kNamed) {
        const Barrier& barrier = thread.block->barriers[thread.barrier];
        return "waits at barrier " + std::to_string(thread.barrier) + " for " +
               std::to_string(barrier.expected) + " threads, of which " + std::to_string(barrier.arrived) +
               " have arrived" + where;
      }
      return std::string("waits at ") + name_of(thread.block_op) + where;
    case Wait::kGangBarrier:
      return std::string("waits at the barrier of the ") + (launch_->cooperative ? "grid" : "cluster") + where;
    case Wait::kCondition:
      return std::string("waits for ") + thread.name + where;
    case Wait::kWarp:
      break;
  }
  if (thread.warp.op == WarpOp::kMeet) {
    return std::string("waits at ") + thread.name + " with mask " + hexadecimal(thread.warp.mask) + where;
  }
  return std::string("waits at ") + name_of(thread.warp.op) + " with mask " + hexadecimal(thread.warp.mask) +
         where;
}

std::string GangRunner::report_deadlock() const {
  struct Group {
    std::string what;
    unsigned count;
    const Thread* first;
  };
  std::vector<Group> groups;
  bool at_barrier = false;
  for (unsigned b = 0; b < gang_size_; ++b) {
    for (unsigned i = 0; i < thread_count_; ++i) {
      const Thread& thread = blocks_[b]->threads[i];
      at_barrier = at_barrier ||
                   (!thread.exited && (thread.wait == Wait::kBarrier || thread.wait == Wait::kGangBarrier));
      std::string what = thread.exited ? "has exited" : describe_wait(thread);
      auto group = groups.begin();
      while (group != groups.end() && group->what != what) ++group;
      if (group == groups.end()) {
        groups.push_back({std::move(what), 1, &thread});
      } else {
        ++group->count;
      }
    }
  }
  std::string report = "block " + triple(blocks_[0]->index) + ": ";
  report += at_barrier ? "deadlock, barrier not reached by all threads: " : "deadlock: ";
  constexpr size_t kMaxGroups = 8;
  for (size_t i = 0; i < groups.size() && i < kMaxGroups; ++i) {
    if (i > 0) report += "; ";
    report += "thread " + triple(groups[i].first->index);
    if (gang_size_ > 1) report += " of block " + triple(groups[i].first->block->index);
    if (groups[i].count > 1) report += " and " + std::to_string(groups[i].count - 1) + " more";
    report += ": " + groups[i].what;
  }
  if (groups.size() > kMaxGroups)
    report += "; and " + std::to_string(groups.size() - kMaxGroups) + " groups more";
  return report;
}

}  // namespace fastnn::emulator
