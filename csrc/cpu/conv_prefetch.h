// Brings what is about to be read into L2 while the micro-kernel is at work on something else.
//
// Packing, and the first micro-kernel on a panel in place, read memory in short pieces, which the processor
// does not see coming: from L3 or beyond, that is 5 to 20 % of the time of a 1x1 filter.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv_patches.h"
#include "conv_plan.h"

namespace fastnn::FASTNN_BACKEND {

template <typename T>
void prefetch_run(const T* run, int64_t length) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t i = 0; i < length; i += line) __builtin_prefetch(run + i, 0, 2);
}

// Runs of memory, a few at a time.
template <typename T>
class Prefetch {
 public:
  Prefetch() = default;
  // `count` runs of `length` elements, `pitch` apart.
  Prefetch(const T* first, int64_t pitch, int64_t count, int64_t length)
      : run_(first), pitch_(pitch), left_(count), length_(length) {}
  // Where the table says.
  Prefetch(const T* const* table, int64_t count, int64_t length)
      : table_(table), left_(count), length_(length) {}

  // All of it in so many calls of advance().
  void spread(int64_t calls) { at_once_ = ceil_div(left_, std::max<int64_t>(1, calls)); }

  void advance() {
    for (int64_t i = std::min(left_, at_once_); i > 0; --i, --left_, run_ += pitch_) {
      prefetch_run(table_ == nullptr ? run_ : *table_++, length_);
    }
  }

 private:
  const T* run_ = nullptr;
  const T* const* table_ = nullptr;
  int64_t pitch_ = 0, left_ = 0, length_ = 0, at_once_ = 0;
};

// A run at each of the places [first, last) of an axis.
template <typename T>
class PrefetchAlong {
 public:
  PrefetchAlong(const T* data, const Axis& axis, int64_t first, int64_t last, int64_t length, int64_t calls)
      : data_(data),
        cursor_(axis, first),
        left_(std::max<int64_t>(0, last - first)),
        length_(length),
        at_once_(ceil_div(left_, calls)) {}

  void advance() {
    for (int64_t i = std::min(left_, at_once_); i > 0; --i, --left_, cursor_.advance(1)) {
      prefetch_run(data_ + cursor_.offset(), length_);
    }
  }

 private:
  const T* const data_;
  AxisCursor cursor_;
  int64_t left_;
  const int64_t length_, at_once_;
};

}  // namespace fastnn::FASTNN_BACKEND
