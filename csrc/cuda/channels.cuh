// Passes over an activation in which every channel has constants of its own: a reduction per channel, and a map
// of elements. Each comes in two forms, for the two orders in memory:
//
//   planes  [N, C, S]     Reduction: a block owns one channel, or a range of its vectors, and its threads run
//                         along S and on into the next image. Map: one flat run over the whole array; a vector
//                         may cross from one channel into the next, so that any S moves 16 bytes at a time.
//   rows    [rows, C]     A thread owns a vector of channels, whose constants stay in registers, and walks down
//                         rows.
//
// Both are bound by memory: 1 to 3 reads and up to 2 writes of an element, for 5 to 25 instructions.
//
// A reduction is described by a struct with
//   scalar_t, acc_t, kInputs; const scalar_t* input[kInputs]   null inputs read as 0
//   Channel, channel(c)             the channel's constants
//   State, Partial                  State{}: a thread's running result; Partial: see reduce.cuh
//   Step, step(seen, count)         what adding `count` values after `seen` others needs, for all channels
//   alike add(state, channel, values, step)   values[input][k]: as many as `count` said, one channel's
//   partial(state, seen)
// and finish(c, Partial), a struct of its own. A map is described by a struct with
//   scalar_t, acc_t, kInputs, kOutputs, input as above
//   scalar_t* output[kOutputs]                       null outputs are not written
//   Channel, channel(c)
//   apply(channel, in[kInputs], out[kOutputs])
//   on_first_thread()                                run by one thread of the launch
//
// Either may have channels<kVec>(c, channel[kVec]) too, for the vector of channels from c on, which reads what
// it needs of each by vectors (load_values).
//
// Either may know a bit of each element (batch_norm_activation.cuh), and then has
//   kBits                                            kBitsRead or kBitsWritten
//   bits<kVec>(i)                                    read: of the elements from i on, before
//   adjust(channel, values, bit) of a reduction      what an element's values become by it
//   apply(channel, in, out, bit) of a map            bit is read or written
//   store_bits(i, bits)                              written: by a whole warp, that of its vectors
#pragma once

#include <cstdint>

#include "../ops/dtype.h"
#include "dispatch.cuh"
#include "divisor.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace fastnn::cuda {

// An activation as the passes see it. Where both forms describe the same memory, the better one is taken.
struct ChannelShape {
  bool planes;
  int64_t N, C, S;

  ChannelShape(Layout layout, int64_t n, int64_t c, int64_t s)
      : planes(layout == Layout::kChannelsFirst), N(n), C(c), S(s) {
    if (C == 1) {
      // One plane, and not rows of one element.
      planes = true;
      S *= N;
      N = 1;
    } else if (S == 1) {
      planes = false;
    }
  }

  int64_t rows() const { return N * S; }
  int64_t elements() const { return N * C * S; }
  bool vectors_fit(int size) const { return (planes ? S : C) % size == 0; }
};

enum class Bits { kNone, kRead, kWritten };

// kBits of an op that has it.
template <typename Op>
constexpr Bits bits_of() {
  if constexpr (requires { Op::kBits; }) {
    return Op::kBits;
  } else {
    return Bits::kNone;
  }
}

// The kernels' launch bounds ask for one block per multiprocessor and not for the compiler's own guess, with
// which it spills in order to fit eight; at 32 to 120 registers two to eight fit anyway.
inline constexpr int kPlaneThreads = 256;
inline constexpr int kMapBlocks = 2048;  // two waves of full blocks on the largest device; the rest is a loop

// Vectors of each input that a thread of a reduction has in flight: 64 bytes or more, fewer where several
// inputs share the registers. Powers of two, since statistics halve a chunk down to one value.
template <typename Op, int kVec>
inline constexpr int kReduceUnroll = (kVec == 1 ? 8 : 4) / (Op::kInputs == 1 ? 1 : 2);

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

