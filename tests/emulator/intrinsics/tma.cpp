#include "tma.h"

#include <utility>
#include <vector>

#include "async_state.h"

namespace fastnn::emulator {
namespace {

constexpr uint32_t kBulkAlignment = 16, kTensorAlignment = 128;

class Load final : public Transfer {
 public:
  Load(Box box, void* shared)
      : box_(std::move(box)), shared_(static_cast<unsigned char*>(shared)), address_(shared_address(shared)) {
    bytes = box_.bytes();
  }
  void perform() override { load_box(box_, shared_, address_); }
  const Box& box() const { return box_; }

 private:
  Box box_;
  unsigned char* shared_;
  uint32_t address_;
};

class Store final : public Transfer {
 public:
  Store(Box box, const void* shared, bool add)
      : box_(std::move(box)),
        shared_(static_cast<const unsigned char*>(shared)),
        address_(shared_address(shared)),
        add_(add) {
    bytes = box_.bytes();
  }
  void perform() override { (add_ ? add_box : store_box)(box_, shared_, address_); }
  const Box& box() const { return box_; }

 private:
  Box box_;
  const unsigned char* shared_;
  uint32_t address_;
  bool add_;
};

// The parts of the tensor that the box covers; rows that follow one another in memory are one.
void add_spans(const Box& box, Access kind, std::vector<Span>& spans) {
  for (const BoxRow& row : box.rows) {
    if (row.begin == row.end) continue;
    const size_t bytes = row.end - row.begin;
    Span& last = spans.back();
    if (last.kind == kind && static_cast<const unsigned char*>(last.address) + last.bytes == row.global) {
      last.bytes += bytes;
    } else {
      spans.push_back({row.global, bytes, kind});
    }
  }
}

void check_shared(const void* address, uint32_t alignment, const char* what, Where where) {
  if (!is_shared(address)) fail(where, "has %s outside shared memory", what);
  if (shared_address(address) % alignment != 0) {
    fail(where, "has %s misaligned, at shared address 0x%x: it must be a multiple of %u", what,
         shared_address(address), alignment);
  }
}

void check_bulk(const void* address, uint32_t bytes, const char* what, Where where) {
  if (bytes == 0 || bytes % kBulkAlignment != 0) {
    fail(where, "starts a bulk copy of %u bytes: it takes a multiple of 16", bytes);
  }
  if (reinterpret_cast<uintptr_t>(address) % kBulkAlignment != 0) {
    fail(where, "has %s of a bulk copy misaligned, at %p: it must be a multiple of 16", what, address);
  }
}

// Issues the load of a box, once for each block that gets it.
void issue_load(const LoadTarget& target, Box box, Access source_kind, size_t alignment, Where where) {
  const unsigned own = current_thread().rank;
  const unsigned mask = target.mask != 0 ? target.mask : 1u << own;
  for (unsigned rank = 0; mask >> rank != 0; ++rank) {
    if ((mask >> rank & 1) == 0) continue;
    void* const destination = map_shared(target.destination, rank, where);
    const auto* const barrier = static_cast<const Mbarrier*>(map_shared(target.barrier, rank, where));
    find_mbarrier(barrier, rank, where);
    std::vector<Span> spans{{destination, box.bytes(), Access::kWrite}};
    add_spans(box, source_kind, spans);
    auto load = std::make_unique<Load>(box, destination);
    load->issued_at = where;
    load->operation = issue_async(spans.data(), spans.size(), alignment, Proxy::kAsync, where);
    track_transfer(barrier, rank, std::move(load), where);
  }
}

// Two operations: shared memory is free again before global memory is written.
void issue_store(Box box, const void* source, bool add, size_t alignment, Where where) {
  auto store = std::make_unique<Store>(std::move(box), source, add);
  store->issued_at = where;
  const Span shared{source, store->bytes, Access::kRead};
  std::vector<Span> spans{shared};
  add_spans(store->box(), add ? Access::kAtomic : Access::kWrite, spans);
  BulkStore entry;
  entry.source = issue_async(&shared, 1, kBulkAlignment, Proxy::kAsync, where);
  entry.destination = issue_async(spans.data() + 1, spans.size() - 1, alignment, Proxy::kAsync, where);
  entry.transfer = std::move(store);
  thread_copies().uncommitted_stores.push_back(std::move(entry));
}

void check_map(const TensorMap* map, TensorMap::Kind kind, int rank, Where where) {
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0)
    fail(where, "has a tensor map misaligned: its address must be a multiple of 64");
  if (map->kind == TensorMap::Kind::kNone) fail(where, "uses a tensor map that was not encoded");
  if (map->kind != kind) {
    fail(where, "uses a tensor map that was encoded %s",
         map->kind == TensorMap::Kind::kTiled ? "tiled" : "for im2col");
  }
  if (map->rank != rank) fail(where, "uses a tensor map of rank %d for a copy of rank %d", map->rank, rank);
}

}  // namespace

