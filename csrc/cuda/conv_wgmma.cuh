// The implicit GEMM of conv_implicit_gemm.cuh on Hopper's tensor cores: operands in float16, bfloat16 or tf32
// come by tensor copies, of which the activations' are im2col loads, and are multiplied out of shared memory by
// wgmma; sums in float32. For tensors whose channels lie side by side (channels_last).
//
//   direction      rows      columns          k                 A                     B
//   forward        filters   positions of y   taps, channels    filters, tiled        x, im2col
//   grad_input     channels  positions of x   taps, filters     filters, tiled        grad_y, im2col
//   grad_weight    filters   taps, channels   positions of y    grad_y, im2col 1 x 1  x, im2col
//
// Who owns what: blocks are as many as multiprocessors and stay; each takes every gridDim.x-th tile, rows
// first, so that those that run together share columns of B in L2. Of a block's nine warps the ninth loads: one
// thread of it starts the copies of a step into one of kStages buffers as soon as that is free, across the ends
// of tiles. The others are two warpgroups, which own halves of the tile, 64 rows each or all rows and half of
// the columns. They keep one step's instructions in flight while they wait for the next step's operands, and
// hand a buffer back when the instructions that read it are done. While they write a tile out, the loads of the
// next tile are under way.
//
// What bounds it, for a step of 64 halves (conv_wgmma_tiles.cuh has the numbers of each tile): 128 x 256 takes
// the tensor cores 1,024 cycles; shared memory is written 48 KB by the loads and read 80 KB by the
// instructions, 1,024 cycles at 128 bytes a cycle; L2 gives 48 KB, 47 bytes a cycle and multiprocessor. With
// 128 x 192 it is 768, 832 and 52, with 128 x 128 it is 512, 640 and 64. So the large tiles can come near the
// matrix rate and the square one to 80 % of it. Where k is short the tensors' own bytes bound it: 1x1 of 64
// channels to 256 filters moves 640 bytes a position for 16,384 multiply-adds, a quarter of what an H200's
// memory and its tensor cores balance at.
//
// Error: as in conv_mma.cuh. A chunk of 16 steps is one chain of tensor-core additions, the chunks' sums are
// added in order in float32, in the accumulators of one block or by conv_sum_splits: the same bits for a sample
// whatever its batch, for any tile.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cluster.cuh"
#include "conv_wgmma_plan.cuh"
#include "conv_wgmma_tiles.cuh"
#include "dispatch.cuh"
#include "mbarrier.cuh"
#include "mma.cuh"
#include "platform.cuh"
#include "tma.cuh"
#include "vec.cuh"
#include "wgmma.cuh"

