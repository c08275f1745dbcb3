// A recurrent layer in one direction, and the cell stepped over its time by ops that are differentiable
// themselves.
#pragma once

#include <vector>

#include "recurrence_steps.h"
#include "recurrent_cell.h"

namespace fastnn::bindings {

// Steps for which packing the weights does not pay, nor a product of x for all of them: the cell reads the
// weights where they are.
inline constexpr int64_t kFewSteps = 3;

// The tensors of a layer; shapes in recurrence.cpp's schemas.
struct LayerTensors {
  at::Tensor input, h0;
  OptionalTensor c0, w_ih;
  at::Tensor w_hh;
  OptionalTensor b_ih, b_hh, w_hr, peephole, zoneout_h, zoneout_c, norm_x, norm_h, norm_c_weight, norm_c_bias;
  std::vector<int64_t> numbers;  // of the cell
};

// y and c of every step as rows of the steps that are; c is undefined of cells without one, and where not
// wanted.
struct SteppedLayer {
  at::Tensor y, h_n, c_n, c;
};
SteppedLayer step_through(const LayerTensors& t, const RecurrentCell& cell, const Steps& steps, bool want_c);

}  // namespace fastnn::bindings
