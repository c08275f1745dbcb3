// Which backend serves a tensor, on which stream, and how a Status becomes an exception.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include <string>

#include "../ops/backend.h"

namespace fastnn::bindings {

// What a call into a backend needs, for the device of one tensor: the table, the current stream, and the
// device made current for as long as this lives. Throws when no backend of this build serves the device.
class BackendCall {
 public:
  explicit BackendCall(const at::Tensor& tensor);

  // Runs one entry point; a failed Status becomes a RuntimeError.
  template <typename Params>
  void operator()(Status (*Backend::*entry)(const Params&, Stream), const Params& params) const {
    check((table_.*entry)(params, stream_));
  }

  // The same for an entry point with scratch memory, which lives until the call has been queued (on a GPU the
  // caching allocator keeps it from other streams).
  template <typename Params>
  void operator()(Status (*Backend::*entry)(const Params&, Stream),
                  int64_t (*Backend::*workspace)(const Params&), Params& params) const {
    const at::Tensor scratch = allocate((table_.*workspace)(params));
    params.workspace = scratch.defined() ? scratch.data_ptr() : nullptr;
    check((table_.*entry)(params, stream_));
  }

 private:
  static void check(const Status& status);
  at::Tensor allocate(int64_t bytes) const;

  const Backend& table_;
  c10::OptionalDeviceGuard guard_;
  c10::Device device_;
  Stream stream_;
};

// While emulation is on, CPU tensors go to the emulated CUDA kernels of the library that load_emulator opened.
void load_emulator(const std::string& path);
bool set_emulated(bool on);

// Whether this extension was linked with CUDA kernels.
bool built_with_cuda();

}  // namespace fastnn::bindings
