// What a block does in the steps of a recurrence, backward (recurrence_backward.cu).
#pragma once

#include <cstdint>
#include <type_traits>

#include "../ops/recurrence.h"
#include "../ops/recurrent_cell_math.h"
#include "recurrence_steps.cuh"

namespace fastnn::cuda::recurrence {

// Sums over the steps: of peepholes, those of i, f and o; of a normalised cell, gains of the gates, gain and
// bias of c.
inline constexpr int kPeepholeCarries = 3;
enum NormCarry { kOfGate, kOfCWeight = 4, kOfCBias, kNormCarries };

template <typename scalar_t>
struct Backward {
  using acc_t = acc_type<scalar_t>;
  Rows rows;
  Plan plan;
  RecurrentCell cell;
  int H;
  const scalar_t* w_hh;
  bool aligned;  // w_hh and its rows, to vectors
  const scalar_t* peephole;
  RowsOrOne<scalar_t> zoneout_h, zoneout_c;
  const scalar_t* h0;
  const scalar_t* c0;
  const scalar_t* y;
  const scalar_t* gates;
  const scalar_t* record;
  const scalar_t* grad_y;
  const scalar_t* grad_c;
  const scalar_t* grad_h_n;
  const scalar_t* grad_c_n;
  scalar_t* grad_gates;
  scalar_t* grad_u_n;
  scalar_t* grad_h0;
  scalar_t* grad_c0;
  scalar_t* grad_peephole;
  const scalar_t* norm_h;  // [gates H], or null; likewise what follows
  const scalar_t* norm_c_weight;
  const scalar_t* norm_c_bias;
  const scalar_t* normalised;
  const acc_t* statistics;
  scalar_t* grad_products;
  scalar_t* grad_norm_h;
  scalar_t* grad_norm_c_weight;
  scalar_t* grad_norm_c_bias;
  // In the workspace; by slots of all groups.
  unsigned* counters;        // null in clusters
  unsigned char* exchanged;  // likewise; [groups][plan.exchange_bytes]: rows of [blocks of W_hh][padded]
  acc_t* carry_h;            // [slots][H]: what the gradient of h has besides products
  acc_t* carry_c;            // likewise: the gradient of c, or of z between the two parts of a step
  // Gradients of what all samples and steps share, summed over the steps.
  acc_t* carry_peephole;  // [slots][kPeepholeCarries][H]
  acc_t* carry_norm;      // [slots][kNormCarries][H]
  acc_t* kept;            // [slots][H][4]: what a normalised cell needs after its group has met

  __host__ __device__ bool normalises() const { return norm_h != nullptr || norm_c_weight != nullptr; }
};

// What a step reads of an item besides its sums; h_before and c_before are the states before the step.
template <Variant kVariant, typename acc_t>
struct BackwardOperands {
  int64_t row;
  bool begins, ends;  // whether this is its sample's last step; whether all its steps are done
  acc_t gates[kMostGates<kVariant>];
  acc_t carry_h, carry_c, grad_y, grad_c, record, h_before, c_before, zoneout_h, zoneout_c, h;
};

template <Variant kVariant, typename scalar_t>
class BackwardSteps {
 public:
  using acc_t = acc_type<scalar_t>;
  using M = CellMath<acc_t>;
  using Loaded = BackwardOperands<kVariant, acc_t>;
  static constexpr int kGates = kMostGates<kVariant>;
  static constexpr bool kLstm = is_lstm(kVariant), kReset = kVariant == Variant::kReset;

  __device__ __forceinline__ BackwardSteps(const Backward<scalar_t>& p, unsigned char* shared)
      : p_(p), shared_(shared), member_(p.plan, shared, p.exchanged, p.counters) {}

  __device__ __forceinline__ void run() {
    pack();
    begin_cluster(p_.plan, member_, First<scalar_t>{p_.rows, p_.H, nullptr});
    __syncthreads();
    Ahead<Loaded> ahead;
    // After the first step there is one more product, that of the gradients of h0.
    for (step_ = p_.rows.T - 1; step_ >= -1; --step_) {
      const int active = step_ < 0 ? continued_ : member_.more_active(p_.plan, p_.rows, continued_, step_);
      if (active == 0) continue;
      const auto load = [&](const Item& item) { return this->load(item); };
      load_ahead(p_.plan, member_, p_.H, active, ahead, load);
      member_.wait(p_.plan);
      for_passes(
          p_.plan, member_, p_.H, active, ahead,
          [&](int from, int samples) {
            const int after = continued_ - from < samples ? continued_ - from : samples;
            multiply_with(kOfState, step_ + 1, from, after);
            if (kReset) multiply_with(kOfTanh, step_ + 1, from, after);
          },
          load, [&](const Item& item, const Loaded& loaded) { differentiate(item, loaded); });
      continued_ = active;
      if (step_ < 0) break;
      member_.arrive(p_.plan);
      if constexpr (kReset) {
        const auto load_reset = [&](const Item& item) { return this->load_reset(item); };
        load_ahead(p_.plan, member_, p_.H, active, ahead, load_reset);
        member_.wait(p_.plan);
        for_passes(
            p_.plan, member_, p_.H, active, ahead,
            [&](int from, int samples) { multiply_with(kOfReset, step_, from, samples); }, load_reset,
            [&](const Item& item, const Loaded& loaded) { differentiate_reset(item, loaded); });
        member_.arrive(p_.plan);
      }
    }
  }

