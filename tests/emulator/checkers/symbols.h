// Names places of the code for reports.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fastnn::emulator {

// The place behind a return address in a kernel: "conv_implicit_gemm.cuh:120", or "vec.cuh:31 (called from
// batch_norm.cu:120)" where a function of another file was inlined. Places within the emulator and in system
// headers are passed over, for what counts is the kernel's line that led there. Without the program addr2line,
// or without a line table, it is the library and the offset in it: "libfastnn_emulator.so+0x1234". Empty
// outside every library. Of a place that places.h has numbered it is that place.
//
// addr2line takes some hundredths of a second to start and read the library: many places are asked for at once,
// and answers are kept. Any thread, and any fiber, may call.
std::string locate(uintptr_t return_address);
std::vector<std::string> locate(const std::vector<uintptr_t>& return_addresses);

}  // namespace fastnn::emulator
