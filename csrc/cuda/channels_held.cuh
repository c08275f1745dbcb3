// A reduction per channel and a map of elements (channels.cuh) in one launch that reads every element once: a
// group of blocks holds a unit, a channel or a tile of channels, in shared memory from the reduction to the
// map. channels_held_plan.cuh says which units, which groups, and when.
//
//   planes, rows   A thread keeps vectors of its own, every T-th of its block's part of the unit: shared memory
//                  is the registers that it lacks, and nothing but the reduction crosses threads. In planes all
//                  its vectors are of one channel, in rows of the same kVec channels.
//   tiles          A block has its part of a unit as it lies in memory, and warps take the elements of a
//                  channel each, as scalars, for the reduction; for the map threads take vectors again, which
//                  may cross from one channel into the next.
//
// Vectors come by cp.async, which takes no registers: a thread has all of them under way at once, in chunks
// that the reduction takes as they arrive. Where addresses are no multiples of 16 bytes threads load elements
// instead. Every warp leaves a partial result in shared memory, a warp for each channel adds the block's, and
// the blocks of a group meet: in a cluster each then reads the others' results from their shared memory, in a
// grid from global memory, in the order of ranks. All find the same numbers, and the first block stores them.
//
// What bounds it: memory. Forward reads x and writes y, 2 accesses of an element instead of 3; backward reads
// grad_y and x and writes grad_x, 3 instead of 5. With 110 KB a block and two blocks a multiprocessor, loads of
// one run beside the other's meeting and stores: of a copy's 4.3 TB/s on 132 multiprocessors, 32 KB a
// microsecond each, a block takes 7 us, of which its own first load and its meeting, some 2 us, are hidden if
// the other is not in step with it. Arithmetic is 12 to 15 instructions an element (statistics 7, normalising
// 4), at 4.7 elements of a half type a clock 2 of the 4 that a multiprocessor can issue.
//
// What a second read from the L2 costs instead: the L2 gives some 5.5 TB/s, so that 3 accesses take 0.55 where
// memory's 2 take 0.47, if a unit is still there. For tensors of a few megabytes all of it is, and what counts
// there is that one launch, or two with a grid's counters, replaces three, at 2 to 3 us each.
//
// A grid meets at counters in global memory, which a small kernel before has set to 0: they lie in the call's
// own workspace, so that neither another stream nor a graph's next replay can find them used. A meeting costs
// some 2.5 us: the counter, and each block's reading of what `blocks` others have left of each channel, 12
// bytes a channel and block. With two units a group it is hidden.
#pragma once

#include <type_traits>

#include "async_copy.cuh"
#include "channels_held_plan.cuh"
#include "channels_two_pass.cuh"
#include "cluster.cuh"

namespace fastnn::cuda {

// Of a launch, besides its ops.
template <typename Partial>
struct HeldArguments {
  HeldPlan plan;
  int64_t N, C, S;
  Divisor by_run;       // vectors of a plane, or of a tile's run in one image
  Divisor by_last_run;  // of the last tile's
  Divisor by_plane;     // elements of a plane
  bool aligned;
  // Meeting::kGrid: [group][2][width][blocks] and [group] kCounterStride apart.
  Partial* partials;
  unsigned* counters;
};

inline constexpr int kCounterStride = 32;  // a line each, so that groups do not wait for each other's traffic
inline constexpr int kCounterThreads = 256;

// ---- what blocks of a group have of a unit ------------------------------------------------------------------

// The thread's vectors of its block's part of a unit, of planes or rows: number i of `count`.
template <int kVec, bool kRows, typename Partial>
struct UnitVectors {
  const HeldArguments<Partial>& a;
  int64_t first;    // planes: the vector's number in the unit; rows: the element's in the tensor
  int64_t step;     // from one of them to the next
  int64_t channel;  // planes: the unit's; rows: the thread's first, C or more where it has none
  int count;
  int rounds;  // the largest count of the block

  __device__ __forceinline__ UnitVectors(const HeldArguments<Partial>& arguments, int64_t unit, int rank)
      : a(arguments) {
    const int columns = kRows ? a.plan.columns : 1, stride = a.plan.threads / columns;
    const int lead = static_cast<int>(threadIdx.x) / columns;
    const int64_t all = kRows ? a.N * a.S : a.N * (a.S / kVec);
    const int64_t begin = rank * a.plan.per_block;
    const int64_t left = all - begin < a.plan.per_block ? all - begin : a.plan.per_block;
    const int pieces = left < 0 ? 0 : static_cast<int>(left);
    rounds = (pieces + stride - 1) / stride;
    if constexpr (kRows) {
      channel = (unit * columns + threadIdx.x % columns) * kVec;
      first = (begin + lead) * a.C + channel;
      step = stride * a.C;
    } else {
      channel = unit;
      first = begin + lead;
      step = stride;
    }
    count = channel < a.C && lead < pieces ? (pieces - lead + stride - 1) / stride : 0;
  }

