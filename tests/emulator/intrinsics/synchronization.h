// Barriers, fences and the collectives of a warp.
//
// The lanes that a mask names wait for each other; lanes that meet must use the same operation and mask. What
// the programming guide leaves undefined is an error here where it can be seen: a caller outside its own
// mask, a mask that names a lane that has exited, lanes that never arrive, __syncthreads() reached at
// different places of the code or not by all threads. Lanes that a block of less than a multiple of 32
// threads does not have may be named. A shuffle from a lane outside the mask yields 0xFF bytes.
#pragma once

#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "../runtime.h"

namespace fastnn::emulator {

enum class BlockOp : uint8_t { kSync, kCount, kAnd, kOr, kNamed };
enum class WarpOp : uint8_t {
  kSync,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAny,
  kAll,
  kMatchAny,
  kMatchAll,
  kReduceAdd,
  kReduceMin,
  kReduceMax,
  kReduceMinSigned,
  kReduceMaxSigned,
  kReduceAnd,
  kReduceOr,
  kReduceXor,
  kMeet,  // warp_meet()
};

// What one lane brings to a collective.
struct WarpArgs {
  WarpOp op;
  uint8_t width = 32;  // shuffles: lanes in a segment
  unsigned mask;
  unsigned operand = 0;  // shuffles: source lane, distance or lane mask
  uint64_t value = 0;
};

int block_barrier(BlockOp op, int predicate, std::source_location where);
uint64_t warp_collective(const WarpArgs& args, std::source_location where);
enum class FenceScope : uint8_t { kBlock, kDevice };
void fence(FenceScope scope);
void fence_acquire(FenceScope scope);
void fence_release(FenceScope scope);
// Ends the launch with an error.
[[noreturn]] void trap(std::source_location where);

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T shuffle(WarpOp op, unsigned mask, T value, unsigned operand, int width, std::source_location where) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes a lane");
  // A width that does not fit the field becomes 0, which is refused.
  const auto narrow = static_cast<uint8_t>(width >= 1 && width <= 32 ? width : 0);
  return from_bits<T>(warp_collective(
      {.op = op, .width = narrow, .mask = mask, .operand = operand, .value = to_bits(value)}, where));
}

}  // namespace fastnn::emulator

inline void __syncthreads(FASTNN_EMULATOR_HERE) {
  fastnn::emulator::block_barrier(fastnn::emulator::BlockOp::kSync, 0, where);
}
inline int __syncthreads_count(int predicate, FASTNN_EMULATOR_HERE) {
  return fastnn::emulator::block_barrier(fastnn::emulator::BlockOp::kCount, predicate, where);
}
inline int __syncthreads_and(int predicate, FASTNN_EMULATOR_HERE) {
  return fastnn::emulator::block_barrier(fastnn::emulator::BlockOp::kAnd, predicate, where);
}
inline int __syncthreads_or(int predicate, FASTNN_EMULATOR_HERE) {
  return fastnn::emulator::block_barrier(fastnn::emulator::BlockOp::kOr, predicate, where);
}

inline void __threadfence() { fastnn::emulator::fence(fastnn::emulator::FenceScope::kDevice); }
inline void __threadfence_block() { fastnn::emulator::fence(fastnn::emulator::FenceScope::kBlock); }
inline void __threadfence_system() { fastnn::emulator::fence(fastnn::emulator::FenceScope::kDevice); }

inline void __nanosleep(unsigned) { fastnn::emulator::yield(); }
[[noreturn]] inline void __trap(FASTNN_EMULATOR_HERE) { fastnn::emulator::trap(where); }

inline void __syncwarp(unsigned mask = 0xffffffffu, FASTNN_EMULATOR_HERE) {
  fastnn::emulator::warp_collective({.op = fastnn::emulator::WarpOp::kSync, .mask = mask}, where);
}

// The lanes that run together: the device promises nothing more than the caller itself, and here it is that.
unsigned __activemask();

