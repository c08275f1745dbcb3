// mma.sync, ldmatrix, stmatrix, movmatrix.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "../../../csrc/cuda/mma.cuh"
#include "selftest.h"

namespace fastnn::selftest {
namespace {

using cuda::bfloat16_t;
using cuda::float16_t;
using cuda::tfloat32_t;

// Numbers that all operand types hold: integers from -8 to 8, or such with 7 bits behind the point.
float some_number(uint32_t& state, bool integer) {
  state = state * 1664525u + 1013904223u;
  const auto whole = static_cast<int>(state >> 8) % 9 - (state >> 31 ? 0 : 8);
  return integer ? static_cast<float>(whole)
                 : static_cast<float>(static_cast<int>(state >> 16) % 255 - 127) / 128.0f;
}

template <typename T>
__device__ uint32_t pack(const float* values, int stride) {
  if constexpr (sizeof(T) == 4) {
    uint32_t word;
    memcpy(&word, values, 4);
    return word;
  } else {
    const T pair[2] = {cuda::from_acc<T>(values[0]), cuda::from_acc<T>(values[stride])};
    uint32_t word;
    memcpy(&word, pair, 4);
    return word;
  }
}

// --- mma, with fragments by the formulas of mma.cuh ---

// a: 16 x K; b: K x 8; c, d: 16 x 8; all row-major.
template <typename T, int K>
__global__ void mma_kernel(const float* a, const float* b, const float* c, float* d) {
  constexpr int kElements = 4 / sizeof(T);
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  uint32_t fragment_a[cuda::kMmaWordsA<T, K>], fragment_b[cuda::kMmaWordsB<T, K>];
  for (int r = 0; r < cuda::kMmaWordsA<T, K>; ++r) {
    fragment_a[r] = pack<T>(a + (g + 8 * (r % 2)) * K + kElements * (4 * (r / 2) + t), 1);
  }
  for (int r = 0; r < cuda::kMmaWordsB<T, K>; ++r)
    fragment_b[r] = pack<T>(b + kElements * (4 * r + t) * 8 + g, 8);
  float accumulators[4];
  for (int i = 0; i < 4; ++i) accumulators[i] = c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
  if constexpr (K == 16) {
    cuda::mma_m16n8k16<T>(accumulators, fragment_a, fragment_b);
  } else if constexpr (K == 8) {
    cuda::mma_m16n8k8<T>(accumulators, fragment_a, fragment_b);
  } else {
    cuda::mma_m16n8k4<T>(accumulators, fragment_a, fragment_b);
  }
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = accumulators[i];
}

template <int K>
__global__ void mma_half_kernel(const float* a, const float* b, const float* c, float* d) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  uint32_t fragment_a[K / 4], fragment_b[K / 8], accumulators[2];
  for (int r = 0; r < K / 4; ++r)
    fragment_a[r] = pack<float16_t>(a + (g + 8 * (r % 2)) * K + 8 * (r / 2) + 2 * t, 1);
  for (int r = 0; r < K / 8; ++r) fragment_b[r] = pack<float16_t>(b + (8 * r + 2 * t) * 8 + g, 8);
  for (int r = 0; r < 2; ++r) accumulators[r] = pack<float16_t>(c + (g + 8 * r) * 8 + 2 * t, 1);
  if constexpr (K == 16) {
    cuda::mma_m16n8k16<float16_t>(accumulators, fragment_a, fragment_b);
  } else {
    cuda::mma_m16n8k8<float16_t>(accumulators, fragment_a, fragment_b);
  }
  float16_t values[4];
  memcpy(values, accumulators, 8);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = cuda::to_acc(values[i]);
}

using MmaKernel = void (*)(const float*, const float*, const float*, float*);

// Exact for integers; for others within the last place of the largest partial sum, `last_place`, for each
// addition.
const char* check_mma(const char* name, MmaKernel kernel, int depth, float last_place) {
  uint32_t state = 1;
  for (int round = 0; round < 8; ++round) {
    const bool integer = round < 4;
    DeviceArray<float> a(16 * depth), b(depth * 8), c(16 * 8), d(16 * 8);
    for (float& v : a) v = some_number(state, integer);
    for (float& v : b) v = some_number(state, integer);
    for (float& v : c) v = some_number(state, integer);
    FASTNN_RUN(name, kernel, dim3(1), dim3(32), 0, nullptr, a.data(), b.data(), c.data(), d.data());
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 8; ++n) {
        double sum = c[m * 8 + n], magnitude = std::fabs(sum);
        for (int k = 0; k < depth; ++k) {
          const double product = static_cast<double>(a[m * depth + k]) * b[k * 8 + n];
          sum += product;
          magnitude += std::fabs(product);
        }
        const double error = std::fabs(d[m * 8 + n] - sum);
        FASTNN_EXPECT(error <= (integer ? 0 : 2 * magnitude * last_place),
                      "%s: row %d, column %d: %.9g, not %.9g", name, m, n, static_cast<double>(d[m * 8 + n]),
                      sum);
      }
    }
  }
  return nullptr;
}