  __device__ __forceinline__ int64_t offset(int i) const {
    int64_t at = first + i * step;
    if constexpr (!kRows) {
      const int64_t n = a.by_run.take(at);
      at = (n * a.C + channel) * a.S + at * kVec;
    }
    return at;
  }
};

// Shared memory of a block: vectors [stage][input][slot][thread], bytes of bits [stage][slot][thread], partial
// results of warps [warp][channel] and of the block, constants of channels.
template <int kVec, int kChannels, typename Reduce, typename Map>
struct HeldMemory {
  using scalar_t = typename Map::scalar_t;
  using acc_t = typename Map::acc_t;
  using Partial = typename Reduce::Partial;
  using Vector = Vec<scalar_t, kVec>;
  static constexpr bool kReadsBits = bits_of<Map>() == Bits::kRead;

  const HeldPlan& plan;
  unsigned char* shared;
  int inputs;

  __device__ __forceinline__ HeldMemory(const HeldPlan& p, unsigned char* begin, const Map& map)
      : plan(p), shared(begin), inputs(0) {
#pragma unroll
    for (int n = 0; n < Map::kInputs; ++n) inputs += map.input[n] != nullptr;
  }

  __device__ __forceinline__ Vector* vector(int stage, int input, int slot) const {
    const int row = (stage * inputs + input) * plan.slots + slot;
    return reinterpret_cast<Vector*>(shared) + (row * plan.threads + static_cast<int>(threadIdx.x));
  }
  __device__ __forceinline__ uint8_t* bits(int stage, int slot) const {
    return shared + plan.bits_at + ((stage * plan.slots + slot) * plan.threads + static_cast<int>(threadIdx.x));
  }
  // Of the block's vectors as one array, with one stage: an element, and the bits of a vector.
  __device__ __forceinline__ scalar_t element(int input, int i) const {
    return reinterpret_cast<const scalar_t*>(shared)[input * plan.slots * plan.threads * kVec + i];
  }
  __device__ __forceinline__ uint32_t bits_of_vector(int i) const { return shared[plan.bits_at + i]; }
  __device__ __forceinline__ Partial* scratch() const {
    return reinterpret_cast<Partial*>(shared + plan.scratch_at);
  }
  __device__ __forceinline__ Partial* totals() const {
    return reinterpret_cast<Partial*>(shared + plan.totals_at);
  }
  // The reduction's constants of channels, where threads have several, and the map's.
  __device__ __forceinline__ SharedChannels<typename Reduce::Channel, acc_t, kChannels> before() const {
    return {reinterpret_cast<acc_t*>(shared + plan.before_at), plan.width / kChannels};
  }
  __device__ __forceinline__ SharedChannels<typename Map::Channel, acc_t, kChannels> after() const {
    return {reinterpret_cast<acc_t*>(shared + plan.after_at), plan.width / kChannels};
  }

  // Sends for a vector of input n, which must not be null.
  __device__ __forceinline__ void request(const Map& map, int n, int64_t offset, bool aligned, int stage,
                                          int slot) const {
    const scalar_t* const source = map.input[n] + offset;
    if (aligned) {
      cp_async<kVecBytes>(vector(stage, n, slot), source);
    } else {
      *vector(stage, n, slot) = load_vec<kVec>(source, false);
    }
  }

  // The vector in a slot, once it has arrived: of the first kInputs inputs, null ones as zeros.
  template <int kInputs, int kCount>
  __device__ __forceinline__ void take(const Map& map, int stage, int slot, int u,
                                       Vector (&raw)[kInputs][kCount], uint32_t (&bits_of_it)[kCount]) const {
#pragma unroll
    for (int n = 0; n < kInputs; ++n) {
      raw[n][u] = {};
      if (map.input[n] != nullptr) raw[n][u] = *vector(stage, n, slot);
    }
    bits_of_it[u] = 0;
    if constexpr (kReadsBits) {
      if (map.has_bits()) bits_of_it[u] = *bits(stage, slot);
    }
  }

