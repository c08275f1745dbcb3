#include "wgmma.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <list>
#include <memory>
#include <vector>

#include "cuda_types.h"
#include "wgmma_layout.h"

namespace fastnn::emulator {
namespace {

constexpr unsigned kWarpsOfBlock = 32, kWarpsOfGroup = 4;
constexpr uint32_t kInFlight = 0x7fffdead;  // a NaN

// The accumulators of a warp: since the last wgmma_fence() or while a wgmma is in flight on them.
struct Accumulators {
  float* registers[32];
  MmaType type;
  unsigned n;
  unsigned in_flight = 0;
  bool fenced = false;        // since the wgmma that last used them
  std::vector<float> values;  // lane by lane; where in_flight is 0, what the last wgmma left

  unsigned count() const { return n / 2; }
};

// The registers of A, of a warp.
struct Fragments {
  const uint32_t* registers[32];
  uint32_t values[32][4];

  bool modified() const {
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (std::memcmp(registers[lane], values[lane], sizeof values[lane]) != 0) return true;
    }
    return false;
  }
};

struct Wgmma {
  WgmmaOperands operands;  // d and a are lane 0's
  Accumulators* accumulators;
  Fragments a;
  AsyncOperation operation;
  Where where;
};

struct WarpState {
  bool fenced = false;  // ever
  uint64_t issued = 0;  // wgmmas
  std::deque<Wgmma> pending;
  std::deque<uint64_t> groups;  // value of `issued` when each was committed
  std::list<Accumulators> accumulators;
  std::vector<Fragments> fragments;       // of wgmmas since the last fence
  std::vector<AsyncOperation> completed;  // by the last wait
};

// What the four warps of a warpgroup must issue alike: those that not all of them have issued.
struct WarpgroupState {
  uint64_t begin = 0;
  std::deque<WgmmaOperands> issued;
};

struct BlockState final : Extension {
  WarpState warps[kWarpsOfBlock];
  WarpgroupState warpgroups[kWarpsOfBlock / kWarpsOfGroup];
};

BlockState& block_state() {
  auto& extension = block_extension(ExtensionKind::kTensorCores, current_thread().rank);
  if (!extension) extension = std::make_unique<BlockState>();
  return static_cast<BlockState&>(*extension);
}

// What descriptors address.
const char* window() { return static_cast<const char*>(shared_pointer(0)); }

WarpState& warp_state() { return block_state().warps[current_thread().warp]; }

struct ThreadState final : Extension {
  explicit ThreadState(WarpState& warp) : warp(warp) {}
  void end_thread() override {
    if (!warp.pending.empty()) {
      fail(warp.pending.front().where, "exits without having waited for its wgmma");
    }
  }
  WarpState& warp;
};

// Used by whoever computes, which never waits meanwhile.
thread_local std::vector<SharedSpan> shared_spans;
thread_local std::vector<Span> spans;
thread_local std::vector<MmaVector> columns;

// --- issue ---

struct Issue {
  WgmmaOperands operands;
  Where where;
};

const Issue& issue_of(void* const (&lanes)[32], unsigned lane) {
  return *static_cast<const Issue*>(lanes[lane]);
}

bool same_instruction(const WgmmaOperands& a, const WgmmaOperands& b) {
  return a.type == b.type && a.n == b.n && a.mn_major_a == b.mn_major_a && a.mn_major_b == b.mn_major_b &&
         (a.a == nullptr) == (b.a == nullptr) && a.a_descriptor == b.a_descriptor &&
         a.b_descriptor == b.b_descriptor;
}

void check_warpgroup(BlockState& block, WarpState& warp, const Issue& issue) {
  const unsigned number = current_thread().warp, group = number / kWarpsOfGroup;
  if (blockDim.x * blockDim.y * blockDim.z < (group + 1) * kWarpsOfGroup * 32) {
    fail(issue.where,
         "calls wgmma, which takes four whole warps, the first a multiple of 4, and the block ends earlier");
  }
  WarpgroupState& state = block.warpgroups[group];
  const uint64_t position = warp.issued - state.begin;
  if (position == state.issued.size()) {
    state.issued.push_back(issue.operands);
  } else if (!same_instruction(state.issued[position], issue.operands)) {
    fail(issue.where,
         "issues another wgmma than a warp of its warpgroup: m64n%uk%u, descriptors 0x%llx, 0x%llx; "
         "that had m64n%uk%u, 0x%llx, 0x%llx",
         issue.operands.n, 32 / element_bytes(issue.operands.type),
         static_cast<unsigned long long>(issue.operands.a_descriptor),
         static_cast<unsigned long long>(issue.operands.b_descriptor), state.issued[position].n,
         32 / element_bytes(state.issued[position].type),
         static_cast<unsigned long long>(state.issued[position].a_descriptor),
         static_cast<unsigned long long>(state.issued[position].b_descriptor));
  }
  ++warp.issued;
  const WarpState* const first = &block.warps[group * kWarpsOfGroup];
  while (
      std::all_of(first, first + kWarpsOfGroup, [&](const WarpState& w) { return w.issued > state.begin; })) {
    state.issued.pop_front();
    ++state.begin;
  }
}

bool in_flight_unchanged(const Accumulators& accumulators) {
  for (const float* registers : accumulators.registers) {
    for (unsigned i = 0; i < accumulators.count(); ++i) {
      if (std::bit_cast<uint32_t>(registers[i]) != kInFlight) return false;
    }
  }
  return true;
}

bool values_unchanged(const Accumulators& accumulators) {
  const unsigned count = accumulators.count();
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (std::memcmp(accumulators.registers[lane], &accumulators.values[lane * count], count * sizeof(float)) !=
        0) {
      return false;
    }
  }
  return true;
}

