// Which backend serves a tensor, on which stream, and how a Status becomes an exception.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include <string>
#include <vector>

#include "../ops/backend.h"

namespace fastnn::bindings {

// What a call into a backend needs, for the device of one tensor: the table, the current stream, and the
// device made current for as long as this lives. Throws when no backend of this build serves the device.
class BackendCall {
 public:
  explicit BackendCall(const at::Tensor& tensor);

  // Whether the backend that serves a tensor's device has an optional op; false where there is no backend.
  template <typename Entry>
  static bool has(const at::Tensor& tensor, Entry Backend::* entry) {
    const Backend* const backend = find(tensor.device());
    return backend != nullptr && backend->*entry != nullptr;
  }

  const c10::Device& device() const { return device_; }

  // On a GPU or in the emulator.
  bool runs_cuda_kernels() const { return emulated_ || device_.is_cuda(); }

  // The pointers that go into the parameters: to what kernels read, to what they update in place, and to what
  // holds nothing until they have written it. Null for an undefined tensor or none. The emulator is told of
  // each: there it is an error to touch any other memory, or to do more with this than was said.
  const void* data(const at::Tensor& t) {
    if (!t.defined()) return nullptr;
    const void* const begin = t.const_data_ptr();
    if (emulated_) note(t, begin, Use::kRead);
    return begin;
  }
  const void* data(const std::optional<at::Tensor>& t) { return t.has_value() ? data(*t) : nullptr; }
  void* mutable_data(const at::Tensor& t) { return writable(t, Use::kUpdate); }
  void* output(const at::Tensor& t) { return writable(t, Use::kOutput); }

  // Runs one entry point; a failed Status becomes a RuntimeError.
  template <typename Params>
  void operator()(Status (*Backend::*entry)(const Params&, Stream), const Params& params) {
    const Announcement announcement(*this);
    check((table_.*entry)(params, stream_));
  }

  // The same for an entry point with scratch memory, which lives until the call has been queued (on a GPU the
  // caching allocator keeps it from other streams).
  template <typename Params>
  void operator()(Status (*Backend::*entry)(const Params&, Stream),
                  int64_t (*Backend::*workspace)(const Params&), Params& params) {
    const at::Tensor scratch = allocate((table_.*workspace)(params));
    params.workspace = output(scratch);
    const bool noted = !noted_.empty() && scratch.defined();
    if (noted) noted_.back().what = "workspace";
    (*this)(entry, params);
    if (noted) noted_.pop_back();
  }

 private:
  enum class Use { kRead, kUpdate, kOutput };
  struct Memory {
    const void* begin;
    uint64_t bytes;
    Use use;
    std::string what;
  };

  // The emulator knows what was noted for as long as this lives.
  class Announcement {
   public:
    explicit Announcement(const BackendCall& call) : made_(call.emulated_) {
      if (made_) begin(call.noted_);
    }
    ~Announcement() {
      if (made_) end();
    }
    Announcement(const Announcement&) = delete;
    Announcement& operator=(const Announcement&) = delete;

   private:
    static void begin(const std::vector<Memory>& memory);
    static void end();
    const bool made_;
  };

  // Null where no backend of this build serves the device.
  static const Backend* find(const c10::Device& device);

  void* writable(const at::Tensor& t, Use use) {
    if (!t.defined()) return nullptr;
    void* const begin = t.mutable_data_ptr();
    if (emulated_) note(t, begin, use);
    return begin;
  }
  void note(const at::Tensor& t, const void* begin, Use use);
  static void check(const Status& status);
  at::Tensor allocate(int64_t bytes) const;

  const Backend& table_;
  c10::OptionalDeviceGuard guard_;
  c10::Device device_;
  Stream stream_;
  const bool emulated_;
  std::vector<Memory> noted_;
};

// While emulation is on, CPU tensors go to the emulated CUDA kernels of the library that load_emulator opened.
void load_emulator(const std::string& path);
bool set_emulated(bool on);

// Whether this extension was linked with CUDA kernels.
bool built_with_cuda();

}  // namespace fastnn::bindings