  // The same of one that is not held.
  template <int kInputs, int kCount>
  __device__ __forceinline__ void take_from_memory(const Map& map, int64_t offset, bool aligned, int u,
                                                   Vector (&raw)[kInputs][kCount],
                                                   uint32_t (&bits_of_it)[kCount]) const {
#pragma unroll
    for (int n = 0; n < kInputs; ++n) {
      raw[n][u] = {};
      if (map.input[n] != nullptr) raw[n][u] = load_vec<kVec>(map.input[n] + offset, aligned);
    }
    bits_of_it[u] = 0;
    if constexpr (kReadsBits) bits_of_it[u] = map.template bits<kVec>(offset);
  }
};

// ---- from partial results of warps to constants of channels -------------------------------------------------

// The lanes that share lane % columns, a power of two, add what they have of kCount channels each: by halves,
// so that every step moves half of what is left and no lane adds what another does. leave(k, total) is then
// called by one lane for each channel.
template <int kCount, int kLanes = kWarpSize / 2, typename T, typename Leave>
__device__ __forceinline__ void reduce_columns_of_warp(T (&values)[kCount], int columns, int first, bool mine,
                                                       const Leave& leave) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if constexpr (kLanes > 0) {
    if (kLanes >= columns) {
      if constexpr (kCount > 1) {
        constexpr int kHalf = kCount / 2;
        const bool upper = (lane & kLanes) != 0;
        T half[kHalf];
#pragma unroll
        for (int k = 0; k < kHalf; ++k) {
          const T keep = upper ? values[k + kHalf] : values[k];
          const T give = upper ? values[k] : values[k + kHalf];
          half[k] = combine(keep, shuffle_xor(give, kLanes));
        }
        reduce_columns_of_warp<kHalf, kLanes / 2>(half, columns, first + (upper ? kHalf : 0), mine, leave);
      } else {
        T total[1] = {combine(values[0], shuffle_xor(values[0], kLanes))};
        reduce_columns_of_warp<1, kLanes / 2>(total, columns, first, mine && (lane & kLanes) == 0, leave);
      }
      return;
    }
  }
  if (!mine) return;
#pragma unroll
  for (int k = 0; k < kCount; ++k) leave(first + k, values[k]);
}

// Adds what `warps_of_each` warps have left of each of the unit's channels in scratch, [warp][channel], and
// what the group's blocks have of it; then leaves the channels' constants in shared memory. Every thread takes
// part.
template <int kVec, int kChannels, typename Reduce, typename Finish, typename Map>
__device__ __forceinline__ void finish_unit(const HeldArguments<typename Reduce::Partial>& a,
                                            const HeldMemory<kVec, kChannels, Reduce, Map>& memory,
                                            const Finish& finish, const Map& map, int warps_of_each,
                                            int64_t group, int rank, int64_t turn, int64_t first_channel) {
  using Partial = typename Reduce::Partial;
  const HeldPlan& plan = a.plan;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int warps = plan.threads / kWarpSize;
  const int width = static_cast<int>(a.C - first_channel < plan.width ? a.C - first_channel : plan.width);
  Partial* const scratch = memory.scratch();
  Partial* const totals = memory.totals();
  // Of this unit, by turns of two: a block may be one unit ahead of another that still reads.
  Partial* const left = a.partials + (group * 2 + turn % 2) * plan.width * plan.blocks;

  __syncthreads();  // scratch is filled
  for (int ch = warp; ch < width; ch += warps) {
    const Partial total = warp_reduce(lane < warps_of_each ? scratch[lane * plan.width + ch] : Partial{});
    if (lane != 0) continue;
    if (plan.meeting == Meeting::kGrid) {
      left[ch * plan.blocks + rank] = total;
    } else {
      totals[ch] = total;
    }
  }
  if (plan.meeting == Meeting::kCluster) {
    cluster_sync();
  } else if (plan.meeting == Meeting::kGrid) {
    unsigned* const counter = a.counters + group * kCounterStride;
    meet(counter, static_cast<unsigned>((turn + 1) * plan.blocks));
    for (int ch = warp; ch < width; ch += warps) {
      Partial total{};
      for (int r = lane; r < plan.blocks; r += kWarpSize) total = combine(total, left[ch * plan.blocks + r]);
      total = warp_reduce(total);
      if (lane == 0) totals[ch] = total;
    }
    __syncthreads();
  } else {
    __syncthreads();
  }
  const auto channels = memory.after();
  for (int ch = thread; ch < plan.width; ch += plan.threads) {
    if (ch >= width) {
      channels.set(ch, {});  // read with the others, for nothing
      continue;
    }
    const int64_t c = first_channel + ch;
    Partial total = totals[ch];
    if (plan.meeting == Meeting::kCluster) {
      total = Partial{};
      for (int r = 0; r < plan.blocks; ++r) total = combine(total, map_shared_rank(totals, r)[ch]);
    }
    channels.set(ch, map.channel(c, finish.find(c, total)));
    if (rank == 0) finish(c, total);
  }
  if (plan.meeting == Meeting::kCluster) cluster_arrive();  // has read what the others may give up now
  __syncthreads();
}

