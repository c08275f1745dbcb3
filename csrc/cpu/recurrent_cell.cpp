// What follows the matrix products of a recurrent cell, by itself; contract in ops/recurrent_cell.h.
//
// An elementwise map: a task is some rows, in vectors of hidden units. It is bound by memory, of which it
// touches every block once. Sequences have it fused with their products (recurrence.cpp); this serves the cell
// that is stepped over time.
#include "../ops/recurrent_cell.h"

#include <algorithm>
#include <cstdint>

#include "../ops/recurrent_cell_math.h"
#include "dispatch.h"
#include "parallel.h"
#include "vec_convert.h"
#include "vec_math.h"

namespace fastnn::FASTNN_BACKEND {

namespace {

// Elements below which a task stays in the calling thread: about 20 us.
constexpr int64_t kGrainElements = 4096;

// A run of some blocks at one row and unit.
template <typename scalar_t>
class CellVectors {
 public:
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;

  CellVectors(int64_t row, int64_t unit, int64_t count) : row_(row), unit_(unit), count_(count) {}

  template <int n>
  void load(const CellBlock* blocks, V (&values)[n]) const {
    for (int i = 0; i < n; ++i) {
      const auto* const p = static_cast<const scalar_t*>(blocks[i].data);
      values[i] = p == nullptr ? V(0) : load_acc(p + row_ * blocks[i].pitch + unit_, count_);
    }
  }
  template <int n>
  void store(const CellOutputBlock* blocks, const V (&values)[n]) const {
    for (int i = 0; i < n; ++i) {
      auto* const p = static_cast<scalar_t*>(blocks[i].data);
      if (p != nullptr) store_acc(p + row_ * blocks[i].pitch + unit_, values[i], count_);
    }
  }

 private:
  int64_t row_, unit_, count_;
};

// f(formula tag, CellVectors) for all vectors of all rows.
template <typename F>
Status for_each_vector(const RecurrentCellInputs& in, const F& f) {
  return dispatch_dtype(in.dtype, [&](auto scalar) {
    using scalar_t = typename decltype(scalar)::type;
    constexpr int64_t L = kLanes<acc_type<scalar_t>>;
    with_stage(in.stage, [&](auto stage) {
      const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, in.H));
      parallel_for(in.N, grain, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          for (int64_t unit = 0; unit < in.H; unit += L) {
            f(stage, CellVectors<scalar_t>(row, unit, std::min(L, in.H - unit)));
          }
        }
      });
    });
    return Status::success();
  });
}

template <typename Vectors, typename Stage>
using FormulaOf = CellFormula<VectorMath<typename Vectors::acc_t>, Stage::value>;
template <typename Vectors, typename Stage>
using DualFormulaOf = CellFormula<DualMath<VectorMath<typename Vectors::acc_t>>, Stage::value>;

}  // namespace

Status recurrent_cell_forward(const RecurrentCellForwardParams& p, Stream) {
  return for_each_vector(p.in, [&](auto stage, const auto& at) {
    using Vectors = std::decay_t<decltype(at)>;
    using Formula = FormulaOf<Vectors, decltype(stage)>;
    typename Vectors::V in[Formula::kInputs], out[Formula::kOutputs];
    at.load(p.in.in, in);
    Formula::forward(p.in.cell, in, out);
    at.store(p.out, out);
  });
}

Status recurrent_cell_backward(const RecurrentCellBackwardParams& p, Stream) {
  return for_each_vector(p.in, [&](auto stage, const auto& at) {
    using Vectors = std::decay_t<decltype(at)>;
    using Formula = FormulaOf<Vectors, decltype(stage)>;
    typename Vectors::V in[Formula::kInputs], grad[Formula::kOutputs], grad_in[Formula::kGrads];
    at.load(p.in.in, in);
    at.load(p.grad_out, grad);
    Formula::backward(p.in.cell, in, grad, grad_in);
    at.store(p.grad_in, grad_in);
  });
}

Status recurrent_cell_double_backward(const RecurrentCellDoubleBackwardParams& p, Stream) {
  return for_each_vector(p.in, [&](auto stage, const auto& at) {
    using Vectors = std::decay_t<decltype(at)>;
    using Formula = DualFormulaOf<Vectors, decltype(stage)>;
    using V = typename Vectors::V;
    V value[Formula::kInputs], direction[Formula::kGrads], grad[Formula::kOutputs];
    at.load(p.in.in, value);
    at.load(p.direction, direction);
    at.load(p.grad_out, grad);
    Dual<V> in[Formula::kInputs], grad_out[Formula::kOutputs], grad_in[Formula::kGrads], out[Formula::kOutputs];
    for (int i = 0; i < Formula::kInputs; ++i) in[i] = {value[i], i < Formula::kGrads ? direction[i] : V(0)};
    for (int i = 0; i < Formula::kOutputs; ++i) grad_out[i] = {grad[i], V(0)};
    Formula::forward(p.in.cell, in, out);
    Formula::backward(p.in.cell, in, grad_out, grad_in);
    V d_grad[Formula::kOutputs], d_in[Formula::kGrads];
    for (int i = 0; i < Formula::kOutputs; ++i) d_grad[i] = out[i].d;
    for (int i = 0; i < Formula::kGrads; ++i) d_in[i] = grad_in[i].d;
    at.store(p.d_grad_out, d_grad);
    at.store(p.d_in, d_in);
  });
}

}  // namespace fastnn::FASTNN_BACKEND
