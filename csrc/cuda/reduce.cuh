// Reductions whose order is a function of the shape alone, so that the same input gives the same bits on every
// run. Three scopes: a warp (shuffles), a block (one shared value per warp), the columns of a block (threads
// along x own columns, threads along y share the rows of each). What a block leaves is combined across blocks
// by a second launch, combine_partials_kernel, never by atomics.
//
// A reduced type T is a number, Sums or Moments: T{} is its neutral element and combine(a, b) joins two.
#pragma once

#include <cstdint>

#include "../ops/batch_norm_math.h"
#include "platform.cuh"

namespace fastnn::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullWarp = 0xffffffffu;

// Several sums reduced together, for the price of one round of barriers.
template <typename acc_t, int kCount>
struct Sums {
  acc_t v[kCount];  // no initialisers: arrays of these stand in shared memory
};

__device__ __forceinline__ float combine(float a, float b) { return a + b; }
__device__ __forceinline__ double combine(double a, double b) { return a + b; }

template <typename acc_t, int kCount>
__device__ __forceinline__ Sums<acc_t, kCount> combine(Sums<acc_t, kCount> a, const Sums<acc_t, kCount>& b) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) a.v[i] += b.v[i];
  return a;
}

// Type of the numbers that a reduced type consists of.
template <typename T>
struct NumberOf {
  using type = T;
};
template <typename acc_t, int kCount>
struct NumberOf<Sums<acc_t, kCount>> {
  using type = acc_t;
};
template <typename acc_t>
struct NumberOf<Moments<acc_t>> {
  using type = acc_t;
};

// Each number of a value through `shuffle`.
template <typename Shuffle>
__device__ __forceinline__ float shuffled(float v, const Shuffle& shuffle) {
  return shuffle(v);
}
template <typename Shuffle>
__device__ __forceinline__ double shuffled(double v, const Shuffle& shuffle) {
  return shuffle(v);
}
template <typename acc_t, int kCount, typename Shuffle>
__device__ __forceinline__ Sums<acc_t, kCount> shuffled(Sums<acc_t, kCount> s, const Shuffle& shuffle) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) s.v[i] = shuffle(s.v[i]);
  return s;
}
template <typename acc_t, typename Shuffle>
__device__ __forceinline__ Moments<acc_t> shuffled(const Moments<acc_t>& m, const Shuffle& shuffle) {
  return {shuffle(m.count), shuffle(m.mean), shuffle(m.m2)};
}

template <typename T>
__device__ __forceinline__ T shuffle_down(const T& value, int lanes) {
  return shuffled(value, [=](auto v) { return __shfl_down_sync(kFullWarp, v, lanes); });
}
template <typename T>
__device__ __forceinline__ T shuffle_xor(const T& value, int lanes) {
  return shuffled(value, [=](auto v) { return __shfl_xor_sync(kFullWarp, v, lanes); });
}

// Every lane of the warp takes part; lane 0 gets the result, the others something of no use.
template <typename T>
__device__ __forceinline__ T warp_reduce(T value) {
#pragma unroll
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) value = combine(value, shuffle_down(value, lanes));
  return value;
}

__device__ __forceinline__ int thread_in_block() {
  return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}

// Every thread of the block takes part, in whole warps; thread 0 gets the result. `scratch` is shared memory
// for kWarpSize values, free again on return.
template <typename T>
__device__ __forceinline__ T block_reduce(T value, T* scratch) {
  const int thread = thread_in_block();
  const int warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int warps = static_cast<int>(blockDim.x * blockDim.y * blockDim.z) / kWarpSize;
  value = warp_reduce(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  if (warp == 0) {
    value = lane < warps ? scratch[lane] : T{};
    value = warp_reduce(value);
  }
  __syncthreads();
  return value;
}

// Combines the values of the threads that share threadIdx.x; blockDim.y is a power of two. Every thread of the
// block takes part; those with threadIdx.y == 0 get the result. `scratch` is shared memory for one value a
// thread, free again on return.
template <typename T>
__device__ __forceinline__ T column_reduce(T value, T* scratch) {
  T* const mine = scratch + threadIdx.y * blockDim.x + threadIdx.x;
  for (unsigned rows = blockDim.y / 2; rows > 0; rows /= 2) {
    // Halves publish, the other halves add: a value is written once, and kept in a register otherwise.
    if (threadIdx.y >= rows && threadIdx.y < 2 * rows) *mine = value;
    __syncthreads();
    if (threadIdx.y < rows) value = combine(value, mine[rows * blockDim.x]);
  }
  __syncthreads();
  return value;
}

// Values of T, a struct of numbers, for rows of columns: [row][number][column], so that threads of columns next
// to each other read and write numbers next to each other.
template <typename T, typename number_t = typename NumberOf<T>::type>
struct ColumnArrays {
  static constexpr int kNumbers = sizeof(T) / sizeof(number_t);
  number_t* numbers;
  int64_t columns;

  static int64_t bytes(int64_t rows, int64_t columns) {
    return rows * columns * static_cast<int64_t>(sizeof(T));
  }

  __device__ __forceinline__ void set(int64_t row, int64_t column, const T& value) const {
    const auto& values = reinterpret_cast<const number_t(&)[kNumbers]>(value);
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) numbers[(row * kNumbers + i) * columns + column] = values[i];
  }
  __device__ __forceinline__ T get(int64_t row, int64_t column) const {
    T value;
    auto& values = reinterpret_cast<number_t(&)[kNumbers]>(value);
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) values[i] = numbers[(row * kNumbers + i) * columns + column];
    return value;
  }
};

