// The LSTM's recurrence on the CPU: the entry points of lstm_sequence_forward.h and lstm_sequence_backward.h.
#include "../ops/lstm_sequence.h"

#include "dispatch.h"
#include "lstm_sequence_backward.h"
#include "lstm_sequence_forward.h"

namespace fastnn::FASTNN_BACKEND {

namespace {

// f(SequenceForward or SequenceBackward of the dtype).
template <typename F>
Status with_sequence(const LstmSequenceForwardParams& p, const F& f) {
  return dispatch_dtype(p.in.dtype, [&](auto scalar) {
    f(lstm::SequenceForward<typename decltype(scalar)::type>(p));
    return Status::success();
  });
}
template <typename F>
Status with_sequence(const LstmSequenceBackwardParams& p, const F& f) {
  return dispatch_dtype(p.in.dtype, [&](auto scalar) {
    f(lstm::SequenceBackward<typename decltype(scalar)::type>(p));
    return Status::success();
  });
}

template <typename Params>
int64_t workspace(const Params& p) {
  int64_t bytes = 0;
  with_sequence(p, [&](const auto& sequence) { bytes = sequence.bytes(); });
  return bytes;
}

template <typename Params>
Status run(const Params& p) {
  return with_sequence(p, [](const auto& sequence) { sequence.run(); });
}

}  // namespace

int64_t lstm_sequence_forward_workspace(const LstmSequenceForwardParams& p) { return workspace(p); }
int64_t lstm_sequence_backward_workspace(const LstmSequenceBackwardParams& p) { return workspace(p); }
Status lstm_sequence_forward(const LstmSequenceForwardParams& p, Stream) { return run(p); }
Status lstm_sequence_backward(const LstmSequenceBackwardParams& p, Stream) { return run(p); }

}  // namespace fastnn::FASTNN_BACKEND
