// A convolution's activation, of results that a task has just written and caches still hold: a load, two to
// thirty instructions and a store for each vector of them, beside hundreds of multiply-adds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "../ops/conv.h"
#include "activation.h"
#include "conv_patches.h"

namespace fastnn::FASTNN_BACKEND {

template <typename scalar_t>
class ConvActivator {
 public:
  using acc_t = acc_type<scalar_t>;

  ConvActivator() = default;
  explicit ConvActivator(const ConvActivation& a) : kind_(a.kind), alpha_(static_cast<acc_t>(a.alpha)) {}

  explicit operator bool() const { return kind_ != Activation::kNone; }

  // z[i * stride] = act(z[i * stride]) for i < count.
  void run(scalar_t* z, int64_t count, int64_t stride) const {
    constexpr int64_t W = kLanes<acc_t>;
    for (int64_t i = 0; i < count; i += W) {
      const int64_t lanes = std::min(W, count - i);
      scalar_t* const at = z + i * stride;
      if (stride == 1) {
        store_acc(at, value(load_acc(at, lanes)), lanes);
      } else {
        alignas(64) scalar_t values[W] = {};
        for (int64_t l = 0; l < lanes; ++l) values[l] = at[l * stride];
        store_acc(values, value(load_acc(static_cast<const scalar_t*>(values))));
        for (int64_t l = 0; l < lanes; ++l) at[l * stride] = values[l];
      }
    }
  }

  // The same for rows of columns, along whichever is contiguous.
  void run(scalar_t* z, int64_t rows, int64_t row_stride, int64_t columns, int64_t column_stride) const {
    if (column_stride != 1 && row_stride == 1) {
      std::swap(rows, columns);
      std::swap(row_stride, column_stride);
    }
    for (int64_t i = 0; i < rows; ++i) run(z + i * row_stride, columns, column_stride);
  }

  // The same for a part of a product's output.
  void run(scalar_t* out, const Axis& row_axis, const Axis& column_axis, int64_t i0, int64_t i1, int64_t j0,
           int64_t j1) const {
    if (column_axis.stride[3] != 1 && row_axis.stride[3] == 1)
      return run(out, column_axis, row_axis, j0, j1, i0, i1);
    AxisCursor row(row_axis, i0);
    for (int64_t i = i0; i < i1; ++i, row.advance(1)) {
      AxisCursor column(column_axis, j0);
      for (int64_t j = j0; j < j1;) {
        const int64_t length = column.run(j1 - j);
        run(out + row.offset() + column.offset(), length, column_axis.stride[3]);
        column.advance(length);
        j += length;
      }
    }
  }

 private:
  Vec<acc_t> value(const Vec<acc_t>& z) const {
    return activation_of(z, PositiveLanes<acc_t>::of(z), kind_, alpha_);
  }

  Activation kind_ = Activation::kNone;
  acc_t alpha_ = 0;
};

}  // namespace fastnn::FASTNN_BACKEND
