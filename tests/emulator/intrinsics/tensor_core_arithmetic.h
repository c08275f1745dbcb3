// The dot product of a tensor core, bit by bit.
//
// What is known: Xie, Wang, Yang, Yang, "MMA-Sim: Bit-Accurate Reference Model of Tensor Cores and Matrix
// Cores" (arXiv 2511.10909), compared with the hardware on random operands; before it Fasi, Higham, Mikaitis,
// Pranesh, "Numerical behavior of NVIDIA tensor cores" (PeerJ CS 7:e330, 2021). This is their model of Hopper,
// for mma.sync and for wgmma: all products of an instruction and the accumulator in one sum, each cut toward
// zero at 25 bits behind the point of the largest exponent, added exactly; a product's exponent is the sum of
// its factors' exponents, not normalised; subnormal operands are kept; an fp32 result is cut toward zero, an
// fp16 result rounded to nearest even; every NaN is 0x7FFFFFFF or 0x7FFF. Ampere keeps 24 bits and adds the
// products in two halves, so the last place of a result may differ there.
// What is assumed: that a sum of 2^128 or more becomes infinite.
#pragma once

#include <cstdint>

namespace fastnn::emulator {

enum class MmaType : uint8_t { kFloat16, kBfloat16, kTfloat32 };

constexpr unsigned element_bytes(MmaType type) { return type == MmaType::kTfloat32 ? 4 : 2; }

// What a row of A or a column of B brings to dot products. What lies behind its elements stays zero.
struct alignas(16) MmaVector {
  double values[16] = {};
  int16_t exponents[16] = {};
  bool finite = true;
};

// Sets elements first, first + 1, ... from packed operands.
void unpack(MmaVector& vector, MmaType type, unsigned first, const void* packed, unsigned count);

// Of the first `depth` elements: 4, 8 or 16.
float dot_add(const MmaVector& a, const MmaVector& b, unsigned depth, float c);
uint16_t dot_add_half(const MmaVector& a, const MmaVector& b, unsigned depth, uint16_t c);

}  // namespace fastnn::emulator