// values[c + k] into out[k], by vectors where they lie so: threads next to each other then ask for bytes next
// to each other, of which single values would leave gaps.
template <int kVec, typename T>
__device__ __forceinline__ void load_values(const T* values, int64_t c, T (&out)[kVec]) {
  constexpr int kWide = kVecSize<T> < kVec ? kVecSize<T> : kVec;
  const bool aligned = reinterpret_cast<uintptr_t>(values + c) % sizeof(Vec<T, kWide>) == 0;
#pragma unroll
  for (int k = 0; k < kVec; k += kWide) {
    const auto v = load_vec<kWide>(values + c + k, aligned);
#pragma unroll
    for (int i = 0; i < kWide; ++i) out[k + i] = v.v[i];
  }
}

// The constants of channels c + k.
template <int kVec, typename Op>
__device__ __forceinline__ void load_channels(const Op& op, int64_t c, typename Op::Channel (&channel)[kVec]) {
  if constexpr (requires { op.template channels<kVec>(c, channel); }) {
    op.template channels<kVec>(c, channel);
  } else {
#pragma unroll
    for (int k = 0; k < kVec; ++k) channel[k] = op.channel(c + k);
  }
}

// raw[input][u]: the vector at offset(u). The loads stand together, so that all are in flight at once.
template <int kVec, int kCount, typename Op, typename Offset>
__device__ __forceinline__ void load_vectors(const Op& op, bool aligned, const Offset& offset,
                                             Vec<typename Op::scalar_t, kVec> (&raw)[Op::kInputs][kCount]) {
#pragma unroll
  for (int i = 0; i < Op::kInputs; ++i) {
    const auto* input = op.input[i];
    if (input == nullptr) {
#pragma unroll
      for (int u = 0; u < kCount; ++u) raw[i][u] = {};
    } else if (aligned) {
#pragma unroll
      for (int u = 0; u < kCount; ++u) raw[i][u] = load_vec<kVec>(input + offset(u), true);
    } else {
#pragma unroll
      for (int u = 0; u < kCount; ++u) raw[i][u] = load_vec<kVec>(input + offset(u), false);
    }
  }
}

// Adds the kCount vectors at offset(u), all of one channel.
template <int kVec, int kCount, typename Op, typename Offset>
__device__ __forceinline__ void add_plane(const Op& op, bool aligned, const Offset& offset, int64_t seen,
                                          const typename Op::Channel& channel, typename Op::State& state) {
  Vec<typename Op::scalar_t, kVec> raw[Op::kInputs][kCount];
  load_vectors(op, aligned, offset, raw);
  typename Op::acc_t values[Op::kInputs][kCount * kVec];
#pragma unroll
  for (int i = 0; i < Op::kInputs; ++i) {
#pragma unroll
    for (int k = 0; k < kCount * kVec; ++k) values[i][k] = to_acc(raw[i][k / kVec].v[k % kVec]);
  }
  if constexpr (bits_of<Op>() == Bits::kRead) {
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      const uint32_t bits = op.template bits<kVec>(offset(u));
#pragma unroll
      for (int k = 0; k < kVec; ++k) op.adjust(channel, values, u * kVec + k, bits >> k & 1);
    }
  }
  op.add(state, channel, values, op.step(seen, kCount * kVec));
}

template <typename Op, int kVec, typename Finish>
__global__ void __launch_bounds__(kPlaneThreads, 1)
    reduce_planes_kernel(Op op, Finish finish, int64_t C, int64_t S, PlanePlan plan, Divisor vectors_in_plane,
                         bool aligned, typename Op::Partial* partials) {
  constexpr int kUnroll = kReduceUnroll<Op, kVec>;
  FASTNN_SHARED(typename Op::Partial, scratch, kWarpSize);
  const int64_t c = blockIdx.x;
  const auto channel = op.channel(c);
  const int64_t begin = blockIdx.y * plan.per_block;
  const int64_t end = plan.vectors - begin < plan.per_block ? plan.vectors : begin + plan.per_block;
  const auto element = [&](int64_t vector) {
    const int64_t n = vectors_in_plane.take(vector);
    return (n * C + c) * S + vector * kVec;
  };

  typename Op::State state{};
  int64_t seen = 0;
  int64_t j = begin + threadIdx.x;
  for (; j + (kUnroll - 1) * int64_t{blockDim.x} < end; j += kUnroll * int64_t{blockDim.x}) {
    add_plane<kVec, kUnroll>(
        op, aligned, [&](int u) { return element(j + u * int64_t{blockDim.x}); }, seen, channel, state);
    seen += kUnroll * kVec;
  }
  for (; j < end; j += blockDim.x) {
    add_plane<kVec, 1>(op, aligned, [&](int) { return element(j); }, seen, channel, state);
    seen += kVec;
  }

  const auto total = block_reduce(op.partial(state, seen), scratch);
  if (threadIdx.x != 0) return;
  if (gridDim.y == 1) {
    finish(c, total);
  } else {
    partials[blockIdx.y * C + c] = total;
  }
}

