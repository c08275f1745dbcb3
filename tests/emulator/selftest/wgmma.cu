// wgmma: layouts, shapes, groups, and what goes wrong with asynchrony.
#include <cmath>
#include <cstring>
#include <vector>

#include "../../../csrc/cuda/mbarrier.cuh"
#include "../../../csrc/cuda/wgmma.cuh"
#include "selftest.h"

namespace fastnn::selftest {
namespace {

using cuda::bfloat16_t;
using cuda::float16_t;
using cuda::tfloat32_t;
using cuda::WgmmaMajor;
using cuda::WgmmaSwizzle;

constexpr int kRows = 64;
constexpr int kSteps = 2;                 // wgmmas along K in a tile
constexpr int kDepthBytes = 32 * kSteps;  // of a tile's row

template <typename T>
inline constexpr int kDepth = kDepthBytes / int{sizeof(T)};

// How a tile of `extent` rows (of A; columns of B) by kDepth<T> lies in shared memory: panels of S bytes along
// the major dimension, each as tight as can be.
struct TileLayout {
  bool mn_major;
  int swizzle;  // S, 16 for none
  int element, extent;

  __host__ __device__ int panel_bytes() const {
    return mn_major ? kDepthBytes / element * swizzle : extent * swizzle;
  }
  __host__ __device__ int bytes() const {
    const int across = mn_major ? extent * element : kDepthBytes;
    return (across + swizzle - 1) / swizzle * panel_bytes();
  }
  __host__ __device__ int offset(int x, int k) const {
    const int major = (mn_major ? x : k) * element, minor = mn_major ? k : x;
    const int linear = major / swizzle * panel_bytes() + minor * swizzle + major % swizzle;
    return linear ^ (linear / 128 % (swizzle / 16)) * 16;
  }
  __host__ __device__ int step_bytes() const {  // from one wgmma's part to the next one's
    if (mn_major) return 32 / element * swizzle;
    return swizzle == 16 ? 2 * panel_bytes() : 32 % swizzle + 32 / swizzle * panel_bytes();
  }
  __host__ __device__ uint32_t leading() const {
    return mn_major && swizzle == 16 ? 8 * swizzle : panel_bytes();
  }
  __host__ __device__ uint32_t stride() const {
    return mn_major && swizzle == 16 ? panel_bytes() : 8 * swizzle;
  }
  __device__ uint64_t descriptor(const void* start) const {
    const WgmmaSwizzle mode = swizzle == 128  ? WgmmaSwizzle::k128Bytes
                              : swizzle == 64 ? WgmmaSwizzle::k64Bytes
                              : swizzle == 32 ? WgmmaSwizzle::k32Bytes
                                              : WgmmaSwizzle::kNone;
    return cuda::wgmma_descriptor(start, leading(), stride(), mode);
  }
};

constexpr int round_up(int bytes) { return (bytes + 1023) / 1024 * 1024; }

template <typename T>
__device__ T to_operand(float value) {
  if constexpr (sizeof(T) == 4) {
    return {value};
  } else {
    return cuda::from_acc<T>(value);
  }
}

// x: extent x kDepth<T>, row-major.
template <typename T>
__device__ void store_tile(char* tile, const TileLayout& layout, const float* x) {
  for (int i = threadIdx.x; i < layout.extent * kDepth<T>; i += blockDim.x) {
    *reinterpret_cast<T*>(tile + layout.offset(i / kDepth<T>, i % kDepth<T>)) = to_operand<T>(x[i]);
  }
}

// Registers of A for one wgmma, by the formula of mma.cuh.
template <typename T>
__device__ void load_fragment(uint32_t (&fragment)[4], const float* a, int step) {
  constexpr int kElements = 4 / sizeof(T);
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int r = 0; r < 4; ++r) {
    T values[kElements];
    for (int e = 0; e < kElements; ++e) {
      const int row = 16 * warp + g + 8 * (r % 2), k = kElements * (4 * (r / 2) + t) + e;
      values[e] = to_operand<T>(a[row * kDepth<T> + step * kDepth<T> / kSteps + k]);
    }
    memcpy(&fragment[r], values, 4);
  }
}

template <int kCount>
__device__ void store_accumulators(float* out, const float (&d)[kCount]) {
  const int warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    out[(16 * warp + g + 8 * (i / 2 % 2)) * 2 * kCount + 8 * (i / 4) + 2 * t + i % 2] = d[i];
  }
}