// ---- planes and rows ----------------------------------------------------------------------------------------

// Slots of one chunk, a multiple of what the reduction takes at once.
template <typename Reduce, int kVec>
__device__ __forceinline__ int held_chunk(int slots) {
  constexpr int kUnroll = kReduceUnroll<Reduce, kVec>;
  return (slots + kHeldChunks * kUnroll - 1) / (kHeldChunks * kUnroll) * kUnroll;
}

// Sends for the first slots of a unit, in kHeldChunks groups of copies for the reduction and one more for what
// the map alone reads.
template <int kVec, int kChannels, typename Reduce, typename Map, typename Vectors>
__device__ __forceinline__ void request_unit(const HeldMemory<kVec, kChannels, Reduce, Map>& memory,
                                             const Map& map, const Vectors& vectors, bool aligned, int stage) {
  const int held = vectors.count < memory.plan.slots ? vectors.count : memory.plan.slots;
  const int chunk = held_chunk<Reduce, kVec>(memory.plan.slots);
  for (int c = 0; c < kHeldChunks; ++c) {
    const int end = (c + 1) * chunk < held ? (c + 1) * chunk : held;
#pragma unroll 2
    for (int i = c * chunk; i < end; ++i) {
      const int64_t offset = vectors.offset(i);
#pragma unroll
      for (int n = 0; n < Reduce::kInputs; ++n) {
        if (map.input[n] != nullptr) memory.request(map, n, offset, aligned, stage, i);
      }
    }
    cp_async_commit_group();
  }
  if constexpr (Map::kInputs > Reduce::kInputs) {
    for (int i = 0; i < held; ++i) {
      const int64_t offset = vectors.offset(i);
#pragma unroll
      for (int n = Reduce::kInputs; n < Map::kInputs; ++n) {
        if (map.input[n] != nullptr) memory.request(map, n, offset, aligned, stage, i);
      }
    }
  }
  cp_async_commit_group();
  if constexpr (bits_of<Map>() == Bits::kRead) {
    if (!map.has_bits()) return;
#pragma unroll 4
    for (int i = 0; i < held; ++i) {
      *memory.bits(stage, i) = static_cast<uint8_t>(map.template bits<kVec>(vectors.offset(i)));
    }
  }
}

// Waits for chunk c of the older of two units whose copies are under way.
__device__ __forceinline__ void wait_for_chunk(int c) {
  static_assert(kHeldChunks == 4);
  switch (c) {
    case 0:
      return cp_async_wait_group<9>();
    case 1:
      return cp_async_wait_group<8>();
    case 2:
      return cp_async_wait_group<7>();
    case 3:
      return cp_async_wait_group<6>();
    default:
      return cp_async_wait_group<5>();
  }
}

