// Locally connected layers on CUDA: forward, data gradient, weight gradient.
//
//   y[n, k, o] = bias[k, o] + sum over j of patch[n, o, j] * w[o, k, j],   j = (c, r), J of them
//
// forward      A block owns a position and 32 filters, a warp 4 of them, its lanes run along j. Patches of 8
//              images pass through shared memory, 256 elements at a time: 4 filters and 8 patches are 32
//              multiply-adds for 12 loads. Lanes are added by shuffles.
// grad_input   Two launches. First a thread owns j of a position and 8 images: parts[n, o, j] = sum over k of
//              grad_y[n, k, o] * w[o, k, j]. Then a thread owns one element of grad_x and adds, tap by tap,
//              what the positions that it is in have for it. No atomics: windows overlap.
// grad_weight  A thread owns j of a position and 16 filters, and walks over the images.
//
// What bounds them: the filters, K J |o| elements, read (or written) once from memory, at any N; from L2 again
// for each further 8 images (grad_weight reads x again for each 16 filters). grad_input adds parts, written and
// read, N J |o| of acc_t: three times the filters' bytes at N = K, which is how many images a round takes at
// most. Threads of a warp have neighbouring j, so filters move in whole lines.
//
// Positions outside x are zeros that are multiplied, in forward and grad_weight. Error: forward, a lane of J /
// 32 products, then 5 sums of lanes and the bias; grad_input, a chain of K products, then one of at most R
// sums; grad_weight, a chain of N products; all in acc_t.
#include <algorithm>

#include "../ops/locally_connected.h"
#include "conv_index.cuh"
#include "dispatch.cuh"
#include "platform.cuh"
#include "reduce.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kFiltersOfWarp = 4, kImages = 8;  // 32 sums: a lane's share of results
constexpr int kMostWarps = 8;
constexpr int kPatchElements = 256;  // of 8 patches in shared memory: 8 KB, of float64 16
constexpr int kThreads = 128;        // of the gradients, along j
constexpr int kFilters = 16;         // sums of a thread of grad_weight
constexpr int kTermsAtOnce = 32;     // factors in shared memory, of images or filters

inline int64_t volume(const int64_t (&size)[kSpatialDims]) { return size[0] * size[1] * size[2]; }

// What all kernels know of the geometry.
struct Local {
  ConvGeometry g;
  int64_t positions, length, taps;  // |o|, J, R

  explicit Local(const ConvGeometry& geometry)
      : g(geometry), positions(volume(g.out)), length(g.C * volume(g.kernel)), taps(volume(g.kernel)) {}
};

struct Coordinates {
  int64_t at[kSpatialDims];
};

__device__ __forceinline__ Coordinates coordinates(int64_t index, const int64_t (&size)[kSpatialDims]) {
  Coordinates c;
  int64_t rest = quotient(index, size[2]);
  c.at[2] = index - rest * size[2];
  index = rest;
  rest = quotient(index, size[1]);
  c.at[1] = index - rest * size[1];
  c.at[0] = rest;
  return c;
}

// Offset of an image's element j of the patch at position `o`; -1 outside of x.
__device__ __forceinline__ int64_t patch_offset(const Local& p, const Coordinates& o, int64_t j,
                                                const ConvStrides& strides) {
  const int64_t c = quotient(j, p.taps);
  const Coordinates tap = coordinates(j - c * p.taps, p.g.kernel);
  int64_t offset = c * strides[1];
  bool inside = true;
#pragma unroll
  for (int d = 0; d < kSpatialDims; ++d) {
    const int64_t at = o.at[d] * p.g.stride[d] - p.g.pad[d] + tap.at[d] * p.g.dilation[d];
    inside = inside && at >= 0 && at < p.g.in[d];
    offset += at * strides[2 + d];
  }
  return inside ? offset : -1;
}

__device__ __forceinline__ int64_t offset_of(const Coordinates& o, const ConvStrides& strides) {
  return o.at[0] * strides[2] + o.at[1] * strides[3] + o.at[2] * strides[4];
}

