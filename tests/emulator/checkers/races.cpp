#include "races.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "../scheduler/gang.h"
#include "places.h"
#include "symbols.h"

namespace fastnn::emulator {
namespace {

constexpr Site kAtomicSite = 1u << 30;
constexpr Site kWhereSite = 1u << 31;
constexpr uint32_t kSetKind = 7;  // no OwnerKind: the reader is a set, whose number is in the other bits
constexpr size_t kWordsPerBlock = SharedArena::kStride / 4;

uintptr_t library_base() {
  static const uintptr_t base = [] {
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&library_base), &info);
    return reinterpret_cast<uintptr_t>(info.dli_fbase);
  }();
  return base;
}

template <typename T>
T* reserve(size_t count) {
  void* const memory = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<T*>(memory);
}

bool is_set(uint32_t owner) { return (owner >> 10 & 7) == kSetKind; }
uint32_t set_owner(uint32_t number) { return number >> 10 << 13 | kSetKind << 10 | (number & 1023); }
uint32_t set_number(uint32_t owner) { return owner >> 13 << 10 | (owner & 1023); }

const char* verb(Access kind) {
  return !is_write(kind) ? "reads" : kind == Access::kAtomic ? "updates atomically" : "writes";
}

// "thread (1, 0, 0)", with its block where that is another.
std::string name_owner(GangRunner& runner, uint32_t owner) {
  const uint32_t mine = runner.block().number;
  const Block* const block = runner.find_block(owner_block(owner), 1u << kOwnerBlockBits);
  std::string name;
  switch (owner_kind(owner)) {
    case OwnerKind::kCopies:
      name = "an asynchronous copy of ";
      break;
    case OwnerKind::kOperation:
      name = "an asynchronous operation";
      break;
    default:
      break;
  }
  if (owner_kind(owner) != OwnerKind::kOperation) {
    const dim3 size = runner.launch().block;
    const uint32_t i = owner_thread(owner);
    name += "thread " + triple({i % size.x, i / size.x % size.y, i / size.x / size.y});
  }
  if (owner_block(owner) == (mine & ((1u << kOwnerBlockBits) - 1))) return name;
  if (block != nullptr) return name + " of block " + triple(block->index);
  return name + " of another block";
}

}  // namespace

Site site_of(uintptr_t pc) { return static_cast<Site>(pc - library_base()) & (kAtomicSite - 1); }

Site site_of(Where where) { return kWhereSite | static_cast<Site>(place_in_code(where) & (kAtomicSite - 1)); }

std::string describe_site(Site site) {
  const Site rest = site & (kAtomicSite - 1);
  return locate((site & kWhereSite) != 0 ? kPlaceBit | rest : library_base() + rest);
}

// --- clocks ---

void SyncClock::name() { name_ = tick(); }

void SyncClock::add(uint32_t owner, uint32_t stamp) {
  name_ = 0;
  const auto at = std::lower_bound(entries_.begin(), entries_.end(), owner,
                                   [](const Entry& entry, uint32_t o) { return entry.owner < o; });
  if (at != entries_.end() && at->owner == owner) {
    at->stamp = std::max(at->stamp, stamp);
  } else {
    entries_.insert(at, {owner, stamp});
  }
}

void SyncClock::join(const SyncClock& other) {
  if (other.entries_.empty() || (other.name_ != 0 && other.name_ == joined_)) return;
  if (other.name_ != 0) joined_ = other.name_;
  if (entries_.empty()) {
    entries_ = other.entries_;
    name_ = other.name_;
    return;
  }
  name_ = 0;
  static thread_local std::vector<Entry> merged;
  merged.resize(std::max(merged.size(), entries_.size() + other.entries_.size()));
  const Entry *a = entries_.data(), *b = other.entries_.data();
  const Entry *const a_end = a + entries_.size(), *const b_end = b + other.entries_.size();
  Entry* out = merged.data();
  while (a != a_end && b != b_end) {
    const bool of_a = a->owner <= b->owner, of_b = b->owner <= a->owner;
    *out++ = {of_a ? a->owner : b->owner, std::max(of_a ? a->stamp : 0, of_b ? b->stamp : 0)};
    a += of_a;
    b += of_b;
  }
  out = std::copy(a, a_end, out);
  out = std::copy(b, b_end, out);
  entries_.assign(merged.data(), out);
}

uint32_t SyncClock::stamp_of(uint32_t owner) const {
  const auto at = std::lower_bound(entries_.begin(), entries_.end(), owner,
                                   [](const Entry& entry, uint32_t o) { return entry.owner < o; });
  return at != entries_.end() && at->owner == owner ? at->stamp : 0;
}

