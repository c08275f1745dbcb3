// How a recurrence (ops/recurrence.h) is laid out on a device; forward and backward are alike.
//
// Blocks stay for the whole sequence. They are cut into groups of `blocks`; a group has samples j * groups +
// group, j < slots, and no business with the others. Within it a block owns `units` hidden units: it keeps in
// shared memory the rows of W_hh that give their gates (backward: the columns that give their dh), multiplies
// them in every step with what the whole group has left it, and leaves to the group what its own units give:
// in global memory, or, where the group is a cluster, in the shared memory of each of its blocks.
//
// A product has the block's rows [rows, depth] times the group's samples [depth, samples]. Its rows are cut
// into tiles of a warp, its depth into chunks of 64 bytes of each sample, which four lanes of a warp load, 16
// bytes each. Warps share tiles (row_warps) and depth (depth_warps); the sums of the latter are added in their
// order.
#pragma once

#include <cstdint>

#include "../ops/host_device.h"
#include "../ops/recurrence.h"
#include "device_limits.h"
#include "reduce.cuh"
#include "vec.cuh"

namespace fastnn::cuda::recurrence {

// One block a multiprocessor: 8 warps may have 255 registers a thread, which the loads of a product want.
inline constexpr int kWarps = 8, kThreads = kWarps * kWarpSize;
// Samples whose sums a block holds at a time. Four tiles of 8 columns of an mma: a fragment of weights that has
// been read is used four times, which is what tensor cores can do meanwhile.
inline constexpr int kPassSamples = 32;
inline constexpr int kChunkBytes = 64;
// Units of a block come by fours, so that an LSTM's rows come by sixteens, the rows of an mma.
inline constexpr int kUnitStep = 4;
// Tiles of rows that a warp multiplies together on tensor cores: 4 by 4 tiles of samples are 64 accumulators.
inline constexpr int kRowTilesAtOnce = 4;
// Loads of state, 16 bytes a lane, that a warp has under way at a time on tensor cores.
inline constexpr int kLoadsAhead = 8;
// Samples that a warp multiplies together: a tile of an mma; on CUDA cores as many as registers hold.
template <int kElementBytes>
inline constexpr int kSamplesAtOnce = kElementBytes == 8 ? 4 : 8;
// Cycles of a step, some 40 microseconds, from which on the framework's products, launched step by step, are
// faster: they have all of the device's registers for tiles.
inline constexpr double kMostCycles = 70000;
// Blocks of a cluster: what every device with clusters takes, and what some do.
inline constexpr int kPortableClusterBlocks = 8, kWideClusterBlocks = 16;
// A cluster lies within one part of a device (GPC). Those of an H100 have 16 or 18 multiprocessors; where one
// has fewer, clusters that find no room run after the others.
inline constexpr int kPartMultiprocessors = 16;
// Of a normalised cell: its norms, and the numbers of what each asks of a sample (recurrence_group_sums.cuh).
inline constexpr int kNorms = 2, kNormNumbers = 3;
// A group's counter has 128 bytes to itself, or one group's waiting would slow another's arrival.
inline constexpr int kCounterWords = 32;

// Blocks of W_hh that are multiplied with the same.
struct RowBlocks {
  int first, count;
};
inline constexpr int kProducts = 3;
enum ProductIndex { kOfState, kOfReset, kOfTanh };  // of h, of r * h, of tanh(h)

inline bool has_tanh_product(const RecurrentCell& cell) {
  return cell.kind == CellKind::kReset && cell.z_sees_h && cell.z_sees_tanh_h;
}

inline RowBlocks row_blocks(const RecurrentCell& cell, int product) {
  const int all = static_cast<int>(cell.recurrent_blocks());
  if (cell.kind != CellKind::kReset) return {0, product == kOfState ? all : 0};
  if (product == kOfReset) return {all - 1, 1};
  if (product == kOfTanh) return {1, has_tanh_product(cell) ? 1 : 0};
  return {0, has_tanh_product(cell) ? 1 : all - 1};
}

// How the blocks of a group give each other what they multiply.
enum class Exchange {
  kL2,      // in the workspace; they meet at a counter there, and all are resident (a cooperative launch)
  kCluster  // in each other's shared memory; they meet at the cluster's barrier
};

struct Product {
  RowBlocks of;
  int rows, tile_rows, tiles;
  int chunks;  // of the depth
  int row_warps, depth_warps;
  bool tensor_cores;
  int pitch;                // numbers from a sample's sums to the next one's
  int weights_at, sums_at;  // bytes, in shared memory
  // What is multiplied: [copies][slots][state_pitch], at this byte of what a group exchanges. Copies take turns
  // where blocks meet only once between two products.
  int copies, state_pitch;
  int64_t exchange_at;
};

struct Plan {
  bool fits = false;
  Exchange exchange;
  int units, blocks, groups;
  int samples, slots;  // of a group at most; rounded up to eights
  int pass_samples;
  int padded;  // H, rounded up to whole chunks
  int shared_bytes;
  int64_t exchange_bytes;  // of a group; in a cluster the first ones of each block's shared memory
  // Of normalised cells: what blocks tell each other, of what they exchange; what a block adds up, and what has
  // been, in shared memory.
  int64_t parts_at;
  int items_at, totals_at;
  double cost;  // of a step, in cycles
  Product products[kProducts];

