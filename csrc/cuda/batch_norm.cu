// Batch normalisation; the formulas stand in ops/batch_norm.h and ops/batch_norm_math.h.
//
// Every direction is a reduction per channel and a map of the elements, of which each has ops of its own
// (batch_norm_forward.cuh, batch_norm_backward.cuh, batch_norm_double_backward.cuh) for passes that know
// nothing of batch norm. All are bound by memory; accesses of an element, in training:
//
//                     one launch, a channel on the chip    two passes, three launches
//   forward           2: x; y                              3: x twice
//   backward          3: grad_y, x; grad_x                 5: grad_y and x twice
//   double backward                                        8: gg_x, grad_y and x twice; d_grad_y, d_x
//
// Which of the two it is: choose_variant in channels_held_plan.cuh. Evaluation needs no statistics: forward and
// backward are one map (2 accesses), plus one reduction where the parameters' gradients are wanted.
#include "../ops/batch_norm.h"
#include "batch_norm_backward.cuh"
#include "batch_norm_double_backward.cuh"
#include "batch_norm_forward.cuh"
#include "dispatch.cuh"

namespace fastnn::cuda {
namespace {

// The bytes that f says of the dtype.
template <typename F>
int64_t workspace_of(DType dtype, const F& f) {
  int64_t bytes = 0;
  dispatch_dtype(dtype, [&](auto tag) {
    bytes = f(tag);
    return Status::success();
  });
  return bytes;
}

template <typename scalar_t>
Status apply(const BatchNormApplyParams& p, Stream stream) {
  const ChannelShape shape(p.shape.layout, p.shape.N, p.shape.C, p.shape.S);
  return p.grad_y == nullptr ? normalise_again<scalar_t>(p, shape, stream)
                             : activation_gradient<scalar_t>(p, shape, stream);
}

}  // namespace

Status batch_norm_forward(const BatchNormForwardParams& p, Stream stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) { return forward<typename decltype(tag)::type>(p, stream); });
}

int64_t batch_norm_forward_workspace(const BatchNormForwardParams& p) {
  return workspace_of(p.dtype, [&](auto tag) { return forward_workspace<typename decltype(tag)::type>(p); });
}

Status batch_norm_apply(const BatchNormApplyParams& p, Stream stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) { return apply<typename decltype(tag)::type>(p, stream); });
}

Status batch_norm_backward(const BatchNormBackwardParams& p, Stream stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) { return backward<typename decltype(tag)::type>(p, stream); });
}

int64_t batch_norm_backward_workspace(const BatchNormBackwardParams& p) {
  return workspace_of(p.dtype, [&](auto tag) { return backward_workspace<typename decltype(tag)::type>(p); });
}

Status batch_norm_double_backward(const BatchNormDoubleBackwardParams& p, Stream stream) {
  return dispatch_dtype(p.dtype,
                        [&](auto tag) { return double_backward<typename decltype(tag)::type>(p, stream); });
}

int64_t batch_norm_double_backward_workspace(const BatchNormDoubleBackwardParams& p) {
  return workspace_of(p.dtype,
                      [&](auto tag) { return double_backward_workspace<typename decltype(tag)::type>(p); });
}

}  // namespace fastnn::cuda
