// A recurrence backward; what it shares with forward stands in recurrence_plan.h.
//
// From the last step to the first, a thread turns the gradients of its units' states into those of their gates,
// meets the others, and multiplies everybody's gates with its columns of W_hh, which is the gradient of its
// units of the state before. Where r * h is multiplied, its gradient comes first, by a product of its own. What
// bounds it is what bounds forward. Error: G H roundings of a sum's partial sums, and those of the steps after.
#pragma once

#include <algorithm>
#include <cstdint>

#include "recurrence_plan.h"
#include "step_team.h"

namespace fastnn::FASTNN_BACKEND::recurrence {

// kPlain: an LSTM without options.
template <typename scalar_t, CellKind kKind, bool kPlain = false>
class Backward {
 public:
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  using M = VectorMath<acc_t>;
  static constexpr int64_t L = kLanes<acc_t>;
  static constexpr bool kReset = kKind == CellKind::kReset;

  explicit Backward(const RecurrenceBackwardParams& p)
      : p_(p),
        s_(p.in),
        cell_(p.in.cell),
        rows_{p.in},
        plan_(p.in),
        weights_(static_cast<acc_t*>(p.workspace)) {
    const int64_t states = s_.N * plan_.pitch, blocks = cell_.recurrent_blocks();
    acc_t* next = weights_ + blocks * s_.H * plan_.units;
    grad_h_ = next;
    next += states;
    grad_c_ = next;
    next += cell_.has_c() ? states : 0;
    carried_ = next;
    next += has_carried() ? states : 0;
    sums_ = next;
    next += kReset ? states : 0;
    grad_peephole_ = next;
    next += has_peephole() ? 3 * plan_.units : 0;
    for (acc_t*& buffer : grad_gates_) {
      buffer = next;
      next += s_.N * products_pitch();
    }
    end_ = next;
  }

  int64_t bytes() const {
    return reinterpret_cast<const char*>(end_) - reinterpret_cast<const char*>(weights_);
  }

  void run() const {
    run_team(plan_.threads, [this](int64_t member, int64_t members, StepBarrier& barrier) {
      const int64_t first = plan_.first(member, members), last = plan_.first(member + 1, members);
      for_each_product([&](int64_t block, int64_t blocks) { pack(block, blocks, first, last); });
      if (has_peephole()) {
        for (int64_t k = 0; k < 3; ++k)
          std::fill(grad_peephole_ + k * plan_.units + first * L, grad_peephole_ + k * plan_.units + last * L,
                    acc_t(0));
      }
      for (int64_t n = 0; n < s_.N; ++n) {
        if (rows_.length(n) == 0) begin(n, first, last);
      }
      int64_t active = 0;
      for (int64_t step = s_.T - 1; step >= 0; --step) {
        for (; active < s_.N && rows_.length(active) > step; ++active) begin(active, first, last);
        // Two in turn: others may still multiply with those of the step after.
        acc_t* const of_step = grad_gates_[step % 2];
        for_each_cell(first, last, step, active, [&](const Cell& at) { differentiate(at, step, of_step); });
        barrier.wait();
        if constexpr (kReset) {
          const int64_t n_block = cell_.recurrent_blocks() - 1;
          multiply(n_block, 1, of_step, active, first, last, sums_);
          for_each_cell(first, last, step, active,
                        [&](const Cell& at) { differentiate_reset(at, step, of_step); });
          barrier.wait();
          multiply(0, 1, of_step, active, first, last, grad_h_);
          if (cell_.z_sees_h) {
            multiply(1, 1, of_step, active, first, last, sums_);
            for_each_cell(first, last, step, active, [&](const Cell& at) { add_of_z(at, step); });
          }
        } else {
          // The sums take the place of the states' gradients, which are spent.
          multiply(0, cell_.gates(), of_step, active, first, last, grad_h_);
        }
      }
      for (int64_t n = 0; n < s_.N; ++n) {
        for (int64_t vec = first; vec < last; ++vec) store_first(vec, n);
      }
      if (has_peephole()) store_peephole(first, last);
    });
  }