template <typename T>
T __shfl_sync(unsigned mask, T value, int source_lane, int width = 32, FASTNN_EMULATOR_HERE) {
  return fastnn::emulator::shuffle(fastnn::emulator::WarpOp::kShuffle, mask, value,
                                   static_cast<unsigned>(source_lane), width, where);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTNN_EMULATOR_HERE) {
  return fastnn::emulator::shuffle(fastnn::emulator::WarpOp::kShuffleUp, mask, value, delta, width, where);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTNN_EMULATOR_HERE) {
  return fastnn::emulator::shuffle(fastnn::emulator::WarpOp::kShuffleDown, mask, value, delta, width, where);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, FASTNN_EMULATOR_HERE) {
  return fastnn::emulator::shuffle(fastnn::emulator::WarpOp::kShuffleXor, mask, value,
                                   static_cast<unsigned>(lane_mask), width, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, FASTNN_EMULATOR_HERE) {
  return static_cast<unsigned>(fastnn::emulator::warp_collective(
      {.op = fastnn::emulator::WarpOp::kBallot, .mask = mask, .value = predicate != 0}, where));
}
inline int __any_sync(unsigned mask, int predicate, FASTNN_EMULATOR_HERE) {
  return static_cast<int>(fastnn::emulator::warp_collective(
      {.op = fastnn::emulator::WarpOp::kAny, .mask = mask, .value = predicate != 0}, where));
}
inline int __all_sync(unsigned mask, int predicate, FASTNN_EMULATOR_HERE) {
  return static_cast<int>(fastnn::emulator::warp_collective(
      {.op = fastnn::emulator::WarpOp::kAll, .mask = mask, .value = predicate != 0}, where));
}

template <typename T>
unsigned __match_any_sync(unsigned mask, T value, FASTNN_EMULATOR_HERE) {
  return static_cast<unsigned>(fastnn::emulator::warp_collective(
      {.op = fastnn::emulator::WarpOp::kMatchAny, .mask = mask, .value = fastnn::emulator::to_bits(value)},
      where));
}
template <typename T>
unsigned __match_all_sync(unsigned mask, T value, int* predicate, FASTNN_EMULATOR_HERE) {
  const auto lanes = static_cast<unsigned>(fastnn::emulator::warp_collective(
      {.op = fastnn::emulator::WarpOp::kMatchAll, .mask = mask, .value = fastnn::emulator::to_bits(value)},
      where));
  *predicate = lanes != 0;
  return lanes;
}

#define FASTNN_EMULATOR_REDUCE(name, type, op_name)                                                     \
  inline type name(unsigned mask, type value, FASTNN_EMULATOR_HERE) {                                   \
    return static_cast<type>(fastnn::emulator::warp_collective(                                         \
        {.op = fastnn::emulator::WarpOp::op_name, .mask = mask, .value = static_cast<uint32_t>(value)}, \
        where));                                                                                        \
  }
FASTNN_EMULATOR_REDUCE(__reduce_add_sync, unsigned, kReduceAdd)
FASTNN_EMULATOR_REDUCE(__reduce_add_sync, int, kReduceAdd)
FASTNN_EMULATOR_REDUCE(__reduce_min_sync, unsigned, kReduceMin)
FASTNN_EMULATOR_REDUCE(__reduce_min_sync, int, kReduceMinSigned)
FASTNN_EMULATOR_REDUCE(__reduce_max_sync, unsigned, kReduceMax)
FASTNN_EMULATOR_REDUCE(__reduce_max_sync, int, kReduceMaxSigned)
FASTNN_EMULATOR_REDUCE(__reduce_and_sync, unsigned, kReduceAnd)
FASTNN_EMULATOR_REDUCE(__reduce_or_sync, unsigned, kReduceOr)
FASTNN_EMULATOR_REDUCE(__reduce_xor_sync, unsigned, kReduceXor)
#undef FASTNN_EMULATOR_REDUCE

namespace fastnn::cuda {

inline void compiler_barrier() {}

}  // namespace fastnn::cuda