FASTNN_CORRECT(mma_shapes_and_types) {
  const struct {
    const char* name;
    MmaKernel kernel;
    int depth;
    float last_place;
  } shapes[] = {
      {"m16n8k16 fp16", mma_kernel<float16_t, 16>, 16, 0x1p-23f},
      {"m16n8k16 bf16", mma_kernel<bfloat16_t, 16>, 16, 0x1p-23f},
      {"m16n8k8 fp16", mma_kernel<float16_t, 8>, 8, 0x1p-23f},
      {"m16n8k8 bf16", mma_kernel<bfloat16_t, 8>, 8, 0x1p-23f},
      {"m16n8k8 tf32", mma_kernel<tfloat32_t, 8>, 8, 0x1p-23f},
      {"m16n8k4 tf32", mma_kernel<tfloat32_t, 4>, 4, 0x1p-23f},
      {"m16n8k16 in fp16", mma_half_kernel<16>, 16, 0x1p-10f},
      {"m16n8k8 in fp16", mma_half_kernel<8>, 8, 0x1p-10f},
  };
  for (const auto& shape : shapes) {
    if (const char* error = check_mma(shape.name, shape.kernel, shape.depth, shape.last_place)) return error;
  }
  return nullptr;
}

// What has been measured on sm_80 and on sm_90 alike.
FASTNN_CORRECT(mma_arithmetic) {
  const float infinity = std::numeric_limits<float>::infinity();
  const uint32_t nan = 0x7fffffff, minus_one = std::bit_cast<uint32_t>(-1.0f),
                 one = std::bit_cast<uint32_t>(1.0f);
  const struct {
    float c, a[4], b[4];
    uint32_t result;
  } sums[] = {
      // Cut, not rounded, at the end.
      {1, {0x1.8p-12f}, {0x1p-12f}, one},
      {-1, {-0x1.8p-12f}, {0x1p-12f}, minus_one},
      // Not cut after each addition.
      {1, {0x1p-12f, 0x1p-12f, 0x1p-12f, 0x1p-12f}, {0x1p-12f, 0x1p-12f, 0x1p-12f, 0x1p-12f}, one + 2},
      // Cut before the addition where it is much smaller than the largest.
      {1, {0x1p-13f, 0x1p-13f, 0x1p-13f, 0x1p-13f}, {0x1p-13f, 0x1p-13f, 0x1p-13f, 0x1p-13f}, one},
      // In no order: what cancels leaves what is small behind only if it was not cut.
      {0, {0x1p15f, -0x1p15f, 1}, {0x1p15f, 0x1p15f, 1}, 0},
      {0, {0x1p10f, -0x1p10f, 1}, {0x1p10f, 0x1p10f, 1}, one},
      // Subnormal operands of fp16 count.
      {0, {0x1p-24f, 0x1p-24f}, {0x1p10f, 0x1p10f}, std::bit_cast<uint32_t>(0x1p-13f)},
      {0, {infinity, 1}, {1, 1}, std::bit_cast<uint32_t>(infinity)},
      {0, {infinity, infinity}, {1, -1}, nan},
      {0, {infinity}, {0}, nan},
      {-infinity, {1}, {1}, std::bit_cast<uint32_t>(-infinity)},
      {std::numeric_limits<float>::quiet_NaN(), {1}, {1}, nan},
  };
  for (const auto& sum : sums) {
    DeviceArray<float> a(16 * 16), b(16 * 8), c(16 * 8), d(16 * 8);
    for (int k = 0; k < 4; ++k) {
      for (int m = 0; m < 16; ++m) a[m * 16 + k] = sum.a[k];
      for (int n = 0; n < 8; ++n) b[k * 8 + n] = sum.b[k];
    }
    for (float& v : c) v = sum.c;
    FASTNN_RUN("mma_kernel", mma_kernel<float16_t, 16>, dim3(1), dim3(32), 0, nullptr, a.data(), b.data(),
               c.data(), d.data());
    for (const float v : d) {
      FASTNN_EXPECT(std::bit_cast<uint32_t>(v) == sum.result, "sum %d: 0x%08x, not 0x%08x",
                    static_cast<int>(&sum - sums), std::bit_cast<uint32_t>(v), sum.result);
    }
  }
  return nullptr;
}