// The entry for the registers that `issue` accumulates in. Everything is checked before anything is made:
// fail() does not unwind.
Accumulators& find_accumulators(WarpState& warp, void* const (&lanes)[32]) {
  const Issue& issue = issue_of(lanes, 0);
  const WgmmaOperands& operands = issue.operands;
  for (auto entry = warp.accumulators.begin(); entry != warp.accumulators.end();) {
    const float* const begin = entry->registers[0];
    const bool overlap = operands.d < begin + entry->count() && begin < operands.d + operands.n / 2;
    bool same = begin == operands.d && entry->n == operands.n;
    for (unsigned lane = 0; same && lane < 32; ++lane) {
      same = entry->registers[lane] == issue_of(lanes, lane).operands.d;
    }
    if (!overlap) {
      ++entry;
    } else if (entry->in_flight != 0) {
      if (!same) fail(issue.where, "issues a wgmma whose accumulators overlap those of one in flight");
      if (entry->type != operands.type && !entry->fenced) {
        fail(issue.where,
             "issues a wgmma on accumulators that one of another shape has used since the last wgmma_fence");
      }
      if (!in_flight_unchanged(*entry)) {
        fail(issue.where, "wrote accumulators while a wgmma on them was in flight");
      }
      return *entry;
    } else if (same) {
      if (entry->type != operands.type) {
        fail(issue.where,
             "issues a wgmma on accumulators that one of another shape has used since the last wgmma_fence");
      }
      if (!values_unchanged(*entry)) {
        fail(issue.where, "issues a wgmma on accumulators that were written since the last wgmma_fence");
      }
      return *entry;
    } else {
      entry = warp.accumulators.erase(entry);  // those were variables that are no more
    }
  }
  Accumulators& made = warp.accumulators.emplace_back();
  made.n = operands.n;
  made.values.resize(size_t{32} * made.count());
  for (unsigned lane = 0; lane < 32; ++lane) {
    made.registers[lane] = issue_of(lanes, lane).operands.d;
    std::memcpy(&made.values[lane * made.count()], made.registers[lane], made.count() * sizeof(float));
  }
  return made;
}

void check_fragments(const WarpState& warp, const Issue& issue) {
  for (const Fragments& fragments : warp.fragments) {
    if (fragments.registers[0] == issue.operands.a && fragments.modified()) {
      fail(issue.where, "issues a wgmma on registers of A that were written since the last wgmma_fence");
    }
  }
}

void check_descriptor(uint64_t bits, const char* name, MatrixDescriptor& descriptor, Where where) {
  if (const char* error = decode(bits, descriptor)) {
    fail(where, "issues a wgmma with a wrong descriptor of %s, 0x%llx: %s", name,
         static_cast<unsigned long long>(bits), error);
  }
}

unsigned row_of_warp() { return current_thread().warp % kWarpsOfGroup * 16; }

MatrixForm form_of_a(const WgmmaOperands& operands) {
  return {.mn_major = operands.mn_major_a, .element_bytes = element_bytes(operands.type)};
}
MatrixForm form_of_b(const WgmmaOperands& operands) {
  return {.mn_major = operands.mn_major_b, .element_bytes = element_bytes(operands.type)};
}

