// Autocast of ops that are composed of others: their kernels at the autocast keys cast and call the op again.
#pragma once

#include <ATen/autocast_mode.h>

#include <optional>
#include <type_traits>

namespace fastnn::bindings {

// While it lives autocast is off, on every device: a kernel that stands at one device's key may have been
// called for another argument than `input`. It casts to `type`, or to the lower precision of input's device.
class Autocast {
 public:
  explicit Autocast(const at::Tensor& input, std::optional<at::ScalarType> type = std::nullopt)
      : device_(input.device().type()),
        type_(type.has_value() ? *type : at::autocast::get_lower_precision_fp_from_device_type(device_)),
        off_(c10::autocast_dispatch_keyset) {}

  // Floating-point tensors other than float64 are cast, and everything else passes through.
  template <typename T>
  decltype(auto) operator()(const T& argument) const {
    if constexpr (std::is_same_v<T, at::Tensor> || std::is_same_v<T, std::optional<at::Tensor>>) {
      return at::autocast::cached_cast(type_, argument, device_);
    } else {
      return (argument);
    }
  }

 private:
  const c10::DeviceType device_;
  const at::ScalarType type_;
  const c10::impl::ExcludeDispatchKeyGuard off_;
};

// As an autocast kernel of the composite op F, whose first argument is its input: float32, as torch has it for
// ops that it knows no better.
template <auto* F>
struct InFloat32;
template <typename Result, typename... Args, Result (*F)(const at::Tensor&, Args...)>
struct InFloat32<F> {
  static Result call(const at::Tensor& input, Args... args) {
    const Autocast cast(input, at::kFloat);
    return F(cast(input), cast(args)...);
  }
};

}  // namespace fastnn::bindings
