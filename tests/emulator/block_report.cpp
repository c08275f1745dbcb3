// What is said of a block that failed.
#include <cstdio>
#include <utility>

#include "block.h"

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

void BlockRunner::report(const Thread& thread, const char* what) {
  error_ = "thread " + triple(thread.index) + " " + what;
}

void BlockRunner::report_wait(const Thread& thread, const char* what) {
  report(thread, (describe_wait(thread) + " " + what).c_str());
}

void BlockRunner::report_exited_lane(const Thread& thread, unsigned lane) {
  report_wait(thread, ("naming lane " + std::to_string(lane) + ", which has exited").c_str());
}

void BlockRunner::trap(std::source_location where) {
  report(*current_, ("called __trap (" + describe(where) + ")").c_str());
}

std::string BlockRunner::describe_wait(const Thread& thread) const {
  if (thread.wait == Wait::kBlockBarrier) {
    return std::string("waits at ") + name_of(thread.block_op) + " (" + describe(thread.where) + ")";
  }
  return std::string("waits at ") + name_of(thread.warp.op) + " with mask " + hexadecimal(thread.warp.mask) +
         " (" + describe(thread.where) + ")";
}

std::string BlockRunner::report_deadlock() const {
  struct Group {
    std::string what;
    unsigned count;
    const Thread* first;
  };
  std::vector<Group> groups;
  bool at_barrier = false;
  for (unsigned i = 0; i < thread_count_; ++i) {
    const Thread& thread = threads_[i];
    const bool exited = (warps_[i / kWarpLanes].exited >> i % kWarpLanes & 1) != 0;
    at_barrier = at_barrier || (!exited && thread.wait == Wait::kBlockBarrier);
    std::string what = exited ? "has exited" : describe_wait(thread);
    auto group = groups.begin();
    while (group != groups.end() && group->what != what) ++group;
    if (group == groups.end()) {
      groups.push_back({std::move(what), 1, &thread});
    } else {
      ++group->count;
    }
  }
  std::string report = at_barrier ? "deadlock, barrier not reached by all threads: " : "deadlock: ";
  constexpr size_t kMaxGroups = 8;
  for (size_t i = 0; i < groups.size() && i < kMaxGroups; ++i) {
    if (i > 0) report += "; ";
    report += "thread " + triple(groups[i].first->index);
    if (groups[i].count > 1) report += " and " + std::to_string(groups[i].count - 1) + " more";
    report += ": " + groups[i].what;
  }
  if (groups.size() > kMaxGroups)
    report += "; and " + std::to_string(groups.size() - kMaxGroups) + " groups more";
  return report;
}

}  // namespace fastnn::emulator