namespace fastnn::cuda {
namespace {

// The tile of out passes through shared memory in parts of 64 rows by as many columns as fit 8 KB, one for each
// warpgroup: 16 KB leave the most stages.
constexpr int kOutPartBytes = 8192;
template <typename scalar_t>
constexpr int kOutPartCols = kOutPartBytes / (kWarpgroupRows * static_cast<int>(sizeof(scalar_t)));
constexpr int kOutLineBytes = 128;  // of the exchange of 16-byte chunks
using OutChunk = Vec<float, 4>;

// An MN-major operand lies in panels of 64 elements times the 64 k of a step.
constexpr int kPanelElements = 64;
constexpr int kPanelBytes = kPanelElements * kWgmmaStepBytes;

template <typename scalar_t>
using WgmmaOperand = std::conditional_t<sizeof(scalar_t) == 4, tfloat32_t, scalar_t>;

// Where in the ring of buffers a thread is. A buffer's phases alternate in parity each time around.
template <int kStages>
struct WgmmaRing {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

struct WgmmaPlace {
  int index;  // of the class
  int row0, tile_n, group, split;
  int first, steps;  // of k
};

template <typename Tile>
__device__ __forceinline__ WgmmaPlace place_of_tile(const WgmmaProblem& p, uint32_t tile) {
  WgmmaPlace place;
  place.index = 0;
  while (place.index + 1 < p.class_count && tile >= p.classes[place.index].tiles) {
    tile -= p.classes[place.index].tiles;
    ++place.index;
  }
  const WgmmaClass& c = p.classes[place.index];
  const auto take = [&tile](uint32_t count) {
    const uint32_t q = tile / count, digit = tile - q * count;
    tile = q;
    return static_cast<int>(digit);
  };
  place.row0 = take(p.tiles_m) * Tile::kM;
  place.tile_n = take(c.tiles_n);
  place.split = take(p.splits);
  place.group = static_cast<int>(tile);
  place.first = place.split * p.split_steps;
  const int left = c.steps - place.first;
  place.steps = left < p.split_steps ? left : p.split_steps;
  return place;
}

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

// ---- the loading thread ---------------------------------------------------------------------------------

// Pixels from (d, h, w) of image n on, `channel` and the channels after it.
__device__ __forceinline__ void load_pixels(void* to, const TensorMap* map, bool has_depth, int channel,
                                            const WgmmaPosition& at, int offset_d, int offset_h, int offset_w,
                                            Mbarrier* full) {
  if (has_depth) {
    tensor_load_im2col<5>(to, map, {channel, at.w, at.h, at.d, at.n}, {offset_w, offset_h, offset_d}, full);
  } else {
    tensor_load_im2col<4>(to, map, {channel, at.w, at.h, at.n}, {offset_w, offset_h}, full);
  }
}

// B's coordinates of a position.
__device__ __forceinline__ WgmmaPosition pixel_of(const WgmmaProblem& p, const WgmmaClass& c,
                                                  WgmmaPosition at) {
  at.d = c.first[0] + at.d * p.col_step[0];
  at.h = c.first[1] + at.h * p.col_step[1];
  at.w = c.first[2] + at.w * p.col_step[2];
  return at;
}

// A tap as digits, and what it adds to B's coordinates.
struct WgmmaTap {
  int d, h, w;