void issue_compute(void* const (&lanes)[32], unsigned) {
  const Issue& issue = issue_of(lanes, 0);
  const WgmmaOperands& operands = issue.operands;
  BlockState& block = block_state();
  WarpState& warp = block.warps[current_thread().warp];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const WgmmaOperands& other = issue_of(lanes, lane).operands;
    if (!same_instruction(operands, other) || operands.accumulate != other.accumulate) {
      fail(issue.where, "issues a wgmma, and lanes 0 and %u of its warp differ in descriptors or shape", lane);
    }
  }
  if (!warp.fenced) fail(issue.where, "issues its first wgmma without a wgmma_fence before it");
  MatrixDescriptor a{}, b{};
  if (operands.a == nullptr) {
    check_descriptor(operands.a_descriptor, "A", a, issue.where);
  } else {
    check_fragments(warp, issue);
  }
  check_descriptor(operands.b_descriptor, "B", b, issue.where);
  check_warpgroup(block, warp, issue);
  Accumulators& accumulators = find_accumulators(warp, lanes);

  shared_spans.clear();
  if (operands.a == nullptr)
    append_spans(a, form_of_a(operands), row_of_warp(), row_of_warp() + 16, shared_spans);
  append_spans(b, form_of_b(operands), 0, operands.n, shared_spans);
  spans.clear();
  for (const SharedSpan& span : shared_spans) {
    spans.push_back({.address = window() + span.begin, .bytes = span.end - span.begin, .kind = Access::kRead});
  }
  const AsyncOperation operation = issue_async(spans.data(), spans.size(), 16, Proxy::kAsync, issue.where);

  Wgmma& wgmma = warp.pending.emplace_back(Wgmma{.operands = operands,
                                                 .accumulators = &accumulators,
                                                 .a = {},
                                                 .operation = operation,
                                                 .where = issue.where});
  accumulators.type = operands.type;
  accumulators.fenced = false;
  ++accumulators.in_flight;
  for (unsigned lane = 0; lane < 32; ++lane) {
    const WgmmaOperands& own = issue_of(lanes, lane).operands;
    std::fill_n(own.d, accumulators.count(), std::bit_cast<float>(kInFlight));
    if (own.a == nullptr) continue;
    wgmma.a.registers[lane] = own.a;
    std::memcpy(wgmma.a.values[lane], own.a, sizeof wgmma.a.values[lane]);
  }
  if (operands.a != nullptr) warp.fragments.push_back(wgmma.a);
}

// --- completion ---

void unpack_row(MmaVector& vector, const MatrixDescriptor& descriptor, MatrixForm form, MmaType type,
                unsigned mn, const char* base) {
  vector.finite = true;
  const unsigned piece = form.mn_major ? 1 : form.depth() / 2;  // elements that lie together
  for (unsigned k = 0; k < form.depth(); k += piece) {
    unpack(vector, type, k, base + element_address(descriptor, form, mn, k), piece);
  }
}

void perform(const Wgmma& wgmma) {
  const char* const base = window();
  const WgmmaOperands& operands = wgmma.operands;
  const MatrixForm form_a = form_of_a(operands), form_b = form_of_b(operands);
  MatrixDescriptor descriptor{};
  MmaVector rows[16];
  if (operands.a != nullptr) {
    const uint32_t* values[32];
    for (unsigned lane = 0; lane < 32; ++lane) values[lane] = wgmma.a.values[lane];
    unpack_a(rows, operands.type, form_a.depth(), values);
  } else {
    decode(operands.a_descriptor, descriptor);
    for (unsigned i = 0; i < 16; ++i) {
      unpack_row(rows[i], descriptor, form_a, operands.type, row_of_warp() + i, base);
    }
  }
  decode(operands.b_descriptor, descriptor);
  columns.resize(256);
  for (unsigned n = 0; n < operands.n; ++n) {
    unpack_row(columns[n], descriptor, form_b, operands.type, n, base);
  }
  Accumulators& accumulators = *wgmma.accumulators;
  for (unsigned lane = 0; lane < 32; ++lane) {
    float* const values = &accumulators.values[lane * accumulators.count()];
    for (unsigned i = 0; i < accumulators.count(); ++i) {
      const MmaVector& row = rows[lane / 4 + 8 * (i / 2 % 2)];
      const MmaVector& column = columns[8 * (i / 4) + 2 * (lane % 4) + i % 2];
      values[i] = dot_add(row, column, form_a.depth(), operands.accumulate ? values[i] : 0.0f);
    }
  }
}

void complete(const Wgmma& wgmma) {
  Accumulators& accumulators = *wgmma.accumulators;
  if (!in_flight_unchanged(accumulators)) {
    fail(wgmma.where, "wrote accumulators before the wgmma_wait_group that completes the wgmma on them");
  }
  if (wgmma.operands.a != nullptr && wgmma.a.modified()) {
    fail(wgmma.where,
         "wrote the registers of A before the wgmma_wait_group that completes the wgmma that reads them");
  }
  perform(wgmma);
  if (--accumulators.in_flight != 0) return;
  const unsigned count = accumulators.count();
  for (unsigned lane = 0; lane < 32; ++lane) {
    std::memcpy(accumulators.registers[lane], &accumulators.values[lane * count], count * sizeof(float));
  }
}