 protected:
  // Whether a state's gradient has a part that no product gives.
  bool has_carried() const { return !kPlain && (kKind == CellKind::kGru || kReset || cell_.zoneout_h); }
  bool has_peephole() const { return !kPlain && kKind == CellKind::kLstm && p_.grad_peephole != nullptr; }

  int64_t products_pitch() const { return apart<acc_t>(cell_.recurrent_blocks() * s_.H); }

  template <typename F>
  void for_each_product(const F& f) const {
    if constexpr (kReset) {
      for (int64_t block = 0; block < cell_.recurrent_blocks(); ++block) f(block, int64_t{1});
    } else {
      f(int64_t{0}, cell_.gates());
    }
  }

  acc_t* weights(int64_t block, int64_t blocks, int64_t vec) const {
    return weights_ + (block * plan_.units + vec * L * blocks) * s_.H;
  }

  // A thread's columns of some blocks of W_hh, by panels: [rows][vectors].
  void pack(int64_t block, int64_t blocks, int64_t first, int64_t last) const {
    const auto* const w = static_cast<const scalar_t*>(p_.w_hh) + block * s_.H * s_.H;
    plan_.for_each_panel(first, last, 1, [&](int64_t panel, int64_t vecs) {
      acc_t* packed = weights(block, blocks, panel);
      for (int64_t row = 0; row < blocks * s_.H; ++row) {
        for (int64_t vec = panel; vec < panel + vecs; ++vec, packed += L) {
          load_acc(w + row * s_.H + vec * L, std::min(L, s_.H - vec * L)).store(packed);
        }
      }
    });
  }

  // The gradients with which a sample's last step begins.
  void begin(int64_t n, int64_t first, int64_t last) const {
    for (int64_t vec = first; vec < last; ++vec) {
      const int64_t unit = vec * L, count = std::min(L, s_.H - unit), from = rows_.state_row(n) * s_.H + unit;
      const int64_t state = n * plan_.pitch + unit;
      load_or_zero(static_cast<const scalar_t*>(p_.grad_h_n), from, count).store(grad_h_ + state);
      if (cell_.has_c())
        load_or_zero(static_cast<const scalar_t*>(p_.grad_c_n), from, count).store(grad_c_ + state);
      if (has_carried()) V(0).store(carried_ + state);
    }
  }

  // Of a vector of units of one sample.
  struct Cell {
    int64_t n, row, unit, count, state;
    const scalar_t* gates;
    scalar_t* grad_gates;
  };
  template <typename F>
  void for_each_cell(int64_t first, int64_t last, int64_t step, int64_t active, const F& f) const {
    for (int64_t n = 0; n < active; ++n) {
      const int64_t row = rows_.row(n, step), gates = row * cell_.gates() * s_.H;
      for (int64_t vec = first; vec < last; ++vec) {
        const int64_t unit = vec * L;
        f(Cell{n, row, unit, std::min(L, s_.H - unit), n * plan_.pitch + unit,
               static_cast<const scalar_t*>(p_.gates) + gates + unit,
               static_cast<scalar_t*>(p_.grad_gates) + gates + unit});
      }
    }
  }

  V gate(const Cell& at, int64_t k) const { return load_acc(at.gates + k * s_.H, at.count); }
  // A gradient of gate k, also of block `block` of what is multiplied.
  void store_gate(const Cell& at, int64_t k, const V& grad) const {
    store_acc(at.grad_gates + k * s_.H, grad, at.count);
  }
  void store_product(const Cell& at, int64_t block, const V& grad, acc_t* of_step) const {
    store_acc(of_step + at.n * products_pitch() + block * s_.H + at.unit, grad, at.count);
  }
  // A state before a step.
  V before(const Cell& at, int64_t step, const void* states, const void* first) const {
    return step > 0
               ? load_acc(static_cast<const scalar_t*>(states) + rows_.row(at.n, step - 1) * s_.H + at.unit,
                          at.count)
               : load_acc(static_cast<const scalar_t*>(first) + rows_.state_row(at.n) * s_.H + at.unit,
                          at.count);
  }
  V h_before(const Cell& at, int64_t step) const { return before(at, step, p_.y, p_.h0); }
  V of_row(const Cell& at, const void* rows) const {
    return load_or_zero(static_cast<const scalar_t*>(rows), at.row * s_.H + at.unit, at.count);
  }