template <bool kRows, typename Reduce, typename Finish, typename Map>
__device__ __forceinline__ void hold_units(const Reduce& reduce, const Finish& finish, const Map& map,
                                           const HeldArguments<typename Reduce::Partial>& a) {
  using scalar_t = typename Map::scalar_t;
  constexpr int kVec = kVecSize<scalar_t>, kChannels = kRows ? kVec : 1;
  constexpr int kGroup = SharedChannels<typename Map::Channel, typename Map::acc_t, kChannels>::kGroup;
  constexpr int kUnroll = kReduceUnroll<Reduce, kVec>;
  using Vectors = UnitVectors<kVec, kRows, typename Reduce::Partial>;
  FASTNN_DYNAMIC_SHARED(unsigned char, shared);
  const HeldPlan& plan = a.plan;
  const HeldMemory<kVec, kChannels, Reduce, Map> memory(plan, shared, map);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int64_t group = blockIdx.x / plan.blocks;
  const int rank = static_cast<int>(blockIdx.x % plan.blocks);
  const int chunk = held_chunk<Reduce, kVec>(plan.slots);
  map.begin(static_cast<int64_t>(blockIdx.x) * plan.threads + thread, int64_t{gridDim.x} * plan.threads);

  request_unit(memory, map, Vectors(a, group, rank), a.aligned, 0);
  int64_t turn = 0;
  for (int64_t unit = group; unit < plan.units; unit += plan.groups, ++turn) {
    const Vectors vectors(a, unit, rank);
    const int stage = plan.stages == 2 ? static_cast<int>(turn % 2) : 0;
    const int held = vectors.count < plan.slots ? vectors.count : plan.slots;
    if (plan.stages == 2 && unit + plan.groups < plan.units) {
      request_unit(memory, map, Vectors(a, unit + plan.groups, rank), a.aligned, stage ^ 1);
    } else {
#pragma unroll
      for (int c = 0; c <= kHeldChunks; ++c) cp_async_commit_group();  // so that waits may count
    }

    // Planes: the unit's constants. Rows have theirs in shared memory.
    [[maybe_unused]] typename Reduce::Channel channel[1];
    const int column = kRows ? thread % plan.columns : 0;
    if constexpr (kRows) {
      const int64_t first = unit * plan.width;
      for (int i = thread; i < plan.width && first + i < a.C; i += plan.threads) {
        memory.before().set(i, reduce.channel(first + i));
      }
      __syncthreads();
    } else {
      channel[0] = reduce.channel(unit);
    }

    // What is not held, then what is, as it arrives.
    typename Reduce::State state[kChannels]{};
    int64_t seen = 0;  // of each channel
    const auto add = [&](auto number, int i, bool here) {
      constexpr int kCount = decltype(number)::value;
      Vec<scalar_t, kVec> raw[Reduce::kInputs][kCount];
      uint32_t bits[kCount];
#pragma unroll
      for (int u = 0; u < kCount; ++u) {
        if (here) {
          memory.take(map, stage, i + u, u, raw, bits);
        } else {
          memory.take_from_memory(map, vectors.offset(i + u), a.aligned, u, raw, bits);
        }
      }
      if constexpr (kRows) {
        compiler_barrier();
#pragma unroll
        for (int first = 0; first < kVec; first += kGroup) {
          typename Reduce::Channel of_group[kGroup];
          memory.before().get(column, first, of_group);
          add_vectors(reduce, raw, bits, seen, of_group, state, first);
        }
      } else {
        add_vectors(reduce, raw, bits, seen, channel, state);
      }
      seen += kCount * kVec / kChannels;
    };
#pragma unroll 1
    for (int c = -1; c < kHeldChunks; ++c) {
      int i = held, end = vectors.count;
      if (c >= 0) {
        wait_for_chunk(c);
        i = c * chunk;
        end = i + chunk < held ? i + chunk : held;
      }
      for (; i + kUnroll <= end; i += kUnroll) add(std::integral_constant<int, kUnroll>{}, i, c >= 0);
      for (; i < end; ++i) add(std::integral_constant<int, 1>{}, i, c >= 0);
    }

    typename Reduce::Partial partial[kChannels];
#pragma unroll
    for (int k = 0; k < kChannels; ++k) partial[k] = reduce.partial(state[k], seen);
    auto* const scratch = memory.scratch() + warp * plan.width;
    if constexpr (kRows) {
      reduce_columns_of_warp(partial, plan.columns, 0, true,
                             [&](int k, const auto& total) { scratch[column * kVec + k] = total; });
    } else {
      const auto total = warp_reduce(partial[0]);
      if (lane == 0) scratch[0] = total;
    }
    finish_unit(a, memory, finish, map, plan.threads / kWarpSize, group, rank, turn,
                kRows ? unit * plan.width : unit);

    [[maybe_unused]] typename Map::Channel constants[1];
    if constexpr (!kRows) memory.after().get(0, 0, constants);
    wait_for_chunk(kHeldChunks);
    // The last first: of what is not held, the L2 has that. Whole warps together, as bits may have to be
    // stored.
    constexpr int kAtOnce = kMapUnroll<Map>;
#pragma unroll 1
    for (int last = vectors.rounds - 1; last >= 0; last -= kAtOnce) {
      Vec<scalar_t, kVec> raw[Map::kInputs][kAtOnce];
      uint32_t bits[kAtOnce];
      int64_t at[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int i = last - u;
        at[u] = i >= 0 && i < vectors.count ? vectors.offset(i) : -1;
        if (at[u] < 0) {
          bits[u] = 0;
#pragma unroll
          for (int n = 0; n < Map::kInputs; ++n) raw[n][u] = {};
        } else if (i < plan.slots) {
          memory.take(map, stage, i, u, raw, bits);
        } else {
          memory.take_from_memory(map, at[u], a.aligned, u, raw, bits);
        }
      }
      Vec<scalar_t, kVec> out[kAtOnce][Map::kOutputs];
      if constexpr (kRows) compiler_barrier();
#pragma unroll
      for (int first = 0; first < kVec; first += kRows ? kGroup : kVec) {
        [[maybe_unused]] typename Map::Channel of_group[kGroup];
        if constexpr (kRows) memory.after().get(column, first, of_group);
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          Vec<scalar_t, kVec> in[Map::kInputs];
          take_vector(raw, u, in);
#pragma unroll
          for (int k = 0; k < (kRows ? kGroup : kVec); ++k) {
            map_element(map, kRows ? of_group[k] : constants[0], first + k, in, out[u], bits[u]);
          }
        }
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        if (at[u] >= 0) store_outputs(map, at[u], a.aligned, out[u]);
        if constexpr (bits_of<Map>() == Bits::kWritten) map.store_bits(at[u], bits[u], at[u] >= 0);
      }
    }
    if (plan.stages == 1 && unit + plan.groups < plan.units) {
      request_unit(memory, map, Vectors(a, unit + plan.groups, rank), a.aligned, 0);
    }
  }
  if (plan.meeting == Meeting::kCluster) cluster_wait();
}

