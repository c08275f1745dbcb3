// What forward and backward of one layer by the backend's recurrence (ops/recurrence.h) share, and whether
// there is one.
#pragma once

#include "recurrence_layer.h"

namespace fastnn::bindings {

// The cell of a layer whose tensors fit together; throws for those that do not.
RecurrentCell checked_cell(const char* op, const LayerTensors& t, const Steps& steps);

// Whether the backend's kernels are for a recurrence of these sizes; T matters from millions on.
bool kernels_fit(const at::Tensor& input, const RecurrentCell& cell, int64_t N, int64_t H, int64_t T,
                 bool normalised, bool backward);

// Kernels take tensors of one type.
void check_types(const char* op, const LayerTensors& t);

// Whether forward wants x and W_ih, and not their product.
bool kernel_multiplies_x(const at::Tensor& input, const RecurrentCell& cell, int64_t N, int64_t H, int64_t T,
                         bool normalised, bool normalised_x);

// Zoneout's d as kernels take it, of the rows that are steps or one row for all; undefined without.
at::Tensor dense_share(const Steps& steps, const OptionalTensor& d);
CellBlock share_block(BackendCall& call, const at::Tensor& dense);

// An LSTM's gains and biases, dense.
struct DenseNorm {
  DenseNorm(BackendCall& call, const OptionalTensor& x_weight, const OptionalTensor& h_weight,
            const OptionalTensor& c_weight, const OptionalTensor& c_bias);
  at::Tensor kept[4];
  CellNorm data;
};

}  // namespace fastnn::bindings