struct Problem {
  const float *a, *b;  // 64 x depth, N x depth
  float* d;            // 64 x N
  TileLayout layout_a, layout_b;
};

enum class SourceA { kShared, kRegisters };

template <typename T, int kN, SourceA kSource, WgmmaMajor kMajorA, WgmmaMajor kMajorB>
__global__ void __launch_bounds__(128) wgmma_kernel(Problem problem) {
  FASTNN_DYNAMIC_SHARED_ALIGNED(char, tiles, 1024);
  char* const tile_b = tiles + round_up(problem.layout_a.bytes());
  store_tile<T>(tiles, problem.layout_a, problem.a);
  store_tile<T>(tile_b, problem.layout_b, problem.b);
  cuda::fence_proxy_async();
  __syncthreads();
  const uint64_t a = problem.layout_a.descriptor(tiles), b = problem.layout_b.descriptor(tile_b);
  float d[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) d[i] = 1e9f;  // the first wgmma overwrites it
  uint32_t fragments[kSteps][4];
  if constexpr (kSource == SourceA::kRegisters) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) load_fragment<T>(fragments[step], problem.a, step);
    cuda::wgmma_fence(d, fragments);
  } else {
    cuda::wgmma_fence(d);
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const uint64_t b_step = cuda::wgmma_advance(b, step * problem.layout_b.step_bytes());
    if constexpr (kSource == SourceA::kRegisters) {
      cuda::wgmma_mma_async<T, kN, kMajorB>(d, fragments[step], b_step, step > 0);
    } else {
      const uint64_t a_step = cuda::wgmma_advance(a, step * problem.layout_a.step_bytes());
      cuda::wgmma_mma_async<T, kN, kMajorA, kMajorB>(d, a_step, b_step, step > 0);
    }
  }
  cuda::wgmma_commit_group();
  cuda::wgmma_wait_group<0>(d);
  store_accumulators(problem.d, d);
}

void fill(DeviceArray<float>& values, uint32_t& state, bool integer) {
  for (float& v : values) {
    state = state * 1664525u + 1013904223u;
    v = integer ? static_cast<float>(static_cast<int>(state >> 24) % 17 - 8)
                : static_cast<float>(static_cast<int>(state >> 16) % 255 - 127) / 128.0f;
  }
}

const char* compare(const char* name, const DeviceArray<float>& a, const DeviceArray<float>& b,
                    const DeviceArray<float>& d, int n, int depth, bool integer) {
  for (int i = 0; i < kRows * n; ++i) {
    double sum = 0, magnitude = 0;
    for (int k = 0; k < depth; ++k) {
      const double product = static_cast<double>(a[i / n * depth + k]) * b[i % n * depth + k];
      sum += product;
      magnitude += std::fabs(product);
    }
    const double error = std::fabs(d[i] - sum);
    FASTNN_EXPECT(error <= (integer ? 0 : 4 * magnitude * 0x1p-23), "%s: row %d, column %d: %.9g, not %.9g",
                  name, i / n, i % n, static_cast<double>(d[i]), sum);
  }
  return nullptr;
}

template <typename T, int kN, SourceA kSource, WgmmaMajor kMajorA, WgmmaMajor kMajorB>
const char* check_wgmma(const char* name, int swizzle_a, int swizzle_b, bool integer = true) {
  DeviceArray<float> a(kRows * kDepth<T>), b(kN * kDepth<T>), d(kRows * kN);
  uint32_t state = kN;
  fill(a, state, integer);
  fill(b, state, integer);
  const Problem problem{
      .a = a.data(),
      .b = b.data(),
      .d = d.data(),
      .layout_a = {.mn_major = kMajorA == WgmmaMajor::kMN,
                   .swizzle = swizzle_a,
                   .element = sizeof(T),
                   .extent = kRows},
      .layout_b = {
          .mn_major = kMajorB == WgmmaMajor::kMN, .swizzle = swizzle_b, .element = sizeof(T), .extent = kN}};
  const int bytes = round_up(problem.layout_a.bytes()) + problem.layout_b.bytes();
  FASTNN_RUN(name, wgmma_kernel<T, kN, kSource, kMajorA, kMajorB>, dim3(1), dim3(128), bytes, nullptr, problem);
  return compare(name, a, b, d, kN, kDepth<T>, integer);
}

constexpr WgmmaMajor kK = WgmmaMajor::kK, kMN = WgmmaMajor::kMN;
constexpr SourceA kShared = SourceA::kShared, kRegisters = SourceA::kRegisters;

