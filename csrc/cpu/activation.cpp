// The activations of ops/activation.h by themselves, behind a sum where there is one.
//
// An elementwise map, bound by memory where the activation is cheap: x and the residual are read, y is written,
// past the caches where it is large. In backward grad_y and what was kept are read.
#include "../ops/activation.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "activation.h"
#include "cache_hints.h"
#include "dispatch.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND {
namespace {

// Elements of a task.
constexpr int64_t kBlock = 4096;
// Tasks below which the calling thread does all: about 10 us, what waking the pool costs.
constexpr int64_t kGrainRectified = 8, kGrainCurved = 2;

// out[i] = f(i, lanes), `lanes` of them at once.
template <Activation kKind, typename scalar_t, typename F>
void map_elements(scalar_t* out, int64_t count, const F& f) {
  using acc_t = acc_type<scalar_t>;
  const bool streams = streams_lines(out, count);
  parallel_for((count + kBlock - 1) / kBlock, kKind == Activation::kRectify ? kGrainRectified : kGrainCurved,
               [&](int64_t begin, int64_t end) {
                 const int64_t last = std::min(end * kBlock, count);
                 for_each_vector<acc_t>(begin * kBlock, last,
                                        [&](int64_t i, int64_t n) __attribute__((always_inline)) {
                                          const Vec<acc_t> value = f(i, n);
                                          if (streams && n == kLanes<acc_t>) {
                                            store_stream(out + i, value);
                                          } else {
                                            store_acc(out + i, value, n);
                                          }
                                        });
                 if (streams) end_stream();
               });
}

// x + residual, which may be null.
template <typename scalar_t>
inline __attribute__((always_inline)) Vec<acc_type<scalar_t>> sum_at(const scalar_t* x,
                                                                     const scalar_t* residual, int64_t i,
                                                                     int64_t n) {
  const auto v = load_acc(x + i, n);
  return residual == nullptr ? v : v + load_acc(residual + i, n);
}

// f(kind) with the kind as a constant, so that its formula stands in the loop: vectors are then computed side
// by side, which calls would not be.
template <Activation kKind>
using Kind = std::integral_constant<Activation, kKind>;
template <typename F>
void with_kind(Activation kind, const F& f) {
  switch (kind) {
    case Activation::kNone:
    case Activation::kRectify:
      return f(Kind<Activation::kRectify>());
    case Activation::kElu:
      return f(Kind<Activation::kElu>());
    case Activation::kSoftplus:
      return f(Kind<Activation::kSoftplus>());
    case Activation::kSigmoid:
      return f(Kind<Activation::kSigmoid>());
    case Activation::kTanh:
      return f(Kind<Activation::kTanh>());
    case Activation::kHardSigmoid:
      return f(Kind<Activation::kHardSigmoid>());
    case Activation::kGelu:
      return f(Kind<Activation::kGelu>());
    case Activation::kGeluTanh:
      return f(Kind<Activation::kGeluTanh>());
    case Activation::kSilu:
      return f(Kind<Activation::kSilu>());
  }
}

template <typename scalar_t>
void forward(const ActivationForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const auto* const x = static_cast<const scalar_t*>(p.x);
  const auto* const residual = static_cast<const scalar_t*>(p.residual);
  const auto alpha = static_cast<acc_t>(p.alpha);
  with_kind(p.kind, [&](auto kind) {
    map_elements<kind()>(
        static_cast<scalar_t*>(p.y), p.count, [=](int64_t i, int64_t n) __attribute__((always_inline)) {
          return activation_value<ActivationMath<acc_t>>(kind(), alpha, sum_at(x, residual, i, n));
        });
  });
}

template <typename scalar_t>
void backward(const ActivationBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const auto* const gy = static_cast<const scalar_t*>(p.grad_y);
  const auto* const kept = static_cast<const scalar_t*>(p.x);
  const auto* const residual = static_cast<const scalar_t*>(p.residual);
  const auto alpha = static_cast<acc_t>(p.alpha);
  with_kind(p.kind, [&](auto kind) {
    map_elements<kind()>(static_cast<scalar_t*>(p.grad_x), p.count,
                         [=](int64_t i, int64_t n) __attribute__((always_inline)) {
                           return activation_gradient<ActivationMath<acc_t>>(kind(), alpha, load_acc(gy + i, n),
                                                                             sum_at(kept, residual, i, n));
                         });
  });
}

}  // namespace

Status activation_forward(const ActivationForwardParams& p, Stream) {
  return dispatch_dtype(p.dtype, [&](auto scalar) {
    forward<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

Status activation_backward(const ActivationBackwardParams& p, Stream) {
  return dispatch_dtype(p.dtype, [&](auto scalar) {
    backward<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

}  // namespace fastnn::FASTNN_BACKEND
