// What the functions of torch's signatures, of fixed rank, share: the tensors' ranks, unbatched inputs,
// autocast.
#pragma once

#include <ATen/autocast_mode.h>

#include <type_traits>

#include "conv_ops.h"

namespace fastnn::bindings {

// Calls f(integral_constant) for the ranks 1 to 3.
template <typename F>
void for_each_rank(F&& f) {
  f(std::integral_constant<int64_t, 1>());
  f(std::integral_constant<int64_t, 2>());
  f(std::integral_constant<int64_t, 3>());
}

inline void check_input_rank(const char* op, int64_t rank, const at::Tensor& input) {
  TORCH_CHECK(input.dim() == rank + 1 || input.dim() == rank + 2, op, ": Expected ", rank + 1,
              "D (unbatched) or ", rank + 2, "D (batched) input, but got input of size: ", input.sym_sizes());
}

inline void check_rank(const char* op, int64_t rank, const at::Tensor& input, const at::Tensor& weight) {
  TORCH_CHECK(weight.dim() == rank + 2, op, ": Expected ", rank + 2, "D weight, but got weight of size ",
              weight.sym_sizes());
  check_input_rank(op, rank, input);
}

// compute(input), or of an unbatched one as a batch of one.
template <typename F>
at::Tensor batched(int64_t rank, const at::Tensor& input, const F& compute) {
  return input.dim() == rank + 2 ? compute(input) : compute(input.unsqueeze(0)).squeeze(0);
}

// While it lives autocast is off; it casts to the lower precision, as torch casts its own convolutions.
class Autocast {
 public:
  explicit Autocast(const at::Tensor& input)
      : device_(input.device().type()),
        type_(at::autocast::get_lower_precision_fp_from_device_type(device_)),
        off_(c10::DispatchKeySet(at::autocast::get_autocast_dispatch_key_from_device_type(device_))) {}

  template <typename T>
  T operator()(const T& tensor) const {
    return at::autocast::cached_cast(type_, tensor, device_);
  }

 private:
  const c10::DeviceType device_;
  const at::ScalarType type_;
  const c10::impl::ExcludeDispatchKeyGuard off_;
};

}  // namespace fastnn::bindings
