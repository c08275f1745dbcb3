#include "async_copy.h"

#include <cstring>

#include "async_state.h"

namespace fastnn::emulator {

void CpAsyncQueue::land(uint64_t end) {
  for (; landed < end; ++landed) {
    const CpAsync& copy = copies.front();
    if (copy.source_bytes != 0) std::memcpy(copy.destination, copy.source, copy.source_bytes);
    std::memset(copy.destination + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
    copies.pop_front();
  }
}

ThreadCopies& thread_copies() {
  std::unique_ptr<Extension>& extension = thread_extension(ExtensionKind::kAsyncCopy);
  if (extension == nullptr) extension = std::make_unique<ThreadCopies>();
  return static_cast<ThreadCopies&>(*extension);
}

void ThreadCopies::end_thread() {
  const Transfer* left = nullptr;
  for (const auto& group : store_groups) {
    for (const BulkStore& store : group) left = store.transfer != nullptr ? store.transfer.get() : left;
  }
  const char* wait = "no bulk_wait_group or bulk_wait_group_read waited for it";
  if (!uncommitted_stores.empty()) {
    left = uncommitted_stores.front().transfer.get();
    wait = "it was never committed";
  }
  if (left != nullptr) {
    fail(left->issued_at, "exits while a bulk store of %u bytes is under way: %s", left->bytes, wait);
  }
}

void cp_async(void* destination, const void* source, uint32_t bytes, uint32_t source_bytes, Where where) {
  if (source_bytes > bytes) fail(where, "reads %u bytes for a cp.async of %u", source_bytes, bytes);
  if (!is_shared(destination)) fail(where, "copies by cp.async to what is not shared memory");
  if (source_bytes != 0 && is_shared(source)) fail(where, "copies by cp.async from what is not global memory");
  if (reinterpret_cast<uintptr_t>(source) % bytes != 0) {
    fail(where, "copies %u bytes by cp.async from a misaligned address, %p", bytes, source);
  }
  const Span spans[] = {{destination, bytes, Access::kWrite}, {source, source_bytes, Access::kRead}};
  const AsyncOperation operation =
      issue_async(&spans[0], source_bytes == 0 ? 1 : 2, bytes, Proxy::kGeneric, where);
  ThreadCopies& thread = thread_copies();
  thread.queue->copies.push_back({.destination = static_cast<unsigned char*>(destination),
                                  .source = static_cast<const unsigned char*>(source),
                                  .bytes = static_cast<uint8_t>(bytes),
                                  .source_bytes = static_cast<uint8_t>(source_bytes)});
  thread.issued = {.end = thread.queue->issued(), .newest = operation};
}

void cp_async_commit_group() {
  ThreadCopies& thread = thread_copies();
  thread.groups.push_back(thread.issued);
}

void cp_async_wait_group(unsigned pending) {
  ThreadCopies& thread = thread_copies();
  for (; thread.groups.size() > pending; thread.groups.pop_front()) {
    const CpAsyncPrefix& group = thread.groups.front();
    thread.queue->land(group.end);
    if (group.end != 0) complete_async(group.newest);
  }
}

void cp_async_wait_all() {
  cp_async_commit_group();
  cp_async_wait_group(0);
}

void cp_async_mbarrier_arrive(Mbarrier* barrier, Where where) {
  MbarrierState& state = use_mbarrier(barrier, current_thread().rank, where);
  if (!state.observed) {
    fail(where, "lets cp.async arrive at an mbarrier before any wait has seen the phase before complete");
  }
  if (state.deferred.size() + 1 > state.pending) {
    fail(where,
         "makes more arrivals than expected: an mbarrier lacks %u, and %zu are due when cp.async copies land",
         state.pending, state.deferred.size() + 1);
  }
  const ThreadCopies& thread = thread_copies();
  ++state.changes;
  state.deferred.push_back({.queue = thread.queue, .copies = thread.issued});
}

}  // namespace fastnn::emulator
