// The recurrence of a layer over a whole sequence, in one direction: everything after the input's product with
// W_ih, which is one large matrix product of the framework's, and before the weights' gradients, which are
// more of them. The cells' formulas stand in ops/recurrent_cell.h. Of a cell with G gates (4: i, f, g, o;
// coupled LSTM 3: f, g, o; GRU and reset 3: r, z, n; RNN 1):
//
//   LSTM, RNN   a = gates_t + W_hh h_{t-1}
//   GRU         a_r, a_z likewise; x_n = gates_t, u_n = W_hn h_{t-1} + b_n
//   normalised LSTM (Ba et al. 2016)
//               a = gates_t + gain * norm(W_hh h_{t-1}), over all G H of a row; where the kernel multiplies x,
//               gates_t may be gain * norm(W_ih x_t) + bias; h = o * output(gain * norm(c_t) + bias);
//               norm(u) = (u - mean) / sqrt(variance + 1e-5)
//   reset       W_hh has the blocks r, z, n (z only where z_sees_h); that of n multiplies r * h_{t-1}
//
// Samples may differ in length. Rows of the sequence's tensors are steps of samples, in any order that the
// three tables below describe: of padded batches row t N + n, of packed ones those of each step together. A
// direction that is reversed begins with each sample's own last step.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "recurrent_cell.h"
#include "status.h"
#include "stream.h"

namespace fastnn {

// Samples are numbered from the longest to the shortest. The tables lie in the memory of the device that
// computes; null where every sample has all T steps: then row t N + n is step t of sample n, whose state is row
// n.
struct Recurrence {
  RecurrentCell cell;
  DType dtype;
  int64_t N, H;
  int64_t T;  // steps of sample 0
  bool reverse;
  const int64_t* lengths;      // [N], descending; a sample of length 0 keeps its state
  const int64_t* step_rows;    // [T]: step t of sample n is row step_rows[t] + sample_rows[n] of the sequence
  const int64_t* sample_rows;  // [N]
  const int64_t* state_rows;   // [N]: of the states before and after
  // Of float32: whether operands of the products may be rounded to 11 bits (a GPU's tensor cores).
  bool allow_tf32 = false;
};

// LSTM's gains and biases; null pointers: what they belong to is not normalised.
struct CellNorm {
  const void* x_weight = nullptr;  // [G H]; only where the kernel multiplies x
  const void* h_weight = nullptr;  // [G H]
  const void* c_weight = nullptr;  // [H]
  const void* c_bias = nullptr;    // [H]; may be null by itself
  bool any() const { return x_weight != nullptr || h_weight != nullptr || c_weight != nullptr; }
};
inline constexpr double kCellNormEps = 1e-5;
// Of a row: 1 / sqrt(variance + eps) of h's products; mean, and the like, of c; the like of x's products.
inline constexpr int64_t kCellStatistics = 4;

// All tensors are dense. Rows that no sample has are neither read nor written.
struct RecurrenceForwardParams {
  Recurrence in;
  // Where recurrence_fits says that the kernel multiplies x itself; null where `gates` holds the products.
  const void* x;          // [rows, I]
  const int64_t* places;  // [rows], with x: which rows of x and y those of the others are; null: the same ones
  int64_t I;
  const void* w_ih;      // [G H, I]
  const void* bias;      // [G H] of the gates, or null
  const void* w_hh;      // [recurrent blocks * H, H]
  const void* b_n;       // GRU: [H], or null
  const void* peephole;  // LSTM: [3, H] of i, f, o; coupled: [2, H] of f, o; null without
  CellBlock zoneout_h;   // d of each row [rows, H], or of all [H] with pitch 0; null without
  CellBlock zoneout_c;   // likewise
  CellNorm norm;
  const void* h0;  // [N, H]
  const void* c0;  // [N, H]; null of cells without c
  void* gates;   // [rows, G H]; before, without x: x W_ih^T + biases; after, where `save`: activated. Null with
                 // x where not to be saved
  void* y;       // [rows, H]
  void* record;  // [rows, H]; null where not wanted. LSTM: c_t; with `save` of GRU u_n, of reset r * h_{t-1}
  bool save;     // for backward
  void* normalised;    // [rows, G H]: norm(W_hh h); with `save` and norm.h_weight, else null
  void* normalised_x;  // [rows, G H]: norm(W_ih x); with `save` and norm.x_weight, else null
  void* statistics;    // [rows, kCellStatistics] of the accumulation type; with `save` and norm, else null
  void* h_n;           // [N, H]
  void* c_n;           // [N, H]; null of cells without c
  void* workspace;     // recurrence_forward_workspace() bytes, aligned to 64
};

struct RecurrenceBackwardParams {
  Recurrence in;
  const void* w_hh;      // [recurrent blocks * H, H]
  const void* peephole;  // as forward's
  CellBlock zoneout_h;   // as forward's
  CellBlock zoneout_c;   // as forward's
  CellNorm norm;
  const void* h0;            // [N, H]
  const void* c0;            // [N, H]; null of cells without c
  const void* y;             // [rows, H]
  const void* gates;         // [rows, G H], as forward left them
  const void* record;        // [rows, H], as forward left it; null of RNN
  const void* normalised;    // as forward left it
  const void* normalised_x;  // as forward left it
  const void* statistics;    // as forward left it
  const void* grad_y;        // [rows, H]; null for 0
  const void* grad_c;        // [rows, H], of every c_t; null for 0
  const void* grad_h_n;      // [N, H]; null for 0
  const void* grad_c_n;      // [N, H]; null for 0
  void* grad_gates;          // [rows, G H]: of what forward found there; with norm.x_weight of W_ih x
  void* grad_u_n;            // GRU: [rows, H]; null of others
  void* grad_h0;             // [N, H]
  void* grad_c0;             // [N, H]; null of cells without c
  void* grad_peephole;       // as peephole; null where not wanted
  void* grad_products;       // [rows, G H], of W_hh h; with norm.h_weight or norm.x_weight
  void* grad_norm_x;         // [G H]; with norm.x_weight, else null
  void* grad_bias;           // [G H]; with norm.x_weight, else null
  void* grad_norm_h;         // [G H]; with norm.h_weight, else null
  void* grad_norm_c_weight;  // [H]; with norm.c_weight, else null
  void* grad_norm_c_bias;    // [H]; with norm.c_weight, else null
  void* workspace;           // recurrence_backward_workspace() bytes, aligned to 64
};

// Whether a backend has a kernel for it, with `backward` in both directions: on a GPU, whether the weights fit
// on the chip and a step is not so long that it would pay to give it to kernels of its own. Otherwise the cell
// is stepped over time. T and the tables do not matter.
struct RecurrenceFitsParams {
  Recurrence in;
  bool normalised;    // h's products or c
  bool normalised_x;  // x's products: asked with multiplies_x
  bool backward;
  bool* fits;
  bool* multiplies_x =
      nullptr;  // null where nobody asks: whether forward wants x and W_ih and not their product
};

FASTNN_DECLARE_OP(recurrence_fits, RecurrenceFitsParams)
FASTNN_DECLARE_OP(recurrence_forward, RecurrenceForwardParams)
FASTNN_DECLARE_WORKSPACE(recurrence_forward, RecurrenceForwardParams)
FASTNN_DECLARE_OP(recurrence_backward, RecurrenceBackwardParams)
FASTNN_DECLARE_WORKSPACE(recurrence_backward, RecurrenceBackwardParams)

}  // namespace fastnn
