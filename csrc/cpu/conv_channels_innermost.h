// Channels-first activations copied with their channels innermost.
//
// A product of small planes wastes much of what it does: vectors of positions cross the planes' ends, taps that
// are outside of the image are multiplied by zeros (18 % of a 3x3 filter's at 7 x 7), and every other position
// has to be gathered. With channels innermost rows are read in place, and taps that are outside are left out.
// The copy is one pass over an image that the product reads once for each tap; the output is written as it is,
// from a tile of sums.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../ops/conv.h"
#include "conv_in_place.h"
#include "conv_operands.h"
#include "conv_plan.h"
#include "conv_transpose.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND {

// An activation: [N, C, size].
struct Activation {
  int64_t N, C;
  const int64_t (&size)[kSpatialDims];
  const ConvStrides& strides;

  int64_t plane() const { return volume(size); }
  // Whether it is planes without gaps. Strides of dimensions of size 1 say nothing.
  bool has_planes() const {
    int64_t dense = 1;
    for (int i = kSpatialDims - 1; i >= 0; --i) {
      if (size[i] > 1 && strides[2 + i] != dense) return false;
      dense *= size[i];
    }
    return true;
  }
};

// Whether its channels are innermost as it is, as in planes of one value.
inline bool channels_innermost(const Activation& in) { return in.strides[1] == 1; }

// Places of y up to which a copy pays: with one tap there is less to gain from it.
inline constexpr int64_t kSmallPlane = 256, kSmallPlaneOfOneTap = 64;

// Whether a convolution into small planes reads `in` with its channels innermost, of which it makes `out`: the
// two activations, in either order. It reads a copy of what is planes of more than one value.
template <typename scalar_t>
bool reads_channels_innermost(const ConvGeometry& g, const Activation& in, const Activation& out) {
  if (!std::is_same_v<scalar_t, acc_type<scalar_t>>) return false;
  if ((!in.has_planes() && !channels_innermost(in)) || out.strides[1] == 1 || !out.has_planes()) return false;
  if (in.C / g.groups < kMinAddressedRun || out.C / g.groups < kLanes<acc_type<scalar_t>>) return false;
  return volume(g.out) <= (volume(g.kernel) > 1 ? kSmallPlane : kSmallPlaneOfOneTap);
}

// Bytes of the copy.
template <typename scalar_t>
int64_t channels_innermost_bytes(const Activation& in) {
  if (channels_innermost(in)) return 0;
  return round_up(in.N * in.C * in.plane() * static_cast<int64_t>(sizeof(scalar_t)), 64);
}

// Copies `in`, at `image`, where it has to be.
template <typename scalar_t>
void copy_channels_innermost(const Activation& in, const void* image, void* copy) {
  if constexpr (!std::is_same_v<scalar_t, acc_type<scalar_t>>) return;
  if (channels_innermost(in)) return;
  const auto* const src = static_cast<const scalar_t*>(image);
  auto* const dst = static_cast<acc_type<scalar_t>*>(copy);
  constexpr int64_t kBlock = 64;
  const int64_t blocks = ceil_div(in.C, kBlock), plane = in.plane();
  const int64_t grain = std::max<int64_t>(1, kMinPackPerThread / std::max<int64_t>(1, kBlock * plane));
  parallel_for(in.N * blocks, grain, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t n = task / blocks, c = task % blocks * kBlock;
      copy_transposed(src + n * in.strides[0] + c * in.strides[1], in.strides[1], std::min(kBlock, in.C - c),
                      plane, dst + n * in.C * plane + c, in.C);
    }
  });
}

// Copies what was made with channels innermost to `out`, which is planes.
template <typename scalar_t>
void copy_to_planes(const Activation& out, const void* made, void* image) {
  if constexpr (!std::is_same_v<scalar_t, acc_type<scalar_t>>) return;
  const auto* const src = static_cast<const scalar_t*>(made);
  auto* const dst = static_cast<acc_type<scalar_t>*>(image);
  constexpr int64_t kBlock = 64;
  const int64_t plane = out.plane(), blocks = ceil_div(plane, kBlock);
  const int64_t grain = std::max<int64_t>(1, kMinPackPerThread / std::max<int64_t>(1, kBlock * out.C));
  parallel_for(out.N * blocks, grain, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t n = task / blocks, position = task % blocks * kBlock;
      copy_transposed(src + (n * plane + position) * out.C, out.C, std::min(kBlock, plane - position), out.C,
                      dst + n * out.strides[0] + position, out.strides[1]);
    }
  });
}

// Turns an image and its strides to the copy.
inline void use_channels_innermost(const Activation& in, void* copy, const void*& image, ConvStrides& strides) {
  if (channels_innermost(in)) return;
  image = copy;
  const int64_t (&size)[kSpatialDims] = in.size;
  strides[4] = in.C;
  strides[3] = size[2] * strides[4];
  strides[2] = size[1] * strides[3];
  strides[1] = 1;
  strides[0] = size[0] * strides[2];
}

}  // namespace fastnn::FASTNN_BACKEND