  __device__ __forceinline__ WgmmaTap(const WgmmaClass& c, int tap) {
    h = tap / c.taps[2];
    w = tap - h * c.taps[2];
    d = h / c.taps[1];
    h -= d * c.taps[1];
  }
  __device__ __forceinline__ void next(const WgmmaClass& c) {
    if (++w < c.taps[2]) return;
    w = 0;
    if (++h < c.taps[1]) return;
    h = 0;
    ++d;
  }
  __device__ __forceinline__ int offset_d(const WgmmaProblem& p, const WgmmaClass& c) const {
    return c.offset[0] + d * p.offset_step[0];
  }
  __device__ __forceinline__ int offset_h(const WgmmaProblem& p, const WgmmaClass& c) const {
    return c.offset[1] + h * p.offset_step[1];
  }
  __device__ __forceinline__ int offset_w(const WgmmaProblem& p, const WgmmaClass& c) const {
    return c.offset[2] + w * p.offset_step[2];
  }
  __device__ __forceinline__ int in_filter(const WgmmaProblem& p, const WgmmaClass& c) const {
    return c.filter_tap + d * p.filter_tap_step[0] + h * p.filter_tap_step[1] + w * p.filter_tap_step[2];
  }
};

// Both call begin_step() for each step, which waits for a free buffer and returns it with its mbarrier.
template <typename scalar_t, typename Tile, typename BeginStep>
__device__ __forceinline__ void load_taps(const WgmmaProblem& p, const WgmmaMaps& maps, const WgmmaPlace& place,
                                          BeginStep&& begin_step) {
  const WgmmaClass& c = p.classes[place.index];
  const WgmmaPosition at = pixel_of(p, c, WgmmaPosition(c, place.tile_n * Tile::kN));
  const int first_tap = place.first / p.steps_of_tap;
  int lead_step = place.first - first_tap * p.steps_of_tap;
  WgmmaTap tap(c, first_tap);
#pragma unroll 1
  for (int step = 0; step < place.steps; ++step) {
    unsigned char* stage;
    Mbarrier* const full = begin_step(stage);
    const int lead = lead_step * kWgmmaStepDepth<scalar_t>;
    tensor_load<3>(stage, &maps.a, {lead, tap.in_filter(p, c), place.group * p.rows + place.row0}, full);
    load_pixels(stage + Tile::kABytes, &maps.b[place.index], p.has_depth, place.group * p.leads + lead, at,
                tap.offset_d(p, c), tap.offset_h(p, c), tap.offset_w(p, c), full);
    if (++lead_step == p.steps_of_tap) {
      lead_step = 0;
      tap.next(c);
    }
  }
}

template <typename Tile, typename BeginStep>
__device__ __forceinline__ void load_positions(const WgmmaProblem& p, const WgmmaMaps& maps,
                                               const WgmmaPlace& place, BeginStep&& begin_step) {
  constexpr int kPanelsA = Tile::kM / kPanelElements, kPanelsB = Tile::kN / kPanelElements;
  const WgmmaClass& c = p.classes[0];
  const int units = c.taps[0] * c.taps[1] * c.taps[2] * p.steps_of_tap;
  int channel[kPanelsB], offset_d[kPanelsB], offset_h[kPanelsB], offset_w[kPanelsB];
#pragma unroll
  for (int j = 0; j < kPanelsB; ++j) {
    // Past the last unit, the last one once more: nobody stores what comes of it.
    const int wanted = place.tile_n * kPanelsB + j, unit = wanted < units ? wanted : units - 1;
    const int tap_index = unit / p.steps_of_tap;
    const WgmmaTap tap(c, tap_index);
    channel[j] = place.group * p.leads + (unit - tap_index * p.steps_of_tap) * kPanelElements;
    offset_d[j] = tap.offset_d(p, c);
    offset_h[j] = tap.offset_h(p, c);
    offset_w[j] = tap.offset_w(p, c);
  }
#pragma unroll 1
  for (int step = 0; step < place.steps; ++step) {
    unsigned char* stage;
    Mbarrier* const full = begin_step(stage);
    const WgmmaPosition at(c, (place.first + step) * kPanelElements);
#pragma unroll
    for (int i = 0; i < kPanelsA; ++i) {
      const int row = place.group * p.rows + place.row0 + i * kPanelElements;
      load_pixels(stage + i * kPanelBytes, &maps.a, p.has_depth, row, at, 0, 0, 0, full);
    }
    const WgmmaPosition pixel = pixel_of(p, c, at);
#pragma unroll
    for (int j = 0; j < kPanelsB; ++j) {
      load_pixels(stage + Tile::kABytes + j * kPanelBytes, &maps.b[0], p.has_depth, channel[j], pixel,
                  offset_d[j], offset_h[j], offset_w[j], full);
    }
  }
}

// ---- the warpgroups -------------------------------------------------------------------------------------

// Where a thread of a warpgroup is: accumulator i is row0 + 8 (i / 2 % 2), column 8 (i / 4) + col0 + i % 2 of
// the warpgroup's part.
struct WgmmaThread {
  int warpgroup, thread, warp, lane;  // warp and thread: within the warpgroup
  int row0, col0;

