// Depthwise convolution with contiguous columns, 3x3 with padding 1 at strides 1 and 2, where loads can be
// masked (AVX-512): in place, without the scratch of conv_depthwise_planes.h.
//
// A vector is 16 columns of a row of outputs. Down a plane, each row of x is loaded once, at the three columns
// of its taps, and stays in registers while the three rows of outputs that see it are summed (grad_weight: the
// three rows of taps): 3 loads for 9 multiply-adds at stride 1. At stride 2 a row is two loads and two
// permutations, of which every second row is kept for one more row of outputs. Masks stand for the borders.
// Rows of at most 7 columns share a vector by two: there each pair of rows is one load, and what lies between
// two pairs one permutation.
//
// Floor: as for channels. Nine multiply-adds are 9 cycles; a row takes 15 instructions.
//
// Error: sums of as many terms as there are taps; grad_weight as in conv_depthwise_planes_grad.h.
#pragma once

#if defined(CPU_CAPABILITY_AVX512)

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cache_hints.h"
#include "conv_depthwise.h"
#include "masked_lanes.h"
#include "parallel.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {

// Elements of a strip of rows of outputs, as much as stays in L1 while one vector of columns after the other is
// gone down.
inline constexpr int64_t kRowStripSize = 8192;
inline constexpr int64_t kPairedColumns = 7;

// What the three taps of a row of the filter read of one row of x, for 16 columns of outputs.
struct TapRow {
  __m512 tap[3];
  static TapRow zero() { return {{_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()}}; }
};

// Loads rows for the outputs of columns [column, column + lanes): lanes behind them are 0.
template <int kStep, typename scalar_t>
struct RowLoader {
  int64_t column;
  bool has_edge;
  __mmask16 lanes, masks[3];

  // Columns [column, end) of `columns` ones; a row of x has `width`.
  RowLoader(int64_t column, int64_t end, int64_t width) : column(column * kStep) {
    lanes = first_lanes(end - column);
    if constexpr (kStep == 1) {
      masks[0] = static_cast<__mmask16>(lanes & (column == 0 ? 0xfffe : 0xffff));
      masks[1] = static_cast<__mmask16>(lanes & first_lanes(width - column));
      masks[2] = static_cast<__mmask16>(lanes & first_lanes(width - column - 1));
      has_edge = false;
    } else {
      const int64_t inside = std::min(width, 2 * end) - this->column;
      masks[0] = first_lanes(inside);
      masks[1] = first_lanes(inside - 16);
      masks[2] = 0;
      has_edge = column > 0;
    }
  }

  TapRow load(const scalar_t* row) const {
    const scalar_t* const at = row + column;
    if constexpr (kStep == 1) {
      return {{load_lanes(at - 1, masks[0]), load_lanes(at, masks[1]), load_lanes(at + 1, masks[2])}};
    } else {
      const auto [even, odd] = at::vec::deinterleave2(Vec<float>(load_lanes(at, masks[0])),
                                                      Vec<float>(load_lanes(at + 16, masks[1])));
      const __m512 edge = has_edge ? _mm512_set1_ps(static_cast<float>(at[-1])) : _mm512_setzero_ps();
      return {{shift_in_first(odd, edge, lanes), even, odd}};
    }
  }
};

// The rows of x that lie inside: `load` of one, zeros for others.
template <int kStep, typename scalar_t>
struct InputRows {
  const scalar_t* plane;
  int64_t stride, rows;
  const RowLoader<kStep, scalar_t>& loader;

  TapRow operator()(int64_t row) const {
    return row >= 0 && row < rows ? loader.load(plane + row * stride) : TapRow::zero();
  }
};