FASTNN_CORRECT(mma_ignores_low_bits_of_tf32) {
  DeviceArray<float> a(16 * 8, std::bit_cast<float>(0x3fc01fffu)), b(8 * 8, std::bit_cast<float>(0xc0201000u));
  DeviceArray<float> c(16 * 8), d(16 * 8);
  FASTNN_RUN("mma_kernel", mma_kernel<tfloat32_t, 8>, dim3(1), dim3(32), 0, nullptr, a.data(), b.data(),
             c.data(), d.data());
  for (const float v : d) FASTNN_EXPECT(v == 8 * 1.5f * -2.5f, "%g, not -30", static_cast<double>(v));
  return nullptr;
}

// --- ldmatrix ---

// a: 16 x 16, row-major; b: 16 x 8, row-major and transposed.
__global__ void ldmatrix_kernel(const float* a, const float* b, float* d) {
  FASTNN_SHARED(uint4, storage, 64);
  auto* const tile_a = reinterpret_cast<bfloat16_t*>(storage);
  bfloat16_t* const tile_b = tile_a + 256;
  bfloat16_t* const tile_b_transposed = tile_b + 128;
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  for (int i = lane; i < 256; i += 32) tile_a[i] = cuda::from_acc<bfloat16_t>(a[i]);
  for (int i = lane; i < 128; i += 32) {
    tile_b[i] = cuda::from_acc<bfloat16_t>(b[i]);
    tile_b_transposed[i % 8 * 16 + i / 8] = tile_b[i];
  }
  __syncwarp();
  for (int round = 0; round < 4; ++round) {
    uint32_t fragment_a[4], fragment_b[2];
    if (round < 3) {
      cuda::ldmatrix(fragment_a, tile_a + lane % 16 * 16 + lane / 16 * 8);
    } else {
      for (int r = 0; r < 4; ++r) {
        uint32_t word[1];
        cuda::ldmatrix(word, tile_a + (lane % 8 + r % 2 * 8) * 16 + r / 2 * 8);
        fragment_a[r] = word[0];
      }
    }
    if (round == 0) {
      cuda::ldmatrix(fragment_b, tile_b_transposed + lane % 8 * 16 + lane / 8 % 2 * 8);
    } else if (round == 1) {
      cuda::ldmatrix_trans(fragment_b, tile_b + lane % 16 * 8);
    } else if (round == 2) {  // B twice
      uint32_t twice[4];
      cuda::ldmatrix_trans(twice, tile_b + lane % 16 * 8);
      fragment_b[0] = twice[2];
      fragment_b[1] = twice[3];
    } else {
      for (int r = 0; r < 2; ++r) {
        uint32_t word[1];
        cuda::ldmatrix_trans(word,
                             lane < 8 ? tile_b + (lane + 8 * r) * 8 : nullptr);  // others are not looked at
        fragment_b[r] = word[0];
      }
    }
    float accumulators[4] = {0, 0, 0, 0};
    cuda::mma_m16n8k16<bfloat16_t>(accumulators, fragment_a, fragment_b);
    for (int i = 0; i < 4; ++i) d[round * 128 + (g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = accumulators[i];
  }
}

FASTNN_CORRECT(ldmatrix_feeds_mma) {
  DeviceArray<float> a(256), b(128), d(4 * 128);
  uint32_t state = 7;
  for (float& v : a) v = some_number(state, true);
  for (float& v : b) v = some_number(state, true);
  FASTNN_RUN("ldmatrix_kernel", ldmatrix_kernel, dim3(1), dim3(32), 0, nullptr, a.data(), b.data(), d.data());
  for (int i = 0; i < 4 * 128; ++i) {
    float sum = 0;
    for (int k = 0; k < 16; ++k) sum += a[i % 128 / 8 * 16 + k] * b[k * 8 + i % 8];
    FASTNN_EXPECT(d[i] == sum, "form %d, row %d, column %d: %g, not %g", i / 128, i % 128 / 8, i % 8,
                  static_cast<double>(d[i]), static_cast<double>(sum));
  }
  return nullptr;
}

// --- stmatrix and movmatrix ---

__device__ uint32_t numbered(int matrix, int row, int column) {
  const auto first = static_cast<uint32_t>(matrix * 64 + row * 8 + column);
  return first | (first + 1) << 16;
}

template <int kCount, bool kTransposed>
__device__ void store_numbered(uint16_t* tile, uint16_t* out) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  uint32_t words[kCount];
  for (int m = 0; m < kCount; ++m) words[m] = numbered(m, g, 2 * t);
  uint16_t* const row = tile + lane * 8;
  if constexpr (kTransposed) {
    cuda::stmatrix_trans(row, words);
  } else {
    cuda::stmatrix(row, words);
  }
  __syncwarp();
  for (int i = lane; i < kCount * 64; i += 32) out[i] = tile[i];
  __syncwarp();
}

__global__ void stmatrix_kernel(uint16_t* out) {
  FASTNN_SHARED(uint4, storage, 32);
  auto* const tile = reinterpret_cast<uint16_t*>(storage);
  store_numbered<1, false>(tile, out);
  store_numbered<2, false>(tile, out + 256);
  store_numbered<4, false>(tile, out + 512);
  store_numbered<1, true>(tile, out + 768);
  store_numbered<2, true>(tile, out + 1024);
  store_numbered<4, true>(tile, out + 1280);
}

FASTNN_CORRECT(stmatrix_forms) {
  DeviceArray<uint16_t> out(6 * 256, 0xffff);
  FASTNN_RUN("stmatrix_kernel", stmatrix_kernel, dim3(1), dim3(32), 0, nullptr, out.data());
  for (int i = 0; i < 6 * 256; ++i) {
    const int form = i / 256, count = 1 << form % 3, row = i % 64 / 8, column = i % 8;
    const int element = i % 256 / 64 * 64 + (form < 3 ? row * 8 + column : column * 8 + row);
    const int expected = i % 256 < count * 64 ? element : 0xffff;
    FASTNN_EXPECT(out[i] == expected, "form %d, element %d: %d, not %d", form, i % 256, out[i], expected);
  }
  return nullptr;
}

__global__ void movmatrix_kernel(uint32_t* out) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  out[threadIdx.x] = cuda::movmatrix_trans(numbered(0, g, 2 * t));
}

