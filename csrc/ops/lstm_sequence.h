// The recurrence of an LSTM layer over a whole sequence, in one direction: everything after the input's product
// with W_ih, which is one large matrix product of the framework's, and before the weights' gradients, which are
// two more.
//
//   a_t = gates_t + h_{t-1} W_hh^T,  i, f, o = sigmoid(a),  g = tanh(a)   (blocks of H in torch's order i, f,
//   g, o) c_t = f * c_{t-1} + i * g,       h_t = o * tanh(c_t)
//
// Samples may differ in length. Rows of the sequence's tensors are steps of samples, in any order that the
// three tables below describe: of padded batches row t N + n, of packed ones those of each step together. A
// direction that is reversed begins with each sample's own last step.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "status.h"
#include "stream.h"

namespace fastnn {

// Tables lie in the host's memory. Samples are numbered from the longest to the shortest.
struct LstmSequence {
  DType dtype;
  int64_t N, H;
  int64_t T;  // steps of sample 0
  bool reverse;
  const int64_t* lengths;      // [N], descending; a sample of length 0 keeps its state
  const int64_t* step_rows;    // [T]: step t of sample n is row step_rows[t] + sample_rows[n] of the sequence
  const int64_t* sample_rows;  // [N]
  const int64_t* state_rows;   // [N]: of the states before and after
};

// All tensors are dense. Rows that no sample has are neither read nor written.
struct LstmSequenceForwardParams {
  LstmSequence in;
  const void* w_hh;  // [4H, H]
  const void* h0;    // [N, H]
  const void* c0;    // [N, H]
  void* gates;       // [rows, 4H]; before: x W_ih^T + b_ih + b_hh; after, where c is wanted: i, f, g, o
  void* y;           // [rows, H]
  void* c;           // [rows, H]: for backward; null when not wanted
  void* h_n;         // [N, H]
  void* c_n;         // [N, H]
  void* workspace;   // lstm_sequence_forward_workspace() bytes, aligned to 64
};

struct LstmSequenceBackwardParams {
  LstmSequence in;
  const void* w_hh;      // [4H, H]
  const void* c0;        // [N, H]
  const void* gates;     // [rows, 4H], as forward left them
  const void* c;         // [rows, H]
  const void* grad_y;    // [rows, H]; null for 0
  const void* grad_h_n;  // [N, H]; null for 0
  const void* grad_c_n;  // [N, H]; null for 0
  void* grad_gates;      // [rows, 4H]: of a
  void* grad_h0;         // [N, H]
  void* grad_c0;         // [N, H]
  void* workspace;       // lstm_sequence_backward_workspace() bytes, aligned to 64
};

FASTNN_DECLARE_OP(lstm_sequence_forward, LstmSequenceForwardParams)
FASTNN_DECLARE_WORKSPACE(lstm_sequence_forward, LstmSequenceForwardParams)
FASTNN_DECLARE_OP(lstm_sequence_backward, LstmSequenceBackwardParams)
FASTNN_DECLARE_WORKSPACE(lstm_sequence_backward, LstmSequenceBackwardParams)

}  // namespace fastnn
