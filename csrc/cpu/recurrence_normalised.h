// LSTMs whose products with x or with h, or whose c, are normalised over all units of a sample (Ba et al.
// 2016).
//
// Mean and variance need the units of all threads, so a step has up to two more meetings of them, in each
// direction, and one more for the rows of which x is multiplied at a time. Partial sums are of vectors of
// units, not of threads, and every thread adds all of them in the same order: the bits do not depend on how
// many there are. It is bound by what bounds the other cells; the sums cost as many passes over the products as
// there are meetings.
#pragma once

#include <cmath>

#include "recurrence_backward.h"
#include "recurrence_forward.h"

namespace fastnn::FASTNN_BACKEND::recurrence {

// Two numbers of each vector of units and row: [vector][which][row], so that rows are added side by side.
template <typename acc_t>
struct PartialSums {
  acc_t* at = nullptr;
  int64_t pitch = 0;

  acc_t* of(int64_t vec, int64_t which) const { return at + (vec * 2 + which) * pitch; }
  void set(int64_t vec, int64_t row, acc_t first, acc_t second) const {
    of(vec, 0)[row] = first;
    of(vec, 1)[row] = second;
  }
  static int64_t size(int64_t vecs, int64_t pitch) { return 2 * vecs * pitch; }
};

// Two numbers of each row, which every thread has of its own: of a norm's values the mean and 1 / sqrt(variance
// + eps), or the two means that its gradient takes.
template <typename acc_t>
struct OfRows {
  acc_t *first, *second;
  Vec<acc_t> a(int64_t row) const { return Vec<acc_t>(first[row]); }
  Vec<acc_t> b(int64_t row) const { return Vec<acc_t>(second[row]); }
};

// The numbers of the first lanes of some vectors: their mean, and the sum of their squared distances from it.
template <typename acc_t>
inline __attribute__((always_inline)) void store_moments(const Vec<acc_t>* values, int64_t n, int64_t count,
                                                         const PartialSums<acc_t>& to, int64_t vec,
                                                         int64_t row) {
  using V = Vec<acc_t>;
  V sum = values[0];
  for (int64_t k = 1; k < n; ++k) sum = sum + values[k];
  if (count < kLanes<acc_t>) sum = first_lanes<acc_t>(sum, count);
  const acc_t mean = sum_lanes<acc_t>(sum) / static_cast<acc_t>(n * count);
  V squares(0);
  for (int64_t k = 0; k < n; ++k) {
    const V distance = values[k] - V(mean);
    squares = fmadd(distance, distance, squares);
  }
  if (count < kLanes<acc_t>) squares = first_lanes<acc_t>(squares, count);
  to.set(vec, row, mean, sum_lanes<acc_t>(squares));
}

// Of all units, from those of their vectors: the squares around a vector's own mean, and that mean's distance
// from the mean of all.
template <typename acc_t>
void combine_moments(const PartialSums<acc_t>& partial, int64_t begin, int64_t end, int64_t H, int64_t of_unit,
                     const OfRows<acc_t>& to) {
  constexpr int64_t L = kLanes<acc_t>;
  using V = Vec<acc_t>;
  const V all(static_cast<acc_t>(of_unit * H));
  const auto numbers = [&](int64_t unit) { return V(static_cast<acc_t>(of_unit * std::min(L, H - unit))); };
  for (int64_t row = begin; row < end; row += L) {
    V sum(0), squares(0);
    for (int64_t unit = 0; unit < H; unit += L)
      sum = fmadd(numbers(unit), V::loadu(partial.of(unit / L, 0) + row), sum);
    const V mean = sum / all;
    for (int64_t unit = 0; unit < H; unit += L) {
      const V distance = V::loadu(partial.of(unit / L, 0) + row) - mean;
      squares = squares + fmadd(numbers(unit) * distance, distance, V::loadu(partial.of(unit / L, 1) + row));
    }
    mean.store(to.first + row);
    (V(1) / (squares / all + V(static_cast<acc_t>(kCellNormEps))).sqrt()).store(to.second + row);
  }
}

// The means of two products of each row's units.
template <typename acc_t>
void combine_means(const PartialSums<acc_t>& partial, int64_t rows, int64_t vecs, int64_t numbers,
                   const OfRows<acc_t>& to) {
  using V = Vec<acc_t>;
  const V all(static_cast<acc_t>(numbers));
  for (int64_t row = 0; row < rows; row += kLanes<acc_t>) {
    V first(0), second(0);
    for (int64_t vec = 0; vec < vecs; ++vec) {
      first = first + V::loadu(partial.of(vec, 0) + row);
      second = second + V::loadu(partial.of(vec, 1) + row);
    }
    (first / all).store(to.first + row);
    (second / all).store(to.second + row);
  }
}

template <typename scalar_t, bool kPlain>
class NormalisedForward : public Forward<scalar_t, CellKind::kLstm, kPlain> {
  using Base = Forward<scalar_t, CellKind::kLstm, kPlain>;
  using Base::cell_, Base::L, Base::p_, Base::plan_, Base::rows_, Base::s_;
  using typename Base::acc_t;
  using typename Base::Cell;
  using typename Base::M;
  using typename Base::Sums;
  using typename Base::V;
  using Partial = PartialSums<acc_t>;