  __device__ __forceinline__ WgmmaThread() {
    warpgroup = static_cast<int>(threadIdx.x) / kWarpgroupThreads;
    thread = static_cast<int>(threadIdx.x) % kWarpgroupThreads;
    warp = thread / kWarpSize;
    lane = thread % kWarpSize;
    row0 = 16 * warp + lane / 4;
    col0 = 2 * (lane % 4);
  }
};

// sums (+)= the products of the step's first kCount substeps, as a group.
template <typename scalar_t, typename Tile, WgmmaReduction kReduction, int kCount>
__device__ __forceinline__ void multiply_substeps(float (&sums)[Tile::kGroupN / 2], uint64_t a, uint64_t b,
                                                  bool accumulate) {
  constexpr bool kAlongK = kReduction == WgmmaReduction::kTaps;
  constexpr WgmmaMajor kMajor = kAlongK ? WgmmaMajor::kK : WgmmaMajor::kMN;
  constexpr uint32_t kAdvance = (kAlongK ? kWgmmaStepBytes : kPanelBytes) / kWgmmaSubsteps;
  wgmma_fence(sums);
#pragma unroll
  for (int s = 0; s < kCount; ++s) {
    wgmma_mma_async<WgmmaOperand<scalar_t>, Tile::kGroupN, kMajor, kMajor>(
        sums, wgmma_advance(a, s * kAdvance), wgmma_advance(b, s * kAdvance), accumulate || s > 0);
  }
  wgmma_commit_group();
}

// Substeps that hold nothing but zeros are left out. The branches have to be such that the compiler sees all
// lanes take the same, and each group whole within one: otherwise it waits for every instruction.
template <typename scalar_t, typename Tile, WgmmaReduction kReduction>
__device__ __forceinline__ void multiply_step(float (&sums)[Tile::kGroupN / 2], uint64_t a, uint64_t b,
                                              int substeps, bool accumulate) {
  if constexpr (kReduction == WgmmaReduction::kTaps) {
    substeps = __shfl_sync(0xffffffff, substeps, 0);
    if (substeps == 1) return multiply_substeps<scalar_t, Tile, kReduction, 1>(sums, a, b, accumulate);
    if (substeps == 2) return multiply_substeps<scalar_t, Tile, kReduction, 2>(sums, a, b, accumulate);
    if (substeps == 3) return multiply_substeps<scalar_t, Tile, kReduction, 3>(sums, a, b, accumulate);
  }
  multiply_substeps<scalar_t, Tile, kReduction, kWgmmaSubsteps>(sums, a, b, accumulate);
}

// bias[row] of the thread's two rows; 0 without.
template <typename scalar_t>
struct WgmmaBias {
  float of_half[2];

