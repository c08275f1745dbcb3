// The tiles that the convolutions of conv_wgmma.cuh come in, what each costs, and the description of a problem
// that the host writes and the kernel reads.
#pragma once

#include <cstdint>

#include "../ops/conv.h"
#include "conv_index.cuh"
#include "platform.cuh"

namespace fastnn::cuda {
namespace {

// A step of k is 128 bytes of each row or column, one swizzled line of shared memory: 64 elements of a half
// type, 32 floats. An instruction multiplies a substep, 32 bytes.
constexpr int kWgmmaStepBytes = 128;
constexpr int kWgmmaSubsteps = 4;
template <typename scalar_t>
constexpr int kWgmmaStepDepth = kWgmmaStepBytes / static_cast<int>(sizeof(scalar_t));
template <typename scalar_t>
constexpr int kWgmmaSubstepDepth = kWgmmaStepDepth<scalar_t> / kWgmmaSubsteps;

// Steps of k whose products are summed on their own, as those of conv_product_plan.cuh: 1,024 halves, 512
// floats.
constexpr int kWgmmaChunkSteps = 16;

constexpr int kWarpgroupThreads = 128;
constexpr int kWarpgroupRows = 64;  // of A in one instruction
constexpr int kConsumers = 2;       // warpgroups that multiply; one thread of a third one loads
constexpr int kWgmmaThreads = (kConsumers + 1) * kWarpgroupThreads;

// Blocks that work on neighbouring tiles, and load half each of the operand that these share for both.
constexpr int kWgmmaCluster = 2;

// An operand that lies across k is kept in panels of 64 elements times the 64 k of a step.
constexpr int kPanelElements = 64;
constexpr int kPanelBytes = kPanelElements * kWgmmaStepBytes;

// Of 227 KB: what stages leave to the tile of out on its way through shared memory, tables and mbarriers.
constexpr int kWgmmaStageMemory = 204 * 1024;

// kM x kN of out, by two warpgroups one below the other; where there are few rows side by side, or one after
// the other (kTakesTurns): each has the whole tile, of every second step, and writes sums of its own.
// kAddsChunks: a second set of accumulators, for the chunks before the present one.
template <int kRows, int kCols, bool kAddsChunks, bool kTurns = false>
struct WgmmaTile {
  static constexpr int kM = kRows, kN = kCols;
  static constexpr bool kSumsChunks = kAddsChunks, kTakesTurns = kTurns;
  static constexpr int kGroupsM = kM / kWarpgroupRows, kGroupsN = kTurns ? 1 : kConsumers / kGroupsM;
  static constexpr int kGroupN = kN / kGroupsN;  // columns of a warpgroup, the N of its instructions
  static constexpr int kABytes = kM * kWgmmaStepBytes, kBBytes = kN * kWgmmaStepBytes;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kStages = kWgmmaStageMemory / kStageBytes;
  // Warpgroups that read a step, and the steps from one of a warpgroup to its next.
  static constexpr int kReaders = kTurns ? 1 : kConsumers, kTurn = kTurns ? kConsumers : 1;
  static_assert(kGroupsM * kGroupsN * kTurn == kConsumers && kGroupN % kPanelElements == 0 && kGroupN <= 256);
  static_assert(kStages >= 4, "three steps of loads under way: 1,500 cycles and more");
  static_assert(kGroupN / 2 * (kAddsChunks ? 2 : 1) <= 192, "accumulators of a thread");

