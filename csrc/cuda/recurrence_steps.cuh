// How blocks go through the steps of a recurrence: what both directions share on the device.
#pragma once

#include <cstdint>

#include "cluster.cuh"
#include "recurrence_product.cuh"

namespace fastnn::cuda::recurrence {

enum class Variant { kPlainLstm, kLstm, kGru, kRnn, kReset };

template <Variant kVariant>
struct VariantTag {
  static constexpr Variant value = kVariant;
};
template <typename F>
Status with_variant(const RecurrentCell& cell, const F& f) {
  switch (cell.kind) {
    case CellKind::kLstm:
      if (cell.is_plain_lstm()) return f(VariantTag<Variant::kPlainLstm>{});
      return f(VariantTag<Variant::kLstm>{});
    case CellKind::kGru:
      return f(VariantTag<Variant::kGru>{});
    case CellKind::kRnn:
      return f(VariantTag<Variant::kRnn>{});
    case CellKind::kReset:
      break;
  }
  return f(VariantTag<Variant::kReset>{});
}

inline constexpr bool is_lstm(Variant variant) {
  return variant == Variant::kPlainLstm || variant == Variant::kLstm;
}
// Blocks of H in a row of gates; an LSTM that is coupled has one less.
template <Variant kVariant>
inline constexpr int kMostGates = is_lstm(kVariant) ? 4 : (kVariant == Variant::kRnn ? 1 : 3);

// Where the sequence's tensors have what.
struct Rows {
  int64_t N, T;
  bool reverse;
  const int64_t* lengths;
  const int64_t* step_rows;
  const int64_t* sample_rows;
  const int64_t* state_rows;

  explicit Rows(const Recurrence& in)
      : N(in.N),
        T(in.T),
        reverse(in.reverse),
        lengths(in.lengths),
        step_rows(in.step_rows),
        sample_rows(in.sample_rows),
        state_rows(in.state_rows) {}

  __device__ __forceinline__ int64_t length(int64_t sample) const {
    return lengths != nullptr ? lengths[sample] : T;
  }
  __device__ __forceinline__ int64_t row(int64_t sample, int64_t step) const {
    const int64_t t = reverse ? length(sample) - 1 - step : step;
    return (step_rows != nullptr ? step_rows[t] : t * N) +
           (sample_rows != nullptr ? sample_rows[sample] : sample);
  }
  __device__ __forceinline__ int64_t state(int64_t sample) const {
    return state_rows != nullptr ? state_rows[sample] : sample;
  }
};

// This block's part, and where its group meets.
struct Member {
  int group, first_unit;
  unsigned* counter;
  unsigned arrivals = 0;

  __device__ __forceinline__ Member(const Plan& plan, unsigned* counters)
      : group(static_cast<int>(blockIdx.x) / plan.blocks),
        first_unit(static_cast<int>(blockIdx.x) % plan.blocks * plan.units),
        counter(counters + group * kCounterWords) {}

  // What the group's blocks have written before they arrive is known after the wait. A block alone is its
  // group.
  __device__ __forceinline__ void arrive(const Plan& plan) {
    if (plan.blocks == 1) {
      __syncthreads();
    } else {
      meet_arrive(counter);
      arrivals += static_cast<unsigned>(plan.blocks);
    }
  }
  __device__ __forceinline__ void wait(const Plan& plan) const {
    if (plan.blocks > 1) meet_wait(counter, arrivals);
  }