 public:
  explicit NormalisedForward(const RecurrenceForwardParams& p) : Base(p) {
    acc_t* next = this->end_;
    products_ = next;
    next += s_.N * products_pitch();
    for (acc_t** buffer : {&made_, &o_}) {
      *buffer = next;
      next += s_.N * plan_.pitch;
    }
    for (const auto& [partial, rows] :
         {std::pair{&of_products_, s_.N}, {&of_c_, s_.N}, {&of_x_, std::max(s_.N, kSampleBlock)}}) {
      *partial = {next, whole_vectors(rows)};
      next += Partial::size(plan_.unit_vecs, partial->pitch);
    }
    moments_ = next;
    next += plan_.threads * moments_pitch();
    this->end_ = next;
  }

  void run() const {
    if (this->multiplies_x()) this->group_steps();
    run_team(plan_.threads, [this](int64_t member, int64_t members, StepBarrier& barrier) {
      const int64_t first = plan_.first(member, members), last = plan_.first(member + 1, members);
      this->pack(static_cast<const scalar_t*>(p_.w_hh), cell_.gates(), first, last, s_.H,
                 this->weights(0, cell_.gates(), 0));
      if (this->multiplies_x()) {
        this->pack(static_cast<const scalar_t*>(p_.w_ih), cell_.gates(), first, last, p_.I, this->weights_x_);
        this->pack_bias(first, last);
      }
      for (int64_t vec = first; vec < last; ++vec) this->load_states(vec);
      const Own own = own_of(member);
      barrier.wait();
      int64_t active = s_.N;
      for (int64_t step = 0; step < s_.T; ++step) {
        active = rows_.active(step, active);
        if (this->begins_group(step)) {
          const int64_t rows = multiply_x_of_all(member, first, last, step, active);
          if (p_.norm.x_weight != nullptr) {
            barrier.wait();
            combine_moments(of_x_, 0, rows, s_.H, cell_.gates(), own.of_x);
          }
        }
        multiply(first, last, step, active);
        if (p_.norm.h_weight != nullptr) {
          barrier.wait();
          combine_moments(of_products_, 0, active, s_.H, cell_.gates(), own.of_products);
        }
        for_each(first, last, step, active,
                 [&](int64_t vec, const Cell& at) { make_c(vec, at, step, own, first == 0); });
        if (p_.norm.c_weight != nullptr) {
          barrier.wait();
          combine_moments(of_c_, 0, active, s_.H, 1, own.of_c);
          for_each(first, last, step, active,
                   [&](int64_t vec, const Cell& at) { make_h(vec, at, step, own.of_c); });
        }
        barrier.wait();
      }
    });
  }

 private:
  // What a thread knows of all rows.
  struct Own {
    OfRows<acc_t> of_products, of_c, of_x;
  };

  static int64_t whole_vectors(int64_t rows) { return ceil_div(rows, L) * L; }
  int64_t moments_pitch() const {
    return ceil_div(2 * (2 * of_c_.pitch + of_x_.pitch), kLine<acc_t>) * kLine<acc_t>;
  }
  Own own_of(int64_t member) const {
    acc_t* const at = moments_ + member * moments_pitch();
    const int64_t N = of_c_.pitch;
    acc_t* const x = at + 4 * N;
    return {{at, at + N}, {at + 2 * N, at + 3 * N}, {x, x + of_x_.pitch}};
  }

