// The products of a recurrence's step (recurrence_plan.cuh): weights in shared memory times rows of state in
// global memory, one row a sample, which go straight to the registers of the warps that multiply them. There is
// nothing to gain from shared memory for them: a warp has a part of the depth to itself, or shares it with few
// others, who meet it in L1.
//
// A lane loads 16 bytes of a row, and four lanes a chunk of 64. What lies in an operand's place of depth is
// free, as long as it is the same for weights and state. On tensor cores a lane's 16 bytes are those of its
// places in two mma (m16n8k16 of halves, m16n8k8 of tf32), so that neither operand has to be exchanged among
// lanes, and weights lie in the order of the registers that take them. On CUDA cores a lane has rows r, r + 8,
// .. (r = lane % 8) and every fourth vector of the depth; four lanes' sums are added at the end.
//
// Per chunk of a tile, on tensor cores: 1 KB of weights from shared memory and 512 bytes of state for each 8
// samples, 2 mma for each; in float32 on CUDA cores, with 32 rows: 2 KB and 512 bytes, 128 FMAs of a warp.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cell_math.cuh"
#include "dispatch.cuh"
#include "mma.cuh"
#include "recurrence_plan.cuh"
#include "vec.cuh"

namespace fastnn::cuda::recurrence {

// Elements in a register of an mma.
template <typename scalar_t>
inline constexpr int kWordElements = 4 / static_cast<int>(sizeof(scalar_t));
template <typename scalar_t>
inline constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(scalar_t));

// 16 bytes as an mma takes them: four registers.
template <typename scalar_t>
__device__ __forceinline__ Vec<uint32_t, 4> load_words(const scalar_t* p) {
  return load_vec<4>(reinterpret_cast<const uint32_t*>(p), true);
}
template <typename scalar_t>
__device__ __forceinline__ Vec<uint32_t, 4> load_state(const scalar_t* p) {
  auto words = load_words(p);
  if constexpr (std::is_same_v<scalar_t, float>) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words.v[i] = __float_as_uint(round_to_tf32(__uint_as_float(words.v[i])));
  }
  return words;
}
// Of the depth that one register of four lanes has: 16 of halves, 8 of tf32.
template <typename scalar_t>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<scalar_t, float>) {
    mma_m16n8k8<tfloat32_t>(d, a, b);
  } else {
    mma_m16n8k16<scalar_t>(d, a, b);
  }
}

// Where shared memory has the element of a row and a place of the depth.
template <typename scalar_t>
__device__ __forceinline__ int weight_place(const Product& product, int row, int k) {
  constexpr int kVec = kVecSize<scalar_t>;
  const int chunk = k / kChunk<scalar_t>, tile = row / product.tile_rows, r = row % product.tile_rows;
  const int tile_chunk = tile * product.chunks + chunk;
  const int vec = k % kChunk<scalar_t> / kVec, element = k % kVec;
  if constexpr (sizeof(scalar_t) <= 4) {
    if (product.tensor_cores) {
      // [tile][chunk][mma of two][lane][register of A][element]
      constexpr int kElements = kWordElements<scalar_t>;
      const int lane = r % 8 * 4 + vec, word = element / kElements, reg = word % 2 * 2 + r / 8;
      return (((tile_chunk * 2 + word / 2) * kWarpSize + lane) * 4 + reg) * kElements + element % kElements;
    }
  }
  // [tile][chunk][vector of four][row][element]
  return ((tile_chunk * 4 + vec) * product.tile_rows + r) * kVec + element;
}

// As the product takes it.
template <typename scalar_t>
__device__ __forceinline__ scalar_t operand(const Product& product, scalar_t v) {
  if constexpr (std::is_same_v<scalar_t, float>) return product.tensor_cores ? round_to_tf32(v) : v;
  return v;
}

// Puts the block's weights into shared memory, by vectors that memory has as neighbours: along the depth, or
// along the rows. source(row, k, count) is where the first of them lies; `count` of them exist, zeros fill up.
// `aligned`: whether whole vectors can be moved in one piece.
template <bool kAlongDepth, typename scalar_t, typename F>
__device__ __forceinline__ void pack_weights(const Product& product, scalar_t* weights, bool aligned,
                                             const F& source) {
  constexpr int kVec = kVecSize<scalar_t>;
  const int depth = product.chunks * kChunk<scalar_t>, rows = product.tiles * product.tile_rows;
  const int vecs = (kAlongDepth ? depth : rows) / kVec, lines = kAlongDepth ? rows : depth;
#pragma unroll 4  // loads under way
  for (int i = static_cast<int>(threadIdx.x); i < lines * vecs; i += kThreads) {
    const int line = i / vecs, first = i % vecs * kVec;
    const int row = kAlongDepth ? line : first, k = kAlongDepth ? first : line;
    int count = 0;
    const scalar_t* const from = source(row, k, count);
    const auto loaded =
        aligned && count >= kVec ? load_vec<kVec>(from, true) : load_vec_partial<kVec>(from, count);
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      weights[weight_place<scalar_t>(product, row + (kAlongDepth ? 0 : e), k + (kAlongDepth ? e : 0))] =
          operand(product, loaded.v[e]);
    }
  }
}