 protected:
  __device__ __forceinline__ void pack() const {
    for (int k = 0; k < kProducts; ++k) {
      const Product& product = p_.plan.products[k];
      if (product.rows == 0) continue;
      pack_weights<false>(product, reinterpret_cast<scalar_t*>(shared_ + product.weights_at), p_.aligned,
                          [&](int row, int depth, int& count) {
                            const int unit = member_.first_unit + row, other = depth % p_.plan.padded;
                            const int64_t block = product.of.first + depth / p_.plan.padded;
                            const int left =
                                product.rows - row < p_.H - unit ? product.rows - row : p_.H - unit;
                            count = other < p_.H ? left : 0;
                            return p_.w_hh + (block * p_.H + other) * p_.H + unit;
                          });
    }
  }

  // The first of the LSTM's four gates that memory has: a coupled cell's has no i.
  __device__ __forceinline__ int first_gate() const {
    return kVariant == Variant::kLstm && p_.cell.coupled ? 1 : 0;
  }
  __device__ __forceinline__ int64_t gates() const { return kGates - first_gate(); }
  __device__ __forceinline__ int64_t carry_at(const Item& item) const {
    return member_.slot_row(p_.plan, item.slot) * p_.H + item.unit;
  }

  // The gates' gradients of a step that a product multiplies.
  __device__ __forceinline__ scalar_t* of_step(const Product& product, int64_t step) const {
    return member_.state<scalar_t>(p_.plan, product, step % 2);
  }
  __device__ __forceinline__ void multiply_with(int index, int64_t step, int first, int samples) const {
    const Product& product = p_.plan.products[index];
    if (product.rows == 0) return;
    multiply(p_.plan, product, of_step(product, step) + static_cast<int64_t>(first) * product.state_pitch,
             product.state_pitch, samples, shared_);
  }
  __device__ __forceinline__ acc_t sum_of(int product, const Item& item) const {
    acc_t sum[1];
    add_sums(p_.plan, p_.plan.products[product], item.in_pass, item.own, 1, shared_, sum);
    return sum[0];
  }

  // `from` after the step, or `first` where there is no step.
  __device__ __forceinline__ acc_t state(const scalar_t* from, const scalar_t* first, int64_t sample,
                                         int64_t step, int unit) const {
    return step >= 0 ? to_acc(from[p_.rows.row(sample, step) * p_.H + unit])
                     : to_acc(first[p_.rows.state(sample) * p_.H + unit]);
  }
  __device__ __forceinline__ void load_gates(Loaded& o, int unit) const {
    const scalar_t* const from = p_.gates + o.row * gates() * p_.H + unit;
#pragma unroll
    for (int k = 0; k < kGates; ++k) {
      if (k >= first_gate()) o.gates[k] = to_acc(from[(k - first_gate()) * static_cast<int64_t>(p_.H)]);
    }
  }

