// What a block does in the steps of a recurrence, forward (recurrence_forward.cu).
#pragma once

#include <cstdint>
#include <type_traits>

#include "../ops/recurrence.h"
#include "../ops/recurrent_cell_math.h"
#include "recurrence_steps.cuh"

namespace fastnn::cuda::recurrence {

template <typename scalar_t>
struct Forward {
  using acc_t = acc_type<scalar_t>;
  Rows rows;
  Plan plan;
  RecurrentCell cell;
  int H;
  const scalar_t* w_hh;
  bool aligned;  // w_hh and its rows, to vectors
  const scalar_t* b_n;
  const scalar_t* peephole;
  RowsOrOne<scalar_t> zoneout_h, zoneout_c;
  const scalar_t* h0;
  const scalar_t* c0;
  scalar_t* gates;
  scalar_t* y;
  scalar_t* record;
  bool save;
  scalar_t* h_n;
  scalar_t* c_n;
  const scalar_t* norm_h;  // [gates H], or null; likewise what follows
  const scalar_t* norm_c_weight;
  const scalar_t* norm_c_bias;
  scalar_t* normalised;
  acc_t* statistics;
  // In the workspace; by slots of all groups.
  unsigned* counters;        // null in clusters
  unsigned char* exchanged;  // likewise; [groups][plan.exchange_bytes]
  acc_t* carry;              // [slots][H]: c, or z between the two products of a step
  acc_t* kept;               // [slots][H][4]: what a normalised cell needs after its group has met

  __host__ __device__ bool normalises() const { return norm_h != nullptr || norm_c_weight != nullptr; }
};

// What a step reads of an item besides its sums.
template <Variant kVariant, typename acc_t>
struct ForwardOperands {
  int64_t row;
  acc_t x[kMostGates<kVariant>];
  acc_t carry, h, zoneout_h, zoneout_c;
};

// One block's work. kVariant is the cell's kind.
template <Variant kVariant, typename scalar_t>
class ForwardSteps {
 public:
  using acc_t = acc_type<scalar_t>;
  using M = CellMath<acc_t>;
  using Loaded = ForwardOperands<kVariant, acc_t>;
  static constexpr int kGates = kMostGates<kVariant>;

  __device__ __forceinline__ ForwardSteps(const Forward<scalar_t>& p, unsigned char* shared)
      : p_(p),
        shared_(shared),
        member_(p.plan, shared, p.exchanged, p.counters),
        active_(member_.samples(p.plan, p.rows)) {}

  __device__ __forceinline__ void run() {
    pack();
    begin_cluster(p_.plan, member_, First<scalar_t>{p_.rows, p_.H, p_.h0});
    __syncthreads();
    Ahead<Loaded> ahead;
    for (step_ = 0; step_ < p_.rows.T; ++step_) {
      active_ = member_.fewer_active(p_.plan, p_.rows, active_, step_);
      if (active_ == 0) break;
      const auto load = [&](const Item& item) { return this->load(item); };
      load_ahead(p_.plan, member_, p_.H, active_, ahead, load);
      member_.wait(p_.plan);
      for_passes(
          p_.plan, member_, p_.H, active_, ahead,
          [&](int first, int samples) { multiply_state(first, samples); }, load,
          [&](const Item& item, const Loaded& loaded) { finish(item, loaded); });
      if constexpr (kVariant == Variant::kReset) {
        member_.arrive(p_.plan);
        const auto load_blend = [&](const Item& item) { return this->load_blend(item); };
        load_ahead(p_.plan, member_, p_.H, active_, ahead, load_blend);
        member_.wait(p_.plan);
        for_passes(
            p_.plan, member_, p_.H, active_, ahead,
            [&](int first, int samples) { multiply_with(kOfReset, first, samples); }, load_blend,
            [&](const Item& item, const Loaded& loaded) { blend(item, loaded); });
      }
      member_.arrive(p_.plan);
    }
    member_.leave(p_.plan);
  }

 protected:
  __device__ __forceinline__ void pack() const {
    for (int k = 0; k < kProducts; ++k) {
      const Product& product = p_.plan.products[k];
      if (product.rows == 0) continue;
      pack_weights<true>(product, reinterpret_cast<scalar_t*>(shared_ + product.weights_at), p_.aligned,
                         [&](int row, int depth, int& count) {
                           const int unit = member_.first_unit + row / product.of.count;
                           const int64_t block = product.of.first + row % product.of.count;
                           count = row < product.rows && unit < p_.H ? p_.H - depth : 0;
                           return p_.w_hh + (block * p_.H + unit) * p_.H + depth;
                         });
    }
  }

