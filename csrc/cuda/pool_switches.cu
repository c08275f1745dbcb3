// Pooling with switches; the rules stand in ops/pool_switches.h.
//
// Bound by memory: a switch of 8 bytes and a value for each.
//
//   pool     a thread owns an output and compares its window's places in row-major order
//   gather   a thread owns a switch
//   scatter  sums and unpooling: a warp owns kTile positions of a plane, in shared memory, and goes through
//            all of the plane's switches, 32 at a time, in ascending order. So nothing is added to in global
//            memory, sums are kept in acc_t whatever the type, and equal switches have an order: within the 32
//            each lane looks at the others' by shuffles, beyond them the warp's own order does. A plane of T
//            tiles reads its switches T times, from L2 but for the first: 2 * T bytes a position where windows
//            of 2 x 2 were pooled, beside the 4 + 3 that come from memory in float32.
#include <cmath>
#include <limits>

#include "../ops/pool_switches.h"
#include "dispatch.cuh"
#include "max_pool_walk.cuh"
#include "pool_items.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

// Positions of a warp: 8 KiB of float32, so that shared memory holds 28 warps of a multiprocessor.
constexpr int kTile = 2048;

// ---- pooling ------------------------------------------------------------------------------------------------

template <typename scalar_t>
__global__ void __launch_bounds__(kItemThreads, 1)
    switch_pool_kernel(const scalar_t* x, const scalar_t* samples, int rank, scalar_t* y, int64_t* indices,
                       PoolGeometry g, Items items, Field in, PoolDim depth, PoolDim height, PoolDim width) {
  using acc_t = acc_type<scalar_t>;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < items.count; i += stride) {
    const Items::Place out = items.place(i);
    const scalar_t* const plane = x + in.base(out, 1);
    const auto window = [&](const PoolDim& dim, int d) -> PoolRange {
      if (samples == nullptr) return dim.window(out.at[d]);
      const int first = kSpatialDims - rank;
      const acc_t sample = d < first ? acc_t(0) : to_acc(samples[out.plane * rank + d - first]);
      const int64_t begin = fractional_start(g, d, out.at[d], sample);
      return {begin, begin + dim.kernel};
    };
    const PoolRange ds = window(depth, 0), hs = window(height, 1), ws = window(width, 2);
    acc_t best = -INFINITY;
    int64_t place = in.position(ds.begin, hs.begin, ws.begin);
    for (int64_t d = ds.begin; d < ds.end; ++d) {
      for (int64_t h = hs.begin; h < hs.end; ++h) {
        for (int64_t w = ws.begin; w < ws.end; ++w) {
          const int64_t at = in.position(d, h, w);
          const acc_t v = to_acc(plane[at]);
          if (beats(v, best)) {
            best = v;
            place = at;
          }
        }
      }
    }
    y[i] = from_acc<scalar_t>(best);
    indices[i] = place;
  }
}

// ---- gather -------------------------------------------------------------------------------------------------

template <typename scalar_t>
__global__ void __launch_bounds__(kItemThreads, 1)
    switch_gather_kernel(const scalar_t* from, const int64_t* indices, scalar_t* to, int64_t total,
                         int64_t size, Divisor by_count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += stride) {
    const int64_t place = indices[i];
    const bool inside = static_cast<uint64_t>(place) < static_cast<uint64_t>(size);
    to[i] = inside ? from[by_count.divide(i) * size + place] : from_acc<scalar_t>(acc_type<scalar_t>(0));
  }
}

// ---- scatter ------------------------------------------------------------------------------------------------