// Adds the kCount vectors at offset, offset + stride, ...: rows of the kVec channels of one thread.
template <int kVec, int kCount, typename Op>
__device__ __forceinline__ void add_rows(const Op& op, bool aligned, int64_t offset, int64_t stride,
                                         int64_t seen, const typename Op::Channel (&channel)[kVec],
                                         typename Op::State (&state)[kVec]) {
  Vec<typename Op::scalar_t, kVec> raw[Op::kInputs][kCount];
  load_vectors(op, aligned, [&](int u) { return offset + u * stride; }, raw);
  [[maybe_unused]] uint32_t bits[kCount];
  if constexpr (bits_of<Op>() == Bits::kRead) {
#pragma unroll
    for (int u = 0; u < kCount; ++u) bits[u] = op.template bits<kVec>(offset + u * stride);
  }
  const auto step = op.step(seen, kCount);
#pragma unroll
  for (int k = 0; k < kVec; ++k) {
    typename Op::acc_t values[Op::kInputs][kCount];
#pragma unroll
    for (int i = 0; i < Op::kInputs; ++i) {
#pragma unroll
      for (int u = 0; u < kCount; ++u) values[i][u] = to_acc(raw[i][u].v[k]);
    }
    if constexpr (bits_of<Op>() == Bits::kRead) {
#pragma unroll
      for (int u = 0; u < kCount; ++u) op.adjust(channel[k], values, u, bits[u] >> k & 1);
    }
    op.add(state[k], channel[k], values, step);
  }
}

template <typename Op, int kVec, typename Finish>
__global__ void __launch_bounds__(kColumnThreads, 1)
    reduce_rows_kernel(Op op, Finish finish, int64_t rows, int64_t C, bool aligned,
                       typename Op::Partial* partials) {
  constexpr int kUnroll = kReduceUnroll<Op, kVec>;
  FASTNN_SHARED(typename Op::Partial, scratch, kColumnThreads);
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kVec;
  const bool owns_channels = c < C;

  typename Op::State state[kVec]{};
  int64_t seen = 0;
  if (owns_channels) {
    typename Op::Channel channel[kVec];
    load_channels(op, c, channel);
    const int64_t stride = static_cast<int64_t>(gridDim.y) * blockDim.y;
    int64_t r = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y;
    for (; r + (kUnroll - 1) * stride < rows; r += kUnroll * stride) {
      add_rows<kVec, kUnroll>(op, aligned, r * C + c, stride * C, seen, channel, state);
      seen += kUnroll;
    }
    for (; r < rows; r += stride) {
      add_rows<kVec, 1>(op, aligned, r * C + c, 0, seen, channel, state);
      ++seen;
    }
  }

#pragma unroll
  for (int k = 0; k < kVec; ++k) {
    const auto total = column_reduce(op.partial(state[k], seen), scratch);
    if (threadIdx.y == 0 && owns_channels) {
      if (gridDim.y == 1) {
        finish(c + k, total);
      } else {
        partials[blockIdx.y * C + c + k] = total;
      }
    }
  }
}

// Blocks that share one channel, and so partial results of a channel.
template <typename Op>
int64_t reduce_splits(const ChannelShape& shape) {
  constexpr int kWide = kVecSize<typename Op::scalar_t>;
  const bool wide = shape.vectors_fit(kWide);
  const int unroll = wide ? kReduceUnroll<Op, kWide> : kReduceUnroll<Op, 1>;
  if (shape.planes) return plan_planes(shape, wide ? kWide : 1, unroll).splits;
  return plan_columns(shape.C / (wide ? kWide : 1), shape.rows(), unroll).splits;
}