FASTNN_CORRECT(wgmma_layouts) {
  const int swizzles[] = {16, 32, 64, 128};
  for (const int s : swizzles) {
    const int other = s == 128 ? 16 : 2 * s;
    const char* const errors[] = {
        check_wgmma<bfloat16_t, 64, kShared, kK, kK>("bf16, K-major and K-major", s, other),
        check_wgmma<bfloat16_t, 64, kShared, kMN, kK>("bf16, M-major and K-major", s, other),
        check_wgmma<bfloat16_t, 64, kShared, kK, kMN>("bf16, K-major and N-major", s, other),
        check_wgmma<bfloat16_t, 64, kShared, kMN, kMN>("bf16, M-major and N-major", s, other),
        check_wgmma<tfloat32_t, 64, kShared, kK, kK>("tf32", s, other),
    };
    for (const char* error : errors) {
      if (error != nullptr) return error;
    }
  }
  return nullptr;
}

FASTNN_CORRECT(wgmma_shapes_and_types) {
  const char* const errors[] = {
      check_wgmma<float16_t, 8, kShared, kK, kK>("fp16, N = 8", 128, 32),
      check_wgmma<float16_t, 16, kShared, kK, kMN>("fp16, N = 16", 128, 32),
      check_wgmma<float16_t, 32, kShared, kK, kK>("fp16, N = 32", 64, 64),
      check_wgmma<bfloat16_t, 96, kShared, kK, kMN>("bf16, N = 96", 128, 128),
      check_wgmma<float16_t, 128, kShared, kMN, kMN>("fp16, N = 128", 128, 128),
      check_wgmma<bfloat16_t, 192, kShared, kK, kK>("bf16, N = 192", 128, 128),
      check_wgmma<bfloat16_t, 256, kShared, kK, kMN>("bf16, N = 256", 128, 128),
      check_wgmma<tfloat32_t, 256, kShared, kK, kK>("tf32, N = 256", 128, 128),
      check_wgmma<tfloat32_t, 8, kShared, kK, kK>("tf32, N = 8", 32, 32),
      check_wgmma<float16_t, 64, kRegisters, kK, kK>("fp16, A in registers", 128, 128),
      check_wgmma<bfloat16_t, 256, kRegisters, kK, kMN>("bf16, A in registers, N = 256", 128, 128),
      check_wgmma<tfloat32_t, 64, kRegisters, kK, kK>("tf32, A in registers", 128, 128),
      check_wgmma<float16_t, 128, kShared, kMN, kMN>("fp16, fractions", 64, 128, false),
      check_wgmma<tfloat32_t, 64, kRegisters, kK, kK>("tf32, fractions", 128, 64, false),
  };
  for (const char* error : errors) {
    if (error != nullptr) return error;
  }
  return nullptr;
}

// --- groups ---

constexpr int kN = 32;
constexpr int kTileDepth = kDepth<bfloat16_t>;
constexpr int kTileA = kRows * kDepthBytes, kTileB = kN * kDepthBytes;  // bytes; multiples of 1024
constexpr TileLayout layout_a() { return {.mn_major = false, .swizzle = 64, .element = 2, .extent = kRows}; }
constexpr TileLayout layout_b() { return {.mn_major = false, .swizzle = 64, .element = 2, .extent = kN}; }

// One group: d += A B of a stage of the ring of tiles.
__device__ void multiply(float (&d)[kN / 2], const char* stage, bool accumulate) {
  const uint64_t a = layout_a().descriptor(stage), b = layout_b().descriptor(stage + kTileA);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    cuda::wgmma_mma_async<bfloat16_t, kN>(d, cuda::wgmma_advance(a, 32 * step),
                                          cuda::wgmma_advance(b, 32 * step), accumulate || step > 0);
  }
  cuda::wgmma_commit_group();
}

__device__ void fill_stage(char* stage, const float* a, const float* b) {
  store_tile<bfloat16_t>(stage, layout_a(), a);
  store_tile<bfloat16_t>(stage + kTileA, layout_b(), b);
}

