// Where a tile's sums are while the reduction goes on, and how they reach the output.
//
// An output of the type of the sums holds them itself. The micro-kernel adds to it directly where a panel's
// columns are whole vectors of one run and its rows are evenly spaced; elsewhere (planes that are no multiple
// of the vector, every other position) it multiplies into a micro-tile on the stack, from which the sums are
// added run by run: about 100 cycles for the 6000 of a block. A narrower output needs a tile of accumulators,
// which are rounded into it once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "conv_gemm.h"
#include "conv_patches.h"
#include "conv_plan.h"
#include "conv_transpose.h"

namespace fastnn::FASTNN_BACKEND {

// Stores sums, or adds them to what is there, along an axis from the cursor's place on.
// dst[i * stride] = src[i] for i < count, or += where kAdd is set.
template <bool kAdd, typename out_t, typename acc_t>
inline void put_run(const acc_t* src, int64_t count, int64_t stride, out_t* dst) {
  constexpr int64_t lanes = kLanes<acc_t>;
  if (stride != 1) {
    for (int64_t i = 0; i < count; ++i) {
      dst[i * stride] = static_cast<out_t>(kAdd ? static_cast<acc_t>(dst[i * stride]) + src[i] : src[i]);
    }
  } else if constexpr (!kAdd) {
    store_run(dst, src, count);
  } else {
    static_assert(std::is_same_v<out_t, acc_t>);
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
      (Vec<acc_t>::loadu(src + i) + Vec<acc_t>::loadu(dst + i)).store(dst + i);
    }
    if (i < count) {
      const int rest = static_cast<int>(count - i);
      (Vec<acc_t>::loadu(src + i, rest) + Vec<acc_t>::loadu(dst + i, rest)).store(dst + i, rest);
    }
  }
}

// Stores sums, or adds them to what is there, along an axis from the cursor's place on.
template <bool kAdd, typename out_t, typename acc_t>
void put_along(AxisCursor cursor, int64_t count, const acc_t* src, out_t* dst) {
  while (count > 0) {
    const int64_t length = cursor.run(count);
    put_run<kAdd>(src, length, cursor.axis.stride[3], dst + cursor.offset());
    cursor.advance(length);
    src += length;
    count -= length;
  }
}

template <typename out_t, typename acc_t>
void store_along(const AxisCursor& cursor, int64_t count, const acc_t* src, out_t* dst) {
  put_along<false>(cursor, count, src, dst);
}

// Writes a row of the output before the first sums: `values`, or one value where that is null.
template <typename acc_t, typename scalar_t>
void fill_along(AxisCursor cursor, int64_t count, const scalar_t* values, acc_t value, acc_t* dst) {
  const int64_t stride = cursor.axis.stride[3];
  while (count > 0) {
    const int64_t length = cursor.run(count);
    acc_t* const place = dst + cursor.offset();
    if (stride != 1) {
      for (int64_t i = 0; i < length; ++i) place[i * stride] = values == nullptr ? value : acc_t(values[i]);
    } else if (values == nullptr) {
      std::fill_n(place, length, value);
    } else {
      copy_run(place, values, length);
    }
    cursor.advance(length);
    if (values != nullptr) values += length;
    count -= length;
  }
}

template <typename acc_t, typename out_t>
class TileSums {
 public:
  static constexpr int64_t kMaxRuns = 8;

  // The rows of a micro-tile.
  struct Rows {
    int64_t first, height;
    int64_t offset;  // of the first in the output
    bool even;       // the others follow at the axis' stride
  };
  // The columns of a panel.
  struct Columns {
    int64_t first, count;
    int64_t offset;  // of the first in the output
    bool whole;      // one run of whole vectors
    // If not, its runs in memory; none where there are more than kMaxRuns.
    int64_t num_runs;
    struct {
      int64_t offset, begin, count;
    } run[kMaxRuns];
  };

  // accumulators: those of the tile [i0, i1) x [j0, j1), `pitch` from row to row; null if the output holds
  // sums.
  TileSums(out_t* out, const Axis& rows, const Axis& columns, acc_t* accumulators, int64_t pitch, int64_t i0,
           int64_t i1, int64_t j0, int64_t j1)
      : out_(out),
        rows_(rows),
        columns_(columns),
        accumulators_(accumulators),
        pitch_(pitch),
        i0_(i0),
        i1_(i1),
        j0_(j0),
        j1_(j1),
        plain_(rows.size[0] * rows.size[1] * rows.size[2] == 1) {}

  Rows rows(int64_t first, int64_t height) const {
    if (!in_output() || plain_) return {first, height, first * rows_.stride[3], true};
    const AxisCursor cursor(rows_, first);
    return {first, height, cursor.offset(), cursor.run(height) == height};
  }

  Columns columns(int64_t first, int64_t last) const {
    AxisCursor cursor(columns_, first);
    const int64_t count = last - first;
    Columns columns;
    columns.first = first;
    columns.count = count;
    columns.offset = cursor.offset();
    columns.whole = columns_.stride[3] == 1 && count % kLanes<acc_t> == 0 && cursor.run(count) == count;
    columns.num_runs = 0;
    if (columns.whole || !in_output()) return columns;
    for (int64_t begin = 0; begin < count;) {
      if (columns.num_runs == kMaxRuns) {
        columns.num_runs = 0;
        break;
      }
      const int64_t length = cursor.run(count - begin);
      columns.run[columns.num_runs++] = {cursor.offset(), begin, length};
      cursor.advance(length);
      begin += length;
    }
    return columns;
  }

