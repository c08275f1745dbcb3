// What the emulator's shared library exports.
#include <cstdint>

#include "../../csrc/ops/backend.h"
#include "scheduler/options.h"

#define FASTNN_EXPORT extern "C" __attribute__((visibility("default")))

// The CUDA kernels' entry points, for the bindings' load_emulator().
FASTNN_EXPORT const fastnn::Backend* fastnn_emulator_backend() { return &fastnn::cuda::table(); }

FASTNN_EXPORT void fastnn_emulator_set_seed(uint64_t seed) { fastnn::emulator::set_seed(seed); }
FASTNN_EXPORT uint64_t fastnn_emulator_seed() { return fastnn::emulator::seed(); }
FASTNN_EXPORT void fastnn_emulator_set_workers(unsigned count) { fastnn::emulator::set_workers(count); }
FASTNN_EXPORT unsigned fastnn_emulator_workers() { return fastnn::emulator::workers(); }

FASTNN_EXPORT void fastnn_emulator_set_device(unsigned multiprocessors, unsigned shared_bytes,
                                              unsigned compute_capability) {
  fastnn::emulator::set_multiprocessors(multiprocessors);
  fastnn::emulator::set_shared_bytes(shared_bytes);
  fastnn::emulator::set_compute_capability(compute_capability);
}
FASTNN_EXPORT unsigned fastnn_emulator_multiprocessors() { return fastnn::emulator::multiprocessors(); }
FASTNN_EXPORT unsigned fastnn_emulator_shared_bytes() { return fastnn::emulator::shared_bytes(); }
FASTNN_EXPORT unsigned fastnn_emulator_compute_capability() { return fastnn::emulator::compute_capability(); }
