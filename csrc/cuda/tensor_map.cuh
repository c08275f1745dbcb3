// Tensor maps: what a tensor copy (tma.cuh) knows of a tensor in global memory and of the boxes it moves. Made
// by the host, given to kernels as `const __grid_constant__ TensorMap`.
//
// A box lies in shared memory as its rows (along dimension 0) one after another, dimension 1 varying first.
// With a swizzle a row has 32, 64 or 128 bytes, and its 16-byte chunk number i lies where chunk i xor (line
// modulo 2, 4, 8) would, `line` being the shared address divided by 128: eight rows that a warp reads at one
// column then hit all banks. The pattern repeats every 256, 512 or 1024 bytes; a tile aligned to that has its
// first row in place.
#pragma once

#include "platform.cuh"

#if defined(FASTNN_EMULATOR)

#include "intrinsics/tensor_map.h"

#else

namespace fastnn::cuda {

// fp32 data as kTFloat32 is rounded to tf32 on its way to shared memory.
enum class TensorType : uint8_t { kUInt8, kInt32, kFloat16, kBFloat16, kFloat32, kTFloat32, kFloat64 };
enum class TensorSwizzle : uint8_t { kNone, k32B, k64B, k128B };

using TensorMap = CUtensorMap;

namespace tensor_map_detail {

inline CUtensorMapDataType driver_type(TensorType type) {
  switch (type) {
    case TensorType::kUInt8:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    case TensorType::kInt32:
      return CU_TENSOR_MAP_DATA_TYPE_INT32;
    case TensorType::kFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case TensorType::kBFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case TensorType::kFloat32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case TensorType::kTFloat32:
      return CU_TENSOR_MAP_DATA_TYPE_TFLOAT32;
    case TensorType::kFloat64:
      break;
  }
  return CU_TENSOR_MAP_DATA_TYPE_FLOAT64;
}

inline CUtensorMapSwizzle driver_swizzle(TensorSwizzle swizzle) {
  switch (swizzle) {
    case TensorSwizzle::kNone:
      break;
    case TensorSwizzle::k32B:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    case TensorSwizzle::k64B:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case TensorSwizzle::k128B:
      return CU_TENSOR_MAP_SWIZZLE_128B;
  }
  return CU_TENSOR_MAP_SWIZZLE_NONE;
}

inline CUtensorMapFloatOOBfill driver_fill(bool nan_fill) {
  return nan_fill ? CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA : CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
}

// Lines of L2 are 128 bytes, and a box that reads part of one is followed by a box that reads the rest.
inline constexpr CUtensorMapL2promotion kPromotion = CU_TENSOR_MAP_L2_PROMOTION_L2_128B;

// A function of the driver, found at run time: nothing links with it. CUDA 12.0 is where these two came.
template <typename Function>
Function driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) cudaGetLastError();
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Function>(function)
                                                                      : nullptr;
}

inline Status driver_status(CUresult result, const char* name) {
  return result == CUDA_SUCCESS ? Status::success() : Status::error("the driver refuses the tensor map", name);
}

}  // namespace tensor_map_detail

inline Status make_tiled_map(TensorMap& map, TensorType type, int rank, void* address, const uint64_t* sizes,
                             const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides,
                             TensorSwizzle swizzle, bool nan_fill) {
  using namespace tensor_map_detail;
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  if (encode == nullptr) return Status::error("the driver has no tensor maps", "encode_tiled");
  return driver_status(encode(&map, driver_type(type), static_cast<uint32_t>(rank), address, sizes, strides + 1,
                              box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, driver_swizzle(swizzle),
                              kPromotion, driver_fill(nan_fill)),
                       "encode_tiled");
}

