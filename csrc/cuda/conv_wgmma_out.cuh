// How a warpgroup of conv_wgmma.cuh writes its part of a tile: to out by way of shared memory, or as partial
// sums.
#pragma once

#include <cstdint>

#include "cluster.cuh"
#include "conv_activation.cuh"
#include "conv_wgmma_tiles.cuh"
#include "dispatch.cuh"
#include "mma.cuh"
#include "platform.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

// The tile of out passes through shared memory in parts of 64 rows by as many columns as fit 8 KB, one for each
// warpgroup: 16 KB leave the most stages.
constexpr int kOutPartBytes = 8192;
template <typename scalar_t>
constexpr int kOutPartCols = kOutPartBytes / (kWarpgroupRows * static_cast<int>(sizeof(scalar_t)));
constexpr int kOutLineBytes = 128;  // of the exchange of 16-byte chunks
using OutChunk = Vec<float, 4>;

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

// Where in out the columns of a warpgroup's part begin, found while the tile's first loads are under way and
// registers are free. The barrier: all threads are done with the tile before.
template <int kGroupN>
__device__ __forceinline__ void tabulate_columns(const WgmmaProblem& p, const WgmmaClass& c, int col0,
                                                 const WgmmaThread& t, int64_t* col_offsets) {
  named_barrier_sync(1 + t.warpgroup, kWarpgroupThreads);
#pragma unroll 1
  for (int i = t.thread; i < kGroupN; i += kWarpgroupThreads) {
    const WgmmaPosition at(c, col0 + i);
    col_offsets[i] = at.n * p.out_col[0] + at.d * p.out_col[1] + at.h * p.out_col[2] + at.w * p.out_col[3];
  }
}

// Writes a warpgroup's part of out, which starts at (row0, col0) of the group and the class.
template <typename scalar_t, int kGroupN>
__device__ __forceinline__ void write_wgmma_out(const WgmmaProblem& p, const WgmmaPlace& place, int row0,
                                                int col0, const float (&sums)[kGroupN / 2],
                                                const float (&shift)[2], const WgmmaThread& t,
                                                unsigned char* part, const int64_t* col_offsets,
                                                scalar_t* out) {
  constexpr int kVec = kVecSize<scalar_t>, kInCol = kWarpgroupRows / kVec, kCols = kOutPartCols<scalar_t>;
  const WgmmaClass& c = p.classes[place.index];
  const int barrier = 1 + t.warpgroup;
  out += place.group * p.out_group + c.out_shift + row0;
#pragma unroll
  for (int first = 0; first < kGroupN; first += kCols) {
    if (first > 0) named_barrier_sync(barrier, kWarpgroupThreads);  // all have read the part before
    store_out_part<scalar_t>(part, sums, first, shift, t);
    named_barrier_sync(barrier, kWarpgroupThreads);
#pragma unroll
    for (int e = t.thread; e < kCols * kInCol; e += kWarpgroupThreads) {
      const int col = e / kInCol, chunk = e % kInCol;
      if (col0 + first + col >= c.cols || row0 + chunk * kVec >= p.rows) continue;
      const auto z =
          load_vec<kVec>(reinterpret_cast<const scalar_t*>(part + out_part_offset<scalar_t>(col, chunk)), true);
      store_vec(out + col_offsets[first + col] + chunk * kVec, activated(p.activation, z), true);
    }
  }
}

// What a split leaves of a tile whose columns are positions: partial[slot][group][col][row]
// (conv_sum_splits.cuh). Eight lanes write 32 bytes next to each other.
template <int kGroupN>
__device__ __forceinline__ void write_partial_by_columns(const WgmmaProblem& p, const WgmmaPlace& place,
                                                         int row0, int col0, const float (&sums)[kGroupN / 2],
                                                         const WgmmaThread& t, float* partial) {
  const int cols = p.classes[0].cols, first_row = row0 + t.row0, first_col = col0 + t.col0;
  partial += ((int64_t{place.slot} * p.groups + place.group) * cols + first_col) * p.rows + first_row;
  const int left = cols - first_col;
#pragma unroll
  for (int i = 0; i < kGroupN / 2; ++i) {
    const int col = i / 4 * 8 + i % 2, row = i / 2 % 2 * 8;
    if (col < left && first_row + row < p.rows) partial[int64_t{col} * p.rows + row] = sums[i];
  }
}

// What a run leaves of a tile whose columns are 64 channels of a tap each: partial[slot][group][row][col].
template <int kGroupN>
__device__ __forceinline__ void write_partial_by_rows(const WgmmaProblem& p, const WgmmaPlace& place, int slot,
                                                      int row0, int col0, const float (&sums)[kGroupN / 2],
                                                      const WgmmaThread& t, float* partial) {
  const int64_t cols = p.classes[0].cols;
  const int first_row = row0 + t.row0;
  partial += ((int64_t{slot} * p.groups + place.group) * p.rows + first_row) * cols + t.col0;
#pragma unroll
  for (int i = 0; i < kGroupN / kPanelElements; ++i) {
    const int panel = col0 / kPanelElements + i, tap = panel / p.steps_of_tap;
    const int channel = (panel - tap * p.steps_of_tap) * kPanelElements;
    const int left = panel < p.panels() ? p.leads - channel - t.col0 : 0;
    float* const columns = partial + tap * p.leads + channel;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (first_row + 8 * half >= p.rows) break;
#pragma unroll
      for (int j = 0; j < kPanelElements; j += 8) {
        const int at = (i * kPanelElements + j) / 2 + 2 * half;
        if (j < left) store_vec(columns + 8 * half * cols + j, Vec<float, 2>{{sums[at], sums[at + 1]}}, true);
      }
    }
  }
}

}  // namespace
}  // namespace fastnn::cuda
