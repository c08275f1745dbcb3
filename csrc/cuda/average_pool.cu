// Average and L_p pooling; the formulas stand in ops/average_pool.h.
//
// Bound by memory: forward reads each input once from memory (windows that overlap meet in a cache) and writes
// an output; backward reads a gradient a window and writes each input once, of L_p it reads y and x as well.
// For float32, window 2 and stride 2 that is 20 bytes an output either way.
//
//   items     a thread owns kVec neighbours: channels of one position with channels last, positions of one
//             row with channels first, so that taking an index apart (some 60 instructions) is shared among 16
//             bytes. Where kVec divides neither, it owns one value. Windows of 3 at stride 1 load 9 values an
//             output from L1, which bounds them: 1.3 times the time of memory.
//   windows   forward, channels first, windows of at least a warp's width along the row: a warp owns a
//             window, a lane every 32nd of its vectors. Global pooling: rows at memory speed, one output for
//             each.
//
// Sums have the order of the window's positions in the first variant; in the second lanes are added by halves.
#include <cmath>
#include <limits>

#include "../ops/average_pool.h"
#include "dispatch.cuh"
#include "pool_items.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kWarpsPerBlock = kItemThreads / kWarpSize;

template <typename acc_t>
struct AverageWindows {
  PoolDim d, h, w;
  bool count_pad, fixed, power;
  acc_t divisor, volume, norm;

  AverageWindows(const PoolGeometry& g, const AveragePoolOptions& options)
      : d(g, 0),
        h(g, 1),
        w(g, 2),
        count_pad(options.count_pad),
        fixed(options.divisor != 0),
        power(options.power),
        divisor(static_cast<acc_t>(options.divisor)),
        volume(static_cast<acc_t>(g.kernel[0] * g.kernel[1] * g.kernel[2])),
        norm(static_cast<acc_t>(options.norm)) {}

  __device__ __forceinline__ acc_t of_rows(int64_t od, int64_t oh) const {
    return fixed ? divisor : static_cast<acc_t>(d.count(od, count_pad) * h.count(oh, count_pad));
  }
  __device__ __forceinline__ acc_t of_column(int64_t ow) const {
    return fixed ? acc_t(1) : static_cast<acc_t>(w.count(ow, count_pad));
  }

  __device__ __forceinline__ static acc_t raise(acc_t x, acc_t exponent) {
    if (exponent == acc_t(1)) return x;
    if (exponent == acc_t(2)) return x * x;
    if (exponent == acc_t(3)) return x * x * x;
    return pow(x, exponent);
  }
  // What a value of a window adds to its sum, and what the sum makes of it.
  __device__ __forceinline__ acc_t term(acc_t x) const { return power ? raise(x, norm) : x; }
  __device__ __forceinline__ acc_t result(acc_t sum, acc_t positions) const {
    if (!power) return sum / positions;
    const acc_t under = sum * (volume / positions);
    return norm == acc_t(2) ? sqrt(under) : raise(under, acc_t(1) / norm);
  }
  // What an output gives each position of its window, but for x^(p - 1).
  __device__ __forceinline__ acc_t given(acc_t grad, acc_t y, acc_t positions) const {
    if (!power) return grad / positions;
    if (y == acc_t(0)) return acc_t(0);
    const acc_t slope = norm == acc_t(2) ? grad / y : grad * raise(y, acc_t(1) - norm);
    return slope * (volume / positions);
  }
  __device__ __forceinline__ acc_t slope(acc_t x) const {
    return norm == acc_t(1) ? acc_t(1) : raise(x, norm - acc_t(1));
  }
};

// ---- forward ------------------------------------------------------------------------------------------------

// kAlong: the kVec values of a thread are neighbours along the width, and otherwise channels (or one value).
template <typename scalar_t, int kVec, bool kAlong>
__global__ void __launch_bounds__(kItemThreads, 1)
    average_pool_forward_kernel(const scalar_t* x, scalar_t* y, Items items, Field in,
                                AverageWindows<acc_type<scalar_t>> windows, bool aligned) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kLoad = kAlong ? 1 : kVec;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < items.count; i += stride) {
    const Items::Place out = items.place(i);
    const scalar_t* const plane = x + in.base(out, kVec);
    const PoolRange ds = windows.d.window(out.at[0]), hs = windows.h.window(out.at[1]);
    const acc_t rows = windows.of_rows(out.at[0], out.at[1]);
    Vec<scalar_t, kVec> result;
#pragma unroll
    for (int column = 0; column < (kAlong ? kVec : 1); ++column) {
      const int64_t ow = kAlong ? out.at[2] * kVec + column : out.at[2];
      const PoolRange ws = windows.w.window(ow);
      acc_t sum[kLoad]{};
      for (int64_t d = ds.begin; d < ds.end; ++d) {
        for (int64_t h = hs.begin; h < hs.end; ++h) {
          const scalar_t* tap = plane + in.position(d, h, ws.begin) * in.step;
          for (int64_t w = ws.begin; w < ws.end; ++w, tap += in.step) {
            const auto raw = load_vec<kLoad>(tap, aligned || kAlong);
#pragma unroll
            for (int k = 0; k < kLoad; ++k) sum[k] += windows.term(to_acc(raw.v[k]));
          }
        }
      }
      const acc_t positions = rows * windows.of_column(ow);
#pragma unroll
      for (int k = 0; k < kLoad; ++k)
        result.v[column + k] = from_acc<scalar_t>(windows.result(sum[k], positions));
    }
    store_vec(y + i * kVec, result, aligned);
  }
}

