// A backend is a table of entry points. The bindings hold one for the CPU, one for CUDA where it was built,
// and one for the CUDA kernels under the emulator where a test loads it.
#pragma once

#include "activation.h"
#include "average_pool.h"
#include "batch_norm.h"
#include "conv.h"
#include "group_norm.h"
#include "local_response_norm.h"
#include "locally_connected.h"
#include "lstm_cell.h"
#include "max_pool.h"
#include "pool_switches.h"
#include "recurrence.h"
#include "recurrent_cell.h"

// Every op with no workspace of its own: X(name, Params); with one: W(name, Params).
#define FASTNN_FOR_EACH_OP(X, W)                                                \
  X(activation_forward, ActivationForwardParams)                                \
  X(activation_backward, ActivationBackwardParams)                              \
  W(conv_forward, ConvForwardParams)                                            \
  W(conv_grad_input, ConvGradInputParams)                                       \
  W(conv_grad_weight, ConvGradWeightParams)                                     \
  W(conv_grad_bias, ConvGradBiasParams)                                         \
  X(conv_variants, ConvVariantsParams)                                          \
  W(locally_connected_forward, LocallyConnectedForwardParams)                   \
  W(locally_connected_grad_input, LocallyConnectedGradInputParams)              \
  W(locally_connected_grad_weight, LocallyConnectedGradWeightParams)            \
  X(max_pool_forward, MaxPoolForwardParams)                                     \
  X(max_pool_backward, MaxPoolBackwardParams)                                   \
  X(max_pool_gather, MaxPoolGatherParams)                                       \
  X(average_pool_forward, AveragePoolForwardParams)                             \
  X(average_pool_backward, AveragePoolBackwardParams)                           \
  X(switch_pool, SwitchPoolParams)                                              \
  X(switch_gather, SwitchParams)                                                \
  X(switch_sum, SwitchParams)                                                   \
  X(switch_place, SwitchParams)                                                 \
  W(batch_norm_forward, BatchNormForwardParams)                                 \
  X(batch_norm_apply, BatchNormApplyParams)                                     \
  W(batch_norm_backward, BatchNormBackwardParams)                               \
  W(batch_norm_double_backward, BatchNormDoubleBackwardParams)                  \
  W(group_norm_forward, GroupNormForwardParams)                                 \
  W(group_norm_backward, GroupNormBackwardParams)                               \
  W(local_response_norm_forward, LocalResponseNormForwardParams)                \
  W(local_response_norm_backward, LocalResponseNormBackwardParams)              \
  W(local_response_norm_double_backward, LocalResponseNormDoubleBackwardParams) \
  X(lstm_cell_forward, LstmCellForwardParams)                                   \
  W(lstm_cell_backward, LstmCellBackwardParams)                                 \
  W(lstm_cell_double_backward, LstmCellDoubleBackwardParams)                    \
  X(recurrent_cell_forward, RecurrentCellForwardParams)                         \
  X(recurrent_cell_backward, RecurrentCellBackwardParams)                       \
  X(recurrent_cell_double_backward, RecurrentCellDoubleBackwardParams)          \
  X(recurrence_fits, RecurrenceFitsParams)                                      \
  W(recurrence_forward, RecurrenceForwardParams)                                \
  W(recurrence_backward, RecurrenceBackwardParams)

// Ops that a backend may lack, with null entries: the bindings then do them by other ops.
#define FASTNN_FOR_EACH_OPTIONAL_OP(X, W)     \
  X(lstm_step_forward, LstmStepForwardParams) \
  W(lstm_step_backward, LstmStepBackwardParams)

namespace fastnn {

struct Backend {
#define FASTNN_ENTRY(name, Params) Status (*name)(const Params&, Stream) = nullptr;
#define FASTNN_ENTRY_WITH_WORKSPACE(name, Params) \
  FASTNN_ENTRY(name, Params)                      \
  int64_t (*name##_workspace)(const Params&) = nullptr;
  FASTNN_FOR_EACH_OP(FASTNN_ENTRY, FASTNN_ENTRY_WITH_WORKSPACE)
  FASTNN_FOR_EACH_OPTIONAL_OP(FASTNN_ENTRY, FASTNN_ENTRY_WITH_WORKSPACE)
#undef FASTNN_ENTRY
#undef FASTNN_ENTRY_WITH_WORKSPACE
};

#if defined(FASTNN_BACKEND)
namespace FASTNN_BACKEND {
const Backend& table();
}
// Defines table() of the backend being compiled, with the optional ops that it has, FASTNN_FOR_EACH_OPTIONAL_OP
// or nothing; a backend in which an op is missing does not link.
#define FASTNN_TABLE_ENTRY(name, Params) &FASTNN_BACKEND::name,
#define FASTNN_TABLE_ENTRY_WITH_WORKSPACE(name, Params) \
  FASTNN_TABLE_ENTRY(name, Params) & FASTNN_BACKEND::name##_workspace,
#define FASTNN_DEFINE_TABLE(OPTIONAL)                                                                         \
  const Backend& FASTNN_BACKEND::table() {                                                                    \
    static constexpr Backend kTable{FASTNN_FOR_EACH_OP(FASTNN_TABLE_ENTRY, FASTNN_TABLE_ENTRY_WITH_WORKSPACE) \
                                        OPTIONAL(FASTNN_TABLE_ENTRY, FASTNN_TABLE_ENTRY_WITH_WORKSPACE)};     \
    return kTable;                                                                                            \
  }
#define FASTNN_NO_OPTIONAL_OP(X, W)
#endif

}  // namespace fastnn
