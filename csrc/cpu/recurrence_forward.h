// The LSTM's recurrence forward; what it shares with backward stands in lstm_sequence_plan.h.
//
// What bounds it: 4 N H^2 multiply-adds a step where samples are many; where they are few, reading 16 H^2 bytes
// of weights (in float32) from the caches, and of one sample the chain of additions. Error: H roundings of a
// sum's partial sums, those of the activations, and those of the steps before.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv_patches.h"
#include "conv_transpose.h"
#include "lstm_sequence_plan.h"
#include "step_team.h"

namespace fastnn::FASTNN_BACKEND::lstm {

template <typename scalar_t>
class SequenceForward {
 public:
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  static constexpr int64_t L = kLanes<acc_t>;
  // For which gates are fetched: runs of a sample are too short for the processor to see them coming.
  static constexpr int64_t kSamplesAhead = 2;

  explicit SequenceForward(const LstmSequenceForwardParams& p)
      : p_(p), s_(p.in), rows_{p.in}, plan_(p.in), weights_(static_cast<acc_t*>(p.workspace)) {
    h_[0] = weights_ + 4 * plan_.units * s_.H;
    h_[1] = h_[0] + s_.N * plan_.units;
    c_ = h_[1] + s_.N * plan_.units;
    sums_ = c_ + s_.N * plan_.units;
  }

  int64_t bytes() const {
    const int64_t sums = std::min(s_.N, kSampleBlock) * 4 * plan_.units;
    return (4 * plan_.units * s_.H + 3 * s_.N * plan_.units + sums) * static_cast<int64_t>(sizeof(acc_t));
  }

  void run() const {
    run_team(plan_.threads, [this](int64_t member, int64_t members, StepBarrier& barrier) {
      const int64_t first = plan_.first(member, members), last = plan_.first(member + 1, members);
      for (int64_t vec = first; vec < last; ++vec) {
        pack(vec);
        load_states(vec);
      }
      barrier.wait();
      int64_t active = s_.N;
      for (int64_t step = 0; step < s_.T; ++step) {
        active = rows_.active(step, active);
        for (int64_t n = 0; n < active; n += kSampleBlock) {
          compute(first, last, step, n, std::min(kSampleBlock, active - n));
        }
        barrier.wait();
      }
    });
  }

 private:
  // [unit vector][k][gate][lane]
  void pack(int64_t vec) const {
    const auto* const w = static_cast<const scalar_t*>(p_.w_hh);
    const int64_t H = s_.H, unit = vec * L, count = std::min(L, H - unit);
    acc_t* const packed = weights_ + vec * 4 * L * H;
    if (count < L) std::fill(packed, packed + 4 * L * H, acc_t(0));
    constexpr int64_t kColumns = 64;
    alignas(64) acc_t block[L * kColumns];
    for (int64_t gate = 0; gate < 4; ++gate) {
      const scalar_t* const rows = w + (gate * H + unit) * H;
      for (int64_t k = 0; k < H; k += kColumns) {
        const int64_t columns = std::min(kColumns, H - k);
        for (int64_t lane = 0; lane < count; ++lane)
          copy_run(block + lane * kColumns, rows + lane * H + k, columns);
        copy_transposed(block, kColumns, count, columns, packed + (k * 4 + gate) * L, 4 * L);
      }
    }
  }

  void load_states(int64_t vec) const {
    const int64_t H = s_.H, unit = vec * L, count = std::min(L, H - unit);
    const auto *const h0 = static_cast<const scalar_t*>(p_.h0), *const c0 = static_cast<const scalar_t*>(p_.c0);
    for (int64_t n = 0; n < s_.N; ++n) {
      const int64_t from = s_.state_rows[n] * H + unit, to = n * plan_.units + unit;
      const V h = load_acc(h0 + from, count), c = load_acc(c0 + from, count);
      h.store(h_[0] + to);
      c.store(c_ + to);
      if (s_.lengths[n] == 0) store_last(n, unit, count, h, c);
    }
  }

  void store_last(int64_t n, int64_t unit, int64_t count, const V& h, const V& c) const {
    const int64_t to = s_.state_rows[n] * s_.H + unit;
    store_acc(static_cast<scalar_t*>(p_.h_n) + to, h, count);
    store_acc(static_cast<scalar_t*>(p_.c_n) + to, c, count);
  }

  // The units of vectors [first, last) of some samples in one step. All products come first, so that what
  // follows goes through the gates in memory by runs and not by single lines.
  void compute(int64_t first, int64_t last, int64_t step, int64_t sample, int64_t samples) const {
    const int64_t pitch = (last - first) * 4 * L;
    acc_t* const sums = sums_ + std::min(s_.N, kSampleBlock) * first * 4 * L;
    for (int64_t vec = first; vec < last; ++vec) {
      multiply_block(samples, 4, h_[step % 2] + sample * plan_.units, plan_.units,
                     weights_ + vec * 4 * L * s_.H, s_.H, sums + (vec - first) * 4 * L, pitch);
    }
    for (int64_t m = 0; m < samples; ++m) {
      const scalar_t* const ahead =
          static_cast<const scalar_t*>(p_.gates) +
          rows_.row(std::min(sample + m + kSamplesAhead, sample + samples - 1), step) * 4 * s_.H;
      for (int64_t vec = first; vec < last; ++vec) {
        for (int64_t gate = 0; gate < 4; ++gate) __builtin_prefetch(ahead + gate * s_.H + vec * L, 1);
        activate(vec, step, sample + m, sums + m * pitch + (vec - first) * 4 * L);
      }
    }
  }

  void activate(int64_t vec, int64_t step, int64_t n, const acc_t* sums) const {
    const int64_t H = s_.H, unit = vec * L, count = std::min(L, H - unit);
    const int64_t row = rows_.row(n, step), state = n * plan_.units + unit;
    scalar_t* const gates = static_cast<scalar_t*>(p_.gates) + row * 4 * H + unit;
    const auto pre_activation = [&](int64_t gate) {
      return V::loadu(sums + gate * L) + load_acc(static_cast<const scalar_t*>(gates + gate * H), count);
    };
    const V i = sigmoid(pre_activation(0)), f = sigmoid(pre_activation(1));
    const V g = hyperbolic_tangent(pre_activation(2)), o = sigmoid(pre_activation(3));
    const V c = f * V::loadu(c_ + state) + i * g, h = o * hyperbolic_tangent(c);
    scalar_t* const y = static_cast<scalar_t*>(p_.y) + row * H + unit;
    store_acc(y, h, count);
    if (p_.c != nullptr) {  // for backward
      store_acc(static_cast<scalar_t*>(p_.c) + row * H + unit, c, count);
      store_acc(gates, i, count);
      store_acc(gates + H, f, count);
      store_acc(gates + 2 * H, g, count);
      store_acc(gates + 3 * H, o, count);
    }
    c.store(c_ + state);
    // What the next step multiplies is what the caller sees.
    const V seen = std::is_same_v<scalar_t, acc_t> ? h : load_acc(static_cast<const scalar_t*>(y), count);
    seen.store(h_[(step + 1) % 2] + state);
    if (step == s_.lengths[n] - 1) store_last(n, unit, count, h, c);
  }

  const LstmSequenceForwardParams& p_;
  const LstmSequence& s_;
  const SequenceRows rows_;
  const SequencePlan<acc_t> plan_;
  acc_t* const weights_;
  acc_t *h_[2], *c_;  // [N][whole vectors of units]
  acc_t* sums_;       // of each thread [samples at a time][its vectors][gate][lane]
};

}  // namespace fastnn::FASTNN_BACKEND::lstm