// Windows of one output column each; kVec > 1 where all begin at a vector and end with one.
template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kItemThreads, 1)
    average_pool_windows_kernel(const scalar_t* x, scalar_t* y, Items items, Field in,
                                AverageWindows<acc_type<scalar_t>> windows, bool aligned) {
  using acc_t = acc_type<scalar_t>;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarpsPerBlock;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize; i < items.count;
       i += stride) {
    const Items::Place out = items.place(i);
    const scalar_t* const plane = x + in.base(out, 1);
    const PoolRange ds = windows.d.window(out.at[0]), hs = windows.h.window(out.at[1]),
                    ws = windows.w.window(out.at[2]);
    acc_t sum = 0;
    for (int64_t d = ds.begin; d < ds.end; ++d) {
      for (int64_t h = hs.begin; h < hs.end; ++h) {
        const scalar_t* const row = plane + in.position(d, h, 0);
#pragma unroll 4  // loads under way
        for (int64_t w = ws.begin + lane * kVec; w < ws.end; w += kWarpSize * kVec) {
          const auto raw = load_vec<kVec>(row + w, aligned);
#pragma unroll
          for (int k = 0; k < kVec; ++k) sum += windows.term(to_acc(raw.v[k]));
        }
      }
    }
    sum = warp_reduce(sum);
    const acc_t positions = windows.of_rows(out.at[0], out.at[1]) * windows.of_column(out.at[2]);
    if (lane == 0) y[i] = from_acc<scalar_t>(windows.result(sum, positions));
  }
}

// ---- backward -----------------------------------------------------------------------------------------------

