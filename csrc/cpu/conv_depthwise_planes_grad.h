// Weight gradient of a depthwise convolution with contiguous columns (conv_depthwise.h has the formula).
//
// x lies in the scratch of conv_depthwise_planes.h, grad_y is read in place. One vector of sums for each tap
// and channel of a task; for 3x3 filters nine of them stay in registers along a strip, and kRowGroup rows share
// what they load: 22 loads for 36 multiply-adds at stride 1. Of other filters kTapGroup taps share what they
// load of grad_y, 5 loads for 4. Lanes are added once, at the end of a task.
//
// Error: sums of at most kMaxTermsPerSum terms, a chain over those, the lanes of a vector and the splits.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>

#include "conv_depthwise_planes.h"
#include "parallel.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {

inline constexpr int64_t kPlaneGradTasks = 32;  // enough for many threads
inline constexpr int kTapGroup = 4;

// How grad_weight is cut: by the shape alone.
template <typename acc_t>
struct PlanesGradPlan {
  PlanePlan<acc_t> plane;
  int64_t taps, planes, blocks, splits, split_images;

  PlanesGradPlan(const ConvGeometry& g, const DepthwiseDim (&dim)[kSpatialDims], bool may_pair)
      : plane(dim, g.C, may_pair) {
    taps = g.kernel[0] * g.kernel[1] * g.kernel[2];
    planes = std::min(plane.planes, std::max<int64_t>(1, kMaxSumVectors / taps));
    blocks = ceil_div(g.C, planes);
    splits = std::max<int64_t>(1, std::min(g.N, ceil_div(kPlaneGradTasks, std::max<int64_t>(1, blocks))));
    split_images = ceil_div(g.N, splits);
  }
  // [split][channel][tap]
  int64_t bytes(int64_t channels) const {
    return splits * channels * taps * static_cast<int64_t>(sizeof(acc_t));
  }
  // Vectors of sums of one task, on the stack.
  static constexpr int64_t kMaxSumVectors = 256;
};

inline bool dense_rows(const ConvGradWeightParams& params) {
  return params.x_strides[3] == params.geometry.in[2] && params.grad_y_strides[3] == params.geometry.out[2];
}

// The columns of grad_y as vectors: whole ones, and a last one that begins earlier. The lanes of that one that
// were taken before, or that lie behind the row, have sums of their own, which are dropped: to multiply by 0
// instead would make NaN of NaN.
template <typename acc_t>
struct GradColumns {
  static constexpr int64_t W = kLanes<acc_t>;
  int64_t columns, whole, last;  // last: where the masked vector begins
  Vec<acc_t> mask;

  GradColumns() = default;
  // A paired vector holds two rows.
  GradColumns(int64_t columns, bool paired)
      : columns(columns), whole(columns / W * W), last(columns >= W ? columns - W : 0) {
    using bits_t = std::conditional_t<sizeof(acc_t) == 4, uint32_t, uint64_t>;
    alignas(64) acc_t lane[W];
    for (int64_t i = 0; i < W; ++i) {
      const int64_t c = paired ? i % (W / 2) : last + i;
      lane[i] = std::bit_cast<acc_t>(c >= whole && c < columns ? ~bits_t(0) : bits_t(0));
    }
    mask = Vec<acc_t>::loadu(lane);
  }
};

// Rows of grad_y and of the scratch.
template <typename scalar_t>
struct PlaneGrad {
  const acc_type<scalar_t>* x;  // at the first row; of a 3x3 filter at its first tap
  int64_t x_row;                // what a row of grad_y moves
  const scalar_t* g;
  int64_t g_row;
  int64_t rows;
};

