// The recurrence of a layer, backward: one launch for the whole sequence (contract and formulas:
// ops/recurrence.h, ops/recurrent_cell.h; layout: recurrence_plan.cuh; the product: recurrence_product.cuh).
//
//   grid    groups * blocks, at most one to a multiprocessor: all resident (cooperative), or clusters
//   group   has every groups-th sample
//   block   has some hidden units: their columns of W_hh, of all gates, stay in its shared memory
//   warp    has some of the block's units and a part of the depth gates * H of each step's product
//   thread  has the same (unit, sample) pairs in every step: it alone has what their gradients carry on
//
// A step, from the last to the first: the product of the block's columns with the gates' gradients of the step
// after, of all units, which the group's blocks have given it; the gradients of the block's own gates, which it
// gives them in turn (recurrence_forward.cu); the blocks meet. Of cells that reset before the product the
// gates' gradients come in two parts, first that of n, whose product gives the gradient of r * h, then those of
// r and z, and the blocks meet twice.
//
// What bounds it is what bounds forward (recurrence_forward.cu), with units rows of gates * H depth instead: as
// many weights of a block, but `gates` times as many elements of what is exchanged. Of the sequence's own
// tensors a step has gates() + 1 to gates() + 4 elements read of each unit and sample, and gates() to gates() +
// 1 written.
//
// The gradients of peepholes and norms are sums over samples and steps: a thread adds up the steps of its
// pairs, and a second kernel the samples, in their order.
#include <cstdint>

#include "../ops/recurrence.h"
#include "recurrence_backward_normalised.cuh"
#include "recurrence_backward_steps.cuh"

