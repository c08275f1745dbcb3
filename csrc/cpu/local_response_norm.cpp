// Local response normalisation on the CPU; formulas in ops/local_response_norm.h and
// local_response_norm_math.h.
//
// What bounds it: memory, 1 + 1 elements a value forward (read + written), 2 + 1 backward, 3 + 2 double
// backward. Windows are added up anew for each channel, `size` loads from L1: beyond some 20 channels that
// bounds it.
//
//   channels first  A task is a strip of at most kStrip positions of an image, gone through by channel. The
//                   strips of a window's channels stay in L1. Terms that other channels' derivatives need
//                   (those of `size` channels) stand in a ring of rows. A vector runs along the positions.
//   channels last   A task is a run of positions. A position's squares stand in a row with zeros on both
//                   sides, and so do the terms; a vector runs along the channels, and windows are loads that
//                   overlap.
//
// A window's order of summation is the channels', whatever the tasks: no bits depend on the number of threads.
#include "../ops/local_response_norm.h"

#include <algorithm>
#include <cstdint>

#include "../ops/local_response_norm_math.h"
#include "parallel.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {
namespace {

enum class Direction { kForward, kBackward, kDoubleBackward };

// Values of one channel that are gone through at a time: 1 KB of float32, so that five channels of three
// tensors and the ring stay in L1 and a piece of memory is long enough to be fetched ahead of its use.
constexpr int64_t kStrip = 256;
// Values below which the calling thread works alone: what sharing with another one costs.
constexpr int64_t kGrainElements = 8 * 1024;

int64_t shares_of(const LocalResponseNormShape& shape) {
  return std::clamp<int64_t>(shape.N * shape.C * shape.S / kGrainElements, 1, at::get_num_threads());
}

template <typename acc_t>
struct VectorMath {
  using Number = Vec<acc_t>;
  static Number number(acc_t value) { return Number(value); }
  static Number sqrt(const Number& x) { return x.sqrt(); }
  // Not inlined: the call inside would have every vector of the loop stored around it.
  __attribute__((noinline)) static Number pow(const Number& x, acc_t exponent) {
    return x.pow(Number(exponent));
  }
  static Number product_sum(const Number& a, const Number& b, const Number& c) {
    return at::vec::fmadd(a, b, c);
  }
};

template <typename scalar_t>
struct Arrays {
  const scalar_t *x, *g, *v;
  scalar_t *out, *grad;  // y or d_grad_y; grad_x or d_x
};

// Rows of scratch memory of a share. Channels first: terms. Channels last: squares, products and terms.
constexpr int kTermRows[] = {0, 2, 3};
constexpr int kPositionRows[] = {1, 3, 5};

template <typename acc_t>
struct Scratch {
  int64_t rows, pitch;  // of each array of terms; values
  int arrays;

  Scratch(const LocalResponseNormShape& shape, Direction direction) {
    const int64_t window = shape.before() + shape.after() + 1;
    if (shape.layout == Layout::kChannelsFirst) {
      rows = std::min(window, shape.C);
      pitch = kStrip;
      arrays = kTermRows[static_cast<int>(direction)];
    } else {
      rows = 1;
      pitch = (window + shape.C + 2 * kLanes<acc_t>) / 16 * 16 + 16;
      arrays = kPositionRows[static_cast<int>(direction)];
    }
  }
  int64_t values() const { return rows * pitch * arrays; }
};

// ---- channels first ---------------------------------------------------------------------------------------

template <typename scalar_t, Direction kDirection>
class Strip {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  using M = VectorMath<acc_t>;

 public:
  // Positions [s_begin, s_end) of image n.
  Strip(const LocalResponseNormShape& shape, const Arrays<scalar_t>& arrays, acc_t* scratch, int64_t n,
        int64_t s_begin, int64_t s_end)
      : C_(shape.C),
        S_(shape.S),
        before_(shape.before()),
        after_(shape.after()),
        constants_(shape),
        at_(n * shape.C * shape.S + s_begin),
        width_(s_end - s_begin),
        arrays_(arrays),
        scratch_(scratch),
        rows_(std::min(before_ + after_ + 1, C_)) {}

  // Results of channels [c_begin, c_end).
  void run(int64_t c_begin, int64_t c_end) {
    if (kDirection == Direction::kForward || arrays_.grad == nullptr) {
      for (int64_t c = c_begin; c < c_end; ++c) terms(c, true);
      return;
    }
    int64_t done = c_begin;
    const int64_t last = std::min(C_, c_end + before_);
    for (int64_t c = std::max<int64_t>(0, c_begin - after_); c < last; ++c) {
      terms(c, c >= c_begin && c < c_end);
      while (done < c_end && done + before_ <= c) finish(done++);
    }
    while (done < c_end) finish(done++);
  }

