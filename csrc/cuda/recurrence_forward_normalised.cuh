// The steps of an LSTM whose products with h, or whose c, are normalised over all units of a sample (Ba et al.
// 2016), forward. Between the product and the gates, and between c and h, the group meets for the sums of all
// units (recurrence_group_sums.cuh); what an item needs after that it keeps in the workspace meanwhile, where
// its thread alone reads it.
#pragma once

#include "recurrence_forward_steps.cuh"
#include "recurrence_group_sums.cuh"

namespace fastnn::cuda::recurrence {

template <typename scalar_t>
class NormalisedForwardSteps : public ForwardSteps<Variant::kLstm, scalar_t> {
  using Base = ForwardSteps<Variant::kLstm, scalar_t>;
  using Base::p_, Base::member_, Base::step_, Base::active_;

 public:
  using typename Base::acc_t;
  using typename Base::M;
  struct Loaded : Base::Loaded {
    acc_t kept[4];
  };
  // What is under way while the group's product is made: registers are short there.
  struct Nothing {};
  using Base::Base;

  __device__ __forceinline__ void run() {
    this->pack();
    begin_cluster(p_.plan, member_, First<scalar_t>{p_.rows, p_.H, p_.h0});
    __syncthreads();
    const GroupSums<Moments<acc_t>> products(p_.plan, member_, this->shared_, kOfProducts),
        cells(p_.plan, member_, this->shared_, kOfCell);
    const bool norm_h = p_.norm_h != nullptr, norm_c = p_.norm_c_weight != nullptr;
    const auto nothing = [](int, int) {};
    Ahead<Nothing> none;
    Ahead<Loaded> ahead;
    for (step_ = 0; step_ < p_.rows.T; ++step_) {
      active_ = member_.fewer_active(p_.plan, p_.rows, active_, step_);
      if (active_ == 0) break;
      member_.wait(p_.plan);
      for_passes(
          p_.plan, member_, p_.H, active_, none,
          [&](int first, int samples) { this->multiply_state(first, samples); },
          [](const Item&) { return Nothing{}; },
          [&](const Item& item, const Nothing&) { keep_products(item, products); },
          [&](int first, int samples) {
            if (norm_h) products.tell(first, samples, p_.H);
          });
      if (norm_h) member_.arrive(p_.plan);
      const auto load = [&](const Item& item) { return this->load(item); };
      load_ahead(p_.plan, member_, p_.H, active_, ahead, load);
      if (norm_h) {
        member_.wait(p_.plan);
        products.total(active_);
      }
      for_passes(
          p_.plan, member_, p_.H, active_, ahead, nothing, load,
          [&](const Item& item, const Loaded& o) { make_c_of_products(item, o, products, cells); },
          [&](int first, int samples) {
            if (norm_c) cells.tell(first, samples, p_.H);
          });
      if (norm_c) {
        member_.arrive(p_.plan);
        const auto load = [&](const Item& item) { return this->load_made(item); };
        load_ahead(p_.plan, member_, p_.H, active_, ahead, load);
        member_.wait(p_.plan);
        cells.total(active_);
        for_passes(p_.plan, member_, p_.H, active_, ahead, nothing, load,
                   [&](const Item& item, const Loaded& o) { finish_h(item, o, cells.of(item)); });
      }
      member_.arrive(p_.plan);
    }
    member_.leave(p_.plan);
  }

 private:
  using Cells = GroupSums<Moments<acc_t>>;

  static __device__ __forceinline__ acc_t scale_of(const Moments<acc_t>& m) {
    return acc_t(1) / sqrt(m.m2 / m.count + static_cast<acc_t>(kCellNormEps));
  }
  __device__ __forceinline__ acc_t* kept(const Item& item) const { return p_.kept + this->carry_at(item) * 4; }
  __device__ __forceinline__ void load_kept(const Item& item, Loaded& o) const {
    const auto v = load_vec<4>(kept(item), true);
#pragma unroll
    for (int k = 0; k < 4; ++k) o.kept[k] = v.v[k];
  }
  __device__ __forceinline__ Loaded load(const Item& item) const {
    Loaded o{Base::load(item), {}};
    load_kept(item, o);
    return o;
  }
  __device__ __forceinline__ Loaded load_made(const Item& item) const {
    Loaded o{};
    o.row = p_.rows.row(member_.sample(p_.plan, item.slot), step_);
    load_kept(item, o);
    this->load_old(item, o, false);
    return o;
  }
  __device__ __forceinline__ void keep_statistic(const Item& item, const Loaded& o, int which,
                                                 acc_t value) const {
    if (p_.save && item.unit == 0) p_.statistics[o.row * kCellStatistics + which] = value;
  }

  __device__ __forceinline__ void keep_products(const Item& item, const Cells& products) const {
    acc_t sums[4];
    this->sums_of(kOfState, item, sums);
    Vec<acc_t, 4> all{};
    Moments<acc_t> moments{};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k >= this->gates()) continue;
      all.v[k] = sums[k];
      moments = combine(moments, Moments<acc_t>{acc_t(1), sums[k], acc_t(0)});
    }
    store_vec(kept(item), all, true);
    products.put(item, moments);
  }
  __device__ __forceinline__ void make_c_of_products(const Item& item, const Loaded& o, const Cells& products,
                                                     const Cells& cells) const {
    if (p_.norm_h == nullptr) {
      finish_c(item, o, o.kept, cells);
      return;
    }
    const Moments<acc_t> moments = products.of(item);
    const acc_t scale = scale_of(moments);
    acc_t scaled[4] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k >= this->gates()) continue;
      const acc_t normalised = (o.kept[k] - moments.mean) * scale;
      const int64_t at = k * int64_t{p_.H} + item.unit;
      if (p_.save) p_.normalised[o.row * this->gates() * p_.H + at] = from_acc<scalar_t>(normalised);
      scaled[k] = normalised * to_acc(p_.norm_h[at]);
    }
    keep_statistic(item, o, 0, scale);
    finish_c(item, o, scaled, cells);
  }
  __device__ __forceinline__ void finish_c(const Item& item, const Loaded& o, const acc_t (&products)[4],
                                           const Cells& cells) const {
    const auto v = this->make_c(item, o, products);
    if (p_.norm_c_weight == nullptr) {
      this->make_h(item, o, v.gates[3] * v.squashed);
      return;
    }
    store_vec(kept(item), Vec<acc_t, 4>{{v.c_made, v.gates[3]}}, true);
    cells.put(item, {acc_t(1), v.c_made, acc_t(0)});
  }
  __device__ __forceinline__ void finish_h(const Item& item, const Loaded& o,
                                           const Moments<acc_t>& moments) const {
    const acc_t scale = scale_of(moments), normalised = (o.kept[0] - moments.mean) * scale;
    keep_statistic(item, o, 1, moments.mean);
    keep_statistic(item, o, 2, scale);
    const acc_t seen =
        normalised * to_acc(p_.norm_c_weight[item.unit]) + load_or_zero(p_.norm_c_bias, item.unit);
    this->make_h(item, o, o.kept[1] * activate<M>(p_.cell.output, seen));
  }
};

}  // namespace fastnn::cuda::recurrence