bool SyncClock::covers(uint32_t owner, uint32_t stamp) const {
  if (entries_.empty()) return false;
  if (stamp_of(owner) >= stamp) return true;
  if (owner_kind(owner) != OwnerKind::kThread) return false;
  const uint32_t block = owner_block(owner);
  return stamp_of(make_owner(block, OwnerKind::kBlockBefore, 0)) > stamp ||
         stamp_of(make_owner(block, OwnerKind::kWarpBefore, owner_thread(owner) / kWarpLanes)) > stamp;
}

void SyncClock::drop_threads_of(uint32_t block) {
  const uint32_t number = owner_block(make_owner(block, OwnerKind::kThread, 0));
  name_ = joined_ = 0;
  std::erase_if(entries_, [&](const Entry& entry) {
    const OwnerKind kind = owner_kind(entry.owner);
    return owner_block(entry.owner) == number && kind != OwnerKind::kCopies && kind != OwnerKind::kOperation;
  });
}

void SyncClock::release() { emulator::release(this_runner()->current(), *this); }
void SyncClock::acquire() const { emulator::acquire(this_runner()->current(), *this); }

void release(Thread& thread, SyncClock& clock) {
  const Block& block = *thread.block;
  clock.join(block.known);
  clock.join(thread.known);
  clock.add(make_owner(block.number, OwnerKind::kBlockBefore, 0), block.before);
  clock.add(make_owner(block.number, OwnerKind::kWarpBefore, thread.warp_number()),
            block.warps[thread.warp_number()].before);
  clock.add(thread.owner, thread.clock);
  thread.clock = tick();
}

void acquire(Thread& thread, const SyncClock& clock) { thread.known.join(clock); }

bool is_over(GangRunner& runner, const Thread& thread, uint32_t owner, uint32_t stamp) {
  if (owner == thread.owner) return true;
  const Block& block = *thread.block;
  if (owner_kind(owner) == OwnerKind::kThread) {
    if (owner_block(owner) == owner_block(thread.owner)) {
      if (stamp < block.before) return true;
      const unsigned warp = owner_thread(owner) / kWarpLanes;
      if (warp == thread.warp_number() && stamp < block.warps[warp].before) return true;
    } else if (stamp < runner.gang_before() &&
               runner.find_block(owner_block(owner), 1u << kOwnerBlockBits) != nullptr) {
      return true;
    }
  }
  return thread.known.covers(owner, stamp) || block.known.covers(owner, stamp);
}

// --- shared memory ---

struct SharedShadow::Cell {
  uint32_t write_owner, write_stamp;
  // Readers of the same block: one, or a set, then with its newest stamp.
  uint32_t read_owner, read_stamp;
  // The last reader that is no thread of the block: an asynchronous operation, or a thread of the cluster.
  uint32_t other_owner, other_stamp;
  Site write_site, read_site;
};

struct SharedShadow::Visit {
  GangRunner& runner;
  Thread& thread;
  unsigned rank;  // of the block whose memory it is
  size_t offset, bytes;
  Access kind;
  uint32_t owner, stamp;
  Site site;
  Proxy proxy;
  uint32_t before;    // as the memory's block has it
  bool of_the_block;  // owner is a thread of that block
};

SharedShadow::SharedShadow()
    : words_(reserve<Cell>(kWordsPerBlock * kMaxGang)),
      bytes_(reserve<Cell>(kWordsPerBlock * kMaxGang * 4)),
      split_(reserve<uint8_t>(kWordsPerBlock * kMaxGang)) {}

SharedShadow::~SharedShadow() {
  munmap(words_, kWordsPerBlock * kMaxGang * sizeof(Cell));
  munmap(bytes_, kWordsPerBlock * kMaxGang * 4 * sizeof(Cell));
  munmap(split_, kWordsPerBlock * kMaxGang);
}

void SharedShadow::begin_block(unsigned rank, uint32_t birth, size_t used_bytes, unsigned warps) {
  if (rank >= birth_.size()) {
    birth_.resize(rank + 1);
    sets_.resize(rank + 1);
    stamps_.resize(rank + 1);
  }
  birth_[rank] = birth;
  sets_[rank].begin(warps);
  stamps_[rank].begin(kWarpLanes);
  std::memset(split_ + rank * kWordsPerBlock, 0, (used_bytes + 3) / 4);
}