// Bytes that reduce_channels wants for `partials`.
template <typename Op>
int64_t reduce_channels_workspace(const ChannelShape& shape) {
  const int64_t splits = reduce_splits<Op>(shape);
  return splits == 1 ? 0 : splits * shape.C * static_cast<int64_t>(sizeof(typename Op::Partial));
}

template <int kVec, typename Op, typename Finish>
Status reduce_channels_by(const char* name, const Op& op, const Finish& finish, const ChannelShape& shape,
                          typename Op::Partial* partials, bool aligned, Stream stream) {
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
    const ColumnPlan plan = plan_columns(shape.C / kVec, shape.rows(), kUnroll);
    splits = plan.splits;
    status = launch(name, reduce_rows_kernel<Op, kVec, Finish>, plan.grid(), plan.block(), 0, stream, op,
                    finish, shape.rows(), shape.C, aligned, partials);
  }
  if (!status.ok() || splits == 1) return status;
  return combine_partials(name, finish, partials, splits, shape.C, stream);
}

// finish(c, Partial over all elements of channel c), for every channel; also where there are no elements.
template <typename Op, typename Finish>
Status reduce_channels(const char* name, const Op& op, const Finish& finish, const ChannelShape& shape,
                       void* workspace, Stream stream) {
  using scalar_t = typename Op::scalar_t;
  constexpr int kWide = kVecSize<scalar_t>;
  auto* const partials = static_cast<typename Op::Partial*>(workspace);
  if (!shape.vectors_fit(kWide)) return reduce_channels_by<1>(name, op, finish, shape, partials, true, stream);
  bool aligned = true;
  for (const scalar_t* p : op.input) aligned = aligned && all_aligned<scalar_t, kWide>({p});
  return reduce_channels_by<kWide>(name, op, finish, shape, partials, aligned, stream);
}

template <int kVec, typename Op>
__device__ __forceinline__ void load_inputs(const Op& op, int64_t offset, bool whole, int64_t count,
                                            Vec<typename Op::scalar_t, kVec> (&in)[Op::kInputs]) {
#pragma unroll
  for (int i = 0; i < Op::kInputs; ++i) {
    if (op.input[i] == nullptr) {
      in[i] = {};
    } else if (whole) {
      in[i] = load_vec<kVec>(op.input[i] + offset, true);
    } else {
      in[i] = load_vec_partial<kVec>(op.input[i] + offset, count);
    }
  }
}

template <int kVec, typename Op>
__device__ __forceinline__ void store_outputs(const Op& op, int64_t offset, bool whole, int64_t count,
                                              const Vec<typename Op::scalar_t, kVec> (&out)[Op::kOutputs]) {
#pragma unroll
  for (int i = 0; i < Op::kOutputs; ++i) {
    if (op.output[i] == nullptr) continue;
    if (whole) {
      store_vec(op.output[i] + offset, out[i], true);
    } else {
      store_vec_partial(op.output[i] + offset, out[i], count);
    }
  }
}

// Element k of the vectors; its bit is bit k of `bits`, which are zero before it is written.
template <int kVec, typename Op>
__device__ __forceinline__ void map_element(const Op& op, const typename Op::Channel& channel, int k,
                                            const Vec<typename Op::scalar_t, kVec> (&in)[Op::kInputs],
                                            Vec<typename Op::scalar_t, kVec> (&out)[Op::kOutputs],
                                            [[maybe_unused]] uint32_t& bits) {
  typename Op::acc_t x[Op::kInputs], y[Op::kOutputs];
#pragma unroll
  for (int i = 0; i < Op::kInputs; ++i) x[i] = to_acc(in[i].v[k]);
  if constexpr (bits_of<Op>() == Bits::kNone) {
    op.apply(channel, x, y);
  } else {
    bool bit = bits >> k & 1;
    op.apply(channel, x, y, bit);
    if constexpr (bits_of<Op>() == Bits::kWritten) bits |= static_cast<uint32_t>(bit) << k;
  }
#pragma unroll
  for (int i = 0; i < Op::kOutputs; ++i) out[i].v[k] = from_acc<typename Op::scalar_t>(y[i]);
}

