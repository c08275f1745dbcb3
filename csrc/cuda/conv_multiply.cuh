// What a block of the implicit GEMM does with a step of its operands' tiles: by tensor cores (mma.sync), or by
// multiply-adds of the CUDA cores in float32.
//
// A multiplier belongs to one thread and holds its part of the tile of out, kRows x kCols sums:
//
//   step(tile_a, tile_b)     adds one step of A B
//   end_chunk(totals, first) puts the chunk's sums to those of the chunks before it, and begins another
//   finish(totals, chunks)   joins both, after the last step
//   at(r, c), row(r), col(c) a sum, and where in the block's tile it is
#pragma once

#include <cstdint>

#include "conv_product_tiles.cuh"
#include "dispatch.cuh"
#include "platform.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

// A warp's part of the tile, kFragmentsM x kFragmentsN fragments of 16 x 8. The chunks before lie in registers
// beside the chunk's own sums.
template <typename scalar_t, typename Tile, typename OperandA, typename OperandB>
struct TensorCoreMultiplier {
  static constexpr int kRows = 2 * Tile::kFragmentsM, kCols = 2 * Tile::kFragmentsN;
  static constexpr int kTotalBytes = 0;
  float sums[Tile::kFragmentsM][Tile::kFragmentsN][4], before[Tile::kFragmentsM][Tile::kFragmentsN][4];
  int lane, row0, col0;

  __device__ __forceinline__ TensorCoreMultiplier() {
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    lane = static_cast<int>(threadIdx.x) % kWarpSize;
    row0 = warp / Tile::kWarpsN * (Tile::kM / Tile::kWarpsM);
    col0 = warp % Tile::kWarpsN * (Tile::kN / Tile::kWarpsN);
    for_each([&](int i, int j, int e) { sums[i][j][e] = before[i][j][e] = 0; });
  }

  __device__ __forceinline__ float at(int r, int c) const { return sums[r / 2][c / 2][r % 2 * 2 + c % 2]; }
  __device__ __forceinline__ int row(int r) const { return row0 + 16 * (r / 2) + lane / 4 + 8 * (r % 2); }
  __device__ __forceinline__ int col(int c) const { return col0 + 8 * (c / 2) + 2 * (lane % 4) + c % 2; }

  __device__ __forceinline__ void step(const unsigned char* tile_a, const unsigned char* tile_b) {
#pragma unroll
    for (int substep = 0; substep < kSubsteps; ++substep) {
      uint32_t a[Tile::kFragmentsM][4], b[Tile::kFragmentsN / 2][2][2];
#pragma unroll
      for (int i = 0; i < Tile::kFragmentsM; ++i) OperandA::load_a(a[i], tile_a, row0 + 16 * i, substep, lane);
#pragma unroll
      for (int j = 0; j < Tile::kFragmentsN / 2; ++j) {
        OperandB::load_b(b[j], tile_b, col0 + 16 * j, substep, lane);
      }
#pragma unroll
      for (int i = 0; i < Tile::kFragmentsM; ++i) {
#pragma unroll
        for (int j = 0; j < Tile::kFragmentsN; ++j) multiply<scalar_t>(sums[i][j], a[i], b[j / 2][j % 2]);
      }
    }
  }

  __device__ __forceinline__ void end_chunk(float*, bool) {
    for_each([&](int i, int j, int e) {
      before[i][j][e] += sums[i][j][e];
      sums[i][j][e] = 0;
    });
  }
  __device__ __forceinline__ void finish(const float*, bool) {
    for_each([&](int i, int j, int e) { sums[i][j][e] = before[i][j][e] + sums[i][j][e]; });
  }

 private:
  template <typename F>
  __device__ __forceinline__ static void for_each(F&& f) {
#pragma unroll
    for (int i = 0; i < Tile::kFragmentsM; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kFragmentsN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) f(i, j, e);
      }
    }
  }
};

// Eight by eight sums a thread. Of four k it reads eight vectors of A and eight of B, 256 multiply-adds, along
// k or along mn as the operand lies; the threads of a quarter of a warp read neighbouring rows of A, and one
// column of B. A tile along k gives a thread every (threads)th row, one along mn runs of four. The chunks
// before lie in shared memory, where there are any, a line of threads for each element: in registers they would
// leave room for half as many warps.
template <typename Tile, typename OperandA, typename OperandB>
struct CudaCoreMultiplier {
  static constexpr int kRows = Tile::kM / Tile::kThreadsM, kCols = Tile::kN / Tile::kThreadsN;
  static constexpr int kRun = kVecSize<float>;
  static constexpr int kTotalBytes = Tile::kM * Tile::kN * static_cast<int>(sizeof(float));
  float sums[kRows][kCols]{};
  int m, n;  // of the thread