  // Samples of all groups, with those that only fill up eights.
  FASTNN_HOST_DEVICE int64_t all_slots() const { return static_cast<int64_t>(groups) * slots; }
  dim3 grid() const { return dim3(static_cast<unsigned>(groups * blocks)); }
  dim3 cluster() const { return dim3(static_cast<unsigned>(blocks)); }
};

inline int round_up(int value, int step) { return (value + step - 1) / step * step; }

struct Machine {
  bool backward, normalised, tensor_cores;
  int element_bytes, sum_bytes, shared_bytes;

  Machine(DType dtype, bool backward, bool normalised, bool tensor_cores, int shared_bytes)
      : backward(backward),
        normalised(normalised),
        tensor_cores(tensor_cores),
        element_bytes(dtype == DType::kFloat64 ? 8 : (dtype == DType::kFloat32 ? 4 : 2)),
        sum_bytes(dtype == DType::kFloat64 ? 8 : 4),
        shared_bytes(shared_bytes) {}
  int chunk() const { return kChunkBytes / element_bytes; }
  int samples_at_once() const { return element_bytes == 8 ? kSamplesAtOnce<8> : kSamplesAtOnce<4>; }
};

// What a group exchanges of a product, behind what it exchanges already. In shared memory rows of an odd number
// of chunks: those that a warp reads at once then lie in different banks.
inline void lay_out_exchange(const Machine& machine, const Recurrence& in, int index, Plan& plan) {
  Product& product = plan.products[index];
  product.of = row_blocks(in.cell, index);
  product.chunks = (machine.backward ? product.of.count : 1) * plan.padded / machine.chunk();
  product.state_pitch =
      (plan.exchange == Exchange::kCluster ? product.chunks | 1 : product.chunks) * machine.chunk();
  const bool meets_between = machine.backward ? in.cell.kind == CellKind::kReset : index == kOfReset;
  product.copies = product.of.count == 0 ? 0 : (meets_between ? 1 : 2);
  product.exchange_at = plan.exchange_bytes;
  plan.exchange_bytes += int64_t{product.copies} * plan.slots * product.state_pitch * machine.element_bytes;
}

// What normalised cells tell each other and add up, as the exchange and shared memory go on; its cycles.
inline double lay_out_norms(const Machine& machine, Plan& plan) {
  if (!machine.normalised) return 0;
  const int size = kNormNumbers * machine.sum_bytes;
  plan.items_at = plan.shared_bytes;
  plan.totals_at = plan.items_at + plan.pass_samples * plan.units * size;
  plan.shared_bytes = round_up(plan.totals_at + plan.slots * size, 16);
  constexpr double kReductions = 1000;
  return kNorms * kReductions * static_cast<double>(ceil_div(plan.samples, kWarps));
}

// Lays out one product behind what shared memory has already; its part of the step's cycles.
inline double lay_out(const Machine& machine, Plan& plan, Product& product) {
  if (product.of.count == 0) {
    product.rows = 0;
    return 0;
  }
  const bool cluster = plan.exchange == Exchange::kCluster;
  product.rows = machine.backward ? plan.units : plan.units * product.of.count;
  // On CUDA cores a tile has 8, 16 or 32 rows: of the tallest that fills up no more than needs be, weights and
  // state that have been read are used most often.
  product.tensor_cores = machine.tensor_cores;
  product.tile_rows = 16;
  if (!machine.tensor_cores) {
    const int height = round_up(product.rows, 8);
    product.tile_rows = height % 32 == 0 ? 32 : (height % 16 == 0 ? 16 : 8);
  }
  product.tiles = round_up(product.rows, product.tile_rows) / product.tile_rows;
  const int padded_rows = product.tiles * product.tile_rows, depth_bytes = product.chunks * kChunkBytes;
  // 4 beyond a multiple of 8: the sums that a warp stores at once lie in different banks.
  product.pitch = padded_rows + 4;

  // Of a pass, how warps share it: what they wait for the state's memory, what they multiply, and the way of
  // sums and, in a cluster, of state through shared memory, 128 bytes a cycle. Multiply-adds a cycle:
  // mma.sync's on Hopper; on CUDA cores, whose registers must be filled with rows and samples by loads of 16
  // bytes a lane, 4 cycles each, what these leave.
  const double latency = cluster ? 30 : 500;
  const int lane_rows = product.tile_rows / 8, lane_samples = machine.samples_at_once();
  const double rate = machine.tensor_cores
                          ? 2048.0 / machine.element_bytes
                          : 1.0 * lane_rows * lane_samples * (kVecBytes / machine.element_bytes) * kWarpSize /
                                (4 * (lane_rows + lane_samples));
  const int sample_tiles = plan.pass_samples / machine.samples_at_once();
  product.weights_at = plan.shared_bytes;
  product.sums_at = product.weights_at + padded_rows * depth_bytes;
  double least = 0;
  product.row_warps = 0;
  bool fit = false;
  for (int row_warps = 1; row_warps <= kWarps; row_warps *= 2) {
    const int depth_warps = kWarps / row_warps < product.chunks ? kWarps / row_warps : product.chunks;
    const auto tiles = static_cast<int>(ceil_div(product.tiles, row_warps));
    const auto chunks = static_cast<int>(ceil_div(product.chunks, depth_warps));
    const int64_t loads = machine.tensor_cores
                              ? ceil_div(tiles, kRowTilesAtOnce) * ceil_div(chunks * sample_tiles, kLoadsAhead)
                              : int64_t{tiles} * sample_tiles * ceil_div(chunks, 2);
    const double multiplied =
        1.0 * tiles * product.tile_rows * chunks * machine.chunk() * plan.pass_samples * kWarps / rate;
    const double added = 2.0 * depth_warps * padded_rows * plan.pass_samples * machine.sum_bytes / 128;
    // On CUDA cores the four vectors that a warp reads at once, 64 bytes, take a cycle as well.
    const double state =
        !cluster
            ? 0
            : 1.0 * kWarps * chunks * plan.pass_samples *
                  (machine.tensor_cores ? 0.5 * static_cast<double>(ceil_div(tiles, kRowTilesAtOnce)) : tiles);
    const double cycles = latency * static_cast<double>(loads) + multiplied + added + state;
    const int bytes = product.sums_at + depth_warps * plan.pass_samples * product.pitch * machine.sum_bytes;
    const bool fits = bytes <= machine.shared_bytes;
    if (product.row_warps == 0 || fits > fit || (fits == fit && cycles < least)) {
      least = cycles;
      fit = fits;
      product.row_warps = row_warps;
      product.depth_warps = depth_warps;
      plan.shared_bytes = bytes;
    }
  }

  const auto passes = static_cast<double>(plan.slots) / plan.pass_samples;
  const double read = 1.0 * padded_rows * depth_bytes * (machine.tensor_cores ? 1 : sample_tiles) / 128;
  // L2 gives some 32 bytes a cycle to each block. Among the blocks of a cluster 3.3 TB/s have been measured on
  // an H100 (Luo et al. 2024), 16 bytes a cycle of a multiprocessor, and less of larger clusters; what a block
  // stores goes in packets of 32 bytes.
  const int stored =
      (machine.backward ? product.of.count : 1) * round_up(plan.units * machine.element_bytes, 32);
  const double exchanged =
      cluster ? 1.0 * plan.samples * stored * (plan.blocks - 1) / 12 : 1.0 * plan.slots * depth_bytes / 32;
  return passes * (least > read ? least : read) + exchanged;
}

inline Plan plan_with(const Recurrence& in, const Machine& machine, Exchange exchange, int blocks, int groups) {
  // To arrive, to be seen by the last of the others, and their state's first way through L2. In a cluster: 180
  // cycles from one's store to another's shared memory (Luo et al. 2024), as many for the arrival behind it,
  // and what blocks are apart; more blocks have a slower last one. And what the sums and activations of a unit
  // of each thread take.
  constexpr double kMeeting = 2000, kClusterMeeting = 450, kMeetingOfBlock = 8, kActivations = 400;
  Plan plan;
  plan.exchange = exchange;
  const auto H = static_cast<int>(in.H);
  plan.units = round_up(static_cast<int>(ceil_div(H, blocks)), kUnitStep);
  plan.blocks = static_cast<int>(ceil_div(H, plan.units));
  plan.groups = groups;
  plan.samples = static_cast<int>(ceil_div(in.N, groups));
  plan.slots = round_up(plan.samples, 8);
  plan.pass_samples = plan.slots < kPassSamples ? plan.slots : kPassSamples;
  plan.padded = round_up(H, machine.chunk());
  plan.cost = 0;
  plan.exchange_bytes = 0;
  for (int p = 0; p < kProducts; ++p) lay_out_exchange(machine, in, p, plan);
  if (machine.normalised) {
    plan.parts_at = plan.exchange_bytes;
    plan.exchange_bytes +=
        ceil_div(int64_t{kNorms} * plan.slots * plan.blocks * kNormNumbers * machine.sum_bytes, kChunkBytes) *
        kChunkBytes;
  }
  plan.shared_bytes = 0;
  if (exchange == Exchange::kCluster) {
    if (plan.exchange_bytes > machine.shared_bytes) return plan;
    plan.shared_bytes = static_cast<int>(plan.exchange_bytes);
  }
  plan.cost += lay_out_norms(machine, plan);
  int phases = machine.normalised ? kNorms : 0;
  for (int p = 0; p < kProducts; ++p) {
    plan.cost += lay_out(machine, plan, plan.products[p]);
    phases += plan.products[p].of.count > 0 && p != kOfTanh;
  }
  plan.cost += kActivations * static_cast<double>(ceil_div(int64_t{plan.samples} * plan.units, kThreads));
  if (plan.blocks > 1) {
    plan.cost += phases * ((exchange == Exchange::kCluster ? kClusterMeeting : kMeeting) +
                           kMeetingOfBlock * plan.blocks);
  }
  plan.fits = plan.shared_bytes <= machine.shared_bytes && plan.cost <= kMostCycles;
  return plan;
}

struct Room : DeviceLimits {
  int wide_clusters;  // of kWideClusterBlocks, on the device at once
};

// How many groups of so many blocks are on the device at once, one block to a multiprocessor.
inline int resident_groups(const Room& limits, Exchange exchange, int blocks) {
  if (exchange == Exchange::kCluster && (!limits.clusters() || blocks > kWideClusterBlocks)) return 0;
  if (exchange == Exchange::kCluster && blocks > kPortableClusterBlocks) return limits.wide_clusters;
  if (exchange == Exchange::kL2 || limits.multiprocessors < kPartMultiprocessors) {
    return limits.multiprocessors / blocks;
  }
  return limits.multiprocessors / kPartMultiprocessors * (kPartMultiprocessors / blocks);
}

// The cheapest layout that fits the device.
inline void find_plan(const Recurrence& in, const Machine& machine, const Room& limits, Plan& best) {
  int units_before = 0;
  for (int blocks = 1; blocks <= limits.multiprocessors; ++blocks) {
    const int units = round_up(static_cast<int>(ceil_div(in.H, blocks)), kUnitStep);
    if (units == units_before) continue;
    units_before = units;
    // What is far too large is not laid out: bytes of shared memory are counted in 32 bits.
    const int64_t weights = in.cell.recurrent_blocks() * units * in.H * machine.element_bytes;
    if (weights > limits.shared_bytes) continue;
    const auto used = static_cast<int>(ceil_div(in.H, units));
    for (const Exchange exchange : {Exchange::kL2, Exchange::kCluster}) {
      const int64_t fit = resident_groups(limits, exchange, used);
      const auto most = static_cast<int>(fit < in.N ? fit : in.N);
      for (int groups = 1; groups <= most; groups = groups < most && 2 * groups > most ? most : 2 * groups) {
        const Plan plan = plan_with(in, machine, exchange, used, groups);
        if (plan.fits && (!best.fits || plan.cost < best.cost)) best = plan;
      }
    }
  }
}

}  // namespace fastnn::cuda::recurrence
