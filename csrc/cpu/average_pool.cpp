// Average and L_p pooling on the CPU; the formulas stand in ops/average_pool.h.
//
// What bounds it: memory. Forward reads x once and writes y; backward reads grad_y (and y and x where there is
// a power) and writes grad_x once. Windows are separable, so that rows are added before columns: an output of a
// kh x kw window costs kh / W + kw additions, where adding tap by tap costs kh * kw. Every output and every
// position of grad_x is computed by one thread in an order that its place fixes.
//
//   channels last             W channels of one position
//   channels first, global    planes of one window: W values of one
//   channels first, windows   other wide windows: W values along a window's row
//   channels first, rows      the rest: W columns of a row, then the columns of each window
//
// Windows are first simplified (ops/average_pool.h), which makes a plane of global pooling one row.
//
// Error: forward (positions of a window - 1) additions and one division in acc_t, of L_p also the powers and
// roots, each of which errs by some units; backward (windows that reach a position) additions and 4 roundings
// of each term; and one rounding to the element type.
#include "../ops/average_pool.h"

#include "average_pool_backward.h"
#include "average_pool_forward.h"
#include "dispatch.h"

namespace fastnn::FASTNN_BACKEND {
namespace {

using namespace pool;

// f(TypeTag, std::bool_constant of whether there is a power)
template <typename F>
Status dispatch(DType dtype, bool power, const F& f) {
  return dispatch_dtype(dtype, [&](auto scalar) {
    if (power) {
      f(scalar, std::true_type{});
    } else {
      f(scalar, std::false_type{});
    }
    return Status::success();
  });
}

}  // namespace

Status average_pool_forward(const AveragePoolForwardParams& params, Stream) {
  AveragePoolForwardParams p = params;
  simplify(p.geometry, p.options);
  return dispatch(p.dtype, p.options.power, [&](auto scalar, auto power) {
    using scalar_t = typename decltype(scalar)::type;
    if (channels_last(p.geometry)) return average_pool_forward_channels_last<scalar_t, power>(p);
    if (is_global(p.geometry)) return average_pool_forward_global<scalar_t, power>(p);
    if (has_wide_windows<acc_type<scalar_t>>(p.geometry))
      return average_pool_forward_windows<scalar_t, power>(p);
    average_pool_forward_rows<scalar_t, power>(p);
  });
}

Status average_pool_backward(const AveragePoolBackwardParams& params, Stream) {
  AveragePoolBackwardParams p = params;
  simplify(p.geometry, p.options);
  return dispatch(p.dtype, p.options.power, [&](auto scalar, auto power) {
    using scalar_t = typename decltype(scalar)::type;
    if (channels_last(p.geometry)) return average_pool_backward_channels_last<scalar_t, power>(p);
    if (is_global(p.geometry)) return average_pool_backward_global<scalar_t, power>(p);
    average_pool_backward_rows<scalar_t, power>(p);
  });
}

}  // namespace fastnn::FASTNN_BACKEND
