// Runs a kernel over a grid. Synchronous: the launch returns when the grid is done, so the stream is unused.
#pragma once

#include <cstddef>
#include <tuple>

#include "../../csrc/ops/status.h"
#include "../../csrc/ops/stream.h"
#include "cuda_types.h"

namespace fastnn::emulator {

// A failure names the kernel in Status::where; its message begins with the block. Both live as long as the
// process.
Status run_grid(const char* name, dim3 grid, dim3 block, size_t dynamic_shared_bytes,
                void (*run_thread)(const void* arguments), const void* arguments);

}  // namespace fastnn::emulator

namespace fastnn::cuda {

template <typename... KernelArgs, typename... Args>
Status launch(const char* name, void (*kernel)(KernelArgs...), dim3 grid, dim3 block,
              size_t dynamic_shared_bytes, Stream /*stream*/, const Args&... args) {
  using Call = std::tuple<void (*)(KernelArgs...), KernelArgs...>;
  const Call call{kernel, static_cast<KernelArgs>(args)...};
  const auto run_thread = [](const void* arguments) {
    std::apply([](auto function, const auto&... values) { function(values...); },
               *static_cast<const Call*>(arguments));
  };
  return emulator::run_grid(name, grid, block, dynamic_shared_bytes, run_thread, &call);
}

}  // namespace fastnn::cuda
