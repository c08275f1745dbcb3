// LSTMs whose products with h, or whose c, are normalised over all units of a sample (Ba et al. 2016).
//
// Mean and variance need the units of all threads, so a step has up to two more meetings of them, in each
// direction. Partial sums are of vectors of units, not of threads, and every thread adds them in the same
// order: the bits do not depend on how many there are. It is bound by what bounds the other cells; the sums
// cost as many passes over the products as there are meetings.
#pragma once

#include <cmath>

#include "recurrence_backward.h"
#include "recurrence_forward.h"

namespace fastnn::FASTNN_BACKEND::recurrence {

// Two numbers of each vector of units and sample.
template <typename acc_t>
struct PartialSums {
  acc_t* at = nullptr;
  int64_t samples = 0;

  acc_t* of(int64_t vec, int64_t sample) const { return at + (vec * samples + sample) * 2; }
  static int64_t size(int64_t vecs, int64_t samples) { return 2 * vecs * samples; }
};

template <typename acc_t>
struct Moments {
  acc_t mean, scale;  // 1 / sqrt(variance + eps)
};

// The numbers of the first lanes of some vectors: their mean, and the sum of their squared distances from it.
template <typename acc_t>
void store_moments(const Vec<acc_t>* values, int64_t n, int64_t count, acc_t* to) {
  using V = Vec<acc_t>;
  V sum(0);
  for (int64_t k = 0; k < n; ++k) sum = sum + V::set(V(0), values[k], count);
  const acc_t mean = sum_lanes(sum) / static_cast<acc_t>(n * count);
  V squares(0);
  for (int64_t k = 0; k < n; ++k) {
    const V distance = V::set(V(0), values[k] - V(mean), count);
    squares = squares + distance * distance;
  }
  to[0] = mean;
  to[1] = sum_lanes(squares);
}

// Of all units, from those of their vectors: the squares around a vector's own mean, and that mean's distance
// from the mean of all.
template <typename acc_t>
Moments<acc_t> combine_moments(const PartialSums<acc_t>& partial, int64_t sample, int64_t H, int64_t of_unit) {
  constexpr int64_t L = kLanes<acc_t>;
  const auto numbers = [&](int64_t unit) { return static_cast<acc_t>(of_unit * std::min(L, H - unit)); };
  const acc_t all = static_cast<acc_t>(of_unit * H);
  acc_t sum = 0, squares = 0;
  for (int64_t unit = 0; unit < H; unit += L) sum += numbers(unit) * partial.of(unit / L, sample)[0];
  const acc_t mean = sum / all;
  for (int64_t unit = 0; unit < H; unit += L) {
    const acc_t* const part = partial.of(unit / L, sample);
    const acc_t distance = part[0] - mean;
    squares += part[1] + numbers(unit) * distance * distance;
  }
  return {mean, acc_t(1) / std::sqrt(squares / all + static_cast<acc_t>(kCellNormEps))};
}

template <typename scalar_t>
class NormalisedForward : public Forward<scalar_t, CellKind::kLstm> {
  using Base = Forward<scalar_t, CellKind::kLstm>;
  using Base::cell_, Base::L, Base::p_, Base::plan_, Base::rows_, Base::s_;
  using typename Base::acc_t;
  using typename Base::Cell;
  using typename Base::M;
  using typename Base::Sums;
  using typename Base::V;

 public:
  explicit NormalisedForward(const RecurrenceForwardParams& p) : Base(p) {
    acc_t* next = this->end_;
    products_ = next;
    next += s_.N * products_pitch();
    for (acc_t** buffer : {&made_, &o_}) {
      *buffer = next;
      next += s_.N * plan_.pitch;
    }
    for (PartialSums<acc_t>* partial : {&of_products_, &of_c_}) {
      *partial = {next, s_.N};
      next += PartialSums<acc_t>::size(plan_.unit_vecs, s_.N);
    }
    this->end_ = next;
  }