template <typename scalar_t>
__global__ void __launch_bounds__(kMostWarps* kWarpSize, 2)
    locally_connected_forward_kernel(LocallyConnectedForwardParams params, Local p, int64_t filter_blocks) {
  using acc_t = acc_type<scalar_t>;
  FASTNN_SHARED(acc_t, patches, kImages * kPatchElements);
  const int64_t block = static_cast<int64_t>(blockIdx.x);
  const int64_t position = quotient(block, filter_blocks);
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int64_t k0 = ((block - position * filter_blocks) * (threads / kWarpSize) + warp) * kFiltersOfWarp;
  const int filters = static_cast<int>(min(int64_t{kFiltersOfWarp}, max(int64_t{0}, p.g.K - k0)));
  const Coordinates o = coordinates(position, p.g.out);
  const scalar_t* const x = static_cast<const scalar_t*>(params.x);
  const scalar_t* const w = static_cast<const scalar_t*>(params.w) + (position * p.g.K + k0) * p.length;
  for (int64_t n0 = 0; n0 < p.g.N; n0 += kImages) {
    const int images = static_cast<int>(min(int64_t{kImages}, p.g.N - n0));
    acc_t sums[kFiltersOfWarp][kImages] = {};
    for (int64_t j0 = 0; j0 < p.length; j0 += kPatchElements) {
      const int count = static_cast<int>(min(int64_t{kPatchElements}, p.length - j0));
      __syncthreads();
      for (int i = thread; i < kPatchElements; i += threads) {
        const int64_t offset = i < count ? patch_offset(p, o, j0 + i, params.x_strides) : -1;
#pragma unroll
        for (int n = 0; n < kImages; ++n) {
          patches[n * kPatchElements + i] =
              offset >= 0 && n < images ? to_acc(x[(n0 + n) * params.x_strides[0] + offset]) : acc_t(0);
        }
      }
      __syncthreads();
      for (int i = lane; i < count; i += kWarpSize) {
        acc_t weight[kFiltersOfWarp];
#pragma unroll
        for (int k = 0; k < kFiltersOfWarp; ++k) {
          weight[k] = k < filters ? to_acc(w[k * p.length + j0 + i]) : acc_t(0);
        }
#pragma unroll
        for (int n = 0; n < kImages; ++n) {
          const acc_t value = patches[n * kPatchElements + i];
#pragma unroll
          for (int k = 0; k < kFiltersOfWarp; ++k) sums[k][n] += weight[k] * value;
        }
      }
    }
    // Lane k * kImages + n keeps the sum of filter k and image n.
    acc_t mine = 0;
#pragma unroll
    for (int k = 0; k < kFiltersOfWarp; ++k) {
#pragma unroll
      for (int n = 0; n < kImages; ++n) {
        const acc_t sum = __shfl_sync(kFullWarp, warp_reduce(sums[k][n]), 0);
        if (lane == k * kImages + n) mine = sum;
      }
    }
    const int k = lane / kImages, n = lane % kImages;
    if (k >= filters || n >= images) continue;
    if (params.bias != nullptr) {
      mine += to_acc(static_cast<const scalar_t*>(params.bias)[(k0 + k) * p.positions + position]);
    }
    static_cast<scalar_t*>(params.y)[(n0 + n) * params.y_strides[0] + (k0 + k) * params.y_strides[1] +
                                     offset_of(o, params.y_strides)] = from_acc<scalar_t>(mine);
  }
}

// factors[term][result] of kTermsAtOnce terms from grad_y at a position, 0 where there is none.
template <int kResults, typename scalar_t>
__device__ __forceinline__ void stage_factors(acc_type<scalar_t>* factors, const scalar_t* grad_y, int terms,
                                              int64_t term_stride, int results, int64_t result_stride) {
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kTermsAtOnce * kResults; i += kThreads) {
    const int term = i / kResults, result = i % kResults;
    factors[i] = term < terms && result < results ? to_acc(grad_y[term * term_stride + result * result_stride])
                                                  : acc_type<scalar_t>(0);
  }
  __syncthreads();
}

// Images [n0, n0 + images) of a round; parts: [images, positions, J].
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    locally_connected_parts_kernel(LocallyConnectedGradInputParams params, Local p, int64_t columns, int64_t n0,
                                   int64_t images) {
  using acc_t = acc_type<scalar_t>;
  FASTNN_SHARED(acc_t, factors, kTermsAtOnce * kImages);
  const int64_t block = static_cast<int64_t>(blockIdx.x);
  const int64_t position = quotient(block, columns);
  const int64_t j = (block - position * columns) * kThreads + threadIdx.x;
  const Coordinates o = coordinates(position, p.g.out);
  const scalar_t* const w = static_cast<const scalar_t*>(params.w) + position * p.g.K * p.length + j;
  const auto& strides = params.grad_y_strides;
  const scalar_t* const grad_y = static_cast<const scalar_t*>(params.grad_y) + offset_of(o, strides);
  for (int64_t first = 0; first < images; first += kImages) {
    const int here = static_cast<int>(min(int64_t{kImages}, images - first));
    acc_t sums[kImages] = {};
    for (int64_t k0 = 0; k0 < p.g.K; k0 += kTermsAtOnce) {
      const int terms = static_cast<int>(min(int64_t{kTermsAtOnce}, p.g.K - k0));
      stage_factors<kImages>(factors, grad_y + (n0 + first) * strides[0] + k0 * strides[1], terms, strides[1],
                             here, strides[0]);
      if (j >= p.length) continue;
      for (int k = 0; k < terms; ++k) {
        const acc_t weight = to_acc(w[(k0 + k) * p.length]);
#pragma unroll
        for (int n = 0; n < kImages; ++n) sums[n] += factors[k * kImages + n] * weight;
      }
    }
    if (j >= p.length) continue;
    acc_t* const parts = static_cast<acc_t*>(params.workspace) + position * p.length + j;
#pragma unroll
    for (int n = 0; n < kImages; ++n) {
      if (n < here) parts[(first + n) * p.positions * p.length] = sums[n];
    }
  }
}