  __device__ __forceinline__ int64_t sample(const Plan& plan, int slot) const {
    return static_cast<int64_t>(slot) * plan.groups + group;
  }
  // Of all slots.
  __device__ __forceinline__ int64_t slot_row(const Plan& plan, int slot) const {
    return static_cast<int64_t>(group) * plan.slots + slot;
  }
  // The group's samples that have a step: those of `slots` first ones, if longer ones have been left out.
  __device__ __forceinline__ int fewer_active(const Plan& plan, const Rows& rows, int slots,
                                              int64_t step) const {
    while (slots > 0 && rows.length(sample(plan, slots - 1)) <= step) --slots;
    return slots;
  }
  // The same of steps that go down.
  __device__ __forceinline__ int more_active(const Plan& plan, const Rows& rows, int slots,
                                             int64_t step) const {
    const int all = samples(plan, rows);
    while (slots < all && rows.length(sample(plan, slots)) > step) ++slots;
    return slots;
  }
  __device__ __forceinline__ int samples(const Plan& plan, const Rows& rows) const {
    return static_cast<int>((rows.N - group + plan.groups - 1) / plan.groups);
  }
};

// One unit of one sample in one step.
struct Item {
  int slot;     // of the group
  int in_pass;  // its number among the samples of a pass
  int unit;     // of the layer
  int own;      // of the block
};

// Items that a thread has at a time: what they load is under way together, and for the first ones of a step it
// has been since before the blocks met.
inline constexpr int kAhead = 2;

template <typename Operands>
struct Ahead {
  Operands of[kAhead];
};

// f(i, item) for the thread's items number first_of_thread + i * kThreads of a pass of `samples` from slot
// `first`.
template <typename F>
__device__ __forceinline__ void for_items(const Plan& plan, const Member& member, int H, int first, int samples,
                                          int first_of_thread, const F& f) {
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int number = first_of_thread + i * kThreads;
    const int own = number % plan.units, in_pass = number / plan.units, unit = member.first_unit + own;
    if (in_pass < samples && unit < H) f(i, Item{first + in_pass, in_pass, unit, own});
  }
}

// The operands of the thread's first items of a step.
template <typename Operands, typename Load>
__device__ __forceinline__ void load_ahead(const Plan& plan, const Member& member, int H, int slots,
                                           Ahead<Operands>& ahead, const Load& load) {
  const int samples = slots < plan.pass_samples ? slots : plan.pass_samples;
  for_items(plan, member, H, 0, samples, static_cast<int>(threadIdx.x),
            [&](int i, const Item& item) { ahead.of[i] = load(item); });
}

// Over the first `slots` samples, by passes: multiply(first, samples) of every warp, then
// finish(item, operands) of every item. `ahead` holds what load_ahead() has loaded for them.
template <typename Operands, typename Multiply, typename Load, typename Finish>
__device__ __forceinline__ void for_passes(const Plan& plan, const Member& member, int H, int slots,
                                           Ahead<Operands>& ahead, const Multiply& multiply_pass,
                                           const Load& load, const Finish& finish) {
  for (int first = 0; first < slots; first += plan.pass_samples) {
    const int left = slots - first, samples = left < plan.pass_samples ? left : plan.pass_samples;
    if (first > 0) __syncthreads();  // the sums of the pass before have been read
    multiply_pass(first, samples);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < samples * plan.units; i += kAhead * kThreads) {
      if (first > 0 || i >= kThreads) {
        for_items(plan, member, H, first, samples, i,
                  [&](int k, const Item& item) { ahead.of[k] = load(item); });
      }
      for_items(plan, member, H, first, samples, i,
                [&](int k, const Item& item) { finish(item, ahead.of[k]); });
    }
  }
}

template <typename scalar_t>
__device__ __forceinline__ acc_type<scalar_t> load_or_zero(const scalar_t* p, int64_t at) {
  return p != nullptr ? to_acc(p[at]) : acc_type<scalar_t>(0);
}

// zoneout's d.
template <typename scalar_t>
struct RowsOrOne {
  const scalar_t* data;
  int64_t pitch;
  explicit RowsOrOne(const CellBlock& block)
      : data(static_cast<const scalar_t*>(block.data)), pitch(block.pitch) {}
  __device__ __forceinline__ acc_type<scalar_t> at(int64_t row, int unit) const {
    return load_or_zero(data, row * pitch + unit);
  }
};

