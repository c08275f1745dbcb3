// The tiled implicit GEMM behind the three directions of convolution.
//
//   out[row, col] = bias[row] + sum over k of A[row, k] * B[k, col]        once per group
//
//                  row              col                  k                     A       B (gathered)
//   forward        filter           n, position of y     channel, tap          w       x
//   grad_input     channel          n, position of x     filter, tap           w       grad_y
//   grad_weight    filter           channel, tap         n, position of y      grad_y  x
//
// "Implicit": B, the unfolded operand, is never stored; its elements are fetched from where they are. In all
// three directions A and out are affine in the digits of their indices, and B's position in each dimension is
//   col_step * col + depth_step * k + origin,
// so one kernel and one parameter struct serve them; nothing in the kernel knows the direction. The data
// gradient of a strided convolution splits the positions of x into residue classes modulo the stride: within
// one class the taps that meet a position are the same for all, every step above is whole, and no
// multiplication by a hole of zeros is made. Classes are folded into the grid.
//
// Who owns what: a block owns one kBlockM x kBlockN tile of out (of one group, class and split); it walks k in
// steps of kBlockK through two buffers of shared memory, fetching the next step into registers before the
// multiplications of this one. A thread owns a kThreadM x kThreadN part of the tile in registers.
// Consecutive threads fetch along whichever index of the operand has the better stride, and write likewise, so
// NCHW, channels_last, sliced and expanded operands are all coalesced where their strides allow it.
//
// What bounds it: multiply-adds on the CUDA cores, and the index arithmetic around each element fetched: this
// is the kernel of float64, of fewer than 8 rows and of coordinates beyond 32 bits; conv_product.cuh has the
// other products. Per step a tile does kBlockM * kBlockN * kBlockK multiply-adds on (kBlockM + kBlockN) *
// kBlockK fetched elements: 32 and 14 multiply-adds an element for the tiles Medium and FewRows.
//
// Which tile: see choose_plan().
//
// Error: forward and the data gradient sum chunks of kChunkDepth in chains of multiply-adds in acc_t, in the
// order of k, and add the chunks' sums in order; the weight gradient cuts k into `splits` chains of at most
// split_depth where tiles are fewer than multiprocessors, which are added likewise. With n chains of length d
//   |error| <= (d + n) * eps(acc_t) * sum over k |A| |B|, then one rounding to scalar_t.
// Chains depend on the shape alone, the order of k on shape and strides: the same bits on every device and run,
// and but for the weight gradient for a sample in any batch. A tap that falls on padding multiplies its weight
// by 0: finite weights give exact zeros, NaN and Inf give NaN.
#pragma once

#include <type_traits>

#include "conv_activation.cuh"
#include "conv_gemm_problem.cuh"
#include "conv_index.cuh"
#include "conv_sum_splits.cuh"
#include "conv_tile_place.cuh"
#include "dispatch.cuh"
#include "platform.cuh"

