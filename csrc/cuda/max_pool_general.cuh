// Max pooling of any shape: one kernel a direction for both layouts and every window, and the gather. It is the
// kernel for what no other takes: windows through the depth, those of more rows than a tile of shared memory
// holds, forward those that leave rows of x out, and channels innermost in whole vectors under windows that are
// not walked in registers.
//
// A thread owns kVec neighbouring channels of one position, and a position's neighbours lie `step` elements
// apart. Channels-first has kVec = 1 and step = 1, so that a warp runs along the width; channels-last has
// kVec = 16 bytes of channels (1 where C has a rest) and step = C, so that a warp runs along the channels.
//
//   forward   a thread per output: compares the window's places in row-major order
//   backward  a thread per input: adds, in the same order, the windows that chose it
//   gather    a thread per output: reads the one place that the offset names
//
// The offset's type is switched on where offsets are loaded and stored, a branch that every thread takes alike:
// template parameters would triple the kernels for windows of more than 256 places, which hardly occur.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../ops/max_pool.h"
#include "dispatch.cuh"
#include "max_pool_walk.cuh"
#include "pool_items.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

template <int kVec>
__device__ __forceinline__ void load_offsets(const void* offsets, OffsetType type, int64_t i, bool aligned,
                                             int (&out)[kVec]) {
  const auto widen = [&](const auto* typed) {
    const auto raw = load_vec<kVec>(typed + i, aligned);
#pragma unroll
    for (int k = 0; k < kVec; ++k) out[k] = static_cast<int>(raw.v[k]);
  };
  switch (type) {
    case OffsetType::kUInt8:
      return widen(static_cast<const uint8_t*>(offsets));
    case OffsetType::kUInt16:
      return widen(static_cast<const uint16_t*>(offsets));
    case OffsetType::kInt32:
      break;
  }
  widen(static_cast<const int32_t*>(offsets));
}

template <int kVec>
__device__ __forceinline__ void store_offsets(void* offsets, OffsetType type, int64_t i, bool aligned,
                                              const int (&values)[kVec]) {
  const auto narrow = [&](auto* typed) {
    Vec<std::remove_pointer_t<decltype(typed)>, kVec> raw;
#pragma unroll
    for (int k = 0; k < kVec; ++k) raw.v[k] = static_cast<std::remove_pointer_t<decltype(typed)>>(values[k]);
    store_vec(typed + i, raw, aligned);
  };
  switch (type) {
    case OffsetType::kUInt8:
      return narrow(static_cast<uint8_t*>(offsets));
    case OffsetType::kUInt16:
      return narrow(static_cast<uint16_t*>(offsets));
    case OffsetType::kInt32:
      break;
  }
  narrow(static_cast<int32_t*>(offsets));
}

// One dimension of the windows.
struct WindowDim {
  int kernel;  // window offsets fit an int, and so does each factor of them
  int64_t stride, pad, dilation;
};

struct Windows {
  WindowDim dim[kSpatialDims];

  explicit Windows(const PoolGeometry& g) {
    for (int d = 0; d < kSpatialDims; ++d)
      dim[d] = {static_cast<int>(g.kernel[d]), g.stride[d], g.pad[d], g.dilation[d]};
  }
};

// The part [begin, end) of a window's places that lies inside x, and the position of the window's place 0.
struct Span {
  int begin, end;
  int64_t start;
};

__device__ __forceinline__ Span window_span(const WindowDim& w, int64_t out, int64_t in_size) {
  Span s{0, w.kernel, out * w.stride - w.pad};
  while (s.begin < s.end && s.start + s.begin * w.dilation < 0) ++s.begin;
  while (s.begin < s.end && s.start + (s.end - 1) * w.dilation >= in_size) --s.end;
  return s;
}

// ---- forward ------------------------------------------------------------------------------------------------

template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kItemThreads, 1)
    max_pool_forward_kernel(const scalar_t* x, scalar_t* y, void* offsets, OffsetType offset_type,
                            int64_t* indices, Items items, Field in, Windows windows, bool aligned) {
  using acc_t = acc_type<scalar_t>;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < items.count; i += stride) {
    const Items::Place out = items.place(i);
    const scalar_t* const plane = x + in.base(out, kVec);
    const Span ds = window_span(windows.dim[0], out.at[0], in.size[0]);
    const Span hs = window_span(windows.dim[1], out.at[1], in.size[1]);
    const Span ws = window_span(windows.dim[2], out.at[2], in.size[2]);

    acc_t best[kVec];
    int offset[kVec];
    const int first = (ds.begin * windows.dim[1].kernel + hs.begin) * windows.dim[2].kernel + ws.begin;
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      best[k] = -INFINITY;
      offset[k] = first;
    }
    for (int rd = ds.begin; rd < ds.end; ++rd) {
      for (int rh = hs.begin; rh < hs.end; ++rh) {
        const int row = (rd * windows.dim[1].kernel + rh) * windows.dim[2].kernel;
        const int64_t line = in.position(ds.start + rd * windows.dim[0].dilation,
                                         hs.start + rh * windows.dim[1].dilation, ws.start);
        for (int rw = ws.begin; rw < ws.end; ++rw) {
          const auto raw = load_vec<kVec>(plane + (line + rw * windows.dim[2].dilation) * in.step, aligned);
#pragma unroll
          for (int k = 0; k < kVec; ++k) {
            const acc_t v = to_acc(raw.v[k]);
            if (beats(v, best[k])) {
              best[k] = v;
              offset[k] = row + rw;
            }
          }
        }
      }
    }

    Vec<scalar_t, kVec> result;