// kSum: equal switches add up; otherwise the last of them is taken.
template <typename scalar_t, bool kSum>
__global__ void __launch_bounds__(kWarpSize, 1)
    switch_scatter_kernel(const scalar_t* from, const int64_t* indices, scalar_t* to, int64_t count,
                          int64_t size, int64_t tiles, int64_t total) {
  using acc_t = acc_type<scalar_t>;
  FASTNN_SHARED(acc_t, tile, kTile);
  const int lane = static_cast<int>(threadIdx.x);
  for (int64_t t = blockIdx.x; t < total; t += gridDim.x) {
    const int64_t plane = t / tiles, begin = t % tiles * kTile;
    const int width = static_cast<int>(size - begin < kTile ? size - begin : kTile);
    for (int i = lane; i < width; i += kWarpSize) tile[i] = acc_t(0);
    __syncwarp();
    for (int64_t first = 0; first < count; first += kWarpSize) {
      const int64_t at = plane * count + first + lane;
      int place = -1;
      acc_t value = acc_t(0);
      if (first + lane < count) {
        const int64_t there = indices[at] - begin;
        if (there >= 0 && there < width) {
          place = static_cast<int>(there);
          value = to_acc(from[at]);
        }
      }
      if (__ballot_sync(kFullWarp, place >= 0) == 0) continue;
      // One lane writes for all that have its place: the first of them their sum, or the last its value.
      bool writes = place >= 0;
      acc_t sum = acc_t(0);
#pragma unroll 4
      for (int other = 0; other < kWarpSize; ++other) {
        const int their_place = __shfl_sync(kFullWarp, place, other);
        const acc_t their_value = kSum ? __shfl_sync(kFullWarp, value, other) : value;
        if (their_place == place) {
          sum += their_value;
          writes = writes && (kSum ? other >= lane : other <= lane);
        }
      }
      if (writes) tile[place] = kSum ? tile[place] + sum : value;
      __syncwarp();
    }
    for (int i = lane; i < width; i += kWarpSize) to[plane * size + begin + i] = from_acc<scalar_t>(tile[i]);
    __syncwarp();
  }
}

// ---- launchers ----------------------------------------------------------------------------------------------

dim3 blocks_for(int64_t blocks, int64_t most) {
  return dim3(static_cast<unsigned>(blocks < most ? blocks : most));
}

// Of warps that own tiles: eight waves of 28 on the largest device.
constexpr int64_t kMostTiles = 32768;

template <bool kSum>
Status scatter(const char* name, const SwitchParams& p, Stream stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const int64_t tiles = ceil_div(p.size, kTile);
    return launch(name, switch_scatter_kernel<scalar_t, kSum>, blocks_for(p.planes * tiles, kMostTiles),
                  dim3(kWarpSize), 0, stream, static_cast<const scalar_t*>(p.from), p.indices,
                  static_cast<scalar_t*>(p.to), p.count, p.size, tiles, p.planes * tiles);
  });
}

}  // namespace

Status switch_pool(const SwitchPoolParams& p, Stream stream) {
  const PoolGeometry& g = p.geometry;
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const Items items(g, g.out, 1);
    return launch("switch_pool", switch_pool_kernel<scalar_t>, grid_for(items), dim3(kItemThreads), 0, stream,
                  static_cast<const scalar_t*>(p.x), static_cast<const scalar_t*>(p.samples), p.rank,
                  static_cast<scalar_t*>(p.y), p.indices, g, items, Field(g, g.in), PoolDim(g, 0),
                  PoolDim(g, 1), PoolDim(g, 2));
  });
}

Status switch_gather(const SwitchParams& p, Stream stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const int64_t total = p.planes * p.count;
    return launch("switch_gather", switch_gather_kernel<scalar_t>,
                  blocks_for(ceil_div(total, kItemThreads), kMostItemBlocks), dim3(kItemThreads), 0, stream,
                  static_cast<const scalar_t*>(p.from), p.indices, static_cast<scalar_t*>(p.to), total, p.size,
                  Divisor(p.count, total));
  });
}

Status switch_sum(const SwitchParams& p, Stream stream) { return scatter<true>("switch_sum", p, stream); }

Status switch_place(const SwitchParams& p, Stream stream) { return scatter<false>("switch_place", p, stream); }

}  // namespace fastnn::cuda