namespace fastnn::cuda {
namespace {

// A fragment's elements lie in runs of four, a run for each thread before the next run of any: so the 16-byte
// reads of a warp fall on consecutive addresses.
template <int kThreads>
__device__ __forceinline__ int owned_index(int thread, int element) {
  return (element / 4) * (4 * kThreads) + thread * 4 + element % 4;
}

template <typename acc_t>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(acc_t);
  acc_t value[kSize];
};

template <int kCount, int kThreads, typename acc_t>
__device__ __forceinline__ void read_fragment(const acc_t* line, int thread, acc_t (&fragment)[kCount]) {
#pragma unroll
  for (int e = 0; e < kCount; e += Pack<acc_t>::kSize) {
    const auto pack = *reinterpret_cast<const Pack<acc_t>*>(line + owned_index<kThreads>(thread, e));
#pragma unroll
    for (int i = 0; i < Pack<acc_t>::kSize; ++i) fragment[e + i] = pack.value[i];
  }
}

template <typename scalar_t, typename Tile, typename coord_t>
__global__ void __launch_bounds__(Tile::kThreads, Tile::min_blocks(sizeof(acc_type<scalar_t>)))
    conv_implicit_gemm_kernel(ConvGemm p, GemmPlan plan, const scalar_t* __restrict__ a,
                              const scalar_t* __restrict__ b, const scalar_t* __restrict__ bias,
                              scalar_t* __restrict__ out, acc_type<scalar_t>* __restrict__ partial) {
  using acc_t = acc_type<scalar_t>;
  using unsigned_t = std::make_unsigned_t<coord_t>;
  constexpr int kBlockM = Tile::kBlockM, kBlockN = Tile::kBlockN, kBlockK = Tile::kBlockK;
  constexpr int kThreadM = Tile::kThreadM, kThreadN = Tile::kThreadN, kThreads = Tile::kThreads;
  constexpr int kPitchA = Tile::kPitchA, kPitchB = Tile::kPitchB;

  FASTNN_SHARED(Pack<acc_t>, shared_tiles, 2 * Tile::kBufferSize / Pack<acc_t>::kSize);
  FASTNN_SHARED(DepthEntry<coord_t>, depth_table, 2 * kBlockK);
  FASTNN_SHARED(ColEntry<coord_t>, col_table, kBlockN);
  FASTNN_SHARED(int64_t, row_offsets, kBlockM);      // into A
  FASTNN_SHARED(int64_t, out_col_offsets, kBlockN);  // into out
  FASTNN_SHARED(ClassView, shared_view, 1);
  FASTNN_DYNAMIC_SHARED(acc_t, totals);  // of the chunks before this one, a line of threads for each element
  acc_t* const tiles = reinterpret_cast<acc_t*>(shared_tiles);
  ClassView& view = shared_view[0];

  const int t = threadIdx.x;
  const TilePlace place(p, view, plan.tiles_m, plan.tiles_n, plan.splits, kBlockM, kBlockN);
  if (place.empty) return;
  const int64_t row0 = place.row0, col0 = place.col0, group = place.group, split = place.split;
  const int64_t cols = place.cols;
  const int rows_here = place.rows_here, cols_here = place.cols_here;

  // Rows and columns past the end repeat the last one: their sums are computed and never written.
  for (int i = t; i < kBlockM; i += kThreads) {
    row_offsets[i] = (row0 + (i < rows_here ? i : rows_here - 1)) * p.a_row;
  }
  for (int i = t; i < kBlockN; i += kThreads) {
    const int64_t col = col0 + (i < cols_here ? i : cols_here - 1);
    col_table[i] = col_entry<coord_t>(p, view, col);
    out_col_offsets[i] = out_col_offset(p, view, col);
  }

  a += group * p.a_group + view.a_shift[0] + view.a_shift[1] + view.a_shift[2];
  b += group * p.b_group;

  const int64_t depth_begin = split * plan.split_depth;
  const int64_t depth_left = view.depth.size() > depth_begin ? view.depth.size() - depth_begin : 0;
  const int64_t depth_here = depth_left < plan.split_depth ? depth_left : plan.split_depth;
  const int64_t steps = ceil_div(depth_here, kBlockK);

  acc_t acc[kThreadM][kThreadN];
#pragma unroll
  for (int i = 0; i < kThreadM; ++i) {
#pragma unroll
    for (int j = 0; j < kThreadN; ++j) acc[i][j] = 0;
  }
  const int thread_n = t % Tile::kThreadsN, thread_m = t / Tile::kThreadsN;

  if (steps > 0) {  // uniform over the block; without it an extent may be 0 and has no digits
    // The first kBlockK threads keep the table of the depth, two steps ahead of the multiplications.
    Digits<coord_t> depth{}, depth_advance{};
    if (t < kBlockK) {
      depth = digits_of<coord_t>(depth_begin + t, view.depth);
      depth_advance = digits_of<coord_t>(kBlockK, view.depth);
    }
    const auto tabulate = [&](int slot) {
      if (t >= kBlockK) return;
      depth_table[slot * kBlockK + t] = depth_entry(p, depth);
      advance(depth, depth_advance, view.depth);
    };
    tabulate(0);
    tabulate(1);
    __syncthreads();

    // Element i of a thread lies at (a_row + i * a_row_step, a_k + i * a_k_step) of A's tile; likewise B.
    const int a_row = p.a_rows_first ? t % kBlockM : t / kBlockK;
    const int a_k = p.a_rows_first ? t / kBlockM : t % kBlockK;
    const int b_col = p.b_cols_first ? t % kBlockN : t / kBlockK;
    const int b_k = p.b_cols_first ? t / kBlockN : t % kBlockK;
    const int a_row_step = p.a_rows_first ? 0 : kThreads / kBlockK;
    const int a_k_step = p.a_rows_first ? kThreads / kBlockM : 0;
    const int b_col_step = p.b_cols_first ? 0 : kThreads / kBlockK;
    const int b_k_step = p.b_cols_first ? kThreads / kBlockN : 0;
    const ColEntry<coord_t> my_col = col_table[b_col];
    const int64_t my_row = row_offsets[a_row];

    // Kept as scalar_t: a conversion here would wait for the load.
    scalar_t a_next[Tile::kLoadsA], b_next[Tile::kLoadsB];
    const scalar_t zero = from_acc<scalar_t>(acc_t(0));
    const auto fetch_b = [&](const DepthEntry<coord_t>& entry, const ColEntry<coord_t>& col, bool valid) {
      const bool inside = static_cast<unsigned_t>(entry.d + col.d) < static_cast<unsigned_t>(p.limit[0]) &&
                          static_cast<unsigned_t>(entry.h + col.h) < static_cast<unsigned_t>(p.limit[1]) &&
                          static_cast<unsigned_t>(entry.w + col.w) < static_cast<unsigned_t>(p.limit[2]);
      return valid && inside ? b[entry.b + col.b] : zero;
    };
    // The uniform branches keep what does not change in a register: a table read that differs from thread to
    // thread takes several cycles of shared memory, one that is the same for a warp takes one.
    const auto fetch = [&](int slot, int64_t step) {
      const DepthEntry<coord_t>* table = depth_table + slot * kBlockK;
      const int64_t left = depth_here - step * kBlockK;
      const int valid = static_cast<int>(left < kBlockK ? left : kBlockK);
      if (p.a_rows_first) {
#pragma unroll
        for (int i = 0; i < Tile::kLoadsA; ++i) {
          const int k = a_k + i * (kThreads / kBlockM);
          a_next[i] = k < valid ? a[my_row + table[k].a] : zero;
        }
      } else {
        const int64_t offset = table[a_k].a;
#pragma unroll
        for (int i = 0; i < Tile::kLoadsA; ++i) {
          a_next[i] = a_k < valid ? a[row_offsets[a_row + i * (kThreads / kBlockK)] + offset] : zero;
        }
      }
      if (p.b_cols_first) {
#pragma unroll
        for (int i = 0; i < Tile::kLoadsB; ++i) {
          const int k = b_k + i * (kThreads / kBlockN);
          b_next[i] = fetch_b(table[k], my_col, k < valid);
        }
      } else {
        const DepthEntry<coord_t> entry = table[b_k];
#pragma unroll
        for (int i = 0; i < Tile::kLoadsB; ++i) {
          b_next[i] = fetch_b(entry, col_table[b_col + i * (kThreads / kBlockK)], b_k < valid);
        }
      }
    };
    const auto store = [&](int slot) {
      acc_t* const tile_a = tiles + slot * Tile::kBufferSize;
      acc_t* const tile_b = tile_a + kBlockK * kPitchA;
#pragma unroll
      for (int i = 0; i < Tile::kLoadsA; ++i) {
        tile_a[(a_k + i * a_k_step) * kPitchA + a_row + i * a_row_step] = to_acc(a_next[i]);
      }
#pragma unroll
      for (int i = 0; i < Tile::kLoadsB; ++i) {
        tile_b[(b_k + i * b_k_step) * kPitchB + b_col + i * b_col_step] = to_acc(b_next[i]);
      }
    };

    const auto total = [&](int i, int j) -> acc_t& { return totals[(i * kThreadN + j) * kThreads + t]; };
    const int chunk_steps = static_cast<int>(plan.chunk_depth / kBlockK);
    int in_chunk = 0;
    bool first_chunk = true;

    fetch(0, 0);
    store(0);
    __syncthreads();
    for (int64_t step = 0; step < steps; ++step) {
      const int slot = static_cast<int>(step & 1);
      const bool more = step + 1 < steps;
      if (more) fetch(slot ^ 1, step + 1);
      const acc_t* const tile_a = tiles + slot * Tile::kBufferSize;
      const acc_t* const tile_b = tile_a + kBlockK * kPitchA;
#pragma unroll
      for (int k = 0; k < kBlockK; ++k) {
        acc_t fragment_a[kThreadM], fragment_b[kThreadN];
        read_fragment<kThreadM, Tile::kThreadsM>(tile_a + k * kPitchA, thread_m, fragment_a);
        read_fragment<kThreadN, Tile::kThreadsN>(tile_b + k * kPitchB, thread_n, fragment_b);
#pragma unroll
        for (int i = 0; i < kThreadM; ++i) {
#pragma unroll
          for (int j = 0; j < kThreadN; ++j) acc[i][j] += fragment_a[i] * fragment_b[j];
        }
      }
      if (more) {
        store(slot ^ 1);
        tabulate(slot);  // of step + 2; this slot's table was last read while `step` was fetched
      }
      if (more && ++in_chunk == chunk_steps) {
#pragma unroll
        for (int i = 0; i < kThreadM; ++i) {
#pragma unroll
          for (int j = 0; j < kThreadN; ++j) {
            total(i, j) = first_chunk ? acc[i][j] : total(i, j) + acc[i][j];
            acc[i][j] = 0;
          }
        }
        in_chunk = 0;
        first_chunk = false;
      }
      __syncthreads();
    }
    if (!first_chunk) {
#pragma unroll
      for (int i = 0; i < kThreadM; ++i) {
#pragma unroll
        for (int j = 0; j < kThreadN; ++j) acc[i][j] += total(i, j);
      }
    }
  }

  // Out through shared memory, one line of every thread's part at a time, so that consecutive threads write
  // along the index that is contiguous in out.
  out += group * p.out_group + view.out_shift[0] + view.out_shift[1] + view.out_shift[2];
  const auto write = [&](int row, int col, acc_t value) {
    if (row >= rows_here || col >= cols_here) return;
    const int64_t r = row0 + row;
    if (partial != nullptr) {
      partial[partial_offset(p, split, group, r, col0 + col, cols)] = value;
    } else {
      if (bias != nullptr) value += to_acc(bias[group * p.rows + r]);
      out[r * p.out_row + out_col_offsets[col]] = activated(p.activation, from_acc<scalar_t>(value));
    }
  };
  if (p.out_rows_first) {
#pragma unroll
    for (int j = 0; j < kThreadN; ++j) {
#pragma unroll
      for (int i = 0; i < kThreadM; ++i) {
        tiles[thread_n * kPitchA + owned_index<Tile::kThreadsM>(thread_m, i)] = acc[i][j];
      }
      __syncthreads();
#pragma unroll 1
      for (int e = t; e < Tile::kThreadsN * kBlockM; e += kThreads) {
        const int line = e / kBlockM, row = e % kBlockM;
        write(row, owned_index<Tile::kThreadsN>(line, j), tiles[line * kPitchA + row]);
      }
      __syncthreads();
    }
  } else {
#pragma unroll
    for (int i = 0; i < kThreadM; ++i) {
#pragma unroll
      for (int j = 0; j < kThreadN; ++j) {
        tiles[thread_m * kPitchB + owned_index<Tile::kThreadsN>(thread_n, j)] = acc[i][j];
      }
      __syncthreads();
#pragma unroll 1
      for (int e = t; e < Tile::kThreadsM * kBlockN; e += kThreads) {
        const int line = e / kBlockN, col = e % kBlockN;
        write(owned_index<Tile::kThreadsM>(line, i), col, tiles[line * kPitchB + col]);
      }
      __syncthreads();
    }
  }
}

template <typename scalar_t>
Status launch_gemm(const ConvGemm& p, const void* a, const void* b, const void* bias, void* out,
                   void* workspace, Stream stream) {
  using acc_t = acc_type<scalar_t>;
  constexpr const char* kName = "conv_implicit_gemm_kernel";
  const GemmPlan plan = choose_plan(p);
  dim3 grid;
  Status status = grid_of(plan.blocks, kName, grid);
  if (!status.ok()) return status;
  acc_t* const partial = plan.splits > 1 ? static_cast<acc_t*>(workspace) : nullptr;
  const auto run = [&](auto kernel, int threads) {
    const size_t totals = plan.chunk_depth > 0 ? plan.block_elements() * sizeof(acc_t) : 0;
    return launch(kName, kernel, grid, dim3(threads), totals, stream, p, plan, static_cast<const scalar_t*>(a),
                  static_cast<const scalar_t*>(b), static_cast<const scalar_t*>(bias),
                  static_cast<scalar_t*>(out), partial);
  };
  if (p.wide) {
    status = run(conv_implicit_gemm_kernel<scalar_t, MediumTile, int64_t>, MediumTile::kThreads);
  } else if (plan.tile == TileChoice::kFewRows) {
    status = run(conv_implicit_gemm_kernel<scalar_t, FewRowsTile, int32_t>, FewRowsTile::kThreads);
  } else {
    status = run(conv_implicit_gemm_kernel<scalar_t, MediumTile, int32_t>, MediumTile::kThreads);
  }
  if (!status.ok() || partial == nullptr) return status;
  return launch_sum_splits<scalar_t>(p, plan.splits, partial, bias, out, stream);
}

}  // namespace
}  // namespace fastnn::cuda
