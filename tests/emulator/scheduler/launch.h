// Runs a kernel over a grid. Synchronous: the launch returns when the grid is done, so the stream is unused.
#pragma once

#include <cstddef>
#include <tuple>

#include "../../../csrc/cuda/device_limits.h"
#include "../../../csrc/ops/status.h"
#include "../../../csrc/ops/stream.h"
#include "../intrinsics/cuda_types.h"

namespace fastnn::emulator {

struct LaunchShape {
  dim3 grid, block, cluster;
  size_t dynamic_shared_bytes;
  bool cooperative = false;
};

// A failure names the kernel in Status::where; its message begins with the block. Both live as long as the
// process.
Status run_grid(const char* name, const LaunchShape& shape, void (*run_thread)(const void* arguments),
                const void* arguments, size_t argument_bytes);
// Of a block of so many threads, on a multiprocessor at once.
unsigned resident_blocks(unsigned threads, size_t shared_bytes);
unsigned multiprocessors();
unsigned compute_capability();
unsigned shared_bytes();

template <typename... KernelArgs, typename... Args>
Status run_kernel(const char* name, void (*kernel)(KernelArgs...), const LaunchShape& shape,
                  const Args&... args) {
  using Call = std::tuple<void (*)(KernelArgs...), KernelArgs...>;
  const Call call{kernel, static_cast<KernelArgs>(args)...};
  const auto run_thread = [](const void* arguments) {
    std::apply([](auto function, const auto&... values) { function(values...); },
               *static_cast<const Call*>(arguments));
  };
  return run_grid(name, shape, run_thread, &call, sizeof(call));
}

}  // namespace fastnn::emulator

namespace fastnn::cuda {

template <typename... KernelArgs, typename... Args>
Status launch(const char* name, void (*kernel)(KernelArgs...), dim3 grid, dim3 block,
              size_t dynamic_shared_bytes, Stream /*stream*/, const Args&... args) {
  return emulator::run_kernel(
      name, kernel,
      {.grid = grid, .block = block, .cluster = dim3(1), .dynamic_shared_bytes = dynamic_shared_bytes},
      args...);
}

template <typename... KernelArgs, typename... Args>
Status launch_cluster(const char* name, void (*kernel)(KernelArgs...), dim3 grid, dim3 cluster, dim3 block,
                      size_t dynamic_shared_bytes, Stream /*stream*/, const Args&... args) {
  return emulator::run_kernel(
      name, kernel,
      {.grid = grid, .block = block, .cluster = cluster, .dynamic_shared_bytes = dynamic_shared_bytes},
      args...);
}

template <typename... KernelArgs, typename... Args>
Status launch_cooperative(const char* name, void (*kernel)(KernelArgs...), dim3 grid, dim3 block,
                          size_t dynamic_shared_bytes, Stream /*stream*/, const Args&... args) {
  return emulator::run_kernel(name, kernel,
                              {.grid = grid,
                               .block = block,
                               .cluster = dim3(1),
                               .dynamic_shared_bytes = dynamic_shared_bytes,
                               .cooperative = true},
                              args...);
}

inline DeviceLimits device_limits() {
  return {static_cast<int>(emulator::multiprocessors()), static_cast<int>(emulator::shared_bytes()),
          static_cast<int>(emulator::compute_capability())};
}

template <int kBlocks, typename... KernelArgs>
int resident_clusters(void (*)(KernelArgs...), int /*threads*/) {
  return device_limits().clusters() ? device_limits().multiprocessors / kBlocks : 0;
}

template <typename... KernelArgs>
Status max_cooperative_blocks(void (*)(KernelArgs...), int threads, size_t dynamic_shared_bytes, int* blocks) {
  *blocks = static_cast<int>(emulator::multiprocessors() *
                             emulator::resident_blocks(static_cast<unsigned>(threads), dynamic_shared_bytes));
  return Status::success();
}

}  // namespace fastnn::cuda
