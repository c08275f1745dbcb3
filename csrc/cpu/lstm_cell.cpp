// The LSTM cell's pointwise part on the CPU; formulas in ops/lstm_cell.h and ops/lstm_cell_math.h.
//
// What bounds it: arithmetic, five transcendental functions for each of N * H cells (about 250 cycles a vector
// with AVX-512), beside 7 values of traffic forward (4 gates and cx read, hy and cy written), 12 backward and
// up to 22 in double backward. A vector is W neighbouring hidden units of one row, in the accumulation type.
//
// A task owns kBlockRows rows by kBlockColumns hidden units. When the gradient of the bias is wanted, the task
// also keeps its rows' column sums, in acc_t and of gradients not yet rounded, in its part of the workspace
// [row blocks, 4H]; a second, short pass adds the row blocks in ascending order in float64. The grid depends on
// the shape alone, so no bits depend on the number of threads.
//
// Error: sigmoid within 3 ulp over the whole range, denormals included; tanh within 1 ulp of acc_t (SLEEF u10),
// in the portable build 2.1 (the C library); column sums at most kBlockRows roundings in acc_t, then float64.
#include "../ops/lstm_cell.h"

#include <algorithm>

#include "../ops/lstm_cell_math.h"
#include "dispatch.h"
#include "parallel.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {
namespace {

// Rows of a task: partial sums are then 1/32 of the gradients' memory.
constexpr int64_t kBlockRows = 32;
// Hidden units of a task: its 4 * 128 column sums stay in L1, and even one row alone makes several tasks.
constexpr int64_t kBlockColumns = 128;
// Cells below which a task stays in the calling thread: about 20 us, twice what waking the pool costs.
constexpr int64_t kGrainCells = 4096;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t row_blocks(const LstmCellInputs& in) { return ceil_div(in.N, kBlockRows); }

// 1 / (1 + exp(-x)), with the exponential of a number that is never positive: it cannot overflow, and small
// results keep their digits.
template <typename V>
V sigmoid(const V& x) {
  const V one(1);
  const V e = x.abs().neg().exp();
  return V::blendv(one, e, x < V(0)) / (one + e);
}

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

  V pre_activation(int64_t row, int64_t gate, int64_t column, int64_t count) const {
    const int64_t at = gate * H + column;
    V a = load_acc(gates + row * 4 * H + at, count);
    if (bias_ih != nullptr) a = a + load_acc(bias_ih + at, count);
    if (bias_hh != nullptr) a = a + load_acc(bias_hh + at, count);
    return a;
  }

