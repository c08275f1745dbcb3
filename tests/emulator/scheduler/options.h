// Settings of the emulator, from the environment until set.
#pragma once

#include <cstdint>

namespace fastnn::emulator {

// FASTNN_EMULATOR_SEED: 0 runs blocks, warps and lanes in natural order, anything else in a random one.
void set_seed(uint64_t seed);
uint64_t seed();
// FASTNN_EMULATOR_THREADS: OS threads that blocks are spread over; by default one for each core, at most 16.
void set_workers(unsigned count);
unsigned workers();

// The device that is played. FASTNN_EMULATOR_MULTIPROCESSORS: a cooperative grid must fit on them.
// FASTNN_EMULATOR_SHARED_BYTES: what a block may have of shared memory. FASTNN_EMULATOR_COMPUTE_CAPABILITY: 10
// * major + minor; before 90 it launches no clusters, and otherwise it only changes which kernels are chosen:
// what an instruction does is the same for all.
void set_multiprocessors(unsigned count);
unsigned multiprocessors();
void set_shared_bytes(unsigned bytes);
unsigned shared_bytes();
void set_compute_capability(unsigned capability);
unsigned compute_capability();

}  // namespace fastnn::emulator
