// Which kernels serve a reduction per channel with a map after it, and how the held ones (channels_held.cuh)
// are laid out: a function of shape, sizes and the device alone, never of addresses or of what else runs, so
// that the same input gives the same bits on every run on a device. On another one the blocks that share a
// channel may be others, and with them the order of sums.
//
//   two passes    devices before sm_90; rows of C, and planes whose N * C * S, that 16-byte vectors do not fit;
//                 what is four times too large for the chip
//   held planes   planes of 128 bytes or more that vectors fit: a unit is a channel
//   held rows     a unit is a tile of up to 128 bytes of channels
//   held tiles    planes that are smaller, or that vectors do not fit: a unit is a few channels next to each
//                 other, whose runs of one image vectors fit
//
// A unit's elements are held by one block where they leave room for a second block on the multiprocessor, which
// then moves data while this one computes or waits; else by the smallest cluster with which that is so, up to 8
// blocks; else by a cluster of 8 with a multiprocessor for each block, if that fills half of the device. Larger
// units take a cooperative grid, in which groups of blocks hold a unit each:
//
//   all units at once    where they fit on the device together
//   two units a group    one of which is on its way while the other meets its group and is stored: where a unit
//                        fits on half of the device; and where it fits on all of it, so that the next is under
//                        way early: the L2 has what of a unit then has to be read again, 14 MB at most
//   one unit of the grid up to kMaxTimesTooLarge times what fits: the rest is read again, the last of it first
//
// 132 multiprocessors hold 28 MB. Every plane of 28 MB or less a channel is so served, and rows of up to 219
// 000 with one read, or 900 000 with a part read again; backward, which holds two tensors, half of that.
#pragma once

#include <cstdint>

#include "channels.cuh"
#include "platform.cuh"

namespace fastnn::cuda {

// Of a block that has a multiprocessor to itself, 128 registers each; and of two that share one.
inline constexpr int kHeldThreads = 512, kSharingThreads = 256;
inline constexpr int kHeldMinThreads = 64;  // two warps: one alone waits for every load
inline constexpr int kSlotsWanted = 8;      // vectors a thread before a block is made wider
inline constexpr int kMaxCluster = 8;       // that every device with clusters has
inline constexpr int kHeldChunks = 4;       // parts in which a unit arrives, for statistics to begin with
inline constexpr int64_t kRunBytes = 128;   // a run of memory that is read well: a line of the L2
inline constexpr int kMaxTileWidth = 8;     // channels of a held tile: a warp each, in 256 threads
inline constexpr int64_t kWorthSplitting =
    64 * 1024;                               // bytes of a block of which half takes as long as a meeting
inline constexpr int kMaxTimesTooLarge = 4;  // beyond, so little is held that two passes are as good

enum class Variant { kTwoPass, kHeldPlanes, kHeldRows, kHeldTiles };
enum class Meeting { kBlock, kCluster, kGrid };

// What the ops of a launch need.
struct HeldNeeds {
  int scalar_bytes;
  int inputs;       // tensors that are held
  bool reads_bits;  // which are held too, in a byte a vector
  bool writes_bits;
  int partial_bytes;  // sizeof of a reduction's Partial
  int before_bytes;   // sizeof of its Channel
  int after_bytes;    // sizeof of the map's Channel

  int vector_bytes() const { return kVecBytes * inputs + (reads_bits ? 1 : 0); }
};

struct HeldPlan {
  Variant variant = Variant::kTwoPass;
  Meeting meeting = Meeting::kBlock;
  int threads = 0;
  int blocks = 1;  // that hold a unit together
  int64_t units = 0;
  int64_t groups = 0;     // of blocks; a group takes every groups-th unit
  int stages = 1;         // units that a block has room for
  int slots = 0;          // vectors of each input that a thread holds of a unit
  int width = 1;          // channels of a unit
  int columns = 1;        // held rows: vectors of channels across a tile
  int64_t per_block = 0;  // what a block has of a unit: vectors of planes, rows of rows, images of tiles
  // Shared memory, in bytes from its beginning, where vectors lie.
  int bits_at = 0, scratch_at = 0, totals_at = 0, before_at = 0, after_at = 0, shared_bytes = 0;

