// Places in the source as numbers that fit where a program counter does.
#pragma once

#include <cstdint>
#include <string>

#include "../runtime.h"

namespace fastnn::emulator {

// Set in no address of a program.
inline constexpr uintptr_t kPlaceBit = uintptr_t{1} << 63;

// kPlaceBit and the number of the place.
uintptr_t place_in_code(Where where);
// "conv.cu:120"
std::string describe_place(uintptr_t place);

}  // namespace fastnn::emulator