void SharedShadow::split(size_t word) {
  split_[word] = 1;
  for (size_t i = 0; i < 4; ++i) bytes_[word * 4 + i] = words_[word];
}

void SharedShadow::access(GangRunner& runner, uintptr_t address, size_t bytes, Access kind, uint32_t owner,
                          uint32_t stamp, Site site, Proxy proxy) {
  const size_t from_first = address - runner.arenas();
  Visit visit{.runner = runner,
              .thread = runner.current(),
              .rank = static_cast<unsigned>(from_first / SharedArena::kStride),
              .offset = from_first % SharedArena::kStride,
              .bytes = bytes,
              .kind = kind,
              .owner = owner,
              .stamp = stamp,
              .site = site,
              .proxy = proxy,
              .before = 0,
              .of_the_block = false};
  Block& block = runner.block_of_rank(visit.rank);
  if (visit.rank != visit.thread.block->rank) {
    if (block.exited == runner.threads_of_a_block()) report(visit, "whose block has exited");
    block.visitors[owner] = stamp;
  }
  visit.before = block.before;
  visit.of_the_block = owner_kind(owner) == OwnerKind::kThread &&
                       owner_block(owner) == owner_block(make_owner(block.number, OwnerKind::kThread, 0));
  const uint8_t* const places = runner.places(visit.rank);
  const size_t first = visit.offset, end = first + bytes;
  for (size_t word = first / 4; word * 4 < end; ++word) {
    const size_t low = word * 4 < first ? first - word * 4 : 0;
    const size_t high = std::min<size_t>(4, end - word * 4);
    const auto mask = static_cast<uint8_t>(((1u << high) - 1) & ~((1u << low) - 1));
    if ((places[word] & mask) != mask) report(visit, "");
    const size_t number = visit.rank * kWordsPerBlock + word;
    if (mask == 0xf && split_[number] == 0) {
      access_cell(visit, words_[number]);
      continue;
    }
    if (split_[number] == 0) split(number);
    for (size_t i = low; i < high; ++i) access_cell(visit, bytes_[number * 4 + i]);
  }
}

void SharedShadow::access_cell(Visit& visit, Cell& cell) {
  const bool written = cell.write_stamp >= birth_[visit.rank];
  if (is_read(visit.kind) && !written) {
    report(visit, "which nobody has written: uninitialised");
  }
  if (written && cell.write_owner != visit.owner) {
    const bool both_atomic = is_atomic(visit.kind) && (cell.write_site & kAtomicSite) != 0;
    const bool behind = visit.of_the_block && cell.write_stamp < visit.before &&
                        owner_kind(cell.write_owner) == OwnerKind::kThread &&
                        owner_block(cell.write_owner) == owner_block(visit.owner);
    if (!both_atomic && !behind && !is_over(visit.runner, visit.thread, cell.write_owner, cell.write_stamp)) {
      report_race(visit, true, cell.write_owner, cell.write_site);
    }
    if (visit.proxy == Proxy::kAsync && owner_kind(cell.write_owner) == OwnerKind::kThread) {
      // Seen through the other proxy only after a fence.proxy.async, of the writer or, once the write is
      // ordered before, of the thread that issues.
      const Block* const block = visit.runner.find_block(owner_block(cell.write_owner), 1u << kOwnerBlockBits);
      const bool fenced =
          visit.thread.proxy_fence > cell.write_stamp ||
          (block != nullptr && block->threads[owner_thread(cell.write_owner)].proxy_fence >= cell.write_stamp);
      if (!fenced) {
        report(visit, "which " + name_owner(visit.runner, cell.write_owner) + " has written (" +
                          describe_site(cell.write_site) + ") with no fence.proxy.async since");
      }
    }
  }
  if (visit.kind == Access::kRead) {
    note_read(visit, cell);
    return;
  }
  if (!is_write(visit.kind)) return;
  check_readers(visit, cell);
  cell.write_owner = visit.owner;
  cell.write_stamp = visit.stamp;
  cell.write_site = visit.site | (is_atomic(visit.kind) ? kAtomicSite : 0);
  cell.read_stamp = cell.other_stamp = 0;
}

void SharedShadow::note_read(Visit& visit, Cell& cell) {
  if (!visit.of_the_block) {
    cell.other_owner = visit.owner;
    cell.other_stamp = visit.stamp;
    cell.read_site = visit.site;
    return;
  }
  if (cell.read_stamp < visit.before || (cell.read_owner == visit.owner)) {
    cell.read_owner = visit.owner;
    cell.read_stamp = visit.stamp;
    cell.read_site = visit.site;
    return;
  }
  if (!is_set(cell.read_owner)) {
    const uint32_t first = cell.read_owner, stamp = cell.read_stamp;
    cell.read_owner = set_owner(sets_[visit.rank].take());
    add_reader(visit.rank, cell, owner_thread(first), stamp);
  }
  add_reader(visit.rank, cell, owner_thread(visit.owner), visit.stamp);
}

