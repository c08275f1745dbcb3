// The built-in variables of the thread that runs are defined here, and so may be set here.
#define FASTNN_EMULATOR_BUILTIN(type) extern constinit thread_local type
#include "gang.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <utility>

#include "../checkers/access.h"
#include "../checkers/races.h"

constinit thread_local uint3 threadIdx{};
constinit thread_local uint3 blockIdx{};
constinit thread_local fastnn::emulator::Extent blockDim{};
constinit thread_local fastnn::emulator::Extent gridDim{};

namespace fastnn::emulator {
namespace {

constinit thread_local __attribute__((tls_model("initial-exec"))) GangRunner* the_runner = nullptr;

constexpr const char* kNoStack = "no memory for another thread's stack";
constexpr size_t kArenaBytes = SharedArena::kStride * kMaxGang;

// Whether an address lies in a part of this library that nobody may write: literals and constant tables.
bool in_constants_of_program(uintptr_t address) {
  struct Range {
    uintptr_t begin, end;
  };
  static const std::vector<Range> ranges = [] {
    std::vector<Range> found;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* result) {
          const auto here = reinterpret_cast<uintptr_t>(&in_constants_of_program);
          std::vector<Range> segments;
          bool mine = false;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& header = info->dlpi_phdr[i];
            const uintptr_t begin = info->dlpi_addr + header.p_vaddr, end = begin + header.p_memsz;
            if (header.p_type == PT_LOAD && here >= begin && here < end) mine = true;
            const bool constant =
                (header.p_type == PT_LOAD && (header.p_flags & PF_W) == 0) || header.p_type == PT_GNU_RELRO;
            if (constant) segments.push_back({begin, end});
          }
          if (mine) *static_cast<std::vector<Range>*>(result) = segments;
          return mine ? 1 : 0;
        },
        &found);
    return found;
  }();
  return std::any_of(ranges.begin(), ranges.end(),
                     [&](const Range& range) { return address >= range.begin && address < range.end; });
}

void* reserve(size_t bytes) {
  void* const memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return memory;
}

}  // namespace

GangRunner* this_runner() { return the_runner; }

GangRunner::GangRunner()
    : arenas_(static_cast<char*>(reserve(kArenaBytes))),
      places_(static_cast<uint8_t*>(reserve(kArenaBytes / 4))),
      shadow_(std::make_unique<SharedShadow>()) {}

GangRunner::~GangRunner() {
  munmap(arenas_, kArenaBytes);
  munmap(places_, kArenaBytes / 4);
}

void GangRunner::begin_launch(const Launch& launch) {
  the_runner = this;
  launch_ = &launch;
  ::gridDim = {launch.grid.x, launch.grid.y, launch.grid.z};
  ::blockDim = {launch.block.x, launch.block.y, launch.block.z};
  thread_count_ = launch.block.x * launch.block.y * launch.block.z;
  regions_ = &regions();
  profile_ = launch.profile == nullptr ? nullptr : std::make_unique<AccessProfile>();
  for (const Region*& recent : recent_) recent = nullptr;
  probe.runner = this;
  probe.arenas_begin = arenas();
  probe.arenas_bytes = 0;
}

void GangRunner::end_launch() {
  if (profile_ != nullptr) launch_->profile->add(*profile_);
  profile_.reset();
  regions_ = nullptr;
}

uint64_t GangRunner::next_random() {  // xorshift64* (Vigna 2016)
  random_ ^= random_ >> 12;
  random_ ^= random_ << 25;
  random_ ^= random_ >> 27;
  return random_ * 0x2545f4914f6cdd1dull >> 32;
}

void GangRunner::begin_order(uint64_t random) {
  random_ = random | 1;
  order_.clear();
  // Warps of all blocks in random order and the lanes of each: lanes of several warps mix only through their
  // waits.
  std::vector<std::pair<unsigned, unsigned>> warps;
  for (unsigned b = 0; b < gang_size_; ++b) {
    for (unsigned w = 0; w * kWarpLanes < thread_count_; ++w) warps.emplace_back(b, w);
  }
  if (launch_->seed != 0) {
    for (size_t i = warps.size(); i > 1; --i) std::swap(warps[i - 1], warps[next_random() % i]);
  }
  for (const auto& [b, w] : warps) {
    const size_t begin = order_.size();
    for (unsigned i = w * kWarpLanes; i < (w + 1) * kWarpLanes && i < thread_count_; ++i) {
      order_.push_back(&blocks_[b]->threads[i]);
      if (launch_->seed == 0) continue;
      std::swap(order_.back(), order_[begin + next_random() % (order_.size() - begin)]);
    }
  }
}

