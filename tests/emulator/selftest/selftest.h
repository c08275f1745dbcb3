// The emulator's own tests: small kernels with a known outcome, compiled for the emulator and, by nvcc, for a
// device, where compute-sanitizer gives a second opinion.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <memory>
#include <vector>

#include "../../../csrc/cuda/platform.cuh"

#if defined(FASTNN_EMULATOR)
#include "../memory/device_memory.h"
#endif

namespace fastnn::selftest {

inline constexpr unsigned kFullMask = 0xffffffffu;

// Bytes of device memory and what the host sees of them. On a device these are copies, made when a kernel is
// run and when the host looks: memory that both may touch would hide from compute-sanitizer what nobody has
// written.
class DeviceMemory {
 public:
  DeviceMemory(size_t bytes, bool uninitialized);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  void* device() { return device_; }
  void* host();
  // Before a kernel is run: what the host may have written goes to the device.
  static void upload();

 private:
  void* device_ = nullptr;
#if !defined(FASTNN_EMULATOR)
  static std::vector<DeviceMemory*>& all() {
    static std::vector<DeviceMemory*> instance;
    return instance;
  }
  std::unique_ptr<std::byte[]> host_;
  size_t bytes_;
  bool newer_on_host_;
#endif
};

#if defined(FASTNN_EMULATOR)
inline DeviceMemory::DeviceMemory(size_t bytes, bool uninitialized)
    : device_(emulator::allocate_device_memory(bytes, uninitialized)) {}
inline DeviceMemory::~DeviceMemory() { emulator::free_device_memory(device_); }
inline void* DeviceMemory::host() { return device_; }
inline void DeviceMemory::upload() {}
inline Status finish(Status status) { return status; }
#else
inline DeviceMemory::DeviceMemory(size_t bytes, bool uninitialized)
    : host_(new std::byte[bytes]()), bytes_(bytes), newer_on_host_(!uninitialized) {
  if (cudaMalloc(&device_, bytes) != cudaSuccess) device_ = nullptr;  // the kernel will tell
  all().push_back(this);
}
inline DeviceMemory::~DeviceMemory() {
  std::erase(all(), this);
  cudaFree(device_);
}
inline void* DeviceMemory::host() {
  if (!newer_on_host_) cudaMemcpy(host_.get(), device_, bytes_, cudaMemcpyDeviceToHost);
  newer_on_host_ = true;
  return host_.get();
}
inline void DeviceMemory::upload() {
  for (DeviceMemory* memory : all()) {
    if (memory->newer_on_host_) {
      cudaMemcpy(memory->device_, memory->host_.get(), memory->bytes_, cudaMemcpyHostToDevice);
    }
    memory->newer_on_host_ = false;
  }
}
inline Status finish(Status status) {
  if (!status.ok()) return status;
  const cudaError_t error = cudaDeviceSynchronize();
  return error == cudaSuccess ? Status::success() : Status::error(cudaGetErrorString(error), "kernel");
}
#endif

// An array in device memory. data() is for kernels; the host goes through [], begin() and end().
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count, T value = T{}) : DeviceArray(count, Initialized{true}) {
    for (T& element : *this) element = value;
  }
  DeviceArray(std::initializer_list<T> values) : DeviceArray(values.size(), Initialized{true}) {
    size_t i = 0;
    for (const T& value : values) (*this)[i++] = value;
  }
  // Nobody has written it: to read it is an error.
  static DeviceArray uninitialized(size_t count) { return DeviceArray(count, Initialized{false}); }

  T* data() { return static_cast<T*>(memory_->device()); }
  const T* data() const { return static_cast<const T*>(memory_->device()); }
  size_t size() const { return count_; }
  T& operator[](size_t i) { return static_cast<T*>(memory_->host())[i]; }
  const T& operator[](size_t i) const { return static_cast<const T*>(memory_->host())[i]; }
  T* begin() { return static_cast<T*>(memory_->host()); }
  T* end() { return begin() + count_; }
  const T* begin() const { return static_cast<const T*>(memory_->host()); }
  const T* end() const { return begin() + count_; }

 private:
  struct Initialized {
    bool yes;
  };
  DeviceArray(size_t count, Initialized initialized)
      : memory_(std::make_unique<DeviceMemory>(count * sizeof(T), !initialized.yes)), count_(count) {}
  std::unique_ptr<DeviceMemory> memory_;
  size_t count_;
};

struct Case {
  const char* name;
  // Null for a correct kernel. For a faulty one a regular expression of what must be said of it, where threads
  // run in natural order, and which tool of compute-sanitizer should see it on a device: memcheck, racecheck,
  // initcheck, synccheck, or none. Some hang there, with or without a tool: "hangs".
  const char* expected;
  const char* tool;
  // Null when everything was right; otherwise what was wrong, or what the launch said.
  const char* (*run)();
};

// A case adds itself by being defined.
class Registered {
 public:
  explicit Registered(const Case& entry);
};
const std::vector<Case>& cases();

// Formats a message that lives until the next one.
__attribute__((format(printf, 1, 2))) const char* complain(const char* format, ...);

// A correct kernel: right in every order of execution, and accused of nothing.
#define FASTNN_CORRECT(id)                                                                                \
  const char* run_##id();                                                                                 \
  const Registered registered_##id{{.name = #id, .expected = nullptr, .tool = "none", .run = &run_##id}}; \
  const char* run_##id()

// A kernel with one mistake.
#define FASTNN_FAULTY(id, sanitizer_tool, regular_expression)                                   \
  const char* run_##id();                                                                       \
  const Registered registered_##id{                                                             \
      {.name = #id, .expected = regular_expression, .tool = sanitizer_tool, .run = &run_##id}}; \
  const char* run_##id()

// Within a case: waits for the kernel and ends the case with what the launch said when it failed. A GPU of
// another kind than the kernel needs (no clusters, no wgmma) is the runner's to know.
#define FASTNN_RUN(...) FASTNN_RUN_WITH(fastnn::cuda::launch, __VA_ARGS__)
// The same for another function than launch() that launches kernels and returns a Status.
#define FASTNN_RUN_WITH(launcher, ...)                                         \
  do {                                                                         \
    DeviceMemory::upload();                                                    \
    const Status status = finish(launcher(__VA_ARGS__));                       \
    if (!status.ok()) return complain("%s: %s", status.where, status.message); \
  } while (false)

#define FASTNN_EXPECT(condition, ...)               \
  do {                                              \
    if (!(condition)) return complain(__VA_ARGS__); \
  } while (false)

}  // namespace fastnn::selftest