#pragma unroll
    for (int k = 0; k < kVec; ++k) result.v[k] = from_acc<scalar_t>(best[k]);
    store_vec(y + i * kVec, result, aligned);
    if (offsets != nullptr) store_offsets<kVec>(offsets, offset_type, i * kVec, aligned, offset);
    if (indices != nullptr) {
#pragma unroll
      for (int k = 0; k < kVec; ++k) {
        int r = offset[k];
        const int rw = r % windows.dim[2].kernel;
        r /= windows.dim[2].kernel;
        const int rh = r % windows.dim[1].kernel, rd = r / windows.dim[1].kernel;
        indices[i * kVec + k] =
            in.position(ds.start + rd * windows.dim[0].dilation, hs.start + rh * windows.dim[1].dilation,
                        ws.start + rw * windows.dim[2].dilation);
      }
    }
  }
}

// ---- backward -----------------------------------------------------------------------------------------------

// The windows [first, last] whose extent, holes included, covers a position.
struct Cover {
  int64_t first, last;
  int64_t padded;  // the position, counted from the first place of window 0
};

struct CoverDim {
  int64_t out_size, stride, pad, dilation, extent;  // extent: dilation * (kernel - 1)
  Divisor by_stride, by_dilation;

  CoverDim(const PoolGeometry& g, int d)
      : out_size(g.out[d]),
        stride(g.stride[d]),
        pad(g.pad[d]),
        dilation(g.dilation[d]),
        extent(g.dilation[d] * (g.kernel[d] - 1)),
        by_stride(g.stride[d], g.in[d] + g.pad[d] + g.stride[d]),
        by_dilation(g.dilation[d], g.in[d] + g.pad[d] + extent) {}

  __device__ __forceinline__ Cover cover(int64_t position) const {
    Cover c;
    c.padded = position + pad;
    const int64_t last = by_stride.divide(c.padded);
    c.last = last < out_size ? last : out_size - 1;
    c.first = c.padded > extent ? by_stride.divide(c.padded - extent + stride - 1) : 0;
    return c;
  }

  // Which place of window o the position is; -1 where it falls between the places of a dilated window.
  __device__ __forceinline__ int place(const Cover& c, int64_t o) const {
    int64_t rest = c.padded - o * stride;
    const int64_t r = by_dilation.take(rest);
    return rest == 0 ? static_cast<int>(r) : -1;
  }
};

template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kItemThreads, 1)
    max_pool_backward_kernel(const scalar_t* grad_y, const void* offsets, OffsetType offset_type,
                             scalar_t* grad_x, Items items, Field out, CoverDim depth, CoverDim height,
                             CoverDim width, int kernel_height, int kernel_width, bool aligned) {
  using acc_t = acc_type<scalar_t>;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < items.count; i += stride) {
    const Items::Place in = items.place(i);
    const int64_t plane = out.base(in, kVec);
    const Cover ds = depth.cover(in.at[0]), hs = height.cover(in.at[1]), ws = width.cover(in.at[2]);

    acc_t sum[kVec]{};
    for (int64_t od = ds.first; od <= ds.last; ++od) {
      const int rd = depth.place(ds, od);
      for (int64_t oh = hs.first; oh <= hs.last; ++oh) {
        const int rh = height.place(hs, oh);
        if (rd < 0 || rh < 0) continue;
        const int row = (rd * kernel_height + rh) * kernel_width;
        for (int64_t ow = ws.first; ow <= ws.last; ++ow) {
          const int rw = width.place(ws, ow);
          if (rw < 0) continue;
          const int64_t at = plane + out.position(od, oh, ow) * out.step;
          int chosen[kVec];
          load_offsets<kVec>(offsets, offset_type, at, aligned, chosen);
          const auto gradient = load_vec<kVec>(grad_y + at, aligned);
#pragma unroll
          for (int k = 0; k < kVec; ++k) {
            if (chosen[k] == row + rw) sum[k] += to_acc(gradient.v[k]);
          }
        }
      }
    }

    Vec<scalar_t, kVec> result;
#pragma unroll
    for (int k = 0; k < kVec; ++k) result.v[k] = from_acc<scalar_t>(sum[k]);
    store_vec(grad_x + i * kVec, result, aligned);
  }
}