// sum[t] += the products of kRows vectors of grad_y, kRowStep rows of the scratch apart.
template <int kRowStep, int kRows, typename acc_t, typename Taps>
inline __attribute__((always_inline)) void add_nine_products(const acc_t* x, const Taps& taps,
                                                             const Vec<acc_t> (&grad)[kRows],
                                                             Vec<acc_t> (&sum)[9]) {
  for_each_constant<((kRows - 1) * kRowStep + 3) * 3>([&](auto i) __attribute__((always_inline)) {
    constexpr int k = i / 3, t = i % 3;
    const Vec<acc_t> value = Vec<acc_t>::loadu(x + taps.row(k) + taps.column(t));
    for_each_constant<kRows>([&](auto a) __attribute__((always_inline)) {
      constexpr int r = k - a * kRowStep;
      if constexpr (r >= 0 && r < 3) sum[r * 3 + t] = at::vec::fmadd(value, grad[a], sum[r * 3 + t]);
    });
  });
}

// total[t] += the sums of nine taps over the columns [begin, end), whole vectors or one of `count` columns.
// keep is applied to sums of at most kMaxTermsPerSum terms.
template <int kRowStep, typename scalar_t, typename Keep>
inline __attribute__((always_inline)) void add_nine_grads(const PlaneGrad<scalar_t>& plane,
                                                          const NineTaps<kRowStep == 1>& taps, int64_t begin,
                                                          int64_t end, int64_t count, const Keep& keep,
                                                          Vec<acc_type<scalar_t>>* total) {
  using V = Vec<acc_type<scalar_t>>;
  constexpr int64_t W = kLanes<acc_type<scalar_t>>;
  const int64_t rows_per_sum = std::max<int64_t>(kRowGroup, kMaxTermsPerSum / ceil_div(end - begin, W));
  for (int64_t row = 0; row < plane.rows;) {
    const int64_t last = std::min(plane.rows, row + rows_per_sum);
    const V zero(0);
    V sum[9] = {zero, zero, zero, zero, zero, zero, zero, zero, zero};
    const auto add_rows = [&]<int kRows>() __attribute__((always_inline)) {
      for (int64_t c = begin; c < end; c += W) {
        const scalar_t* const g = plane.g + row * plane.g_row + c;
        const acc_type<scalar_t>* const x = plane.x + row * plane.x_row + c;
        V grad[kRows];
        for_each_constant<kRows>(
            [&](auto a) __attribute__((always_inline)) { grad[a] = load_acc(g + a * plane.g_row, count); });
        add_nine_products<kRowStep>(x, taps, grad, sum);
      }
    };
    for (; row + kRowGroup <= last; row += kRowGroup) add_rows.template operator()<kRowGroup>();
    for (; row < last; ++row) add_rows.template operator()<1>();
    for_each_constant<9>([&](auto t) __attribute__((always_inline)) { total[t] = total[t] + keep(sum[t]); });
  }
}

// The same for kTaps of any taps, at `offset`, which share what they load of grad_y.
template <int kTaps, typename scalar_t, typename Keep>
inline __attribute__((always_inline)) void add_some_grads(const PlaneGrad<scalar_t>& plane,
                                                          const int64_t* offset, const int64_t* sum_of_tap,
                                                          int64_t begin, int64_t end, int64_t count,
                                                          const Keep& keep, Vec<acc_type<scalar_t>>* total) {
  using V = Vec<acc_type<scalar_t>>;
  constexpr int64_t W = kLanes<acc_type<scalar_t>>;
  constexpr int kRows =
      kTaps > 1 ? 2 : kRowGroup;  // eight or four sums: what a multiply-add's latency asks for
  const int64_t rows_per_sum = std::max<int64_t>(kRows, kMaxTermsPerSum / ceil_div(end - begin, W));
  for (int64_t row = 0; row < plane.rows;) {
    const int64_t last = std::min(plane.rows, row + rows_per_sum);
    V sum[kTaps][kRows];
    for (auto& of_tap : sum) {
      for (auto& each : of_tap) each = V(0);
    }
    const auto add_rows = [&]<int kAdded>() __attribute__((always_inline)) {
      for (int64_t c = begin; c < end; c += W) {
        const scalar_t* const g = plane.g + row * plane.g_row + c;
        const acc_type<scalar_t>* const x = plane.x + row * plane.x_row + c;
        for_each_constant<kAdded>([&](auto a) __attribute__((always_inline)) {
          const V grad = load_acc(g + a * plane.g_row, count);
          for_each_constant<kTaps>([&](auto t) __attribute__((always_inline)) {
            sum[t][a] = at::vec::fmadd(V::loadu(x + a * plane.x_row + offset[t]), grad, sum[t][a]);
          });
        });
      }
    };
    for (; row + kRows <= last; row += kRows) add_rows.template operator()<kRows>();
    for (; row < last; ++row) add_rows.template operator()<1>();
    for (int t = 0; t < kTaps; ++t) {
      V all = sum[t][0];
      for (int a = 1; a < kRows; ++a) all = all + sum[t][a];
      total[sum_of_tap[t]] = total[sum_of_tap[t]] + keep(all);
    }
  }
}