// Calls f(o, row above, row, row below) for the rows of outputs [begin, end).
template <int kStep, typename Rows, typename F>
inline __attribute__((always_inline)) void for_each_three_rows(const Rows& row, int64_t begin, int64_t end,
                                                               const F& f) {
  if (begin >= end) return;
  if constexpr (kStep == 1) {
    TapRow above = row(begin - 1), here = row(begin);
    for (int64_t o = begin; o < end; ++o) {
      const TapRow below = row(o + 1);
      f(o, above, here, below);
      above = here;
      here = below;
    }
  } else {
    TapRow above = row(2 * begin - 1);
    for (int64_t o = begin; o < end; ++o) {
      const TapRow here = row(2 * o), below = row(2 * o + 1);
      f(o, above, here, below);
      above = below;
    }
  }
}

// Two rows of at most kPairedColumns columns in the halves of a vector; at least one lane behind each row is 0.
template <typename scalar_t>
struct PairLoader {
  const scalar_t* plane;  // dense
  int64_t columns, size;  // of a row, of the plane
  __mmask16 lanes;        // of both rows

  PairLoader(const scalar_t* plane, int64_t rows, int64_t columns)
      : plane(plane),
        columns(columns),
        size(rows * columns),
        lanes(static_cast<__mmask16>(first_lanes(columns) * 0x101u)) {}

  // Rows 2 k and 2 k + 1, 0 where they are not there.
  __m512 pair(int64_t k) const {
    const int64_t at = 2 * k * columns;
    const __mmask16 dense = first_lanes(std::min(2 * columns, size - at));
    return _mm512_maskz_expand_ps(lanes, load_lanes(plane + at, dense));
  }
  // Rows 2 k - 1 and 2 k of two such pairs.
  static __m512 between(__m512 before, __m512 behind) {
    return _mm512_castsi512_ps(
        _mm512_alignr_epi64(_mm512_castps_si512(behind), _mm512_castps_si512(before), 4));
  }
  TapRow taps(__m512 rows) const {
    const __m512 zero = _mm512_setzero_ps();
    return {{shift_in_first(rows, zero, lanes), rows, shift_in_last(rows, zero, lanes)}};
  }
};

// Calls f(k, rows above, rows, rows below) for pairs of rows of outputs.
template <typename scalar_t, typename F>
inline __attribute__((always_inline)) void for_each_three_pairs(const PairLoader<scalar_t>& load, const F& f) {
  __m512 rows = load.pair(0);
  TapRow above = load.taps(load.between(_mm512_setzero_ps(), rows));
  for (int64_t k = 0; 2 * k * load.columns < load.size; ++k) {
    const __m512 next = load.pair(k + 1);
    const TapRow below = load.taps(load.between(rows, next));
    f(k, above, load.taps(rows), below);
    above = below;
    rows = next;
  }
}

// Sums, or sums of products, of nine taps in the order of the taps.
inline __attribute__((always_inline)) __m512 nine_products(__m512 sum, const __m512 (&filter)[9],
                                                           const TapRow& above, const TapRow& here,
                                                           const TapRow& below) {
  for_each_constant<3>(
      [&](auto t) __attribute__((always_inline)) { sum = _mm512_fmadd_ps(above.tap[t], filter[t], sum); });
  for_each_constant<3>(
      [&](auto t) __attribute__((always_inline)) { sum = _mm512_fmadd_ps(here.tap[t], filter[3 + t], sum); });
  for_each_constant<3>(
      [&](auto t) __attribute__((always_inline)) { sum = _mm512_fmadd_ps(below.tap[t], filter[6 + t], sum); });
  return sum;
}

inline __attribute__((always_inline)) void add_nine_products(__m512 (&sum)[9], __m512 grad, const TapRow& above,
                                                             const TapRow& here, const TapRow& below) {
  for_each_constant<3>([&](auto t) __attribute__((always_inline)) {
    sum[t] = _mm512_fmadd_ps(above.tap[t], grad, sum[t]);
    sum[3 + t] = _mm512_fmadd_ps(here.tap[t], grad, sum[3 + t]);
    sum[6 + t] = _mm512_fmadd_ps(below.tap[t], grad, sum[6 + t]);
  });
}

