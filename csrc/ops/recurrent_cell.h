// The cells of recurrent layers: which there are, and the contract of what follows their matrix products.
//
// With a = the products and biases of a gate (of x and of h), and * element by element:
//
//   LSTM   i, f, o = gate(a), g = candidate(a);  c' = f * c + i * g;  h' = o * output(c')
//          coupled: no input gate; c' = f * c + (1 - f) * g
//          peepholes: a_i += p_i * c, a_f += p_f * c, a_o += p_o * c' (or p_o * c: peephole_previous)
//   GRU    r, z = gate(a), n = candidate(x_n + r * u_n);  h' = (1 - z) * n + z * h,  u_n = W_hn h + b_hn
//   RNN    h' = candidate(a)
//   reset  r, z = gate(a), n = candidate(x_n + W (r * h));  h' = (1 - z) * n + z * h, as Cho et al. 2014 wrote
//          the GRU; or z_takes: h' = z * n + (1 - z) * h, as Jozefowicz et al. 2015 wrote MUT1, 2 and 3
//   zoneout (Krueger et al. 2017), of any: h'' = d * h + (1 - d) * h', likewise c'', with d in [0, 1]. h' is of
//          the c' before it.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "status.h"
#include "stream.h"

namespace fastnn {

enum class CellKind : int32_t { kLstm, kGru, kRnn, kReset };

// hard_sigmoid(x) = clamp(x / 6 + 1 / 2, 0, 1); softsign(x) = x / (1 + |x|).
enum class GateActivation : int32_t { kSigmoid, kHardSigmoid, kTanh, kHardTanh, kRelu, kSoftsign, kIdentity };
inline constexpr int32_t kGateActivations = 7;

struct RecurrentCell {
  CellKind kind = CellKind::kLstm;
  GateActivation gate = GateActivation::kSigmoid;
  GateActivation candidate = GateActivation::kTanh;
  GateActivation output = GateActivation::kTanh;
  bool coupled = false;
  bool peephole = false;
  bool peephole_previous = false;
  bool z_takes = false;
  bool z_sees_h = true;        // kReset: whether z has a recurrent product; MUT1's has none
  bool z_sees_tanh_h = false;  // kReset: whether it is that of tanh(h), as in MUT3
  bool zoneout_h = false;
  bool zoneout_c = false;

  // Blocks of H in a row of the input's products, of the recurrent weights [.., H] and of the record.
  int64_t gates() const {
    if (kind == CellKind::kRnn) return 1;
    return kind == CellKind::kLstm && !coupled ? 4 : 3;
  }
  int64_t recurrent_blocks() const { return kind == CellKind::kReset && !z_sees_h ? 2 : gates(); }
  bool has_c() const { return kind == CellKind::kLstm; }
  // The LSTM that everybody means: kernels have it without tests for options.
  bool is_plain_lstm() const {
    return kind == CellKind::kLstm && gate == GateActivation::kSigmoid && candidate == GateActivation::kTanh &&
           output == GateActivation::kTanh && !coupled && !peephole && !zoneout_h && !zoneout_c;
  }
};

// ---- what follows the products, by itself -------------------------------------------------------------------

// An elementwise map of blocks [N, H]. Inputs in this order, and the gradients of all but zoneout's:
//   kLstm   a_i, a_f, a_g, a_o, c, p_i, p_f, p_o, h, d_h, d_c -> h'', c''   (coupled: a_i and p_i are null)
//   kGru    x_r, x_z, x_n, u_r, u_z, u_n, h, d_h              -> h''
//   kRnn    a, h, d_h                                         -> h''
//   kReset  a_r, a_z, h                                       -> r * h, z
//   kBlend  a_n, z, h, d_h                                    -> h''
enum class CellStage : int32_t { kLstm, kGru, kRnn, kReset, kBlend };
inline constexpr int kMaxCellInputs = 11, kMaxCellGrads = 9, kMaxCellOutputs = 2;

// Row n is at data + n * pitch elements; pitch 0: the same row for all. Null: zeros, or an output not wanted.
struct CellBlock {
  const void* data = nullptr;
  int64_t pitch = 0;
};
struct CellOutputBlock {
  void* data = nullptr;
  int64_t pitch = 0;
};

struct RecurrentCellInputs {
  DType dtype;
  int64_t N, H;
  RecurrentCell cell;
  CellStage stage;
  CellBlock in[kMaxCellInputs];
};

struct RecurrentCellForwardParams {
  RecurrentCellInputs in;
  CellOutputBlock out[kMaxCellOutputs];
};

// Gradients of rows of pitch 0 are given by row: their sum is the caller's.
struct RecurrentCellBackwardParams {
  RecurrentCellInputs in;
  CellBlock grad_out[kMaxCellOutputs];
  CellOutputBlock grad_in[kMaxCellGrads];
};

// The gradient of <direction, backward>.
struct RecurrentCellDoubleBackwardParams {
  RecurrentCellInputs in;
  CellBlock grad_out[kMaxCellOutputs];
  CellBlock direction[kMaxCellGrads];
  CellOutputBlock d_grad_out[kMaxCellOutputs];
  CellOutputBlock d_in[kMaxCellGrads];
};

FASTNN_DECLARE_OP(recurrent_cell_forward, RecurrentCellForwardParams)
FASTNN_DECLARE_OP(recurrent_cell_backward, RecurrentCellBackwardParams)
FASTNN_DECLARE_OP(recurrent_cell_double_backward, RecurrentCellDoubleBackwardParams)

}  // namespace fastnn
