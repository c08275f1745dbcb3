// Kernels with one mistake each: every case returns what showed it, and null when nothing did.
#include <stdexcept>

#include "selftest.h"

namespace fastnn::selftest {
namespace {

__global__ void missing_barrier_kernel(float* out) {
  FASTNN_SHARED(float, values, 64);
  values[threadIdx.x] = 1;
  out[threadIdx.x] = values[63 - threadIdx.x];
}

FASTNN_FAULTY(missing_barrier, "racecheck",
              R"re(^missing_barrier_kernel: .*(uninitiali[sz]ed|race)|^out\[0\] is NaN)re") {
  DeviceArray<float> out(64);
  FASTNN_RUN("missing_barrier_kernel", missing_barrier_kernel, dim3(1), dim3(64), 0, nullptr, out.data());
  for (int i = 0; i < 64; ++i)
    FASTNN_EXPECT(out[i] == 1, "out[%d] is %s", i, isnan(out[i]) ? "NaN" : "another number");
  return nullptr;
}

__global__ void poison_kernel(float* out) {
  FASTNN_SHARED(float, values, 64);
  if (threadIdx.x < 63) values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[63 - threadIdx.x];
}

FASTNN_FAULTY(shared_memory_that_nobody_wrote, "none",
              R"re(^poison_kernel: .*uninitiali[sz]ed|^out\[0\] is NaN)re") {
  DeviceArray<float> out(64);
  FASTNN_RUN("poison_kernel", poison_kernel, dim3(3), dim3(64), 0, nullptr, out.data());
  FASTNN_EXPECT(!isnan(out[0]), "out[0] is NaN");
  return nullptr;
}

// --- barriers ---

__global__ void barrier_after_exit_kernel() {
  if (threadIdx.x == 5) return;
  __syncthreads();
}
FASTNN_FAULTY(
    barrier_after_exit, "synccheck",
    R"re(^barrier_after_exit_kernel: block \(\d, \d, 0\): deadlock, barrier not reached by all threads: )re"
    R"re(thread \(0, 0, 0\) and 62 more: waits at __syncthreads \(faulty\.cu:\d+\); )re"
    R"re(thread \(5, 0, 0\): has exited$)re") {
  FASTNN_RUN("barrier_after_exit_kernel", barrier_after_exit_kernel, dim3(2, 3), dim3(64), 0, nullptr);
  return nullptr;
}

__global__ void barrier_in_branch_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
FASTNN_FAULTY(barrier_in_each_branch, "synccheck",
              R"re(thread \(0, 0, 0\) and 31 more: waits at __syncthreads \(.*:\d+\); )re"
              R"re(thread \(32, 0, 0\) and 31 more: waits at __syncthreads)re") {
  FASTNN_RUN("barrier_in_branch_kernel", barrier_in_branch_kernel, dim3(1), dim3(64), 0, nullptr);
  return nullptr;
}

__global__ void barrier_count_kernel() {
  const int rounds = threadIdx.x == 40 ? 4 : 3;
  for (int i = 0; i < rounds; ++i) __syncthreads();
}
FASTNN_FAULTY(
    barrier_once_too_often, "synccheck",
    R"re(thread \(0, 0, 0\) and 62 more: has exited; thread \(40, 0, 0\): waits at __syncthreads)re") {
  FASTNN_RUN("barrier_count_kernel", barrier_count_kernel, dim3(1), dim3(64), 0, nullptr);
  return nullptr;
}

__global__ void barrier_and_shuffle_kernel(int* out) {
  if (threadIdx.x == 31) __syncthreads();
  out[threadIdx.x] = __shfl_sync(kFullMask, static_cast<int>(threadIdx.x), 0);
  if (threadIdx.x != 31) __syncthreads();
}
FASTNN_FAULTY(lane_at_the_barrier_instead, "hangs",
              R"re(thread \(0, 0, 0\) and 30 more: waits at __shfl_sync with mask 0xffffffff .*; )re"
              R"re(thread \(31, 0, 0\): waits at __syncthreads)re") {
  DeviceArray<int> out(32);
  FASTNN_RUN("barrier_and_shuffle_kernel", barrier_and_shuffle_kernel, dim3(1), dim3(32), 0, nullptr,
             out.data());
  return nullptr;
}

// --- masks ---

// The results of the kernels below are kept: nvcc drops a collective whose result nobody needs, and the mistake
// with it.

__global__ void exited_lane_kernel(unsigned first_to_exit, unsigned* out) {
  const unsigned lane = threadIdx.x;
  if (lane >= first_to_exit && lane < first_to_exit + 3) return;
  out[lane] = lane;
  __syncwarp();
  out[32 + lane] = out[lane ^ 1];
}
FASTNN_FAULTY(mask_names_lane_that_exited_before, "synccheck",
              R"re(__syncwarp .* naming lane \d, which has exited)re") {
  DeviceArray<unsigned> out(64);
  FASTNN_RUN("exited_lane_kernel", exited_lane_kernel, dim3(1), dim3(32), 0, nullptr, 0u, out.data());
  return nullptr;
}
FASTNN_FAULTY(mask_names_lane_that_exits_later, "synccheck",
              R"re(__syncwarp .* naming lane \d+, which has exited)re") {
  DeviceArray<unsigned> out(64);
  FASTNN_RUN("exited_lane_kernel", exited_lane_kernel, dim3(1), dim3(32), 0, nullptr, 29u, out.data());
  return nullptr;
}

__global__ void own_lane_kernel(unsigned* out) {
  out[threadIdx.x] = __ballot_sync(0x0000fffeu, out[threadIdx.x]);
}
FASTNN_FAULTY(mask_without_own_lane, "synccheck",
              R"re(__ballot_sync with mask 0x0000fffe .* without naming its own lane)re") {
  DeviceArray<unsigned> out(32, 1);
  FASTNN_RUN("own_lane_kernel", own_lane_kernel, dim3(1), dim3(32), 0, nullptr, out.data());
  return nullptr;
}

__global__ void different_masks_kernel() { __syncwarp(threadIdx.x < 16 ? kFullMask : 0xffff8000u); }
FASTNN_FAULTY(lanes_with_different_masks, "hangs",
              R"re(deadlock: thread \(0, 0, 0\) and 15 more: waits at __syncwarp with mask 0xffffffff .*; )re"
              R"re(thread \(16, 0, 0\) and 15 more: waits at __syncwarp with mask 0xffff8000)re") {
  FASTNN_RUN("different_masks_kernel", different_masks_kernel, dim3(1), dim3(32), 0, nullptr);
  return nullptr;
}

__global__ void different_operations_kernel(int* out) {
  const int bit = out[threadIdx.x];
  if (threadIdx.x % 2 == 0) {
    out[threadIdx.x] = __any_sync(kFullMask, bit);
  } else {
    out[threadIdx.x] = __all_sync(kFullMask, bit);
  }
}
FASTNN_FAULTY(lanes_with_different_operations, "synccheck",
              R"re(deadlock: thread \(0, 0, 0\) and 15 more: waits at __any_sync .*; )re"
              R"re(thread \(1, 0, 0\) and 15 more: waits at __all_sync)re") {
  DeviceArray<int> out(32, 1);
  FASTNN_RUN("different_operations_kernel", different_operations_kernel, dim3(1), dim3(32), 0, nullptr,
             out.data());
  return nullptr;
}

__global__ void width_kernel(int* out) {
  out[threadIdx.x] = __shfl_xor_sync(kFullMask, out[threadIdx.x], 1, 24);
}
FASTNN_FAULTY(shuffle_of_odd_width, "none", R"re(__shfl_xor_sync .* width that is no power of two)re") {
  DeviceArray<int> out(32, 1);
  FASTNN_RUN("width_kernel", width_kernel, dim3(1), dim3(32), 0, nullptr, out.data());
  return nullptr;
}

__global__ void outside_mask_kernel(float* out) {
  const unsigned lane = threadIdx.x;
  float v = 1;
  if (lane < 16) v = __shfl_down_sync(0x0000ffffu, v, 8);
  out[lane] = v;
}
FASTNN_FAULTY(shuffle_from_outside_the_mask, "none", R"re(__shfl_down_sync .*lane|^lanes 8 to 15 have NaN)re") {
  DeviceArray<float> out(32);
  FASTNN_RUN("outside_mask_kernel", outside_mask_kernel, dim3(1), dim3(32), 0, nullptr, out.data());
  FASTNN_EXPECT(!isnan(out[8]) && !isnan(out[15]), "lanes 8 to 15 have NaN");
  return nullptr;
}

// --- shared memory ---

__global__ void overrun_kernel(int index, int dynamic_index) {
  FASTNN_SHARED(float, tile, 64);
  FASTNN_DYNAMIC_SHARED(float, dynamic);
  if (threadIdx.x == 0) {
    volatile float* volatile fixed = tile;  // so that the compiler neither judges the index nor drops the store
    volatile float* volatile beyond = dynamic;
    fixed[index] = 1;
    beyond[dynamic_index] = 1;
  }
}
FASTNN_FAULTY(overrun_above, "none", R"re('tile'.* 256 bytes|out of bounds|beyond)re") {
  FASTNN_RUN("overrun_kernel", overrun_kernel, dim3(1), dim3(32), 64, nullptr, 64, 0);
  return nullptr;
}
FASTNN_FAULTY(overrun_below, "memcheck", R"re('tile'.* 256 bytes|out of bounds|before)re") {
  FASTNN_RUN("overrun_kernel", overrun_kernel, dim3(1), dim3(32), 64, nullptr, -1, 0);
  return nullptr;
}
FASTNN_FAULTY(overrun_of_dynamic, "memcheck", R"re(dynamic shared memory of 64 bytes|out of bounds|beyond)re") {
  FASTNN_RUN("overrun_kernel", overrun_kernel, dim3(1), dim3(32), 64, nullptr, 0, 17);
  return nullptr;
}
FASTNN_FAULTY(dynamic_that_was_not_asked_for, "memcheck",
              R"re(dynamic shared memory of 0 bytes|out of bounds|beyond)re") {
  FASTNN_RUN("overrun_kernel", overrun_kernel, dim3(1), dim3(32), 0, nullptr, 0, 0);
  return nullptr;
}

__global__ void read_beyond_kernel(float* out) {
  FASTNN_DYNAMIC_SHARED(float, values);
  values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x + 1];
}
FASTNN_FAULTY(read_beyond_the_end, "memcheck",
              R"re(^out\[31\] is NaN|uninitiali[sz]ed|out of bounds|beyond)re") {
  DeviceArray<float> out(32);
  FASTNN_RUN("read_beyond_kernel", read_beyond_kernel, dim3(1), dim3(32), 32 * sizeof(float), nullptr,
             out.data());
  FASTNN_EXPECT(!isnan(out[31]), "out[31] is NaN");
  return nullptr;
}

#if defined(FASTNN_EMULATOR)  // nvcc refuses it
__global__ void large_static_kernel() {
  FASTNN_SHARED(double, first, 4096);
  FASTNN_SHARED(double, second, 2049);
  first[0] = second[0] = 0;
}
FASTNN_FAULTY(static_beyond_48_kb, "none",
              R"re(static shared memory of 49160 bytes with 'second' .* a block may have 49152)re") {
  FASTNN_RUN("large_static_kernel", large_static_kernel, dim3(1), dim3(32), 0, nullptr);
  return nullptr;
}
#endif

__global__ void large_total_kernel() {
  FASTNN_SHARED(float, small, 257);
  float* volatile used = small;
  used[0] = 0;
}
FASTNN_FAULTY(static_and_dynamic_beyond_227_kb, "memcheck",
              R"re(shared memory of 232452 bytes with 'small' .* may have 232448)re") {
  FASTNN_RUN("large_total_kernel", large_total_kernel, dim3(1), dim3(32), 226 * 1024, nullptr);
  return nullptr;
}

// --- launches ---

__global__ void nothing_kernel() {}
FASTNN_FAULTY(dynamic_beyond_227_kb, "memcheck",
              R"re(^nothing_kernel: dynamic shared memory of 232449 bytes)re") {
  FASTNN_RUN("nothing_kernel", nothing_kernel, dim3(1), dim3(32), 227 * 1024 + 1, nullptr);
  return nullptr;
}
FASTNN_FAULTY(too_many_threads, "memcheck",
              R"re(^nothing_kernel: a block of \(32, 33, 1\) is larger than 1024 threads)re") {
  FASTNN_RUN("nothing_kernel", nothing_kernel, dim3(1), dim3(32, 33), 0, nullptr);
  return nullptr;
}
FASTNN_FAULTY(block_too_deep, "memcheck", R"re(a block of \(1, 1, 65\) is larger than)re") {
  FASTNN_RUN("nothing_kernel", nothing_kernel, dim3(1), dim3(1, 1, 65), 0, nullptr);
  return nullptr;
}
FASTNN_FAULTY(block_without_threads, "memcheck", R"re(a block of \(32, 0, 1\) has no threads)re") {
  FASTNN_RUN("nothing_kernel", nothing_kernel, dim3(1), dim3(32, 0), 0, nullptr);
  return nullptr;
}
FASTNN_FAULTY(grid_too_high, "memcheck", R"re(a grid of \(1, 65536, 1\) is larger than)re") {
  FASTNN_RUN("nothing_kernel", nothing_kernel, dim3(1, 65536), dim3(1), 0, nullptr);
  return nullptr;
}
FASTNN_FAULTY(grid_too_wide, "memcheck", R"re(a grid of \(2147483648, 1, 1\) is larger than)re") {
  FASTNN_RUN("nothing_kernel", nothing_kernel, dim3(1u << 31), dim3(1), 0, nullptr);
  return nullptr;
}

// --- threads that fail ---

#if defined(FASTNN_EMULATOR)  // a device has no exceptions
__global__ void throwing_kernel() {
  __syncthreads();
  if (threadIdx.x == 3) throw std::runtime_error("never seen by the launcher");
  __syncthreads();
}
FASTNN_FAULTY(exception_in_a_thread, "none", R"re(thread \(3, 0, 0\) threw a C\+\+ exception)re") {
  FASTNN_RUN("throwing_kernel", throwing_kernel, dim3(1), dim3(32), 0, nullptr);
  return nullptr;
}
#endif

__global__ void trap_kernel() {
  if (blockIdx.x >= 5 && threadIdx.x == 1) __trap();
}
FASTNN_FAULTY(first_block_that_fails_is_named, "memcheck",
              R"re(block \(5, 0, 0\): thread \(1, 0, 0\) called __trap \(.*:\d+\))re") {
  FASTNN_RUN("trap_kernel", trap_kernel, dim3(300), dim3(64), 0, nullptr);
  return nullptr;
}

}  // namespace
}  // namespace fastnn::selftest