  __device__ __forceinline__ CudaCoreMultiplier() {
    const int thread = static_cast<int>(threadIdx.x);
    m = thread % 8 + thread / kWarpSize % (Tile::kThreadsM / 8) * 8;
    n = thread / 8 % 4 + thread / kWarpSize / (Tile::kThreadsM / 8) * 4;
  }

  __device__ __forceinline__ float at(int r, int c) const { return sums[r][c]; }
  __device__ __forceinline__ int row(int r) const { return place<OperandA, Tile::kThreadsM>(m, r); }
  __device__ __forceinline__ int col(int c) const { return place<OperandB, Tile::kThreadsN>(n, c); }

  __device__ __forceinline__ void step(const unsigned char* tile_a, const unsigned char* tile_b) {
    // Not unrolled: loads of all quads at once would not fit the registers.
#pragma unroll 1
    for (int quad = 0; quad < kChunksInStep; ++quad) {
      float a[kRows][kRun];
      if constexpr (OperandA::kRunsAlongK) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) read<OperandA>(a[r], tile_a, row(r), quad);
      } else {
#pragma unroll
        for (int k = 0; k < kRun; ++k) {
          float line[kRows];
          read_line<OperandA, Tile::kThreadsM>(line, tile_a, kRun * quad + k, m);
#pragma unroll
          for (int r = 0; r < kRows; ++r) a[r][k] = line[r];
        }
      }
      if constexpr (OperandB::kRunsAlongK) {
#pragma unroll
        for (int c = 0; c < kCols; ++c) {
          float b[kRun];
          read<OperandB>(b, tile_b, col(c), quad);
#pragma unroll
          for (int k = 0; k < kRun; ++k) {
#pragma unroll
            for (int r = 0; r < kRows; ++r) sums[r][c] = fmaf(a[r][k], b[k], sums[r][c]);
          }
        }
      } else {
#pragma unroll
        for (int k = 0; k < kRun; ++k) {
          float b[kCols];
          read_line<OperandB, Tile::kThreadsN>(b, tile_b, kRun * quad + k, n);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int c = 0; c < kCols; ++c) sums[r][c] = fmaf(a[r][k], b[c], sums[r][c]);
          }
        }
      }
    }
  }

  __device__ __forceinline__ void end_chunk(float* totals, bool first) {
#pragma unroll
    for (int e = 0; e < kRows * kCols; ++e) {
      float& sum = sums[e / kCols][e % kCols];
      float& total = totals[e * Tile::kThreads + threadIdx.x];
      total = first ? sum : total + sum;
      sum = 0;
    }
  }
  __device__ __forceinline__ void finish(const float* totals, bool has_totals) {
    if (!has_totals) return;
#pragma unroll
    for (int e = 0; e < kRows * kCols; ++e) {
      float& sum = sums[e / kCols][e % kCols];
      sum = totals[e * Tile::kThreads + threadIdx.x] + sum;
    }
  }

 private:
  template <typename Operand, int kThreads>
  __device__ __forceinline__ static int place(int thread, int i) {
    if constexpr (Operand::kRunsAlongK) return thread + i * kThreads;
    return (i / kRun * kThreads + thread) * kRun + i % kRun;
  }
  template <typename Operand>
  __device__ __forceinline__ static void read(float (&out)[kRun], const unsigned char* tile, int line,
                                              int chunk) {
    const auto v =
        load_vec<kRun>(reinterpret_cast<const float*>(tile + Operand::chunk_offset(line, chunk)), true);
#pragma unroll
    for (int i = 0; i < kRun; ++i) out[i] = v.v[i];
  }
  // A thread's elements of line k of a tile along mn.
  template <typename Operand, int kThreads, int kCount>
  __device__ __forceinline__ static void read_line(float (&out)[kCount], const unsigned char* tile, int k,
                                                   int thread) {
#pragma unroll
    for (int i = 0; i < kCount; i += kRun) {
      float run[kRun];
      read<Operand>(run, tile, k, i / kRun * kThreads + thread);
#pragma unroll
      for (int e = 0; e < kRun; ++e) out[i + e] = run[e];
    }
  }
};

}  // namespace
}  // namespace fastnn::cuda