FASTNN_CORRECT(movmatrix_transposes) {
  DeviceArray<uint32_t> out(32);
  FASTNN_RUN("movmatrix_kernel", movmatrix_kernel, dim3(1), dim3(32), 0, nullptr, out.data());
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t g = lane / 4, t = lane % 4, expected = (2 * t * 8 + g) | ((2 * t + 1) * 8 + g) << 16;
    FASTNN_EXPECT(out[lane] == expected, "lane %u: 0x%08x, not 0x%08x", lane, out[lane], expected);
  }
  return nullptr;
}

// --- with one mistake ---

__global__ void ldmatrix_misaligned_kernel(uint32_t* out) {
  FASTNN_SHARED(uint4, storage, 20);
  auto* const tile = reinterpret_cast<uint16_t*>(storage);
  for (int i = threadIdx.x; i < 160; i += 32) tile[i] = static_cast<uint16_t>(i);
  __syncwarp();
  uint32_t words[2];
  cuda::ldmatrix(words, tile + threadIdx.x % 16 * 9);  // padded by one element, not by eight
  out[threadIdx.x] = words[0] + words[1];
}
FASTNN_FAULTY(ldmatrix_row_misaligned, "memcheck", "(?i)align") {
  DeviceArray<uint32_t> out(32);
  FASTNN_RUN("ldmatrix_misaligned_kernel", ldmatrix_misaligned_kernel, dim3(1), dim3(32), 0, nullptr,
             out.data());
  return nullptr;
}