  // Cycles of a step, of a multiprocessor. The tensor cores take kM * kN * 64 halves / 2,048 a cycle. Shared
  // memory, at 128 bytes a cycle, is written once by the loads and read by every instruction, which fetches its
  // 64 rows of A and its columns of B. L2 gives some 32 bytes a cycle to each of 132 multiprocessors (6.5
  // TB/s), of the operand that a cluster shares each half once.
  static constexpr int kMathCycles = kM * kN * 64 / 2048;
  static constexpr int kSharedCycles =
      (kStageBytes + kReaders * (kWarpgroupRows + kGroupN) * kWgmmaStepBytes) / 128;
  // busy: the part of the multiprocessors that share L2.
  static constexpr double step_cycles(bool shares_b, double busy) {
    const int l2_bytes = kStageBytes - (shares_b ? kBBytes : kABytes) / kWgmmaCluster;
    const int of_block = kMathCycles > kSharedCycles ? kMathCycles : kSharedCycles;
    return l2_bytes / 32 * busy > of_block ? l2_bytes / 32 * busy : of_block;
  }
};

// Cycles of mathematics, of shared memory and of L2, with B shared and with A:
enum class WgmmaTiles {
  kWide,     // 128 x 256:  1,024  1,024  1,024  1,280   at most one chunk of k
  kTall,     // 128 x 192:    768    832    896  1,024   the widest that has room for two sets of accumulators
  kSquare,   // 128 x 128:    512    640    768    768   for problems that do not fill the device with larger
             // ones
  kFewRows,  // 64 x 256:     512    704    768  1,152   for at most 64 rows
  kTurns,  // 64 x 192:     384    512    640    896   for at most 64 filters of a weight gradient, often of 576
           // columns
};
using WideWgmmaTile = WgmmaTile<128, 256, false>;
using TallWgmmaTile = WgmmaTile<128, 192, true>;
using SquareWgmmaTile = WgmmaTile<128, 128, true>;
using FewRowsWgmmaTile = WgmmaTile<64, 256, true>;
using TurnsWgmmaTile = WgmmaTile<64, 192, true, true>;

enum class WgmmaReduction {
  kTaps,            // k runs over taps and leads, columns are positions; both operands lie along k
  kTapsAcrossRows,  // the same, of filters whose rows lie side by side: a data gradient's in channels_last
  kPositions,       // k runs over positions, columns are (tap, channel)s: weight gradient; both lie across k
};
template <WgmmaReduction kReduction>
constexpr bool kIsAAlongK = kReduction == WgmmaReduction::kTaps;
template <WgmmaReduction kReduction>
constexpr bool kIsBAlongK = kReduction != WgmmaReduction::kPositions;

// Registers of a thread. A block of 384 begins with 168 each, of which the warpgroup of the loading thread
// gives up most: 2 * 232 + 40 = 2 * 224 + 56 = 3 * 168. Two sets of 96 accumulators leave 40 or 32; a weight
// gradient's loads, of up to three taps a step, want more than the others'.
template <WgmmaReduction kReduction>
constexpr int kLoaderRegisters = kReduction == WgmmaReduction::kPositions ? 56 : 40;
template <WgmmaReduction kReduction>
constexpr int kConsumerRegisters = (3 * 168 - kLoaderRegisters<kReduction>) / kConsumers;

// Residue classes of the data gradient that one launch takes: strides up to 3 x 3 or 2 x 2 x 2.
constexpr int kMaxWgmmaClasses = 9;

// A residue class (conv_gemm_problem.cuh), or the whole problem where there is one. Triples are depth, height,
// width.
struct WgmmaClass {
  int64_t out_shift;              // of its first position in out
  uint32_t pairs, pairs_n;        // of tiles, times splits and groups; along columns
  int32_t cols;                   // kTaps: positions of the class; kPositions: of grad_w
  int32_t steps;                  // of k
  int32_t spatial[kSpatialDims];  // positions: of the class; kPositions: of y
  int32_t first[kSpatialDims];    // B's coordinate at position 0, before the tap's offset
  int32_t taps[kSpatialDims];
  int32_t offset[kSpatialDims];  // of tap 0, as the im2col load takes it, at least 0
  int32_t filter_tap;            // tap 0 in A
  int32_t tap_count;
};

// The unit of work is a pair of tiles with the same steps, one for each block of a cluster.
struct WgmmaProblem {
  WgmmaClass classes[kMaxWgmmaClasses];  // deepest first: the last tiles to be begun are the cheapest
  int32_t class_count;
  bool has_depth;  // tensors of rank 5, with a depth; of rank 4 otherwise
  bool shares_b;  // the pair is one of rows, with the same columns of B; or of columns, with the same rows of A
  bool out_is_partial;
  uint32_t pairs, pairs_m, groups;
  uint32_t splits;        // kTaps: blocks that share k
  int32_t split_steps;    // of k that a block does: kTaps, of one tile; kPositions, of its run of tiles
  uint32_t runs;          // kPositions: pairs * steps steps are cut in runs of split_steps
  int32_t rows, leads;    // of a group; leads: of k (kTaps), of columns (kPositions)
  int32_t steps_of_tap;   // kTaps: of k; kPositions: panels of 64 columns
  int32_t last_substeps;  // kTaps: in the last step of a tap
  // kTaps: where the leads of a tap fill no more, a step has 2 ^ box_shift taps, of each a box of as much less
  // a row.
  int32_t box_shift;
  int32_t filter_taps, b_channels;  // in all: coordinates from which zeros are loaded
  uint32_t substep_a[kWgmmaSubsteps],
      substep_b[kWgmmaSubsteps];   // kTaps: where in a buffer a substep's part begins
  int32_t col_step[kSpatialDims];  // of B's coordinate from one position to the next
  int32_t offset_step[kSpatialDims], filter_tap_step[kSpatialDims];  // from one tap to the next
  int64_t out_group, out_col[4];  // out[group][row][n, d, h, w], row stride 1
  ConvActivation activation;      // of out