// The sum over `tiles` products, through a ring of two stages with one group in flight.
template <bool kProxyFence, bool kWaitBeforeOverwrite>
__global__ void __launch_bounds__(128)
    wgmma_ring_kernel(const float* a, const float* b, float* out, int tiles) {
  FASTNN_DYNAMIC_SHARED_ALIGNED(char, ring, 1024);
  float d[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) d[i] = 0;
  cuda::wgmma_fence(d);
  for (int tile = 0; tile < tiles; ++tile) {
    char* const stage = ring + tile % 2 * (kTileA + kTileB);
    // The group of tile - 2 read this stage: all but the newest group are over, for all warps.
    if constexpr (kWaitBeforeOverwrite) cuda::wgmma_wait_group<1>();
    __syncthreads();
    fill_stage(stage, a + tile * kRows * kTileDepth, b + tile * kN * kTileDepth);
    if constexpr (kProxyFence) cuda::fence_proxy_async();
    __syncthreads();
    multiply(d, stage, true);
  }
  cuda::wgmma_wait_group<0>(d);
  store_accumulators(out, d);
}

template <bool kProxyFence, bool kWaitBeforeOverwrite>
const char* run_ring(int tiles) {
  DeviceArray<float> a(tiles * kRows * kTileDepth), b(tiles * kN * kTileDepth), d(kRows * kN);
  uint32_t state = 3;
  fill(a, state, true);
  fill(b, state, true);
  FASTNN_RUN("wgmma_ring_kernel", wgmma_ring_kernel<kProxyFence, kWaitBeforeOverwrite>, dim3(1), dim3(128),
             2 * (kTileA + kTileB), nullptr, a.data(), b.data(), d.data(), tiles);
  for (int i = 0; i < kRows * kN; ++i) {
    float sum = 0;
    for (int tile = 0; tile < tiles; ++tile) {
      for (int k = 0; k < kTileDepth; ++k) {
        sum += a[(tile * kRows + i / kN) * kTileDepth + k] * b[(tile * kN + i % kN) * kTileDepth + k];
      }
    }
    FASTNN_EXPECT(d[i] == sum, "row %d, column %d: %g, not %g", i / kN, i % kN, static_cast<double>(d[i]),
                  static_cast<double>(sum));
  }
  return nullptr;
}

FASTNN_CORRECT(wgmma_ring_of_stages) { return run_ring<true, true>(5); }
FASTNN_FAULTY(wgmma_without_proxy_fence, "none", "proxy") { return run_ring<false, true>(1); }
FASTNN_FAULTY(wgmma_stage_overwritten_too_early, "racecheck", "(?i)race|wgmma|asynchronous") {
  return run_ring<true, false>(3);
}

// Two warpgroups, each with two groups on accumulators of their own: those of the first are stored while the
// second is in flight. With at most one mistake.
enum class Mistake {
  kNone,
  kEarlyRead,          // of the first group's accumulators, before its wait
  kWrongCount,         // waits for all groups but two
  kNoWait,             // at all
  kNoFence,            // before the first wgmma
  kWrittenInFlight,    // accumulators
  kWrittenUnfenced,    // accumulators, before a wgmma that adds to them
  kMisalignedStart,    // 8 bytes off
  kMisalignedPattern,  // 128 bytes off
  kWarpMissing,        // of the second warpgroup
  kWarpsDiffer,        // in their descriptors
};

template <Mistake kMistake>
__global__ void __launch_bounds__(256) wgmma_groups_kernel(const float* a, const float* b, float* out) {
  FASTNN_DYNAMIC_SHARED_ALIGNED(char, shared, 1024);
  constexpr int kSkew = kMistake == Mistake::kMisalignedPattern ? 128 : 0;
  char* const tile = shared + kSkew;
  const int warp = threadIdx.x / 32;
  fill_stage(tile, a, b);
  cuda::fence_proxy_async();
  __syncthreads();
  if (kMistake == Mistake::kWarpMissing && warp == 7) return;
  const char* start = tile;
  if (kMistake == Mistake::kMisalignedStart) start += 8;
  if (kMistake == Mistake::kWarpsDiffer && warp == 2) start += 1024;
  out += warp / 4 * 2 * kRows * kN;
  float first[kN / 2], second[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) first[i] = second[i] = 0;
  if constexpr (kMistake != Mistake::kNoFence) cuda::wgmma_fence(first, second);
  multiply(first, start, true);
  if constexpr (kMistake == Mistake::kWrittenInFlight) first[3] = 1;
  multiply(second, tile, true);
  if constexpr (kMistake == Mistake::kNoWait) return;
  if constexpr (kMistake == Mistake::kEarlyRead) store_accumulators(out, first);
  cuda::wgmma_wait_group<kMistake == Mistake::kWrongCount ? 2 : 1>(first);
  if constexpr (kMistake == Mistake::kWrittenUnfenced) {
    first[3] += 1;
    multiply(first, tile, true);
  }
  if constexpr (kMistake != Mistake::kEarlyRead) store_accumulators(out, first);
  cuda::wgmma_wait_group<0>(first, second);
  store_accumulators(out + kRows * kN, second);
}

