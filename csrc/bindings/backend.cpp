#include "backend.h"

#include <ATen/Functions.h>
#include <dlfcn.h>

#include "../cpu/capability.h"

#if defined(FASTNN_WITH_CUDA)
#include <c10/cuda/CUDAStream.h>
#endif

namespace fastnn {

#if defined(FASTNN_WITH_CUDA)
namespace cuda {
const Backend& table();
}
#endif

namespace bindings {

namespace {

const Backend* emulator_table = nullptr;
bool emulated = false;

const Backend& backend_for(const c10::Device& device) {
  if (device.is_cpu()) return emulated ? *emulator_table : cpu::backend();
#if defined(FASTNN_WITH_CUDA)
  if (device.is_cuda()) return cuda::table();
#endif
  TORCH_CHECK_NOT_IMPLEMENTED(
      !device.is_cuda(), "fastnn: got a tensor on ", device,
      ", but this build has no CUDA kernels. Rebuild it where nvcc and a CUDA build of torch are: "
      "pip install --no-build-isolation --force-reinstall fastnn (`fastnn info` shows what was built).");
  TORCH_CHECK_NOT_IMPLEMENTED(false, "fastnn: got a tensor on ", device,
                              "; expected one on cpu or cuda. Move it with .to('cpu') or .to('cuda').");
}

Stream stream_for(const c10::Device& device) {
#if defined(FASTNN_WITH_CUDA)
  if (device.is_cuda()) return c10::cuda::getCurrentCUDAStream(device.index()).stream();
#endif
  (void)device;
  return nullptr;
}

}  // namespace

BackendCall::BackendCall(const at::Tensor& tensor)
    : table_(backend_for(tensor.device())),
      guard_(tensor.device().is_cpu() ? std::nullopt : std::optional<c10::Device>(tensor.device())),
      device_(tensor.device()),
      stream_(stream_for(tensor.device())) {}

void BackendCall::check(const Status& status) {
  if (status.ok()) return;
  const std::string_view message(status.message);
  const char* advice =
      message.find("no kernel image") == std::string_view::npos
          ? ""
          : ". This build has no code for this GPU: rebuild fastnn with FASTNN_CUDA_ARCHS naming its "
            "compute capability (`fastnn info` shows both)";
  TORCH_CHECK(false, "fastnn: ", status.where == nullptr ? "kernel" : status.where, ": ", message, advice);
}

at::Tensor BackendCall::allocate(int64_t bytes) const {
  if (bytes == 0) return {};
  return at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device_));
}

void load_emulator(const std::string& path) {
  // RTLD_LOCAL: the library defines the same cuda:: symbols as a CUDA build of this extension.
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  TORCH_CHECK(library != nullptr, "fastnn: cannot load the emulator from ", path, ": ", dlerror());
  using Entry = const Backend* (*)();
  const auto entry = reinterpret_cast<Entry>(dlsym(library, "fastnn_emulator_backend"));
  TORCH_CHECK(entry != nullptr, "fastnn: ", path,
              " is not an emulator library: it has no fastnn_emulator_backend");
  emulator_table = entry();
}

bool set_emulated(bool on) {
  TORCH_CHECK(!on || emulator_table != nullptr,
              "fastnn: load_emulator(path) must come before set_emulated(True)");
  const bool before = emulated;
  emulated = on;
  return before;
}

bool built_with_cuda() {
#if defined(FASTNN_WITH_CUDA)
  return true;
#else
  return false;
#endif
}

}  // namespace bindings
}  // namespace fastnn
