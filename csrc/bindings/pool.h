// What the bindings of max pooling, average pooling and pooling with switches share: geometries, torch's
// signatures of every rank, and autocast.
#pragma once

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <string>

#include "../ops/pool.h"
#include "tensors.h"

namespace fastnn::bindings {

using PoolSizes = c10::SmallVector<int64_t, 6>;
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

// Throws where the input is neither [N, C, ...] nor, unbatched, [C, ...] of this rank.
void check_pool_rank(const char* op, int64_t rank, const at::Tensor& input);

inline bool is_batched(int64_t rank, const at::Tensor& input) { return input.dim() == rank + 2; }
inline at::Tensor with_batch(int64_t rank, const at::Tensor& input) {
  return is_batched(rank, input) ? input : input.unsqueeze(0);
}
inline at::Tensor without_batch(int64_t rank, const at::Tensor& input, const at::Tensor& output) {
  return is_batched(rank, input) ? output : output.squeeze(0);
}

// Output sizes of sliding windows over a batched input.
SymSizes pooled_sizes(const char* op, const at::Tensor& input, at::IntArrayRef kernel, at::IntArrayRef stride,
                      at::IntArrayRef padding, bool ceil_mode);

// As an autocast kernel of the composite op F: its floating arguments in float32, as torch has it for ops that
// it knows no better.
template <auto* F>
struct InFloat32;
template <typename Result, typename... Args, Result (*F)(Args...)>
struct InFloat32<F> {
  static Result call(Args... args) {
    c10::DeviceType device = c10::DeviceType::CPU;
    const auto find = [&](const auto& argument) {
      if constexpr (std::is_same_v<std::decay_t<decltype(argument)>, at::Tensor>)
        device = argument.device().type();
    };
    (find(args), ...);
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(
        c10::DispatchKeySet(at::autocast::get_autocast_dispatch_key_from_device_type(device)));
    return F(cast(args, device)...);
  }

 private:
  static at::Tensor cast(const at::Tensor& t, c10::DeviceType device) {
    return at::autocast::cached_cast(at::kFloat, t, device);
  }
  template <typename T>
  static const T& cast(const T& argument, c10::DeviceType) {
    return argument;
  }
};

}  // namespace fastnn::bindings
