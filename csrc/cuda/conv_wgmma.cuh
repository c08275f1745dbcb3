// The implicit GEMM of conv_implicit_gemm.cuh on Hopper's tensor cores: operands in float16, bfloat16 or tf32
// come by tensor copies, of which the activations' are im2col loads, and are multiplied out of shared memory by
// wgmma; sums in float32. For tensors whose channels lie side by side (channels_last).
//
//   direction      rows      columns          k                 A                        B
//   forward        filters   positions of y   taps, channels    filters along k          x, im2col
//   grad_input     channels  positions of x   taps, filters     filters across k in      grad_y, im2col
//                            by class                           16-bit types
//   grad_weight    filters   taps, channels   positions of y    grad_y, im2col of 1 x 1  x, im2col
//
// Who owns what. Blocks are as many as multiprocessors and stay, in clusters of two. A cluster takes every n-th
// pair of neighbouring tiles, n being the number of clusters, rows first, so that those that run together share
// columns of B in L2; of the weight gradient it takes a run of steps, which may begin and end within a tile. Of
// the operand that a pair shares each block loads half and both get it. A block has three warpgroups. One
// thread of the last starts the copies of a step into one of kStages buffers as soon as both blocks are done
// with it, across the ends of tiles. The other two own halves of the tile, 64 rows each or all rows and half of
// the columns (or take turns in steps). They keep one step's instructions in flight while they wait for the
// next step's operands, and hand a buffer back when the instructions that read it are done. While they write a
// tile out, the loads of the next one are under way.
//
// A step is 128 bytes of each row and column: 64 halves of one tap. Where the channels that are summed over
// fill no more than a half or a quarter of that, a step has two or four taps, in boxes of 64 or 32 bytes a row.
//
// What bounds it, for a step of 64 halves (conv_wgmma_tiles.cuh has the numbers of each tile,
// docs/performance_conv.md those of layers): 128 x 192 takes the tensor cores 768 cycles; shared memory is
// written 40 KB by the loads and read 64 KB by the instructions, 832 cycles at 128 bytes a cycle; L2 gives 28
// KB where B is shared, 896 cycles at the 32 bytes that each of 132 multiprocessors gets. Where k is short the
// tensors' own bytes bound it: 1x1 of 64 channels to 256 filters moves 640 bytes a position for 16,384
// multiply-adds, a quarter of what an H200's memory and its tensor cores balance at.
//
// Error: as in conv_product.cuh. A chunk of 16 steps is one chain of tensor-core additions, the chunks' sums
// are added in order in float32, in the accumulators of one block or by conv_sum_splits: the same bits for a
// sample whatever its batch, for any tile. Zeros fill up leads, taps and positions; where a position is
// outside, NaN and Inf of filters give NaN, as in the other kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cluster.cuh"
#include "conv_wgmma_load.cuh"
#include "conv_wgmma_maps.cuh"
#include "conv_wgmma_out.cuh"
#include "conv_wgmma_plan.cuh"
#include "conv_wgmma_tiles.cuh"
#include "dispatch.cuh"
#include "mbarrier.cuh"
#include "mma.cuh"
#include "platform.cuh"
#include "wgmma.cuh"