void GangRunner::prepare_block(unsigned rank, uint3 index, uint32_t number) {
  if (rank == blocks_.size()) {
    blocks_.push_back(std::make_unique<Block>(arenas_ + rank * SharedArena::kStride,
                                              places_ + rank * SharedArena::kStride / 4));
  }
  Block& block = *blocks_[rank];
  block.index = index;
  block.number = number;
  block.rank = rank;
  block.exited = 0;
  block.before = block.birth = tick();
  block.known.clear();
  block.seen.clear();
  block.atomics.clear();
  block.visitors.clear();
  for (Barrier& barrier : block.barriers) {
    barrier.arrived = 0;
    barrier.clock.clear();
  }
  for (auto& extension : block.extensions) extension.reset();
  for (unsigned w = 0; w * kWarpLanes < thread_count_; ++w) {
    const unsigned lanes = thread_count_ - w * kWarpLanes;
    block.warps[w] = {.existing = lanes >= kWarpLanes ? 0xffffffffu : (1u << lanes) - 1,
                      .exited = 0,
                      .waiting = 0,
                      .before = block.before};
  }
  unsigned i = 0;
  for (unsigned z = 0; z < launch_->block.z; ++z) {
    for (unsigned y = 0; y < launch_->block.y; ++y) {
      for (unsigned x = 0; x < launch_->block.x; ++x, ++i) {
        Thread& thread = block.threads[i];
        thread.index = {x, y, z};
        thread.linear = static_cast<uint16_t>(i);
        thread.wait = Wait::kNone;
        thread.exited = false;
        thread.block = &block;
        thread.owner = make_owner(number, OwnerKind::kThread, i);
        thread.clock = block.before;
        thread.proxy_fence = 0;
        thread.known.clear();
        thread.fenced.clear();
        thread.fenced_for_block.clear();
        thread.seen.clear();
        thread.seen_in_block.clear();
        thread.at_gang_barrier = false;
        thread.spins = 0;
        for (auto& extension : thread.extensions) extension.reset();
      }
    }
  }
  shadow_->begin_block(rank, block.birth, block.arena.used(), (thread_count_ + kWarpLanes - 1) / kWarpLanes);
  block.arena.begin_block(launch_->dynamic_shared_bytes);
}

bool GangRunner::run(const std::vector<uint3>& indices, uint32_t number, uint64_t random) {
  error_.clear();
  gang_size_ = static_cast<unsigned>(indices.size());
  gang_arrived_ = gang_phase_ = 0;
  gang_apart_ = false;
  gang_clock_.clear();
  gang_known_.clear();
  for (unsigned i = 0; i < gang_size_; ++i) prepare_block(i, indices[i], number + i);
  gang_before_ = blocks_[0]->birth;
  begin_order(random);
  started_ = exited_ = 0;
  ready_.resize(std::max(ready_.size(), order_.size() + 1));
  ready_begin_ = ready_end_ = 0;
  conditions_.clear();
  idle_yields_ = 0;
  profiled_ = profile_ != nullptr && launch_->profile->samples(number / gang_size_);
  probe.arenas_bytes = SharedArena::kStride * gang_size_;

  Fiber* const fiber = free_fiber();
  if (fiber != nullptr) {
    fiber->context.switch_from(main_);
    probe.thread = nullptr;
    // Back here every thread has exited, or all that have not are waiting, or one has failed.
    if (error_.empty() && exited_ < order_.size()) error_ = report_deadlock();
    for (unsigned i = 0; i < gang_size_ && error_.empty(); ++i) {
      if (!blocks_[i]->arena.check(error_)) error_ = "block " + triple(blocks_[i]->index) + ": " + error_;
    }
  } else {
    error_ = kNoStack;
  }
  if (profiled_) profile_->end_block();
  if (error_.empty()) return true;
  abandon_fibers();
  return false;
}