// ---- which convolutions ----

// The three taps of forward with padding 1, and of grad_input at stride 1.
inline bool has_three_rows(const DepthwiseDim& dim) {
  const DimTaps& taps = dim.taps[0];
  return dim.residues == 1 && taps.count == 3 && taps.move == 1 && taps.origin == -1 &&
         (dim.step == 2 || (dim.step == 1 && dim.size == dim.extent));
}

// grad_input at stride 2 with padding 1: positions 2 j see one tap of grad_y's j, positions 2 j + 1 two, of j
// and of j + 1.
inline bool has_even_odd_rows(const DepthwiseDim& dim) {
  return dim.residues == 2 && dim.step == 1 && dim.taps[0].count == 1 && dim.taps[0].origin == 0 &&
         dim.taps[1].count == 2 && dim.taps[1].origin == 0 && dim.taps[1].move == 1;
}

inline bool has_one_depth(const DepthwiseDim& dim) {
  return dim.size == 1 && dim.extent == 1 && dim.taps[0].count == 1 && dim.taps[0].origin == 0;
}

// Whether rows_gather computes it.
inline bool fits_rows(const DepthwiseDim (&dim)[kSpatialDims]) {
  const auto& [d, h, w] = dim;
  if (!has_one_depth(d)) return false;
  return (has_three_rows(h) && has_three_rows(w) && h.step == w.step) ||
         (has_even_odd_rows(h) && has_even_odd_rows(w));
}

// ---- forward and grad_input ----

// Where rows of outputs go: what a short row's vector leaves behind its end the next row overwrites, but for
// the last one before `limit`.
template <typename scalar_t>
struct RowStore {
  const scalar_t* limit;  // null where rows do not follow each other
  bool stream;

  void operator()(scalar_t* to, __m512 v, int64_t count) const {
    if (stream) {
      store_stream(to, Vec<float>(v));
    } else if (count >= 16 || to + 16 <= limit) {
      store_acc(to, Vec<float>(v));
    } else {
      store_acc(to, Vec<float>(v), count);
    }
  }
};

template <typename scalar_t>
struct RowTask {
  const scalar_t* in;
  scalar_t* out;       // at the plane's first row
  int64_t begin, end;  // rows of outputs; pairs of them in even_odd_rows
  float filter[9], bias;

  // Copies of its own, which no store can be taken to change, stay in registers.
  void broadcast(__m512 (&f)[9]) const {
    for_each_constant<9>([&](auto i) __attribute__((always_inline)) { f[i] = _mm512_set1_ps(filter[i]); });
  }
};

// Rows [begin, end) of a plane at stride kStep. A last vector of columns begins earlier rather than being
// partial.
template <int kStep, typename scalar_t>
void three_rows(const DepthwiseGather<scalar_t>& conv, const RowTask<scalar_t>& task,
                const RowStore<scalar_t>& store, FetchAhead& ahead) {
  const int64_t columns = conv.dim[2].size, out_row = conv.out_strides[3];
  __m512 filter[9];
  task.broadcast(filter);
  const __m512 bias = _mm512_set1_ps(task.bias);
  for (int64_t c = 0; c < columns; c += 16) {
    const int64_t column = columns >= 16 ? std::min(c, columns - 16) : 0;
    const RowLoader<kStep, scalar_t> loader(column, columns, conv.dim[2].extent);
    const InputRows<kStep, scalar_t> rows{task.in, conv.in_strides[3], conv.dim[1].extent, loader};
    scalar_t* out = task.out + task.begin * out_row + column;
    for_each_three_rows<kStep>(rows, task.begin, task.end,
                               [&](int64_t, const TapRow& above, const TapRow& here, const TapRow& below)
                                   __attribute__((always_inline)) {
                                     ahead.next();
                                     store(out, nine_products(bias, filter, above, here, below), columns);
                                     out += out_row;
                                   });
  }
}

