// The recurrence of a layer, forward: one launch for the whole sequence (contract and formulas:
// ops/recurrence.h, ops/recurrent_cell.h; layout: recurrence_plan.cuh; the product: recurrence_product.cuh).
//
//   grid    groups * blocks, at most one to a multiprocessor: all resident (cooperative), or clusters
//   group   has every groups-th sample, so that all groups have long and short ones
//   block   has some hidden units, in all gates: their rows of W_hh stay in its shared memory
//   warp    has some of the block's rows and a part of the depth H of each step's product
//   thread  has the same (unit, sample) pairs in every step: it alone reads and writes their c, and what it
//           wants of memory for a step it asks for before the blocks meet
//
// A step: the product of W_hh with the state that all blocks of the group have given it; activations; the new
// state to all blocks, in the workspace or, in a cluster, in the shared memory of each of them, where two
// copies take turns; the blocks meet. Cells that reset before the product meet twice: once with r * h, once
// with the new state. Normalised cells meet for the sums of all units, too (recurrence_forward_normalised.cuh).
//
// What bounds it, of a step of a block with `rows` = units * gates: where samples are few, reading rows * H
// weights from shared memory (128 bytes a cycle), and the meeting: two ways through L2 and the waiting for the
// slowest block, some 1.5 microseconds, or in a cluster two ways to each other, a third of that; where they are
// many, the state of all units, slots * H elements, through L2 or among the blocks, and 2 * rows * H * slots
// operations. The sequence's own tensors, gates() + 1 to 2 gates() + 2 elements of each unit, sample and step,
// hide behind these.
#include <cstdint>

#include "../ops/recurrence.h"
#include "recurrence_forward_normalised.cuh"
#include "recurrence_forward_steps.cuh"

namespace fastnn::cuda {
namespace recurrence {
namespace {

template <Variant kVariant, typename scalar_t>
__global__ void __launch_bounds__(kThreads, 1) recurrence_forward_kernel(const Forward<scalar_t> p) {
  FASTNN_DYNAMIC_SHARED(unsigned char, shared);
  if constexpr (kVariant == Variant::kNormalisedLstm) {
    NormalisedForwardSteps<scalar_t>(p, shared).run();
  } else {
    ForwardSteps<kVariant, scalar_t>(p, shared).run();
  }
}

// ---- launchers ----------------------------------------------------------------------------------------------

// Pointers into the workspace at `base`; how many bytes it has.
template <typename scalar_t>
int64_t lay_out_workspace(Forward<scalar_t>& p, char* base) {
  Pieces pieces;
  const bool carries = p.cell.has_c() || p.cell.kind == CellKind::kReset;
  lay_out_meeting(p, pieces, base);
  const auto of_items = [&](int64_t count) {
    return reinterpret_cast<acc_type<scalar_t>*>(
        base + pieces.add(p.plan.all_slots() * p.H * count, sizeof(acc_type<scalar_t>)));
  };
  p.carry = of_items(carries ? 1 : 0);
  p.kept = of_items(p.normalises() ? 4 : 0);
  return pieces.bytes();
}

template <typename scalar_t>
Forward<scalar_t> forward_of(const RecurrenceForwardParams& q) {
  return {.rows = Rows(q.in),
          .plan = plan_recurrence(q.in, q.norm.any(), false),
          .cell = q.in.cell,
          .H = static_cast<int>(q.in.H),
          .w_hh = static_cast<const scalar_t*>(q.w_hh),
          .aligned = rows_are_aligned<scalar_t>(q.w_hh, q.in.H),
          .b_n = static_cast<const scalar_t*>(q.b_n),
          .peephole = static_cast<const scalar_t*>(q.peephole),
          .zoneout_h = RowsOrOne<scalar_t>(q.zoneout_h),
          .zoneout_c = RowsOrOne<scalar_t>(q.zoneout_c),
          .h0 = static_cast<const scalar_t*>(q.h0),
          .c0 = static_cast<const scalar_t*>(q.c0),
          .gates = static_cast<scalar_t*>(q.gates),
          .y = static_cast<scalar_t*>(q.y),
          .record = static_cast<scalar_t*>(q.record),
          .save = q.save,
          .h_n = static_cast<scalar_t*>(q.h_n),
          .c_n = static_cast<scalar_t*>(q.c_n),
          .norm_h = static_cast<const scalar_t*>(q.norm.h_weight),
          .norm_c_weight = static_cast<const scalar_t*>(q.norm.c_weight),
          .norm_c_bias = static_cast<const scalar_t*>(q.norm.c_bias),
          .normalised = static_cast<scalar_t*>(q.normalised),
          .statistics = static_cast<acc_type<scalar_t>*>(q.statistics),
          .counters = nullptr,
          .exchanged = nullptr,
          .carry = nullptr,
          .kept = nullptr};
}

template <typename scalar_t>
Status forward(const RecurrenceForwardParams& q, Stream stream) {
  Forward<scalar_t> p = forward_of<scalar_t>(q);
  if (!p.plan.fits) return Status::error("the weights do not fit on the device", "recurrence_forward");
  lay_out_workspace(p, static_cast<char*>(q.workspace));
  const Begin<scalar_t> begin{.plan = p.plan,
                              .first = {p.rows, p.H, p.h0},
                              .exchanged = p.exchanged,
                              .counters = p.counters,
                              .kept = {{p.h0, p.h_n}, {p.c0, p.c_n}}};
  const Status status = launch_begin("recurrence_forward_begin", begin, stream);
  if (!status.ok() || p.rows.T == 0) return status;
  return with_variant(p.cell, p.normalises(), [&](auto variant) {
    return launch_steps("recurrence_forward", "recurrence_forward_cluster",
                        recurrence_forward_kernel<decltype(variant)::value, scalar_t>, p, stream);
  });
}

}  // namespace
}  // namespace recurrence

Status recurrence_fits(const RecurrenceFitsParams& p, Stream) {
  if (p.fits == nullptr) return Status::success();  // a plan is some hundreds of layouts
  // Whoever will go backward goes forward first.
  const auto planned = [&](bool backward) {
    return recurrence::plan_recurrence(p.in, p.normalised, backward).fits;
  };
  *p.fits = p.in.N == 0 || p.in.H == 0 || (planned(false) && (!p.backward || planned(true)));
  return Status::success();
}

int64_t recurrence_forward_workspace(const RecurrenceForwardParams& p) {
  int64_t bytes = 0;
  dispatch_dtype(p.in.dtype, [&](auto tag) {
    auto forward = recurrence::forward_of<typename decltype(tag)::type>(p);
    if (forward.plan.fits) bytes = recurrence::lay_out_workspace(forward, nullptr);
    return Status::success();
  });
  return bytes;
}

Status recurrence_forward(const RecurrenceForwardParams& p, Stream stream) {
  if (p.in.N == 0 || p.in.H == 0) return Status::success();
  return dispatch_dtype(p.in.dtype,
                        [&](auto tag) { return recurrence::forward<typename decltype(tag)::type>(p, stream); });
}

}  // namespace fastnn::cuda
