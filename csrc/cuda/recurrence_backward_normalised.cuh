// The steps of an LSTM whose products with h, or whose c, are normalised over all units of a sample, backward
// (forward: recurrence_forward_normalised.cuh). A norm's gradient takes the means of what comes to it and of
// its product with what the norm gave: the group meets between h and c, and between the gates and the products.
#pragma once

#include "recurrence_backward_steps.cuh"
#include "recurrence_group_sums.cuh"

namespace fastnn::cuda::recurrence {

template <typename scalar_t>
class NormalisedBackwardSteps : public BackwardSteps<Variant::kLstm, scalar_t> {
  using Base = BackwardSteps<Variant::kLstm, scalar_t>;
  using Base::p_, Base::member_, Base::step_, Base::continued_;
  using typename Base::Formula;

 public:
  using typename Base::acc_t;
  using typename Base::M;
  struct Loaded : Base::Loaded {
    acc_t kept[4];
  };
  using Base::Base;

  __device__ __forceinline__ void run() {
    this->pack();
    begin_cluster(p_.plan, member_, First<scalar_t>{p_.rows, p_.H, nullptr});
    __syncthreads();
    const GroupSums<Pair> products(p_.plan, member_, this->shared_, kOfProducts),
        cells(p_.plan, member_, this->shared_, kOfCell);
    const bool norm_h = p_.norm_h != nullptr, norm_c = p_.norm_c_weight != nullptr;
    const auto nothing = [](int, int) {};
    const auto tell_products = [&](int first, int samples) {
      if (norm_h) products.tell(first, samples, p_.H);
    };
    Ahead<Loaded> ahead;
    for (step_ = p_.rows.T - 1; step_ >= -1; --step_) {
      const int active = step_ < 0 ? continued_ : member_.more_active(p_.plan, p_.rows, continued_, step_);
      if (active == 0) continue;
      const auto load = [&](const Item& item) { return Loaded{Base::load(item), {}}; };
      load_ahead(p_.plan, member_, p_.H, active, ahead, load);
      member_.wait(p_.plan);
      for_passes(
          p_.plan, member_, p_.H, active, ahead,
          [&](int from, int samples) {
            const int after = continued_ - from < samples ? continued_ - from : samples;
            this->multiply_with(kOfState, step_ + 1, from, after);
          },
          load, [&](const Item& item, const Loaded& o) { differentiate_h(item, o, cells, products); },
          [&](int first, int samples) {
            if (step_ < 0) return;
            if (norm_c) {
              cells.tell(first, samples, p_.H);
            } else {
              tell_products(first, samples);
            }
          });
      continued_ = active;
      if (step_ < 0) break;
      const auto load_more = [&](const Item& item) { return this->load_more(item); };
      if (norm_c) {
        member_.arrive(p_.plan);
        load_ahead(p_.plan, member_, p_.H, active, ahead, load_more);
        member_.wait(p_.plan);
        cells.total(active);
        for_passes(
            p_.plan, member_, p_.H, active, ahead, nothing, load_more,
            [&](const Item& item, const Loaded& o) { unnormalise_c(item, o, cells.of(item), products); },
            tell_products);
      }
      if (norm_h) {
        member_.arrive(p_.plan);
        load_ahead(p_.plan, member_, p_.H, active, ahead, load_more);
        member_.wait(p_.plan);
        products.total(active);
        for_passes(
            p_.plan, member_, p_.H, active, ahead, nothing, load_more,
            [&](const Item& item, const Loaded& o) { unnormalise_products(item, o, products.of(item)); });
      }
      member_.arrive(p_.plan);
    }
  }

 private:
  // Sums of what comes to a norm, and of its products with what the norm gave.
  using Pair = Sums<acc_t, 2>;

  __device__ __forceinline__ acc_t* kept(const Item& item) const { return p_.kept + this->carry_at(item) * 4; }
  __device__ __forceinline__ Loaded load_more(const Item& item) const {
    Loaded o{Base::load(item), {}};
    const auto v = load_vec<4>(kept(item), true);
#pragma unroll
    for (int k = 0; k < 4; ++k) o.kept[k] = v.v[k];
    return o;
  }
  __device__ __forceinline__ acc_t statistic(const Loaded& o, int which) const {
    return p_.statistics[o.row * kCellStatistics + which];
  }
  __device__ __forceinline__ acc_t normalised_c(const Loaded& o, acc_t c_made) const {
    return (c_made - statistic(o, 1)) * statistic(o, 2);
  }
  __device__ __forceinline__ int64_t product_at(const Item& item, const Loaded& o, int gate) const {
    return (o.row * this->gates() + gate) * p_.H + item.unit;
  }

