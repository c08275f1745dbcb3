// The implicit GEMM of conv_implicit_gemm.cuh with its loads pipelined: on tensor cores by mma.sync (sm_80 and
// later), of operands in float16, bfloat16 or tf32, and on CUDA cores in float32; sums in float32.
//
// Who owns what: a block owns a kM x kN tile of out, of one group, class and split, a warp a part of it in
// fragments of 16 x 8. k is walked in steps of 64 bytes an operand row through kStages buffers of shared
// memory, which a loader (conv_product_loaders.cuh) fills kStages - 1 steps ahead of the multiplications, by
// cp.async where it can: one barrier a step.
//
// What bounds it: the tensor cores. The large tile does 128 x 128 x 32 multiply-adds on 16 KB of a step, 32 for
// each byte fetched from L2; an A100 does 1,024 multiply-adds a multiprocessor and cycle, so a step takes 512
// cycles, for which its two blocks' worth of copies, 256 of fragments and some 100 to 360 of index arithmetic
// (by the loader) have to hide behind. 1x1 convolutions of few channels are bound by memory instead: at C = K =
// 64 a position brings 256 bytes for 4,096 multiply-adds.
//
// Error: products are exact (tf32: of operands rounded to 11 bits), a chunk of kChunkSteps steps is one chain
// of tensor-core additions (mma.cuh says what each cuts off), and the chunks' sums are added in order in
// float32, whether one block has them all or each its own: the same bits for a sample whatever its batch, for
// any tile.
#pragma once

#include "async_copy.cuh"
#include "conv_activation.cuh"
#include "conv_gemm_problem.cuh"
#include "conv_multiply.cuh"
#include "conv_product_loaders.cuh"
#include "conv_product_plan.cuh"
#include "conv_product_tiles.cuh"
#include "conv_sum_splits.cuh"
#include "conv_tile_place.cuh"
#include "dispatch.cuh"
#include "platform.cuh"

namespace fastnn::cuda {
namespace {

// The dynamic shared memory: stages, the loader's table, the sums of chunks before where the multiplier keeps
// them there; the epilogue uses the first two again for the tile of out.
template <typename scalar_t_, typename Tile, typename Loader>
struct ProductShared {
  using scalar_t = scalar_t_;
  using Multiplier =
      typename Tile::template Multiplier<scalar_t, typename Loader::OperandA, typename Loader::OperandB>;
  static constexpr int kStageBytes = Loader::OperandA::kBytes + Loader::OperandB::kBytes;
  static constexpr int kTable = Tile::kStages * kStageBytes;
  // A line of out in the epilogue is a vector longer than the tile: of eight lines of a fragment, each four
  // words after the last, none meet in a bank.
  static constexpr int kPitchM = Tile::kM + kVecSize<scalar_t>, kPitchN = Tile::kN + kVecSize<scalar_t>;
  static constexpr int kLines =
      Tile::kN * kPitchM > Tile::kM* kPitchN ? Tile::kN * kPitchM : Tile::kM * kPitchN;
  static constexpr int kOutBytes = kLines * static_cast<int>(sizeof(scalar_t));
  static constexpr int kStepsBytes = kTable + Loader::kTableBytes;
  static constexpr int kTotals = kStepsBytes > kOutBytes ? kStepsBytes : kOutBytes;