namespace fastnn::cuda {
namespace {

template <typename scalar_t>
using WgmmaOperand = std::conditional_t<sizeof(scalar_t) == 4, tfloat32_t, scalar_t>;

// Where in the ring of buffers a thread is. A buffer's phases alternate in parity each time around.
template <int kStages>
struct WgmmaRing {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance(int steps) {
    stage += steps;
    while (stage >= kStages) {
      stage -= kStages;
      parity ^= 1;
    }
  }
};

// sums (+)= the products of the step's first kCount substeps, as a group.
template <typename scalar_t, typename Tile, WgmmaReduction kReduction, int kCount>
__device__ __forceinline__ void multiply_substeps(float (&sums)[Tile::kGroupN / 2], const WgmmaProblem& p,
                                                  uint64_t a, uint64_t b, bool accumulate) {
  constexpr WgmmaMajor kMajorA = kIsAAlongK<kReduction> ? WgmmaMajor::kK : WgmmaMajor::kMN;
  constexpr WgmmaMajor kMajorB = kIsBAlongK<kReduction> ? WgmmaMajor::kK : WgmmaMajor::kMN;
  // Across k taps' leads are rows one after the other, and a substep is 16 of them.
  constexpr uint32_t kAcross = kPanelBytes / kWgmmaSubsteps;
  wgmma_fence(sums);
#pragma unroll
  for (int s = 0; s < kCount; ++s) {
    wgmma_mma_async<WgmmaOperand<scalar_t>, Tile::kGroupN, kMajorA, kMajorB>(
        sums, wgmma_advance(a, kIsAAlongK<kReduction> ? p.substep_a[s] : s * kAcross),
        wgmma_advance(b, kIsBAlongK<kReduction> ? p.substep_b[s] : s * kAcross), accumulate || s > 0);
  }
  wgmma_commit_group();
}

// Of a warpgroup's part of an operand: along k the leading offset is not used; across, it goes from one panel
// to the next.
template <bool kAlongK>
__device__ __forceinline__ uint64_t operand_descriptor(const WgmmaProblem& p, const unsigned char* operand,
                                                       int first) {
  if constexpr (kAlongK) {
    const WgmmaSwizzle swizzle = p.box_shift == 0   ? WgmmaSwizzle::k128Bytes
                                 : p.box_shift == 1 ? WgmmaSwizzle::k64Bytes
                                                    : WgmmaSwizzle::k32Bytes;
    return wgmma_descriptor(operand + first * p.box_bytes(), kPanelBytes, 8 * p.box_bytes(), swizzle);
  } else {
    return wgmma_descriptor(operand + first * kWgmmaStepBytes, kPanelBytes, 8 * kWgmmaStepBytes,
                            WgmmaSwizzle::k128Bytes);
  }
}

// Substeps that hold nothing but zeros are left out. The branches have to be such that the compiler sees all
// lanes take the same, and each group whole within one: otherwise it waits for every instruction.
template <typename scalar_t, typename Tile, WgmmaReduction kReduction>
__device__ __forceinline__ void multiply_step(float (&sums)[Tile::kGroupN / 2], const WgmmaProblem& p,
                                              uint64_t a, uint64_t b, int substeps, bool accumulate) {
  if constexpr (kReduction != WgmmaReduction::kPositions) {
    substeps = __shfl_sync(0xffffffff, substeps, 0);
    if (substeps == 1) return multiply_substeps<scalar_t, Tile, kReduction, 1>(sums, p, a, b, accumulate);
    if (substeps == 2) return multiply_substeps<scalar_t, Tile, kReduction, 2>(sums, p, a, b, accumulate);
    if (substeps == 3) return multiply_substeps<scalar_t, Tile, kReduction, 3>(sums, p, a, b, accumulate);
  }
  multiply_substeps<scalar_t, Tile, kReduction, kWgmmaSubsteps>(sums, p, a, b, accumulate);
}

template <bool kFirst, typename First, typename Second>
__device__ __forceinline__ auto& either(First& first, Second& second) {
  if constexpr (kFirst) {
    return first;
  } else {
    return second;
  }
}

template <typename scalar_t, typename Tile, WgmmaReduction kReduction>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    conv_wgmma_kernel(const __grid_constant__ WgmmaMaps maps, const __grid_constant__ WgmmaProblem p,
                      const scalar_t* bias, scalar_t* out, float* partial) {
  FASTNN_DYNAMIC_SHARED_ALIGNED(unsigned char, stages, 1024);
  FASTNN_SHARED(Mbarrier, full, Tile::kStages);
  FASTNN_SHARED(Mbarrier, empty, Tile::kStages);
  FASTNN_SHARED(OutChunk, out_parts, kConsumers * kOutPartBytes / kVecBytes);
  FASTNN_SHARED(int64_t, col_offsets, kConsumers* Tile::kGroupN);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tile::kStages; ++i) {
      mbarrier_init(full + i, 1);
      // The warps of both blocks: what a block loads goes to both.
      mbarrier_init(empty + i, kWgmmaCluster * Tile::kReaders * kWarpgroupThreads / kWarpSize);
    }
    fence_mbarrier_init();
  }
  cluster_sync();