  int64_t products_pitch() const { return apart<acc_t>(cell_.gates() * plan_.units); }
  const acc_t* products_at(int64_t n, int64_t vec) const {
    return products_ + n * products_pitch() + vec * cell_.gates() * L;
  }

  acc_t& statistic(int64_t row, int64_t k) const {
    return static_cast<acc_t*>(p_.statistics)[row * kCellStatistics + k];
  }

  // Of one row's products, [vector][gate][lane] from the thread's first vector on.
  void store_moments_of(const acc_t* products, int64_t first, int64_t last, const Partial& to,
                        int64_t row) const {
    for (int64_t vec = first; vec < last; ++vec, products += cell_.gates() * L) {
      const int64_t count = std::min(L, s_.H - vec * L);
      V values[4];
      for (int64_t k = 0; k < cell_.gates(); ++k) values[k] = V::loadu(products + k * L);
      store_moments(values, cell_.gates(), count, to, vec, row);
    }
  }

  // Returns how many rows they are.
  int64_t multiply_x_of_all(int64_t member, int64_t first, int64_t last, int64_t step, int64_t active) const {
    const int64_t end = step + this->x_steps_[step];
    for (int64_t n = 0; n < active; n += kSampleBlock)
      this->multiply_x(member, first, last, step, n, std::min(kSampleBlock, active - n));
    if (p_.norm.x_weight == nullptr) return 0;
    for (int64_t t = step; t < end; ++t) {
      active = rows_.active(t, active);
      for (int64_t n = 0; n < active; ++n) {
        const int64_t row = this->x_row(t, n);
        store_moments_of(this->x_sums_ + row * this->x_sums_pitch() + first * cell_.gates() * L, first, last,
                         of_x_, row);
      }
    }
    return this->x_row(end - 1, active);
  }

  void multiply(int64_t first, int64_t last, int64_t step, int64_t active) const {
    const int64_t gates = cell_.gates(), pitch = products_pitch();
    for (int64_t n = 0; n < active; n += kSampleBlock) {
      const Sums sums{products_ + n * pitch + first * gates * L, pitch};
      Base::multiply(0, gates, first, last, this->h_[step % 2] + n * plan_.pitch,
                     std::min(kSampleBlock, active - n), sums);
    }
    if (p_.norm.h_weight == nullptr) return;
    for (int64_t n = 0; n < active; ++n) store_moments_of(products_at(n, first), first, last, of_products_, n);
  }

  // What is saved is fetched ahead, as in the other cells.
  template <typename F>
  void for_each(int64_t first, int64_t last, int64_t step, int64_t active, const F& f) const {
    for (int64_t n = 0; n < active; ++n) {
      const int64_t ahead = rows_.row(std::min(n + Base::kSamplesAhead, active - 1), step);
      const int64_t row = rows_.row(n, step);
      for (int64_t vec = first; vec < last; ++vec) {
        for (void* saved : {p_.gates, p_.normalised, p_.normalised_x}) this->fetch(saved, ahead, vec);
        f(vec, this->cell_at(vec, n, row, step));
      }
    }
  }

  // gain * norm(products), and with `saved` what the norm gave.
  V normalise(const Cell& at, int64_t gate, V product, const V& mean, const V& scale, const void* gain,
              void* saved) const {
    product = (product - mean) * scale;
    const int64_t place = gate * s_.H + at.unit;
    if (saved != nullptr) {
      store_acc(static_cast<scalar_t*>(saved) + at.row * cell_.gates() * s_.H + place, product, at.count);
    }
    return product * load_acc(static_cast<const scalar_t*>(gain) + place, at.count);
  }