  // From h to the output gate and to what it squashes: c, or c normalised.
  __device__ __forceinline__ void differentiate_h(const Item& item, const Loaded& o,
                                                  const GroupSums<Pair>& cells,
                                                  const GroupSums<Pair>& products) const {
    acc_t grad_h, carried(0);
    if (!this->differentiate_state(item, o, grad_h)) return;
    grad_h = zoneout_backward(p_.cell.zoneout_h, o.zoneout_h, grad_h, carried);
    if (this->has_carry_h()) p_.carry_h[this->carry_at(item)] = carried;
    const Formula formula = this->formula_of(item);
    auto v = this->values_of(formula, o);
    const bool norm = p_.norm_c_weight != nullptr;
    acc_t made(0), weight(1);
    if (norm) {
      made = normalised_c(o, v.c_made);
      weight = to_acc(p_.norm_c_weight[item.unit]);
      v.squashed = activate<M>(p_.cell.output, made * weight + load_or_zero(p_.norm_c_bias, item.unit));
    }
    const acc_t out = v.gates[3], of_output = grad_h * v.squashed * slope<M>(p_.cell.gate, out),
                of_seen = grad_h * out * slope<M>(p_.cell.output, v.squashed);
    if (!norm) {
      differentiate_c(item, o, formula, v, of_output, of_seen, products);
      return;
    }
    this->add_step(p_.carry_norm, kNormCarries, kOfCWeight, item, o, of_seen * made);
    this->add_step(p_.carry_norm, kNormCarries, kOfCBias, item, o, of_seen);
    const acc_t of_made = of_seen * weight;
    store_vec(kept(item), Vec<acc_t, 4>{{of_output, of_made}}, true);
    cells.put(item, {{of_made, of_made * made}});
  }
  __device__ __forceinline__ void unnormalise_c(const Item& item, const Loaded& o, const Pair& sums,
                                                const GroupSums<Pair>& products) const {
    const Formula formula = this->formula_of(item);
    const auto v = this->values_of(formula, o);
    const auto all = static_cast<acc_t>(p_.H);
    const acc_t of_c =
        statistic(o, 2) * (o.kept[1] - sums.v[0] / all - normalised_c(o, v.c_made) * (sums.v[1] / all));
    differentiate_c(item, o, formula, v, o.kept[0], of_c, products);
  }
  // To the gates.
  __device__ __forceinline__ void differentiate_c(const Item& item, const Loaded& o, const Formula& formula,
                                                  const typename Formula::Values& v, acc_t of_output,
                                                  acc_t of_c, const GroupSums<Pair>& products) const {
    acc_t old(0);
    const acc_t grad_c = this->gradient_of_c(o, old);
    const auto g = formula.backward_of_c(v, of_output, of_c + grad_c);
    this->carry_on(item, o, g, old);
    Vec<acc_t, 4> of_products{};
    Pair sums{};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k < this->first_gate()) continue;
      const int gate = k - this->first_gate();
      this->keep_gate(o, gate, item.unit, g.gates[k]);
      if (p_.norm_h == nullptr) {
        this->put(kOfState, gate, item, g.gates[k]);
        continue;
      }
      const acc_t made = to_acc(p_.normalised[product_at(item, o, gate)]),
                  of_made = g.gates[k] * to_acc(p_.norm_h[gate * int64_t{p_.H} + item.unit]);
      this->add_step(p_.carry_norm, kNormCarries, kOfGate + gate, item, o, g.gates[k] * made);
      of_products.v[k] = of_made;
      sums = combine(sums, Pair{{of_made, of_made * made}});
    }
    if (p_.norm_h == nullptr) return;
    store_vec(kept(item), of_products, true);
    products.put(item, sums);
  }
  __device__ __forceinline__ void unnormalise_products(const Item& item, const Loaded& o,
                                                       const Pair& sums) const {
    const auto all = static_cast<acc_t>(this->gates() * p_.H);
    const acc_t scale = statistic(o, 0), mean = sums.v[0] / all, mean_with = sums.v[1] / all;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k < this->first_gate()) continue;
      const int gate = k - this->first_gate();
      const int64_t at = product_at(item, o, gate);
      const acc_t grad = scale * (o.kept[k] - mean - to_acc(p_.normalised[at]) * mean_with);
      this->put(kOfState, gate, item, grad);
      p_.grad_products[at] = from_acc<scalar_t>(grad);
    }
  }
};

}  // namespace fastnn::cuda::recurrence