// A dense plane of short rows.
template <typename scalar_t>
void three_rows_paired(const DepthwiseGather<scalar_t>& conv, const RowTask<scalar_t>& task,
                       const RowStore<scalar_t>& store) {
  const int64_t columns = conv.dim[2].size, size = conv.dim[1].size * columns;
  const PairLoader<scalar_t> load(task.in, conv.dim[1].extent, columns);
  __m512 filter[9];
  task.broadcast(filter);
  const __m512 bias = _mm512_set1_ps(task.bias);
  for_each_three_pairs(load, [&](int64_t k, const TapRow& above, const TapRow& here,
                                 const TapRow& below) __attribute__((always_inline)) {
    const __m512 sum = nine_products(bias, filter, above, here, below);
    const int64_t at = 2 * k * columns;
    store(task.out + at, _mm512_maskz_compress_ps(load.lanes, sum), std::min(2 * columns, size - at));
  });
}

// Pairs of rows [begin, end) of grad_input at stride 2. filter: as grad_y's rows and columns rise, those of
// (even, even), (even, odd) two, (odd, even) two, (odd, odd) four.
template <typename scalar_t>
void even_odd_rows(const DepthwiseGather<scalar_t>& conv, const RowTask<scalar_t>& task,
                   const RowStore<scalar_t>& store, FetchAhead& ahead) {
  const DepthwiseDim &h = conv.dim[1], &w = conv.dim[2];
  const int64_t columns = ceil_div(w.size, 2), out_row = conv.out_strides[3];
  __m512 f[9];
  task.broadcast(f);
  const __m512 bias = _mm512_set1_ps(task.bias);
  for (int64_t column = 0; column < columns; column += 16) {
    const __mmask16 here = first_lanes(w.extent - column), next = first_lanes(w.extent - column - 1);
    struct Row {
      __m512 here, next;
    };
    const auto load = [&](int64_t row) __attribute__((always_inline)) -> Row {
      const bool there = row < h.extent;
      const scalar_t* const at = task.in + (there ? row : 0) * conv.in_strides[3] + column;
      return {load_lanes(at, there ? here : 0), load_lanes(at + 1, there ? next : 0)};
    };
    const int64_t rest = w.size - 2 * column;
    const auto store_pair = [&](scalar_t* to, __m512 even, __m512 odd) __attribute__((always_inline)) {
      const auto [low, high] = at::vec::interleave2(Vec<float>(even), Vec<float>(odd));
      store(to, low, columns <= 16 ? std::min<int64_t>(rest, 16) : rest);
      if (rest > 16) store(to + 16, high, rest - 16);
    };
    Row row = load(task.begin);
    for (int64_t j = task.begin; j < task.end; ++j) {
      ahead.next();
      const Row below = load(j + 1);
      scalar_t* const out = task.out + 2 * j * out_row + 2 * column;
      store_pair(out, _mm512_fmadd_ps(row.here, f[0], bias),
                 _mm512_fmadd_ps(row.next, f[2], _mm512_fmadd_ps(row.here, f[1], bias)));
      if (2 * j + 1 < h.size) {
        const __m512 even = _mm512_fmadd_ps(below.here, f[4], _mm512_fmadd_ps(row.here, f[3], bias));
        const __m512 odd = _mm512_fmadd_ps(row.next, f[6], _mm512_fmadd_ps(row.here, f[5], bias));
        store_pair(out + out_row, even,
                   _mm512_fmadd_ps(below.next, f[8], _mm512_fmadd_ps(below.here, f[7], odd)));
      }
      row = below;
    }
  }
}