  void make_c(int64_t vec, const Cell& at, int64_t step, const Own& own, bool is_first) const {
    const int64_t skipped = 4 - cell_.gates(), x_row = this->x_row(step, at.n);
    const bool norm_h = p_.norm.h_weight != nullptr, norm_x = p_.norm.x_weight != nullptr;
    V a[4], c;
    for (int64_t k = skipped; k < 4; ++k) {
      const int64_t gate = k - skipped;
      V product = V::loadu(products_at(at.n, vec) + gate * L);
      if (norm_h) {
        product = normalise(at, gate, product, own.of_products.a(at.n), own.of_products.b(at.n),
                            p_.norm.h_weight, p_.normalised);
      }
      V of_x(0);
      if (norm_x) {
        of_x = normalise(at, gate, V::loadu(at.x_sums + gate * L), own.of_x.a(x_row), own.of_x.b(x_row),
                         p_.norm.x_weight, p_.normalised_x) +
               V::loadu(at.bias + gate * L);
      } else {
        of_x = this->gate(at, gate);
      }
      a[k] = product + of_x;
    }
    if (p_.save && is_first && vec == 0) {
      if (norm_h) statistic(at.row, 0) = own.of_products.second[at.n];
      if (norm_x) statistic(at.row, 3) = own.of_x.second[x_row];
    }
    const bool norm_c = p_.norm.c_weight != nullptr;
    const auto v = this->activate_lstm(at, a, c, !norm_c);
    if (!norm_c) {
      this->finish(at, step, v.gates[3] * v.squashed, c);
      return;
    }
    v.c_made.store(made_ + at.state);
    v.gates[3].store(o_ + at.state);
    store_moments(&v.c_made, 1, at.count, of_c_, vec, at.n);
  }

  void make_h(int64_t vec, const Cell& at, int64_t step, const OfRows<acc_t>& moments) const {
    if (p_.save && vec == 0) {
      statistic(at.row, 1) = moments.first[at.n];
      statistic(at.row, 2) = moments.second[at.n];
    }
    V seen = (V::loadu(made_ + at.state) - moments.a(at.n)) * moments.b(at.n) *
             load_acc(static_cast<const scalar_t*>(p_.norm.c_weight) + at.unit, at.count);
    seen = seen + load_or_zero(static_cast<const scalar_t*>(p_.norm.c_bias), at.unit, at.count);
    const V squashed = kPlain ? M::tanh(seen) : activate<M>(cell_.output, seen);
    this->finish(at, step, V::loadu(o_ + at.state) * squashed, V::loadu(this->c_ + at.state));
  }

  acc_t* products_;   // [N][vector of units][gate][lane]
  acc_t *made_, *o_;  // [N][whole vectors of units]
  Partial of_products_, of_c_, of_x_;
  acc_t* moments_;  // of each thread, Own
};

template <typename scalar_t, bool kPlain>
class NormalisedBackward : public Backward<scalar_t, CellKind::kLstm, kPlain> {
  using Base = Backward<scalar_t, CellKind::kLstm, kPlain>;
  using Base::cell_, Base::L, Base::p_, Base::plan_, Base::rows_, Base::s_;
  using typename Base::acc_t;
  using typename Base::Cell;
  using typename Base::M;
  using typename Base::V;
  using Partial = PartialSums<acc_t>;