template <typename Reduce, typename Finish, typename Map, bool kRows>
__global__ void __launch_bounds__(kHeldThreads, 1)
    held_units_kernel(Reduce reduce, Finish finish, Map map, HeldArguments<typename Reduce::Partial> a) {
  if constexpr (kHasClusters) hold_units<kRows>(reduce, finish, map, a);
}

// ---- tiles --------------------------------------------------------------------------------------------------

template <typename Reduce, typename Finish, typename Map>
__device__ __forceinline__ void hold_tile(const Reduce& reduce, const Finish& finish, const Map& map,
                                          const HeldArguments<typename Reduce::Partial>& a) {
  using scalar_t = typename Map::scalar_t;
  constexpr int kVec = kVecSize<scalar_t>, kUnroll = kReduceUnroll<Reduce, 1>;
  FASTNN_DYNAMIC_SHARED(unsigned char, shared);
  const HeldPlan& plan = a.plan;
  const HeldMemory<kVec, 1, Reduce, Map> memory(plan, shared, map);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int64_t unit = blockIdx.x / plan.blocks;
  const int rank = static_cast<int>(blockIdx.x % plan.blocks);
  map.begin(static_cast<int64_t>(blockIdx.x) * plan.threads + thread, int64_t{gridDim.x} * plan.threads);

  const int64_t first_channel = unit * plan.width;
  const int width = static_cast<int>(a.C - first_channel < plan.width ? a.C - first_channel : plan.width);
  const int64_t first_image = rank * plan.per_block;
  const int64_t left = a.N - first_image;
  const int images = static_cast<int>(left < 0 ? 0 : left < plan.per_block ? left : plan.per_block);
  // Of the block's part, which shared memory holds as one array in the order of memory.
  const int run = static_cast<int>(width * a.S), S = static_cast<int>(a.S);
  const int vectors = images * (run / kVec);
  const Divisor& by_run = width == plan.width ? a.by_run : a.by_last_run;
  const auto offset = [&](int64_t vector) {
    const int64_t n = by_run.take(vector);
    return ((first_image + n) * a.C + first_channel) * a.S + vector * kVec;
  };

#pragma unroll
  for (int n = 0; n < Map::kInputs; ++n) {
    if (map.input[n] != nullptr) {
      int slot = 0;
#pragma unroll 2
      for (int j = thread; j < vectors; j += plan.threads, ++slot) {
        memory.request(map, n, offset(j), a.aligned, 0, slot);
      }
    }
    // What the map alone reads comes last.
    if (n == Reduce::kInputs - 1 || n == Map::kInputs - 1) cp_async_commit_group();
  }
  if constexpr (bits_of<Map>() == Bits::kRead) {
    if (map.has_bits()) {
      int slot = 0;
#pragma unroll 4
      for (int j = thread; j < vectors; j += plan.threads, ++slot) {
        *memory.bits(0, slot) = static_cast<uint8_t>(map.template bits<kVec>(offset(j)));
      }
    }
  }
  cp_async_wait_group<Map::kInputs == Reduce::kInputs ? 0 : 1>();
  __syncthreads();

  // Warps of one channel, of which a lane takes every step-th element.
  const int warps_of_each = plan.threads / kWarpSize / plan.width;
  const int ch = warp / warps_of_each;
  if (ch < width) {
    const typename Reduce::Channel channel[1] = {reduce.channel(first_channel + ch)};
    const int step = warps_of_each * kWarpSize;
    const int step_images = step / S, step_places = step % S;
    int m = warp % warps_of_each * kWarpSize + lane;
    int place = m % S, at = m / S * run + ch * S + place;  // of element m: in its plane, and in the array
    const int all = images * S;
    const auto advance = [&] {
      m += step;
      place += step_places;
      at += step_images * run + step_places;
      if (place >= S) {
        place -= S;
        at += run - S;
      }
    };
    typename Reduce::State state[1]{};
    int64_t seen = 0;
    const auto take = [&](auto& raw, auto& bits, int u) {
#pragma unroll
      for (int n = 0; n < Reduce::kInputs; ++n) {
        raw[n][u] = {};
        if (map.input[n] != nullptr) raw[n][u].v[0] = memory.element(n, at);
      }
      bits[u] = 0;
      if constexpr (bits_of<Map>() == Bits::kRead) {
        if (map.has_bits()) bits[u] = memory.bits_of_vector(at / kVec) >> (at % kVec);
      }
    };
    while (m + (kUnroll - 1) * step < all) {
      Vec<scalar_t, 1> raw[Reduce::kInputs][kUnroll];
      uint32_t bits[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        take(raw, bits, u);
        advance();
      }
      add_vectors(reduce, raw, bits, seen, channel, state);
      seen += kUnroll;
    }
    for (; m < all; advance()) {
      Vec<scalar_t, 1> raw[Reduce::kInputs][1];
      uint32_t bits[1];
      take(raw, bits, 0);
      add_vectors(reduce, raw, bits, seen, channel, state);
      ++seen;
    }
    const auto total = warp_reduce(reduce.partial(state[0], seen));
    if (lane == 0) memory.scratch()[warp % warps_of_each * plan.width + ch] = total;
  }
  finish_unit(a, memory, finish, map, warps_of_each, unit, rank, 0, first_channel);

  cp_async_wait_all();
  const auto constants = memory.after();
  const int slots = (vectors + plan.threads - 1) / plan.threads;  // whole warps together, for bits
#pragma unroll 2
  for (int slot = 0; slot < slots; ++slot) {
    const int64_t j = slot * plan.threads + thread;
    const bool exists = j < vectors;
    uint32_t bits[1] = {0};
    int64_t at = 0;
    if (exists) {
      Vec<scalar_t, kVec> raw[Map::kInputs][1];
      memory.take(map, 0, slot, 0, raw, bits);
      Vec<scalar_t, kVec> in[Map::kInputs], out[Map::kOutputs];
      take_vector(raw, 0, in);
      int64_t place = j;
      by_run.take(place);
      place *= kVec;
      int64_t channel = a.by_plane.take(place);
      const auto next = [&] {
        typename Map::Channel of_one[1];
        constants.get(static_cast<int>(channel++), 0, of_one);
        return of_one[0];
      };
      map_across_channels(map, place, a.S, next, in, out, bits[0]);
      at = offset(j);
      store_outputs(map, at, a.aligned, out);
    }
    if constexpr (bits_of<Map>() == Bits::kWritten) map.store_bits(at, bits[0], exists);
  }
  if (plan.meeting == Meeting::kCluster) cluster_wait();
}