  // multiply(c, pitch, accumulate): computes the micro-tile's sums, or adds them to those at c.
  template <typename Multiply>
  void add(const Rows& rows, const Columns& columns, bool accumulate, const Multiply& multiply) const {
    if (!in_output()) {
      multiply(accumulators_ + (rows.first - i0_) * pitch_ + (columns.first - j0_), pitch_, accumulate);
    } else if constexpr (kSameType) {
      add_in_output(rows, columns, accumulate, multiply);
    }
  }
  // Gives all sums a value: the bias of their column or of their row, or 0 where there is none.
  template <typename scalar_t>
  void fill(const scalar_t* bias, bool bias_on_columns) const {
    const scalar_t* const values = bias_on_columns ? bias : nullptr;
    AxisCursor row(rows_, i0_);
    for (int64_t i = i0_; i < i1_; ++i) {
      const acc_t value = bias == nullptr || bias_on_columns ? acc_t(0) : static_cast<acc_t>(bias[i]);
      if (in_output()) {
        if constexpr (kSameType)
          fill_along(AxisCursor(columns_, j0_), j1_ - j0_, values == nullptr ? nullptr : values + j0_, value,
                     out_ + row.offset());
        row.advance(1);
      } else {
        acc_t* const sums = accumulators_ + (i - i0_) * pitch_;
        if (values == nullptr) {
          std::fill_n(sums, pitch_, value);
        } else {
          copy_run(sums, values + j0_, j1_ - j0_);
          fill_zero(sums + (j1_ - j0_), pitch_ - (j1_ - j0_));
        }
      }
    }
  }

  // Writes the accumulators to the output.
  void store() const {
    if (in_output()) return;
    if constexpr (kSameType) {
      // Neighbouring rows, or those of one sample where samples are innermost, are runs.
      if (columns_.size[3] == columns_.length() && rows_.stride[3] == 1) return store_transposed(1);
      if (columns_.size[3] == columns_.length() && rows_.stride[2] == 1) return store_transposed(rows_.size[3]);
    }
    AxisCursor row(rows_, i0_);
    const AxisCursor column(columns_, j0_);
    for (int64_t i = i0_; i < i1_; ++i, row.advance(1)) {
      store_along(column, j1_ - j0_, accumulators_ + (i - i0_) * pitch_, out_ + row.offset());
    }
  }

 private:
  static constexpr bool kSameType = std::is_same_v<out_t, acc_t>;
  static constexpr int64_t kLine = 64 / sizeof(acc_t);

  bool in_output() const { return kSameType && accumulators_ == nullptr; }

  template <typename Multiply>
  void add_in_output(const Rows& rows, const Columns& columns, bool accumulate,
                     const Multiply& multiply) const {
    if (rows.even && columns.whole) {
      multiply(out_ + rows.offset + columns.offset, rows_.stride[3], accumulate);
    } else {
      constexpr int64_t pitch = kMaxVecs * kLanes<acc_t>;
      alignas(64) acc_t sums[kMaxRows * pitch];
      acc_t* place[kMaxRows];
      AxisCursor row(rows_, rows.first);
      for (int64_t m = 0; m < rows.height; ++m, row.advance(1)) {
        place[m] = out_ + row.offset();
        if (!accumulate) continue;
        // They are there when the reduction is done.
        for (int64_t r = 0; r < columns.num_runs; ++r) {
          const auto& run = columns.run[r];
          const acc_t* const at = place[m] + run.offset;
          for (int64_t i = 0; i < run.count; i += kLine) __builtin_prefetch(at + i * columns_.stride[3], 1);
          __builtin_prefetch(at + (run.count - 1) * columns_.stride[3], 1);
        }
      }
      multiply(sums, pitch, false);
      for (int64_t m = 0; m < rows.height; ++m) {
        if (accumulate) {
          put<true>(columns, sums + m * pitch, place[m]);
        } else {
          put<false>(columns, sums + m * pitch, place[m]);
        }
      }
    }
  }

  // Rows [i0, i1) of which each `samples`-th is next to the one before in the output, in runs.
  void store_transposed(int64_t samples) const {
    const int64_t inner = samples == 1 ? 3 : 2, column_stride = columns_.stride[3];
    for (int64_t n = 0; n < std::min(samples, i1_ - i0_); ++n) {
      for (int64_t i = i0_ + n; i < i1_;) {
        const AxisCursor row(rows_, i);
        const int64_t count = std::min(ceil_div(i1_ - i, samples), rows_.size[inner] - row.index[inner]);
        copy_transposed(accumulators_ + (i - i0_) * pitch_, samples * pitch_, count, j1_ - j0_,
                        out_ + row.offset() + j0_ * column_stride, column_stride);
        i += count * samples;
      }
    }
  }

  template <bool kAdd>
  void put(const Columns& columns, const acc_t* sums, acc_t* row) const {
    if (columns.num_runs == 0) {
      put_along<kAdd>(AxisCursor(columns_, columns.first), columns.count, sums, row);
      return;
    }
    for (int64_t r = 0; r < columns.num_runs; ++r) {
      const auto& run = columns.run[r];
      put_run<kAdd>(sums + run.begin, run.count, columns_.stride[3], row + run.offset);
    }
  }

  out_t* const out_;
  const Axis &rows_, &columns_;
  acc_t* const accumulators_;
  const int64_t pitch_, i0_, i1_, j0_, j1_;
  const bool plain_;
};

}  // namespace fastnn::FASTNN_BACKEND