struct LocalTaps {
  TapDimension dim[kSpatialDims];
};

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    locally_connected_collect_kernel(LocallyConnectedGradInputParams params, Local p, LocalTaps taps,
                                     int64_t n0, int64_t images) {
  using acc_t = acc_type<scalar_t>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const IndexRange range{p.g.C, {p.g.in[0], p.g.in[1], p.g.in[2]}, false};
  const int64_t n = quotient(index, range.size());
  if (n >= images) return;
  const auto i = digits_of<int64_t>(index - n * range.size(), range);
  const TapsOfPosition td = taps_of_position(taps.dim[0], i.d);
  const TapsOfPosition th = taps_of_position(taps.dim[1], i.h);
  const TapsOfPosition tw = taps_of_position(taps.dim[2], i.w);
  const acc_t* const parts =
      static_cast<const acc_t*>(params.workspace) + n * p.positions * p.length + i.lead * p.taps;
  acc_t sum = 0;
  for (int64_t rd = 0; rd < td.count; ++rd) {
    const int64_t d = td.origin - rd * taps.dim[0].output_step, tap_d = td.first + rd * taps.dim[0].tap_step;
    if (d < 0 || d >= p.g.out[0]) continue;
    for (int64_t rh = 0; rh < th.count; ++rh) {
      const int64_t h = th.origin - rh * taps.dim[1].output_step, tap_h = th.first + rh * taps.dim[1].tap_step;
      if (h < 0 || h >= p.g.out[1]) continue;
      for (int64_t rw = 0; rw < tw.count; ++rw) {
        const int64_t v = tw.origin - rw * taps.dim[2].output_step,
                      tap_w = tw.first + rw * taps.dim[2].tap_step;
        if (v < 0 || v >= p.g.out[2]) continue;
        sum += parts[((d * p.g.out[1] + h) * p.g.out[2] + v) * p.length +
                     (tap_d * p.g.kernel[1] + tap_h) * p.g.kernel[2] + tap_w];
      }
    }
  }
  const auto& strides = params.grad_x_strides;
  static_cast<scalar_t*>(params.grad_x)[(n0 + n) * strides[0] + i.lead * strides[1] + i.d * strides[2] +
                                        i.h * strides[3] + i.w * strides[4]] = from_acc<scalar_t>(sum);
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    locally_connected_grad_weight_kernel(LocallyConnectedGradWeightParams params, Local p, int64_t columns) {
  using acc_t = acc_type<scalar_t>;
  FASTNN_SHARED(acc_t, factors, kTermsAtOnce * kFilters);
  const int64_t block = static_cast<int64_t>(blockIdx.x);
  const int64_t position = quotient(block, columns);
  const int64_t j = (block - position * columns) * kThreads + threadIdx.x;
  const Coordinates o = coordinates(position, p.g.out);
  const int64_t offset = j < p.length ? patch_offset(p, o, j, params.x_strides) : -1;
  const scalar_t* const x = static_cast<const scalar_t*>(params.x) + offset;
  const auto& strides = params.grad_y_strides;
  const scalar_t* const grad_y = static_cast<const scalar_t*>(params.grad_y) + offset_of(o, strides);
  scalar_t* const grad_w = static_cast<scalar_t*>(params.grad_w) + position * p.g.K * p.length + j;
  for (int64_t k0 = 0; k0 < p.g.K; k0 += kFilters) {
    const int filters = static_cast<int>(min(int64_t{kFilters}, p.g.K - k0));
    acc_t sums[kFilters] = {};
    for (int64_t n0 = 0; n0 < p.g.N; n0 += kTermsAtOnce) {
      const int terms = static_cast<int>(min(int64_t{kTermsAtOnce}, p.g.N - n0));
      stage_factors<kFilters>(factors, grad_y + n0 * strides[0] + k0 * strides[1], terms, strides[0], filters,
                              strides[1]);
      for (int n = 0; n < terms; ++n) {
        const acc_t value = offset >= 0 ? to_acc(x[(n0 + n) * params.x_strides[0]]) : acc_t(0);
#pragma unroll
        for (int k = 0; k < kFilters; ++k) sums[k] += factors[n * kFilters + k] * value;
      }
    }
    if (j >= p.length) continue;
#pragma unroll
    for (int k = 0; k < kFilters; ++k) {
      if (k < filters) grad_w[(k0 + k) * p.length] = from_acc<scalar_t>(sums[k]);
    }
  }
}

// ---- launchers ----------------------------------------------------------------------------------------------

template <typename scalar_t>
Status launch_forward(const LocallyConnectedForwardParams& params, Stream stream) {
  constexpr const char* kName = "locally_connected_forward_kernel";
  const Local p(params.geometry);
  const int64_t warps = std::min<int64_t>(kMostWarps, ceil_div(p.g.K, kFiltersOfWarp));
  const int64_t filter_blocks = ceil_div(p.g.K, warps * kFiltersOfWarp);
  dim3 grid;
  const Status status = grid_of(p.positions * filter_blocks, kName, grid);
  if (!status.ok()) return status;
  return launch(kName, locally_connected_forward_kernel<scalar_t>, grid,
                dim3(static_cast<unsigned>(warps * kWarpSize)), 0, stream, params, p, filter_blocks);
}

// Images of a round of grad_input: as many as there are filters, so that parts are no larger than those.
int64_t round_images(const ConvGeometry& g) { return std::min(g.N, std::max<int64_t>(kImages, g.K)); }

template <typename scalar_t>
Status launch_grad_input(const LocallyConnectedGradInputParams& params, Stream stream) {
  constexpr const char *kParts = "locally_connected_parts_kernel",
                       *kCollect = "locally_connected_collect_kernel";
  const Local p(params.geometry);
  const int64_t columns = ceil_div(p.length, kThreads), image = p.g.C * volume(p.g.in);
  LocalTaps taps;
  for (int d = 0; d < kSpatialDims; ++d) taps.dim[d] = make_tap_dimension(p.g, d);
  for (int64_t n0 = 0; n0 < p.g.N; n0 += round_images(p.g)) {
    const int64_t images = std::min(round_images(p.g), p.g.N - n0);
    dim3 grid;
    Status status = grid_of(p.positions * columns, kParts, grid);
    if (!status.ok()) return status;
    status = launch(kParts, locally_connected_parts_kernel<scalar_t>, grid, dim3(kThreads), 0, stream, params,
                    p, columns, n0, images);
    if (!status.ok()) return status;
    status = grid_of(ceil_div(images * image, kThreads), kCollect, grid);
    if (!status.ok()) return status;
    status = launch(kCollect, locally_connected_collect_kernel<scalar_t>, grid, dim3(kThreads), 0, stream,
                    params, p, taps, n0, images);
    if (!status.ok()) return status;
  }
  return Status::success();
}

template <typename scalar_t>
Status launch_grad_weight(const LocallyConnectedGradWeightParams& params, Stream stream) {
  constexpr const char* kName = "locally_connected_grad_weight_kernel";
  const Local p(params.geometry);
  const int64_t columns = ceil_div(p.length, kThreads);
  dim3 grid;
  const Status status = grid_of(p.positions * columns, kName, grid);
  if (!status.ok()) return status;
  return launch(kName, locally_connected_grad_weight_kernel<scalar_t>, grid, dim3(kThreads), 0, stream, params,
                p, columns);
}

}  // namespace

Status locally_connected_forward(const LocallyConnectedForwardParams& p, Stream stream) {
  return dispatch_dtype(p.dtype,
                        [&](auto tag) { return launch_forward<typename decltype(tag)::type>(p, stream); });
}
int64_t locally_connected_forward_workspace(const LocallyConnectedForwardParams&) { return 0; }

Status locally_connected_grad_input(const LocallyConnectedGradInputParams& p, Stream stream) {
  return dispatch_dtype(p.dtype,
                        [&](auto tag) { return launch_grad_input<typename decltype(tag)::type>(p, stream); });
}
int64_t locally_connected_grad_input_workspace(const LocallyConnectedGradInputParams& p) {
  const Local local(p.geometry);
  const int64_t size = p.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float);
  return round_images(p.geometry) * local.positions * local.length * size;
}

Status locally_connected_grad_weight(const LocallyConnectedGradWeightParams& p, Stream stream) {
  return dispatch_dtype(p.dtype,
                        [&](auto tag) { return launch_grad_weight<typename decltype(tag)::type>(p, stream); });
}
int64_t locally_connected_grad_weight_workspace(const LocallyConnectedGradWeightParams&) { return 0; }

}  // namespace fastnn::cuda