// Calls add(begin, end, count, keep) for the whole vectors and for the last one.
template <typename acc_t, typename Add>
inline __attribute__((always_inline)) void for_each_part(const GradColumns<acc_t>& columns, const Add& add) {
  constexpr int64_t W = kLanes<acc_t>;
  if (columns.whole > 0) add(0, columns.whole, W, [](const Vec<acc_t>& v) { return v; });
  if (columns.whole == columns.columns) return;
  const auto keep = [&](const Vec<acc_t>& v) { return v & columns.mask; };
  if (columns.whole > 0) {
    add(columns.last, columns.columns, W, keep);
  } else {
    add(0, columns.columns, columns.columns, keep);
  }
}

// total[t] += the sums of nine taps over a plane of at most kMaxPairedRows rows, two in each vector.
template <typename scalar_t>
void add_nine_grads_paired(const PlaneTile<acc_type<scalar_t>>& tile, const Vec<acc_type<scalar_t>>& mask,
                           const PlaneGrad<scalar_t>& plane, Vec<acc_type<scalar_t>>* total) {
  using V = Vec<acc_type<scalar_t>>;
  constexpr int64_t pitch = kLanes<acc_type<scalar_t>> / 2;
  const NineTaps<true, pitch> taps(tile);
  const V zero(0);
  V sum[9] = {zero, zero, zero, zero, zero, zero, zero, zero, zero};
  const int64_t size = 2 * tile.columns, count = tile.rows * tile.columns;
  const acc_type<scalar_t>* x = plane.x;
  for (int64_t at = 0; at < count; at += kRowGroup * size, x += 2 * kRowGroup * pitch) {
    V grad[kRowGroup];
    for_each_constant<kRowGroup>([&](auto a) __attribute__((always_inline)) {
      const int64_t left = count - at - a * size;
      grad[a] =
          left <= 0 ? zero : split_pair(load_acc(plane.g + at + a * size, std::min(size, left)), tile.columns);
    });
    add_nine_products<2>(x, taps, grad, sum);
  }
  for_each_constant<9>([&](auto t) __attribute__((always_inline)) { total[t] = total[t] + (sum[t] & mask); });
}

template <int kRowStep, typename scalar_t>
void add_nine_grads(const PlaneTile<acc_type<scalar_t>>& tile, const GradColumns<acc_type<scalar_t>>& columns,
                    const PlaneGrad<scalar_t>& plane, Vec<acc_type<scalar_t>>* total) {
  const NineTaps<kRowStep == 1> taps(tile);
  for_each_part(columns, [&](int64_t begin, int64_t end, int64_t count, const auto& keep) {
    add_nine_grads<kRowStep>(plane, taps, begin, end, count, keep, total);
  });
}