  int64_t grid_blocks() const { return blocks * groups; }
};

namespace held {

inline constexpr int64_t round_up(int64_t n, int64_t to) { return ceil_div(n, to) * to; }

inline constexpr int64_t greatest_common_divisor(int64_t a, int64_t b) {
  return b == 0 ? a : greatest_common_divisor(b, a % b);
}

// A unit as pieces of which a block takes a number: vectors, rows or images.
struct Pieces {
  int64_t count;
  int64_t vectors;   // of a piece
  int64_t together;  // multiples that a block takes
};

// Chooses blocks, threads and memory for units of one kind.
class Planner {
 public:
  Planner(HeldPlan plan, const Pieces& pieces, const HeldNeeds& needs, const DeviceLimits& device)
      : plan_(plan), pieces_(pieces), needs_(needs), device_(device) {}

  HeldPlan choose(bool grid_allowed) {
    const int64_t whole = device_.shared_bytes;
    const int64_t half = (whole + kReserved) / 2 - kReserved;  // of a multiprocessor
    int blocks = 1, most = kSharingThreads;
    while (blocks < kMaxCluster && bytes(blocks, most) > half) blocks *= 2;
    if (bytes(blocks, most) > half) {
      most = kHeldThreads;
      const bool fills = 2 * plan_.units * blocks >= device_.multiprocessors;
      if (bytes(blocks, most) > whole || (grid_allowed && !fills))
        return grid_allowed ? choose_grid() : HeldPlan{};
    }
    while (blocks < kMaxCluster && plan_.units * blocks < device_.multiprocessors &&
           bytes(blocks, most) >= kWorthSplitting) {
      blocks *= 2;
    }
    plan_.meeting = blocks == 1 ? Meeting::kBlock : Meeting::kCluster;
    plan_.groups = plan_.units;
    return finish(blocks, threads_of(blocks, most));
  }

 private:
  static constexpr int kReserved = 1024;  // of a block's shared memory, by the driver

  // Pieces that each of so many blocks has.
  int64_t share(int64_t blocks) const { return round_up(ceil_div(pieces_.count, blocks), pieces_.together); }

  int threads_of(int64_t blocks, int most) const {
    const int64_t vectors = share(blocks) * pieces_.vectors;
    const bool tiles = plan_.variant == Variant::kHeldTiles;
    int threads = tiles && plan_.width > 2 ? plan_.width * kWarpSize : kHeldMinThreads;
    while (threads < most && int64_t{threads} * kSlotsWanted < vectors) threads *= 2;
    return threads;
  }
  int64_t slots_of(int64_t blocks, int threads) const {
    return ceil_div(share(blocks) * pieces_.vectors, threads);
  }
  int64_t data_bytes(int64_t slots, int threads, int stages) const {
    return round_up(slots * threads * stages * needs_.vector_bytes(), 16);
  }
  // A number of bytes for each of the unit's channels.
  int64_t by_channel(int64_t bytes) const { return round_up(plan_.width * bytes, 16); }
  // Partial results of a block's warps, and of the block; constants of its channels.
  int64_t scratch_bytes(int threads) const {
    return by_channel(int64_t{threads} / kWarpSize * needs_.partial_bytes);
  }
  int64_t other_bytes(int threads) const {
    return scratch_bytes(threads) + by_channel(needs_.partial_bytes) + by_channel(needs_.before_bytes) +
           by_channel(needs_.after_bytes);
  }
  // Shared memory of each of so many blocks.
  int64_t bytes(int blocks, int most_threads) const {
    const int threads = threads_of(blocks, most_threads);
    return data_bytes(slots_of(blocks, threads), threads, 1) + other_bytes(threads);
  }

  HeldPlan choose_grid() {
    const int64_t multiprocessors = device_.multiprocessors;
    const int64_t room = device_.shared_bytes - other_bytes(kHeldThreads);
    const int64_t slot_bytes = int64_t{kHeldThreads} * needs_.vector_bytes();
    const int64_t most = room / slot_bytes;  // slots of a thread
    if (most == 0) return {};
    const auto blocks_for = [&](int64_t slots) {
      return ceil_div(pieces_.count * pieces_.vectors, slots * kHeldThreads);
    };
    const int64_t alone = blocks_for(most), beside_next = most == 1 ? 2 * alone : blocks_for(most / 2);
    plan_.meeting = Meeting::kGrid;
    if (plan_.units * alone <= multiprocessors) {
      plan_.groups = plan_.units;
    } else if (beside_next <= multiprocessors && most > 1) {
      plan_.stages = 2;
      plan_.groups = multiprocessors / beside_next;
      // No more groups than keep all of them busy to the end.
      plan_.groups = ceil_div(plan_.units, ceil_div(plan_.units, plan_.groups));
    } else if (alone <= kMaxTimesTooLarge * multiprocessors) {
      plan_.groups = 1;
      if (alone <= multiprocessors && plan_.units > 1 && most > 1) plan_.stages = 2;
    } else {
      return {};
    }
    plan_ = finish(static_cast<int>(multiprocessors / plan_.groups), kHeldThreads);
    return plan_.slots <= most / plan_.stages ? plan_ : finish_with(most / plan_.stages);
  }

