// Recurrences on the CPU: the entry points of recurrence_forward.h and recurrence_backward.h.
#include "../ops/recurrence.h"

#include "dispatch.h"
#include "recurrence_normalised.h"

namespace fastnn::FASTNN_BACKEND {

namespace {

template <typename Params, typename scalar_t, CellKind kKind, bool kPlain>
struct Direction {
  using type = recurrence::Forward<scalar_t, kKind, kPlain>;
  using normalised = recurrence::NormalisedForward<scalar_t, kPlain>;
};
template <typename scalar_t, CellKind kKind, bool kPlain>
struct Direction<RecurrenceBackwardParams, scalar_t, kKind, kPlain> {
  using type = recurrence::Backward<scalar_t, kKind, kPlain>;
  using normalised = recurrence::NormalisedBackward<scalar_t, kPlain>;
};

template <typename Of, typename Params, typename F>
void with_norm(const Params& p, const F& f) {
  if (p.norm.any()) return f(typename Of::normalised(p));
  f(typename Of::type(p));
}

// f(Forward or Backward of the dtype and the cell).
template <typename Params, typename F>
Status with_recurrence(const Params& p, const F& f) {
  return dispatch_dtype(p.in.dtype, [&](auto scalar) {
    using scalar_t = typename decltype(scalar)::type;
    switch (p.in.cell.kind) {
      case CellKind::kLstm:
        if (p.in.cell.is_plain_lstm()) {
          with_norm<Direction<Params, scalar_t, CellKind::kLstm, true>>(p, f);
        } else {
          with_norm<Direction<Params, scalar_t, CellKind::kLstm, false>>(p, f);
        }
        break;
      case CellKind::kGru:
        f(typename Direction<Params, scalar_t, CellKind::kGru, false>::type(p));
        break;
      case CellKind::kRnn:
        f(typename Direction<Params, scalar_t, CellKind::kRnn, false>::type(p));
        break;
      case CellKind::kReset:
        f(typename Direction<Params, scalar_t, CellKind::kReset, false>::type(p));
        break;
    }
    return Status::success();
  });
}

template <typename Params>
int64_t workspace(const Params& p) {
  int64_t bytes = 0;
  with_recurrence(p, [&](const auto& recurrence) { bytes = recurrence.bytes(); });
  return bytes;
}

template <typename Params>
Status run(const Params& p) {
  return with_recurrence(p, [](const auto& recurrence) { recurrence.run(); });
}

}  // namespace

Status recurrence_fits(const RecurrenceFitsParams& p, Stream) {
  if (p.fits != nullptr) *p.fits = true;
  // Always: the framework's product may round to the tensors' type, and depends on the number of threads.
  if (p.multiplies_x != nullptr) *p.multiplies_x = true;
  return Status::success();
}
int64_t recurrence_forward_workspace(const RecurrenceForwardParams& p) { return workspace(p); }
int64_t recurrence_backward_workspace(const RecurrenceBackwardParams& p) { return workspace(p); }
Status recurrence_forward(const RecurrenceForwardParams& p, Stream) { return run(p); }
Status recurrence_backward(const RecurrenceBackwardParams& p, Stream) { return run(p); }

}  // namespace fastnn::FASTNN_BACKEND