template <typename scalar_t>
void add_listed_grads(const PlaneTile<acc_type<scalar_t>>& tile, const GradColumns<acc_type<scalar_t>>& columns,
                      const PlaneGrad<scalar_t>& plane, const int64_t* sum_of_tap,
                      Vec<acc_type<scalar_t>>* total) {
  int64_t i = 0;
  const auto add = [&](auto taps) __attribute__((always_inline)) {
    constexpr int kTaps = decltype(taps)::value;
    for (; i + kTaps <= tile.list[1]; i += kTaps) {
      for_each_part(columns, [&](int64_t begin, int64_t end, int64_t count, const auto& keep) {
        add_some_grads<kTaps>(plane, tile.offset + i, sum_of_tap + i, begin, end, count, keep, total);
      });
    }
  };
  add(std::integral_constant<int, kTapGroup>{});
  add(std::integral_constant<int, 1>{});
}

// The sums of the lanes of kCount vectors, a power of two up to the number of lanes, as the first lanes of one:
// each step adds neighbouring lanes of two vectors.
template <int64_t kCount, typename acc_t>
Vec<acc_t> sum_lanes_of(const Vec<acc_t>* v) {
  if constexpr (kCount == 1) {
    return v[0];
  } else {
    const auto [even, odd] =
        at::vec::deinterleave2(sum_lanes_of<kCount / 2>(v), sum_lanes_of<kCount / 2>(v + kCount / 2));
    return even + odd;
  }
}