template <typename scalar_t>
void rows_gather(const DepthwiseGather<scalar_t>& conv) {
  const auto& [depth_dim, h, w] = conv.dim;
  const int64_t* const in_strides = conv.in_strides;
  const int64_t* const out_strides = conv.out_strides;
  const bool even_odd = h.residues == 2;
  const bool dense_out = out_strides[3] == w.size && out_strides[1] == h.size * w.size &&
                         out_strides[0] == conv.C * out_strides[1];
  const bool dense_in = in_strides[3] == w.extent && in_strides[1] == h.extent * w.extent;
  const bool paired = !even_odd && h.step == 1 && w.size <= kPairedColumns && dense_in && dense_out;
  const bool stream = !conv.activate && streams_lines(conv.out, conv.N * conv.C * h.size * w.size) &&
                      dense_out && w.size % 16 == 0;
  const int64_t all_rows = ceil_div(h.size, h.residues);
  const int64_t strips = paired ? 1 : std::max<int64_t>(1, std::min(all_rows, h.size * w.size / kRowStripSize));
  const int64_t strip_rows = ceil_div(all_rows, strips);
  const int64_t columns = ceil_div(w.size, w.residues);

  // Taps by rising coordinates.
  const auto tap = [](const DimTaps& taps, int64_t t) { return taps.first + t * taps.stride; };
  int64_t w_offset[9];
  int count = 0;
  for (int64_t ry = 0; ry < h.residues; ++ry) {
    for (int64_t rx = 0; rx < w.residues; ++rx) {
      for (int64_t t = 0; t < h.taps[ry].count; ++t) {
        for (int64_t u = 0; u < w.taps[rx].count; ++u) {
          w_offset[count++] = conv.w_offset(0, tap(h.taps[ry], t), tap(w.taps[rx], u));
        }
      }
    }
  }

  const int64_t work = strip_rows * h.residues * w.size * 9;
  const int64_t grain = std::max<int64_t>(1, kMinDepthwisePerThread / work);
  parallel_for(conv.N * conv.C * strips, grain, [&](int64_t first_task, int64_t last_task) {
    FetchAhead ahead;
    RowStore<scalar_t> store{nullptr, stream};
    if (dense_out && columns <= 16 && strips == 1) store.limit = conv.out + last_task * out_strides[1];
    for (int64_t number = first_task; number < last_task; ++number) {
      const int64_t strip = number % strips, c = number / strips % conv.C, n = number / strips / conv.C;
      RowTask<scalar_t> task;
      task.in = conv.in + n * in_strides[0] + c * in_strides[1];
      task.out = conv.out + n * out_strides[0] + c * out_strides[1];
      task.begin = strip * strip_rows;
      task.end = std::min(all_rows, task.begin + strip_rows);
      const scalar_t* const filter = conv.w + c * conv.w_strides[0];
      for (int i = 0; i < 9; ++i) task.filter[i] = static_cast<float>(filter[w_offset[i]]);
      task.bias = conv.bias == nullptr ? 0.0f : static_cast<float>(conv.bias[c]);
      const auto activate = [&] {
        if (conv.activate)
          conv.activate.run(task.out + task.begin * out_strides[3], task.end - task.begin, out_strides[3],
                            w.size, 1);
      };
      if (paired) {
        three_rows_paired(conv, task, store);
        activate();
        continue;
      }
      if (dense_in) {
        const scalar_t* const begin = task.in + task.begin * h.step * in_strides[3];
        const scalar_t* const end = begin + strip_rows * h.step * in_strides[3];
        ahead.plan(begin, end, end + strip_rows * h.step * in_strides[3], strip_rows * ceil_div(columns, 16));
      }
      if (even_odd) {
        even_odd_rows(conv, task, store, ahead);
      } else if (h.step == 1) {
        three_rows<1>(conv, task, store, ahead);
      } else {
        three_rows<2>(conv, task, store, ahead);
      }
      activate();
    }
    if (stream) end_stream();
  });
}

// ---- grad_weight ----