  void run() const {
    run_team(plan_.threads, [this](int64_t member, int64_t members, StepBarrier& barrier) {
      const int64_t first = plan_.first(member, members), last = plan_.first(member + 1, members);
      this->pack(static_cast<const scalar_t*>(p_.w_hh), cell_.gates(), first, last, s_.H,
                 this->weights(0, cell_.gates(), 0));
      for (int64_t vec = first; vec < last; ++vec) this->load_states(vec);
      barrier.wait();
      int64_t active = s_.N;
      for (int64_t step = 0; step < s_.T; ++step) {
        active = rows_.active(step, active);
        multiply(first, last, step, active);
        if (p_.norm.h_weight != nullptr) barrier.wait();
        for_each(first, last, step, active, [&](int64_t n, const Moments<acc_t>& products) {
          return [&, n, products](int64_t vec, const Cell& at) { make_c(vec, at, n, step, products); };
        });
        if (p_.norm.c_weight != nullptr) {
          barrier.wait();
          for_each(first, last, step, active, [&](int64_t n, const Moments<acc_t>&) {
            const auto moments = combine_moments(of_c_, n, s_.H, 1);
            if (p_.save && first == 0) save_statistics(rows_.row(n, step), 1, {moments.mean, moments.scale});
            return [&, moments](int64_t, const Cell& at) { make_h(at, step, moments); };
          });
        }
        barrier.wait();
      }
    });
  }

 private:
  int64_t products_pitch() const { return apart<acc_t>(cell_.gates() * plan_.units); }
  const acc_t* products_at(int64_t n, int64_t vec) const {
    return products_ + n * products_pitch() + vec * cell_.gates() * L;
  }

  void save_statistics(int64_t row, int64_t from, std::initializer_list<acc_t> values) const {
    std::copy(values.begin(), values.end(), static_cast<acc_t*>(p_.statistics) + row * kCellStatistics + from);
  }

  void multiply(int64_t first, int64_t last, int64_t step, int64_t active) const {
    const int64_t gates = cell_.gates(), pitch = products_pitch();
    for (int64_t n = 0; n < active; n += kSampleBlock) {
      const Sums sums{products_ + n * pitch + first * gates * L, pitch};
      Base::multiply(0, gates, first, last, this->h_[step % 2] + n * plan_.pitch,
                     std::min(kSampleBlock, active - n), sums);
    }
    if (p_.norm.h_weight == nullptr) return;
    for (int64_t n = 0; n < active; ++n) {
      for (int64_t vec = first; vec < last; ++vec) {
        V values[4];
        for (int64_t k = 0; k < gates; ++k) values[k] = V::loadu(products_at(n, vec) + k * L);
        store_moments(values, gates, std::min(L, s_.H - vec * L), of_products_.of(vec, n));
      }
    }
  }

  // make(sample, moments of its products) gives what is called for each of its cells.
  template <typename F>
  void for_each(int64_t first, int64_t last, int64_t step, int64_t active, const F& make) const {
    for (int64_t n = 0; n < active; ++n) {
      const int64_t row = rows_.row(n, step);
      const auto moments = p_.norm.h_weight == nullptr ? Moments<acc_t>{0, 1}
                                                       : combine_moments(of_products_, n, s_.H, cell_.gates());
      const auto f = make(n, moments);
      for (int64_t vec = first; vec < last; ++vec) f(vec, this->cell_at(vec, n, row, step));
    }
  }

