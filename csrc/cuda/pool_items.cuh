// Kernels of pooling in which a thread owns kVec neighbouring values of one tensor: how its linear index is
// taken apart, where the values of a place lie, and the windows along one dimension.
#pragma once

#include <cstdint>

#include "../ops/pool.h"
#include "divisor.cuh"
#include "reduce.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kItemThreads = 256;
constexpr int64_t kMostItemBlocks =
    8192;  // eight waves of full blocks on the largest device; the rest is a loop

// Takes the linear index of a work item, kVec channels of a position of x or of y, apart.
struct Items {
  int64_t count;
  Divisor by_width, by_height, by_depth, by_channels;
  bool channels_first;

  Items(const PoolGeometry& g, const int64_t (&size)[kSpatialDims], int vec)
      : count(g.N * size[0] * size[1] * size[2] * (g.C / vec)),
        by_width(size[2], count),
        by_height(size[1], count),
        by_depth(size[0], count),
        by_channels(g.C / vec, count),
        channels_first(g.layout == Layout::kChannelsFirst) {}

  // Where the item lies: position at[], and `plane`, the rest of its index: n * C + c with channels first, n
  // otherwise, with `vector` then its channel / vec and 0 otherwise.
  struct Place {
    int64_t at[kSpatialDims];
    int64_t plane, vector;
  };

  __device__ __forceinline__ Place place(int64_t item) const {
    Place p;
    p.vector = channels_first ? 0 : by_channels.digit(item);
    p.at[2] = by_width.digit(item);
    p.at[1] = by_height.digit(item);
    p.at[0] = by_depth.digit(item);
    p.plane = item;
    return p;
  }
};

// One array of the geometry's layout: its item (plane, vector) begins at base(), positions lie `step` apart.
struct Field {
  int64_t size[kSpatialDims];
  int64_t plane_elements, step;

  Field(const PoolGeometry& g, const int64_t (&s)[kSpatialDims])
      : size{s[0], s[1], s[2]},
        plane_elements(s[0] * s[1] * s[2] * (g.layout == Layout::kChannelsFirst ? 1 : g.C)),
        step(g.layout == Layout::kChannelsFirst ? 1 : g.C) {}

  __device__ __forceinline__ int64_t base(const Items::Place& p, int vec) const {
    return p.plane * plane_elements + p.vector * vec;
  }
  __device__ __forceinline__ int64_t position(int64_t d, int64_t h, int64_t w) const {
    return (d * size[1] + h) * size[2] + w;
  }
  __device__ __forceinline__ int64_t positions() const { return size[0] * size[1] * size[2]; }
};

// One dimension of sliding or adaptive windows, with divisions by numbers known at launch.
struct PoolDim {
  int64_t in, out, kernel, stride, pad;
  bool adaptive;
  Divisor by_in, by_out, by_stride;

  PoolDim(const PoolGeometry& g, int d)
      : in(g.in[d]),
        out(g.out[d]),
        kernel(g.kernel[d]),
        stride(g.stride[d]),
        pad(g.pad[d]),
        adaptive(g.windows == Windows::kAdaptive),
        by_in(g.in[d], (g.in[d] + 1) * g.out[d] + g.in[d]),
        by_out(g.out[d], (g.out[d] + 1) * g.in[d] + g.out[d]),
        by_stride(g.stride[d], g.in[d] + g.pad[d]) {}

  // pool_window(), pool_cover() and pool_count() of ops/pool.h
  __device__ __forceinline__ PoolRange window(int64_t o) const {
    if (adaptive) return {by_out.divide(o * in), by_out.divide((o + 1) * in + out - 1)};
    const int64_t begin = o * stride - pad, end = begin + kernel;
    return {begin < 0 ? 0 : begin, end > in ? in : end};
  }
  __device__ __forceinline__ PoolRange cover(int64_t i) const {
    if (adaptive) return {by_in.divide(i * out), by_in.divide((i + 1) * out + in - 1)};
    const int64_t padded = i + pad, before = padded - kernel, end = by_stride.divide(padded) + 1;
    return {before < 0 ? 0 : by_stride.divide(before) + 1, end > out ? out : end};
  }
  __device__ __forceinline__ int64_t count(int64_t o, bool count_pad) const {
    if (count_pad && !adaptive) {
      const int64_t left = in + 2 * pad - o * stride;
      return left < kernel ? left : kernel;
    }
    const PoolRange w = window(o);
    return w.end - w.begin;
  }
};

dim3 grid_for(const Items& items) {
  const int64_t blocks = ceil_div(items.count, kItemThreads);
  return dim3(static_cast<unsigned>(blocks < kMostItemBlocks ? blocks : kMostItemBlocks));
}

}  // namespace
}  // namespace fastnn::cuda
