#include "mbarrier.h"

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <utility>

#include "async_state.h"

namespace fastnn::emulator {
namespace {

// PTX ISA, "Contents of the mbarrier object".
constexpr uint32_t kMaxCount = (1u << 20) - 1;

// Of one mbarrier, for errors: "mbarrier at shared address 0x40, phase 3 (1 of 2 arrivals missing, 128 bytes
// expected, 64 under way)".
struct Description {
  char text[176];
};

Description describe(const Mbarrier* barrier, const MbarrierState& state) {
  Description description;
  std::snprintf(description.text, sizeof(description.text),
                "mbarrier at shared address 0x%x, phase %" PRIu64 " (%u of %u arrivals missing, %" PRId64
                " bytes expected, %" PRId64 " under way)",
                shared_address(barrier), state.phase, state.pending, state.expected, state.expected_bytes,
                state.issued_bytes);
  return description;
}

void refuse_overrun(const Mbarrier* barrier, const MbarrierState& state, Where where) {
  if (!state.overrun()) return;
  const Where issued = state.transfers.back()->issued_at;
  fail(where, "meets too few bytes expected: %s can complete before the copy issued at line %u has landed",
       describe(barrier, state).text, static_cast<unsigned>(issued.line()));
}

// The tokens that arrivals return.
uint64_t token_of(const Mbarrier* barrier, uint64_t phase) {
  return (phase & 0xffffffff) << 32 | shared_address(barrier);
}

void check_arrival(const Mbarrier* barrier, const MbarrierState& state, uint32_t count, Where where) {
  if (count < 1 || count > kMaxCount) {
    fail(where, "arrives %u times at once: an mbarrier takes 1 to 2^20 - 1 (%s)", count,
         describe(barrier, state).text);
  }
  if (!state.observed) {
    fail(where,
         "arrives before any wait has seen the phase before complete: a wait is missing, or too many arrive "
         "(%s)",
         describe(barrier, state).text);
  }
  if (count + state.deferred.size() > state.pending) {
    fail(where, "makes more arrivals than expected: %u at %s, %zu more being due when cp.async copies land",
         count, describe(barrier, state).text, state.deferred.size());
  }
}

void check_expected(const Mbarrier* barrier, MbarrierState& state, uint32_t bytes, Where where) {
  if (state.expected_bytes + bytes > kMaxCount) {
    fail(where, "expects %u bytes: an mbarrier counts up to 2^20 - 1 (%s)", bytes,
         describe(barrier, state).text);
  }
}

uint64_t arrive(Mbarrier* barrier, unsigned rank, uint32_t count, uint32_t bytes, Where where) {
  MbarrierState& state = use_mbarrier(barrier, rank, where);
  check_arrival(barrier, state, count, where);
  check_expected(barrier, state, bytes, where);
  const uint64_t token = token_of(barrier, state.phase);
  state.expected_bytes += bytes;
  ++state.changes;
  state.arriving.release();
  state.pending -= count;
  refuse_overrun(barrier, state, where);
  state.settle();
  return token;
}

void check_parity(const Mbarrier* barrier, const MbarrierState& state, uint32_t parity, Where where) {
  if (parity > 1)
    fail(where, "waits for parity %u, which is 0 or 1 (%s)", parity, describe(barrier, state).text);
}

// Whether it is complete, and then the thread knows what its arrivals knew.
bool poll(const Mbarrier* barrier, MbarrierState& state, uint32_t parity, Where where) {
  if (!state.done(parity)) state.land();
  refuse_overrun(barrier, state, where);
  if (!state.done(parity)) return false;
  state.observed = true;
  state.complete.acquire();
  return true;
}

// A thread that waits.
struct Waiter {
  const Mbarrier* barrier;
  MbarrierState* state;
  uint32_t parity;
  Description description;  // what a report of a deadlock says
  uint64_t changes;         // of the state, when it was described