inline Status make_im2col_map(TensorMap& map, TensorType type, int rank, void* address, const uint64_t* sizes,
                              const uint64_t* strides, const int* lower, const int* upper, uint32_t channels,
                              uint32_t pixels, const uint32_t* element_strides, TensorSwizzle swizzle,
                              bool nan_fill) {
  using namespace tensor_map_detail;
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  if (encode == nullptr) return Status::error("the driver has no tensor maps", "encode_im2col");
  return driver_status(encode(&map, driver_type(type), static_cast<uint32_t>(rank), address, sizes, strides + 1,
                              lower, upper, channels, pixels, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
                              driver_swizzle(swizzle), kPromotion, driver_fill(nan_fill)),
                       "encode_im2col");
}

}  // namespace fastnn::cuda

#endif

namespace fastnn::cuda {

// A tensor of rank 1 to 5 in global memory. Dimension 0 is contiguous; strides[0] is not used.
struct GlobalTensor {
  TensorType type;
  int rank;
  void* data;           // a multiple of 16 bytes
  uint64_t sizes[5];    // in elements
  uint64_t strides[5];  // in bytes, multiples of 16
};

// What elements outside the tensor are loaded as.
enum class TensorFill : uint8_t { kZero, kNaN };

// Boxes for tensor_load() and tensor_store().
struct TiledBox {
  // How much of the tensor a box spans along each dimension; of that, every element_strides[i]-th element is
  // moved.
  uint32_t sizes[5];
  uint32_t element_strides[5] = {1, 1, 1, 1, 1};  // that of dimension 0 is not used
  TensorSwizzle swizzle = TensorSwizzle::kNone;
  TensorFill fill = TensorFill::kZero;
};

// Boxes for tensor_load_im2col(): `pixels` pixels of `channels` channels of a tensor (C, W, N), (C, W, H, N) or
// (C, W, H, D, N). A load begins at a pixel that it names and goes on as
//
//   w += stride_w;  if w > W - 1 + upper_w:  w = lower_w,  h += stride_h;  and likewise from h to d and from d
//   to n
//
// where each pixel is read at (w, h, d) plus the offsets of that load, and outside the tensor is filled. For a
// convolution: lower = -padding, upper = padding at the end - dilation * (filter - 1), element_strides the
// convolution's, offsets dilation * tap; output (q, p, z, n) begins at w = lower_w + q * stride_w.
// (PTX ISA, "im2col mode".)
struct Im2colBox {
  int lower[3], upper[3];  // of W, H, D
  uint32_t channels, pixels;
  uint32_t element_strides[5] = {1, 1, 1, 1, 1};  // of C (not used), W, H, D, N (not used)
  TensorSwizzle swizzle = TensorSwizzle::kNone;
  TensorFill fill = TensorFill::kZero;
};

namespace tensor_map_detail {

inline uint64_t element_bytes(TensorType type) {
  switch (type) {
    case TensorType::kUInt8:
      return 1;
    case TensorType::kFloat16:
    case TensorType::kBFloat16:
      return 2;
    case TensorType::kInt32:
    case TensorType::kFloat32:
    case TensorType::kTFloat32:
      return 4;
    case TensorType::kFloat64:
      break;
  }
  return 8;
}

// What the driver documents of cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col, and a little more; null when
// all is well. The driver itself says no more than that some value is invalid.
inline const char* refuse_tensor(const GlobalTensor& tensor, const uint32_t* element_strides, TensorFill fill) {
  if (reinterpret_cast<uintptr_t>(tensor.data) % 16 != 0) return "data must be a multiple of 16 bytes";
  if (tensor.data == nullptr) return "data is null";
  for (int i = 0; i < tensor.rank; ++i) {
    if (tensor.sizes[i] < 1 || tensor.sizes[i] > uint64_t{1} << 32) return "sizes must be 1 to 2^32";
    if (i == 0) continue;
    if (tensor.strides[i] % 16 != 0) return "strides must be multiples of 16 bytes";
    if (tensor.strides[i] >= uint64_t{1} << 40) return "strides must be less than 2^40 bytes";
    if (element_strides[i] < 1 || element_strides[i] > 8) return "element_strides must be 1 to 8";
  }
  if (fill == TensorFill::kNaN && (tensor.type == TensorType::kUInt8 || tensor.type == TensorType::kInt32)) {
    return "fill: integers have no NaN";
  }
  return nullptr;
}

// A row shorter than the swizzle's span would be accepted, but where its bytes go is not documented.
inline const char* refuse_row(uint64_t bytes, TensorSwizzle swizzle, const char* not_whole,
                              const char* not_span) {
  if (bytes % 16 != 0) return not_whole;
  const uint64_t span = uint64_t{16} << static_cast<int>(swizzle);
  return swizzle != TensorSwizzle::kNone && bytes != span ? not_span : nullptr;
}

}  // namespace tensor_map_detail

inline Status encode_tiled(TensorMap& map, const GlobalTensor& tensor, const TiledBox& box) {
  using namespace tensor_map_detail;
  if (tensor.rank < 1 || tensor.rank > 5) return Status::error("rank must be 1 to 5", "encode_tiled");
  if (const char* message = refuse_tensor(tensor, box.element_strides, box.fill)) {
    return Status::error(message, "encode_tiled");
  }
  for (int i = 0; i < tensor.rank; ++i) {
    if (box.sizes[i] < 1 || box.sizes[i] > 256)
      return Status::error("box sizes must be 1 to 256", "encode_tiled");
  }
  if (const char* message = refuse_row(box.sizes[0] * element_bytes(tensor.type), box.swizzle,
                                       "box sizes[0] must be a multiple of 16 bytes",
                                       "box sizes[0] must be the swizzle's 32, 64 or 128 bytes")) {
    return Status::error(message, "encode_tiled");
  }
  return make_tiled_map(map, tensor.type, tensor.rank, tensor.data, tensor.sizes, tensor.strides, box.sizes,
                        box.element_strides, box.swizzle, box.fill == TensorFill::kNaN);
}

inline Status encode_im2col(TensorMap& map, const GlobalTensor& tensor, const Im2colBox& box) {
  using namespace tensor_map_detail;
  if (tensor.rank < 3 || tensor.rank > 5) return Status::error("rank must be 3 to 5", "encode_im2col");
  if (const char* message = refuse_tensor(tensor, box.element_strides, box.fill)) {
    return Status::error(message, "encode_im2col");
  }
  const int limit = tensor.rank == 3 ? 1 << 15 : tensor.rank == 4 ? 1 << 7 : 1 << 4;
  for (int i = 0; i < tensor.rank - 2; ++i) {
    if (box.lower[i] < -limit || box.lower[i] >= limit) {
      return Status::error("lower is out of the rank's range of 16, 8 or 5 bits", "encode_im2col");
    }
    if (box.upper[i] < -limit || box.upper[i] >= limit) {
      return Status::error("upper is out of the rank's range of 16, 8 or 5 bits", "encode_im2col");
    }
    if (box.lower[i] > static_cast<int64_t>(tensor.sizes[1 + i]) - 1 + box.upper[i]) {
      return Status::error("lower and upper leave no pixel between them", "encode_im2col");
    }
  }
  if (box.channels < 1 || box.channels > 256)
    return Status::error("channels must be 1 to 256", "encode_im2col");
  if (box.pixels < 1 || box.pixels > 1024) return Status::error("pixels must be 1 to 1024", "encode_im2col");
  if (const char* message = refuse_row(box.channels * element_bytes(tensor.type), box.swizzle,
                                       "channels must be a multiple of 16 bytes",
                                       "channels must be the swizzle's 32, 64 or 128 bytes")) {
    return Status::error(message, "encode_im2col");
  }
  return make_im2col_map(map, tensor.type, tensor.rank, tensor.data, tensor.sizes, tensor.strides, box.lower,
                         box.upper, box.channels, box.pixels, box.element_strides, box.swizzle,
                         box.fill == TensorFill::kNaN);
}

}  // namespace fastnn::cuda