template <typename scalar_t, int kVec, bool kAlong>
__global__ void __launch_bounds__(kItemThreads, 1)
    average_pool_backward_kernel(const scalar_t* grad_y, const scalar_t* x, const scalar_t* y, scalar_t* grad_x,
                                 Items items, Field out, AverageWindows<acc_type<scalar_t>> windows,
                                 bool aligned) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kLoad = kAlong ? 1 : kVec;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < items.count; i += stride) {
    const Items::Place in = items.place(i);
    const int64_t plane = out.base(in, kVec);
    const PoolRange ds = windows.d.cover(in.at[0]), hs = windows.h.cover(in.at[1]);
    Vec<scalar_t, kVec> own, result;
    if (windows.power) own = load_vec<kVec>(x + i * kVec, aligned);
#pragma unroll
    for (int column = 0; column < (kAlong ? kVec : 1); ++column) {
      const PoolRange ws = windows.w.cover(kAlong ? in.at[2] * kVec + column : in.at[2]);
      acc_t sum[kLoad]{};
      for (int64_t od = ds.begin; od < ds.end; ++od) {
        for (int64_t oh = hs.begin; oh < hs.end; ++oh) {
          const acc_t rows = windows.of_rows(od, oh);
          for (int64_t ow = ws.begin; ow < ws.end; ++ow) {
            const int64_t at = plane + out.position(od, oh, ow) * out.step;
            const acc_t positions = rows * windows.of_column(ow);
            const auto grad = load_vec<kLoad>(grad_y + at, aligned || kAlong);
            Vec<scalar_t, kLoad> value = grad;
            if (windows.power) value = load_vec<kLoad>(y + at, aligned || kAlong);
#pragma unroll
            for (int k = 0; k < kLoad; ++k)
              sum[k] += windows.given(to_acc(grad.v[k]), to_acc(value.v[k]), positions);
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kLoad; ++k) {
        if (windows.power) sum[k] *= windows.slope(to_acc(own.v[column + k]));
        result.v[column + k] = from_acc<scalar_t>(sum[k]);
      }
    }
    store_vec(grad_x + i * kVec, result, aligned);
  }
}

// ---- launchers ----------------------------------------------------------------------------------------------

// Items of kVec values of `size`, along the width where kAlong.
template <bool kAlong>
Items items_of(const PoolGeometry& g, const int64_t (&size)[kSpatialDims], int vec) {
  if constexpr (!kAlong) return Items(g, size, vec);
  const int64_t narrow[kSpatialDims] = {size[0], size[1], size[2] / vec};
  return Items(g, narrow, 1);
}

// Calls f(std::integral_constant<int, kVec>, std::bool_constant<kAlong>) for a tensor of this spatial size.
template <typename scalar_t, typename F>
Status dispatch_items(const PoolGeometry& g, const int64_t (&size)[kSpatialDims], F&& f) {
  constexpr int kWide = kVecSize<scalar_t>;
  using Wide = std::integral_constant<int, kWide>;
  if (g.layout == Layout::kChannelsLast && g.C % kWide == 0) return f(Wide{}, std::false_type{});
  if (g.layout == Layout::kChannelsFirst && size[2] % kWide == 0) return f(Wide{}, std::true_type{});
  return f(std::integral_constant<int, 1>{}, std::false_type{});
}

template <typename scalar_t, int kVec>
Status launch_windows(const AveragePoolForwardParams& p, bool aligned, Stream stream) {
  const PoolGeometry& g = p.geometry;
  const Items items(g, g.out, 1);
  const int64_t blocks = ceil_div(items.count, kWarpsPerBlock);
  return launch("average_pool_forward", average_pool_windows_kernel<scalar_t, kVec>,
                dim3(static_cast<unsigned>(blocks < kMostItemBlocks ? blocks : kMostItemBlocks)),
                dim3(kItemThreads), 0, stream, static_cast<const scalar_t*>(p.x), static_cast<scalar_t*>(p.y),
                items, Field(g, g.in), AverageWindows<acc_type<scalar_t>>(g, p.options), aligned);
}

template <typename scalar_t>
Status forward(const AveragePoolForwardParams& p, Stream stream) {
  constexpr int kWide = kVecSize<scalar_t>;
  const PoolGeometry& g = p.geometry;
  if (g.layout == Layout::kChannelsFirst && g.windows == Windows::kSliding && g.kernel[2] >= kWarpSize &&
      2 * g.stride[2] >= g.kernel[2]) {
    const bool whole = g.in[2] % kWide == 0 && g.kernel[2] % kWide == 0 &&
                       (g.out[2] == 1 || g.stride[2] % kWide == 0) && g.pad[2] % kWide == 0;
    if (whole) return launch_windows<scalar_t, kWide>(p, all_aligned<scalar_t, kWide>({p.x}), stream);
    return launch_windows<scalar_t, 1>(p, true, stream);
  }
  return dispatch_items<scalar_t>(g, g.out, [&](auto vec, auto along) {
    const Items items = items_of<along>(g, g.out, vec);
    return launch("average_pool_forward", average_pool_forward_kernel<scalar_t, vec, along>, grid_for(items),
                  dim3(kItemThreads), 0, stream, static_cast<const scalar_t*>(p.x), static_cast<scalar_t*>(p.y),
                  items, Field(g, g.in), AverageWindows<acc_type<scalar_t>>(g, p.options),
                  all_aligned<scalar_t, vec>({p.x, p.y}));
  });
}

template <typename scalar_t>
Status backward(const AveragePoolBackwardParams& p, Stream stream) {
  const PoolGeometry& g = p.geometry;
  return dispatch_items<scalar_t>(g, g.in, [&](auto vec, auto along) {
    const Items items = items_of<along>(g, g.in, vec);
    return launch("average_pool_backward", average_pool_backward_kernel<scalar_t, vec, along>, grid_for(items),
                  dim3(kItemThreads), 0, stream, static_cast<const scalar_t*>(p.grad_y),
                  static_cast<const scalar_t*>(p.x), static_cast<const scalar_t*>(p.y),
                  static_cast<scalar_t*>(p.grad_x), items, Field(g, g.out),
                  AverageWindows<acc_type<scalar_t>>(g, p.options),
                  all_aligned<scalar_t, vec>({p.grad_y, p.x, p.y, p.grad_x}));
  });
}

}  // namespace

Status average_pool_forward(const AveragePoolForwardParams& params, Stream stream) {
  AveragePoolForwardParams p = params;
  simplify(p.geometry, p.options);
  return dispatch_dtype(p.dtype, [&](auto tag) { return forward<typename decltype(tag)::type>(p, stream); });
}

Status average_pool_backward(const AveragePoolBackwardParams& params, Stream stream) {
  AveragePoolBackwardParams p = params;
  simplify(p.geometry, p.options);
  return dispatch_dtype(p.dtype, [&](auto tag) { return backward<typename decltype(tag)::type>(p, stream); });
}

}  // namespace fastnn::cuda