// sums[t] += the products of a plane of grad_y with what tap t reads of x's plane.
template <int kStep, typename scalar_t>
void add_plane_grads(const scalar_t* x, int64_t x_row, int64_t x_rows, int64_t x_columns, const scalar_t* g,
                     int64_t g_row, int64_t rows, int64_t columns, Vec<float>* sums) {
  for (int64_t column = 0; column < columns; column += 16) {
    const RowLoader<kStep, scalar_t> loader(column, columns, x_columns);
    const InputRows<kStep, scalar_t> input{x, x_row, x_rows, loader};
    for (int64_t row = 0; row < rows; row += kMaxTermsPerSum) {
      __m512 sum[9];
      for (__m512& s : sum) s = _mm512_setzero_ps();
      for_each_three_rows<kStep>(input, row, std::min(rows, row + kMaxTermsPerSum),
                                 [&](int64_t o, const TapRow& above, const TapRow& here, const TapRow& below)
                                     __attribute__((always_inline)) {
                                       const __m512 grad = load_lanes(g + o * g_row + column, loader.lanes);
                                       add_nine_products(sum, grad, above, here, below);
                                     });
      for_each_constant<9>([&](auto t)
                               __attribute__((always_inline)) { sums[t] = sums[t] + Vec<float>(sum[t]); });
    }
  }
}

// The same for dense planes of at most kMaxPairedRows short rows.
template <typename scalar_t>
void add_plane_grads_paired(const scalar_t* x, const scalar_t* g, int64_t rows, int64_t columns,
                            Vec<float>* sums) {
  const PairLoader<scalar_t> x_pairs(x, rows, columns), g_pairs(g, rows, columns);
  __m512 sum[9];
  for (__m512& s : sum) s = _mm512_setzero_ps();
  for_each_three_pairs(x_pairs, [&](int64_t k, const TapRow& above, const TapRow& here, const TapRow& below)
                                    __attribute__((always_inline)) {
                                      add_nine_products(sum, g_pairs.pair(k), above, here, below);
                                    });
  for_each_constant<9>([&](auto t) __attribute__((always_inline)) { sums[t] = sums[t] + Vec<float>(sum[t]); });
}

// sums[channel][tap] += those of the images and channels given.
template <typename scalar_t>
void add_row_grads(const ConvGradWeightParams& params, const DepthwiseDim (&dim)[kSpatialDims], int64_t n_first,
                   int64_t n_last, int64_t c_first, int64_t c_last, Vec<float>* sums) {
  const DepthwiseDim &h = dim[1], &w = dim[2];
  const int64_t* const x_strides = params.x_strides;
  const int64_t* const g_strides = params.grad_y_strides;
  const bool paired = h.step == 1 && w.size <= kPairedColumns && x_strides[3] == w.extent &&
                      g_strides[3] == w.size && h.size <= kMaxTermsPerSum;
  for (int64_t n = n_first; n < n_last; ++n) {
    for (int64_t c = c_first; c < c_last; ++c) {
      const scalar_t* const x = static_cast<const scalar_t*>(params.x) + n * x_strides[0] + c * x_strides[1];
      const scalar_t* const g =
          static_cast<const scalar_t*>(params.grad_y) + n * g_strides[0] + c * g_strides[1];
      // A task's channels of one image are a few KB, too short for the hardware to see a stream.
      prefetch_plane(x + x_strides[0], h.extent, x_strides[3]);
      prefetch_plane(g + g_strides[0], h.size, g_strides[3]);
      Vec<float>* const sum = sums + (c - c_first) * 9;
      if (paired) {
        add_plane_grads_paired(x, g, h.size, w.size, sum);
      } else if (h.step == 1) {
        add_plane_grads<1>(x, x_strides[3], h.extent, w.extent, g, g_strides[3], h.size, w.size, sum);
      } else {
        add_plane_grads<2>(x, x_strides[3], h.extent, w.extent, g, g_strides[3], h.size, w.size, sum);
      }
    }
  }
}

}  // namespace fastnn::FASTNN_BACKEND

#endif
