// How a warpgroup of conv_wgmma.cuh writes its part of a tile: to out by way of shared memory, or as partial
// sums.
#pragma once

#include <cstdint>

#include "cluster.cuh"
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
  __device__ __forceinline__ static PartialColumns of_taps(const WgmmaProblem& p, int panel) {
    const int tap = panel / p.steps_of_tap, channel = (panel - tap * p.steps_of_tap) * kPanelElements;
    return {tap * p.leads + channel, panel < p.panels() ? p.leads - channel : 0};
  }
};

// What a part of k leaves, partial[slot][group][row][col] or [slot][group][col][row] (conv_sum_splits.cuh).
// kPairs: the former, of rows with an even number of columns, so that neighbours lie in an aligned word.
// columns_of(i): of the warpgroup's columns 64 i and on.
template <int kGroupN, bool kPairs, typename ColumnsOf>
__device__ __forceinline__ void write_wgmma_partial(const WgmmaProblem& p, const WgmmaPlace& place, int slot,
                                                    int row0, const float (&sums)[kGroupN / 2],
                                                    const WgmmaThread& t, float* partial,
                                                    ColumnsOf&& columns_of) {
  const int64_t cols = p.classes[0].cols;
  const int64_t row_stride = !kPairs && p.partial_rows_first ? 1 : cols;
  const int64_t col_stride = !kPairs && p.partial_rows_first ? p.rows : 1;
  const int first_row = row0 + t.row0;
  partial += (int64_t{slot} * p.groups + place.group) * p.rows * cols + first_row * row_stride;
#pragma unroll
  for (int panel = 0; panel < kGroupN / kPanelElements; ++panel) {
    const PartialColumns columns = columns_of(panel);
    const int left = columns.count - t.col0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (first_row + 8 * half >= p.rows) break;
      float* const to = partial + 8 * half * row_stride + (columns.begin + t.col0) * col_stride;
#pragma unroll
      for (int j = 0; j < kPanelElements; j += 8) {
        const int i = (panel * kPanelElements + j) / 2 + 2 * half;
        if constexpr (kPairs) {
          if (j < left) store_vec(to + j, Vec<float, 2>{{sums[i], sums[i + 1]}}, true);
        } else {
          if (j < left) to[j * col_stride] = sums[i];
          if (j + 1 < left) to[(j + 1) * col_stride] = sums[i + 1];
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastnn::cuda
