// What the files of the recurrent layers' ops share: which cell it is, and the cell after its matrix products.
#pragma once

#include <ATen/TensorOperators.h>

#include <tuple>

#include "../ops/recurrent_cell.h"
#include "autograd.h"

namespace fastnn::bindings {

// A cell from the numbers by which the ops name it: kind, gate, candidate and output activation, coupled,
// peephole_previous, z_takes, z_sees_h, z_sees_tanh_h. What it has besides is told by the tensors.
RecurrentCell cell_of(const char* op, at::IntArrayRef numbers, bool peephole, bool zoneout_h, bool zoneout_c);

// One stage of a cell; which tensors it takes stands in ops/recurrent_cell.h: a and u are rows of blocks, c the
// cell's state (of kBlend z), peephole [3, H] ([2, H] of a coupled cell), d_h and d_c [N, H] or [H]. The second
// result is a tensor of no elements where the stage has one output. Differentiable twice, by all but d_h and
// d_c.
std::tuple<at::Tensor, at::Tensor> recurrent_cell(const at::Tensor& a, const OptionalTensor& u,
                                                  const OptionalTensor& c, const OptionalTensor& h,
                                                  const OptionalTensor& peephole, const OptionalTensor& d_h,
                                                  const OptionalTensor& d_c, CellStage stage,
                                                  at::IntArrayRef cell);

}  // namespace fastnn::bindings
