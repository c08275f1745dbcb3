// The tensors of a convolution as axes and patch matrices.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../ops/conv.h"
#include "conv_patches.h"

namespace fastnn::FASTNN_BACKEND {

inline int64_t volume(const int64_t (&size)[kSpatialDims]) { return size[0] * size[1] * size[2]; }

// Axis of n and the spatial dimensions of an activation; the element strides are those of [N, C, D, H, W].
inline Axis position_axis(int64_t N, const int64_t (&size)[kSpatialDims], const ConvStrides& strides,
                          const int64_t (&step)[kSpatialDims]) {
  return {{N, size[0], size[1], size[2]},
          {strides[0], strides[2] * step[0], strides[3] * step[1], strides[4] * step[2]}};
}

inline Axis plain_axis(int64_t size, int64_t stride) { return {{1, 1, 1, size}, {0, 0, 0, stride}}; }

inline constexpr int64_t kOnes[kSpatialDims] = {1, 1, 1};

// Patches of x as forward sees them: positions of y; taps and the channels of one group.
template <typename scalar_t>
PatchMatrix<scalar_t> input_patches(const ConvGeometry& g, const void* x, const ConvStrides& strides) {
  PatchMatrix<scalar_t> m{};
  m.data = static_cast<const scalar_t*>(x);
  m.positions = position_axis(g.N, g.out, strides, g.stride);
  m.depth.size[3] = g.C / g.groups;
  m.depth.stride[3] = strides[1];
  for (int i = 0; i < kSpatialDims; ++i) {
    m.depth.size[i] = g.kernel[i];
    m.depth.stride[i] = g.dilation[i] * strides[2 + i];
    m.step[i] = g.stride[i];
    m.tap_step[i] = g.dilation[i];
    m.origin[i] = -g.pad[i];
    m.extent[i] = g.in[i];
    m.origin_offset -= g.pad[i] * strides[2 + i];
  }
  m.simplify();
  return m;
}

// Whether neighbouring elements of an activation are channels, as in channels-last memory, rather than
// positions.
inline bool channels_contiguous(const int64_t (&size)[kSpatialDims], const ConvStrides& strides) {
  Axis positions = position_axis(1, size, strides, kOnes);
  positions.merge();
  return strides[1] == 1 && positions.stride[3] != 1;
}

}  // namespace fastnn::FASTNN_BACKEND