  // Values of `count` cells from (row, column), and cy.
  LstmCellValues<V> values(int64_t row, int64_t column, int64_t count, V& cy) const {
    LstmCellValues<V> v;
    v.i = sigmoid(pre_activation(row, 0, column, count));
    v.f = sigmoid(pre_activation(row, 1, column, count));
    v.g = pre_activation(row, 2, column, count).tanh();
    v.o = sigmoid(pre_activation(row, 3, column, count));
    v.cx = load_acc(cx + row * H + column, count);
    cy = v.f * v.cx + v.i * v.g;
    v.tanh_cy = cy.tanh();
    return v;
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

template <typename scalar_t>
void lstm_cell_forward_typed(const LstmCellForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const Inputs<scalar_t> in(p.in);
  scalar_t* hy = static_cast<scalar_t*>(p.hy);
  scalar_t* cy = static_cast<scalar_t*>(p.cy);
  for_each_cell_vector<acc_t>(p.in, [&](int64_t, int64_t row, int64_t column, int64_t count) {
    Vec<acc_t> c;
    const LstmCellValues<Vec<acc_t>> v = in.values(row, column, count, c);
    store_acc(cy + row * in.H + column, c, count);
    store_acc(hy + row * in.H + column, v.o * v.tanh_cy, count);
  });
}

template <typename scalar_t>
void lstm_cell_backward_typed(const LstmCellBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  const Inputs<scalar_t> in(p.in);
  const ColumnSums<scalar_t> bias_sums(p.workspace, p.grad_bias, p.in);
  const scalar_t* grad_hy = static_cast<const scalar_t*>(p.grad_hy);
  const scalar_t* grad_cy = static_cast<const scalar_t*>(p.grad_cy);
  scalar_t* grad_gates = static_cast<scalar_t*>(p.grad_gates);
  scalar_t* grad_cx = static_cast<scalar_t*>(p.grad_cx);
  for_each_cell_vector<acc_t>(p.in, [&](int64_t block, int64_t row, int64_t column, int64_t count) {
    const int64_t cell = row * in.H + column;
    V cy;
    const LstmCellValues<V> v = in.values(row, column, count, cy);
    const LstmCellGrads<V> grad =
        lstm_cell_backward_values(v, load_or_zero(grad_hy, cell, count), load_or_zero(grad_cy, cell, count));
    const V* gates[4] = {&grad.i, &grad.f, &grad.g, &grad.o};
    for (int64_t gate = 0; gate < 4; ++gate) {
      store_acc(grad_gates + (row * 4 + gate) * in.H + column, *gates[gate], count);
      bias_sums.add(block, row, gate, column, *gates[gate], count);
    }
    store_if_wanted(grad_cx, cell, grad.cx, count);
  });
  bias_sums.finish();
}

template <typename scalar_t>
void lstm_cell_double_backward_typed(const LstmCellDoubleBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  const Inputs<scalar_t> in(p.in);
  const ColumnSums<scalar_t> bias_sums(p.workspace, p.d_bias, p.in);
  const scalar_t* gg_gates = static_cast<const scalar_t*>(p.gg_gates);
  const scalar_t* gg_cx = static_cast<const scalar_t*>(p.gg_cx);
  const scalar_t* gg_bias = static_cast<const scalar_t*>(p.gg_bias);
  const scalar_t* grad_hy = static_cast<const scalar_t*>(p.grad_hy);
  const scalar_t* grad_cy = static_cast<const scalar_t*>(p.grad_cy);
  scalar_t* d_grad_hy = static_cast<scalar_t*>(p.d_grad_hy);
  scalar_t* d_grad_cy = static_cast<scalar_t*>(p.d_grad_cy);
  scalar_t* d_gates = static_cast<scalar_t*>(p.d_gates);
  scalar_t* d_cx = static_cast<scalar_t*>(p.d_cx);
  for_each_cell_vector<acc_t>(p.in, [&](int64_t block, int64_t row, int64_t column, int64_t count) {
    const int64_t cell = row * in.H + column;
    V cy;
    const LstmCellValues<V> v = in.values(row, column, count, cy);
    // grad_bias is a sum of grad_gates, so its direction adds to that of every row of them.
    const auto direction = [&](int64_t gate) {
      return load_or_zero(gg_gates, (row * 4 + gate) * in.H + column, count) +
             load_or_zero(gg_bias, gate * in.H + column, count);
    };
    const LstmCellGrads<V> u{direction(0), direction(1), direction(2), direction(3),
                             load_or_zero(gg_cx, cell, count)};
    const LstmCellDoubleGrads<V> d = lstm_cell_double_backward_values(v, load_or_zero(grad_hy, cell, count),
                                                                      load_or_zero(grad_cy, cell, count), u);
    store_if_wanted(d_grad_hy, cell, d.grad_hy, count);
    store_if_wanted(d_grad_cy, cell, d.grad_cy, count);
    const V* gates[4] = {&d.a.i, &d.a.f, &d.a.g, &d.a.o};
    for (int64_t gate = 0; gate < 4; ++gate) {
      store_if_wanted(d_gates, (row * 4 + gate) * in.H + column, *gates[gate], count);
      bias_sums.add(block, row, gate, column, *gates[gate], count);
    }
    store_if_wanted(d_cx, cell, d.a.cx, count);
  });
  bias_sums.finish();
}

int64_t column_sums_bytes(const LstmCellInputs& in, const void* sums) {
  if (sums == nullptr) return 0;
  return in.dtype == DType::kFloat64 ? ColumnSums<double>::bytes(in) : ColumnSums<float>::bytes(in);
}

}  // namespace

int64_t lstm_cell_backward_workspace(const LstmCellBackwardParams& p) {
  return column_sums_bytes(p.in, p.grad_bias);
}

int64_t lstm_cell_double_backward_workspace(const LstmCellDoubleBackwardParams& p) {
  return column_sums_bytes(p.in, p.d_bias);
}

Status lstm_cell_forward(const LstmCellForwardParams& p, Stream) {
  return dispatch_dtype(p.in.dtype, [&](auto scalar) {
    lstm_cell_forward_typed<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

Status lstm_cell_backward(const LstmCellBackwardParams& p, Stream) {
  return dispatch_dtype(p.in.dtype, [&](auto scalar) {
    lstm_cell_backward_typed<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

Status lstm_cell_double_backward(const LstmCellDoubleBackwardParams& p, Stream) {
  return dispatch_dtype(p.in.dtype, [&](auto scalar) {
    lstm_cell_double_backward_typed<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

}  // namespace fastnn::FASTNN_BACKEND
