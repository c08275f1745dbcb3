// A reduction per channel and a map of elements (channels.cuh) in launches of their own, for tensors of any
// size.
//
//   planes  Reduction: a block owns one channel, or a range of its vectors, and its threads run along S and on
//           into the next image. Map: one flat run over the whole array; a vector may cross from one channel
//           into the next, so that any S moves 16 bytes at a time.
//   rows    A block owns a tile of at most 32 vectors of channels and every splits-th group of rows. Its
//           threads' constants go through shared memory, which one coalesced read of each fills: a thread has 2
//           to 8 channels, and reading their constants by itself it would leave gaps between lanes.
//
// What bounds them is memory: 1 to 3 reads and up to 2 writes of an element, for 5 to 25 instructions. What
// blocks leave of a channel, and a launch of combine_partials reads, is arrays of numbers, one for each block
// and number: 3 numbers (statistics) or 2 (backward) a channel and block, beside the 4 rows of 32 threads or
// more that a block has read for them: under 1 % of all bytes.
//
// A map begins where its reduction ended: in rows with the last row, in planes with the last image. What the L2
// still holds of the tensors is then not read from memory again: of a tensor of twice the L2's size, up to a
// half. (Where a channel is not split over blocks the reduction ends with the last channels instead, and little
// is gained; those are tensors of more than a thousand channels.)
#pragma once

#include <type_traits>

#include "channels.cuh"