struct WarpShare {
  int depth_warp, first_tile, last_tile, first_chunk, last_chunk;
  __device__ __forceinline__ explicit WarpShare(const Product& product) {
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize, row_warp = warp % product.row_warps;
    depth_warp = warp / product.row_warps;
    first_tile = product.tiles * row_warp / product.row_warps;
    last_tile = product.tiles * (row_warp + 1) / product.row_warps;
    first_chunk = product.chunks * depth_warp / product.depth_warps;
    last_chunk = product.chunks * (depth_warp + 1) / product.depth_warps;
  }
};

// kRowTiles from `tile` on, times kTiles of 8 samples, on tensor cores. `sums` are those of the warp's part of
// the depth: [sample][row].
template <int kRowTiles, int kTiles, typename scalar_t>
__device__ __forceinline__ void multiply_mma(const Product& product, const WarpShare& share, int tile,
                                             const scalar_t* state, int pitch, const scalar_t* weights,
                                             float* sums) {
  constexpr int kVec = kVecSize<scalar_t>;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, g = lane / 4, t = lane % 4;
  float d[kRowTiles][kTiles][4] = {};
  const scalar_t* const from = state + g * static_cast<int64_t>(pitch) + t * kVec;
  const scalar_t* const of_tile = weights + (tile * product.chunks * 2 * kWarpSize + lane) * kVec;
#pragma unroll(kLoadsAhead / kTiles)
  for (int chunk = share.first_chunk; chunk < share.last_chunk; ++chunk) {
    Vec<uint32_t, 4> b[kTiles];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      b[i] = load_state(from + i * 8 * static_cast<int64_t>(pitch) + chunk * kChunk<scalar_t>);
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto a = load_words(of_tile + ((r * product.chunks + chunk) * 2 + half) * kWarpSize * kVec);
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          const uint32_t b_words[2] = {b[i].v[2 * half], b[i].v[2 * half + 1]};
          multiply_add<scalar_t>(d[r][i], a.v, b_words);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sums[(8 * i + 2 * t + e % 2) * product.pitch + (tile + r) * 16 + g + e / 2 * 8] = d[r][i][e];
      }
    }
  }
}

// All of the warp's tiles: as many at a time as registers hold, so that state which has been loaded serves all.
template <int kTiles, typename scalar_t>
__device__ __forceinline__ void multiply_tiles(const Product& product, const WarpShare& share,
                                               const scalar_t* state, int pitch, const scalar_t* weights,
                                               float* sums) {
  for (int tile = share.first_tile; tile < share.last_tile;) {
    const int left = share.last_tile - tile;
    if (left >= kRowTilesAtOnce) {
      multiply_mma<kRowTilesAtOnce, kTiles>(product, share, tile, state, pitch, weights, sums);
      tile += kRowTilesAtOnce;
    } else if (left >= 2) {
      multiply_mma<2, kTiles>(product, share, tile, state, pitch, weights, sums);
      tile += 2;
    } else {
      multiply_mma<1, kTiles>(product, share, tile, state, pitch, weights, sums);
      tile += 1;
    }
  }
}

