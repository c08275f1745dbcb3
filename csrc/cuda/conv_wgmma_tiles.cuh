// The tiles that the convolutions of conv_wgmma.cuh come in, what each costs, and the description of a problem
// that the host writes and the kernel reads.
#pragma once

#include <cstdint>

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

// Steps of k whose products are summed on their own, as those of conv_mma_plan.cuh: 1,024 halves, 512 floats.
constexpr int kWgmmaChunkSteps = 16;

constexpr int kWarpgroupThreads = 128;
constexpr int kWarpgroupRows = 64;  // of A in one instruction
constexpr int kConsumers = 2;       // warpgroups that multiply; a ninth warp loads
constexpr int kWgmmaThreads = kConsumers * kWarpgroupThreads + kWarpSize;
constexpr int kConsumerWarps = kConsumers * kWarpgroupThreads / kWarpSize;

// Of 227 KB: what stages leave to the tile of out on its way through shared memory, tables and mbarriers.
constexpr int kWgmmaStageMemory = 204 * 1024;

// kM x kN of out, by two warpgroups one below the other, or side by side where there are few rows. kSumsChunks:
// a second set of accumulators, for the chunks before the present one.
template <int kRows, int kCols, bool kAddsChunks>
struct WgmmaTile {
  static constexpr int kM = kRows, kN = kCols;
  static constexpr bool kSumsChunks = kAddsChunks;
  static constexpr int kGroupsM = kM / kWarpgroupRows, kGroupsN = kConsumers / kGroupsM;
  static constexpr int kGroupN = kN / kGroupsN;  // columns of a warpgroup, the N of its instructions
  static constexpr int kABytes = kM * kWgmmaStepBytes, kBBytes = kN * kWgmmaStepBytes;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kStages = kWgmmaStageMemory / kStageBytes;
  static_assert(kGroupsM * kGroupsN == kConsumers && kGroupN % 64 == 0 && kGroupN <= 256);
  static_assert(kStages >= 4, "three steps of loads under way: 1,500 cycles and more");
  static_assert(kGroupN / 2 * (kAddsChunks ? 2 : 1) <= 192, "accumulators of a thread, of 224 registers");

  // Cycles of a step: the tensor cores take kM * kN * 64 halves / 2,048 a cycle; shared memory, at 128 bytes a
  // cycle, is written once by the loads and read by every instruction, which fetches its 64 rows of A and its
  // columns of B. The latter is what bounds all of them but the widest.
  static constexpr int kMathCycles = kM * kN * 64 / 2048;
  static constexpr int kSharedCycles =
      (kStageBytes + kConsumers * (kWarpgroupRows + kGroupN) * kWgmmaStepBytes) / 128;
  static constexpr int kStepCycles = kMathCycles > kSharedCycles ? kMathCycles : kSharedCycles;
};

enum class WgmmaTiles {
  kWide,     // 128 x 256: 1,024 cycles of mathematics a step, and as many of shared memory; one chunk at most
  kTall,     // 128 x 192: 768 and 832; the widest that has room for two sets of accumulators
  kSquare,   // 128 x 128: 512 and 640; for problems that do not fill the device with larger ones
  kFewRows,  // 64 x 256: 512 and 704; for at most 64 rows
};
using WideWgmmaTile = WgmmaTile<128, 256, false>;
using TallWgmmaTile = WgmmaTile<128, 192, true>;
using SquareWgmmaTile = WgmmaTile<128, 128, true>;
using FewRowsWgmmaTile = WgmmaTile<64, 256, true>;

enum class WgmmaReduction {
  kTaps,  // forward, data gradient: columns are positions, k runs over taps and leads; both operands along k
  kPositions,  // weight gradient: columns are (tap, channel)s, k runs over positions; both operands across k
};

// Residue classes of the data gradient that one launch takes: strides up to 3 x 3 or 2 x 2 x 2.
constexpr int kMaxWgmmaClasses = 9;

// A residue class (conv_gemm_problem.cuh), or the whole problem where there is one. Triples are depth, height,
// width.
struct WgmmaClass {
  int64_t out_shift;              // of its first position in out
  uint32_t tiles, tiles_n;        // of out, times splits and groups; along columns
  int32_t cols;                   // kTaps: positions of the class
  int32_t steps;                  // of k
  int32_t spatial[kSpatialDims];  // kTaps: positions of the class; kPositions: of y
  int32_t first[kSpatialDims];    // B's coordinate at position 0, before the tap's offset
  int32_t taps[kSpatialDims];     //
  int32_t offset[kSpatialDims];   // of tap 0, as the im2col load takes it, at least 0
  int32_t filter_tap;             // tap 0 in A
};

struct WgmmaProblem {
  WgmmaClass classes[kMaxWgmmaClasses];  // deepest first: the last tiles to be begun are the cheapest
  int32_t class_count;
  bool has_depth;  // tensors of rank 5, with a depth; of rank 4 otherwise
  bool out_is_partial;
  uint32_t tiles, tiles_m, splits, groups;
  int32_t split_steps;
  int32_t rows, leads;             // of a group; leads: of k (kTaps), of columns (kPositions)
  int32_t steps_of_tap;            // kTaps: of k; kPositions: units of 64 columns
  int32_t last_substeps;           // kTaps: in the last step of a tap
  int32_t col_step[kSpatialDims];  // of B's coordinate from one position to the next
  int32_t offset_step[kSpatialDims], filter_tap_step[kSpatialDims];  // from one tap to the next
  int64_t out_group, out_col[4];  // out[group][row][n, d, h, w], row stride 1
};

}  // namespace
}  // namespace fastnn::cuda