namespace fastnn::cuda {

// The kernels' launch bounds ask for one block per multiprocessor and not for the compiler's own guess, with
// which it spills in order to fit eight; at 32 to 120 registers two to eight fit anyway.
inline constexpr int kPlaneThreads = 256;
inline constexpr int kMapBlocks = 2048;  // two waves of full blocks on the largest device; the rest is a loop

struct PlanePlan {
  int threads;
  int64_t vectors;    // of one channel
  int64_t per_block;  // of those, for each of `splits` blocks
  int64_t splits;
};

inline PlanePlan plan_planes(const ChannelShape& shape, int vec, int unroll) {
  PlanePlan plan;
  plan.vectors = shape.N * (shape.S / vec);
  plan.threads = kWarpSize;
  while (plan.threads < kPlaneThreads && int64_t{plan.threads} * unroll < plan.vectors) plan.threads *= 2;
  const int64_t step = int64_t{plan.threads} * unroll;
  const int64_t useful = ceil_div(plan.vectors, step);
  const int64_t wanted = ceil_div(kTargetBlocks, shape.C > 0 ? shape.C : 1);
  const int64_t splits = useful < wanted ? useful : wanted;
  plan.per_block = splits > 1 ? ceil_div(useful, splits) * step : plan.vectors;
  plan.splits = splits > 1 ? ceil_div(plan.vectors, plan.per_block) : 1;
  return plan;
}

template <typename Op, int kVec, typename Finish>
__global__ void __launch_bounds__(kPlaneThreads, 1)
    reduce_planes_kernel(Op op, Finish finish, int64_t C, int64_t S, PlanePlan plan, Divisor vectors_in_plane,
                         bool aligned, ColumnArrays<typename Op::Partial> partials) {
  constexpr int kUnroll = kReduceUnroll<Op, kVec>;
  FASTNN_SHARED(typename Op::Partial, scratch, kWarpSize);
  const int64_t c = blockIdx.x;
  const typename Op::Channel channel[1] = {op.channel(c)};
  const int64_t begin = blockIdx.y * plan.per_block;
  const int64_t end = plan.vectors - begin < plan.per_block ? plan.vectors : begin + plan.per_block;
  const auto element = [&](int64_t vector) {
    const int64_t n = vectors_in_plane.take(vector);
    return (n * C + c) * S + vector * kVec;
  };

  typename Op::State state[1]{};
  int64_t seen = 0;
  int64_t j = begin + threadIdx.x;
  for (; j + (kUnroll - 1) * int64_t{blockDim.x} < end; j += kUnroll * int64_t{blockDim.x}) {
    add_from_memory<kVec, kUnroll>(
        op, aligned, [&](int u) { return element(j + u * int64_t{blockDim.x}); }, seen, channel, state);
    seen += kUnroll * kVec;
  }
  for (; j < end; j += blockDim.x) {
    add_from_memory<kVec, 1>(op, aligned, [&](int) { return element(j); }, seen, channel, state);
    seen += kVec;
  }

  const auto total = block_reduce(op.partial(state[0], seen), scratch);
  if (threadIdx.x != 0) return;
  if (gridDim.y == 1) {
    finish(c, total);
  } else {
    partials.set(blockIdx.y, c, total);
  }
}

// Room for the constants of 32 vectors of channels, aligned for reads by vectors.
template <typename acc_t>
using StagedNumbers = Vec<acc_t, kVecSize<acc_t>>;
template <typename Op, int kVec>
inline constexpr int kStagedNumbers =
    kWarpSize * kVec * static_cast<int>(sizeof(typename Op::Channel)) / kVecBytes;

// Constants of the block's tile of channels, through shared memory into the threads that need them. Every
// thread takes part.
template <int kVec, typename Op>
__device__ __forceinline__ void stage_channels(const Op& op, int64_t C, int64_t sample,
                                               StagedNumbers<typename Op::acc_t>* memory,
                                               typename Op::Channel (&channel)[kVec]) {
  if constexpr (std::is_empty_v<typename Op::Channel>) return;
  using Staged = SharedChannels<typename Op::Channel, typename Op::acc_t, kVec>;
  const Staged staged{reinterpret_cast<typename Op::acc_t*>(memory), static_cast<int>(blockDim.x)};
  const int width = staged.columns * kVec, column = static_cast<int>(threadIdx.x);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * width;
  for (int i = thread_in_block(); i < width && first + i < C; i += kColumnThreads) {
    staged.set(i, op.channel(sample * C + first + i));
  }
  __syncthreads();
  if (first + column * kVec >= C) return;
#pragma unroll
  for (int g = 0; g < kVec; g += Staged::kGroup) {
    typename Op::Channel group[Staged::kGroup];
    staged.get(column, g, group);
#pragma unroll
    for (int k = 0; k < Staged::kGroup; ++k) channel[g + k] = group[k];
  }
}

template <typename Op, int kVec, typename Finish>
__global__ void __launch_bounds__(kColumnThreads, 1)
    reduce_rows_kernel(Op op, Finish finish, int64_t rows, int64_t C, int64_t first_sample, bool aligned,
                       ColumnArrays<typename Op::Partial> partials) {
  constexpr int kUnroll = kReduceUnroll<Op, kVec>;
  FASTNN_SHARED(typename Op::Partial, scratch, kColumnThreads);
  constexpr int kStaged = kStagedNumbers<Op, kVec>;
  FASTNN_SHARED(StagedNumbers<typename Op::acc_t>, staged, kStaged);
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kVec;
  const int64_t sample = first_sample + blockIdx.z, begin = sample * rows * C;
  typename Op::Channel channel[kVec];
  stage_channels(op, C, sample, staged, channel);

  typename Op::State state[kVec]{};
  int64_t seen = 0;
  if (c < C) {
    const int64_t stride = static_cast<int64_t>(gridDim.y) * blockDim.y;
    int64_t r = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y;
    for (; r + (kUnroll - 1) * stride < rows; r += kUnroll * stride) {
      add_from_memory<kVec, kUnroll>(
          op, aligned, [&](int u) { return begin + (r + u * stride) * C + c; }, seen, channel, state);
      seen += kUnroll;
    }
    for (; r < rows; r += stride) {
      add_from_memory<kVec, 1>(op, aligned, [&](int) { return begin + r * C + c; }, seen, channel, state);
      ++seen;
    }
  }

  typename Op::Partial values[kVec];
#pragma unroll
  for (int k = 0; k < kVec; ++k) values[k] = op.partial(state[k], seen);
  const ColumnArrays<typename Op::Partial> of_sample{partials.numbers + sample * C, partials.columns};
  finish_columns(
      values, scratch, [&](int64_t i, const auto& total) { finish(sample * C + i, total); }, of_sample, C);
}

// Blocks of one launch along z, which the samples are.
inline constexpr int64_t kMostSamples = 65535;

inline ColumnPlan plan_rows(const ChannelShape& shape, int vec, int unroll) {
  ColumnPlan plan = plan_columns(shape.C / vec, shape.rows(), unroll);
  const int64_t wanted =
      ceil_div(kTargetBlocks, plan.tiles * shape.samples > 0 ? plan.tiles * shape.samples : 1);
  if (plan.splits > wanted) plan.splits = wanted;
  return plan;
}

// f(first sample, grid) for launches that together have all samples.
template <typename F>
Status for_each_launch(const ChannelShape& shape, const ColumnPlan& plan, const F& f) {
  for (int64_t first = 0; first < shape.samples; first += kMostSamples) {
    dim3 grid = plan.grid();
    grid.z = static_cast<unsigned>(shape.samples - first < kMostSamples ? shape.samples - first : kMostSamples);
    const Status status = f(first, grid);
    if (!status.ok()) return status;
  }
  return Status::success();
}

// Blocks that share one channel, and so partial results of a channel.
template <typename Op>
int64_t reduce_splits(const ChannelShape& shape) {
  constexpr int kWide = kVecSize<typename Op::scalar_t>;
  const bool wide = shape.vectors_fit(kWide);
  const int unroll = wide ? kReduceUnroll<Op, kWide> : kReduceUnroll<Op, 1>;
  if (shape.planes) return plan_planes(shape, wide ? kWide : 1, unroll).splits;
  return plan_rows(shape, wide ? kWide : 1, unroll).splits;
}

// Bytes that reduce_channels wants for `partials`.
template <typename Op>
int64_t reduce_channels_workspace(const ChannelShape& shape) {
  const int64_t splits = reduce_splits<Op>(shape);
  return splits == 1 ? 0 : ColumnArrays<typename Op::Partial>::bytes(splits, shape.channels());
}

template <int kVec, typename Op, typename Finish>
Status reduce_channels_by(const char* name, const Op& op, const Finish& finish, const ChannelShape& shape,
                          const ColumnArrays<typename Op::Partial>& partials, bool aligned, Stream stream) {
  constexpr int kUnroll = kReduceUnroll<Op, kVec>;
  int64_t splits;
  Status status;
  if (shape.planes) {
    const PlanePlan plan = plan_planes(shape, kVec, kUnroll);
    splits = plan.splits;
    const dim3 grid(static_cast<unsigned>(shape.C), static_cast<unsigned>(splits));
    status = launch(name, reduce_planes_kernel<Op, kVec, Finish>, grid, dim3(plan.threads), 0, stream, op,
                    finish, shape.C, shape.S, plan, Divisor(shape.S / kVec, plan.vectors), aligned, partials);
  } else {
    const ColumnPlan plan = plan_rows(shape, kVec, kUnroll);
    splits = plan.splits;
    status = for_each_launch(shape, plan, [&](int64_t first_sample, dim3 grid) {
      return launch(name, reduce_rows_kernel<Op, kVec, Finish>, grid, plan.block(), 0, stream, op, finish,
                    shape.rows(), shape.C, first_sample, aligned, partials);
    });
  }
  if (!status.ok() || splits == 1) return status;
  return combine_partials(name, finish, partials, splits, shape.channels(), stream);
}

// Whether an op's tensors can be moved by whole vectors.
template <typename Op>
bool tensors_aligned(const Op& op) {
  using scalar_t = typename Op::scalar_t;
  bool aligned = true;
  for (const scalar_t* p : op.input) aligned = aligned && all_aligned<scalar_t, kVecSize<scalar_t>>({p});
  if constexpr (requires { op.output; }) {
    for (const scalar_t* p : op.output) aligned = aligned && all_aligned<scalar_t, kVecSize<scalar_t>>({p});
  }
  return aligned;
}

// finish(c, Partial over all elements of channel c), for every channel; also where there are no elements.
template <typename Op, typename Finish>
Status reduce_channels(const char* name, const Op& op, const Finish& finish, const ChannelShape& shape,
                       void* workspace, Stream stream) {
  using Partials = ColumnArrays<typename Op::Partial>;
  constexpr int kWide = kVecSize<typename Op::scalar_t>;
  const Partials partials{static_cast<typename Op::acc_t*>(workspace), shape.channels()};
  if (!shape.vectors_fit(kWide)) return reduce_channels_by<1>(name, op, finish, shape, partials, true, stream);
  return reduce_channels_by<kWide>(name, op, finish, shape, partials, tensors_aligned(op), stream);
}

template <typename Op, int kVec>
__global__ void __launch_bounds__(kPlaneThreads, 1)
    map_planes_kernel(Op op, int64_t elements, int64_t C, int64_t S, Divisor by_S, Divisor by_C, bool aligned) {
  using scalar_t = typename Op::scalar_t;
  constexpr int kUnroll = kMapUnroll<Op>;
  // Where bits are written whole warps go on together, beyond the last element too.
  constexpr bool kTogether = bits_of<Op>() == Bits::kWritten;
  op.begin(static_cast<int64_t>(blockIdx.x) * kPlaneThreads + threadIdx.x, int64_t{gridDim.x} * kPlaneThreads);
  constexpr int64_t kChunk = int64_t{kPlaneThreads} * kVec;
  const int64_t chunks = ceil_div(elements, kChunk);
  for (int64_t q = blockIdx.x; q < chunks; q += kUnroll * int64_t{gridDim.x}) {
    Vec<scalar_t, kVec> raw[Op::kInputs][kUnroll];
    uint32_t bits[kUnroll];
    int64_t at[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t chunk = chunks - 1 - (q + u * int64_t{gridDim.x});  // the last first
      at[u] = chunk < 0 ? elements : chunk * kChunk + threadIdx.x * kVec;
      bits[u] = 0;
      if (at[u] >= elements) continue;
      const int64_t count = elements - at[u];
#pragma unroll
      for (int i = 0; i < Op::kInputs; ++i) {
        if (op.input[i] == nullptr) {
          raw[i][u] = {};
        } else if (aligned && count >= kVec) {
          raw[i][u] = load_vec<kVec>(op.input[i] + at[u], true);
        } else {
          raw[i][u] = load_vec_partial<kVec>(op.input[i] + at[u], count);
        }
      }
      if constexpr (bits_of<Op>() == Bits::kRead) bits[u] = op.template bits<kVec>(at[u]);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const bool exists = at[u] < elements;
      if (exists) {
        Vec<scalar_t, kVec> in[Op::kInputs], out[Op::kOutputs];
        take_vector(raw, u, in);
        int64_t s = at[u];
        int64_t c = by_S.take(s);
        by_C.take(c);
        const auto next = [&] {
          const auto channel = op.channel(c);
          if (++c == C) c = 0;
          return channel;
        };
        map_across_channels(op, s, S, next, in, out, bits[u]);
        const int64_t count = elements - at[u];
        if (aligned && count >= kVec) {
          store_outputs(op, at[u], true, out);
        } else {
#pragma unroll
          for (int i = 0; i < Op::kOutputs; ++i) {
            if (op.output[i] != nullptr) store_vec_partial(op.output[i] + at[u], out[i], count);
          }
        }
      }
      if constexpr (kTogether) op.store_bits(at[u], bits[u], exists);
    }
  }
}

template <typename Op, int kVec>
__global__ void __launch_bounds__(kColumnThreads, 1)
    map_rows_kernel(Op op, int64_t rows, int64_t C, int64_t first_sample, bool aligned) {
  using scalar_t = typename Op::scalar_t;
  constexpr int kUnroll = kMapUnroll<Op>;
  constexpr bool kTogether = bits_of<Op>() == Bits::kWritten;
  constexpr int kStaged = kStagedNumbers<Op, kVec>;
  FASTNN_SHARED(StagedNumbers<typename Op::acc_t>, staged, kStaged);
  const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  op.begin(block * kColumnThreads + thread_in_block(), int64_t{gridDim.x} * gridDim.y * kColumnThreads);
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kVec;
  const int64_t sample = first_sample + blockIdx.z, begin = sample * rows * C;
  typename Op::Channel channel[kVec];
  stage_channels(op, C, sample, staged, channel);
  const int64_t stride = static_cast<int64_t>(gridDim.y) * blockDim.y;
  for (int64_t first = static_cast<int64_t>(blockIdx.y) * blockDim.y; first < rows; first += kUnroll * stride) {
    Vec<scalar_t, kVec> raw[Op::kInputs][kUnroll];
    uint32_t bits[kUnroll];
    int64_t at[kUnroll];
    bool exists[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t row = rows - 1 - (first + threadIdx.y + u * stride);  // the last first
      exists[u] = row >= 0 && c < C;
      at[u] = begin + row * C + c;
      bits[u] = 0;
      if (!exists[u]) continue;
#pragma unroll
      for (int i = 0; i < Op::kInputs; ++i) {
        raw[i][u] = {};
        if (op.input[i] != nullptr) raw[i][u] = load_vec<kVec>(op.input[i] + at[u], aligned);
      }
      if constexpr (bits_of<Op>() == Bits::kRead) bits[u] = op.template bits<kVec>(at[u]);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (exists[u]) {
        Vec<scalar_t, kVec> in[Op::kInputs], out[Op::kOutputs];
        take_vector(raw, u, in);
#pragma unroll
        for (int k = 0; k < kVec; ++k) map_element(op, channel[k], k, in, out, bits[u]);
        store_outputs(op, at[u], aligned, out);
      }
      if constexpr (kTogether) op.store_bits(at[u], bits[u], exists[u]);
    }
  }
}

template <int kVec, typename Op>
Status map_rows(const char* name, const Op& op, const ChannelShape& shape, bool aligned, Stream stream) {
  const ColumnPlan plan = plan_rows(shape, kVec, kMapUnroll<Op>);
  return for_each_launch(shape, plan, [&](int64_t first_sample, dim3 grid) {
    return launch(name, map_rows_kernel<Op, kVec>, grid, plan.block(), 0, stream, op, shape.rows(), shape.C,
                  first_sample, aligned);
  });
}

template <typename Op>
Status map_channels(const char* name, const Op& op, const ChannelShape& shape, Stream stream) {
  constexpr int kWide = kVecSize<typename Op::scalar_t>;
  const int64_t elements = shape.elements();
  bool wanted = false;
  for (const auto* p : op.output) wanted = wanted || p != nullptr;
  if (elements == 0 || !wanted) return Status::success();
  const bool aligned = tensors_aligned(op);
  // Rows that do not begin with a byte of bits share some with their neighbours, which flat runs store
  // together.
  const bool bits_fit = bits_of<Op>() != Bits::kWritten || shape.vectors_fit(kBitsTogether);
  if (!shape.planes && shape.vectors_fit(kWide) && bits_fit) {
    return map_rows<kWide>(name, op, shape, aligned, stream);
  }
  if constexpr (requires { Op::kSamples; }) {
    // Of several samples vectors must not straddle rows.
    if (!shape.planes && shape.samples > 1) return map_rows<1>(name, op, shape, true, stream);
  }
  // Rows that vectors would straddle are planes of one element.
  const int64_t S = shape.planes ? shape.S : 1;
  const int64_t last = elements + kWarpSize * kWide;  // of the warp that has the last element
  const int64_t blocks = ceil_div(ceil_div(elements, kWide), kPlaneThreads);
  const dim3 grid(static_cast<unsigned>(blocks < kMapBlocks ? blocks : kMapBlocks));
  return launch(name, map_planes_kernel<Op, kWide>, grid, dim3(kPlaneThreads), 0, stream, op, elements, shape.C,
                S, Divisor(S, last), Divisor(shape.C, last), aligned);
}

}  // namespace fastnn::cuda
