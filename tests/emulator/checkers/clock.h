// Time as the race checker keeps it. A step of a thread is stamped with a tick of one clock for the process,
// taken anew at each synchronisation; what a thread knows to be over is kept as a vector clock, but sparsely,
// since barriers of a block (and full __syncwarp) are remembered as one stamp for all: everything before it is
// over.
#pragma once

#include <atomic>
#include <cstdint>

namespace fastnn::emulator {

inline std::atomic<uint32_t> time_now{1};
inline uint32_t tick() { return time_now.fetch_add(1, std::memory_order_relaxed) + 1; }

// Who does something: a thread of a block, or an operation that runs apart from it. The same word, with another
// kind, names in a vector clock a whole block or warp: everything that its threads did before (not at) the
// stamp.
enum class OwnerKind : uint32_t { kThread, kCopies, kOperation, kBlockBefore, kWarpBefore };

inline constexpr uint32_t kOwnerBlockBits = 19;
inline constexpr uint32_t kNobody = 0xffffffff;

// Blocks beyond 2^19 share numbers, which can hide a race between two of them and accuse nobody.
constexpr uint32_t make_owner(uint32_t block, OwnerKind kind, uint32_t thread) {
  return (block & ((1u << kOwnerBlockBits) - 1)) << 13 | static_cast<uint32_t>(kind) << 10 | thread;
}
constexpr uint32_t owner_block(uint32_t owner) { return owner >> 13; }
constexpr OwnerKind owner_kind(uint32_t owner) { return static_cast<OwnerKind>(owner >> 10 & 7); }
constexpr uint32_t owner_thread(uint32_t owner) { return owner & 1023; }

}  // namespace fastnn::emulator