  void differentiate(const Cell& at, int64_t step, acc_t* of_step) const {
    V grad_h = V::loadu(grad_h_ + at.state) + of_row(at, p_.grad_y), carried(0);
    if (has_carried()) grad_h = grad_h + V::loadu(carried_ + at.state);
    if (!kPlain && cell_.zoneout_h) {
      grad_h = zoneout_backward(true, load_share<scalar_t>(p_.zoneout_h, at.row, at.unit, at.count), grad_h,
                                carried);
    }
    if constexpr (kKind == CellKind::kLstm) {
      differentiate_lstm(at, step, grad_h, of_step);
    } else if constexpr (kKind == CellKind::kGru) {
      const GruFormula<M> formula{cell_};
      const auto g = formula.backward(
          {gate(at, 0), gate(at, 1), gate(at, 2), of_row(at, p_.record), h_before(at, step)}, grad_h);
      const V of_gates[] = {g.a_r, g.a_z, g.x_n}, of_products[] = {g.a_r, g.a_z, g.u_n};
      for (int64_t k = 0; k < 3; ++k) {
        store_gate(at, k, of_gates[k]);
        store_product(at, k, of_products[k], of_step);
      }
      store_acc(static_cast<scalar_t*>(p_.grad_u_n) + at.row * s_.H + at.unit, g.u_n, at.count);
      carried = carried + g.h;
    } else if constexpr (kKind == CellKind::kRnn) {
      const V grad = grad_h * slope<M>(cell_.candidate, gate(at, 0));
      store_gate(at, 0, grad);
      store_product(at, 0, grad, of_step);
    } else {
      const V z = gate(at, 1);
      const auto g = BlendFormula<M>{cell_}.backward(gate(at, 2), z, h_before(at, step), grad_h);
      const V a_z = g.z * slope<M>(cell_.gate, z);
      store_gate(at, 1, a_z);
      store_gate(at, 2, g.a_n);
      if (cell_.z_sees_h) store_product(at, 1, a_z, of_step);
      store_product(at, cell_.recurrent_blocks() - 1, g.a_n, of_step);
      carried = carried + g.h;
    }
    if (has_carried()) carried.store(carried_ + at.state);
  }

  void differentiate_lstm(const Cell& at, int64_t step, const V& grad_h, acc_t* of_step) const {
    const auto formula = formula_at(at);
    V old(0);
    auto v = values_at(at, step, formula);
    const V grad_c = grad_c_at(at, old);
    const auto grads = formula.backward(v, grad_h, grad_c);
    (kPlain ? grads.c : grads.c + old).store(grad_c_ + at.state);
    const int64_t skipped = first_gate();
    for (int64_t k = skipped; k < 4; ++k) {
      store_gate(at, k - skipped, grads.gates[k]);
      store_product(at, k - skipped, grads.gates[k], of_step);
    }
    add_peephole(at, grads.p);
  }

  // Of an LSTM: gates in the formula's order that the cell has not.
  int64_t first_gate() const { return kPlain ? 0 : 4 - cell_.gates(); }
  auto formula_at(const Cell& at) const {
    LstmFormula<M, kPlain> formula{cell_};
    if constexpr (!kPlain) load_peephole<scalar_t>(cell_, p_.peephole, s_.H, at.unit, at.count, formula.p);
    return formula;
  }
  typename LstmFormula<M, kPlain>::Values values_at(const Cell& at, int64_t step,
                                                    const LstmFormula<M, kPlain>& formula,
                                                    bool squashes = true) const {
    typename LstmFormula<M, kPlain>::Values v;
    for (int64_t k = first_gate(); k < 4; ++k) v.gates[k] = gate(at, k - first_gate());
    if (!kPlain && cell_.coupled) v.gates[0] = V(1) - v.gates[1];
    v.c = before(at, step, p_.record, p_.c0);
    if (!kPlain && cell_.zoneout_c) {
      v.c_made = v.gates[1] * v.c + v.gates[0] * v.gates[2];
    } else {
      v.c_made = of_row(at, p_.record);
    }
    if (squashes) formula.squash(v);
    return v;
  }
  // The gradient of c_made from the state after it; `old` is that of the state before by zoneout.
  V grad_c_at(const Cell& at, V& old) const {
    const V grad_c = V::loadu(grad_c_ + at.state) + of_row(at, p_.grad_c);
    if (kPlain || !cell_.zoneout_c) return grad_c;
    return zoneout_backward(true, load_share<scalar_t>(p_.zoneout_c, at.row, at.unit, at.count), grad_c, old);
  }
  void add_peephole(const Cell& at, const V (&p)[3]) const {
    if (!has_peephole()) return;
    for (int64_t k = cell_.coupled; k < 3; ++k) add_to(grad_peephole_ + k * plan_.units + at.unit, p[k]);
  }
  static void add_to(acc_t* sum, const V& value) { (V::loadu(sum) + value).store(sum); }

