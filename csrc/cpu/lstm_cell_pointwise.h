// What the LSTM cell's kernels share of its pointwise part: the activations of a vector of cells, how cells are
// cut into tasks, and the sums over rows that are the biases' gradient.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../ops/lstm_cell.h"
#include "../ops/lstm_cell_math.h"
#include "dispatch.h"
#include "parallel.h"
#include "vec_convert.h"
#include "vec_math.h"

namespace fastnn::FASTNN_BACKEND::lstm {

// Rows of a task: partial sums are then 1/32 of the gradients' memory.
inline constexpr int64_t kBlockRows = 32;
// Hidden units of a task: its 4 * 128 column sums stay in L1, and even one row alone makes several tasks.
inline constexpr int64_t kBlockColumns = 128;
// Cells below which a task stays in the calling thread: about 20 us, twice what waking the pool costs.
inline constexpr int64_t kGrainCells = 4096;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t row_blocks(const LstmCellInputs& in) { return ceil_div(in.N, kBlockRows); }

template <typename scalar_t>
struct Inputs {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;

  const scalar_t *gates, *bias_ih, *bias_hh, *cx;
  int64_t H;

  explicit Inputs(const LstmCellInputs& in)
      : gates(static_cast<const scalar_t*>(in.gates)),
        bias_ih(static_cast<const scalar_t*>(in.bias_ih)),
        bias_hh(static_cast<const scalar_t*>(in.bias_hh)),
        cx(static_cast<const scalar_t*>(in.cx)),
        H(in.H) {}

  // A gate's product plus its biases.
  V pre_activation(const V& product, int64_t gate, int64_t column, int64_t count) const {
    V a = product;
    if (bias_ih != nullptr) a = a + load_acc(bias_ih + gate * H + column, count);
    if (bias_hh != nullptr) a = a + load_acc(bias_hh + gate * H + column, count);
    return a;
  }

  // Values of `count` cells from (row, column) whose gates' products are given, and cy.
  LstmCellValues<V> values(const V (&products)[4], int64_t row, int64_t column, int64_t count, V& cy) const {
    LstmCellValues<V> v;
    v.i = sigmoid(pre_activation(products[0], 0, column, count));
    v.f = sigmoid(pre_activation(products[1], 1, column, count));
    v.g = hyperbolic_tangent(pre_activation(products[2], 2, column, count));
    v.o = sigmoid(pre_activation(products[3], 3, column, count));
    v.cx = load_acc(cx + row * H + column, count);
    cy = v.f * v.cx + v.i * v.g;
    v.tanh_cy = hyperbolic_tangent(cy);
    return v;
  }

  LstmCellValues<V> values(int64_t row, int64_t column, int64_t count, V& cy) const {
    V products[4];
    for (int64_t gate = 0; gate < 4; ++gate) {
      products[gate] = load_acc(gates + (row * 4 + gate) * H + column, count);
    }
    return values(products, row, column, count, cy);
  }
};

template <typename scalar_t>
Vec<acc_type<scalar_t>> load_or_zero(const scalar_t* p, int64_t at, int64_t count) {
  return p == nullptr ? Vec<acc_type<scalar_t>>(0) : load_acc(p + at, count);
}

template <typename scalar_t>
void store_if_wanted(scalar_t* p, int64_t at, const Vec<acc_type<scalar_t>>& v, int64_t count) {
  if (p != nullptr) store_acc(p + at, v, count);
}

// Calls f(row block, row, column, count) for every vector of cells, a task's vectors in row-major order.
template <typename acc_t, typename F>
void for_each_cell_vector(const LstmCellInputs& in, const F& f) {
  constexpr int64_t W = kLanes<acc_t>;
  const int64_t column_blocks = ceil_div(in.H, kBlockColumns);
  const int64_t cells = std::min(kBlockRows, in.N) * std::min(kBlockColumns, in.H);
  const int64_t grain = std::max<int64_t>(1, kGrainCells / std::max<int64_t>(1, cells));
  parallel_for(row_blocks(in) * column_blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / column_blocks, first = task % column_blocks * kBlockColumns;
      const int64_t last = std::min(first + kBlockColumns, in.H);
      const int64_t row_end = std::min((block + 1) * kBlockRows, in.N);
      for (int64_t row = block * kBlockRows; row < row_end; ++row) {
        for (int64_t column = first; column < last; column += W) {
          f(block, row, column, std::min(W, last - column));
        }
      }
    }
  });
}

// Column sums of a [N, 4H] gradient, gathered while it is written.
template <typename scalar_t>
class ColumnSums {
 public:
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;

  // `sums` is null when not wanted; then nothing is touched.
  ColumnSums(void* workspace, void* sums, const LstmCellInputs& in)
      : partials_(static_cast<acc_t*>(workspace)), sums_(static_cast<scalar_t*>(sums)), in_(in) {}

  static int64_t bytes(const LstmCellInputs& in) {
    return row_blocks(in) * 4 * in.H * static_cast<int64_t>(sizeof(acc_t));
  }

  void add(int64_t block, int64_t row, int64_t gate, int64_t column, const V& v, int64_t count) const {
    if (sums_ == nullptr) return;
    acc_t* at = partials_ + (block * 4 + gate) * in_.H + column;
    store_acc(at, row == block * kBlockRows ? v : load_acc(static_cast<const acc_t*>(at), count) + v, count);
  }

  void finish() const {
    if (sums_ == nullptr) return;
    const int64_t blocks = row_blocks(in_);
    const int64_t grain = std::max<int64_t>(1, 4 * kGrainCells / std::max<int64_t>(1, blocks));
    parallel_for(4 * in_.H, grain, [&](int64_t begin, int64_t end) {
      for (int64_t column = begin; column < end; ++column) {
        double sum = 0;
        for (int64_t block = 0; block < blocks; ++block) {
          sum += static_cast<double>(partials_[block * 4 * in_.H + column]);
        }
        sums_[column] = static_cast<scalar_t>(static_cast<acc_t>(sum));
      }
    });
  }

 private:
  acc_t* partials_;
  scalar_t* sums_;
  const LstmCellInputs& in_;
};

}  // namespace fastnn::FASTNN_BACKEND::lstm