// p_i, p_f, p_o of a unit; of a coupled cell there is no p_i.
template <typename scalar_t, typename acc_t>
__device__ __forceinline__ void load_peepholes(const RecurrentCell& cell, const scalar_t* peephole, int H,
                                               int unit, acc_t (&p)[3]) {
  if (!cell.peephole) return;
  const int first = cell.coupled ? 1 : 0;
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    if (k >= first) p[k] = to_acc(peephole[(k - first) * static_cast<int64_t>(H) + unit]);
  }
}

// ---- before the first step ------------------------------------------------------------------------------

// A state that a sample of no steps keeps, or its gradient.
template <typename scalar_t>
struct Kept {
  const scalar_t* from;  // null: zeros
  scalar_t* to;          // null: none
};

// What the blocks of a group exchange before they have met: counters at 0, and the rows that are multiplied
// first, with zeros wherever no state is.
template <typename scalar_t>
struct Begin {
  Rows rows;
  Plan plan;
  int H;
  unsigned* counters;
  scalar_t* exchange;  // zeroed: [zeroed]
  int64_t zeroed;
  const scalar_t* h0;  // null: none is multiplied first
  scalar_t* h;         // [slots][padded], beside what is zeroed
  scalar_t* tanh_h;    // likewise, or null
  Kept<scalar_t> kept[2];
};

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, 1) recurrence_begin_kernel(Begin<scalar_t> p) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  const auto zero = from_acc<scalar_t>(0.0f);
  for (int64_t i = thread; i < int64_t{p.plan.groups} * kCounterWords; i += threads) p.counters[i] = 0;
  for (int64_t i = thread; i < p.zeroed; i += threads) p.exchange[i] = zero;
  if (p.h != nullptr) {
    for (int64_t i = thread; i < p.plan.all_slots() * p.plan.padded; i += threads) {
      const int64_t row = i / p.plan.padded, unit = i % p.plan.padded;
      const int64_t sample = row % p.plan.slots * p.plan.groups + row / p.plan.slots;
      const bool exists = sample < p.rows.N && unit < p.H;
      const scalar_t h = exists ? p.h0[p.rows.state(sample) * p.H + unit] : zero;
      p.h[i] = h;
      if (p.tanh_h != nullptr) p.tanh_h[i] = from_acc<scalar_t>(hyperbolic_tangent(to_acc(h)));
    }
  }
  for (int64_t i = thread; i < p.rows.N * p.H; i += threads) {
    const int64_t sample = i / p.H;
    if (p.rows.length(sample) > 0) continue;
    const int64_t at = p.rows.state(sample) * p.H + i % p.H;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (p.kept[k].to != nullptr) p.kept[k].to[at] = p.kept[k].from != nullptr ? p.kept[k].from[at] : zero;
    }
  }
}

template <typename scalar_t>
Status launch_begin(const char* name, const Begin<scalar_t>& begin, Stream stream) {
  const int64_t most = begin.zeroed + begin.plan.all_slots() * begin.plan.padded;
  const int64_t blocks = ceil_div(most, 4 * kThreads);  // a few elements of a thread
  return launch(name, recurrence_begin_kernel<scalar_t>,
                dim3(static_cast<unsigned>(blocks < kTargetBlocks ? blocks : kTargetBlocks)), dim3(kThreads), 0,
                stream, begin);
}

template <typename scalar_t>
bool rows_are_aligned(const void* matrix, int64_t columns) {
  return columns % kVecSize<scalar_t> == 0 && all_aligned<scalar_t, kVecSize<scalar_t>>({matrix});
}

// Pieces of the workspace, each aligned to what the bindings align it to.
class Pieces {
 public:
  // Where `count` things of `size` bytes begin.
  int64_t add(int64_t count, int64_t size) {
    const int64_t at = bytes_;
    bytes_ += (count * size + 63) / 64 * 64;
    return at;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

}  // namespace fastnn::cuda::recurrence