Block* GangRunner::find_block(uint32_t number_modulo, uint32_t modulus) {
  const uint32_t rank = (number_modulo - blocks_[0]->number) & (modulus - 1);
  return rank < gang_size_ ? blocks_[rank].get() : nullptr;
}

const Region* GangRunner::find_region(uintptr_t address, uintptr_t hint) {
  const Region*& recent = recent_[hint % std::size(recent_)];
  if (recent != nullptr && address - recent->begin < recent->bytes) return recent;
  size_t low = 0, high = regions_->size();
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if ((*regions_)[middle].begin <= address) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low == 0) return nullptr;
  const Region& region = (*regions_)[low - 1];
  if (address - region.begin >= region.bytes) return nullptr;
  recent = &region;
  return recent;
}

bool GangRunner::is_constant(uintptr_t address, size_t bytes) const {
  const auto parameters = reinterpret_cast<uintptr_t>(launch_->arguments);
  if (address - parameters < launch_->argument_bytes)
    return address - parameters + bytes <= launch_->argument_bytes;
  return in_constants_of_program(address);
}

// --- fibers ---

void GangRunner::abandon_fibers() {
  free_fibers_.clear();
  for (const auto& fiber : fibers_) {
    fiber->context.reset(&fiber_main, fiber.get());
    free_fibers_.push_back(fiber.get());
  }
}