 public:
  explicit NormalisedBackward(const RecurrenceBackwardParams& p) : Base(p) {
    acc_t* next = this->end_;
    const int64_t states = s_.N * plan_.pitch;
    for (acc_t** buffer : {&of_output_, &of_seen_}) {
      *buffer = next;
      next += states;
    }
    of_gates_ = next;
    next += states * cell_.gates();
    for (acc_t** sums : {&grad_h_weight_, &grad_x_weight_, &grad_bias_}) {
      *sums = next;
      next += cell_.gates() * plan_.units;
    }
    for (acc_t** sums : {&grad_c_weight_, &grad_c_bias_}) {
      *sums = next;
      next += plan_.units;
    }
    const int64_t rows = ceil_div(s_.N, L) * L;
    for (Partial* partial : {&sums_of_h_, &sums_of_x_, &sums_of_c_}) {
      *partial = {next, rows};
      next += Partial::size(plan_.unit_vecs, rows);
    }
    means_ = next;
    next += plan_.threads * means_pitch();
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
      const Own own = own_of(member);
      int64_t active = 0;
      for (int64_t step = s_.T - 1; step >= 0; --step) {
        for (; active < s_.N && rows_.length(active) > step; ++active) this->begin(active, first, last);
        acc_t* const of_step = this->grad_gates_[step % 2];
        const auto for_each = [&](const auto& f) { this->for_each_cell(first, last, step, active, f); };
        for_each([&](const Cell& at) { differentiate_h(at, step); });
        if (norm_c()) {
          barrier.wait();
          combine_means(sums_of_c_, active, plan_.unit_vecs, s_.H, own.of_c);
        }
        for_each([&](const Cell& at) { differentiate_c(at, step, own.of_c, of_step); });
        if (norm_h() || norm_x()) {
          barrier.wait();
          const int64_t numbers = cell_.gates() * s_.H;
          if (norm_h()) combine_means(sums_of_h_, active, plan_.unit_vecs, numbers, own.of_h);
          if (norm_x()) combine_means(sums_of_x_, active, plan_.unit_vecs, numbers, own.of_x);
          for_each([&](const Cell& at) { differentiate_products(at, own, of_step); });
        }
        barrier.wait();
        this->multiply(0, cell_.gates(), of_step, active, first, last, this->grad_h_);
      }
      for (int64_t n = 0; n < s_.N; ++n) {
        for (int64_t vec = first; vec < last; ++vec) this->store_first(vec, n);
      }
      if (this->has_peephole()) this->store_peephole(first, last);
      store(grad_h_weight_, p_.grad_norm_h, cell_.gates(), first, last);
      store(grad_x_weight_, p_.grad_norm_x, cell_.gates(), first, last);
      store(grad_bias_, p_.grad_bias, cell_.gates(), first, last);
      store(grad_c_weight_, p_.grad_norm_c_weight, 1, first, last);
      store(grad_c_bias_, p_.grad_norm_c_bias, 1, first, last);
    });
  }

 private:
  using Formula = LstmFormula<M, kPlain>;
  // What a thread knows of all samples.
  struct Own {
    OfRows<acc_t> of_h, of_x, of_c;
  };

  bool norm_h() const { return p_.norm.h_weight != nullptr; }
  bool norm_x() const { return p_.norm.x_weight != nullptr; }
  bool norm_c() const { return p_.norm.c_weight != nullptr; }

  int64_t means_pitch() const { return ceil_div(6 * sums_of_c_.pitch, kLine<acc_t>) * kLine<acc_t>; }
  Own own_of(int64_t member) const {
    const int64_t N = sums_of_c_.pitch;
    acc_t* const at = means_ + member * means_pitch();
    return {{at, at + N}, {at + 2 * N, at + 3 * N}, {at + 4 * N, at + 5 * N}};
  }

  void clear(int64_t first, int64_t last) const {
    const auto fill = [&](acc_t* sums, int64_t blocks) {
      for (int64_t k = 0; k < blocks; ++k)
        std::fill(sums + k * plan_.units + first * L, sums + k * plan_.units + last * L, acc_t(0));
    };
    if (this->has_peephole()) fill(this->grad_peephole_, 3);
    for (acc_t* sums : {grad_h_weight_, grad_x_weight_, grad_bias_}) fill(sums, cell_.gates());
    for (acc_t* sums : {grad_c_weight_, grad_c_bias_}) fill(sums, 1);
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
  V normalised(const Cell& at, int64_t gate, const void* saved) const {
    return load_acc(static_cast<const scalar_t*>(saved) + (at.row * cell_.gates() + gate) * s_.H + at.unit,
                    at.count);
  }
  V gain(const Cell& at, int64_t gate, const void* weight) const {
    return load_acc(static_cast<const scalar_t*>(weight) + gate * s_.H + at.unit, at.count);
  }

  // Sums of two products of a vector of units, for the means that a norm's gradient takes. Lanes beyond the
  // last unit hold no numbers.
  void store_sums(const V& of_first, const V& of_second, const Cell& at, const Partial& to) const {
    const bool whole = at.count == L;
    to.set(at.unit / L, at.n, sum_lanes<acc_t>(whole ? of_first : first_lanes<acc_t>(of_first, at.count)),
           sum_lanes<acc_t>(whole ? of_second : first_lanes<acc_t>(of_second, at.count)));
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
    auto v = this->values_at(at, step, formula, !norm_c());
    V made(0), weight(1);
    if (norm_c()) {
      made = normalised_c(at, v.c_made);
      weight = gain(at, 0, p_.norm.c_weight);
      const V seen =
          made * weight + load_or_zero(static_cast<const scalar_t*>(p_.norm.c_bias), at.unit, at.count);
      v.squashed = activate<M>(formula.output(), seen);
    }
    const V& o = v.gates[3];
    (grad_h * v.squashed * slope<M>(formula.gate(), o)).store(of_output_ + at.state);
    V of_seen = grad_h * o * slope<M>(formula.output(), v.squashed);
    if (norm_c()) {
      this->add_to(grad_c_weight_ + at.unit, of_seen * made);
      this->add_to(grad_c_bias_ + at.unit, of_seen);
      of_seen = of_seen * weight;
      store_sums(of_seen, of_seen * made, at, sums_of_c_);
    }
    of_seen.store(of_seen_ + at.state);
  }

  // To the gates.
  void differentiate_c(const Cell& at, int64_t step, const OfRows<acc_t>& means, acc_t* of_step) const {
    const Formula formula = this->formula_at(at);
    const auto v = this->values_at(at, step, formula, false);
    V of_c = V::loadu(of_seen_ + at.state), old(0);
    if (norm_c())
      of_c = V(statistic(at, 2)) * (of_c - means.a(at.n) - normalised_c(at, v.c_made) * means.b(at.n));
    const auto grads =
        formula.backward_of_c(v, V::loadu(of_output_ + at.state), of_c + this->grad_c_at(at, old));
    (grads.c + old).store(this->grad_c_ + at.state);
    this->add_peephole(at, grads.p);
    V sums_h[2]{V(0), V(0)}, sums_x[2]{V(0), V(0)};
    for (int64_t k = this->first_gate(); k < 4; ++k) {
      const int64_t gate = k - this->first_gate();
      const V& grad = grads.gates[k];
      if (norm_h()) {
        add_norm(at, gate, grad, p_.norm.h_weight, p_.normalised, grad_h_weight_, sums_h);
      } else {
        store_product(at, gate, grad, of_step);
      }
      if (norm_x()) {
        add_norm(at, gate, grad, p_.norm.x_weight, p_.normalised_x, grad_x_weight_, sums_x);
        this->add_to(grad_bias_ + gate * plan_.units + at.unit, grad);
      } else {
        this->store_gate(at, gate, grad);
      }
      if (norm_h() || norm_x()) grad.store(of_gates_ + gate * s_.N * plan_.pitch + at.state);
    }
    if (norm_h()) store_sums(sums_h[0], sums_h[1], at, sums_of_h_);
    if (norm_x()) store_sums(sums_x[0], sums_x[1], at, sums_of_x_);
  }

  // Of what h is multiplied to: for this step's product and for the weights' gradient.
  void store_product(const Cell& at, int64_t gate, const V& grad, acc_t* of_step) const {
    Base::store_product(at, gate, grad, of_step);
    if (p_.grad_products == nullptr) return;
    store_acc(static_cast<scalar_t*>(p_.grad_products) + (at.row * cell_.gates() + gate) * s_.H + at.unit, grad,
              at.count);
  }

  // What a gate's gradient adds to its gain's, and to the sums that the norm's gradient takes.
  void add_norm(const Cell& at, int64_t gate, const V& grad, const void* weight, const void* saved,
                acc_t* grad_weight, V (&sums)[2]) const {
    const V made = normalised(at, gate, saved), of_made = grad * gain(at, gate, weight);
    this->add_to(grad_weight + gate * plan_.units + at.unit, grad * made);
    sums[0] = sums[0] + of_made;
    sums[1] = fmadd(of_made, made, sums[1]);
  }

  void differentiate_products(const Cell& at, const Own& own, acc_t* of_step) const {
    for (int64_t gate = 0; gate < cell_.gates(); ++gate) {
      const V of_gate = V::loadu(of_gates_ + gate * s_.N * plan_.pitch + at.state);
      const auto of_products = [&](const void* weight, const void* saved, const OfRows<acc_t>& means,
                                   int64_t k) {
        return V(statistic(at, k)) *
               (of_gate * gain(at, gate, weight) - means.a(at.n) - normalised(at, gate, saved) * means.b(at.n));
      };
      if (norm_h()) {
        store_product(at, gate, of_products(p_.norm.h_weight, p_.normalised, own.of_h, 0), of_step);
      }
      if (norm_x()) this->store_gate(at, gate, of_products(p_.norm.x_weight, p_.normalised_x, own.of_x, 3));
    }
  }

  acc_t *of_output_, *of_seen_;                         // [N][whole vectors of units]
  acc_t* of_gates_;                                     // [gate][N][whole vectors of units]
  acc_t *grad_h_weight_, *grad_x_weight_, *grad_bias_;  // [gate][whole vectors of units]
  acc_t *grad_c_weight_, *grad_c_bias_;                 // [whole vectors of units]
  Partial sums_of_h_, sums_of_x_, sums_of_c_;
  acc_t* means_;  // of each thread, Own
};

}  // namespace fastnn::FASTNN_BACKEND::recurrence
