// The ways in which the kernels of convolution can do one: which kernels, and with which of their tiles and
// splits. Host code.
#pragma once

#include <cstdint>
#include <cstdio>

#include "../ops/conv.h"

namespace fastnn::cuda {

enum class ConvKernels { kSmallGroups, kWgmma, kProduct, kDepthwise, kImplicitGemm };
inline constexpr int kConvKernels = 5;

// One of them: what conv_variants() tells of it, and what it leaves out.
struct ConvWay {
  int ways = 1;       // of these kernels, for this convolution
  int way = 0;        // this one
  int64_t order = 0;  // what the bits depend on: equal for ways that add in the same order
  double cycles = 0;  // expected, where these kernels' ways are chosen by it
  char name[sizeof(ConvVariant::name)] = "";
};

// Numbers of variants: 1 + kernels * kMostWays + way.
inline constexpr int kMostWays = 32;

inline int32_t variant_of(ConvKernels kernels, int way) {
  return 1 + static_cast<int32_t>(kernels) * kMostWays + way;
}

// The way that a variant asks these kernels for; -1: their own choice.
inline int way_of(int32_t variant, ConvKernels kernels) {
  const int32_t way = variant - variant_of(kernels, 0);
  return way >= 0 && way < kMostWays ? way : -1;
}

}  // namespace fastnn::cuda