  // sums_ holds the gradients of r * h.
  void differentiate_reset(const Cell& at, int64_t step, acc_t* of_step) const {
    const V r = gate(at, 0), grad = V::loadu(sums_ + at.state);
    const V a_r = grad * h_before(at, step) * slope<M>(cell_.gate, r);
    store_gate(at, 0, a_r);
    store_product(at, 0, a_r, of_step);
    (V::loadu(carried_ + at.state) + grad * r).store(carried_ + at.state);
  }

  // sums_ holds the gradients of what z's product takes, h or tanh(h).
  void add_of_z(const Cell& at, int64_t step) const {
    V grad = V::loadu(sums_ + at.state);
    if (cell_.z_sees_tanh_h) {
      const V seen = M::tanh(h_before(at, step));
      grad = grad * (V(1) - seen * seen);
    }
    (V::loadu(carried_ + at.state) + grad).store(carried_ + at.state);
  }

  // sums = (gradients of some blocks' products of all units) * (a thread's columns of those blocks)
  void multiply(int64_t block, int64_t blocks, const acc_t* of_step, int64_t active, int64_t first,
                int64_t last, acc_t* sums) const {
    const int64_t pitch = products_pitch();
    plan_.for_each_panel(first, last, 1, [&](int64_t vec, int64_t vecs) {
      for (int64_t n = 0; n < active; n += kSampleBlock) {
        multiply_block(std::min(kSampleBlock, active - n), vecs, of_step + n * pitch + block * s_.H, pitch,
                       weights(block, blocks, vec), blocks * s_.H, sums + n * plan_.pitch + vec * L,
                       plan_.pitch);
      }
    });
  }

  void store_first(int64_t vec, int64_t n) const {
    const int64_t unit = vec * L, count = std::min(L, s_.H - unit), to = rows_.state_row(n) * s_.H + unit;
    const int64_t state = n * plan_.pitch + unit;
    V grad_h = V::loadu(grad_h_ + state);
    if (has_carried()) grad_h = grad_h + V::loadu(carried_ + state);
    store_acc(static_cast<scalar_t*>(p_.grad_h0) + to, grad_h, count);
    if (cell_.has_c()) store_acc(static_cast<scalar_t*>(p_.grad_c0) + to, V::loadu(grad_c_ + state), count);
  }

  void store_peephole(int64_t first, int64_t last) const {
    const int64_t skipped = cell_.coupled;
    for (int64_t vec = first; vec < last; ++vec) {
      const int64_t unit = vec * L, count = std::min(L, s_.H - unit);
      for (int64_t k = skipped; k < 3; ++k) {
        store_acc(static_cast<scalar_t*>(p_.grad_peephole) + (k - skipped) * s_.H + unit,
                  V::loadu(grad_peephole_ + k * plan_.units + unit), count);
      }
    }
  }

  const RecurrenceBackwardParams& p_;
  const Recurrence& s_;
  const RecurrentCell& cell_;
  const Rows rows_;
  const Plan<acc_t> plan_;
  acc_t* const weights_;
  acc_t *grad_h_, *grad_c_, *carried_, *sums_;  // [N][whole vectors of units]
  acc_t* grad_peephole_;                        // [3][whole vectors of units]
  acc_t* grad_gates_[2];                        // [N][recurrent blocks][H]: of the products
  acc_t* end_;
};

}  // namespace fastnn::FASTNN_BACKEND::recurrence
