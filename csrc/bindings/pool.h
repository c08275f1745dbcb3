// What the bindings of max pooling, average pooling and pooling with switches share: geometries and sizes.
#pragma once

#include <ATen/ATen.h>
#include <torch/library.h>

#include <string>

#include "../ops/pool.h"
#include "autograd.h"
#include "tensors.h"

namespace fastnn::bindings {

using SymSizes = c10::SmallVector<c10::SymInt, 6>;

// Sizes and options of sliding windows over an [N, C, ...] input, checked as torch checks them; the output's
// size is left open.
PoolGeometry make_pool_geometry(const char* op, at::IntArrayRef x_size, at::IntArrayRef kernel,
                                at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation);

// The same with an output of `y_size`, which must be what these windows give; without a kernel, adaptive
// windows.
PoolGeometry make_sized_geometry(const char* op, at::IntArrayRef x_size, at::IntArrayRef y_size,
                                 at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding);

// Throws where a size other than the batch's is 0.
void check_pool_input(const char* op, at::IntArrayRef x_size);

// Output sizes of sliding windows over a batched input.
SymSizes pooled_sizes(const char* op, const at::Tensor& input, at::IntArrayRef kernel, at::IntArrayRef stride,
                      at::IntArrayRef padding, bool ceil_mode);

// fastnn::max_pool, from input, kernel_size, stride, padding, dilation, ceil_mode, save_offsets, return_indices
// to output, offsets, indices.
using MaxPoolOp = std::tuple<at::Tensor, at::Tensor, at::Tensor>(const at::Tensor&, at::IntArrayRef,
                                                                 at::IntArrayRef, at::IntArrayRef,
                                                                 at::IntArrayRef, bool, bool, bool);
const c10::TypedOperatorHandle<MaxPoolOp>& max_pool_op();

}  // namespace fastnn::bindings
