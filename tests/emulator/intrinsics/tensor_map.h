// Tensor maps as the emulator has them, and which bytes of a tensor make up a box and where they lie in shared
// memory: pure arithmetic, without threads or checks. Sources: PTX ISA, "Tensors", and CUDA's programming guide
// on TMA swizzles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../../../csrc/ops/status.h"

namespace fastnn::cuda {

enum class TensorType : uint8_t { kUInt8, kInt32, kFloat16, kBFloat16, kFloat32, kTFloat32, kFloat64 };
enum class TensorSwizzle : uint8_t { kNone, k32B, k64B, k128B };

struct alignas(64) TensorMap {
  enum class Kind : uint8_t { kNone, kTiled, kIm2col };

  Kind kind;
  TensorType type;
  TensorSwizzle swizzle;
  bool nan_fill;
  uint8_t rank;
  uint8_t element_strides[5];
  unsigned char* address;
  uint64_t strides[4];  // in bytes, of dimensions 1 and on
  uint32_t last[5];     // size - 1
  uint16_t box[5];      // tiled: elements along each dimension, before element strides
  // im2col, W first
  int16_t lower[3], upper[3];
  uint16_t channels, pixels;

  int64_t size(int dimension) const { return int64_t{last[dimension]} + 1; }
};
static_assert(sizeof(TensorMap) == 128);

// These trust their arguments: csrc/cuda/tensor_map.cuh has checked them.
Status make_tiled_map(TensorMap& map, TensorType type, int rank, void* address, const uint64_t* sizes,
                      const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides,
                      TensorSwizzle swizzle, bool nan_fill);
Status make_im2col_map(TensorMap& map, TensorType type, int rank, void* address, const uint64_t* sizes,
                       const uint64_t* strides, const int* lower, const int* upper, uint32_t channels,
                       uint32_t pixels, const uint32_t* element_strides, TensorSwizzle swizzle, bool nan_fill);

}  // namespace fastnn::cuda

namespace fastnn::emulator {

using cuda::TensorMap;
using cuda::TensorSwizzle;
using cuda::TensorType;

size_t size_of(TensorType type);

// A box of global memory as rows of equal length, which in shared memory follow one another.
struct BoxRow {
  // Of each row the bytes [begin, end) are inside the tensor, from `global` on; the others are filled or left
  // alone.
  unsigned char* global;
  uint32_t begin, end;
};
struct Box {
  TensorType type;
  TensorSwizzle swizzle;
  bool nan_fill;
  uint32_t row_bytes;
  std::vector<BoxRow> rows;

  uint32_t bytes() const { return static_cast<uint32_t>(rows.size()) * row_bytes; }
};

// The box of bytes that a bulk copy moves.
Box plain_box(const void* global, uint32_t bytes);
// Element (j0, j1, ...) of the box is element (c0 + j0, c1 + j1 * s1, ...) of the tensor, s being the element
// strides; there are ceil(box / s) along a dimension.
Box tiled_box(const TensorMap& map, const int* coordinates);
// coordinates: C, W, H, D, N (H and D only in ranks 4 and 5); offsets: W, H, D. One row for each pixel:
//
//   w, h, d, n = coordinates
//   repeat `pixels` times:
//     the row is channels [c, c + channels) of pixel (w + offset_w, h + offset_h, d + offset_d, n)
//     w += stride_w;  if w > W - 1 + upper_w:  w = lower_w,  h += stride_h,  and likewise into d and n
//
// With lower = -padding, upper = padding_end - dilation * (filter - 1), strides those of a convolution and the
// offset dilation * tap these are the inputs of one filter tap for `pixels` consecutive outputs, of which
// output (q, p, z, n) starts at w = lower_w + q * stride_w.
//
// Null, or why it cannot be: the pixel must be within the corners to start with.
const char* im2col_box(const TensorMap& map, const int* coordinates, const int* offsets, Box& box);

// Where a byte goes that would go to this shared address: within spans of 32, 64 or 128 bytes the 16-byte
// chunks are permuted, their number being xored with the number of the 128-byte line (modulo 2, 4, 8).
uint32_t swizzled(uint32_t address, TensorSwizzle swizzle);

// `shared` is where the box begins, `address` the same as a shared address.
void load_box(const Box& box, unsigned char* shared, uint32_t address);
void store_box(const Box& box, const unsigned char* shared, uint32_t address);
// Adds to what is there, element by element; of types that can_add() names.
void add_box(const Box& box, const unsigned char* shared, uint32_t address);
bool can_add(TensorType type);

}  // namespace fastnn::emulator