  __device__ __forceinline__ Loaded load(const Item& item) const {
    Loaded o{};
    const int64_t sample = member_.sample(p_.plan, item.slot), length = p_.rows.length(sample);
    o.begins = step_ == length - 1;
    o.ends = step_ < 0;
    if (o.begins) {
      const int64_t at = p_.rows.state(sample) * p_.H + item.unit;
      o.carry_h = load_or_zero(p_.grad_h_n, at);
      if (kLstm) o.carry_c = load_or_zero(p_.grad_c_n, at);
    } else {
      if (has_carry_h()) o.carry_h = p_.carry_h[carry_at(item)];
      if (kLstm) o.carry_c = p_.carry_c[carry_at(item)];
    }
    if (kReset && p_.plan.products[kOfTanh].rows > 0) o.h = state(p_.y, p_.h0, sample, step_, item.unit);
    if (o.ends) return o;
    o.row = p_.rows.row(sample, step_);
    load_gates(o, item.unit);
    o.grad_y = load_or_zero(p_.grad_y, o.row * p_.H + item.unit);
    if constexpr (kLstm) {
      o.grad_c = load_or_zero(p_.grad_c, o.row * p_.H + item.unit);
      o.c_before = state(p_.record, p_.c0, sample, step_ - 1, item.unit);
    }
    if constexpr (kLstm || kVariant == Variant::kGru) o.record = to_acc(p_.record[o.row * p_.H + item.unit]);
    if constexpr (kVariant == Variant::kGru || kReset)
      o.h_before = state(p_.y, p_.h0, sample, step_ - 1, item.unit);
    if constexpr (kVariant != Variant::kPlainLstm) {
      if (p_.cell.zoneout_h) o.zoneout_h = p_.zoneout_h.at(o.row, item.unit);
      if (kLstm && p_.cell.zoneout_c) o.zoneout_c = p_.zoneout_c.at(o.row, item.unit);
    }
    return o;
  }
  __device__ __forceinline__ Loaded load_reset(const Item& item) const {
    Loaded o{};
    const int64_t sample = member_.sample(p_.plan, item.slot);
    o.row = p_.rows.row(sample, step_);
    load_gates(o, item.unit);
    o.h_before = state(p_.y, p_.h0, sample, step_ - 1, item.unit);
    o.carry_h = p_.carry_h[carry_at(item)];
    o.carry_c = p_.carry_c[carry_at(item)];
    return o;
  }
  // Whether the gradient of h has a part that no product gives.
  __device__ __forceinline__ bool has_carry_h() const {
    return kVariant == Variant::kGru || kReset || (kVariant != Variant::kPlainLstm && p_.cell.zoneout_h);
  }

  __device__ __forceinline__ void keep_gate(const Loaded& o, int gate, int unit, acc_t grad) const {
    p_.grad_gates[(o.row * gates() + gate) * p_.H + unit] = from_acc<scalar_t>(grad);
  }
  // A gradient that a product takes, of the product's block number `block`.
  __device__ __forceinline__ void put(int index, int block, const Item& item, acc_t grad) const {
    const Product& product = p_.plan.products[index];
    scalar_t* const to = of_step(product, step_) + static_cast<int64_t>(item.slot) * product.state_pitch;
    member_.give(p_.plan, to + block * p_.plan.padded + item.unit, from_acc<scalar_t>(grad));
  }

  // The gradient of the state after the step, by all ways but zoneout's. False after the last step: it is that
  // of the first state.
  __device__ __forceinline__ bool differentiate_state(const Item& item, const Loaded& o, acc_t& grad_h) const {
    grad_h = o.carry_h;
    if (!o.begins) {
      if (!kReset || p_.plan.products[kOfState].rows > 0) grad_h += sum_of(kOfState, item);
      if (kReset && p_.plan.products[kOfTanh].rows > 0) {
        const acc_t seen = M::tanh(o.h);
        grad_h += sum_of(kOfTanh, item) * (acc_t(1) - seen * seen);
      }
    }
    if (o.ends) {
      const int64_t at = p_.rows.state(member_.sample(p_.plan, item.slot)) * p_.H + item.unit;
      p_.grad_h0[at] = from_acc<scalar_t>(grad_h);
      if (kLstm) p_.grad_c0[at] = from_acc<scalar_t>(o.carry_c);
      return false;
    }
    grad_h += o.grad_y;
    return true;
  }
  // What follows the product that gives it.
  __device__ __forceinline__ void differentiate(const Item& item, const Loaded& o) const {
    acc_t grad_h, carried(0);
    if (!differentiate_state(item, o, grad_h)) return;
    const bool zoneout_h = kVariant != Variant::kPlainLstm && p_.cell.zoneout_h;
    grad_h = zoneout_backward(zoneout_h, o.zoneout_h, grad_h, carried);
    if constexpr (kLstm) {
      differentiate_lstm(item, o, grad_h);
    } else if constexpr (kVariant == Variant::kGru) {
      const GruFormula<M> formula{p_.cell};
      const auto g = formula.backward({o.gates[0], o.gates[1], o.gates[2], o.record, o.h_before}, grad_h);
      keep_gate(o, 0, item.unit, g.a_r);
      keep_gate(o, 1, item.unit, g.a_z);
      keep_gate(o, 2, item.unit, g.x_n);
      p_.grad_u_n[o.row * p_.H + item.unit] = from_acc<scalar_t>(g.u_n);
      put(kOfState, 0, item, g.a_r);
      put(kOfState, 1, item, g.a_z);
      put(kOfState, 2, item, g.u_n);
      carried += g.h;
    } else if constexpr (kVariant == Variant::kRnn) {
      const acc_t grad = grad_h * slope<M>(p_.cell.candidate, o.gates[0]);
      keep_gate(o, 0, item.unit, grad);
      put(kOfState, 0, item, grad);
    } else {
      const auto g = BlendFormula<M>{p_.cell}.backward(o.gates[2], o.gates[1], o.h_before, grad_h);
      keep_gate(o, 2, item.unit, g.a_n);
      put(kOfReset, 0, item, g.a_n);
      p_.carry_c[carry_at(item)] = g.z;
      carried += g.h;
    }
    if (has_carry_h()) p_.carry_h[carry_at(item)] = carried;
  }

