// The LSTM's recurrence backward; what it shares with forward stands in lstm_sequence_plan.h.
//
// From the last step to the first, a thread turns the gradients of its units' states into those of their gates,
// meets the others, and multiplies everybody's gates with its columns of W_hh, which is the gradient of its
// units of the state before. What bounds it is what bounds forward. Error: 4 H roundings of a sum's partial
// sums, and those of the steps after.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../ops/lstm_cell_math.h"
#include "lstm_sequence_plan.h"
#include "step_team.h"

namespace fastnn::FASTNN_BACKEND::lstm {

template <typename scalar_t>
class SequenceBackward {
 public:
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  static constexpr int64_t L = kLanes<acc_t>;
  static constexpr int64_t kPanelVecs = kMaxVecs > 1 ? 2 : 1;

  explicit SequenceBackward(const LstmSequenceBackwardParams& p)
      : p_(p), s_(p.in), rows_{p.in}, plan_(p.in), weights_(static_cast<acc_t*>(p.workspace)) {
    const int64_t states = s_.N * plan_.units;
    grad_h_ = weights_ + 4 * s_.H * plan_.units;
    grad_c_ = grad_h_ + states;
    grad_gates_[0] = grad_c_ + states;
    grad_gates_[1] = grad_gates_[0] + s_.N * 4 * s_.H;
  }

  int64_t bytes() const {
    return (4 * s_.H * plan_.units + 2 * s_.N * plan_.units + 2 * s_.N * 4 * s_.H) *
           static_cast<int64_t>(sizeof(acc_t));
  }

  void run() const {
    run_team(plan_.threads, [this](int64_t member, int64_t members, StepBarrier& barrier) {
      const int64_t first = plan_.first(member, members), last = plan_.first(member + 1, members);
      pack(first, last);
      for (int64_t n = 0; n < s_.N; ++n) {
        if (s_.lengths[n] == 0) begin(n, first, last);
      }
      int64_t active = 0;
      for (int64_t step = s_.T - 1; step >= 0; --step) {
        for (; active < s_.N && s_.lengths[active] > step; ++active) begin(active, first, last);
        acc_t* const of_step = grad_gates_[step % 2];
        for (int64_t n = 0; n < active; ++n) {
          for (int64_t vec = first; vec < last; ++vec) differentiate(vec, step, n, of_step);
        }
        barrier.wait();
        // The sums take the place of the states' gradients, which are spent.
        for (int64_t vec = first; vec < last; vec += kPanelVecs) {
          const int64_t panel = std::min(kPanelVecs, last - vec);
          for (int64_t n = 0; n < active; n += kSampleBlock) {
            multiply_block(std::min(kSampleBlock, active - n), panel, of_step + n * 4 * s_.H, 4 * s_.H,
                           weights_ + vec * L * 4 * s_.H, 4 * s_.H, grad_h_ + n * plan_.units + vec * L,
                           plan_.units);
          }
        }
      }
      for (int64_t n = 0; n < s_.N; ++n) {
        for (int64_t vec = first; vec < last; ++vec) store_first(vec, n);
      }
    });
  }

 private:
  // A thread's columns of W_hh, by panels: [4H][kPanelVecs vectors].
  void pack(int64_t first, int64_t last) const {
    const auto* const w = static_cast<const scalar_t*>(p_.w_hh);
    for (int64_t vec = first; vec < last; vec += kPanelVecs) {
      const int64_t panel = std::min(kPanelVecs, last - vec);
      acc_t* packed = weights_ + vec * L * 4 * s_.H;
      for (int64_t row = 0; row < 4 * s_.H; ++row) {
        for (int64_t v = vec; v < vec + panel; ++v, packed += L) {
          load_acc(w + row * s_.H + v * L, std::min(L, s_.H - v * L)).store(packed);
        }
      }
    }
  }

  // The gradients with which a sample's last step begins.
  void begin(int64_t n, int64_t first, int64_t last) const {
    for (int64_t vec = first; vec < last; ++vec) {
      const int64_t unit = vec * L, count = std::min(L, s_.H - unit), from = s_.state_rows[n] * s_.H + unit;
      load_or_zero(static_cast<const scalar_t*>(p_.grad_h_n), from, count)
          .store(grad_h_ + n * plan_.units + unit);
      load_or_zero(static_cast<const scalar_t*>(p_.grad_c_n), from, count)
          .store(grad_c_ + n * plan_.units + unit);
    }
  }

  void differentiate(int64_t vec, int64_t step, int64_t n, acc_t* of_step) const {
    const int64_t H = s_.H, unit = vec * L, count = std::min(L, H - unit);
    const int64_t row = rows_.row(n, step), state = n * plan_.units + unit;
    const auto* const gates = static_cast<const scalar_t*>(p_.gates) + row * 4 * H + unit;
    const auto* const c = static_cast<const scalar_t*>(p_.c);
    LstmCellValues<V> v;
    v.i = load_acc(gates, count);
    v.f = load_acc(gates + H, count);
    v.g = load_acc(gates + 2 * H, count);
    v.o = load_acc(gates + 3 * H, count);
    v.cx = step > 0 ? load_acc(c + rows_.row(n, step - 1) * H + unit, count)
                    : load_acc(static_cast<const scalar_t*>(p_.c0) + s_.state_rows[n] * H + unit, count);
    v.tanh_cy = hyperbolic_tangent(load_acc(c + row * H + unit, count));
    const V grad_h = V::loadu(grad_h_ + state) +
                     load_or_zero(static_cast<const scalar_t*>(p_.grad_y), row * H + unit, count);
    const auto grads = lstm_cell_backward_values<V>(v, grad_h, V::loadu(grad_c_ + state));
    grads.cx.store(grad_c_ + state);
    auto* const grad_gates = static_cast<scalar_t*>(p_.grad_gates) + row * 4 * H + unit;
    acc_t* const multiplied = of_step + n * 4 * H + unit;
    const V of_gates[] = {grads.i, grads.f, grads.g, grads.o};
    for (int64_t gate = 0; gate < 4; ++gate) {
      store_acc(grad_gates + gate * H, of_gates[gate], count);
      store_acc(multiplied + gate * H, of_gates[gate], count);
    }
  }

  void store_first(int64_t vec, int64_t n) const {
    const int64_t unit = vec * L, count = std::min(L, s_.H - unit), to = s_.state_rows[n] * s_.H + unit;
    store_acc(static_cast<scalar_t*>(p_.grad_h0) + to, V::loadu(grad_h_ + n * plan_.units + unit), count);
    store_acc(static_cast<scalar_t*>(p_.grad_c0) + to, V::loadu(grad_c_ + n * plan_.units + unit), count);
  }

  const LstmSequenceBackwardParams& p_;
  const LstmSequence& s_;
  const SequenceRows rows_;
  const SequencePlan<acc_t> plan_;
  acc_t* const weights_;
  acc_t *grad_h_, *grad_c_;  // [N][whole vectors of units]
  acc_t* grad_gates_[2];     // [N][4H], of this step and of the one after it
};

}  // namespace fastnn::FASTNN_BACKEND::lstm
