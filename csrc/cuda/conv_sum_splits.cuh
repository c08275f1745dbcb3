// The sums that the splits of an implicit GEMM leave, added in order, the bias and the activation. Bound by
// memory: a split's sums are written once and read once here.
#pragma once

#include <cstdint>

#include "conv_activation.cuh"
#include "conv_gemm_problem.cuh"
#include "conv_index.cuh"
#include "dispatch.cuh"
#include "platform.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kSumSplitsThreads = 256;

// Where a split leaves its sum of (row, col): partial[split][group][row][col], or [..][col][row], as out has
// them.
FASTNN_HOST_DEVICE int64_t partial_offset(const ConvGemm& p, int64_t split, int64_t group, int64_t row,
                                          int64_t col, int64_t cols) {
  const int64_t product = (split * p.groups + group) * p.rows * cols;
  return product + (p.out_rows_first ? col * p.rows + row : row * cols + col);
}

// out = act(bias + partial[0] + partial[1] + ...), in that order. A thread owns one element of out.
template <typename scalar_t>
__global__ void __launch_bounds__(kSumSplitsThreads)
    conv_sum_splits_kernel(ConvGemm p, int64_t splits, const acc_type<scalar_t>* __restrict__ partial,
                           const scalar_t* __restrict__ bias, scalar_t* __restrict__ out) {
  using acc_t = acc_type<scalar_t>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kSumSplitsThreads + threadIdx.x;
  const int64_t cols = p.cols.size(), count = p.groups * p.rows * cols;
  if (index >= count) return;
  acc_t sum = partial[index];
#pragma unroll 4
  for (int64_t s = 1; s < splits; ++s) sum += partial[s * count + index];
  const int64_t group = quotient(index, p.rows * cols), in_group = index - group * p.rows * cols;
  const int64_t line = quotient(in_group, p.out_rows_first ? p.rows : cols);
  const int64_t place = in_group - line * (p.out_rows_first ? p.rows : cols);
  const int64_t row = p.out_rows_first ? place : line;
  const auto col = digits_of<int64_t>(p.out_rows_first ? line : place, p.cols);
  if (bias != nullptr) sum += to_acc(bias[group * p.rows + row]);
  out[group * p.out_group + row * p.out_row + col.lead * p.out_col[0] + col.d * p.out_col[1] +
      col.h * p.out_col[2] + col.w * p.out_col[3]] = activated(p.activation, from_acc<scalar_t>(sum));
}

template <typename scalar_t>
Status launch_sum_splits(const ConvGemm& p, int64_t splits, const void* partial, const void* bias, void* out,
                         Stream stream) {
  constexpr const char* kName = "conv_sum_splits_kernel";
  dim3 grid;
  const Status status = grid_of(ceil_div(p.groups * p.rows * p.cols.size(), kSumSplitsThreads), kName, grid);
  if (!status.ok()) return status;
  return launch(kName, conv_sum_splits_kernel<scalar_t>, grid, dim3(kSumSplitsThreads), 0, stream, p, splits,
                static_cast<const acc_type<scalar_t>*>(partial), static_cast<const scalar_t*>(bias),
                static_cast<scalar_t*>(out));
}

}  // namespace
}  // namespace fastnn::cuda