  __device__ __forceinline__ int64_t gates() const { return kGates - first_gate(); }
  // The first of the LSTM's four gates that memory has: a coupled cell's has no i.
  __device__ __forceinline__ int first_gate() const {
    return kVariant == Variant::kLstm && p_.cell.coupled ? 1 : 0;
  }
  // What a product of step `step` multiplies.
  __device__ __forceinline__ scalar_t* state(int product, int64_t step) const {
    return member_.state<scalar_t>(p_.plan, p_.plan.products[product], step % 2);
  }
  __device__ __forceinline__ int64_t state_at(int product, const Item& item) const {
    return static_cast<int64_t>(item.slot) * p_.plan.products[product].state_pitch + item.unit;
  }
  __device__ __forceinline__ void give(int product, int64_t step, const Item& item, scalar_t value) const {
    member_.give(p_.plan, state(product, step) + state_at(product, item), value);
  }
  __device__ __forceinline__ int64_t carry_at(const Item& item) const {
    return member_.slot_row(p_.plan, item.slot) * p_.H + item.unit;
  }

  __device__ __forceinline__ void multiply_with(int index, int first, int samples) const {
    const Product& product = p_.plan.products[index];
    multiply(p_.plan, product, state(index, step_) + static_cast<int64_t>(first) * product.state_pitch,
             product.state_pitch, samples, shared_);
  }
  __device__ __forceinline__ void multiply_state(int first, int samples) const {
    if (p_.plan.products[kOfState].rows > 0) multiply_with(kOfState, first, samples);
    if (kVariant == Variant::kReset && p_.plan.products[kOfTanh].rows > 0)
      multiply_with(kOfTanh, first, samples);
  }
  template <int kMost>
  __device__ __forceinline__ void sums_of(int product, const Item& item, acc_t (&sums)[kMost]) const {
    const Product& of = p_.plan.products[product];
    const int count = kVariant == Variant::kLstm || kVariant == Variant::kReset ? of.of.count : kMost;
    add_sums(p_.plan, of, item.in_pass, item.own * count, count, shared_, sums);
  }

  __device__ __forceinline__ Loaded load(const Item& item) const {
    Loaded o{};
    const int64_t sample = member_.sample(p_.plan, item.slot);
    o.row = p_.rows.row(sample, step_);
    const scalar_t* const x = p_.gates + o.row * gates() * p_.H + item.unit;
    // Of a cell that resets, what n has of x is for its second product.
    constexpr int kRead = kVariant == Variant::kReset ? 2 : kGates;
#pragma unroll
    for (int k = 0; k < kRead; ++k) {
      if (k >= first_gate()) o.x[k] = to_acc(x[(k - first_gate()) * static_cast<int64_t>(p_.H)]);
    }
    if constexpr (is_lstm(kVariant)) {
      o.carry = step_ == 0 ? to_acc(p_.c0[p_.rows.state(sample) * p_.H + item.unit]) : p_.carry[carry_at(item)];
      if (kVariant == Variant::kLstm && p_.cell.zoneout_c) o.zoneout_c = p_.zoneout_c.at(o.row, item.unit);
    }
    load_old(item, o, kVariant == Variant::kReset || kVariant == Variant::kGru);
    return o;
  }
  __device__ __forceinline__ Loaded load_blend(const Item& item) const {
    Loaded o{};
    o.row = p_.rows.row(member_.sample(p_.plan, item.slot), step_);
    o.x[0] = to_acc(p_.gates[(o.row * kGates + 2) * p_.H + item.unit]);
    o.carry = p_.carry[carry_at(item)];
    load_old(item, o, true);
    return o;
  }
  __device__ __forceinline__ void load_old(const Item& item, Loaded& o, bool always) const {
    if constexpr (kVariant == Variant::kPlainLstm) return;
    if (p_.cell.zoneout_h) o.zoneout_h = p_.zoneout_h.at(o.row, item.unit);
    if (always || p_.cell.zoneout_h) o.h = to_acc(state(kOfState, step_)[state_at(kOfState, item)]);
  }

  __device__ __forceinline__ void keep_gate(const Loaded& o, int gate, int unit, acc_t value) const {
    p_.gates[(o.row * gates() + gate) * p_.H + unit] = from_acc<scalar_t>(value);
  }
  __device__ __forceinline__ void keep_record(const Loaded& o, int unit, scalar_t value) const {
    if (p_.record != nullptr) p_.record[o.row * p_.H + unit] = value;
  }
  // Whether this is its sample's last step; where the states after it go.
  __device__ __forceinline__ bool ends(const Item& item, int64_t& at) const {
    const int64_t sample = member_.sample(p_.plan, item.slot);
    if (step_ != p_.rows.length(sample) - 1) return false;
    at = p_.rows.state(sample) * p_.H + item.unit;
    return true;
  }
  __device__ __forceinline__ void put_state(const Item& item, const Loaded& o, acc_t h) const {
    const auto seen = from_acc<scalar_t>(h);
    p_.y[o.row * p_.H + item.unit] = seen;
    give(kOfState, step_ + 1, item, seen);
    if (kVariant == Variant::kReset && p_.plan.products[kOfTanh].rows > 0) {
      give(kOfTanh, step_ + 1, item, from_acc<scalar_t>(M::tanh(to_acc(seen))));
    }
    int64_t at;
    if (ends(item, at)) p_.h_n[at] = seen;
  }