__global__ void ldmatrix_race_kernel(uint32_t* out) {
  FASTNN_SHARED(uint4, storage, 32);
  auto* const tile = reinterpret_cast<uint16_t*>(storage);
  for (int i = threadIdx.x; i < 256; i += 64) tile[i] = static_cast<uint16_t>(i);
  __syncwarp();  // the other warp has written half of it
  uint32_t words[4];
  cuda::ldmatrix(words, tile + threadIdx.x % 32 * 8);
  out[threadIdx.x] = words[0] + words[1] + words[2] + words[3];
}
FASTNN_FAULTY(ldmatrix_without_barrier, "racecheck", "(?i)race|never written|uninitiali[sz]ed") {
  DeviceArray<uint32_t> out(64);
  FASTNN_RUN("ldmatrix_race_kernel", ldmatrix_race_kernel, dim3(1), dim3(64), 0, nullptr, out.data());
  return nullptr;
}

__global__ void ldmatrix_global_kernel(const uint16_t* tile, uint32_t* out) {
  uint32_t words[1];
  cuda::ldmatrix(words, tile + threadIdx.x % 8 * 8);
  out[threadIdx.x] = words[0];
}
FASTNN_FAULTY(ldmatrix_of_global_memory, "memcheck", "shared memory") {
  DeviceArray<uint16_t> tile(64);
  DeviceArray<uint32_t> out(32);
  FASTNN_RUN("ldmatrix_global_kernel", ldmatrix_global_kernel, dim3(1), dim3(32), 0, nullptr, tile.data(),
             out.data());
  return nullptr;
}

__global__ void mma_diverged_kernel(float* out, unsigned first_idle_lane) {
  if (threadIdx.x >= first_idle_lane) return;
  float d[4] = {0, 0, 0, 0};
  const uint32_t a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
  cuda::mma_m16n8k16<bfloat16_t>(d, a, b);
  out[threadIdx.x] = d[0];
}
FASTNN_FAULTY(mma_with_a_lane_diverged, "none", "mma") {
  DeviceArray<float> out(32, 1.0f);
  FASTNN_RUN("mma_diverged_kernel", mma_diverged_kernel, dim3(1), dim3(32), 0, nullptr, out.data(), 31u);
  return nullptr;
}
FASTNN_FAULTY(mma_with_less_than_a_warp, "none", "mma") {
  DeviceArray<float> out(32, 1.0f);
  FASTNN_RUN("mma_diverged_kernel", mma_diverged_kernel, dim3(1), dim3(24), 0, nullptr, out.data(), 32u);
  return nullptr;
}

__global__ void mma_two_types_kernel(float* out) {
  float d[4] = {0, 0, 0, 0};
  const uint32_t a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
  if (threadIdx.x < 16) {
    cuda::mma_m16n8k16<bfloat16_t>(d, a, b);
  } else {
    cuda::mma_m16n8k16<float16_t>(d, a, b);
  }
  out[threadIdx.x] = d[0];
}
FASTNN_FAULTY(mma_of_two_types_in_a_warp, "none", "mma") {
  DeviceArray<float> out(32, 1.0f);
  FASTNN_RUN("mma_two_types_kernel", mma_two_types_kernel, dim3(1), dim3(32), 0, nullptr, out.data());
  return nullptr;
}

__global__ void stmatrix_race_kernel(uint32_t* out) {
  FASTNN_SHARED(uint4, storage, 8);
  const uint32_t words[1] = {numbered(0, threadIdx.x / 4, 2 * (threadIdx.x % 4))};
  cuda::stmatrix(storage + threadIdx.x % 8, words);
  out[threadIdx.x] = reinterpret_cast<const uint32_t*>(storage)[threadIdx.x];  // no __syncwarp()
}
FASTNN_FAULTY(stmatrix_without_syncwarp, "racecheck", "(?i)race") {
  DeviceArray<uint32_t> out(32);
  FASTNN_RUN("stmatrix_race_kernel", stmatrix_race_kernel, dim3(1), dim3(32), 0, nullptr, out.data());
  return nullptr;
}

}  // namespace
}  // namespace fastnn::selftest