void bulk_load(const LoadTarget& target, const void* source, uint32_t bytes, Where where) {
  check_bulk(source, bytes, "the source", where);
  if (is_shared(source)) fail(where, "has the source of a bulk load in shared memory");
  check_shared(target.destination, kBulkAlignment, "the destination of a bulk copy", where);
  issue_load(target, plain_box(source, bytes), Access::kRead, kBulkAlignment, where);
}

void bulk_copy_to_rank(void* destination, const void* source, uint32_t bytes, Mbarrier* barrier, uint32_t rank,
                       Where where) {
  check_bulk(source, bytes, "the source", where);
  check_shared(source, kBulkAlignment, "the source of a copy to another block", where);
  check_shared(destination, kBulkAlignment, "the destination of a bulk copy", where);
  if (rank >= 16) fail(where, "copies to block %u of a cluster", rank);
  issue_load({destination, barrier, static_cast<uint16_t>(1u << rank)}, plain_box(source, bytes), Access::kRead,
             kBulkAlignment, where);
}

void bulk_store(void* destination, const void* source, uint32_t bytes, bool add, Where where) {
  check_bulk(destination, bytes, "the destination", where);
  if (is_shared(destination)) fail(where, "has the destination of a bulk store in shared memory");
  check_shared(source, kBulkAlignment, "the source of a bulk store", where);
  Box box = plain_box(destination, bytes);
  if (add) box.type = TensorType::kFloat32;
  issue_store(std::move(box), source, add, kBulkAlignment, where);
}

void bulk_commit_group() {
  ThreadCopies& thread = thread_copies();
  thread.store_groups.push_back(std::move(thread.uncommitted_stores));
  thread.uncommitted_stores.clear();
}

void bulk_wait_group(unsigned pending, bool read_only) {
  auto& groups = thread_copies().store_groups;
  for (size_t i = 0; i + pending < groups.size(); ++i) {
    for (BulkStore& store : groups[i]) {
      if (store.transfer != nullptr) {
        store.transfer->perform();
        store.transfer.reset();
        complete_async(store.source);
      }
      if (!read_only) complete_async(store.destination);
    }
  }
  while (!read_only && groups.size() > pending) groups.pop_front();
}

void tensor_load(const LoadTarget& target, const TensorMap* map, int rank, const int* coordinates,
                 Where where) {
  check_map(map, TensorMap::Kind::kTiled, rank, where);
  check_shared(target.destination, kTensorAlignment, "the destination of a tensor copy", where);
  issue_load(target, tiled_box(*map, coordinates), Access::kRead, size_of(map->type), where);
}

void tensor_load_im2col(const LoadTarget& target, const TensorMap* map, int rank, const int* coordinates,
                        const int* offsets, Where where) {
  check_map(map, TensorMap::Kind::kIm2col, rank, where);
  check_shared(target.destination, kTensorAlignment, "the destination of a tensor copy", where);
  Box box;
  const char* const refusal = im2col_box(*map, coordinates, offsets, box);
  if (refusal != nullptr) {
    box = {};
    fail(where, "starts an im2col load, but %s (coordinates %d, %d, %d..., offsets %d...)", refusal,
         coordinates[0], coordinates[1], coordinates[2], offsets[0]);
  }
  issue_load(target, std::move(box), Access::kRead, size_of(map->type), where);
}

void tensor_store(const TensorMap* map, int rank, const int* coordinates, const void* source, bool add,
                  Where where) {
  check_map(map, TensorMap::Kind::kTiled, rank, where);
  check_shared(source, kTensorAlignment, "the source of a tensor copy", where);
  for (int i = 0; i < rank; ++i) {
    if (coordinates[i] < 0)
      fail(where, "starts a tensor store at coordinate %d: it may not be negative", coordinates[i]);
  }
  if (add && !can_add(map->type)) fail(where, "starts a tensor_reduce_add of a type of element that has none");
  issue_store(tiled_box(*map, coordinates), source, add, size_of(map->type), where);
}

void prefetch_tensor_map(const TensorMap* map, Where where) {
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0)
    fail(where, "has a tensor map misaligned: its address must be a multiple of 64");
  if (map->kind == TensorMap::Kind::kNone) fail(where, "uses a tensor map that was not encoded");
}

}  // namespace fastnn::emulator