  void make_c(int64_t vec, const Cell& at, int64_t n, int64_t step, const Moments<acc_t>& moments) const {
    const int64_t skipped = 4 - cell_.gates(), row = at.row * cell_.gates() * s_.H + at.unit;
    V a[4], c;
    for (int64_t k = skipped; k < 4; ++k) {
      V product = V::loadu(products_at(n, vec) + (k - skipped) * L);
      if (p_.norm.h_weight != nullptr) {
        product = (product - V(moments.mean)) * V(moments.scale);
        const int64_t gate = (k - skipped) * s_.H;
        if (p_.save) store_acc(static_cast<scalar_t*>(p_.normalised) + row + gate, product, at.count);
        product = product * load_acc(static_cast<const scalar_t*>(p_.norm.h_weight) + gate + at.unit, at.count);
      }
      a[k] = product + this->gate(at, k - skipped);
    }
    if (p_.save && vec == 0) save_statistics(at.row, 0, {moments.scale});
    const auto v = this->activate_lstm(at, a, c);
    if (p_.norm.c_weight == nullptr) {
      this->finish(at, step, v.gates[3] * v.squashed, c);
      return;
    }
    v.c_made.store(made_ + at.state);
    v.gates[3].store(o_ + at.state);
    store_moments(&v.c_made, 1, at.count, of_c_.of(vec, n));
  }

  void make_h(const Cell& at, int64_t step, const Moments<acc_t>& moments) const {
    V seen = (V::loadu(made_ + at.state) - V(moments.mean)) * V(moments.scale) *
             load_acc(static_cast<const scalar_t*>(p_.norm.c_weight) + at.unit, at.count);
    seen = seen + load_or_zero(static_cast<const scalar_t*>(p_.norm.c_bias), at.unit, at.count);
    this->finish(at, step, V::loadu(o_ + at.state) * activate<M>(cell_.output, seen),
                 V::loadu(this->c_ + at.state));
  }

  acc_t* products_;   // [N][vector of units][gate][lane]
  acc_t *made_, *o_;  // [N][whole vectors of units]
  PartialSums<acc_t> of_products_, of_c_;
};

template <typename scalar_t>
class NormalisedBackward : public Backward<scalar_t, CellKind::kLstm> {
  using Base = Backward<scalar_t, CellKind::kLstm>;
  using Base::cell_, Base::L, Base::p_, Base::plan_, Base::rows_, Base::s_;
  using typename Base::acc_t;
  using typename Base::Cell;
  using typename Base::M;
  using typename Base::V;

 public:
  explicit NormalisedBackward(const RecurrenceBackwardParams& p) : Base(p) {
    acc_t* next = this->end_;
    const int64_t states = s_.N * plan_.pitch;
    for (acc_t** buffer : {&of_output_, &of_seen_}) {
      *buffer = next;
      next += states;
    }
    of_products_ = next;
    next += states * cell_.gates();
    grad_h_weight_ = next;
    next += cell_.gates() * plan_.units;
    for (acc_t** buffer : {&grad_c_weight_, &grad_c_bias_}) {
      *buffer = next;
      next += plan_.units;
    }
    for (PartialSums<acc_t>* partial : {&sums_of_products_, &sums_of_c_}) {
      *partial = {next, s_.N};
      next += PartialSums<acc_t>::size(plan_.unit_vecs, s_.N);
    }
    this->end_ = next;
  }

  void run() const {
    run_team(plan_.threads, [this](int64_t member, int64_t members, StepBarrier& barrier) {
      const int64_t first = plan_.first(member, members), last = plan_.first(member + 1, members);
      this->pack(0, cell_.gates(), first, last);
      clear(first, last);
      for (int64_t n = 0; n < s_.N; ++n) {
        if (rows_.length(n) == 0) this->begin(n, first, last);
      }
      int64_t active = 0;
      for (int64_t step = s_.T - 1; step >= 0; --step) {
        for (; active < s_.N && rows_.length(active) > step; ++active) this->begin(active, first, last);
        acc_t* const of_step = this->grad_gates_[step % 2];
        const auto for_each = [&](const auto& f) { this->for_each_cell(first, last, step, active, f); };
        for_each([&](const Cell& at) { differentiate_h(at, step); });
        if (p_.norm.c_weight != nullptr) barrier.wait();
        for_each([&](const Cell& at) { differentiate_c(at, step, of_step); });
        if (p_.norm.h_weight != nullptr) {
          barrier.wait();
          for_each([&](const Cell& at) { differentiate_products(at, of_step); });
        }
        barrier.wait();
        this->multiply(0, cell_.gates(), of_step, active, first, last, this->grad_h_);
      }
      for (int64_t n = 0; n < s_.N; ++n) {
        for (int64_t vec = first; vec < last; ++vec) this->store_first(vec, n);
      }
      if (this->has_peephole()) this->store_peephole(first, last);
      store(grad_h_weight_, p_.grad_norm_h, cell_.gates(), first, last);
      store(grad_c_weight_, p_.grad_norm_c_weight, 1, first, last);
      store(grad_c_bias_, p_.grad_norm_c_bias, 1, first, last);
    });
  }