// ---- gather -------------------------------------------------------------------------------------------------

template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kItemThreads, 1)
    max_pool_gather_kernel(const scalar_t* x, const void* offsets, OffsetType offset_type, scalar_t* y,
                           Items items, Field in, Windows windows, Divisor by_kernel_width,
                           Divisor by_kernel_height, bool aligned) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < items.count; i += stride) {
    const Items::Place out = items.place(i);
    const scalar_t* const plane = x + in.base(out, kVec);
    int offset[kVec];
    load_offsets<kVec>(offsets, offset_type, i * kVec, aligned, offset);
    Vec<scalar_t, kVec> result;
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      int64_t rd = offset[k];
      const int64_t rw = by_kernel_width.digit(rd), rh = by_kernel_height.digit(rd);
      const WindowDim *dd = windows.dim, *hd = dd + 1, *wd = dd + 2;
      const int64_t position = in.position(out.at[0] * dd->stride - dd->pad + rd * dd->dilation,
                                           out.at[1] * hd->stride - hd->pad + rh * hd->dilation,
                                           out.at[2] * wd->stride - wd->pad + rw * wd->dilation);
      // Offsets that max_pool_forward did not make may name a place outside.
      const bool inside = static_cast<uint64_t>(position) < static_cast<uint64_t>(in.positions());
      result.v[k] = inside ? plane[position * in.step + k] : from_acc<scalar_t>(acc_type<scalar_t>(0));
    }
    store_vec(y + i * kVec, result, aligned);
  }
}

// ---- launchers ----------------------------------------------------------------------------------------------

template <int kVec>
bool offsets_aligned(OffsetType type, const void* offsets) {
  switch (type) {
    case OffsetType::kUInt8:
      return all_aligned<uint8_t, kVec>({offsets});
    case OffsetType::kUInt16:
      return all_aligned<uint16_t, kVec>({offsets});
    case OffsetType::kInt32:
      break;
  }
  return all_aligned<int32_t, kVec>({offsets});
}

template <typename scalar_t, int kVec>
Status launch_general_forward(const MaxPoolForwardParams& p, Stream stream) {
  const PoolGeometry& g = p.geometry;
  const Items items(g, g.out, kVec);
  const bool aligned =
      all_aligned<scalar_t, kVec>({p.x, p.y}) && offsets_aligned<kVec>(p.offset_type, p.offsets);
  return launch("max_pool_forward", max_pool_forward_kernel<scalar_t, kVec>, grid_for(items),
                dim3(kItemThreads), 0, stream, static_cast<const scalar_t*>(p.x), static_cast<scalar_t*>(p.y),
                p.offsets, p.offset_type, p.indices, items, Field(g, g.in), Windows(g), aligned);
}

template <typename scalar_t, int kVec>
Status launch_general_backward(const MaxPoolBackwardParams& p, Stream stream) {
  const PoolGeometry& g = p.geometry;
  const Items items(g, g.in, kVec);
  const bool aligned =
      all_aligned<scalar_t, kVec>({p.grad_y, p.grad_x}) && offsets_aligned<kVec>(p.offset_type, p.offsets);
  return launch("max_pool_backward", max_pool_backward_kernel<scalar_t, kVec>, grid_for(items),
                dim3(kItemThreads), 0, stream, static_cast<const scalar_t*>(p.grad_y), p.offsets, p.offset_type,
                static_cast<scalar_t*>(p.grad_x), items, Field(g, g.out), CoverDim(g, 0), CoverDim(g, 1),
                CoverDim(g, 2), static_cast<int>(g.kernel[1]), static_cast<int>(g.kernel[2]), aligned);
}

template <typename scalar_t, int kVec>
Status launch_general_gather(const MaxPoolGatherParams& p, Stream stream) {
  const PoolGeometry& g = p.geometry;
  const Items items(g, g.out, kVec);
  const int64_t volume = g.kernel[0] * g.kernel[1] * g.kernel[2];
  const bool aligned = all_aligned<scalar_t, kVec>({p.y}) && offsets_aligned<kVec>(p.offset_type, p.offsets);
  return launch("max_pool_gather", max_pool_gather_kernel<scalar_t, kVec>, grid_for(items), dim3(kItemThreads),
                0, stream, static_cast<const scalar_t*>(p.x), p.offsets, p.offset_type,
                static_cast<scalar_t*>(p.y), items, Field(g, g.in), Windows(g), Divisor(g.kernel[2], volume),
                Divisor(g.kernel[1], volume), aligned);
}

}  // namespace
}  // namespace fastnn::cuda
