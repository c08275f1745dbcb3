// What passes over an activation have in common in which every channel has constants of its own: a reduction
// per channel, and a map of elements. Each layout is one of two orders in memory:
//
//   planes  [N, C, S]   a vector's elements are one channel's (or, where S has a rest, of channels that follow
//                       each other)
//   rows    [rows, C]   a thread owns a vector of channels, whose constants stay in registers, and walks rows
//
// Rows may be those of several samples, [samples, rows, C], whose channels are apart: channel c of sample n is
// channel n * C + c to the ops. (With planes those are N * C channels of one image.)
//
// channels_two_pass.cuh reads the tensors twice, once for the reduction and once for the map; channels_held.cuh
// once, where a channel's elements fit on the chip. Both do the same arithmetic with the same ops.
//
// A reduction is described by a struct with
//   scalar_t, acc_t, kInputs; const scalar_t* input[kInputs]   null inputs read as 0
//   Channel, channel(c)             the channel's constants
//   State, Partial                  State{}: a thread's running result; Partial: see reduce.cuh
//   Step, step(seen, count)         what adding `count` values after `seen` others needs, for all channels
//   alike add(state, channel, values, step)   values[input][k]: as many as `count` said, one channel's
//   partial(state, seen)
// What it leads to by one with
//   finish(c, Partial)              stores what was found of channel c, once
//   Found, find(c, Partial)         the same as a value, by as many blocks as need it
// And a map by one with
//   scalar_t, acc_t, kInputs, kOutputs, input as above (a reduction's inputs before those that it has alone)
//   scalar_t* output[kOutputs]                       null outputs are not written
//   Channel, channel(c)                              from what a finish has stored
//   channel(c, Found)                                from what one has found
//   apply(channel, in[kInputs], out[kOutputs])
//   begin(thread, threads)                           run by all threads of the launch, with their numbers
//   kSamples                                         where it is to be run on several samples
//
// Reduction and map may know a bit of each element (batch_norm_activation.cuh), and then have
//   kBits                                            Bits::kRead or Bits::kWritten
//   has_bits()                                       whether there are any in this launch
//   bits<kVec>(i)                                    read: of the elements from i on, before
//   adjust(channel, values, bit) of a reduction      what an element's values become by it
//   apply(channel, in, out, bit) of a map            bit is read or written
//   store_bits(i, bits, exists)                      written: by whole warps, whose lanes have vectors next to
//                                                    each other; kBitsTogether elements from a multiple of that
//                                                    on are all of one call
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
  int64_t samples = 1;  // with rows; N and S are each one's

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

  int64_t rows() const { return N * S; }  // of a sample
  int64_t channels() const { return samples * C; }
  int64_t elements() const { return samples * N * C * S; }
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

// Bits are kept in bytes: elements that share one are stored by one call.
inline constexpr int kBitsTogether = 8;

// Vectors of each input that a thread of a reduction has in flight: 64 bytes or more, fewer where several
// inputs share the registers. Powers of two, since statistics halve a chunk down to one value.
template <typename Op, int kVec>
inline constexpr int kReduceUnroll = (kVec == 1 ? 8 : 4) / (Op::kInputs == 1 ? 1 : 2);
// The same of a map, whose loads must all come before its stores: the compiler cannot know them apart. 48 or 64
// bytes a thread.
template <typename Op>
inline constexpr int kMapUnroll = Op::kInputs == 1   ? 4
                                  : Op::kInputs == 2 ? 2
                                                     : 1;

// Constants of the channels of `columns` vectors of kVec each, in shared memory. By numbers and, within a
// number, by groups that one read has: of all columns the first group, then of all the next, so that lanes with
// columns next to each other read without bank conflicts.
template <typename Channel, typename number_t, int kVec>
struct SharedChannels {
  static constexpr int kNumbers = sizeof(Channel) / sizeof(number_t);
  static constexpr int kGroup = kVecSize<number_t> < kVec ? kVecSize<number_t> : kVec;
  number_t* numbers;
  int columns;

  __device__ __forceinline__ void set(int ch, const Channel& channel) const {
    const int column = ch / kVec, k = ch % kVec;
    number_t* const place = numbers + (k / kGroup * columns + column) * kGroup + k % kGroup;
    const auto& values = reinterpret_cast<const number_t(&)[kNumbers]>(channel);
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) place[i * columns * kVec] = values[i];
  }
  // Of channels first, first + 1, ... of a column; first is a multiple of kGroup.
  __device__ __forceinline__ void get(int column, int first, Channel (&channel)[kGroup]) const {
    const number_t* const place = numbers + (first / kGroup * columns + column) * kGroup;
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      const auto values = load_vec<kGroup>(place + i * columns * kVec, true);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) reinterpret_cast<number_t(&)[kNumbers]>(channel[k])[i] = values.v[k];
    }
  }
};

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