  __device__ __forceinline__ WgmmaBias(const WgmmaProblem& p, const WgmmaPlace& place, int row,
                                       const scalar_t* bias) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool exists = bias != nullptr && row + 8 * half < p.rows;
      of_half[half] = exists ? to_acc(bias[place.group * p.rows + row + 8 * half]) : 0.0f;
    }
  }
};

__device__ __forceinline__ uint32_t packed_pair(float16_t low, float16_t high) {
  const Vec<float16_t, 2> pair{{low, high}};
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t packed_pair(bfloat16_t low, bfloat16_t high) {
  const Vec<bfloat16_t, 2> pair{{low, high}};
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Byte of chunk `chunk` of column `col` in a part of out, [column][64 rows].
template <typename scalar_t>
__device__ __forceinline__ int out_part_offset(int col, int chunk) {
  constexpr int kColBytes = kWarpgroupRows * static_cast<int>(sizeof(scalar_t));
  return col * kColBytes + (chunk ^ (col % (kOutLineBytes / kVecBytes))) * kVecBytes;
}

// Stores the columns from `first` on of the accumulators, as many as a part has, each beside its rows.
template <typename scalar_t, int kCount>
__device__ __forceinline__ void store_out_part(unsigned char* part, const float (&sums)[kCount], int first,
                                               const float (&shift)[2], const WgmmaThread& t) {
  if constexpr (sizeof(scalar_t) == 2) {
    // Matrix m of four: 8 columns of the 16, 8 of the warp's rows. The accumulators lie row by row, out column
    // by column.
#pragma unroll
    for (int col = 0; col < kOutPartCols<scalar_t>; col += 16) {
      uint32_t matrices[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int i = (first + col + 8 * (m / 2)) / 2 + 2 * (m % 2);
        matrices[m] = packed_pair(from_acc<scalar_t>(sums[i] + shift[m % 2]),
                                  from_acc<scalar_t>(sums[i + 1] + shift[m % 2]));
      }
      const int matrix = t.lane / 8;
      stmatrix_trans(
          part + out_part_offset<scalar_t>(col + 8 * (matrix / 2) + t.lane % 8, 2 * t.warp + matrix % 2),
          matrices);
    }
  } else {
#pragma unroll
    for (int col = 0; col < kOutPartCols<scalar_t>; col += 8) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = t.row0 + 8 * (e / 2);
        auto* const line = part + out_part_offset<scalar_t>(col + t.col0 + e % 2, row / kVecSize<scalar_t>);
        reinterpret_cast<scalar_t*>(line)[row % kVecSize<scalar_t>] =
            sums[(first + col) / 2 + e] + shift[e / 2];
      }
    }
  }
}

// Writes a warpgroup's part of out, which starts at (row0, col0) of the group and the class.
template <typename scalar_t, int kGroupN>
__device__ __forceinline__ void write_wgmma_out(const WgmmaProblem& p, const WgmmaPlace& place, int row0,
                                                int col0, const float (&sums)[kGroupN / 2],
                                                const float (&shift)[2], const WgmmaThread& t,
                                                unsigned char* part, int64_t* col_offsets, scalar_t* out) {
  constexpr int kVec = kVecSize<scalar_t>, kInCol = kWarpgroupRows / kVec, kCols = kOutPartCols<scalar_t>;
  const WgmmaClass& c = p.classes[place.index];
  const int barrier = 1 + t.warpgroup;
  out += place.group * p.out_group + c.out_shift + row0;
#pragma unroll
  for (int first = 0; first < kGroupN; first += kCols) {
    named_barrier_sync(barrier, kWarpgroupThreads);  // all have read the part before, and its offsets
    if (first == 0) {
      for (int i = t.thread; i < kGroupN; i += kWarpgroupThreads) {
        const WgmmaPosition at(c, col0 + i);
        col_offsets[i] = at.n * p.out_col[0] + at.d * p.out_col[1] + at.h * p.out_col[2] + at.w * p.out_col[3];
      }
    }
    store_out_part<scalar_t>(part, sums, first, shift, t);
    named_barrier_sync(barrier, kWarpgroupThreads);
#pragma unroll
    for (int e = t.thread; e < kCols * kInCol; e += kWarpgroupThreads) {
      const int col = e / kInCol, chunk = e % kInCol;
      if (col0 + first + col >= c.cols || row0 + chunk * kVec >= p.rows) continue;
      const auto* const from = reinterpret_cast<const scalar_t*>(part + out_part_offset<scalar_t>(col, chunk));
      store_vec(out + col_offsets[first + col] + chunk * kVec, load_vec<kVec>(from, true), true);
    }
  }
}

// Where 64 columns of a tile begin in partial[][][][col], and how many of them there are.
struct PartialColumns {
  int begin, count;