  // Ready also when a poll would fail, which is for the thread itself to do.
  bool ready() {
    if (!state->done(parity)) state->land();
    if (state->done(parity)) state->observed = true;
    if (state->done(parity) || state->overrun()) return true;
    if (changes != state->changes) {
      changes = state->changes;
      description = describe(barrier, *state);
    }
    return false;
  }
};

void wait(const Mbarrier* barrier, MbarrierState& state, uint32_t parity, Where where) {
  if (poll(barrier, state, parity, where)) return;
  Waiter waiter{.barrier = barrier,
                .state = &state,
                .parity = parity,
                .description = describe(barrier, state),
                .changes = state.changes};
  ++state.waiters;
  wait_until(
      waiter.description.text, [](void* argument) { return static_cast<Waiter*>(argument)->ready(); }, &waiter,
      where);
  --state.waiters;
  // The phase after may be complete too by now: then there was an arrival in it, by a thread that had seen this
  // one complete, so that its clock has all that this one's had.
  refuse_overrun(barrier, state, where);
  state.complete.acquire();
}

// The phase that a token names, as a parity.
uint32_t parity_of(const Mbarrier* barrier, const MbarrierState& state, uint64_t token, Where where) {
  if (token != token_of(barrier, state.phase) &&
      (state.phase == 0 || token != token_of(barrier, state.phase - 1))) {
    fail(where, "waits for a state that is of another mbarrier, or of a phase before the last (%s)",
         describe(barrier, state).text);
  }
  return token >> 32 & 1;
}

}  // namespace

void MbarrierState::settle() {
  if (pending != 0 || expected_bytes != 0 || !transfers.empty()) return;
  pending = expected;
  ++phase;
  ++changes;
  observed = false;
  std::swap(complete, arriving);
  arriving.clear();
}

void MbarrierState::land() {
  if (!arrived() || issued_bytes != expected_bytes) return;
  for (const DeferredArrival& arrival : deferred) {
    if (arrival.copies.end == 0) continue;
    arrival.queue->land(arrival.copies.end);
    arriving.add(arrival.copies.newest.owner, arrival.copies.newest.stamp);
  }
  deferred.clear();
  pending = 0;
  for (const auto& transfer : transfers) {
    transfer->perform();
    arriving.add(transfer->operation.owner, transfer->operation.stamp);
  }
  transfers.clear();
  expected_bytes = issued_bytes = 0;
  settle();
}

void BlockCopies::end_thread() {
  for (const auto& [barrier, state] : mbarriers) {
    if (state.transfers.empty()) continue;
    const Where issued = state.transfers.front()->issued_at;
    fail(issued,
         "is the last of its block to exit, while a copy to its shared memory is under way that nobody has "
         "waited for: %s",
         describe(barrier, state).text);
  }
}

BlockCopies& block_copies(unsigned rank) {
  std::unique_ptr<Extension>& extension = block_extension(ExtensionKind::kAsyncCopy, rank);
  if (extension == nullptr) extension = std::make_unique<BlockCopies>();
  return static_cast<BlockCopies&>(*extension);
}

MbarrierState& find_mbarrier(const Mbarrier* barrier, unsigned rank, Where where) {
  auto& mbarriers = block_copies(rank).mbarriers;
  const auto found = mbarriers.find(barrier);
  if (found != mbarriers.end()) return found->second;
  if (!is_shared(barrier)) fail(where, "uses an mbarrier outside shared memory");
  fail(where, "uses shared address 0x%x, where there is no mbarrier: not initialised, or invalidated",
       shared_address(barrier));
}

MbarrierState& use_mbarrier(const Mbarrier* barrier, unsigned rank, Where where) {
  MbarrierState& state = find_mbarrier(barrier, rank, where);
  check_access(barrier, sizeof(Mbarrier), alignof(Mbarrier), Access::kRead, where);
  return state;
}

void track_transfer(const Mbarrier* barrier, unsigned rank, std::unique_ptr<Transfer> transfer, Where where) {
  MbarrierState& state = use_mbarrier(barrier, rank, where);
  const char* refusal = nullptr;
  if (!state.published) {
    refusal =
        "lets a copy report to an mbarrier that its initialiser has not made known to copies: "
        "fence_mbarrier_init() is missing";
  } else if (state.issued_bytes + transfer->bytes > kMaxCount) {
    refusal = "has more bytes under way than an mbarrier counts";
  } else if (state.arrived() && state.issued_bytes + transfer->bytes > state.expected_bytes) {
    refusal = "meets too few bytes expected: the phase can complete before this copy has landed";
  } else if (!state.observed) {
    refusal = "lets a copy report to a phase before any wait has seen the one before complete";
  }
  if (refusal != nullptr) {
    transfer.reset();
    fail(where, "%s (%s)", refusal, describe(barrier, state).text);
  }
  state.issued_bytes += transfer->bytes;
  ++state.changes;
  state.transfers.push_back(std::move(transfer));
}

void mbarrier_init(Mbarrier* barrier, uint32_t count, Where where) {
  if (!is_shared(barrier)) fail(where, "uses an mbarrier outside shared memory");
  check_access(barrier, sizeof(Mbarrier), alignof(Mbarrier), Access::kWrite, where);
  if (count < 1 || count > kMaxCount) {
    fail(where, "makes an mbarrier for %u arrivals: it takes 1 to 2^20 - 1", count);
  }
  const CurrentThread thread = current_thread();
  BlockCopies& block = block_copies(thread.rank);
  const auto [place, fresh] = block.mbarriers.try_emplace(barrier);
  if (!fresh) {
    fail(where, "initialises the mbarrier at shared address 0x%x, which is in use: invalidate it first",
         shared_address(barrier));
  }
  ++block.unpublished;
  MbarrierState& state = place->second;
  state.initialiser = thread.thread;
  state.expected = state.pending = count;
  std::memset(barrier, 0, sizeof(Mbarrier));
}

void mbarrier_invalidate(Mbarrier* barrier, Where where) {
  const unsigned rank = current_thread().rank;
  MbarrierState& state = find_mbarrier(barrier, rank, where);
  check_access(barrier, sizeof(Mbarrier), alignof(Mbarrier), Access::kWrite, where);
  if (!state.transfers.empty() || !state.deferred.empty()) {
    fail(where, "invalidates an mbarrier while copies are under way: %s", describe(barrier, state).text);
  }
  if (state.waiters != 0) {
    fail(where, "invalidates an mbarrier that %u threads wait for: %s", state.waiters,
         describe(barrier, state).text);
  }
  BlockCopies& block = block_copies(rank);
  if (!state.published) --block.unpublished;
  block.mbarriers.erase(barrier);
}

uint64_t mbarrier_arrive(Mbarrier* barrier, uint32_t count, uint32_t bytes, Where where) {
  return arrive(barrier, current_thread().rank, count, bytes, where);
}

void mbarrier_arrive_remote(Mbarrier* barrier, uint32_t rank, Where where) {
  arrive(static_cast<Mbarrier*>(map_shared(barrier, rank, where)), rank, 1, 0, where);
}

void mbarrier_expect_tx(Mbarrier* barrier, uint32_t bytes, Where where) {
  MbarrierState& state = use_mbarrier(barrier, current_thread().rank, where);
  check_expected(barrier, state, bytes, where);
  state.expected_bytes += bytes;
  ++state.changes;
}

bool mbarrier_test(Mbarrier* barrier, uint32_t parity, Where where) {
  MbarrierState& state = use_mbarrier(barrier, current_thread().rank, where);
  check_parity(barrier, state, parity, where);
  if (poll(barrier, state, parity, where)) return true;
  yield();
  return false;
}

void mbarrier_wait(Mbarrier* barrier, uint32_t parity, Where where) {
  MbarrierState& state = use_mbarrier(barrier, current_thread().rank, where);
  check_parity(barrier, state, parity, where);
  wait(barrier, state, parity, where);
}

bool mbarrier_test_state(Mbarrier* barrier, uint64_t token, Where where) {
  MbarrierState& state = use_mbarrier(barrier, current_thread().rank, where);
  if (poll(barrier, state, parity_of(barrier, state, token, where), where)) return true;
  yield();
  return false;
}

void mbarrier_wait_state(Mbarrier* barrier, uint64_t token, Where where) {
  MbarrierState& state = use_mbarrier(barrier, current_thread().rank, where);
  wait(barrier, state, parity_of(barrier, state, token, where), where);
}

void mbarrier_publish_init(bool of_all_threads) {
  const CurrentThread thread = current_thread();
  BlockCopies& block = block_copies(thread.rank);
  if (block.unpublished == 0) return;
  for (auto& [barrier, state] : block.mbarriers) {
    if (state.published || (!of_all_threads && state.initialiser != thread.thread)) continue;
    state.published = true;
    --block.unpublished;
  }
}

}  // namespace fastnn::emulator