// How a [rows, columns] array is cut for a kernel in which a thread owns one column (or one vector of columns)
// and walks down rows: blocks of x * y threads, `tiles` of them side by side, `splits` of them one below the
// other, so that `splits` partial results per column are left to combine.
struct ColumnPlan {
  int x, y;
  int64_t tiles, splits;

  dim3 grid() const { return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(splits)); }
  dim3 block() const { return dim3(x, y); }
};

inline constexpr int kColumnThreads = 256;
// Blocks that fill the largest device: 132 to 148 multiprocessors of 8 blocks of 256 threads. A constant and
// not a query, because the order of the sums follows from it.
inline constexpr int64_t kTargetBlocks = 1024;

inline constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// rows_at_once: rows that a thread takes in one step of its loop; a block gets work for at least one step.
inline ColumnPlan plan_columns(int64_t columns, int64_t rows, int rows_at_once) {
  ColumnPlan plan;
  plan.x = 1;
  while (plan.x < columns && plan.x < kWarpSize) plan.x *= 2;
  plan.y = kColumnThreads / plan.x;
  plan.tiles = ceil_div(columns, plan.x);
  const int64_t useful = ceil_div(rows, int64_t{rows_at_once} * plan.y);
  const int64_t wanted = ceil_div(kTargetBlocks, plan.tiles > 0 ? plan.tiles : 1);
  plan.splits = useful < wanted ? useful : wanted;
  if (plan.splits < 1) plan.splits = 1;
  return plan;
}

// The end of a kernel that plan_columns lays out, in which a thread has kVec columns: the block's result of
// each of its columns goes to finish(column, T) or, where blocks below have more of the column, to row
// blockIdx.y of `partials`. Every thread takes part; `scratch` is shared memory for kColumnThreads values.
template <int kVec, typename T, typename Finish>
__device__ __forceinline__ void finish_columns(const T (&values)[kVec], T* scratch, const Finish& finish,
                                               const ColumnArrays<T>& partials, int64_t columns) {
  static_assert(kWarpSize * kVec <= kColumnThreads, "one value of scratch for each column of a block");
  T totals[kVec];
#pragma unroll
  for (int k = 0; k < kVec; ++k) totals[k] = column_reduce(values[k], scratch);
  if (threadIdx.y == 0) {
#pragma unroll
    for (int k = 0; k < kVec; ++k) scratch[threadIdx.x * kVec + k] = totals[k];
  }
  __syncthreads();
  // All threads of the block share what one row of them holds: a column each, next to each other.
  const int width = static_cast<int>(blockDim.x) * kVec;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * width;
  for (int i = thread_in_block(); i < width && first + i < columns; i += kColumnThreads) {
    if (gridDim.y == 1) {
      finish(first + i, scratch[i]);
    } else {
      partials.set(blockIdx.y, first + i, scratch[i]);
    }
  }
}

// finish(column, T) for each column with the sum of the `splits` rows of `partials`. Splits may be 0. Few
// columns come with many splits, hence the narrow block: its 8 columns of float32 are a sector.
inline constexpr int kCombineX = 8, kCombineY = 32;

template <typename T, typename Finish>
__global__ void __launch_bounds__(kCombineX* kCombineY, 1)
    combine_partials_kernel(Finish finish, ColumnArrays<T> partials, int64_t splits, int64_t columns) {
  FASTNN_SHARED(T, scratch, kCombineX * kCombineY);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kCombineX + threadIdx.x;
  T total{};
  if (column < columns) {
#pragma unroll 4  // loads of four rows under way
    for (int64_t s = threadIdx.y; s < splits; s += kCombineY) total = combine(total, partials.get(s, column));
  }
  total = column_reduce(total, scratch);
  if (threadIdx.y == 0 && column < columns) finish(column, total);
}

template <typename T, typename Finish>
Status combine_partials(const char* name, const Finish& finish, const ColumnArrays<T>& partials, int64_t splits,
                        int64_t columns, Stream stream) {
  return launch(name, combine_partials_kernel<T, Finish>,
                dim3(static_cast<unsigned>(ceil_div(columns, kCombineX))), dim3(kCombineX, kCombineY), 0,
                stream, finish, partials, splits, columns);
}

}  // namespace fastnn::cuda
