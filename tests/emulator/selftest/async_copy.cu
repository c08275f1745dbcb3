// cp.async: pipelines that are right, and ones that read too early or write too soon. All of it runs from sm_80
// on.
#include "../../../csrc/cuda/async_copy.cuh"
#include "selftest.h"

namespace fastnn::selftest {
namespace {

using namespace fastnn::cuda;

constexpr int kThreads = 128;
constexpr int kTile = kThreads * 4;  // floats: a cp.async of 16 bytes for each thread

enum class Mistake { kNone, kWaitForOneLess, kNoBarrierAfterWait, kNoBarrierBeforeReuse, kNoWait };

// Sums, for each of kTile places, the place mirrored in every tile: so each thread reads what others copied.
template <int kStages, Mistake kMistake>
__global__ void pipeline_kernel(const float* x, float* sums, int tiles) {
  FASTNN_SHARED(float4, stages, kStages * kThreads);
  const int i = static_cast<int>(threadIdx.x);
  const auto load = [&](int tile) {
    if (tile < tiles) cp_async<16>(&stages[tile % kStages * kThreads + i], x + tile * kTile + i * 4);
    cp_async_commit_group();
  };
  for (int tile = 0; tile < kStages - 1; ++tile) load(tile);
  float4 sum{0, 0, 0, 0};
  for (int tile = 0; tile < tiles; ++tile) {
    // Loading at once needs the stage before free already; else it comes after the barrier.
    if constexpr (kMistake == Mistake::kNoBarrierBeforeReuse) {
      load(tile + kStages - 1);
      cp_async_wait_group<kStages - 1>();
      __syncthreads();
    } else {
      if constexpr (kMistake == Mistake::kWaitForOneLess) {
        cp_async_wait_group<kStages - 1>();
      } else if constexpr (kMistake != Mistake::kNoWait) {
        cp_async_wait_group<kStages - 2>();
      }
      if constexpr (kMistake != Mistake::kNoBarrierAfterWait) __syncthreads();
      load(tile + kStages - 1);
    }
    const float4 v = stages[tile % kStages * kThreads + kThreads - 1 - i];
    sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
  }
  reinterpret_cast<float4*>(sums)[i] = sum;
}

template <int kStages, Mistake kMistake>
const char* run_pipeline(int tiles) {
  DeviceArray<float> x(static_cast<size_t>(tiles) * kTile), sums(kTile);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7 % 1001);
  FASTNN_RUN("pipeline_kernel", (pipeline_kernel<kStages, kMistake>), dim3(1), dim3(kThreads), 0, nullptr,
             x.data(), sums.data(), tiles);
  for (int i = 0; i < kTile; ++i) {
    float expected = 0;
    for (int tile = 0; tile < tiles; ++tile) expected += x[tile * kTile + (kThreads - 1 - i / 4) * 4 + i % 4];
    FASTNN_EXPECT(sums[i] == expected, "sum %d of %d stages is %g instead of %g", i, kStages,
                  static_cast<double>(sums[i]), static_cast<double>(expected));
  }
  return nullptr;
}

FASTNN_CORRECT(cp_async_pipelines) {
  for (const int tiles : {1, 2, 3, 9}) {
    if (const char* said = run_pipeline<2, Mistake::kNone>(tiles)) return said;
    if (const char* said = run_pipeline<3, Mistake::kNone>(tiles)) return said;
    if (const char* said = run_pipeline<4, Mistake::kNone>(tiles)) return said;
  }
  return nullptr;
}
FASTNN_FAULTY(cp_async_read_before_the_wait, "racecheck",
              R"re(pipeline_kernel: .*(race|uninitialised)|^sum)re") {
  return run_pipeline<2, Mistake::kNoWait>(4);
}
FASTNN_FAULTY(cp_async_waits_for_one_group_less, "racecheck",
              R"re(pipeline_kernel: .*(race|uninitialised)|^sum)re") {
  return run_pipeline<3, Mistake::kWaitForOneLess>(6);
}
FASTNN_FAULTY(cp_async_without_barrier_after_the_wait, "racecheck",
              R"re(pipeline_kernel: .*(race|uninitialised)|^sum)re") {
  return run_pipeline<3, Mistake::kNoBarrierAfterWait>(6);
}
FASTNN_FAULTY(cp_async_into_a_stage_still_read, "racecheck",
              R"re(pipeline_kernel: .*(race|uninitialised)|^sum)re") {
  return run_pipeline<2, Mistake::kNoBarrierBeforeReuse>(6);
}

// --- sizes, zero fill ---

__global__ void sizes_kernel(const unsigned char* x, unsigned char* out) {
  FASTNN_SHARED(uint4, memory, 1280 / 16);
  unsigned char* const bytes = reinterpret_cast<unsigned char*>(&memory[0]);
  const unsigned i = threadIdx.x;
  // Of 4 bytes i % 5, of 8 i % 9, of 16 i % 17 are read.
  cp_async_zero_fill<4>(bytes + 4 * i, x + 4 * i, i % 5);
  cp_async_zero_fill<8>(bytes + 512 + 8 * i, x + 8 * i, i % 9);
  cp_async_commit_group();
  cp_async_zero_fill<16>(bytes + 768 + 16 * i, x + 16 * i, i % 17);
  cp_async<4>(bytes + 128 + 4 * i, x + 4 * i);
  cp_async<8>(bytes + 256 + 8 * i, x + 8 * i);
  cp_async_wait_all();
  __syncthreads();
  for (unsigned j = i; j < 1280; j += blockDim.x) out[j] = bytes[j];
}

FASTNN_CORRECT(cp_async_sizes_and_zero_fill) {
  DeviceArray<unsigned char> x(512), out(1280);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<unsigned char>(i * 37 + 1);
  FASTNN_RUN("sizes_kernel", sizes_kernel, dim3(1), dim3(32), 0, nullptr, x.data(), out.data());
  const auto expect = [&](int base, int size, bool filled) -> const char* {
    for (int i = 0; i < 32 * size; ++i) {
      const bool read = !filled || i % size < i / size % (size + 1);
      FASTNN_EXPECT(out[base + i] == (read ? x[i] : 0), "byte %d at %d is %d", i, base, out[base + i]);
    }
    return nullptr;
  };
  if (const char* said = expect(0, 4, true)) return said;
  if (const char* said = expect(128, 4, false)) return said;
  if (const char* said = expect(256, 8, false)) return said;
  if (const char* said = expect(512, 8, true)) return said;
  return expect(768, 16, true);
}

// Nothing is read of a source of 0 bytes: it may lie anywhere.
__global__ void empty_source_kernel(const float* x, float* out) {
  FASTNN_SHARED(float4, memory, 32);
  const int i = static_cast<int>(threadIdx.x);
  const bool inside = i < 20;
  cp_async_zero_fill<16>(&memory[i], inside ? x + 4 * i : x + 1000000, inside ? 16 : 0);
  cp_async_wait_all();
  out[i] = memory[i].w;  // the thread's own copy: the wait is enough
}

FASTNN_CORRECT(cp_async_of_an_empty_source) {
  DeviceArray<float> x(80, 3), out(32);
  FASTNN_RUN("empty_source_kernel", empty_source_kernel, dim3(1), dim3(32), 0, nullptr, x.data(), out.data());
  for (int i = 0; i < 32; ++i) {
    FASTNN_EXPECT(out[i] == (i < 20 ? 3.0f : 0.0f), "[%d] is %g", i, static_cast<double>(out[i]));
  }
  return nullptr;
}

__global__ void offset_kernel(const float* x, float* out, int destination, int source) {
  FASTNN_SHARED(float4, memory, 65);
  float* const floats = reinterpret_cast<float*>(&memory[0]);
  cp_async<16>(floats + 4 * threadIdx.x + destination, x + 4 * threadIdx.x + source);
  cp_async_wait_all();
  out[threadIdx.x] = floats[4 * threadIdx.x + destination];
}

const char* run_offset(int destination, int source, size_t size) {
  DeviceArray<float> x(size, 1), out(64);
  FASTNN_RUN("offset_kernel", offset_kernel, dim3(1), dim3(64), 0, nullptr, x.data(), out.data(), destination,
             source);
  for (const float v : out) FASTNN_EXPECT(v == 1, "another number");
  return nullptr;
}
FASTNN_CORRECT(cp_async_aligned) { return run_offset(4, 4, 260); }
FASTNN_FAULTY(cp_async_to_a_misaligned_address, "memcheck", R"re(offset_kernel: .*misaligned)re") {
  return run_offset(2, 0, 256);
}
FASTNN_FAULTY(cp_async_from_a_misaligned_address, "memcheck", R"re(offset_kernel: .*misaligned)re") {
  return run_offset(0, 1, 257);
}
FASTNN_FAULTY(cp_async_out_of_bounds, "memcheck",
              R"re(offset_kernel: .*(out of bounds|Invalid|illegal|beyond))re") {
  return run_offset(0, 4, 256);
}

// --- arrival of copies at an mbarrier ---

template <bool kWait>
__global__ void arrival_kernel(const float* x, float* sums, int tiles) {
  FASTNN_SHARED(float4, stage, kThreads);
  FASTNN_SHARED(Mbarrier, full, 1);
  const int i = static_cast<int>(threadIdx.x);
  if (i == 0) mbarrier_init(full, kThreads);
  __syncthreads();
  float sum = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    cp_async<16>(&stage[i], x + tile * kTile + i * 4);
    cp_async_mbarrier_arrive(full);
    if constexpr (kWait) mbarrier_wait(full, tile % 2);
    sum += stage[kThreads - 1 - i].z;
    __syncthreads();
  }
  sums[blockIdx.x * kThreads + i] = sum;
}

template <bool kWait>
const char* run_arrival() {
  constexpr int kTiles = 5;
  DeviceArray<float> x(kTiles * kTile), sums(2 * kThreads);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 999);
  FASTNN_RUN("arrival_kernel", arrival_kernel<kWait>, dim3(2), dim3(kThreads), 0, nullptr, x.data(),
             sums.data(), kTiles);
  for (int i = 0; i < 2 * kThreads; ++i) {
    float expected = 0;
    for (int tile = 0; tile < kTiles; ++tile)
      expected += x[tile * kTile + (kThreads - 1 - i % kThreads) * 4 + 2];
    FASTNN_EXPECT(sums[i] == expected, "sum %d is %g", i, static_cast<double>(sums[i]));
  }
  return nullptr;
}
FASTNN_CORRECT(cp_async_arrives_at_an_mbarrier) { return run_arrival<true>(); }
FASTNN_FAULTY(cp_async_arrives_and_nobody_waits, "racecheck",
              R"re(arrival_kernel: .*(race|uninitialised)|^sum)re") {
  return run_arrival<false>();
}

}  // namespace
}  // namespace fastnn::selftest