void SharedShadow::add_reader(unsigned rank, Cell& cell, uint32_t thread, uint32_t stamp) {
  Readers& readers = sets_[rank].at(set_number(cell.read_owner))[thread / kWarpLanes];
  const uint32_t lane = thread % kWarpLanes, bit = 1u << lane;
  cell.read_stamp = std::max(cell.read_stamp, stamp);
  if (readers.lanes == 0 || (readers.stamp != 0 && (readers.stamp == stamp || readers.lanes == bit))) {
    readers = {readers.lanes | bit, stamp};
    return;
  }
  if (readers.stamp != 0) {
    const uint32_t number = stamps_[rank].take();
    uint32_t* const by_lane = stamps_[rank].at(number);
    for (uint32_t i = 0; i < kWarpLanes; ++i) by_lane[i] = (readers.lanes >> i & 1) != 0 ? readers.stamp : 0;
    readers = {number + 1, 0};
  }
  stamps_[rank].at(readers.lanes - 1)[lane] = stamp;
}

void SharedShadow::check_readers(Visit& visit, const Cell& cell) {
  const uint32_t birth = birth_[visit.rank];
  if (cell.other_stamp >= birth && cell.other_owner != visit.owner &&
      !is_over(visit.runner, visit.thread, cell.other_owner, cell.other_stamp)) {
    report_race(visit, false, cell.other_owner, cell.read_site);
  }
  if (cell.read_stamp < std::max(birth, visit.of_the_block ? visit.before : 0)) return;
  const uint32_t number = visit.runner.block_of_rank(visit.rank).number;
  const auto check = [&](uint32_t owner, uint32_t stamp) {
    if (owner != visit.owner && !is_over(visit.runner, visit.thread, owner, stamp)) {
      report_race(visit, false, owner, cell.read_site);
    }
  };
  if (!is_set(cell.read_owner)) {
    check(cell.read_owner, cell.read_stamp);
    return;
  }
  // A set that a barrier has put behind its block is gone; a thread of another block of the cluster, which the
  // barrier did not order, sees one reader where there were several.
  if (cell.read_stamp < visit.before) {
    check(make_owner(number, OwnerKind::kThread, 0), cell.read_stamp);
    return;
  }
  const Readers* const set = sets_[visit.rank].at(set_number(cell.read_owner));
  for (uint32_t warp = 0; warp < sets_[visit.rank].width(); ++warp) {
    const uint32_t* const by_lane =
        set[warp].lanes != 0 && set[warp].stamp == 0 ? stamps_[visit.rank].at(set[warp].lanes - 1) : nullptr;
    for (uint32_t lane = 0; lane < kWarpLanes; ++lane) {
      const uint32_t stamp = by_lane != nullptr                   ? by_lane[lane]
                             : (set[warp].lanes >> lane & 1) != 0 ? set[warp].stamp
                                                                  : 0;
      if (stamp != 0) check(make_owner(number, OwnerKind::kThread, warp * kWarpLanes + lane), stamp);
    }
  }
}

void SharedShadow::report(const Visit& visit, const std::string& what) {
  const SharedArena& arena = visit.runner.block_of_rank(visit.rank).arena;
  const SharedArena::Array* const array = arena.nearest(visit.offset);
  std::string text = std::string(verb(visit.kind)) + " (" + describe_site(visit.site) + ") " +
                     std::to_string(visit.bytes) + " bytes of ";
  if (array == nullptr) {
    text += "shared memory, of which there is none";
  } else {
    text += array->tag == nullptr
                ? std::string("dynamic shared memory")
                : "shared array '" + std::string(array->name) + "' (" + describe(array->where) + ")";
    const auto at = static_cast<int64_t>(visit.offset) - static_cast<int64_t>(array->offset);
    text += " at byte " + std::to_string(at) + " of " + std::to_string(array->bytes);
    if (what.empty()) text += ": out of bounds";
  }
  if (!what.empty()) text += ", " + what;
  visit.runner.report(visit.thread, text);
  visit.runner.stop();
}