template <typename scalar_t>
void planes_grad_weight(const ConvGradWeightParams& params) {
  using acc_t = acc_type<scalar_t>;
  using Tile = PlaneTile<acc_t>;
  using V = Vec<acc_t>;
  const ConvGeometry& geometry = params.geometry;
  const DepthwiseDim dim[] = {DepthwiseDim::forward(geometry, 0), DepthwiseDim::forward(geometry, 1),
                              DepthwiseDim::forward(geometry, 2)};
  const bool may_pair = dense_rows(params);
  const PlanesGradPlan<acc_t> plan(geometry, dim, may_pair);
  const PlanePlan<acc_t>& cut = plan.plane;
  const int64_t C = geometry.C, N = dim[1].size * dim[2].size == 0 ? 0 : geometry.N;
#if defined(CPU_CAPABILITY_AVX512)
  const bool in_rows = std::is_same_v<acc_t, float> && fits_rows(dim);
#else
  const bool in_rows = false;
#endif
  const int64_t tiles = N == 0 || in_rows ? 0 : dim[0].size * cut.segments * cut.strips;
  const bool nine = Tile::three_by_three(dim);
  acc_t* const sums = static_cast<acc_t*>(params.workspace);
  const int64_t* const x_strides = params.x_strides;
  const int64_t* const g_strides = params.grad_y_strides;

  const int64_t work = std::max<int64_t>(
      1, plan.split_images * dim[0].size * dim[1].size * dim[2].size * plan.planes * plan.taps);
  const int64_t grain = std::max<int64_t>(1, kMinDepthwisePerThread / work);
  parallel_for(plan.splits * plan.blocks, grain, [&](int64_t first_task, int64_t last_task) {
    alignas(64) acc_t scratch[kScratchSize];
    V total[PlanesGradPlan<acc_t>::kMaxSumVectors];
    // Where there is one tile alone it is set up once.
    Tile tile;
    GradColumns<acc_t> columns;
    int64_t sum_of_tap[kMaxTaps], current = -1;
    for (int64_t task = first_task; task < last_task; ++task) {
      const int64_t split = task / plan.blocks;
      const int64_t c_first = task % plan.blocks * plan.planes, c_last = std::min(C, c_first + plan.planes);
      const int64_t n_first = split * plan.split_images, n_last = std::min(N, n_first + plan.split_images);
      const int64_t num_sums = (c_last - c_first) * plan.taps;
      for (int64_t i = 0; i < round_up(num_sums, kLanes<acc_t>); ++i) total[i] = V(0);
#if defined(CPU_CAPABILITY_AVX512)
      if constexpr (std::is_same_v<acc_t, float>) {
        if (in_rows && N > 0) add_row_grads<scalar_t>(params, dim, n_first, n_last, c_first, c_last, total);
      }
#endif
      for (int64_t number = 0; number < tiles; ++number) {
        const int64_t depth = number / cut.strips / cut.segments;
        const int64_t row = number % cut.strips * cut.strip_rows;
        if (number != current) {
          tile = Tile(dim, depth, number / cut.strips % cut.segments, row,
                      std::min(cut.strip_rows, dim[1].size - row), may_pair);
          columns = GradColumns<acc_t>(tile.columns, tile.paired);
          for (int64_t i = 0; i < tile.list[1]; ++i) {
            sum_of_tap[i] =
                (tile.tap[i][0] * geometry.kernel[1] + tile.tap[i][1]) * geometry.kernel[2] + tile.tap[i][2];
          }
          std::fill(scratch, scratch + plan.planes * tile.plane_size, acc_t(0));
          current = number;
        }
        for (int64_t n = n_first; n < n_last; ++n) {
          for (int64_t c = c_first; c < c_last; ++c) {
            tile.copy(static_cast<const scalar_t*>(params.x) + n * x_strides[0] + c * x_strides[1], x_strides,
                      scratch + (c - c_first) * tile.plane_size);
          }
          for (int64_t c = c_first; c < c_last; ++c) {
            const acc_t* const x = scratch + (c - c_first) * tile.plane_size;
            const scalar_t* const g = static_cast<const scalar_t*>(params.grad_y) + n * g_strides[0] +
                                      c * g_strides[1] + depth * g_strides[2] + row * g_strides[3] +
                                      tile.first_column * g_strides[4];
            const PlaneGrad<scalar_t> plane{nine ? x + tile.offset[0] : x, dim[1].step * tile.row_pitch, g,
                                            g_strides[3], tile.rows};
            if (tiles == 1) {
              prefetch_plane(static_cast<const scalar_t*>(params.x) + (n + 1) * x_strides[0] + c * x_strides[1],
                             dim[1].extent, x_strides[3]);
              prefetch_plane(g + g_strides[0], tile.rows, g_strides[3]);
            }
            V* const sum = total + (c - c_first) * plan.taps;
            if (tile.paired) {
              add_nine_grads_paired(tile, columns.mask, plane, sum);
            } else if (nine && dim[1].step == 1) {
              add_nine_grads<1>(tile, columns, plane, sum);
            } else if (nine) {
              add_nine_grads<2>(tile, columns, plane, sum);
            } else {
              add_listed_grads(tile, columns, plane, sum_of_tap, sum);
            }
          }
        }
      }
      acc_t* const out = sums + (split * C + c_first) * plan.taps;
      for_each_vector<acc_t>(0, num_sums, [&](int64_t i, int64_t count) {
        store_acc(out + i, sum_lanes_of<kLanes<acc_t>>(total + i), count);
      });
    }
  });

  const int64_t* const w_strides = params.grad_w_strides;
  const int64_t split_size = C * plan.taps;
  const acc_t* sum = sums;
  for (int64_t c = 0; c < C; ++c) {
    for (int64_t d = 0; d < geometry.kernel[0]; ++d) {
      for (int64_t h = 0; h < geometry.kernel[1]; ++h) {
        scalar_t* const grad_w =
            static_cast<scalar_t*>(params.grad_w) + c * w_strides[0] + d * w_strides[2] + h * w_strides[3];
        for (int64_t w = 0; w < geometry.kernel[2]; ++w, ++sum) {
          acc_t all = sum[0];
          for (int64_t split = 1; split < plan.splits; ++split) all += sum[split * split_size];
          grad_w[w * w_strides[4]] = static_cast<scalar_t>(all);
        }
      }
    }
  }
}

}  // namespace fastnn::FASTNN_BACKEND
