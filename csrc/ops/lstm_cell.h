// The LSTM cell, after its two matrix products and with them (Hochreiter and Schmidhuber 1997, with the forget
// gate of Gers et al. 2000).
//
//   a = gates + bias_ih + bias_hh,  split in four blocks of H in torch's order i, f, g, o
//   i, f, o = sigmoid(a),  g = tanh(a)
//   cy = f * cx + i * g,   hy = o * tanh(cy)
//
// gates = x W_ih^T + h W_hh^T comes from the framework's GEMM or, where a backend has entry points for the
// whole step, from the backend. Backward computes the activations again from `gates`: five transcendental
// functions a value cost less than writing and reading 4H more values, and the saved tensors are then plain
// inputs, so that backward can itself be differentiated. The formulas stand in lstm_cell_math.h.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "status.h"
#include "stream.h"

namespace fastnn {

// Shapes: N rows, H hidden units. All tensors are dense and of one dtype.
struct LstmCellInputs {
  DType dtype;
  int64_t N, H;
  const void* gates;    // [N, 4H]
  const void* bias_ih;  // [4H]; null for 0
  const void* bias_hh;  // [4H]; null for 0
  const void* cx;       // [N, H]
};

struct LstmCellForwardParams {
  LstmCellInputs in;
  void* hy;  // [N, H]
  void* cy;  // [N, H]
};

struct LstmCellBackwardParams {
  LstmCellInputs in;
  const void* grad_hy;  // [N, H]; null for 0
  const void* grad_cy;  // [N, H]; null for 0
  void* grad_gates;     // [N, 4H]
  void* grad_cx;        // [N, H]; null when not wanted
  void* grad_bias;      // [4H], the sum of grad_gates over N: the gradient of either bias; null when not wanted
  void* workspace;      // lstm_cell_backward_workspace() bytes, aligned to 64
};

// Derivative of backward in the direction (gg_gates, gg_cx, gg_bias); with
// L = <gg_gates, grad_gates> + <gg_cx, grad_cx> + <gg_bias, grad_bias>, writes the derivatives of L.
// d_grad_hy and d_grad_cy do not depend on grad_hy and grad_cy: they are also the tangents of hy and cy.
struct LstmCellDoubleBackwardParams {
  LstmCellInputs in;
  const void* gg_gates;  // [N, 4H]; null for 0
  const void* gg_cx;     // [N, H]; null for 0
  const void* gg_bias;   // [4H]; null for 0
  const void* grad_hy;   // [N, H]; null for 0
  const void* grad_cy;   // [N, H]; null for 0
  void* d_grad_hy;       // [N, H]; each of the outputs is null when not wanted
  void* d_grad_cy;       // [N, H]
  void* d_gates;         // [N, 4H]; wanted whenever d_bias is
  void* d_cx;            // [N, H]
  void* d_bias;          // [4H], the sum of d_gates over N
  void* workspace;       // lstm_cell_double_backward_workspace() bytes, aligned to 64
};

// One step of the cell, its products included, for backends that multiply themselves. Elsewhere the framework
// makes `gates` and the entry points above do the rest. cell.gates is null in forward; in backward it holds
// what forward gave. Either may be asked for the products alone, whose second derivatives are made of them:
// forward where hy and cy are null, backward where grad_gates is given; what stands for the cell in the
// parameters is then null.
struct LstmStepInputs {
  LstmCellInputs cell;
  int64_t I;         // input size
  const void* x;     // [N, I]
  const void* h;     // [N, H]
  const void* w_ih;  // [4H, I]
  const void* w_hh;  // [4H, H]
};

struct LstmStepForwardParams {
  LstmStepInputs in;
  void* hy;     // [N, H]; null, with cy, for gates alone
  void* cy;     // [N, H]
  void* gates;  // [N, 4H], x W_ih^T + h W_hh^T; null when not wanted
};

struct LstmStepBackwardParams {
  LstmStepInputs in;
  const void* grad_hy;  // [N, H]; null for 0
  const void* grad_cy;  // [N, H]; null for 0
  // [N, 4H], instead of those that follow from grad_hy and grad_cy; else null.
  const void* grad_gates;
  void* grad_x;     // [N, I]; each of the outputs is null when not wanted
  void* grad_h;     // [N, H]
  void* grad_cx;    // [N, H]
  void* grad_w_ih;  // [4H, I]
  void* grad_w_hh;  // [4H, H]
  void* grad_bias;  // [4H]: the gradient of either bias
  void* workspace;  // lstm_step_backward_workspace() bytes, aligned to 64
};

FASTNN_DECLARE_OP(lstm_cell_forward, LstmCellForwardParams)
FASTNN_DECLARE_OP(lstm_cell_backward, LstmCellBackwardParams)
FASTNN_DECLARE_WORKSPACE(lstm_cell_backward, LstmCellBackwardParams)
FASTNN_DECLARE_OP(lstm_cell_double_backward, LstmCellDoubleBackwardParams)
FASTNN_DECLARE_WORKSPACE(lstm_cell_double_backward, LstmCellDoubleBackwardParams)
FASTNN_DECLARE_OP(lstm_step_forward, LstmStepForwardParams)
FASTNN_DECLARE_OP(lstm_step_backward, LstmStepBackwardParams)
FASTNN_DECLARE_WORKSPACE(lstm_step_backward, LstmStepBackwardParams)

}  // namespace fastnn