  if (threadIdx.x >= kConsumers * kWarpgroupThreads) {
    give_registers<kLoaderRegisters<kReduction>>();
    if (threadIdx.x == kConsumers * kWarpgroupThreads) {
      const auto rank = static_cast<int>(cluster_rank());
      WgmmaWalk<Tile, kReduction> walk(rank, blockIdx.x / kWgmmaCluster, gridDim.x / kWgmmaCluster);
      WgmmaRing<Tile::kStages> ring;
      WgmmaPlace place;
      prefetch_tensor_map(&maps.a);
      for (int i = 0; i < p.class_count; ++i) {
        if (p.classes[i].steps > 0) prefetch_tensor_map(&maps.b[i]);
      }
      const auto begin_step = [&](int bytes) {
        const LoadTo to{stages + ring.stage * Tile::kStageBytes, full + ring.stage};
        mbarrier_wait_cluster(empty + ring.stage, ring.parity ^ 1);
        mbarrier_arrive_expect_tx(to.full, bytes);
        ring.advance(1);
        return to;
      };
      [[maybe_unused]] int fresh = Tile::kStages;
#pragma unroll 1
      while (walk.next(p, place)) {
        if constexpr (kReduction == WgmmaReduction::kPositions) {
          load_positions<Tile>(p, maps, place, rank, fresh, begin_step);
        } else {
          load_taps<scalar_t, Tile, kIsAAlongK<kReduction>>(p, maps, place, rank, begin_step);
        }
      }
    }
    __syncwarp();
    cluster_sync();  // as below
    return;
  }

  take_registers<kConsumerRegisters<kReduction>>();
  const auto rank = static_cast<int>(cluster_rank());
  WgmmaWalk<Tile, kReduction> walk(rank, blockIdx.x / kWgmmaCluster, gridDim.x / kWgmmaCluster);
  WgmmaRing<Tile::kStages> ring;
  WgmmaPlace place;
  const WgmmaThread t;
  const int group_row = t.warpgroup % Tile::kGroupsM * kWarpgroupRows;
  const int group_col = t.warpgroup / Tile::kGroupsM % Tile::kGroupsN * Tile::kGroupN;
  const int turn = Tile::kTakesTurns ? __shfl_sync(0xffffffff, t.warpgroup, 0) : 0;
  const auto release = [&](int stage) {
    if (t.lane < kWgmmaCluster) mbarrier_arrive_remote(empty + stage, t.lane);
  };
#pragma unroll 1
  while (walk.next(p, place)) {
    int64_t* const offsets = col_offsets + t.warpgroup * Tile::kGroupN;
    if (kReduction != WgmmaReduction::kPositions && !p.out_is_partial) {
      tabulate_columns<Tile::kGroupN>(p, p.classes[place.index], place.tile_n * Tile::kN + group_col, t,
                                      offsets);
    }
    float sums[Tile::kGroupN / 2], total[Tile::kSumsChunks ? Tile::kGroupN / 2 : 1];
    auto& result = either<Tile::kSumsChunks>(total, sums);
    // The sum of nothing is 0, the first summand of a sum is itself, -0.0 too.
    const float nothing = place.steps > turn ? -0.0f : 0.0f;
#pragma unroll
    for (int i = 0; i < Tile::kGroupN / 2; ++i) result[i] = nothing;

    WgmmaRing<Tile::kStages> of_step = ring;
    if constexpr (Tile::kTakesTurns) of_step.advance(turn);
    int of_tap = place.first % p.steps_of_tap;
#pragma unroll 1
    for (int step = turn; step < place.steps;) {
      const int left = place.steps - step, chunk = kWgmmaChunkSteps * Tile::kTurn;
      const int end = step + (left < chunk ? left : chunk);
      const int first = step;
      int last_stage = 0;
#pragma unroll 1
      for (; step < end; step += Tile::kTurn) {
        const unsigned char* const stage = stages + of_step.stage * Tile::kStageBytes;
        const uint64_t a = operand_descriptor<kIsAAlongK<kReduction>>(p, stage, group_row);
        const uint64_t b = operand_descriptor<kIsBAlongK<kReduction>>(p, stage + Tile::kABytes, group_col);
        const bool ends_tap = ++of_tap == p.steps_of_tap;
        if (ends_tap) of_tap = 0;
        mbarrier_wait(full + of_step.stage, of_step.parity);
        multiply_step<scalar_t, Tile, kReduction>(sums, p, a, b, ends_tap ? p.last_substeps : kWgmmaSubsteps,
                                                  step > first);
        wgmma_wait_group<1>();
        if (step > first) release(last_stage);
        last_stage = of_step.stage;
        of_step.advance(Tile::kTurn);
      }
      wgmma_wait_group<0>(sums, place.pair);
      release(last_stage);
      if constexpr (Tile::kSumsChunks) {
#pragma unroll
        for (int i = 0; i < Tile::kGroupN / 2; ++i) total[i] += sums[i];
      }
    }
    if constexpr (Tile::kTakesTurns) {
      ring.advance(place.steps);
    } else {
      ring = of_step;
    }

    if constexpr (kReduction != WgmmaReduction::kPositions) {
      // Where the tile is, is found once more: to keep it takes five registers that the sums leave no room
      // for. The wait above keeps the compiler from knowing that the pair is what it was.
      place = place_of_pair<Tile>(p, place.pair, rank);
    }
    const int row0 = place.row0 + group_row, col0 = place.tile_n * Tile::kN + group_col;
    if constexpr (kReduction == WgmmaReduction::kPositions) {
      write_partial_by_rows<Tile::kGroupN>(p, place, place.slot * Tile::kTurn + turn, row0, col0, result, t,
                                           partial);
    } else if (p.out_is_partial) {
      write_partial_by_columns<Tile::kGroupN>(p, place, row0, col0, result, t, partial);
    } else {
      const WgmmaBias<scalar_t> shift(p, place, row0 + t.row0, bias);
      write_wgmma_out<scalar_t, Tile::kGroupN>(
          p, place, row0, col0, result, shift.of_half, t,
          reinterpret_cast<unsigned char*>(out_parts) + t.warpgroup * kOutPartBytes, offsets, out);
    }
  }
  cluster_sync();  // the other block's loads and arrivals come here until its end
}

