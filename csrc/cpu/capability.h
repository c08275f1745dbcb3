// The instruction sets for which the CPU kernels are compiled, and the choice among them at run time.
#pragma once

#include <string>

#include "../ops/backend.h"

namespace fastnn::cpu {

// Entry points for the best instruction set that this processor has, or for the one that the environment
// variable FASTNN_CPU_CAPABILITY names (baseline, avx2, avx512, avx512_bf16). Chosen once, at the first call.
// Throws std::runtime_error when the variable names one that is unknown, not compiled in, or not supported
// here.
const Backend& backend();

// Name of the instruction set chosen.
const char* capability();

// Names of those compiled in, best first, separated by spaces.
std::string compiled_capabilities();

}  // namespace fastnn::cpu