 private:
  using Formula = LstmFormula<M, false>;

  void clear(int64_t first, int64_t last) const {
    const auto fill = [&](acc_t* sums, int64_t blocks) {
      for (int64_t k = 0; k < blocks; ++k)
        std::fill(sums + k * plan_.units + first * L, sums + k * plan_.units + last * L, acc_t(0));
    };
    if (this->has_peephole()) fill(this->grad_peephole_, 3);
    fill(grad_h_weight_, cell_.gates());
    fill(grad_c_weight_, 1);
    fill(grad_c_bias_, 1);
  }

  void store(const acc_t* sums, void* to, int64_t blocks, int64_t first, int64_t last) const {
    if (to == nullptr) return;
    for (int64_t k = 0; k < blocks; ++k) {
      for (int64_t unit = first * L; unit < std::min(last * L, s_.H); unit += L) {
        store_acc(static_cast<scalar_t*>(to) + k * s_.H + unit, V::loadu(sums + k * plan_.units + unit),
                  std::min(L, s_.H - unit));
      }
    }
  }

  acc_t statistic(const Cell& at, int64_t k) const {
    return static_cast<const acc_t*>(p_.statistics)[at.row * kCellStatistics + k];
  }
  V normalised_c(const Cell& at, const V& c_made) const {
    return (c_made - V(statistic(at, 1))) * V(statistic(at, 2));
  }

  // Sums of two products of a vector of units, for the means that a norm's gradient takes.
  void store_sums(const V& of_first, const V& of_second, int64_t count, acc_t* to) const {
    to[0] = sum_lanes(V::set(V(0), of_first, count));
    to[1] = sum_lanes(V::set(V(0), of_second, count));
  }
  Moments<acc_t> means(const PartialSums<acc_t>& partial, int64_t sample, int64_t of_unit) const {
    acc_t first = 0, second = 0;
    for (int64_t vec = 0; vec < plan_.unit_vecs; ++vec) {
      first += partial.of(vec, sample)[0];
      second += partial.of(vec, sample)[1];
    }
    const auto n = static_cast<acc_t>(of_unit * s_.H);
    return {first / n, second / n};
  }

  // From h to the output gate and to what it squashes: c, or c normalised.
  void differentiate_h(const Cell& at, int64_t step) const {
    V grad_h = V::loadu(this->grad_h_ + at.state) + this->of_row(at, p_.grad_y), carried(0);
    if (this->has_carried()) {
      grad_h = grad_h + V::loadu(this->carried_ + at.state);
      grad_h = zoneout_backward(cell_.zoneout_h, load_share<scalar_t>(p_.zoneout_h, at.row, at.unit, at.count),
                                grad_h, carried);
      carried.store(this->carried_ + at.state);
    }
    const Formula formula = this->formula_at(at);
    auto v = this->values_at(at, step, formula);
    const bool norm = p_.norm.c_weight != nullptr;
    V made(0), weight(1);
    if (norm) {
      made = normalised_c(at, v.c_made);
      weight = load_acc(static_cast<const scalar_t*>(p_.norm.c_weight) + at.unit, at.count);
      v.squashed = activate<M>(
          cell_.output,
          made * weight + load_or_zero(static_cast<const scalar_t*>(p_.norm.c_bias), at.unit, at.count));
    }
    const V& o = v.gates[3];
    (grad_h * v.squashed * slope<M>(cell_.gate, o)).store(of_output_ + at.state);
    V of_seen = grad_h * o * slope<M>(cell_.output, v.squashed);
    if (norm) {
      this->add_to(grad_c_weight_ + at.unit, of_seen * made);
      this->add_to(grad_c_bias_ + at.unit, of_seen);
      of_seen = of_seen * weight;
      store_sums(of_seen, of_seen * made, at.count, sums_of_c_.of(at.unit / L, at.n));
    }
    of_seen.store(of_seen_ + at.state);
  }