// kSamples, on CUDA cores, of tiles of 8 * kRows.
template <int kRows, int kSamples, typename scalar_t, typename acc_t>
__device__ __forceinline__ void multiply_fma(const Product& product, const WarpShare& share,
                                             const scalar_t* state, int pitch, const scalar_t* weights,
                                             acc_t* sums) {
  constexpr int kVec = kVecSize<scalar_t>, kTileRows = 8 * kRows;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, r = lane % 8, quarter = lane / 8;
  for (int tile = share.first_tile; tile < share.last_tile; ++tile) {
    acc_t d[kRows][kSamples] = {};
    const scalar_t* const from = state + quarter * kVec;
    const scalar_t* const of_tile = weights + ((tile * product.chunks * 4 + quarter) * kTileRows + r) * kVec;
#pragma unroll 2  // two chunks' loads under way
    for (int chunk = share.first_chunk; chunk < share.last_chunk; ++chunk) {
      Vec<scalar_t, kVec> b[kSamples];
#pragma unroll
      for (int s = 0; s < kSamples; ++s) {
        b[s] = load_vec<kVec>(from + s * static_cast<int64_t>(pitch) + chunk * kChunk<scalar_t>, true);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const auto a = load_vec<kVec>(of_tile + (chunk * 4 * kTileRows + 8 * i) * kVec, true);
#pragma unroll
        for (int e = 0; e < kVec; ++e) {
#pragma unroll
          for (int s = 0; s < kSamples; ++s) d[i][s] += to_acc(a.v[e]) * to_acc(b[s].v[e]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int s = 0; s < kSamples; ++s) {
        acc_t sum = d[i][s];
        sum += __shfl_xor_sync(kFullWarp, sum, 8);
        sum += __shfl_xor_sync(kFullWarp, sum, 16);
        if (s % 4 == quarter) sums[s * product.pitch + tile * kTileRows + 8 * i + r] = sum;
      }
    }
  }
}

template <int kRows, typename scalar_t, typename acc_t>
__device__ __forceinline__ void multiply_rows(const Product& product, const WarpShare& share,
                                              const scalar_t* state, int pitch, int samples,
                                              const scalar_t* weights, acc_t* sums) {
  constexpr int kAtOnce = kSamplesAtOnce<sizeof(scalar_t)>;
  if (samples <= 2) {
    multiply_fma<kRows, 2>(product, share, state, pitch, weights, sums);
    return;
  }
  for (int first = 0; first < samples; first += kAtOnce) {
    multiply_fma<kRows, kAtOnce>(product, share, state + first * static_cast<int64_t>(pitch), pitch, weights,
                                 sums + first * product.pitch);
  }
}

// The sums of `samples` rows of state, of at most a pass; rows up to the next multiple of 8 are read. `shared`
// is the block's shared memory.
template <typename scalar_t>
__device__ __forceinline__ void multiply(const Plan& plan, const Product& product, const scalar_t* state,
                                         int pitch, int samples, unsigned char* shared) {
  using acc_t = acc_type<scalar_t>;
  const WarpShare share(product);
  if (samples <= 0 || share.depth_warp >= product.depth_warps) return;
  const auto* const weights = reinterpret_cast<const scalar_t*>(shared + product.weights_at);
  acc_t* const sums =
      reinterpret_cast<acc_t*>(shared + product.sums_at) + share.depth_warp * plan.pass_samples * product.pitch;
  if constexpr (sizeof(scalar_t) <= 4) {
    if (product.tensor_cores) {
      if (samples <= 8) {
        multiply_tiles<1>(product, share, state, pitch, weights, sums);
      } else if (samples <= 16) {
        multiply_tiles<2>(product, share, state, pitch, weights, sums);
      } else if (samples <= 24) {
        multiply_tiles<3>(product, share, state, pitch, weights, sums);
      } else {
        multiply_tiles<4>(product, share, state, pitch, weights, sums);
      }
      return;
    }
  }
  if constexpr (sizeof(scalar_t) >= 4) {
    if (product.tile_rows == 8) {
      multiply_rows<1>(product, share, state, pitch, samples, weights, sums);
    } else if (product.tile_rows == 16) {
      multiply_rows<2>(product, share, state, pitch, samples, weights, sums);
    } else {
      multiply_rows<4>(product, share, state, pitch, samples, weights, sums);
    }
  }
}

// The sums of rows first_row .. first_row + count - 1 of a sample of the pass: those of the warps, in their
// order.
template <int kMost, typename acc_t>
__device__ __forceinline__ void add_sums(const Plan& plan, const Product& product, int sample, int first_row,
                                         int count, const unsigned char* shared, acc_t (&total)[kMost]) {
  const acc_t* sums =
      reinterpret_cast<const acc_t*>(shared + product.sums_at) + sample * product.pitch + first_row;
#pragma unroll
  for (int i = 0; i < kMost; ++i) total[i] = acc_t(0);
  for (int part = 0; part < product.depth_warps; ++part, sums += plan.pass_samples * product.pitch) {
    if constexpr (kMost % 2 == 0) {
      if (count == kMost) {  // rows of a unit are neighbours: one access
        const auto v = load_vec<kMost>(sums, true);
#pragma unroll
        for (int i = 0; i < kMost; ++i) total[i] += v.v[i];
        continue;
      }
    }
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (i < count) total[i] += sums[i];
    }
  }
}

}  // namespace fastnn::cuda::recurrence