void SharedShadow::report_race(const Visit& visit, bool other_writes, uint32_t other, Site other_site) {
  report(visit, std::string("which ") + name_owner(visit.runner, other) +
                    (other_writes ? " writes (" : " reads (") + describe_site(other_site) +
                    ") with nothing that orders the two: a race");
}

// --- global memory ---

namespace {

// A cell's half: when << 32 | mask << 28 | many << 26 | atomic << 25 | thread << 15 | block. `many`: 1 for
// several threads of the block, 2 for several blocks.
struct Party {
  uint32_t stamp, mask, many, atomic, thread, block;

  static Party unpack(uint64_t v) {
    return {.stamp = static_cast<uint32_t>(v >> 32),
            .mask = static_cast<uint32_t>(v >> 28) & 15,
            .many = static_cast<uint32_t>(v >> 26) & 3,
            .atomic = static_cast<uint32_t>(v >> 25) & 1,
            .thread = static_cast<uint32_t>(v >> 15) & 1023,
            .block = static_cast<uint32_t>(v) & 0x7fff};
  }
  uint64_t pack() const {
    return static_cast<uint64_t>(stamp) << 32 | mask << 28 | many << 26 | atomic << 25 | thread << 15 | block;
  }
};
constexpr uint32_t kBlocks = 1 << 15;

struct GlobalVisit {
  GangRunner& runner;
  Thread& thread;
  const Region& region;
  uint64_t offset;
  size_t bytes;
  Access kind;
  Site site;
  Party me;
};

[[noreturn]] void report_global(const GlobalVisit& visit, const std::string& what) {
  std::string text = std::string(verb(visit.kind)) + " (" + describe_site(visit.site) + ") " +
                     std::to_string(visit.bytes) + " bytes of ";
  text += visit.region.what == nullptr ? "global memory" : visit.region.what;
  text += " at byte " + std::to_string(visit.offset) + " of " + std::to_string(visit.region.bytes) + what;
  visit.runner.report(visit.thread, text);
  visit.runner.stop();
}

bool is_party_over(const GlobalVisit& visit, const Party& party) {
  GangRunner& runner = visit.runner;
  if (party.stamp < runner.launch().begin) return true;
  const Thread& self = visit.thread;
  if (party.many == 2) {
    // Of several blocks one at least is another. Which, is not known: whoever has synchronised by hand is
    // believed.
    return party.stamp < runner.gang_before() || !self.known.empty() || !self.block->known.empty();
  }
  const bool same_block = party.block == visit.me.block;
  if (same_block && party.many == 1) return party.stamp < self.block->before || !self.known.empty();
  if (same_block)
    return is_over(runner, self, make_owner(self.block->number, OwnerKind::kThread, party.thread), party.stamp);
  if (const Block* const block = runner.find_block(party.block, kBlocks)) {
    if (party.stamp < runner.gang_before()) return true;
    if (party.many == 1) return !self.known.empty() || !self.block->known.empty();
    return is_over(runner, self, make_owner(block->number, OwnerKind::kThread, party.thread), party.stamp);
  }
  const dim3 grid = runner.launch().grid;
  const bool numbers_known = uint64_t{grid.x} * grid.y * grid.z <= kBlocks;
  if (!numbers_known || party.many == 1) return !self.known.empty() || !self.block->known.empty();
  return is_over(runner, self, make_owner(party.block, OwnerKind::kThread, party.thread), party.stamp);
}

void check_party(const GlobalVisit& visit, const Party& party, bool party_writes) {
  if ((party.mask & visit.me.mask) == 0) return;
  if (party_writes && party.atomic != 0 && visit.me.atomic != 0) return;
  if (is_party_over(visit, party)) return;
  std::string other;
  if (party.many == 2) {
    other = "several blocks";
  } else {
    const dim3 size = visit.runner.launch().block;
    other = "thread " +
            triple({party.thread % size.x, party.thread / size.x % size.y, party.thread / size.x / size.y});
    if (party.block != visit.me.block) {
      const dim3 grid = visit.runner.launch().grid;
      other += uint64_t{grid.x} * grid.y * grid.z <= kBlocks && !visit.runner.launch().cooperative &&
                       visit.runner.gang_size() == 1
                   ? " of block " + triple({party.block % grid.x, party.block / grid.x % grid.y,
                                            party.block / grid.x / grid.y})
                   : " of another block";
    }
  }
  report_global(visit, ", which " + other +
                           (party_writes      ? " writes"
                            : party.many != 0 ? " read"
                                              : " reads") +
                           " with nothing that orders the two: a race");
}

// What the reader's half of a cell becomes. `before`: what the reader's block did up to there, a barrier has
// put behind all of its threads, so that whoever comes after `me` comes after that.
Party merge_reads(const Party& old, const Party& me, uint32_t launch_begin, uint32_t before) {
  if (old.stamp < launch_begin || old.mask == 0) return me;
  const uint32_t common = old.mask & me.mask;
  if (old.many != 2 && old.block == me.block && old.stamp < before && common == old.mask) return me;
  Party merged = me;
  if (old.block == me.block && old.thread == me.thread && old.many == 0) {
    merged.mask |= old.mask;
    return merged;
  }
  if (common == 0) return old.many != 0 ? old : me;
  merged.many = old.many == 2 || old.block != me.block ? 2 : 1;
  merged.mask = old.many == merged.many ? old.mask : common;
  return merged;
}

}  // namespace