// The bits of the vectors at offset(u), where a reduction or a map reads any.
template <int kVec, int kCount, typename Op, typename Offset>
__device__ __forceinline__ void load_bits(const Op& op, const Offset& offset, uint32_t (&bits)[kCount]) {
#pragma unroll
  for (int u = 0; u < kCount; ++u) {
    bits[u] = 0;
    if constexpr (bits_of<Op>() == Bits::kRead) bits[u] = op.template bits<kVec>(offset(u));
  }
}

// Adds kCount vectors: where kChannels is 1, all of one channel; else their elements from `first` on to a
// channel each, of which `state` has as many as a vector has elements.
template <int kChannels, int kVec, int kCount, int kStates, typename Op>
__device__ __forceinline__ void add_vectors(const Op& op,
                                            const Vec<typename Op::scalar_t, kVec> (&raw)[Op::kInputs][kCount],
                                            [[maybe_unused]] const uint32_t (&bits)[kCount], int64_t seen,
                                            const typename Op::Channel (&channel)[kChannels],
                                            typename Op::State (&state)[kStates], int first = 0) {
  static_assert(kStates == (kChannels == 1 ? 1 : kVec));
  constexpr int kValues = kCount * kVec / kStates;
  const auto step = op.step(seen, kValues);
#pragma unroll
  for (int k = 0; k < kChannels; ++k) {
    const auto vector_of = [](int m) { return kChannels == 1 ? m / kVec : m; };
    const auto element_of = [=](int m) { return kChannels == 1 ? m % kVec : first + k; };
    typename Op::acc_t values[Op::kInputs][kValues];
#pragma unroll
    for (int i = 0; i < Op::kInputs; ++i) {
#pragma unroll
      for (int m = 0; m < kValues; ++m) values[i][m] = to_acc(raw[i][vector_of(m)].v[element_of(m)]);
    }
    if constexpr (bits_of<Op>() == Bits::kRead) {
#pragma unroll
      for (int m = 0; m < kValues; ++m) {
        op.adjust(channel[k], values, m, bits[vector_of(m)] >> element_of(m) & 1);
      }
    }
    op.add(state[first + k], channel[k], values, step);
  }
}

// Adds the kCount vectors at offset(u) of memory.
template <int kVec, int kCount, int kChannels, typename Op, typename Offset>
__device__ __forceinline__ void add_from_memory(const Op& op, bool aligned, const Offset& offset, int64_t seen,
                                                const typename Op::Channel (&channel)[kChannels],
                                                typename Op::State (&state)[kChannels]) {
  Vec<typename Op::scalar_t, kVec> raw[Op::kInputs][kCount];
  uint32_t bits[kCount];
  load_vectors(op, aligned, offset, raw);
  load_bits<kVec>(op, offset, bits);
  add_vectors(op, raw, bits, seen, channel, state);
}

// Element k of vectors; its bit is bit k of `bits`, which are zero before it is written.
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

// A vector whose first element is element s of a channel of S elements; next() gives that channel, and then
// those that follow it.
template <int kVec, typename Op, typename Next>
__device__ __forceinline__ void map_across_channels(const Op& op, int64_t s, int64_t S, Next&& next,
                                                    const Vec<typename Op::scalar_t, kVec> (&in)[Op::kInputs],
                                                    Vec<typename Op::scalar_t, kVec> (&out)[Op::kOutputs],
                                                    uint32_t& bits) {
  typename Op::Channel channel = next();
#pragma unroll
  for (int k = 0; k < kVec; ++k, ++s) {
    if (s == S) {
      s = 0;
      channel = next();
    }
    map_element(op, channel, k, in, out, bits);
  }
}

// Vector u of several in flight, for one thread.
template <int kVec, int kCount, typename scalar_t, int kInputs>
__device__ __forceinline__ void take_vector(const Vec<scalar_t, kVec> (&raw)[kInputs][kCount], int u,
                                            Vec<scalar_t, kVec> (&one)[kInputs]) {
#pragma unroll
  for (int i = 0; i < kInputs; ++i) one[i] = raw[i][u];
}

template <int kVec, typename Op>
__device__ __forceinline__ void store_outputs(const Op& op, int64_t offset, bool aligned,
                                              const Vec<typename Op::scalar_t, kVec> (&out)[Op::kOutputs]) {
#pragma unroll
  for (int i = 0; i < Op::kOutputs; ++i) {
    if (op.output[i] != nullptr) store_vec(op.output[i] + offset, out[i], aligned);
  }
}

}  // namespace fastnn::cuda
