// How blocks go through the steps of a recurrence: what both directions share on the device.
#pragma once

#include <cstdint>

#include "cluster.cuh"
#include "recurrence_product.cuh"

namespace fastnn::cuda::recurrence {

enum class Variant { kPlainLstm, kLstm, kNormalisedLstm, kGru, kRnn, kReset };

template <Variant kVariant>
struct VariantTag {
  static constexpr Variant value = kVariant;
};
template <typename F>
Status with_variant(const RecurrentCell& cell, bool normalised, const F& f) {
  switch (cell.kind) {
    case CellKind::kLstm:
      if (normalised) return f(VariantTag<Variant::kNormalisedLstm>{});
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

// This block's part, where its group meets, and what its blocks give each other. Which way they do that is no
// template's parameter: it would double the kernels, and loads that are told apart by their address cost a few
// cycles of a step's thousand.
struct Member {
  int group, rank, first_unit;
  unsigned char* exchanged;  // Plan::exchange_bytes
  unsigned* counter;         // null in a cluster
  unsigned arrivals = 0;
  bool met = true;  // whether all arrivals of this block have been waited for

  // `shared` is the block's, `workspace` what all groups exchange in theirs.
  __device__ __forceinline__ Member(const Plan& plan, unsigned char* shared, unsigned char* workspace,
                                    unsigned* counters)
      : group(static_cast<int>(blockIdx.x) / plan.blocks),
        rank(static_cast<int>(blockIdx.x) % plan.blocks),
        first_unit(rank * plan.units) {
    const bool cluster = plan.exchange == Exchange::kCluster;
    exchanged = cluster ? shared : workspace + group * plan.exchange_bytes;
    counter = cluster ? nullptr : counters + group * kCounterWords;
  }

  // What the group's blocks have written before they arrive is known after the wait. A block alone is its
  // group.
  __device__ __forceinline__ void arrive(const Plan& plan) {
    if (plan.blocks == 1) {
      __syncthreads();
      return;
    }
    met = false;
    if (plan.exchange == Exchange::kCluster) {
      cluster_arrive();
    } else {
      meet_arrive(counter);
      arrivals += static_cast<unsigned>(plan.blocks);
    }
  }
  __device__ __forceinline__ void wait(const Plan& plan) {
    if (met) return;
    met = true;
    if (plan.exchange == Exchange::kCluster) {
      cluster_wait();
    } else {
      meet_wait(counter, arrivals);
    }
  }
  // Before a block of a cluster ends the others must have written the last of what they give it.
  __device__ __forceinline__ void leave(const Plan& plan) {
    if (plan.exchange == Exchange::kCluster) wait(plan);
  }

  // [slots][state_pitch] of a product's operands.
  template <typename scalar_t>
  __device__ __forceinline__ scalar_t* state(const Plan& plan, const Product& product, int64_t copy) const {
    return reinterpret_cast<scalar_t*>(exchanged + product.exchange_at) +
           (product.copies == 1 ? 0 : copy) * plan.slots * product.state_pitch;
  }
  // To all blocks of the group, the next ones first: each then hears of one at a time.
  template <typename scalar_t>
  __device__ __forceinline__ void give(const Plan& plan, scalar_t* to, scalar_t value) const {
    *to = value;
    if (plan.exchange == Exchange::kL2) return;
    for (int k = 1; k < plan.blocks; ++k) {
      const int other = rank + k < plan.blocks ? rank + k : rank + k - plan.blocks;
      *map_shared_rank(to, static_cast<unsigned>(other)) = value;
    }
  }

  __device__ __forceinline__ int64_t sample(const Plan& plan, int slot) const {
    return static_cast<int64_t>(slot) * plan.groups + group;
  }
  // Of all groups' slots.
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
// finish(item, operands) of every item, then conclude(first, samples) of every warp. `ahead` holds what
// load_ahead() has loaded for them.
template <typename Operands, typename Multiply, typename Load, typename Finish, typename Conclude>
__device__ __forceinline__ void for_passes(const Plan& plan, const Member& member, int H, int slots,
                                           Ahead<Operands>& ahead, const Multiply& multiply_pass,
                                           const Load& load, const Finish& finish, const Conclude& conclude) {
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
    conclude(first, samples);
  }
}
template <typename Operands, typename Multiply, typename Load, typename Finish>
__device__ __forceinline__ void for_passes(const Plan& plan, const Member& member, int H, int slots,
                                           Ahead<Operands>& ahead, const Multiply& multiply_pass,
                                           const Load& load, const Finish& finish) {
  for_passes(plan, member, H, slots, ahead, multiply_pass, load, finish, [](int, int) {});
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

// What a group exchanges at first: zeros wherever no state is, and forward the state that is multiplied first.
template <typename scalar_t>
struct First {
  Rows rows;
  int H;
  const scalar_t* h0;  // null: none

  // Element i of those of a group.
  __device__ __forceinline__ scalar_t at(const Plan& plan, int group, int64_t i) const {
    const auto zero = from_acc<scalar_t>(0.0f);
    if (h0 == nullptr) return zero;
    for (const int index : {int{kOfState}, int{kOfTanh}}) {
      const Product& product = plan.products[index];
      const int64_t in = i - product.exchange_at / static_cast<int64_t>(sizeof(scalar_t));
      if (product.copies == 0 || in < 0 || in >= int64_t{plan.slots} * product.state_pitch) continue;
      const int64_t sample = in / product.state_pitch * plan.groups + group, unit = in % product.state_pitch;
      if (sample >= rows.N || unit >= H) return zero;
      const scalar_t h = h0[rows.state(sample) * H + unit];
      return index == kOfTanh ? from_acc<scalar_t>(hyperbolic_tangent(to_acc(h))) : h;
    }
    return zero;
  }
};

// A block of a cluster makes its own; nobody gives it anything before all have begun.
template <typename scalar_t>
__device__ __forceinline__ void begin_cluster(const Plan& plan, Member& member, const First<scalar_t>& first) {
  if (plan.exchange != Exchange::kCluster) return;
  auto* const to = reinterpret_cast<scalar_t*>(member.exchanged);
  for (int64_t i = threadIdx.x; i < plan.exchange_bytes / static_cast<int64_t>(sizeof(scalar_t));
       i += kThreads) {
    to[i] = first.at(plan, member.group, i);
  }
  member.arrive(plan);
  member.wait(plan);
}

// Otherwise a kernel of its own, which sets the counters to 0 too; and the states of samples without steps.
template <typename scalar_t>
struct Begin {
  Plan plan;
  First<scalar_t> first;
  unsigned char* exchanged;
  unsigned* counters;
  Kept<scalar_t> kept[2];
};

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, 1) recurrence_begin_kernel(Begin<scalar_t> p) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  if (p.plan.exchange == Exchange::kL2) {
    for (int64_t i = thread; i < int64_t{p.plan.groups} * kCounterWords; i += threads) p.counters[i] = 0;
    const int64_t of_group = p.plan.exchange_bytes / static_cast<int64_t>(sizeof(scalar_t));
    for (int64_t i = thread; i < of_group * p.plan.groups; i += threads) {
      reinterpret_cast<scalar_t*>(p.exchanged)[i] =
          p.first.at(p.plan, static_cast<int>(i / of_group), i % of_group);
    }
  }
  const Rows& rows = p.first.rows;
  const int64_t H = p.first.H;
  for (int64_t i = thread; i < rows.N * H; i += threads) {
    const int64_t sample = i / H;
    if (rows.length(sample) > 0) continue;
    const int64_t at = rows.state(sample) * H + i % H;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (p.kept[k].to != nullptr) {
        p.kept[k].to[at] = p.kept[k].from != nullptr ? p.kept[k].from[at] : from_acc<scalar_t>(0.0f);
      }
    }
  }
}

template <typename scalar_t>
Status launch_begin(const char* name, const Begin<scalar_t>& begin, Stream stream) {
  const Plan& plan = begin.plan;
  // In a cluster only samples without steps are left to it.
  const Rows& rows = begin.first.rows;
  if (plan.exchange == Exchange::kCluster && rows.T > 0 && rows.lengths == nullptr) return Status::success();
  const int64_t exchanged = plan.exchange == Exchange::kL2
                                ? plan.groups * plan.exchange_bytes / static_cast<int64_t>(sizeof(scalar_t))
                                : 0;
  const int64_t blocks =
      ceil_div(exchanged + rows.N * begin.first.H, 4 * kThreads);  // a few elements of a thread
  return launch(name, recurrence_begin_kernel<scalar_t>,
                dim3(static_cast<unsigned>(blocks < kTargetBlocks ? blocks : kTargetBlocks)), dim3(kThreads), 0,
                stream, begin);
}

// Of the current device. Tensor cores take float32 only rounded, and want 16 rows where shared memory may have
// room for 8: then CUDA cores multiply it.
inline Plan plan_recurrence(const Recurrence& in, bool normalised, bool backward) {
  const Room limits{device_limits(),
                    resident_clusters<kWideClusterBlocks>(recurrence_begin_kernel<float>, kThreads)};
  Plan best;
  // What counts in 32 bits: elements of a row, slots, arrivals of a group's blocks.
  constexpr int64_t kMany = int64_t{1} << 31;
  if (in.N < 1 || in.H < 1 || in.H > 65536 || in.N > kMany / 64 || limits.multiprocessors < 1 ||
      4 * in.T * limits.multiprocessors >= kMany) {
    return best;
  }
  const bool halves = in.dtype == DType::kBFloat16 || in.dtype == DType::kFloat16;
  if (halves || (in.dtype == DType::kFloat32 && in.allow_tf32)) {
    find_plan(in, Machine(in.dtype, backward, normalised, true, limits.shared_bytes), limits, best);
  }
  if (!halves) find_plan(in, Machine(in.dtype, backward, normalised, false, limits.shared_bytes), limits, best);
  return best;
}

// The steps of the whole sequence, as the plan has blocks meet.
template <typename Params>
Status launch_steps(const char* name, const char* of_clusters, void (*kernel)(Params), const Params& p,
                    Stream stream) {
  const auto bytes = static_cast<size_t>(p.plan.shared_bytes);
  if (p.plan.exchange == Exchange::kCluster) {
    return launch_cluster(of_clusters, kernel, p.plan.grid(), p.plan.cluster(), dim3(kThreads), bytes, stream,
                          p);
  }
  return launch_cooperative(name, kernel, p.plan.grid(), dim3(kThreads), bytes, stream, p);
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

// Where groups exchange and meet, if not in clusters.
template <typename Params>
void lay_out_meeting(Params& p, Pieces& pieces, char* base) {
  if (p.plan.exchange == Exchange::kCluster) return;
  p.counters = reinterpret_cast<unsigned*>(base + pieces.add(p.plan.groups * kCounterWords, sizeof(unsigned)));
  p.exchanged = reinterpret_cast<unsigned char*>(base + pieces.add(p.plan.groups * p.plan.exchange_bytes, 1));
}

}  // namespace fastnn::cuda::recurrence