  HeldPlan finish(int blocks, int threads) {
    plan_.blocks = blocks;
    plan_.threads = threads;
    plan_.per_block = share(blocks);
    return finish_with(slots_of(blocks, threads));
  }
  HeldPlan finish_with(int64_t slots) {
    plan_.slots = static_cast<int>(slots);
    const int64_t vectors = int64_t{plan_.stages} * slots * plan_.threads;
    plan_.bits_at = static_cast<int>(vectors * kVecBytes * needs_.inputs);
    plan_.scratch_at = static_cast<int>(data_bytes(slots, plan_.threads, plan_.stages));
    plan_.totals_at = plan_.scratch_at + static_cast<int>(scratch_bytes(plan_.threads));
    plan_.before_at = plan_.totals_at + static_cast<int>(by_channel(needs_.partial_bytes));
    plan_.after_at = plan_.before_at + static_cast<int>(by_channel(needs_.before_bytes));
    plan_.shared_bytes = plan_.scratch_at + static_cast<int>(other_bytes(plan_.threads));
    return plan_;
  }

  HeldPlan plan_;
  const Pieces pieces_;
  const HeldNeeds needs_;
  const DeviceLimits device_;
};

inline HeldPlan plan_planes(const ChannelShape& shape, const HeldNeeds& needs, const DeviceLimits& device) {
  const int vec = kVecBytes / needs.scalar_bytes;
  HeldPlan plan;
  plan.variant = Variant::kHeldPlanes;
  plan.units = shape.C;
  return Planner(plan, {shape.N * (shape.S / vec), 1, kWarpSize}, needs, device).choose(true);
}

inline HeldPlan plan_rows(const ChannelShape& shape, const HeldNeeds& needs, const DeviceLimits& device) {
  const int vec = kVecBytes / needs.scalar_bytes;
  const int64_t columns = shape.C / vec;
  HeldPlan plan;
  plan.variant = Variant::kHeldRows;
  while (plan.columns < columns && plan.columns * kVecBytes < kRunBytes) plan.columns *= 2;
  for (;;) {
    plan.width = plan.columns * vec;
    plan.units = ceil_div(columns, plan.columns);
    const HeldPlan chosen = Planner(plan, {shape.rows(), plan.columns, 1}, needs, device).choose(true);
    // Tiles of half a line, where otherwise most of the device would have nothing to do.
    const bool idle = chosen.meeting == Meeting::kCluster && chosen.grid_blocks() * 2 < device.multiprocessors;
    if (!idle || plan.columns * kVecBytes < kRunBytes) return chosen;
    plan.columns /= 2;
  }
}

// Channels next to each other whose runs vectors, or bytes of bits, fit; 0 where the tensor has none.
inline HeldPlan plan_tiles(const ChannelShape& shape, const HeldNeeds& needs, const DeviceLimits& device) {
  const int vec = kVecBytes / needs.scalar_bytes;
  const int64_t whole = needs.writes_bits && vec < kBitsTogether ? kBitsTogether : vec;
  const int64_t least = whole / greatest_common_divisor(shape.S, whole);
  if (shape.C % least != 0) return {};
  HeldPlan plan;
  plan.variant = Variant::kHeldTiles;
  plan.width = static_cast<int>(least);
  while (plan.width < kMaxTileWidth && plan.width < shape.C &&
         plan.width * shape.S * needs.scalar_bytes < kRunBytes) {
    plan.width *= 2;
  }
  plan.units = ceil_div(shape.C, plan.width);
  return Planner(plan, {shape.N, ceil_div(plan.width * shape.S, vec), 1}, needs, device).choose(false);
}

}  // namespace held

inline HeldPlan choose_variant(const ChannelShape& shape, const HeldNeeds& needs, const DeviceLimits& device) {
  const int vec = kVecBytes / needs.scalar_bytes;
  if (!device.clusters() || shape.elements() == 0) return {};
  const int64_t run = shape.planes ? shape.S : shape.C;
  const bool fits = run % (needs.writes_bits && vec < kBitsTogether ? kBitsTogether : vec) == 0;
  if (!shape.planes) return fits ? held::plan_rows(shape, needs, device) : HeldPlan{};
  if (fits && run * needs.scalar_bytes >= kRunBytes) return held::plan_planes(shape, needs, device);
  return held::plan_tiles(shape, needs, device);
}

}  // namespace fastnn::cuda