  __device__ __forceinline__ static PartialColumns of_positions(const WgmmaClass& c, int col) {
    return {col, c.cols - col};
  }
  __device__ __forceinline__ static PartialColumns of_taps(const WgmmaProblem& p, const WgmmaClass& c,
                                                           int unit) {
    const int tap = unit / p.steps_of_tap, channel = (unit - tap * p.steps_of_tap) * kPanelElements;
    const bool exists = unit < c.taps[0] * c.taps[1] * c.taps[2] * p.steps_of_tap;
    return {tap * p.leads + channel, exists ? p.leads - channel : 0};
  }
};

// What a split leaves, partial[split][group][row][col]. kPairs: rows have an even number of columns, so that
// neighbours lie in an aligned word. columns_of(i): of the warpgroup's columns 64 i and on.
template <int kGroupN, bool kPairs, typename ColumnsOf>
__device__ __forceinline__ void write_wgmma_partial(const WgmmaProblem& p, const WgmmaPlace& place, int row0,
                                                    const float (&sums)[kGroupN / 2], const WgmmaThread& t,
                                                    float* partial, ColumnsOf&& columns_of) {
  const int64_t cols = p.classes[0].cols;
  const int first_row = row0 + t.row0;
  partial += ((int64_t{place.split} * p.groups + place.group) * p.rows + first_row) * cols + t.col0;
#pragma unroll
  for (int panel = 0; panel < kGroupN / kPanelElements; ++panel) {
    const PartialColumns columns = columns_of(panel);
    const int left = columns.count - t.col0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (first_row + 8 * half >= p.rows) break;
      float* const to = partial + 8 * half * cols + columns.begin;
#pragma unroll
      for (int j = 0; j < kPanelElements; j += 8) {
        const int i = (panel * kPanelElements + j) / 2 + 2 * half;
        if constexpr (kPairs) {
          if (j < left) store_vec(to + j, Vec<float, 2>{{sums[i], sums[i + 1]}}, true);
        } else {
          if (j < left) to[j] = sums[i];
          if (j + 1 < left) to[j + 1] = sums[i + 1];
        }
      }
    }
  }
}

// ---- the kernel -----------------------------------------------------------------------------------------

template <bool kFirst, typename First, typename Second>
__device__ __forceinline__ auto& either(First& first, Second& second) {
  if constexpr (kFirst) {
    return first;
  } else {
    return second;
  }
}

template <typename scalar_t, typename Tile, WgmmaReduction kReduction>
__global__ void __maxnreg__(224)
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
      mbarrier_init(empty + i, kConsumerWarps);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  WgmmaRing<Tile::kStages> ring;

  if (threadIdx.x >= kConsumers * kWarpgroupThreads) {
    if (threadIdx.x % kWarpSize != 0) return;
    prefetch_tensor_map(&maps.a);
    for (int i = 0; i < p.class_count; ++i) {
      if (p.classes[i].steps > 0) prefetch_tensor_map(&maps.b[i]);
    }
    const auto begin_step = [&](unsigned char*& stage) {
      Mbarrier* const barrier = full + ring.stage;
      stage = stages + ring.stage * Tile::kStageBytes;
      mbarrier_wait(empty + ring.stage, ring.parity ^ 1);
      mbarrier_arrive_expect_tx(barrier, Tile::kStageBytes);
      ring.next();
      return barrier;
    };
#pragma unroll 1
    for (uint32_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
      const WgmmaPlace place = place_of_tile<Tile>(p, tile);
      if constexpr (kReduction == WgmmaReduction::kTaps) {
        load_taps<scalar_t, Tile>(p, maps, place, begin_step);
      } else {
        load_positions<Tile>(p, maps, place, begin_step);
      }
    }
    return;
  }

  const WgmmaThread t;
  const int group_row = t.warpgroup % Tile::kGroupsM * kWarpgroupRows;
  const int group_col = t.warpgroup / Tile::kGroupsM * Tile::kGroupN;
  unsigned char* const part = reinterpret_cast<unsigned char*>(out_parts) + t.warpgroup * kOutPartBytes;
  int64_t* const offsets = col_offsets + t.warpgroup * Tile::kGroupN;
  const auto release = [&](int stage) {
    if (t.lane == 0) mbarrier_arrive(empty + stage);
  };