  using Formula = LstmFormula<M, kVariant == Variant::kPlainLstm>;
  __device__ __forceinline__ Formula formula_of(const Item& item) const {
    Formula formula{p_.cell};
    if constexpr (kVariant == Variant::kLstm) load_peepholes(p_.cell, p_.peephole, p_.H, item.unit, formula.p);
    return formula;
  }
  // What forward had, of what it has left.
  __device__ __forceinline__ typename Formula::Values values_of(const Formula& formula, const Loaded& o) const {
    typename Formula::Values v;
#pragma unroll
    for (int k = 0; k < 4; ++k) v.gates[k] = o.gates[k];
    if (first_gate() == 1) v.gates[0] = acc_t(1) - v.gates[1];
    v.c = o.c_before;
    if (kVariant == Variant::kLstm && p_.cell.zoneout_c) {
      // The state that was made is not the one that was kept.
      formula.make_c(v);
    } else {
      v.c_made = o.record;
      formula.squash(v);
    }
    return v;
  }
  // The gradient of the c that was made, from the c after it; `old`: that of the c before, by zoneout.
  __device__ __forceinline__ acc_t gradient_of_c(const Loaded& o, acc_t& old) const {
    return zoneout_backward(kVariant == Variant::kLstm && p_.cell.zoneout_c, o.zoneout_c, o.carry_c + o.grad_c,
                            old);
  }
  // A sum over steps, of `of_slot` such of each slot.
  __device__ __forceinline__ void add_step(acc_t* sums, int of_slot, int which, const Item& item,
                                           const Loaded& o, acc_t value) const {
    acc_t* const sum = sums + (member_.slot_row(p_.plan, item.slot) * of_slot + which) * p_.H + item.unit;
    *sum = o.begins ? value : *sum + value;
  }
  // What the gates' gradients leave besides themselves.
  __device__ __forceinline__ void carry_on(const Item& item, const Loaded& o, const typename Formula::Grads& g,
                                           acc_t old) const {
    p_.carry_c[carry_at(item)] = g.c + old;
    if (kVariant == Variant::kLstm && p_.carry_peephole != nullptr) {
#pragma unroll
      for (int k = 0; k < 3; ++k) add_step(p_.carry_peephole, kPeepholeCarries, k, item, o, g.p[k]);
    }
  }

  __device__ __forceinline__ void differentiate_lstm(const Item& item, const Loaded& o, acc_t grad_h) const {
    const Formula formula = formula_of(item);
    const auto v = values_of(formula, o);
    acc_t old(0);
    const acc_t grad_c = gradient_of_c(o, old);
    const auto g = formula.backward(v, grad_h, grad_c);
    carry_on(item, o, g, old);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k >= first_gate()) {
        keep_gate(o, k - first_gate(), item.unit, g.gates[k]);
        put(kOfState, k - first_gate(), item, g.gates[k]);
      }
    }
  }

  // What follows the product that gives the gradient of r * h.
  __device__ __forceinline__ void differentiate_reset(const Item& item, const Loaded& o) const {
    const acc_t grad = sum_of(kOfReset, item), r = o.gates[0], z = o.gates[1];
    const acc_t a_r = grad * o.h_before * slope<M>(p_.cell.gate, r),
                a_z = o.carry_c * slope<M>(p_.cell.gate, z);
    keep_gate(o, 0, item.unit, a_r);
    keep_gate(o, 1, item.unit, a_z);
    put(kOfState, 0, item, a_r);
    if (p_.plan.products[kOfTanh].rows > 0) {
      put(kOfTanh, 0, item, a_z);
    } else if (p_.plan.products[kOfState].of.count == 2) {
      put(kOfState, 1, item, a_z);
    }
    p_.carry_h[carry_at(item)] = o.carry_h + grad * r;
  }

  const Backward<scalar_t>& p_;
  unsigned char* const shared_;
  Member member_;
  int continued_ = 0;  // of the group's samples, those that have the step after this one
  int64_t step_ = 0;
};

}  // namespace fastnn::cuda::recurrence