// For errors and profiles.
template <typename Tile, WgmmaReduction kReduction>
constexpr const char* kWgmmaName = nullptr;
template <>
constexpr const char* kWgmmaName<WideWgmmaTile, WgmmaReduction::kTaps> = "conv_wgmma_taps_wide";
template <>
constexpr const char* kWgmmaName<TallWgmmaTile, WgmmaReduction::kTaps> = "conv_wgmma_taps_tall";
template <>
constexpr const char* kWgmmaName<SquareWgmmaTile, WgmmaReduction::kTaps> = "conv_wgmma_taps_square";
template <>
constexpr const char* kWgmmaName<FewRowsWgmmaTile, WgmmaReduction::kTaps> = "conv_wgmma_taps_few_rows";
template <>
constexpr const char* kWgmmaName<WideWgmmaTile, WgmmaReduction::kTapsAcrossRows> =
    "conv_wgmma_taps_across_wide";
template <>
constexpr const char* kWgmmaName<TallWgmmaTile, WgmmaReduction::kTapsAcrossRows> =
    "conv_wgmma_taps_across_tall";
template <>
constexpr const char* kWgmmaName<SquareWgmmaTile, WgmmaReduction::kTapsAcrossRows> =
    "conv_wgmma_taps_across_square";
template <>
constexpr const char* kWgmmaName<FewRowsWgmmaTile, WgmmaReduction::kTapsAcrossRows> =
    "conv_wgmma_taps_across_few_rows";
template <>
constexpr const char* kWgmmaName<TallWgmmaTile, WgmmaReduction::kPositions> = "conv_wgmma_positions_tall";
template <>
constexpr const char* kWgmmaName<SquareWgmmaTile, WgmmaReduction::kPositions> = "conv_wgmma_positions_square";
template <>
constexpr const char* kWgmmaName<TurnsWgmmaTile, WgmmaReduction::kPositions> = "conv_wgmma_positions_turns";

template <typename scalar_t, typename Tile, WgmmaReduction kReduction>
Status launch_wgmma_tile(const WgmmaConv& c, const void* a, const void* b, const void* bias, void* out,
                         float* partial, Stream stream) {
  constexpr const char* kName = kWgmmaName<Tile, kReduction>;
  WgmmaMaps maps{};
  const Status status = encode_maps<scalar_t, Tile, kReduction>(maps, c, a, b);
  if (!status.ok()) return status;
  const uint32_t units = kReduction == WgmmaReduction::kPositions ? c.problem.runs : c.problem.pairs;
  const uint32_t clusters =
      std::min(units, static_cast<uint32_t>(std::max(device_limits().multiprocessors / kWgmmaCluster, 1)));
  return launch_cluster(kName, conv_wgmma_kernel<scalar_t, Tile, kReduction>, dim3(clusters * kWgmmaCluster),
                        dim3(kWgmmaCluster), dim3(kWgmmaThreads), Tile::kStages * Tile::kStageBytes, stream,
                        maps, c.problem, static_cast<const scalar_t*>(bias), static_cast<scalar_t*>(out),
                        partial);
}

}  // namespace
}  // namespace fastnn::cuda