template <Mistake kMistake>
const char* run_groups() {
  DeviceArray<float> a(kRows * kTileDepth), b(kN * kTileDepth), d(4 * kRows * kN);
  uint32_t state = 5;
  fill(a, state, true);
  fill(b, state, true);
  FASTNN_RUN("wgmma_groups_kernel", wgmma_groups_kernel<kMistake>, dim3(1), dim3(256), kTileA + kTileB + 1024,
             nullptr, a.data(), b.data(), d.data());
  for (int i = 0; i < 4 * kRows * kN; ++i) {
    float sum = 0;
    for (int k = 0; k < kTileDepth; ++k) sum += a[i / kN % kRows * kTileDepth + k] * b[i % kN * kTileDepth + k];
    FASTNN_EXPECT(d[i] == sum, "row %d, column %d: %g, not %g", i / kN, i % kN, static_cast<double>(d[i]),
                  static_cast<double>(sum));
  }
  return nullptr;
}

FASTNN_CORRECT(wgmma_groups_of_two_warpgroups) { return run_groups<Mistake::kNone>(); }
FASTNN_FAULTY(wgmma_accumulators_read_too_early, "none", "nan, not") {
  return run_groups<Mistake::kEarlyRead>();
}
FASTNN_FAULTY(wgmma_wait_for_too_few_groups, "none", "nan, not") { return run_groups<Mistake::kWrongCount>(); }
FASTNN_FAULTY(wgmma_never_waited_for, "none", "exits without having waited") {
  return run_groups<Mistake::kNoWait>();
}
FASTNN_FAULTY(wgmma_without_fence, "none", "without a wgmma_fence") { return run_groups<Mistake::kNoFence>(); }
FASTNN_FAULTY(wgmma_accumulators_written_in_flight, "none", "wrote accumulators") {
  return run_groups<Mistake::kWrittenInFlight>();
}
FASTNN_FAULTY(wgmma_accumulators_written_without_fence, "none", "written since the last wgmma_fence") {
  return run_groups<Mistake::kWrittenUnfenced>();
}
FASTNN_FAULTY(wgmma_start_misaligned, "none", "misaligned") { return run_groups<Mistake::kMisalignedStart>(); }
FASTNN_FAULTY(wgmma_tile_off_the_swizzle_pattern, "none", "first row of the swizzle") {
  return run_groups<Mistake::kMisalignedPattern>();
}
FASTNN_FAULTY(wgmma_with_a_warp_missing, "hangs", "wgmma") { return run_groups<Mistake::kWarpMissing>(); }
FASTNN_FAULTY(wgmma_descriptors_differ, "none", "another wgmma than a warp") {
  return run_groups<Mistake::kWarpsDiffer>();
}

// The registers of A are filled again before the wgmma that reads them is over.
__global__ void __launch_bounds__(128) wgmma_fragment_kernel(const float* a, const float* b, float* out) {
  FASTNN_DYNAMIC_SHARED_ALIGNED(char, tile, 1024);
  store_tile<bfloat16_t>(tile, layout_b(), b);
  cuda::fence_proxy_async();
  __syncthreads();
  const uint64_t b_descriptor = layout_b().descriptor(tile);
  float d[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) d[i] = 0;
  uint32_t fragment[4];
  for (int step = 0; step < kSteps; ++step) {
    load_fragment<bfloat16_t>(fragment, a, step);
    cuda::wgmma_fence(d, fragment);
    cuda::wgmma_mma_async<bfloat16_t, kN>(d, fragment, cuda::wgmma_advance(b_descriptor, 32 * step));
    cuda::wgmma_commit_group();
  }
  cuda::wgmma_wait_group<0>(d);
  store_accumulators(out, d);
}
FASTNN_FAULTY(wgmma_registers_of_a_written_in_flight, "none", "wrote the registers of A") {
  DeviceArray<float> a(kRows * kTileDepth), b(kN * kTileDepth), d(kRows * kN);
  uint32_t state = 6;
  fill(a, state, true);
  fill(b, state, true);
  FASTNN_RUN("wgmma_fragment_kernel", wgmma_fragment_kernel, dim3(1), dim3(128), kTileB, nullptr, a.data(),
             b.data(), d.data());
  return nullptr;
}

}  // namespace
}  // namespace fastnn::selftest
