// The weight gradient from the sums that runs of conv_wgmma.cuh leave: how many there are differs from tile to
// tile. Bound by memory, mostly L2: a sum is written once and read once here.
#pragma once

#include <cstdint>

#include "conv_gemm_problem.cuh"
#include "conv_wgmma_tiles.cuh"
#include "dispatch.cuh"
#include "platform.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kWgmmaSumThreads = 256;
constexpr int kSumVec = 4;  // channels of a thread

struct WgmmaSum {
  int tile_m, tile_n, turns;
  int64_t out_row, out_group, out_channel, out_tap[kSpatialDims];
  bool vectors;  // channels of grad_w lie side by side, in aligned vectors
};

// A thread owns kSumVec channels of grad_w[group][row][tap], and adds their sums in the order of k.
template <typename scalar_t>
__global__ void __launch_bounds__(kWgmmaSumThreads)
    conv_wgmma_sum_kernel(const __grid_constant__ WgmmaProblem p, WgmmaSum s, const float* __restrict__ partial,
                          scalar_t* __restrict__ grad_w) {
  const WgmmaClass& c = p.classes[0];
  const int64_t cols = c.cols, count = p.groups * int64_t{p.rows} * cols;
  const int64_t index = (int64_t{blockIdx.x} * kWgmmaSumThreads + threadIdx.x) * kSumVec;
  if (index >= count) return;
  const int64_t line = quotient(index, cols);  // over all groups
  const int col = static_cast<int>(index - line * cols);
  const int group = static_cast<int>(quotient(line, p.rows)),
            row = static_cast<int>(line - int64_t{group} * p.rows);
  const int tap = col / p.leads, channel = col - tap * p.leads;

  uint32_t m = static_cast<uint32_t>(row / s.tile_m);
  uint32_t n =
      static_cast<uint32_t>((tap * p.steps_of_tap + channel / kPanelElements) * kPanelElements / s.tile_n);
  (p.shares_b ? m : n) /= kWgmmaCluster;
  const uint32_t pair = m + p.pairs_m * (n + c.pairs_n * static_cast<uint32_t>(group));
  const auto steps = static_cast<uint32_t>(c.steps);
  const uint32_t last = ((pair + 1) * steps - 1) / static_cast<uint32_t>(p.split_steps);
  const int slots = static_cast<int>(last - first_run_of_pair(p, pair) + 1) * s.turns;

  Vec<float, kSumVec> sum = load_vec<kSumVec>(partial + index, true);
#pragma unroll 4
  for (int slot = 1; slot < slots; ++slot) {
    const auto next = load_vec<kSumVec>(partial + slot * count + index, true);
#pragma unroll
    for (int i = 0; i < kSumVec; ++i) sum.v[i] += next.v[i];
  }
  Vec<scalar_t, kSumVec> value;
#pragma unroll
  for (int i = 0; i < kSumVec; ++i) value.v[i] = from_acc<scalar_t>(sum.v[i]);
  const int dh = tap / c.taps[2], w = tap - dh * c.taps[2], d = dh / c.taps[1], h = dh - d * c.taps[1];
  scalar_t* const to = grad_w + group * s.out_group + row * s.out_row + channel * s.out_channel +
                       d * s.out_tap[0] + h * s.out_tap[1] + w * s.out_tap[2];
  if (s.vectors) {
    store_vec(to, value, true);
  } else {
#pragma unroll
    for (int i = 0; i < kSumVec; ++i) to[i * s.out_channel] = value.v[i];
  }
}

template <typename scalar_t>
Status launch_wgmma_sum(const ConvGemm& gemm, const WgmmaProblem& p, int tile_m, int tile_n, int turns,
                        const float* partial, void* grad_w, Stream stream) {
  constexpr const char* kName = "conv_wgmma_sum_kernel";
  const auto& o = gemm.out_col;
  WgmmaSum s{tile_m, tile_n, turns, gemm.out_row, gemm.out_group, o[0], {o[1], o[2], o[3]}, false};
  s.vectors = o[0] == 1 && all_aligned<scalar_t, kSumVec>({grad_w});
  for (const int64_t stride : {s.out_row, s.out_group, o[1], o[2], o[3]}) s.vectors &= stride % kSumVec == 0;
  dim3 grid;
  const int64_t threads = gemm.groups * gemm.rows * gemm.cols.size() / kSumVec;
  const Status status = grid_of(ceil_div(threads, kWgmmaSumThreads), kName, grid);
  if (!status.ok()) return status;
  return launch(kName, conv_wgmma_sum_kernel<scalar_t>, grid, dim3(kWgmmaSumThreads), 0, stream, p, s, partial,
                static_cast<scalar_t*>(grad_w));
}

}  // namespace
}  // namespace fastnn::cuda