 private:
  int64_t at(int64_t c) const { return at_ + c * S_; }
  acc_t* row(int array, int64_t c) const { return scratch_ + (array * rows_ + c % rows_) * kStrip; }

  // What channel c gives to the others, and where it is wanted what it needs no other for.
  void terms(int64_t c, bool wanted) const {
    const int64_t first = std::max<int64_t>(0, c - before_), last = std::min(C_ - 1, c + after_);
    const scalar_t *const x = arrays_.x + at(c), *const window = arrays_.x + at(first);
    const int64_t count_of_window = last - first + 1, pitch = S_;
    const auto constants = constants_;
    if constexpr (kDirection == Direction::kForward) {
      scalar_t* const y = arrays_.out + at(c);
      for_each_vector<acc_t>(0, width_, [=](int64_t i, int64_t count) __attribute__((always_inline)) {
        const V squares = sum_of_squares(window + i, pitch, count_of_window, count);
        store_acc(y + i, load_acc(x + i, count) / lrn::divisor<M>(constants, lrn::base<M>(constants, squares)),
                  count);
      });
    } else if constexpr (kDirection == Direction::kBackward) {
      const scalar_t* const g = arrays_.g + at(c);
      acc_t *const own = row(0, c), *const across = row(1, c);
      for_each_vector<acc_t>(0, width_, [=](int64_t i, int64_t count) __attribute__((always_inline)) {
        const V squares = sum_of_squares(window + i, pitch, count_of_window, count);
        const auto t =
            lrn::backward_terms<M>(constants, load_acc(x + i, count), load_acc(g + i, count), squares);
        t.own.store(own + i);
        t.across.store(across + i);
      });
    } else {
      const scalar_t *const v = arrays_.v + at(c), *const v_window = arrays_.v + at(first);
      const scalar_t* const g = arrays_.g == nullptr ? nullptr : arrays_.g + at(c);
      scalar_t* const out = wanted && arrays_.out != nullptr ? arrays_.out + at(c) : nullptr;
      acc_t *const own = row(0, c), *const of_x = row(1, c), *const of_v = row(2, c);
      for_each_vector<acc_t>(0, width_, [=](int64_t i, int64_t count) __attribute__((always_inline)) {
        V squares(0), products(0);
        for (int64_t j = 0; j < count_of_window; ++j) {
          const V value = load_acc(window + j * pitch + i, count);
          squares = at::vec::fmadd(value, value, squares);
          products = at::vec::fmadd(value, load_acc(v_window + j * pitch + i, count), products);
        }
        const auto t = lrn::double_backward_terms<M>(constants, load_acc(x + i, count),
                                                     g == nullptr ? V(0) : load_acc(g + i, count),
                                                     load_acc(v + i, count), squares, products);
        if (out != nullptr) store_acc(out + i, t.d_grad_y, count);
        t.own.store(own + i);
        t.of_x.store(of_x + i);
        t.of_v.store(of_v + i);
      });
    }
  }

  __attribute__((always_inline)) static V sum_of_squares(const scalar_t* window, int64_t pitch,
                                                         int64_t count_of_window, int64_t count) {
    V squares(0);
    for (int64_t j = 0; j < count_of_window; ++j) {
      const V value = load_acc(window + j * pitch, count);
      squares = at::vec::fmadd(value, value, squares);
    }
    return squares;
  }

  void finish(int64_t c) const {
    const int64_t first = std::max<int64_t>(0, c - after_), last = std::min(C_ - 1, c + before_);
    const scalar_t* const x = arrays_.x + at(c);
    scalar_t* const grad = arrays_.grad + at(c);
    const acc_t *const own = row(0, c), *const one = row(1, 0), *const other = row(2, 0);
    const int64_t slot_begin = first % rows_, terms = last - first + 1, slots = rows_;
    const auto constants = constants_;
    const auto sum = [=](const acc_t* terms_of) __attribute__((always_inline)) {
      V total(0);
      for (int64_t j = 0, slot = slot_begin; j < terms; ++j) {
        total = total + V::loadu(terms_of + slot * kStrip);
        if (++slot == slots) slot = 0;
      }
      return total;
    };
    if constexpr (kDirection == Direction::kBackward) {
      for_each_vector<acc_t>(0, width_, [=](int64_t i, int64_t count) __attribute__((always_inline)) {
        const lrn::BackwardTerms<V> t{V::loadu(own + i), sum(one + i)};
        store_acc(grad + i, lrn::backward_result<M>(constants, load_acc(x + i, count), t), count);
      });
    } else if constexpr (kDirection == Direction::kDoubleBackward) {
      const scalar_t* const v = arrays_.v + at(c);
      for_each_vector<acc_t>(0, width_, [=](int64_t i, int64_t count) __attribute__((always_inline)) {
        const lrn::DoubleBackwardTerms<V> t{V(0), V::loadu(own + i), sum(one + i), sum(other + i)};
        store_acc(grad + i,
                  lrn::double_backward_result<M>(constants, load_acc(x + i, count), load_acc(v + i, count), t),
                  count);
      });
    }
  }

