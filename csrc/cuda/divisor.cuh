// Division by a number that is known at launch, for taking linear indices apart.
#pragma once

#include <cstdint>

#include "platform.cuh"

namespace fastnn::cuda {

// Quotients of n in [0, max_numerator] by `divisor` >= 1. Where both fit in 31 bits, which a whole launch
// knows, a quotient is a multiplication, an addition and a shift (Granlund and Montgomery 1994, figure 4.1);
// beyond that it is a 64-bit division, some twenty times the cost.
class Divisor {
 public:
  Divisor(int64_t divisor, int64_t max_numerator) : divisor_(divisor > 0 ? divisor : 1) {
    constexpr int64_t kLimit = int64_t{1} << 31;
    narrow_ = divisor_ < kLimit && max_numerator < kLimit;
    if (!narrow_) return;
    while ((int64_t{1} << shift_) < divisor_) ++shift_;
    const uint64_t excess = (uint64_t{1} << shift_) - static_cast<uint64_t>(divisor_);
    magic_ = static_cast<uint32_t>((excess << 32) / static_cast<uint64_t>(divisor_) + 1);
  }

  __device__ __forceinline__ int64_t divide(int64_t n) const {
    if (!narrow_) return n / divisor_;
    const uint32_t low = static_cast<uint32_t>(n);
    const uint32_t high = static_cast<uint32_t>((static_cast<uint64_t>(low) * magic_) >> 32);
    return (high + low) >> shift_;
  }

  // Replaces n by its remainder and returns the quotient.
  __device__ __forceinline__ int64_t take(int64_t& n) const {
    const int64_t quotient = divide(n);
    n -= quotient * divisor_;
    return quotient;
  }

  // The reverse, for walking from the fastest dimension to the slowest: replaces n by its quotient and returns
  // the remainder.
  __device__ __forceinline__ int64_t digit(int64_t& n) const {
    const int64_t whole = n;
    n = divide(whole);
    return whole - n * divisor_;
  }

 private:
  int64_t divisor_;
  uint32_t magic_ = 0;
  int shift_ = 0;
  bool narrow_;
};

}  // namespace fastnn::cuda
