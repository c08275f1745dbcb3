#include "runtime.h"

#include <cstdarg>
#include <cstdio>

#include "checkers/access.h"
#include "checkers/places.h"
#include "checkers/races.h"
#include "intrinsics/cluster.h"
#include "scheduler/gang.h"

namespace fastnn::emulator {

CurrentThread current_thread() {
  const Thread& self = this_runner()->current();
  return {.thread = self.linear, .warp = self.warp_number(), .lane = self.lane(), .rank = self.block->rank};
}

void fail(Where where, const char* format, ...) {
  char text[1024];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  GangRunner& runner = *this_runner();
  runner.report(runner.current(), std::string(text) + " (" + describe(where) + ")");
  runner.stop();
}

void warp_meet(const char* name, unsigned mask, void* operand,
               void (*compute)(void* const (&operands)[32], unsigned mask), Where where) {
  this_runner()->warp_meet(name, mask, operand, compute, where);
}

void wait_until(const char* name, bool (*ready)(void* state), void* state, Where where) {
  this_runner()->wait_until(name, ready, state, where);
}

void yield() { this_runner()->yield(); }

// --- memory ---

namespace {

void check_alignment(const void* address, size_t alignment, Where where) {
  if (reinterpret_cast<uintptr_t>(address) % alignment == 0) return;
  fail(where, "uses an address that is misaligned: %p is no multiple of %zu bytes", address, alignment);
}

bool within_arenas(const void* address) {
  return reinterpret_cast<uintptr_t>(address) - probe.arenas_begin < probe.arenas_bytes;
}

void check_span(const void* memory, size_t bytes, Access kind, uint32_t owner, uint32_t stamp, Proxy proxy,
                Where where) {
  GangRunner& runner = *this_runner();
  const auto address = reinterpret_cast<uintptr_t>(memory);
  if (within_arenas(memory)) {
    runner.shadow().access(runner, address, bytes, kind, owner, stamp, site_of(where), proxy);
  } else {
    global_access(runner, address, bytes, kind, runner.current().clock, site_of(where), where.line());
  }
  if (is_write(kind)) runner.note_progress();
}

// `bulk`: by a unit beside the lanes.
void count_access(const void* address, size_t bytes, Access kind, bool bulk, Where where) {
  GangRunner& runner = *this_runner();
  AccessProfile* const profile = runner.profile();
  if (profile == nullptr || bytes == 0) return;
  const Thread& self = runner.current();
  const bool shared = within_arenas(address);
  const uintptr_t place = shared ? shared_address(address) : reinterpret_cast<uintptr_t>(address);
  const Space space = shared ? Space::kShared : Space::kGlobal;
  if (bulk) {
    profile->record_bulk(place_in_code(where), place, bytes, is_write(kind), space);
  } else {
    profile->record(self.block->rank * kMaxWarps + self.warp_number(), self.lane(), place_in_code(where), place,
                    static_cast<unsigned>(bytes), is_write(kind), space);
  }
}

}  // namespace

void check_access(const void* address, size_t bytes, size_t alignment, Access kind, Where where) {
  check_alignment(address, alignment, where);
  GangRunner& runner = *this_runner();
  const Thread& self = runner.current();
  if (reinterpret_cast<uintptr_t>(address) - probe.stack_begin < probe.stack_bytes) return;
  check_span(address, bytes, kind, self.owner, self.clock, Proxy::kGeneric, where);
  count_access(address, bytes, kind, false, where);
}

bool is_shared(const void* address) { return within_arenas(address); }

uint32_t shared_address(const void* address) {
  return static_cast<uint32_t>((reinterpret_cast<uintptr_t>(address) - probe.arenas_begin) %
                               SharedArena::kStride);
}

void* shared_pointer(uint32_t address) {
  return reinterpret_cast<void*>(probe.arenas_begin + this_runner()->block().rank * SharedArena::kStride +
                                 address);
}

void* map_shared(const void* address, unsigned rank, Where where) {
  GangRunner& runner = *this_runner();
  if (rank >= runner.gang_size()) {
    fail(where, "names block %u of a cluster of %u", rank, runner.gang_size());
  }
  if (!within_arenas(address)) fail(where, "maps an address that is not in shared memory");
  const size_t offset = shared_address(address);
  const SharedArena::Array* const mine = runner.block().arena.nearest(offset);
  SharedArena& theirs = runner.block_of_rank(rank).arena;
  std::string error;
  void* array = nullptr;
  if (mine->tag == nullptr) {
    array = theirs.dynamic(mine->alignment, error);
  } else {
    array = theirs.static_array(mine->tag, mine->name, mine->bytes, mine->alignment, mine->where, error);
  }
  if (array == nullptr) fail(where, "%s", error.c_str());
  return static_cast<char*>(array) + (offset - mine->offset);
}

// --- asynchronous operations ---

AsyncOperation issue_async(const Span* spans, size_t count, size_t alignment, Proxy proxy, Where where) {
  GangRunner& runner = *this_runner();
  const Thread& self = runner.current();
  // cp.async of one thread completes in order, and so its copies are one owner. Other operations complete one
  // by one: each is an owner of its own until, a thousand later, the number is used again.
  static thread_local uint32_t operations = 0;
  AsyncOperation operation{
      .owner = proxy == Proxy::kGeneric
                   ? make_owner(self.block->number, OwnerKind::kCopies, self.linear)
                   : make_owner(self.block->number, OwnerKind::kOperation, ++operations % 1024),
      .stamp = tick()};
  for (size_t i = 0; i < count; ++i) {
    check_alignment(spans[i].address, alignment, where);
    check_span(spans[i].address, spans[i].bytes, spans[i].kind, operation.owner, operation.stamp, proxy, where);
    count_access(spans[i].address, spans[i].bytes, spans[i].kind, proxy == Proxy::kAsync, where);
  }
  return operation;
}

void complete_async(AsyncOperation operation) {
  this_runner()->current().known.add(operation.owner, operation.stamp);
}

void proxy_fence() {
  Thread& self = this_runner()->current();
  self.proxy_fence = self.clock;
  self.clock = tick();
}

// --- state of the intrinsics ---

std::unique_ptr<Extension>& block_extension(ExtensionKind kind, unsigned rank) {
  return this_runner()->block_of_rank(rank).extensions[static_cast<size_t>(kind)];
}

std::unique_ptr<Extension>& thread_extension(ExtensionKind kind) {
  return this_runner()->current().extensions[static_cast<size_t>(kind)];
}

// --- what the device functions call ---

int block_barrier(BlockOp op, int predicate, Where where) {
  return this_runner()->block_barrier(op, predicate, where);
}

void named_barrier(unsigned id, unsigned threads, bool wait, Where where) {
  this_runner()->named_barrier(id, threads, wait, where);
}

// A cooperative grid is a gang too, but no cluster.
static GangRunner& runner_of_cluster(Where where) {
  if (this_runner()->launch().cooperative) fail(where, "uses a cluster, which a cooperative launch has not");
  return *this_runner();
}
unsigned blocks_of_cluster(Where where) { return runner_of_cluster(where).gang_size(); }
void gang_arrive(Where where) { runner_of_cluster(where).gang_arrive(true, where); }
void gang_wait(Where where) { runner_of_cluster(where).gang_wait(where); }
void gang_sync(Where where) {
  runner_of_cluster(where).gang_arrive(false, where);
  this_runner()->gang_wait(where);
}

uint64_t warp_collective(const WarpArgs& args, Where where) {
  return this_runner()->warp_collective(args, where);
}

void trap(Where where) { fail(where, "called __trap"); }

void* dynamic_shared(size_t alignment, Where where) {
  std::string error;
  void* const memory = this_runner()->block().arena.dynamic(alignment, error);
  if (memory == nullptr) fail(where, "%s", error.c_str());
  return memory;
}

void* static_shared(const void* tag, const char* name, size_t bytes, size_t alignment, Where where) {
  GangRunner& runner = *this_runner();
  std::string error;
  void* const memory = runner.block().arena.static_array(tag, name, bytes, alignment, where, error);
  if (memory != nullptr) return memory;
  runner.set_error(std::move(error));
  runner.stop();
}

}  // namespace fastnn::emulator