  static int bytes(const ProductPlan& plan) {
    return kTotals + (plan.adds_chunks ? Multiplier::kTotalBytes : 0);
  }
};

// Writes the block's tile of out by way of shared memory, along the index that is contiguous in out.
template <typename scalar_t, typename Tile, typename Shared, bool kActivates, typename Multiplier>
__device__ __forceinline__ void write_out(const ConvGemm& p, const ClassView& view, const TilePlace& place,
                                          bool vectors, const scalar_t* bias,
                                          const ActivationOf<scalar_t>& activation, scalar_t* out,
                                          const Multiplier& sums, const int64_t* col_offsets,
                                          unsigned char* shared) {
  scalar_t* const tile = reinterpret_cast<scalar_t*>(shared);
  const bool by_rows = p.out_rows_first;  // lines of the tile are columns
#pragma unroll
  for (int r = 0; r < Multiplier::kRows; ++r) {
    const int row = sums.row(r);
    float shift = 0;
    if (bias != nullptr && row < place.rows_here) shift = to_acc(bias[place.group * p.rows + place.row0 + row]);
#pragma unroll
    for (int c = 0; c < Multiplier::kCols; ++c) {
      const int col = sums.col(c);
      tile[by_rows ? col * Shared::kPitchM + row : row * Shared::kPitchN + col] =
          from_acc<scalar_t>(sums.at(r, c) + shift);
    }
  }
  __syncthreads();
  if constexpr (kActivates) {
    // Element by element, where registers are scarce: the sums are spent, and their room is the loader's.
    if (activation.kind != Activation::kNone) {
      const int lines = by_rows ? Tile::kN : Tile::kM, length = by_rows ? Tile::kM : Tile::kN;
      const int pitch = by_rows ? Shared::kPitchM : Shared::kPitchN;
#pragma unroll 1
      for (int e = threadIdx.x; e < lines * length; e += Tile::kThreads) {
        scalar_t& z = tile[e / length * pitch + e % length];
        z = from_acc<scalar_t>(activation.value_by_call(to_acc(z)));
      }
      __syncthreads();
    }
  }
  out += place.group * p.out_group + view.out_shift[0] + view.out_shift[1] + view.out_shift[2] +
         place.row0 * p.out_row;
  constexpr int kVec = kVecSize<scalar_t>;
  if (vectors) {
    const int in_line = (by_rows ? Tile::kM : Tile::kN) / kVec;
    const int lines = by_rows ? place.cols_here : place.rows_here;
    const int length = by_rows ? place.rows_here : place.cols_here;
#pragma unroll 1
    for (int e = threadIdx.x; e < lines * in_line; e += Tile::kThreads) {
      const int line = e / in_line, at = e % in_line * kVec;
      if (at >= length) continue;
      const int64_t col = col_offsets[by_rows ? line : at];
      const auto value =
          load_vec<kVec>(tile + (by_rows ? line * Shared::kPitchM : line * Shared::kPitchN) + at, true);
      store_vec(out + col + (by_rows ? at : line * p.out_row), value, true);
    }
  } else {
    const int in_line = by_rows ? Tile::kM : Tile::kN;
    const int lines = by_rows ? place.cols_here : place.rows_here;
#pragma unroll 1
    for (int e = threadIdx.x; e < lines * in_line; e += Tile::kThreads) {
      const int line = e / in_line, at = e % in_line;
      const int row = by_rows ? at : line, col = by_rows ? line : at;
      if (row >= place.rows_here || col >= place.cols_here) continue;
      out[row * p.out_row + col_offsets[col]] =
          tile[by_rows ? col * Shared::kPitchM + row : row * Shared::kPitchN + col];
    }
  }
}

// What a split leaves (conv_sum_splits.cuh). Eight lanes write 32 bytes next to each other, along rows or
// columns.
template <typename Multiplier>
__device__ __forceinline__ void write_partial(const ConvGemm& p, const TilePlace& place, float* partial,
                                              const Multiplier& sums) {
#pragma unroll
  for (int r = 0; r < Multiplier::kRows; ++r) {
#pragma unroll
    for (int c = 0; c < Multiplier::kCols; ++c) {
      const int row = sums.row(r), col = sums.col(c);
      if (row < place.rows_here && col < place.cols_here) {
        partial[partial_offset(p, place.split, place.group, place.row0 + row, place.col0 + col, place.cols)] =
            sums.at(r, c);
      }
    }
  }
}

template <typename Tile, typename Loader>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kMinBlocks)
    conv_product_kernel(ConvGemm p, ProductPlan plan, const typename Loader::scalar_t* a,
                        const typename Loader::scalar_t* b, const typename Loader::scalar_t* bias,
                        typename Loader::scalar_t* out, float* partial,
                        ActivationOf<typename Loader::scalar_t> activation) {
  using scalar_t = typename Loader::scalar_t;
  using Shared = ProductShared<scalar_t, Tile, Loader>;
  FASTNN_DYNAMIC_SHARED(unsigned char, shared);
  FASTNN_SHARED(ClassView, shared_view, 1);
  FASTNN_SHARED(int64_t, out_col_offsets, Tile::kN);
  const ClassView& view = shared_view[0];
  const TilePlace place(p, shared_view[0], plan.tiles_m, plan.tiles_n, plan.splits, Tile::kM, Tile::kN);
  if (place.empty) return;
  for (int i = threadIdx.x; i < place.cols_here; i += Tile::kThreads) {
    out_col_offsets[i] = out_col_offset(p, view, place.col0 + i);
  }

  const int64_t first = place.split * plan.split_steps;
  const int64_t left = Loader::steps(p, view) - first;
  const int64_t steps = left < plan.split_steps ? left : plan.split_steps;
  float* const totals = reinterpret_cast<float*>(shared + Shared::kTotals);
  typename Shared::Multiplier sums;

  if (steps > 0) {  // uniform over the block; without it an extent may be 0 and has no digits
    const LoaderArguments<scalar_t> arguments{
        p,
        view,
        place,
        a + place.group * p.a_group + view.a_shift[0] + view.a_shift[1] + view.a_shift[2],
        b + place.group * p.b_group,
        first};
    Loader loader(arguments, shared + Shared::kTable);
    const auto tile_a = [&](int stage) { return shared + stage * Shared::kStageBytes; };
    const auto tile_b = [&](int stage) { return tile_a(stage) + Loader::OperandA::kBytes; };
#pragma unroll 1
    for (int stage = 0; stage < Tile::kStages - 1; ++stage) {
      __syncthreads();  // the loader's table
      if (stage < steps) {
        loader.issue(tile_a(stage), tile_b(stage));
        loader.finish(tile_a(stage), tile_b(stage));
      }
      cp_async_commit_group();
    }
    int stage = 0, free_stage = Tile::kStages - 1, in_chunk = 0;
#pragma unroll 1
    for (int64_t step = 0; step < steps; ++step) {
      cp_async_wait_group<Tile::kStages - 2>();
      __syncthreads();  // all have this stage, and all are done with the one before
      const bool more = step + Tile::kStages - 1 < steps;
      if (more) loader.issue(tile_a(free_stage), tile_b(free_stage));
      cp_async_commit_group();
      sums.step(tile_a(stage), tile_b(stage));
      if (more) loader.finish(tile_a(free_stage), tile_b(free_stage));
      free_stage = stage;
      stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
      if (++in_chunk == kChunkSteps && step + 1 < steps) {
        in_chunk = 0;
        sums.end_chunk(totals, step < kChunkSteps);
      }
    }
    __syncthreads();  // the stages are free for the tile of out
  }
  sums.finish(totals, steps > kChunkSteps);
  if (partial != nullptr) return write_partial(p, place, partial, sums);
  write_out<scalar_t, Tile, Shared, Loader::kActivates>(p, view, place, plan.out_vectors, bias, activation, out,
                                                        sums, out_col_offsets, shared);
}

template <typename Tile, typename Loader>
Status launch_product_tile(const ProductConv& c, const void* a, const void* b, const void* bias, void* out,
                           float* partial, Stream stream) {
  using scalar_t = typename Loader::scalar_t;
  const char* const name = Loader::kNames[c.plan.tensor_cores][c.plan.large];
  dim3 grid;
  const Status status = grid_of(c.plan.blocks, name, grid);
  if (!status.ok()) return status;
  return launch(name, conv_product_kernel<Tile, Loader>, grid, dim3(Tile::kThreads),
                ProductShared<scalar_t, Tile, Loader>::bytes(c.plan), stream, c.problem, c.plan,
                static_cast<const scalar_t*>(a), static_cast<const scalar_t*>(b),
                static_cast<const scalar_t*>(bias), static_cast<scalar_t*>(out), partial,
                ActivationOf<scalar_t>(c.problem.activation.kind, c.problem.activation.alpha));
}

template <typename scalar_t, typename Tile>
Status launch_product_loader(const ProductConv& c, const void* a, const void* b, const void* bias, void* out,
                             float* partial, Stream stream) {
  const auto run = [&](auto tag) {
    return launch_product_tile<Tile, typename decltype(tag)::type>(c, a, b, bias, out, partial, stream);
  };
  switch (c.loader) {
    case ProductLoader::kChannels:
      return run(TypeTag<ChannelsLoader<scalar_t, Tile, false>>{});
    case ProductLoader::kChannelsFilterRows:
      if constexpr (Tile::kTensorCores) return run(TypeTag<ChannelsLoader<scalar_t, Tile, true>>{});
      break;
    case ProductLoader::kPlanes:
      return run(TypeTag<PlanesLoader<scalar_t, Tile>>{});
    case ProductLoader::kElements:
      return run(TypeTag<ElementsLoader<scalar_t, Tile>>{});
    case ProductLoader::kPositionVectors:
      return run(TypeTag<PositionVectorsLoader<scalar_t, Tile>>{});
    case ProductLoader::kPositionElements:
      return run(TypeTag<PositionElementsLoader<scalar_t, Tile>>{});
  }
  return Status::error("no such kernel", "conv_product");
}

}  // namespace
}  // namespace fastnn::cuda