namespace fastnn::cuda {
namespace recurrence {
namespace {

template <Variant kVariant, typename scalar_t>
__global__ void __launch_bounds__(kThreads, 1) recurrence_backward_kernel(const Backward<scalar_t> p) {
  FASTNN_DYNAMIC_SHARED(unsigned char, shared);
  if constexpr (kVariant == Variant::kNormalisedLstm) {
    NormalisedBackwardSteps<scalar_t>(p, shared).run();
  } else {
    BackwardSteps<kVariant, scalar_t>(p, shared).run();
  }
}

// What each slot has summed over its steps, [of_slot][H], of which `count` from `first` on are one gradient;
// null: not wanted.
template <typename scalar_t>
struct SampleSum {
  const acc_type<scalar_t>* steps;
  int of_slot, first, count;
  scalar_t* grad;
};

// A thread adds the samples of one number of [count, H].
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, 1)
    recurrence_sample_sum_kernel(const Rows rows, int groups, int slots, int H, const SampleSum<scalar_t> p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= int64_t{p.count} * H) return;
  acc_type<scalar_t> sum(0);
  for (int64_t n = 0; n < rows.N && rows.length(n) > 0; ++n) {
    const int64_t slot = n % groups * slots + n / groups;
    sum += p.steps[(slot * p.of_slot + p.first) * H + i];
  }
  p.grad[i] = from_acc<scalar_t>(sum);
}

// ---- launchers ----------------------------------------------------------------------------------------------

// Pointers into the workspace at `base`; how many bytes it has.
template <typename scalar_t>
int64_t lay_out_workspace(Backward<scalar_t>& p, char* base) {
  using acc_t = acc_type<scalar_t>;
  const int64_t slots = p.plan.all_slots();
  Pieces pieces;
  lay_out_meeting(p, pieces, base);
  const auto carry = [&](int64_t count) {
    return count > 0 ? reinterpret_cast<acc_t*>(base + pieces.add(slots * count * p.H, sizeof(acc_t)))
                     : nullptr;
  };
  p.carry_h = carry(1);
  p.carry_c = carry(p.cell.has_c() || p.cell.kind == CellKind::kReset ? 1 : 0);
  p.carry_peephole = carry(p.grad_peephole != nullptr ? kPeepholeCarries : 0);
  p.carry_norm = carry(p.normalises() ? kNormCarries : 0);
  p.kept = carry(p.normalises() ? 4 : 0);
  return pieces.bytes();
}

template <typename scalar_t>
Backward<scalar_t> backward_of(const RecurrenceBackwardParams& q) {
  const auto in = [](const void* p) { return static_cast<const scalar_t*>(p); };
  const auto out = [](void* p) { return static_cast<scalar_t*>(p); };
  return {.rows = Rows(q.in),
          .plan = plan_recurrence(q.in, q.norm.any(), true),
          .cell = q.in.cell,
          .H = static_cast<int>(q.in.H),
          .w_hh = in(q.w_hh),
          .aligned = rows_are_aligned<scalar_t>(q.w_hh, q.in.H),
          .peephole = in(q.peephole),
          .zoneout_h = RowsOrOne<scalar_t>(q.zoneout_h),
          .zoneout_c = RowsOrOne<scalar_t>(q.zoneout_c),
          .h0 = in(q.h0),
          .c0 = in(q.c0),
          .y = in(q.y),
          .gates = in(q.gates),
          .record = in(q.record),
          .grad_y = in(q.grad_y),
          .grad_c = in(q.grad_c),
          .grad_h_n = in(q.grad_h_n),
          .grad_c_n = in(q.grad_c_n),
          .grad_gates = out(q.grad_gates),
          .grad_u_n = out(q.grad_u_n),
          .grad_h0 = out(q.grad_h0),
          .grad_c0 = out(q.grad_c0),
          .grad_peephole = out(q.grad_peephole),
          .norm_h = in(q.norm.h_weight),
          .norm_c_weight = in(q.norm.c_weight),
          .norm_c_bias = in(q.norm.c_bias),
          .normalised = in(q.normalised),
          .statistics = static_cast<const acc_type<scalar_t>*>(q.statistics),
          .grad_products = out(q.grad_products),
          .grad_norm_h = out(q.grad_norm_h),
          .grad_norm_c_weight = out(q.grad_norm_c_weight),
          .grad_norm_c_bias = out(q.grad_norm_c_bias),
          .counters = nullptr,
          .exchanged = nullptr,
          .carry_h = nullptr,
          .carry_c = nullptr,
          .carry_peephole = nullptr,
          .carry_norm = nullptr,
          .kept = nullptr};
}

template <typename scalar_t>
Status add_samples(const Backward<scalar_t>& p, Stream stream) {
  const int first = p.cell.coupled ? 1 : 0, gates = static_cast<int>(p.cell.gates());
  const SampleSum<scalar_t> all[] = {{p.carry_peephole, kPeepholeCarries, first, 3 - first, p.grad_peephole},
                                     {p.carry_norm, kNormCarries, kOfGate, gates, p.grad_norm_h},
                                     {p.carry_norm, kNormCarries, kOfCWeight, 1, p.grad_norm_c_weight},
                                     {p.carry_norm, kNormCarries, kOfCBias, 1, p.grad_norm_c_bias}};
  for (const SampleSum<scalar_t>& sum : all) {
    if (sum.grad == nullptr) continue;
    const Status status = launch("recurrence_sample_sum", recurrence_sample_sum_kernel<scalar_t>,
                                 dim3(static_cast<unsigned>(ceil_div(int64_t{sum.count} * p.H, kThreads))),
                                 dim3(kThreads), 0, stream, p.rows, p.plan.groups, p.plan.slots, p.H, sum);
    if (!status.ok()) return status;
  }
  return Status::success();
}

template <typename scalar_t>
Status backward(const RecurrenceBackwardParams& q, Stream stream) {
  Backward<scalar_t> p = backward_of<scalar_t>(q);
  if (p.rows.N == 0) return add_samples(p, stream);
  if (!p.plan.fits) return Status::error("the weights do not fit on the device", "recurrence_backward");
  lay_out_workspace(p, static_cast<char*>(q.workspace));
  p.aligned = p.aligned && p.plan.units % kVecSize<scalar_t> == 0;  // vectors begin at blocks' first units
  const Begin<scalar_t> begin{.plan = p.plan,
                              .first = {p.rows, p.H, nullptr},
                              .exchanged = p.exchanged,
                              .counters = p.counters,
                              .kept = {{p.grad_h_n, p.grad_h0}, {p.grad_c_n, p.grad_c0}}};
  Status status = launch_begin("recurrence_backward_begin", begin, stream);
  if (status.ok() && p.rows.T > 0) {
    status = with_variant(p.cell, p.normalises(), [&](auto variant) {
      return launch_steps("recurrence_backward", "recurrence_backward_cluster",
                          recurrence_backward_kernel<decltype(variant)::value, scalar_t>, p, stream);
    });
  }
  return status.ok() ? add_samples(p, stream) : status;
}

}  // namespace
}  // namespace recurrence

int64_t recurrence_backward_workspace(const RecurrenceBackwardParams& p) {
  int64_t bytes = 0;
  dispatch_dtype(p.in.dtype, [&](auto tag) {
    auto backward = recurrence::backward_of<typename decltype(tag)::type>(p);
    if (backward.plan.fits) bytes = recurrence::lay_out_workspace(backward, nullptr);
    return Status::success();
  });
  return bytes;
}

Status recurrence_backward(const RecurrenceBackwardParams& p, Stream stream) {
  if (p.in.H == 0) return Status::success();
  return dispatch_dtype(
      p.in.dtype, [&](auto tag) { return recurrence::backward<typename decltype(tag)::type>(p, stream); });
}

}  // namespace fastnn::cuda
