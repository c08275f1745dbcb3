#include "backend.h"

#include <ATen/Functions.h>
#include <dlfcn.h>

#include <mutex>

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

// What the emulator's library exports. Of a call's memory, `flags` says what kernels may do with it.
struct Emulator {
  const Backend* table = nullptr;
  void (*begin_call)();  // forgets all memory
  void (*announce)(const void* begin, uint64_t bytes, uint32_t flags, const char* what);
  void (*end_call)();
};
constexpr uint32_t kMayWrite = 1, kUninitialised = 2;

Emulator emulator;
bool emulated = false;
// What is announced is the library's and not a thread's: one call at a time.
std::mutex emulated_call;

void refuse(const c10::Device& device) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !device.is_cuda(), "fastnn: got a tensor on ", device,
      ", but this build has no CUDA kernels. Rebuild it where nvcc and a CUDA build of torch are: "
      "pip install --no-build-isolation --force-reinstall fastnn (`fastnn info` shows what was built).");
  TORCH_CHECK_NOT_IMPLEMENTED(false, "fastnn: got a tensor on ", device,
                              "; expected one on cpu or cuda. Move it with .to('cpu') or .to('cuda').");
}

const Backend& required(const Backend* backend, const c10::Device& device) {
  if (backend == nullptr) refuse(device);
  return *backend;
}

Stream stream_for(const c10::Device& device) {
#if defined(FASTNN_WITH_CUDA)
  if (device.is_cuda()) return c10::cuda::getCurrentCUDAStream(device.index()).stream();
#endif
  (void)device;
  return nullptr;
}

}  // namespace

const Backend* BackendCall::find(const c10::Device& device) {
  if (device.is_cpu()) return emulated ? emulator.table : &cpu::backend();
#if defined(FASTNN_WITH_CUDA)
  if (device.is_cuda()) return &cuda::table();
#endif
  return nullptr;
}

BackendCall::BackendCall(const at::Tensor& tensor)
    : table_(required(find(tensor.device()), tensor.device())),
      guard_(tensor.device().is_cpu() ? std::nullopt : std::optional<c10::Device>(tensor.device())),
      device_(tensor.device()),
      stream_(stream_for(tensor.device())),
      emulated_(emulated && tensor.device().is_cpu()) {}

void BackendCall::note(const at::Tensor& t, const void* begin, Use use) {
  if (t.numel() == 0) return;
  int64_t last = 0;  // the last element, counted from the first
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  noted_.push_back(
      {begin, static_cast<uint64_t>(last + 1) * t.element_size(), use, c10::str(t.scalar_type(), t.sizes())});
}

void BackendCall::Announcement::begin(const std::vector<Memory>& memory) {
  emulated_call.lock();
  emulator.begin_call();
  for (const Memory& m : memory) {
    const uint32_t flags = m.use == Use::kRead     ? 0
                           : m.use == Use::kUpdate ? kMayWrite
                                                   : kMayWrite | kUninitialised;
    emulator.announce(m.begin, m.bytes, flags, m.what.c_str());
  }
}

void BackendCall::Announcement::end() {
  emulator.end_call();
  emulated_call.unlock();
}

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
  const auto find = [&](const char* name, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    TORCH_CHECK(function != nullptr, "fastnn: ", path, " is no emulator library of this version: it has no ",
                name);
  };
  Emulator found;
  const Backend* (*backend)();
  find("fastnn_emulator_backend", backend);
  find("fastnn_emulator_begin_call", found.begin_call);
  find("fastnn_emulator_announce", found.announce);
  find("fastnn_emulator_end_call", found.end_call);
  found.table = backend();
  emulator = found;
}

bool set_emulated(bool on) {
  TORCH_CHECK(!on || emulator.table != nullptr,
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
