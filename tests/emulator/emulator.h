// The CUDA execution model on a CPU, for sources compiled by a host compiler with -DFASTNN_EMULATOR: stands in
// for the CUDA headers behind csrc/cuda/platform.cuh. No CUDA header is needed and no part of fastnn's ops is
// known here.
//
//   intrinsics/  what kernels call: types, arithmetic, atomics, barriers, tensor cores, asynchronous copies
//   memory/      device memory with its guards, shared memory
//   scheduler/   grids on OS threads, blocks and their threads as fibers, barriers, reports
//   checkers/    every load and store: bounds, uninitialised reads, races, efficiency
//   selftest/    kernels that are right and kernels with one mistake each
//
// runtime.h is what the intrinsics know of scheduler and checkers; entry.cpp what the library exports. What is
// caught, how surely, and what cannot be seen: docs/emulator.md. Settings: scheduler/options.h.
//
// A launch that goes wrong returns an error Status. In gdb, FASTNN_EMULATOR_THREADS=1 keeps everything on one
// OS thread; AddressSanitizer knows the fibers.
#pragma once

#include <cassert>
#include <climits>
#include <cstdint>
#include <cstdio>

#include "intrinsics/arithmetic.h"
#include "intrinsics/atomics.h"
#include "intrinsics/cuda_types.h"
#include "intrinsics/fast_math.h"
#include "intrinsics/half_arithmetic.h"
#include "intrinsics/half_types.h"
#include "intrinsics/synchronization.h"
#include "memory/shared_memory.h"
#include "scheduler/launch.h"