struct WaitOperands {
  unsigned pending;
};

void wait_compute(void* const (&lanes)[32], unsigned) {
  const unsigned pending = static_cast<const WaitOperands*>(lanes[0])->pending;
  BlockState& block = block_state();
  WarpState& warp = block.warps[current_thread().warp];
  warp.completed.clear();
  while (warp.groups.size() > pending) {
    for (uint64_t left = warp.pending.size() - (warp.issued - warp.groups.front()); left > 0; --left) {
      complete(warp.pending.front());
      warp.completed.push_back(warp.pending.front().operation);
      warp.pending.pop_front();
    }
    warp.groups.pop_front();
  }
}

// Whether the warpgroup has issued as much as a warp that waits for its first `issued`.
struct WarpgroupReady {
  const WarpState* first;
  uint64_t issued;
};

bool warpgroup_ready(void* state) {
  const auto& [first, issued] = *static_cast<const WarpgroupReady*>(state);
  return std::all_of(first, first + kWarpsOfGroup,
                     [&](const WarpState& warp) { return warp.issued >= issued; });
}

}  // namespace

uint64_t wgmma_descriptor(const void* start, uint32_t leading_bytes, uint32_t stride_bytes,
                          cuda::WgmmaSwizzle swizzle, unsigned base_offset, Where where) {
  static constexpr unsigned kSwizzles[] = {16, 128, 64, 32};
  if (!is_shared(start)) fail(where, "makes a wgmma_descriptor of an address that is not in shared memory");
  const uint32_t address = shared_address(start);
  if (shared_pointer(address) != start)
    fail(where, "makes a wgmma_descriptor of another block's shared memory");
  if (address % 16 != 0)
    fail(where, "makes a wgmma_descriptor of a misaligned address: 0x%x is no multiple of 16 bytes", address);
  if (leading_bytes % 16 != 0 || stride_bytes % 16 != 0 || leading_bytes >= kDescriptorWindow ||
      stride_bytes >= kDescriptorWindow) {
    fail(where, "makes a wgmma_descriptor with offsets %u and %u: they are multiples of 16 bytes below 256 KB",
         leading_bytes, stride_bytes);
  }
  if (base_offset > 7)
    fail(where, "makes a wgmma_descriptor with base offset %u: it is at most 7", base_offset);
  return encode({.start = address,
                 .leading = leading_bytes,
                 .stride = stride_bytes,
                 .base_offset = base_offset,
                 .swizzle = kSwizzles[static_cast<unsigned>(swizzle)]});
}

void wgmma_fence(Where where) {
  meet_all(
      "wgmma_fence", nullptr,
      [](void* const(&)[32], unsigned) {
        WarpState& warp = warp_state();
        warp.fenced = true;
        warp.fragments.clear();
        warp.accumulators.remove_if([](const Accumulators& entry) { return entry.in_flight == 0; });
        for (Accumulators& entry : warp.accumulators) entry.fenced = true;
      },
      where);
}

void wgmma_mma_async(WgmmaOperands operands, Where where) {
  auto& extension = thread_extension(ExtensionKind::kTensorCores);
  if (!extension) extension = std::make_unique<ThreadState>(warp_state());
  Issue issue{.operands = operands, .where = where};
  meet_all("wgmma_mma_async", &issue, issue_compute, where);
}

void wgmma_commit_group(Where where) {
  meet_all(
      "wgmma_commit_group", nullptr,
      [](void* const(&)[32], unsigned) {
        WarpState& warp = warp_state();
        warp.groups.push_back(warp.issued);
      },
      where);
}

void wgmma_wait_group(unsigned pending, Where where) {
  BlockState& block = block_state();
  const CurrentThread self = current_thread();
  const WarpState& warp = block.warps[self.warp];
  // The matrices are read when all four warps have started: what the last of them may not do yet no other may
  // either.
  if (self.lane == 0 && warp.groups.size() > pending) {
    WarpgroupReady state{.first = &block.warps[self.warp / kWarpsOfGroup * kWarpsOfGroup],
                         .issued = warp.groups[warp.groups.size() - pending - 1]};
    if (!warpgroup_ready(&state)) {
      wait_until("wgmma_wait_group (for all four warps of the warpgroup to issue the wgmma)", warpgroup_ready,
                 &state, where);
    }
  }
  WaitOperands operands{.pending = pending};
  meet_all("wgmma_wait_group", &operands, wait_compute, where);
  for (const AsyncOperation operation : warp.completed) complete_async(operation);
}

}  // namespace fastnn::emulator
