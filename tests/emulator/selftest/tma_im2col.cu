// im2col loads against the definition of a convolution: for each tap of the filter, the inputs of consecutive
// outputs.
#include "../../../csrc/cuda/tma.cuh"
#include "selftest.h"

namespace fastnn::selftest {
namespace {

using namespace fastnn::cuda;

// W, H, D.
struct Convolution {
  int rank;  // of the tensor: 3 to 5
  int batch, channels;
  int size[3], filter[3], padding[3], padding_end[3], stride[3], dilation[3];

  int outputs(int i) const {
    return (size[i] + padding[i] + padding_end[i] - dilation[i] * (filter[i] - 1) - 1) / stride[i] + 1;
  }
};

struct Place {
  int at[5];       // C, W, H, D, N
  int offsets[3];  // W, H, D
};

template <int kRank>
__global__ void im2col_kernel(const __grid_constant__ TensorMap map, Place place, unsigned* out,
                              uint32_t bytes) {
  FASTNN_DYNAMIC_SHARED_ALIGNED(unsigned, tile, 1024);
  FASTNN_SHARED(Mbarrier, full, 1);
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  int coordinates[kRank], offsets[kRank - 2];
  for (int i = 0; i < kRank - 1; ++i) coordinates[i] = place.at[i];
  coordinates[kRank - 1] = place.at[4];
  for (int i = 0; i < kRank - 2; ++i) offsets[i] = place.offsets[i];
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(full, bytes);
    tensor_load_im2col(tile, &map, coordinates, offsets, full);
  }
  mbarrier_wait(full, 0);
  for (uint32_t i = threadIdx.x; i < bytes / 4; i += blockDim.x) out[i] = tile[i];
}

// x[n][d][h][w][c] is its index plus one.
unsigned input(const Convolution& conv, int n, int d, int h, int w, int c) {
  if (n >= conv.batch || c >= conv.channels || w < 0 || w >= conv.size[0] || h < 0 || h >= conv.size[1] ||
      d < 0 || d >= conv.size[2]) {
    return 0;
  }
  return static_cast<unsigned>(
      (((n * conv.size[2] + d) * conv.size[1] + h) * conv.size[0] + w) * conv.channels + c + 1);
}

// Loads `pixels` outputs from number `first` on, of channels [c, c + channels), for every tap.
const char* check(const Convolution& conv, int first, int pixels, int c, int channels, TensorSwizzle swizzle) {
  size_t count = static_cast<size_t>(conv.batch) * conv.channels;
  for (const int size : conv.size) count *= size;
  DeviceArray<unsigned> x(count), tile(static_cast<size_t>(pixels) * channels);
  for (size_t i = 0; i < count; ++i) x[i] = static_cast<unsigned>(i + 1);
  GlobalTensor tensor{.type = TensorType::kInt32, .rank = conv.rank, .data = x.data()};
  Im2colBox box{.channels = static_cast<uint32_t>(channels), .pixels = static_cast<uint32_t>(pixels)};
  box.swizzle = swizzle;
  const int spatial = conv.rank - 2;
  uint64_t stride = 4;
  for (int i = 0; i < conv.rank; ++i) {
    tensor.sizes[i] = static_cast<uint64_t>(i == 0               ? conv.channels
                                            : i == conv.rank - 1 ? conv.batch
                                                                 : conv.size[i - 1]);
    tensor.strides[i] = stride;
    stride *= tensor.sizes[i];
  }
  for (int i = 0; i < spatial; ++i) {
    box.lower[i] = -conv.padding[i];
    box.upper[i] = conv.padding_end[i] - conv.dilation[i] * (conv.filter[i] - 1);
    box.element_strides[1 + i] = static_cast<uint32_t>(conv.stride[i]);
  }
  TensorMap map;
  const Status status = encode_im2col(map, tensor, box);
  FASTNN_EXPECT(status.ok(), "%s", status.message);
  const auto output = [&](int m, int i) {
    for (int j = 0; j < i; ++j) m /= conv.outputs(j);
    return i == 3 ? m : m % conv.outputs(i);
  };
  using Kernel = void (*)(TensorMap, Place, unsigned*, uint32_t);
  constexpr Kernel kKernels[] = {im2col_kernel<3>, im2col_kernel<4>, im2col_kernel<5>};
  const auto bytes = static_cast<uint32_t>(pixels * channels * 4);
  for (int tap = 0; tap < conv.filter[0] * conv.filter[1] * conv.filter[2]; ++tap) {
    const int taps[3] = {tap % conv.filter[0], tap / conv.filter[0] % conv.filter[1],
                         tap / conv.filter[0] / conv.filter[1]};
    Place place{.at = {c, 0, 0, 0, output(first, 3)}, .offsets = {}};
    for (int i = 0; i < spatial; ++i) {
      place.at[1 + i] = output(first, i) * conv.stride[i] - conv.padding[i];
      place.offsets[i] = taps[i] * conv.dilation[i];
    }
    FASTNN_RUN("im2col_kernel", kKernels[conv.rank - 3], dim3(1), dim3(64), bytes, nullptr, map, place,
               tile.data(), bytes);
    for (int p = 0; p < pixels; ++p) {
      int at[3];
      for (int i = 0; i < 3; ++i) {
        at[i] = output(first + p, i) * conv.stride[i] - conv.padding[i] + taps[i] * conv.dilation[i];
      }
      for (int j = 0; j < channels; ++j) {
        const unsigned expected = input(conv, output(first + p, 3), at[2], at[1], at[0], c + j);
        int place_of = p * channels + j;
        if (swizzle == TensorSwizzle::k128B) place_of = p * 32 + ((j / 4) ^ (p % 8)) * 4 + j % 4;
        const unsigned got = tile[place_of];
        FASTNN_EXPECT(got == expected, "rank %d, tap %d, pixel %d, channel %d: %u instead of %u", conv.rank,
                      tap, p, j, got, expected);
      }
    }
  }
  return nullptr;
}

FASTNN_CORRECT(im2col_of_every_rank) {
  const Convolution plain1{3, 3, 8, {9, 1, 1}, {3, 1, 1}, {1}, {1}, {1, 1, 1}, {1, 1, 1}};
  const Convolution plain2{4, 2, 8, {7, 6, 1}, {3, 3, 1}, {1, 1}, {1, 1}, {1, 1, 1}, {1, 1, 1}};
  const Convolution plain3{5, 2, 8, {4, 5, 3}, {3, 2, 2}, {1, 0, 1}, {1, 1, 0}, {1, 1, 1}, {1, 1, 1}};
  for (const Convolution& conv : {plain1, plain2, plain3}) {
    for (const int first : {0, 5, 17}) {
      if (const char* said = check(conv, first, 24, 0, 8, TensorSwizzle::kNone)) return said;
    }
    // Channels and images beyond the end are filled.
    if (const char* said = check(conv, 20, 160, 4, 8, TensorSwizzle::kNone)) return said;
  }
  return nullptr;
}

FASTNN_CORRECT(im2col_with_strides_and_dilation) {
  const Convolution strided1{3, 2, 4, {17, 1, 1}, {5, 1, 1}, {2}, {2}, {3, 1, 1}, {1, 1, 1}};
  const Convolution strided2{4, 2, 4, {11, 8, 1}, {3, 2, 1}, {1, 2}, {0, 1}, {2, 3, 1}, {1, 2, 1}};
  const Convolution dilated2{4, 2, 4, {12, 9, 1}, {3, 3, 1}, {2, 3}, {2, 3}, {1, 1, 1}, {2, 3, 1}};
  const Convolution strided3{5, 2, 4, {7, 6, 5}, {2, 3, 2}, {1, 1, 0}, {1, 0, 1}, {2, 2, 3}, {2, 1, 2}};
  for (const Convolution& conv : {strided1, strided2, dilated2, strided3}) {
    for (const int first : {0, 1, 7}) {
      if (const char* said = check(conv, first, 20, 0, 4, TensorSwizzle::kNone)) return said;
    }
  }
  return nullptr;
}

FASTNN_CORRECT(im2col_with_a_swizzle) {
  const Convolution conv{4, 2, 40, {7, 6, 1}, {3, 3, 1}, {1, 1}, {1, 1}, {1, 1, 1}, {1, 1, 1}};
  return check(conv, 9, 32, 16, 32, TensorSwizzle::k128B);
}

// --- mistakes ---

const char* run_place(const Place& place) {
  DeviceArray<unsigned> x(4 * 8 * 8 * 2), tile(64);
  TensorMap map;
  const Status status = encode_im2col(map,
                                      {.type = TensorType::kInt32,
                                       .rank = 4,
                                       .data = x.data(),
                                       .sizes = {4, 8, 8, 2},
                                       .strides = {0, 16, 128, 1024}},
                                      {.lower = {-1, -1}, .upper = {-1, -1}, .channels = 4, .pixels = 16});
  FASTNN_EXPECT(status.ok(), "%s", status.message);
  FASTNN_RUN("im2col_kernel", im2col_kernel<4>, dim3(1), dim3(32), 256, nullptr, map, place, tile.data(), 256u);
  return nullptr;
}
FASTNN_CORRECT(im2col_from_the_corners) {
  if (const char* said = run_place({{0, -1, -1, 0, 0}, {255, 255}})) return said;
  return run_place({{0, 6, 6, 0, 1}, {0, 0}});
}
FASTNN_FAULTY(im2col_from_outside_the_corners, "none", R"re(im2col_kernel: .*outside the corners)re") {
  return run_place({{0, 7, 0, 0, 0}, {0, 0}});
}
FASTNN_FAULTY(im2col_with_a_negative_offset, "none", R"re(im2col_kernel: .*offset is out of range)re") {
  return run_place({{0, 0, 0, 0, 0}, {0, -1}});
}

}  // namespace
}  // namespace fastnn::selftest