  // What follows the product of the state.
  __device__ __forceinline__ void finish(const Item& item, const Loaded& o) const {
    if constexpr (is_lstm(kVariant)) {
      finish_lstm(item, o);
    } else if constexpr (kVariant == Variant::kGru) {
      const GruFormula<M> formula{p_.cell};
      acc_t sums[3];
      sums_of(kOfState, item, sums);
      const acc_t u_n = sums[2] + load_or_zero(p_.b_n, item.unit);
      const auto v = formula.activate_gates(o.x[0] + sums[0], o.x[1] + sums[1], o.x[2], u_n, o.h);
      if (p_.save) {
        keep_gate(o, 0, item.unit, v.r);
        keep_gate(o, 1, item.unit, v.z);
        keep_gate(o, 2, item.unit, v.n);
        keep_record(o, item.unit, from_acc<scalar_t>(u_n));
      }
      put_state(item, o, zoned_out(p_.cell.zoneout_h, o.zoneout_h, o.h, formula.made(v)));
    } else if constexpr (kVariant == Variant::kRnn) {
      acc_t sums[1];
      sums_of(kOfState, item, sums);
      const acc_t made = activate<M>(p_.cell.candidate, o.x[0] + sums[0]);
      if (p_.save) keep_gate(o, 0, item.unit, made);
      put_state(item, o, zoned_out(p_.cell.zoneout_h, o.zoneout_h, o.h, made));
    } else {
      reset(item, o);
    }
  }

  using Formula = LstmFormula<M, kVariant == Variant::kPlainLstm>;
  // The gates of an LSTM and its c, which are kept; `sums`: the products with h of the gates that it has.
  __device__ __forceinline__ typename Formula::Values make_c(const Item& item, const Loaded& o,
                                                             const acc_t (&sums)[4]) const {
    Formula formula{p_.cell};
    if constexpr (kVariant == Variant::kLstm) load_peepholes(p_.cell, p_.peephole, p_.H, item.unit, formula.p);
    const bool coupled = first_gate() == 1;
    const acc_t a[4] = {o.x[0] + sums[0], o.x[1] + (coupled ? sums[0] : sums[1]),
                        o.x[2] + (coupled ? sums[1] : sums[2]), o.x[3] + (coupled ? sums[2] : sums[3])};
    typename Formula::Values v;
    formula.activate_gates(a, o.carry, v);
    const acc_t c = zoned_out(kVariant == Variant::kLstm && p_.cell.zoneout_c, o.zoneout_c, o.carry, v.c_made);
    if (p_.save) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (k >= first_gate()) keep_gate(o, k - first_gate(), item.unit, v.gates[k]);
      }
    }
    p_.carry[carry_at(item)] = c;
    keep_record(o, item.unit, from_acc<scalar_t>(c));
    int64_t at;
    if (ends(item, at)) p_.c_n[at] = from_acc<scalar_t>(c);
    return v;
  }
  __device__ __forceinline__ void make_h(const Item& item, const Loaded& o, acc_t made) const {
    put_state(item, o, zoned_out(kVariant == Variant::kLstm && p_.cell.zoneout_h, o.zoneout_h, o.h, made));
  }
  __device__ __forceinline__ void finish_lstm(const Item& item, const Loaded& o) const {
    acc_t sums[4];
    sums_of(kOfState, item, sums);
    const auto v = make_c(item, o, sums);
    make_h(item, o, v.gates[3] * v.squashed);
  }

  __device__ __forceinline__ void reset(const Item& item, const Loaded& o) const {
    acc_t sums[2] = {}, tanh_sums[1] = {};
    if (p_.plan.products[kOfState].rows > 0) sums_of(kOfState, item, sums);
    if (p_.plan.products[kOfTanh].rows > 0) {
      sums_of(kOfTanh, item, tanh_sums);
      sums[1] = tanh_sums[0];
    }
    const acc_t r = activate<M>(p_.cell.gate, o.x[0] + sums[0]),
                z = activate<M>(p_.cell.gate, o.x[1] + sums[1]);
    const auto reset_h = from_acc<scalar_t>(r * o.h);
    give(kOfReset, step_, item, reset_h);
    p_.carry[carry_at(item)] = z;
    if (p_.save) {
      keep_gate(o, 0, item.unit, r);
      keep_gate(o, 1, item.unit, z);
      keep_record(o, item.unit, reset_h);
    }
  }
  __device__ __forceinline__ void blend(const Item& item, const Loaded& o) const {
    acc_t sums[1];
    sums_of(kOfReset, item, sums);
    const acc_t n = activate<M>(p_.cell.candidate, o.x[0] + sums[0]);
    if (p_.save) keep_gate(o, 2, item.unit, n);
    const acc_t made = BlendFormula<M>{p_.cell}.made(n, o.carry, o.h);
    put_state(item, o, zoned_out(p_.cell.zoneout_h, o.zoneout_h, o.h, made));
  }

  const Forward<scalar_t>& p_;
  unsigned char* const shared_;
  Member member_;
  int active_;  // of the group's samples, those that have this step
  int64_t step_ = 0;
};

}  // namespace fastnn::cuda::recurrence