  // To the gates.
  void differentiate_c(const Cell& at, int64_t step, acc_t* of_step) const {
    const Formula formula = this->formula_at(at);
    const auto v = this->values_at(at, step, formula);
    V of_c = V::loadu(of_seen_ + at.state), old(0);
    if (p_.norm.c_weight != nullptr) {
      const auto mean = means(sums_of_c_, at.n, 1);
      of_c = V(statistic(at, 2)) * (of_c - V(mean.mean) - normalised_c(at, v.c_made) * V(mean.scale));
    }
    const auto grads =
        formula.backward_of_c(v, V::loadu(of_output_ + at.state), of_c + this->grad_c_at(at, old));
    (grads.c + old).store(this->grad_c_ + at.state);
    this->add_peephole(at, grads.p);
    const int64_t skipped = this->first_gate();
    V sum(0), with_made(0);
    for (int64_t k = skipped; k < 4; ++k) {
      const int64_t gate = k - skipped;
      this->store_gate(at, gate, grads.gates[k]);
      if (p_.norm.h_weight == nullptr) {
        this->store_product(at, gate, grads.gates[k], of_step);
        continue;
      }
      const V made = normalised(at, gate);
      this->add_to(grad_h_weight_ + gate * plan_.units + at.unit, grads.gates[k] * made);
      const V of_made =
          grads.gates[k] *
          load_acc(static_cast<const scalar_t*>(p_.norm.h_weight) + gate * s_.H + at.unit, at.count);
      of_made.store(of_products_ + gate * s_.N * plan_.pitch + at.state);
      sum = sum + of_made;
      with_made = with_made + of_made * made;
    }
    if (p_.norm.h_weight != nullptr)
      store_sums(sum, with_made, at.count, sums_of_products_.of(at.unit / L, at.n));
  }

  V normalised(const Cell& at, int64_t gate) const {
    return load_acc(
        static_cast<const scalar_t*>(p_.normalised) + (at.row * cell_.gates() + gate) * s_.H + at.unit,
        at.count);
  }

  void differentiate_products(const Cell& at, acc_t* of_step) const {
    const auto mean = means(sums_of_products_, at.n, cell_.gates());
    const V scale(statistic(at, 0));
    for (int64_t gate = 0; gate < cell_.gates(); ++gate) {
      const V of_made = V::loadu(of_products_ + gate * s_.N * plan_.pitch + at.state);
      const V grad = scale * (of_made - V(mean.mean) - normalised(at, gate) * V(mean.scale));
      this->store_product(at, gate, grad, of_step);
      store_acc(static_cast<scalar_t*>(p_.grad_products) + (at.row * cell_.gates() + gate) * s_.H + at.unit,
                grad, at.count);
    }
  }

  acc_t *of_output_, *of_seen_;          // [N][whole vectors of units]
  acc_t* of_products_;                   // [gate][N][whole vectors of units]
  acc_t* grad_h_weight_;                 // [gate][whole vectors of units]
  acc_t *grad_c_weight_, *grad_c_bias_;  // [whole vectors of units]
  PartialSums<acc_t> sums_of_products_, sums_of_c_;
};

}  // namespace fastnn::FASTNN_BACKEND::recurrence