#pragma unroll 1
  for (uint32_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const WgmmaPlace place = place_of_tile<Tile>(p, tile);
    const int row0 = place.row0 + group_row;
    float sums[Tile::kGroupN / 2], total[Tile::kSumsChunks ? Tile::kGroupN / 2 : 1];
    auto& result = either<Tile::kSumsChunks>(total, sums);
    // The sum of nothing is 0, the first summand of a sum is itself, -0.0 too.
    const float nothing = place.steps > 0 ? -0.0f : 0.0f;
#pragma unroll
    for (int i = 0; i < Tile::kGroupN / 2; ++i) result[i] = nothing;

    int of_tap = place.first % p.steps_of_tap;
#pragma unroll 1
    for (int step = 0; step < place.steps;) {
      const int left = place.steps - step;
      const int end = step + (left < kWgmmaChunkSteps ? left : kWgmmaChunkSteps);
      int last_stage = 0;
      bool in_flight = false;
#pragma unroll 1
      for (; step < end; ++step) {
        const unsigned char* const stage = stages + ring.stage * Tile::kStageBytes;
        // Along k the leading offset is not used; across, it goes from one panel to the next.
        const uint64_t a = wgmma_descriptor(stage + group_row * kWgmmaStepBytes, kPanelBytes,
                                            8 * kWgmmaStepBytes, WgmmaSwizzle::k128Bytes);
        const uint64_t b = wgmma_descriptor(stage + Tile::kABytes + group_col * kWgmmaStepBytes, kPanelBytes,
                                            8 * kWgmmaStepBytes, WgmmaSwizzle::k128Bytes);
        const bool ends_tap = ++of_tap == p.steps_of_tap;
        if (ends_tap) of_tap = 0;
        mbarrier_wait(full + ring.stage, ring.parity);
        multiply_step<scalar_t, Tile, kReduction>(sums, a, b, ends_tap ? p.last_substeps : kWgmmaSubsteps,
                                                  in_flight);
        wgmma_wait_group<1>();
        if (in_flight) release(last_stage);
        in_flight = true;
        last_stage = ring.stage;
        ring.next();
      }
      wgmma_wait_group<0>(sums);
      release(last_stage);
      if constexpr (Tile::kSumsChunks) {
#pragma unroll
        for (int i = 0; i < Tile::kGroupN / 2; ++i) total[i] += sums[i];
      }
    }

    const int col0 = place.tile_n * Tile::kN + group_col;
    const WgmmaClass& c = p.classes[place.index];
    if constexpr (kReduction == WgmmaReduction::kPositions) {
      write_wgmma_partial<Tile::kGroupN, true>(p, place, row0, result, t, partial, [&](int panel) {
        return PartialColumns::of_taps(p, c, col0 / kPanelElements + panel);
      });
    } else if (p.out_is_partial) {
      write_wgmma_partial<Tile::kGroupN, false>(p, place, row0, result, t, partial, [&](int panel) {
        return PartialColumns::of_positions(c, col0 + panel * kPanelElements);
      });
    } else {
      const WgmmaBias<scalar_t> shift(p, place, row0 + t.row0, bias);
      write_wgmma_out<scalar_t, Tile::kGroupN>(p, place, row0, col0, result, shift.of_half, t, part, offsets,
                                               out);
    }
  }
}

template <typename scalar_t, typename Tile, WgmmaReduction kReduction>
Status launch_wgmma_tile(const WgmmaConv& c, const void* a, const void* b, const void* bias, void* out,
                         float* partial, Stream stream) {
  constexpr const char* kName = "conv_wgmma_kernel";
  WgmmaMaps maps{};
  Status status;
  if constexpr (kReduction == WgmmaReduction::kTaps) {
    status = encode_taps<scalar_t, Tile>(maps, c, a, b);
  } else {
    status = encode_positions<scalar_t>(maps, c, a, b);
  }
  if (!status.ok()) return status;
  const auto blocks = std::min(c.problem.tiles, static_cast<uint32_t>(std::max(multiprocessors(), 1)));
  return launch(kName, conv_wgmma_kernel<scalar_t, Tile, kReduction>, dim3(blocks), dim3(kWgmmaThreads),
                Tile::kStages * Tile::kStageBytes, stream, maps, c.problem, static_cast<const scalar_t*>(bias),
                static_cast<scalar_t*>(out), partial);
}

}  // namespace
}  // namespace fastnn::cuda
