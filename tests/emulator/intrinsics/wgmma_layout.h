// Where wgmma finds the elements of a matrix in shared memory (PTX ISA, "Asynchronous Warpgroup Level Matrix
// Shared Memory Layout"); the formulas stand in csrc/cuda/wgmma.cuh.
#pragma once

#include <cstdint>
#include <vector>

namespace fastnn::emulator {

inline constexpr uint32_t kDescriptorWindow = 1 << 18;  // bytes that a descriptor can address

struct MatrixDescriptor {
  uint32_t start, leading, stride;  // bytes
  unsigned base_offset;
  unsigned swizzle;  // bytes in a row of the pattern, 16 without one
};

uint64_t encode(const MatrixDescriptor& descriptor);
// Null, or what is wrong with it.
const char* decode(uint64_t bits, MatrixDescriptor& descriptor);

// How the matrix, of M or N by K, is stored: as the instruction says, not the descriptor.
struct MatrixForm {
  bool mn_major;
  unsigned element_bytes;  // 2, or 4 and K-major

  unsigned depth() const { return 32 / element_bytes; }
};

// Address of an element in the shared memory of the block.
uint32_t element_address(const MatrixDescriptor& descriptor, MatrixForm form, unsigned mn, unsigned k);

struct SharedSpan {
  uint32_t begin, end;
};
// Adds what is read of rows (or columns) first to last - 1, multiples of 8, in as few pieces as there are.
void append_spans(const MatrixDescriptor& descriptor, MatrixForm form, unsigned first, unsigned last,
                  std::vector<SharedSpan>& spans);

}  // namespace fastnn::emulator