template <typename Op, int kVec>
__global__ void __launch_bounds__(kPlaneThreads, 1)
    map_planes_kernel(Op op, int64_t elements, int64_t C, int64_t S, Divisor by_S, Divisor by_C, bool aligned) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (first == 0) op.on_first_thread();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x * kVec;
  // Where bits are written whole warps go on together, beyond the last element too.
  constexpr bool kTogether = bits_of<Op>() == Bits::kWritten;
  const int64_t ahead = kTogether ? static_cast<int64_t>(threadIdx.x % kWarpSize) * kVec : 0;
  for (int64_t i = first * kVec; i - ahead < elements; i += stride) {
    const int64_t count = elements - i;
    uint32_t bits = 0;
    if constexpr (bits_of<Op>() == Bits::kRead) bits = op.template bits<kVec>(i);
    const bool whole = aligned && count >= kVec;
    Vec<typename Op::scalar_t, kVec> in[Op::kInputs], out[Op::kOutputs];
    load_inputs(op, i, whole, count, in);
    int64_t s = i;
    int64_t c = by_S.take(s);
    by_C.take(c);
    if (kTogether && S == 1 && C % kVec == 0) {
      // Rows whose vectors do not straddle them, which map_rows_kernel has otherwise.
      typename Op::Channel channel[kVec];
      load_channels(op, c, channel);
#pragma unroll
      for (int k = 0; k < kVec; ++k) map_element(op, channel[k], k, in, out, bits);
    } else {
      auto channel = op.channel(c);
#pragma unroll
      for (int k = 0; k < kVec; ++k, ++s) {
        if (s == S) {
          s = 0;
          if (++c == C) c = 0;
          channel = op.channel(c);
        }
        map_element(op, channel, k, in, out, bits);
      }
    }
    store_outputs(op, i, whole, count, out);
    if constexpr (kTogether) op.store_bits(i, bits);
  }
}

template <typename Op, int kVec>
__global__ void __launch_bounds__(kColumnThreads, 1)
    map_rows_kernel(Op op, int64_t rows, int64_t C, bool aligned) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t c = column * kVec;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y;
  if (column == 0 && first == 0) op.on_first_thread();
  if (c >= C) return;
  typename Op::Channel channel[kVec];
  load_channels(op, c, channel);
  const int64_t stride = static_cast<int64_t>(gridDim.y) * blockDim.y;
  for (int64_t r = first; r < rows; r += stride) {
    Vec<typename Op::scalar_t, kVec> in[Op::kInputs], out[Op::kOutputs];
    load_inputs(op, r * C + c, aligned, kVec, in);
    uint32_t bits = 0;
    if constexpr (bits_of<Op>() == Bits::kRead) bits = op.template bits<kVec>(r * C + c);
#pragma unroll
    for (int k = 0; k < kVec; ++k) map_element(op, channel[k], k, in, out, bits);
    store_outputs(op, r * C + c, aligned, kVec, out);
  }
}

template <typename Op>
Status map_channels(const char* name, const Op& op, const ChannelShape& shape, Stream stream) {
  using scalar_t = typename Op::scalar_t;
  constexpr int kWide = kVecSize<scalar_t>;
  const int64_t elements = shape.elements();
  if (elements == 0) return Status::success();
  bool aligned = true;
  for (const scalar_t* p : op.input) aligned = aligned && all_aligned<scalar_t, kWide>({p});
  for (const scalar_t* p : op.output) aligned = aligned && all_aligned<scalar_t, kWide>({p});
  // A warp that votes on bits has to have vectors next to each other, which threads of a row need not be.
  if constexpr (bits_of<Op>() != Bits::kWritten) {
    if (!shape.planes && shape.vectors_fit(kWide)) {
      const ColumnPlan plan = plan_columns(shape.C / kWide, shape.rows(), 1);
      return launch(name, map_rows_kernel<Op, kWide>, plan.grid(), plan.block(), 0, stream, op, shape.rows(),
                    shape.C, aligned);
    }
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