bool global_access(GangRunner& runner, uintptr_t address, size_t bytes, Access kind, uint32_t stamp, Site site,
                   uintptr_t hint) {
  Thread& thread = runner.current();
  const Region* const region = runner.find_region(address, hint);
  if (region == nullptr) {
    if (!is_write(kind) && runner.is_constant(address, bytes)) return false;
    runner.report_outside(address, bytes, verb(kind), describe_site(site));
    runner.stop();
  }
  GlobalVisit visit{.runner = runner,
                    .thread = thread,
                    .region = *region,
                    .offset = address - region->begin,
                    .bytes = bytes,
                    .kind = kind,
                    .site = site,
                    .me = {.stamp = stamp,
                           .mask = 0,
                           .many = 0,
                           .atomic = is_atomic(kind),
                           .thread = thread.linear,
                           .block = thread.block->number % kBlocks}};
  if (address + bytes > region->begin + region->bytes) report_global(visit, ": out of bounds");
  if (is_write(kind) && !region->writable) report_global(visit, ", which is only to be read");
  const uintptr_t first_word = region->begin / 4;
  for (uintptr_t word = address / 4; word * 4 < address + bytes; ++word) {
    const uintptr_t low = word * 4 < address ? address - word * 4 : 0;
    const uintptr_t high = std::min<uintptr_t>(4, address + bytes - word * 4);
    visit.me.mask = static_cast<uint32_t>(((1u << high) - 1) & ~((1u << low) - 1));
    GlobalCell& cell = region->cells[word - first_word];
    const uint64_t mine = visit.me.pack();
    if (region->initialized != nullptr) {
      std::atomic<uint8_t>& bits = region->initialized[word - first_word];
      const uint8_t known = bits.load(std::memory_order_relaxed);
      if (!is_read(kind)) {
        if ((known & visit.me.mask) != visit.me.mask) {
          bits.fetch_or(static_cast<uint8_t>(visit.me.mask), std::memory_order_relaxed);
        }
      } else if ((known & visit.me.mask) != visit.me.mask) {
        report_global(visit, ", which no kernel has written: uninitialised");
      }
    }
    // A reader notes itself before it looks for writers, and a writer before it looks for readers: of two
    // blocks on two OS threads one at least sees the other.
    if (!is_write(kind)) {
      uint64_t old = cell.read.load(std::memory_order_relaxed);
      if (old != mine && kind == Access::kRead) {
        for (;;) {
          const uint64_t merged =
              merge_reads(Party::unpack(old), visit.me, runner.launch().begin, thread.block->before).pack();
          if (merged == old || cell.read.compare_exchange_weak(old, merged, std::memory_order_seq_cst)) break;
        }
      }
      const Party writer = Party::unpack(cell.write.load(std::memory_order_seq_cst));
      if (writer.stamp >= runner.launch().begin) check_party(visit, writer, true);
      continue;
    }
    uint64_t noted = mine;
    const Party before = Party::unpack(cell.write.load(std::memory_order_relaxed));
    if (before.thread == visit.me.thread && before.block == visit.me.block &&
        before.stamp >= runner.launch().begin && before.atomic == visit.me.atomic) {
      Party both = visit.me;
      both.mask |= before.mask;
      noted = both.pack();
    }
    const Party writer = Party::unpack(cell.write.exchange(noted, std::memory_order_seq_cst));
    if (writer.stamp >= runner.launch().begin) check_party(visit, writer, true);
    const Party reader = Party::unpack(cell.read.load(std::memory_order_seq_cst));
    if (reader.stamp >= runner.launch().begin) check_party(visit, reader, false);
  }
  return true;
}

}  // namespace fastnn::emulator