  FASTNN_HOST_DEVICE int32_t boxes() const { return 1 << box_shift; }
  FASTNN_HOST_DEVICE int32_t box_bytes() const { return kWgmmaStepBytes >> box_shift; }
  FASTNN_HOST_DEVICE int32_t box_substeps() const { return kWgmmaSubsteps >> box_shift; }
  FASTNN_HOST_DEVICE int32_t panels() const {  // kPositions: of columns
    return classes[0].taps[0] * classes[0].taps[1] * classes[0].taps[2] * steps_of_tap;
  }
};

// A tile of out and a part of its k.
struct WgmmaPlace {
  uint32_t pair;
  int index;  // of the class
  int row0, tile_n, group;
  int slot;          // of the part, among those that share the tile's k
  int first, steps;  // of k
};

template <typename Tile>
__device__ __forceinline__ WgmmaPlace place_of_pair(const WgmmaProblem& p, uint32_t pair, int rank) {
  WgmmaPlace place;
  place.pair = pair;
  place.index = 0;
  while (place.index + 1 < p.class_count && pair >= p.classes[place.index].pairs) {
    pair -= p.classes[place.index].pairs;
    ++place.index;
  }
  const auto take = [&pair](uint32_t count) {
    const uint32_t q = pair / count, digit = pair - q * count;
    pair = q;
    return static_cast<int>(digit);
  };
  // Rows first: blocks that run together share columns of B in L2.
  const int m = take(p.pairs_m);
  place.tile_n = take(p.classes[place.index].pairs_n);
  if (p.shares_b) {
    place.row0 = (m * kWgmmaCluster + rank) * Tile::kM;
  } else {
    place.row0 = m * Tile::kM;
    place.tile_n = place.tile_n * kWgmmaCluster + rank;
  }
  place.slot = take(p.splits);
  place.group = static_cast<int>(pair);
  return place;
}

// Where run `run` of the weight gradient meets the tiles: the first run of a pair's steps.
FASTNN_HOST_DEVICE uint32_t first_run_of_pair(const WgmmaProblem& p, uint32_t pair) {
  return pair * static_cast<uint32_t>(p.classes[0].steps) / static_cast<uint32_t>(p.split_steps);
}

// The places that a cluster goes through, one after the other; loading thread and warpgroups walk alike.
template <typename Tile, WgmmaReduction kReduction>
class WgmmaWalk {
 public:
  __device__ __forceinline__ WgmmaWalk(int rank, uint32_t cluster, uint32_t clusters)
      : rank_(rank), unit_(cluster), clusters_(clusters) {}

  __device__ __forceinline__ bool next(const WgmmaProblem& p, WgmmaPlace& place) {
    if constexpr (kReduction == WgmmaReduction::kPositions) {
      // A run goes on from one pair's last step to the next one's first.
      const auto steps = static_cast<uint32_t>(p.classes[0].steps), each = static_cast<uint32_t>(p.split_steps);
      if (step_ == end_) {
        if (unit_ >= p.runs) return false;
        step_ = unit_ * each;
        end_ = step_ + each < p.pairs * steps ? step_ + each : p.pairs * steps;
        run_ = unit_;
        unit_ += clusters_;
      }
      const uint32_t pair = step_ / steps;
      place = place_of_pair<Tile>(p, pair, rank_);
      place.slot = static_cast<int>(run_ - first_run_of_pair(p, pair));
      place.first = static_cast<int>(step_ - pair * steps);
      const uint32_t left = steps - static_cast<uint32_t>(place.first);
      place.steps = static_cast<int>(left < end_ - step_ ? left : end_ - step_);
      step_ += static_cast<uint32_t>(place.steps);
    } else {
      if (unit_ >= p.pairs) return false;
      place = place_of_pair<Tile>(p, unit_, rank_);
      place.first = place.slot * p.split_steps;
      const int left = p.classes[place.index].steps - place.first;
      place.steps = left < p.split_steps ? left : p.split_steps;
      unit_ += clusters_;
    }
    return true;
  }

 private:
  int rank_;
  uint32_t unit_, clusters_;
  uint32_t step_ = 0, end_ = 0, run_ = 0;  // kPositions
};

// A position, as digits; past the end the batch element is too large.
struct WgmmaPosition {
  int n, d, h, w;

  __device__ __forceinline__ WgmmaPosition(const WgmmaClass& c, int index) {
    const auto take = [&index](int extent) {
      const auto q = static_cast<int>(static_cast<uint32_t>(index) / static_cast<uint32_t>(extent));
      const int digit = index - q * extent;
      index = q;
      return digit;
    };
    w = take(c.spatial[2]);
    h = take(c.spatial[1]);
    d = take(c.spatial[0]);
    n = index;
  }
};

}  // namespace
}  // namespace fastnn::cuda
