// The CUDA execution model on a CPU, for sources compiled by a host compiler with -DFASTNN_EMULATOR: stands in
// for the CUDA headers behind csrc/cuda/platform.cuh. No CUDA header is needed and no part of fastnn's ops is
// known here.
//
//   cuda_types.h       qualifiers, dim3 and the built-in variables, vector types
//   half_types.h       float16_t, bfloat16_t and their conversions
//   intrinsics.h       functions of one thread
//   atomics.h          atomic functions
//   synchronization.h  barriers, fences, and what the lanes of a warp do together
//   shared_memory.h    static and dynamic shared memory
//   launch.h           launch()
//
// Behind them: emulator.cpp spreads a grid's blocks over OS threads, block.cpp runs one block with its threads
// as fibers, context.cpp switches fibers, shared_arena.cpp holds a block's shared memory. selftest*.cpp are the
// emulator's own tests, entry.cpp what its library exports. Settings: options.h.
//
// A launch that goes wrong returns an error Status; nothing hangs but a loop that waits for memory to change.
// In gdb, FASTNN_EMULATOR_THREADS=1 keeps everything on one OS thread; AddressSanitizer knows the fibers.
#pragma once

#include <cassert>
#include <climits>
#include <cstdint>
#include <cstdio>

#include "atomics.h"
#include "cuda_types.h"
#include "half_types.h"
#include "intrinsics.h"
#include "launch.h"
#include "shared_memory.h"
#include "synchronization.h"