template <typename Reduce, typename Finish, typename Map>
__global__ void __launch_bounds__(kHeldThreads, 1)
    held_tile_kernel(Reduce reduce, Finish finish, Map map, HeldArguments<typename Reduce::Partial> a) {
  if constexpr (kHasClusters) hold_tile(reduce, finish, map, a);
}

// ---- launchers ----------------------------------------------------------------------------------------------

static __global__ void zero_counters_kernel(unsigned* counters, int64_t count) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) counters[i] = 0;
}

template <typename Reduce, typename Map>
HeldNeeds held_needs(const Map& map) {
  HeldNeeds needs{};
  needs.scalar_bytes = static_cast<int>(sizeof(typename Map::scalar_t));
  for (const auto* p : map.input) needs.inputs += p != nullptr;
  if constexpr (bits_of<Map>() != Bits::kNone) {
    (bits_of<Map>() == Bits::kRead ? needs.reads_bits : needs.writes_bits) = map.has_bits();
  }
  needs.partial_bytes = static_cast<int>(sizeof(typename Reduce::Partial));
  needs.before_bytes = static_cast<int>(sizeof(typename Reduce::Channel));
  needs.after_bytes = static_cast<int>(sizeof(typename Map::Channel));
  return needs;
}

inline int64_t held_counter_bytes(const HeldPlan& plan) {
  return plan.groups * kCounterStride * static_cast<int64_t>(sizeof(unsigned));
}