  const int64_t C_, S_, before_, after_;
  const lrn::Constants<acc_t> constants_;
  const int64_t at_, width_;
  const Arrays<scalar_t> arrays_;
  acc_t* const scratch_;
  const int64_t rows_;
};

// ---- channels last ----------------------------------------------------------------------------------------

template <typename scalar_t, Direction kDirection>
class Position {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  using M = VectorMath<acc_t>;

 public:
  // pitch: values between two arrays of scratch, at least a window and two vectors more than C.
  Position(const LocalResponseNormShape& shape, const Arrays<scalar_t>& arrays, acc_t* scratch, int64_t pitch)
      : C_(shape.C),
        before_(shape.before()),
        after_(shape.after()),
        constants_(shape),
        arrays_(arrays),
        scratch_(scratch),
        pitch_(pitch) {
    std::fill(scratch_, scratch_ + pitch_ * kPositionRows[static_cast<int>(kDirection)], acc_t(0));
  }

  void run(int64_t position) const {
    const int64_t at = position * C_, window = before_ + after_ + 1;
    const auto constants = constants_;
    const scalar_t* const x = arrays_.x + at;
    acc_t* const squares = scratch_;
    // Lanes behind the last channel get the zeros that must stand there.
    for_each_vector<acc_t>(0, C_, [=, this](int64_t c, int64_t count) __attribute__((always_inline)) {
      const V value = load_acc(x + c, count);
      (value * value).store(squares + before_ + c);
    });
    const auto sum = [=](const acc_t* values) __attribute__((always_inline)) {
      V total = V::loadu(values);
      for (int64_t j = 1; j < window; ++j) total = total + V::loadu(values + j);
      return total;
    };
    if constexpr (kDirection == Direction::kForward) {
      scalar_t* const y = arrays_.out + at;
      for_each_vector<acc_t>(0, C_, [=](int64_t c, int64_t count) __attribute__((always_inline)) {
        const V s = lrn::base<M>(constants, sum(squares + c));
        store_acc(y + c, load_acc(x + c, count) / lrn::divisor<M>(constants, s), count);
      });
    } else if constexpr (kDirection == Direction::kBackward) {
      const scalar_t* const g = arrays_.g + at;
      scalar_t* const grad = arrays_.grad + at;
      acc_t *const own = scratch_ + pitch_, *const across = own + pitch_, *const to = across + after_;
      for_each_vector<acc_t>(0, C_, [=](int64_t c, int64_t count) __attribute__((always_inline)) {
        const auto t =
            lrn::backward_terms<M>(constants, load_acc(x + c, count), load_acc(g + c, count), sum(squares + c));
        store_acc(own + c, t.own, count);
        store_acc(to + c, t.across, count);
      });
      for_each_vector<acc_t>(0, C_, [=](int64_t c, int64_t count) __attribute__((always_inline)) {
        const lrn::BackwardTerms<V> t{V::loadu(own + c), sum(across + c)};
        store_acc(grad + c, lrn::backward_result<M>(constants, load_acc(x + c, count), t), count);
      });
    } else {
      const scalar_t *const v = arrays_.v + at, *const g = arrays_.g == nullptr ? nullptr : arrays_.g + at;
      scalar_t* const out = arrays_.out == nullptr ? nullptr : arrays_.out + at;
      acc_t *const products = scratch_ + pitch_, *const own = products + pitch_, *const of_x = own + pitch_;
      acc_t *const of_v = of_x + pitch_, *const to_x = of_x + after_, *const to_v = of_v + after_;
      for_each_vector<acc_t>(0, C_, [=, this](int64_t c, int64_t count) __attribute__((always_inline)) {
        (load_acc(x + c, count) * load_acc(v + c, count)).store(products + before_ + c);
      });
      for_each_vector<acc_t>(0, C_, [=](int64_t c, int64_t count) __attribute__((always_inline)) {
        const auto t = lrn::double_backward_terms<M>(
            constants, load_acc(x + c, count), g == nullptr ? V(0) : load_acc(g + c, count),
            load_acc(v + c, count), sum(squares + c), sum(products + c));
        if (out != nullptr) store_acc(out + c, t.d_grad_y, count);
        store_acc(own + c, t.own, count);
        store_acc(to_x + c, t.of_x, count);
        store_acc(to_v + c, t.of_v, count);
      });
      if (arrays_.grad == nullptr) return;
      scalar_t* const grad = arrays_.grad + at;
      for_each_vector<acc_t>(0, C_, [=](int64_t c, int64_t count) __attribute__((always_inline)) {
        const lrn::DoubleBackwardTerms<V> t{V(0), V::loadu(own + c), sum(of_x + c), sum(of_v + c)};
        store_acc(grad + c,
                  lrn::double_backward_result<M>(constants, load_acc(x + c, count), load_acc(v + c, count), t),
                  count);
      });
    }
  }

