// Operand tiles of a pipelined product in shared memory, and the fragments that a warp reads of them.
//
// A step of k is 64 bytes of each row or column of the operand: 32 elements of a half type, 16 floats. A tile
// holds one step of kMN rows of A (or columns of B), in one of two orders, whichever the operand has in global
// memory, so that a copy of 16 bytes there is one here:
//
//   along k    [kMN][64 bytes]         four chunks of 16 bytes a row; chunk c of row r lies at c ^ (r / 2 % 4)
//   along mn   [k of a step][kMN]      chunk c of line k lies at c ^ (k % 8) in half types, in float32 at
//                                      c ^ (2 * (k % 4))
//
// With these exchanges every read of fragments is free of bank conflicts: the eight rows of an 8 x 8 matrix
// that ldmatrix reads at a time lie in different 16-byte columns of the 128 bytes that the banks serve.
// ldmatrix cannot transpose 32-bit elements; those are read one by one, four lines of k times eight columns a
// request, which the exchange puts in 32 different banks.
//
// The fragments' layouts stand in mma.cuh. A substep is half a step: k16 in half types, k8 in float32, which is
// two chunks either way; so the same reads serve both.
#pragma once

#include <cstdint>
#include <type_traits>

#include "dispatch.cuh"
#include "mma.cuh"
#include "platform.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kStepBytes = 64;
constexpr int kChunksInStep = kStepBytes / kVecBytes;
constexpr int kSubsteps = 2;

// Elements of k in a step.
template <typename scalar_t>
constexpr int kStepDepth = kStepBytes / static_cast<int>(sizeof(scalar_t));

template <typename scalar_t, bool kAlongK, int kMN>
struct OperandTile {
  static constexpr bool kRunsAlongK = kAlongK;
  static constexpr int kBytes = kMN * kStepBytes;
  static constexpr int kLineChunks = kMN * static_cast<int>(sizeof(scalar_t)) / kVecBytes;  // along mn
  static constexpr bool kHalf = sizeof(scalar_t) == 2;
  static_assert(kAlongK || kLineChunks >= 8, "the exchange of chunks stays within a line");

  // Where chunk `chunk` of line `line` lies: lines are rows (columns of B), or k's.
  __device__ __forceinline__ static int chunk_offset(int line, int chunk) {
    if constexpr (kAlongK) {
      return line * kStepBytes + ((chunk ^ (line >> 1)) & (kChunksInStep - 1)) * kVecBytes;
    } else {
      const int exchange = kHalf ? line & 7 : (line & 3) << 1;
      return (line * kLineChunks + (chunk ^ exchange)) * kVecBytes;
    }
  }
  __device__ __forceinline__ static int element_offset(int line, int element) {
    constexpr int kInChunk = kVecSize<scalar_t>;
    return chunk_offset(line, element / kInChunk) + element % kInChunk * static_cast<int>(sizeof(scalar_t));
  }

  // A[m0..m0+15][the substep]
  __device__ __forceinline__ static void load_a(uint32_t (&a)[4], const unsigned char* tile, int m0,
                                                int substep, int lane) {
    if constexpr (kAlongK) {
      ldmatrix(a, tile + chunk_offset(m0 + (lane & 15), 2 * substep + (lane >> 4)));
    } else if constexpr (kHalf) {
      const int k = 16 * substep + (lane & 7) + (lane >> 4 << 3);
      ldmatrix_trans(a, tile + chunk_offset(k, m0 / 8 + (lane >> 3 & 1)));
    } else {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        a[r] = word(tile, 8 * substep + 4 * (r / 2) + lane % 4, m0 + lane / 4 + 8 * (r % 2));
      }
    }
    if constexpr (!kHalf) {
#pragma unroll
      for (int r = 0; r < 4; ++r) a[r] = rounded(a[r]);
    }
  }

  // B[the substep][n0..n0+7] and B[the substep][n0+8..n0+15]
  __device__ __forceinline__ static void load_b(uint32_t (&b)[2][2], const unsigned char* tile, int n0,
                                                int substep, int lane) {
    uint32_t r[4];
    if constexpr (kAlongK) {
      ldmatrix(r, tile + chunk_offset(n0 + (lane & 7) + (lane >> 4 << 3), 2 * substep + (lane >> 3 & 1)));
    } else if constexpr (kHalf) {
      ldmatrix_trans(r, tile + chunk_offset(16 * substep + (lane & 15), n0 / 8 + (lane >> 4)));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        r[i] = word(tile, 8 * substep + 4 * (i % 2) + lane % 4, n0 + 8 * (i / 2) + lane / 4);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = kHalf ? r[i] : rounded(r[i]);
  }

 private:
  __device__ __forceinline__ static uint32_t word(const unsigned char* tile, int k, int mn) {
    return *reinterpret_cast<const uint32_t*>(tile + element_offset(k, mn));
  }
  __device__ __forceinline__ static uint32_t rounded(uint32_t bits) {
    return __float_as_uint(round_to_tf32(__uint_as_float(bits)));
  }
};

// d += A B of one substep.
template <typename scalar_t>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (sizeof(scalar_t) == 2) {
    mma_m16n8k16<scalar_t>(d, a, b);
  } else {
    mma_m16n8k8<tfloat32_t>(d, a, b);
  }
}

}  // namespace
}  // namespace fastnn::cuda