Fiber* GangRunner::free_fiber() {
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
void GangRunner::fiber_main(void* argument) {
  Fiber& fiber = *static_cast<Fiber*>(argument);
  GangRunner& runner = *fiber.runner;
  for (;;) {
    runner.start_thread(fiber);
    const bool ready = runner.prefer_ready();
    if (!ready && runner.has_unstarted()) continue;
    runner.free_fibers_.push_back(&fiber);
    Context& next = ready ? runner.pop_ready()->fiber->context : runner.main_;
    next.switch_from(fiber.context);
  }
}

void GangRunner::resume_current(Thread& thread) {
  current_ = &thread;
  ::threadIdx = thread.index;
  ::blockIdx = thread.block->index;
  probe.thread = &thread;
  probe.stack_begin = thread.fiber->context.stack_begin();
  probe.stack_bytes = thread.fiber->context.stack_bytes();
}

void GangRunner::start_thread(Fiber& fiber) {
  Thread& thread = *order_[started_++];
  thread.fiber = &fiber;
  resume_current(thread);
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

void GangRunner::finish_thread(Thread& thread) {
  ++exited_;
  ++thread.block->exited;
  thread.exited = true;
  note_progress();
  // What intrinsics keep for a thread has its last word here: a wait that was forgotten.
  for (auto& extension : thread.extensions) {
    if (extension != nullptr) extension->end_thread();
  }
  Warp& warp = thread.block->warps[thread.warp_number()];
  const unsigned bit = 1u << thread.lane();
  warp.exited |= bit;
  for (unsigned waiting = warp.waiting; waiting != 0; waiting &= waiting - 1) {
    const Thread& other =
        thread.block
            ->threads[thread.warp_number() * kWarpLanes + static_cast<unsigned>(std::countr_zero(waiting))];
    if ((other.warp.mask & bit) != 0) {
      report_exited_lane(other, thread.lane());
      stop();
    }
  }
  if (thread.block->exited == thread_count_) {
    for (auto& extension : thread.block->extensions) {
      if (extension != nullptr) extension->end_thread();
    }
    if (!thread.block->visitors.empty()) check_visitors(thread);
  }
  probe.thread = nullptr;
}

// Shared memory goes with its block: whoever of the cluster uses it must be known to have done so.
void GangRunner::check_visitors(Thread& last) {
  for (const auto [owner, stamp] : last.block->visitors) {
    if (is_over(*this, last, owner, stamp)) continue;
    report(last,
           "exits as the last of its block, whose shared memory another block of the cluster uses with nothing "
           "that orders the two: a cluster_sync() is missing at the end");
    stop();
  }
}

void GangRunner::stop() {
  probe.thread = nullptr;
  main_.switch_from(current_->fiber->context);
  __builtin_unreachable();  // the fiber is abandoned
}

void GangRunner::push_ready(Thread& thread) {
  ready_[ready_end_] = &thread;
  ready_end_ = (ready_end_ + 1) % ready_.size();
}

Thread* GangRunner::pop_ready() {
  Thread* const thread = ready_[ready_begin_];
  ready_begin_ = (ready_begin_ + 1) % ready_.size();
  return thread;
}

// With a seed, whether to go on with a waiting thread or to start one is thrown too. Who spins may wait for a
// thread that has not started.
bool GangRunner::prefer_ready() {
  if (has_unstarted() && yielding_) return false;
  if (ready_begin_ == ready_end_ && (has_unstarted() || !poll_conditions())) return false;
  return launch_->seed == 0 || !has_unstarted() || next_random() % 2 == 0;
}

// Lets those go on whose condition holds now; false when it is nobody's.
bool GangRunner::poll_conditions() {
  size_t kept = 0;
  const bool before = ready_begin_ != ready_end_;
  for (Thread* const thread : conditions_) {
    if (thread->ready(thread->operand)) {
      note_progress();
      push_ready(*thread);
    } else {
      conditions_[kept++] = thread;
    }
  }
  conditions_.resize(kept);
  return before || ready_begin_ != ready_end_;
}

Fiber* GangRunner::next_fiber() {
  const bool ready = prefer_ready();
  yielding_ = false;
  if (ready) return pop_ready()->fiber;
  if (!has_unstarted()) return nullptr;
  Fiber* const fiber = free_fiber();
  if (fiber == nullptr) {
    error_ = kNoStack;
    stop();
  }
  return fiber;
}

void GangRunner::wait_current() {
  Thread& self = *current_;
  Fiber* const next = next_fiber();
  if (next != self.fiber) (next == nullptr ? main_ : next->context).switch_from(self.fiber->context);
  resume_current(self);
  self.wait = Wait::kNone;
}

// With a seed, those released since ready_[begin] go on in random order.
void GangRunner::release(Thread& thread, size_t begin) {
  const size_t last = ready_end_;
  push_ready(thread);
  if (launch_->seed == 0) return;
  const size_t count = (ready_end_ + ready_.size() - begin) % ready_.size();
  std::swap(ready_[last], ready_[(begin + next_random() % count) % ready_.size()]);
}

void GangRunner::yield() {
  Thread& self = *current_;
  constexpr uint64_t kPatience = 2000;
  if (++idle_yields_ % (kPatience * (order_.size() - exited_ + 1)) == 0) check_livelock();
  push_ready(self);
  // Those who wait for a condition must have their turn although somebody is always ready.
  if (!conditions_.empty()) poll_conditions();
  yielding_ = true;
  wait_current();
}

// All threads of the gang have had many turns and none has written anything. Other gangs may be about to write
// what this one waits for, unless there are none; but a grid that is not cooperative has no right to wait for
// another block.
void GangRunner::check_livelock() {
  constexpr std::chrono::seconds kPatience{5};
  const auto now = std::chrono::steady_clock::now();
  const uint64_t finished = launch_->finished->load(std::memory_order_relaxed);
  const bool first = idle_yields_ <= 2 * uint64_t{2000} * (order_.size() - exited_ + 1);
  if (!launch_->alone && (first || finished != finished_when_idle_)) {
    idle_since_ = now;
    finished_when_idle_ = finished;
    return;
  }
  if (!launch_->alone && now - idle_since_ < kPatience) return;
  const std::string waits = report_deadlock();
  error_ = waits + (launch_->alone
                        ? "; livelock: threads spin, but none writes what they wait for"
                        : "; livelock: threads spin for what another block is to write, which need not run "
                          "before this one ends unless the launch is cooperative");
  stop();
}

void GangRunner::note_spin() {
  constexpr unsigned kSpins = 32;
  if (++current_->spins % kSpins == 0) yield();
}

void GangRunner::wait_until(const char* name, bool (*ready)(void*), void* state, std::source_location where) {
  if (ready(state)) return;
  Thread& self = *current_;
  self.wait = Wait::kCondition;
  self.name = name;
  self.ready = ready;
  self.operand = state;
  self.where = where;
  conditions_.push_back(&self);
  wait_current();
}

}  // namespace fastnn::emulator

unsigned __activemask() { return 1u << fastnn::emulator::current_thread().lane; }