 private:
  const int64_t C_, before_, after_;
  const lrn::Constants<acc_t> constants_;
  const Arrays<scalar_t> arrays_;
  acc_t* const scratch_;
  const int64_t pitch_;
};

// ---- both -------------------------------------------------------------------------------------------------

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename scalar_t, Direction kDirection>
void run(const LocalResponseNormShape& shape, const Arrays<scalar_t>& arrays, void* workspace) {
  using acc_t = acc_type<scalar_t>;
  const Scratch<acc_t> scratch(shape, kDirection);
  const int64_t shares = shares_of(shape);
  acc_t* const memory = static_cast<acc_t*>(workspace);
  const bool planes = shape.layout == Layout::kChannelsFirst;
  const int64_t strips = ceil_div(shape.S, kStrip), images = shape.N * strips;
  // Few strips are cut between channels too: windows across a cut are then added up twice.
  const int64_t chunks = images >= shares ? 1 : std::min(ceil_div(shares, images), shape.C);
  const int64_t chunk = ceil_div(shape.C, chunks), tasks = planes ? images * chunks : shape.N * shape.S;
  parallel_for(shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) {
      const int64_t first = tasks * share / shares, last = tasks * (share + 1) / shares;
      acc_t* const mine = memory + share * scratch.values();
      if (!planes) {
        const Position<scalar_t, kDirection> position(shape, arrays, mine, scratch.pitch);
        for (int64_t task = first; task < last; ++task) position.run(task);
        continue;
      }
      for (int64_t task = first; task < last; ++task) {
        const int64_t c = task % chunks * chunk, s = task / chunks % strips * kStrip,
                      n = task / chunks / strips;
        Strip<scalar_t, kDirection>(shape, arrays, mine, n, s, std::min(s + kStrip, shape.S))
            .run(std::min(c, shape.C), std::min(c + chunk, shape.C));
      }
    }
  });
}

int64_t workspace_bytes(DType dtype, const LocalResponseNormShape& shape, Direction direction) {
  int64_t bytes = 0;
  dispatch_dtype(dtype, [&](auto type) {
    using acc_t = acc_type<typename decltype(type)::type>;
    bytes = shares_of(shape) * Scratch<acc_t>(shape, direction).values() * static_cast<int64_t>(sizeof(acc_t));
    return Status::success();
  });
  return bytes;
}

template <Direction kDirection, typename Params>
Status dispatch(const Params& p, const void* g, const void* v, void* out, void* grad) {
  return dispatch_dtype(p.dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    const auto in = [](const void* values) { return static_cast<const scalar_t*>(values); };
    const Arrays<scalar_t> arrays{in(p.x), in(g), in(v), static_cast<scalar_t*>(out),
                                  static_cast<scalar_t*>(grad)};
    run<scalar_t, kDirection>(p.shape, arrays, p.workspace);
    return Status::success();
  });
}

}  // namespace

int64_t local_response_norm_forward_workspace(const LocalResponseNormForwardParams& p) {
  return workspace_bytes(p.dtype, p.shape, Direction::kForward);
}
int64_t local_response_norm_backward_workspace(const LocalResponseNormBackwardParams& p) {
  return workspace_bytes(p.dtype, p.shape, Direction::kBackward);
}
int64_t local_response_norm_double_backward_workspace(const LocalResponseNormDoubleBackwardParams& p) {
  return workspace_bytes(p.dtype, p.shape, Direction::kDoubleBackward);
}

Status local_response_norm_forward(const LocalResponseNormForwardParams& p, Stream) {
  return dispatch<Direction::kForward>(p, nullptr, nullptr, p.y, nullptr);
}
Status local_response_norm_backward(const LocalResponseNormBackwardParams& p, Stream) {
  return dispatch<Direction::kBackward>(p, p.grad_y, nullptr, nullptr, p.grad_x);
}
Status local_response_norm_double_backward(const LocalResponseNormDoubleBackwardParams& p, Stream) {
  return dispatch<Direction::kDoubleBackward>(p, p.grad_y, p.gg_x, p.d_grad_y, p.d_x);
}

}  // namespace fastnn::FASTNN_BACKEND