// Bytes that reduce_and_map wants of workspace.
template <typename Reduce, typename Map>
int64_t reduce_and_map_workspace(const Map& map, const ChannelShape& shape) {
  const HeldPlan plan = choose_variant(shape, held_needs<Reduce>(map), device_limits());
  if (plan.variant == Variant::kTwoPass) return reduce_channels_workspace<Reduce>(shape);
  if (plan.meeting != Meeting::kGrid) return 0;
  const int64_t partials =
      2 * plan.grid_blocks() * plan.width * static_cast<int64_t>(sizeof(typename Reduce::Partial));
  return held_counter_bytes(plan) + partials;
}

template <typename Kernel, typename Reduce, typename Finish, typename Map>
Status launch_held(const char* name, Kernel kernel, const Reduce& reduce, const Finish& finish, const Map& map,
                   const ChannelShape& shape, const HeldPlan& plan, void* workspace, Stream stream) {
  using Partial = typename Reduce::Partial;
  constexpr int kVec = kVecSize<typename Map::scalar_t>;
  const bool tiles = plan.variant == Variant::kHeldTiles;
  const int64_t last_width = shape.C - (plan.units - 1) * plan.width;
  // Of numerators: vectors of a unit's part of a block, with what a slot has beyond them.
  const int64_t most = tiles ? int64_t{plan.slots + 1} * plan.threads : shape.N * (shape.S / kVec);
  HeldArguments<Partial> a{plan,
                           shape.N,
                           shape.C,
                           shape.S,
                           Divisor(tiles ? plan.width * shape.S / kVec : shape.S / kVec, most),
                           Divisor(last_width * shape.S / kVec, most),
                           Divisor(shape.S, plan.width * shape.S),
                           tensors_aligned(map),
                           nullptr,
                           nullptr};
  const dim3 grid(static_cast<unsigned>(plan.grid_blocks())), block(static_cast<unsigned>(plan.threads));
  const auto shared = static_cast<size_t>(plan.shared_bytes);
  if (plan.meeting == Meeting::kBlock) {
    return launch(name, kernel, grid, block, shared, stream, reduce, finish, map, a);
  }
  if (plan.meeting == Meeting::kCluster) {
    const dim3 cluster(static_cast<unsigned>(plan.blocks));
    return launch_cluster(name, kernel, grid, cluster, block, shared, stream, reduce, finish, map, a);
  }
  a.counters = static_cast<unsigned*>(workspace);
  a.partials = reinterpret_cast<Partial*>(static_cast<unsigned char*>(workspace) + held_counter_bytes(plan));
  const Status status = launch("zero_counters", zero_counters_kernel, dim3(1), dim3(kCounterThreads), 0, stream,
                               a.counters, plan.groups * kCounterStride);
  if (!status.ok()) return status;
  return launch_cooperative(name, kernel, grid, block, shared, stream, reduce, finish, map, a);
}

// What launches are called in errors and profiles.
struct PassNames {
  const char *reduce, *map;                           // two passes
  const char *held, *held_by_cluster, *held_by_grid;  // by Meeting

  const char* of(Meeting meeting) const {
    return meeting == Meeting::kBlock ? held : meeting == Meeting::kCluster ? held_by_cluster : held_by_grid;
  }
};

// Reduces each channel and maps its elements by what finish finds.
template <typename Reduce, typename Finish, typename Map>
Status reduce_and_map(const PassNames& names, const Reduce& reduce, const Finish& finish, const Map& map,
                      const ChannelShape& shape, void* workspace, Stream stream) {
  const HeldPlan plan = choose_variant(shape, held_needs<Reduce>(map), device_limits());
  const auto held = [&](auto kernel) {
    return launch_held(names.of(plan.meeting), kernel, reduce, finish, map, shape, plan, workspace, stream);
  };
  switch (plan.variant) {
    case Variant::kTwoPass:
      break;
    case Variant::kHeldPlanes:
      return held(held_units_kernel<Reduce, Finish, Map, false>);
    case Variant::kHeldRows:
      return held(held_units_kernel<Reduce, Finish, Map, true>);
    case Variant::kHeldTiles:
      return held(held_tile_kernel<Reduce, Finish, Map>);
  }
  const Status status = reduce_channels(names.reduce, reduce, finish, shape, workspace, stream);
  return status.ok() ? map_channels(names.map, map, shape, stream) : status;
}

}  // namespace fastnn::cuda
