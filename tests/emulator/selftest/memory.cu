// What the checkers say of accesses: bounds, alignment, reads of what nobody wrote, races on shared and on
// global memory.
#include "selftest.h"

namespace fastnn::selftest {
namespace {

// --- bounds and alignment ---

__global__ void copy_kernel(const float* x, float* y, int n, int shift) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) y[i] = x[i + shift];
}
FASTNN_CORRECT(copy_to_the_last_element) {
  DeviceArray<float> x(77, 2), y(77);
  FASTNN_RUN("copy_kernel", copy_kernel, dim3(3), dim3(32), 0, nullptr, x.data(), y.data(), 77, 0);
  for (int i = 0; i < 77; ++i) FASTNN_EXPECT(y[i] == 2, "y[%d] is %g", i, y[i]);
  return nullptr;
}
FASTNN_FAULTY(
    global_read_beyond_the_end, "memcheck",
    R"re(copy_kernel: block \(2, 0, 0\): thread \(12, 0, 0\) reads \(memory.cu:\d+\) 4 bytes 0 bytes after the )re"
    R"re(end of global memory of 308 bytes: out of bounds)re") {
  DeviceArray<float> x(77), y(77);
  FASTNN_RUN("copy_kernel", copy_kernel, dim3(3), dim3(32), 0, nullptr, x.data(), y.data(), 77, 1);
  return nullptr;
}
FASTNN_FAULTY(global_read_before_the_start, "memcheck",
              R"re(reads .* 4 bytes 4 bytes before global memory of 308 bytes)re") {
  DeviceArray<float> x(77), y(77);
  FASTNN_RUN("copy_kernel", copy_kernel, dim3(3), dim3(32), 0, nullptr, x.data(), y.data(), 77, -1);
  return nullptr;
}
FASTNN_FAULTY(global_write_beyond_the_end, "memcheck",
              R"re(writes .* 4 bytes 0 bytes after the end of global memory of 304 bytes)re") {
  DeviceArray<float> x(77), y(76);
  FASTNN_RUN("copy_kernel", copy_kernel, dim3(3), dim3(32), 0, nullptr, x.data(), y.data(), 77, 0);
  return nullptr;
}
FASTNN_FAULTY(global_access_far_away, "memcheck", R"re(reads .* 4 bytes .*out of bounds)re") {
  DeviceArray<float> x(77), y(77);
  FASTNN_RUN("copy_kernel", copy_kernel, dim3(3), dim3(32), 0, nullptr, x.data(), y.data(), 77, 1 << 28);
  return nullptr;
}
FASTNN_FAULTY(null_pointer, "memcheck", R"re(writes .* 4 bytes at the null pointer: out of bounds)re") {
  DeviceArray<float> x(77);
  FASTNN_RUN("copy_kernel", copy_kernel, dim3(3), dim3(32), 0, nullptr, x.data(), nullptr, 77, 0);
  return nullptr;
}

__global__ void copy_vectors_kernel(const float4* x, float4* y) { y[threadIdx.x] = x[threadIdx.x]; }
FASTNN_FAULTY(vector_access_half_beyond_the_end, "memcheck",
              R"re(reads .* 16 bytes of global memory at byte 112 of 120: out of bounds)re") {
  DeviceArray<float> x(30), y(32);
  FASTNN_RUN("copy_vectors_kernel", copy_vectors_kernel, dim3(1), dim3(8), 0, nullptr,
             reinterpret_cast<const float4*>(x.data()), reinterpret_cast<float4*>(y.data()));
  return nullptr;
}
FASTNN_FAULTY(vector_read_misaligned, "memcheck",
              R"re(uses \(memory.cu:\d+\) as .*float4.* misaligned: 0x\w+4 is no multiple of 16)re") {
  DeviceArray<float> x(33), y(32);
  FASTNN_RUN("copy_vectors_kernel", copy_vectors_kernel, dim3(1), dim3(8), 0, nullptr,
             reinterpret_cast<const float4*>(x.data() + 1), reinterpret_cast<float4*>(y.data()));
  return nullptr;
}

__global__ void shared_vector_kernel(int shift, float* out) {
  FASTNN_SHARED(float, tile, 68);
  tile[threadIdx.x] = 1;
  tile[threadIdx.x + 32] = 2;
  if (threadIdx.x < 4) tile[threadIdx.x + 64] = 3;
  __syncthreads();
  const float4 v = *reinterpret_cast<const float4*>(tile + 4 * (threadIdx.x % 16) + shift);
  out[threadIdx.x] = v.x + v.y + v.z + v.w;
}
FASTNN_CORRECT(shared_vector_aligned) {
  DeviceArray<float> out(32);
  FASTNN_RUN("shared_vector_kernel", shared_vector_kernel, dim3(1), dim3(32), 0, nullptr, 4, out.data());
  FASTNN_EXPECT(out[0] == 4 && out[15] == 12, "out is %g, %g", out[0], out[15]);
  return nullptr;
}
FASTNN_FAULTY(shared_vector_misaligned, "memcheck", R"re(misaligned: 0x\w+ is no multiple of 16)re") {
  DeviceArray<float> out(32);
  FASTNN_RUN("shared_vector_kernel", shared_vector_kernel, dim3(1), dim3(32), 0, nullptr, 2, out.data());
  return nullptr;
}

// All read a counter, then one reads it again and moves it.
__global__ void moved_counter_kernel(int* counter, int* seen, bool ordered) {
  seen[threadIdx.x] = *counter;
  if (ordered) __syncthreads();
  if (threadIdx.x == 0) ++*counter;
}
FASTNN_CORRECT(counter_read_by_all_then_moved) {
  DeviceArray<int> counter(1, 3), seen(96);
  FASTNN_RUN("moved_counter_kernel", moved_counter_kernel, dim3(1), dim3(96), 0, nullptr, counter.data(),
             seen.data(), true);
  FASTNN_EXPECT(counter[0] == 4 && seen[95] == 3, "counter is %d, seen as %d", counter[0], seen[95]);
  return nullptr;
}
FASTNN_FAULTY(counter_moved_while_others_read, "racecheck", R"re(with nothing that orders the two: a race)re") {
  DeviceArray<int> counter(1, 3), seen(96);
  FASTNN_RUN("moved_counter_kernel", moved_counter_kernel, dim3(1), dim3(96), 0, nullptr, counter.data(),
             seen.data(), false);
  return nullptr;
}

__global__ void read_of_nothing_kernel(const int* x, int* y) { y[threadIdx.x] = x[threadIdx.x]; }
__global__ void write_kernel(int* x, int n) {
  if (static_cast<int>(threadIdx.x) < n) x[threadIdx.x] = 5;
}
FASTNN_CORRECT(global_memory_that_a_kernel_wrote) {
  auto x = DeviceArray<int>::uninitialized(32);
  DeviceArray<int> y(32);
  FASTNN_RUN("write_kernel", write_kernel, dim3(1), dim3(32), 0, nullptr, x.data(), 32);
  FASTNN_RUN("read_of_nothing_kernel", read_of_nothing_kernel, dim3(1), dim3(32), 0, nullptr, x.data(),
             y.data());
  for (const int v : y) FASTNN_EXPECT(v == 5, "y is %d", v);
  return nullptr;
}
FASTNN_FAULTY(
    global_memory_that_nobody_wrote, "initcheck",
    R"re(reads .* 4 bytes of global memory at byte 124 of 128, which no kernel has written: uninitialised)re") {
  auto x = DeviceArray<int>::uninitialized(32);
  DeviceArray<int> y(32);
  FASTNN_RUN("write_kernel", write_kernel, dim3(1), dim3(32), 0, nullptr, x.data(), 31);
  FASTNN_RUN("read_of_nothing_kernel", read_of_nothing_kernel, dim3(1), dim3(32), 0, nullptr, x.data(),
             y.data());
  return nullptr;
}

__global__ void local_pointer_kernel(int* out) {
  FASTNN_SHARED(int*, pointers, 32);
  int mine = static_cast<int>(threadIdx.x);
  pointers[threadIdx.x] = &mine;
  __syncthreads();
  out[threadIdx.x] = *pointers[threadIdx.x ^ 1];
  __syncthreads();
}
FASTNN_FAULTY(local_memory_of_another_thread, "none",
              R"re(reads .* 4 bytes of another thread's local memory)re") {
  DeviceArray<int> out(32);
  FASTNN_RUN("local_pointer_kernel", local_pointer_kernel, dim3(1), dim3(32), 0, nullptr, out.data());
  // On a device the address means the caller's own local memory.
  FASTNN_EXPECT(out[0] == 1, "out[0] is %d", out[0]);
  return nullptr;
}

// --- races on shared memory ---

__global__ void rounds_kernel(bool trailing_barrier, float* out) {
  FASTNN_SHARED(float, tile, 64);
  float sum = 0;
  for (int r = 0; r < 4; ++r) {
    tile[threadIdx.x] = static_cast<float>(r);
    __syncthreads();
    sum += tile[63 - threadIdx.x];
    if (trailing_barrier) __syncthreads();
  }
  out[threadIdx.x] = sum;
}
FASTNN_CORRECT(tile_with_both_barriers) {
  DeviceArray<float> out(64);
  FASTNN_RUN("rounds_kernel", rounds_kernel, dim3(1), dim3(64), 0, nullptr, true, out.data());
  for (const float v : out) FASTNN_EXPECT(v == 6, "the sum is %g", v);
  return nullptr;
}
FASTNN_FAULTY(
    tile_overwritten_while_it_is_read, "racecheck",
    R"re(reads \(memory.cu:\d+\) 4 bytes of shared array 'tile' \(memory.cu:\d+\) at byte \d+ of 256, which )re"
    R"re(thread \(\d+, 0, 0\) writes \(memory.cu:\d+\) with nothing that orders the two: a race)re") {
  DeviceArray<float> out(64);
  FASTNN_RUN("rounds_kernel", rounds_kernel, dim3(1), dim3(64), 0, nullptr, false, out.data());
  return nullptr;
}

__global__ void broadcast_kernel(bool barrier, int* out) {
  FASTNN_SHARED(int, value, 1);
  if (threadIdx.x == 0) value[0] = 1;
  __syncthreads();
  const int first = value[0];
  if (barrier) __syncthreads();
  if (threadIdx.x == 40) value[0] = 2;
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = first + value[0];
}
FASTNN_CORRECT(value_that_all_read_then_one_writes) {
  DeviceArray<int> out(128);
  FASTNN_RUN("broadcast_kernel", broadcast_kernel, dim3(2), dim3(64), 0, nullptr, true, out.data());
  return nullptr;
}
FASTNN_FAULTY(value_overwritten_while_all_read, "racecheck",
              R"re(writes .* which thread \(\d+, 0, 0\) reads .* a race)re") {
  DeviceArray<int> out(64);
  FASTNN_RUN("broadcast_kernel", broadcast_kernel, dim3(1), dim3(64), 0, nullptr, false, out.data());
  return nullptr;
}

__global__ void same_slot_kernel(int* out) {
  FASTNN_SHARED(int, slot, 8);
  slot[threadIdx.x % 8] = static_cast<int>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = slot[threadIdx.x % 8];
}
FASTNN_FAULTY(two_threads_write_one_slot, "racecheck",
              R"re(writes .*'slot'.* which thread \(0, 0, 0\) writes .* a race)re") {
  DeviceArray<int> out(64);
  FASTNN_RUN("same_slot_kernel", same_slot_kernel, dim3(1), dim3(64), 0, nullptr, out.data());
  return nullptr;
}

// Neighbours in one word are no race, of bytes and of halves; nor is one thread's own word.
__global__ void neighbours_kernel(unsigned char* out) {
  FASTNN_SHARED(unsigned char, bytes, 64);
  FASTNN_SHARED(unsigned short, halves, 64);
  const unsigned i = threadIdx.x;
  bytes[i] = static_cast<unsigned char>(i);
  halves[63 - i] = static_cast<unsigned short>(i);
  const int own = bytes[i] + halves[63 - i];
  bytes[i] = static_cast<unsigned char>(own / 2 + 1);
  __syncthreads();
  out[64 * blockIdx.x + i] =
      static_cast<unsigned char>(bytes[i ^ 3] + reinterpret_cast<const unsigned*>(halves)[0] % 2);
}
FASTNN_CORRECT(neighbours_within_a_word) {
  DeviceArray<unsigned char> out(4 * 64);
  FASTNN_RUN("neighbours_kernel", neighbours_kernel, dim3(4), dim3(64), 0, nullptr, out.data());
  for (int i = 0; i < 256; ++i) {
    FASTNN_EXPECT(out[i] == ((i % 64) ^ 3) + 1 + 1, "[%d] is %d", i, out[i]);
  }
  return nullptr;
}
__global__ void halves_race_kernel(unsigned short* out) {
  FASTNN_SHARED(unsigned short, halves, 64);
  halves[threadIdx.x] = 1;
  if (threadIdx.x == 0) halves[63] = 2;
  __syncthreads();
  out[threadIdx.x] = halves[threadIdx.x];
}
FASTNN_FAULTY(two_threads_write_one_half, "racecheck",
              R"re(writes .* 2 bytes of shared array 'halves'.*at byte 126 .* a race)re") {
  DeviceArray<unsigned short> out(64);
  FASTNN_RUN("halves_race_kernel", halves_race_kernel, dim3(1), dim3(64), 0, nullptr, out.data());
  return nullptr;
}

// --- within a warp ---

__global__ void warp_exchange_kernel(unsigned mask, bool sync, int* out) {
  FASTNN_SHARED(int, slots, 64);
  const unsigned i = threadIdx.x, lane = i % 32;
  int sum = 0;
  for (int r = 0; r < 3; ++r) {
    slots[i] = static_cast<int>(i);
    if (sync) __syncwarp(lane < 16 ? mask : mask == kFullMask ? mask : ~mask);
    sum += slots[i ^ 1];
    if (sync) __syncwarp(lane < 16 ? mask : mask == kFullMask ? mask : ~mask);
  }
  out[i] = sum;
}
FASTNN_CORRECT(lanes_exchange_with_syncwarp) {
  DeviceArray<int> out(64);
  FASTNN_RUN("warp_exchange_kernel", warp_exchange_kernel, dim3(1), dim3(64), 0, nullptr, kFullMask, true,
             out.data());
  FASTNN_RUN("warp_exchange_kernel", warp_exchange_kernel, dim3(1), dim3(64), 0, nullptr, 0xffffu, true,
             out.data());
  for (int i = 0; i < 64; ++i) FASTNN_EXPECT(out[i] == 3 * (i ^ 1), "[%d] is %d", i, out[i]);
  return nullptr;
}
FASTNN_FAULTY(lanes_exchange_without_syncwarp, "racecheck", R"re(uninitialised|a race)re") {
  DeviceArray<int> out(64);
  FASTNN_RUN("warp_exchange_kernel", warp_exchange_kernel, dim3(1), dim3(64), 0, nullptr, kFullMask, false,
             out.data());
  return nullptr;
}

// The halves of a warp meet apart, and then one reads what the other wrote.
__global__ void across_halves_kernel(int* out) {
  FASTNN_SHARED(int, slots, 32);
  const unsigned i = threadIdx.x;
  slots[i] = 0;
  __syncwarp();
  slots[i] = static_cast<int>(i);
  __syncwarp(i < 16 ? 0x0000ffffu : 0xffff0000u);
  out[i] = slots[i ^ 16];
}
FASTNN_FAULTY(syncwarp_of_half_a_warp, "racecheck",
              R"re(which thread \(\d+, 0, 0\) (reads|writes) .* a race)re") {
  DeviceArray<int> out(32);
  FASTNN_RUN("across_halves_kernel", across_halves_kernel, dim3(1), dim3(32), 0, nullptr, out.data());
  return nullptr;
}

__global__ void across_warps_kernel(int* out) {
  FASTNN_SHARED(int, slots, 64);
  const unsigned i = threadIdx.x;
  slots[i] = 0;
  __syncthreads();
  slots[i] = static_cast<int>(i);
  __syncwarp();
  out[i] = slots[i ^ 32];
}
FASTNN_FAULTY(syncwarp_between_warps, "racecheck",
              R"re(which thread \(\d+, 0, 0\) (reads|writes) .* a race)re") {
  DeviceArray<int> out(64);
  FASTNN_RUN("across_warps_kernel", across_warps_kernel, dim3(1), dim3(64), 0, nullptr, out.data());
  return nullptr;
}

// --- atomics on shared memory ---

__global__ void histogram_kernel(const int* x, int n, bool barrier, int* out) {
  FASTNN_SHARED(int, bins, 16);
  if (threadIdx.x < 16) bins[threadIdx.x] = 0;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x))
    atomicAdd(bins + x[i] % 16, 1);
  if (barrier) __syncthreads();
  if (threadIdx.x < 16) atomicAdd(out + threadIdx.x, bins[threadIdx.x]);
}
FASTNN_CORRECT(histogram_in_shared_memory) {
  DeviceArray<int> x(1000), out(16);
  for (int i = 0; i < 1000; ++i) x[i] = i * 7;
  FASTNN_RUN("histogram_kernel", histogram_kernel, dim3(5), dim3(64), 0, nullptr, x.data(), 1000, true,
             out.data());
  int sum = 0;
  for (const int v : out) sum += v;
  FASTNN_EXPECT(sum == 5000, "the sum is %d", sum);
  return nullptr;
}
FASTNN_FAULTY(atomics_read_without_barrier, "racecheck",
              R"re(reads .*'bins'.* writes .* a race|updates atomically .*'bins'.* reads .* a race)re") {
  DeviceArray<int> x(1000, 3), out(16);
  FASTNN_RUN("histogram_kernel", histogram_kernel, dim3(1), dim3(64), 0, nullptr, x.data(), 1000, false,
             out.data());
  return nullptr;
}

// --- races on global memory ---

__global__ void shift_in_place_kernel(float* x, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const float v = i + 1 < n ? x[i + 1] : 0;
  __syncthreads();
  if (i < n) x[i] = v;
}
FASTNN_FAULTY(
    block_reads_what_another_overwrites, "none",
    R"re((reads|writes) .* 4 bytes of global memory at byte \d+ of 1024, which .*block.* (reads?|writes) .* a race)re") {
  DeviceArray<float> x(256, 1);
  FASTNN_RUN("shift_in_place_kernel", shift_in_place_kernel, dim3(4), dim3(64), 0, nullptr, x.data(), 256);
  return nullptr;
}
FASTNN_CORRECT(block_shifts_in_place) {
  DeviceArray<float> x(64);
  for (int i = 0; i < 64; ++i) x[i] = static_cast<float>(i);
  FASTNN_RUN("shift_in_place_kernel", shift_in_place_kernel, dim3(1), dim3(64), 0, nullptr, x.data(), 64);
  for (int i = 0; i < 63; ++i) FASTNN_EXPECT(x[i] == static_cast<float>(i + 1), "x[%d] is %g", i, x[i]);
  return nullptr;
}

__global__ void sum_kernel(const float* x, float* sum) { *sum += x[blockIdx.x * blockDim.x + threadIdx.x]; }
FASTNN_FAULTY(sum_without_atomics, "none", R"re(of global memory at byte 0 of 4, which thread .* a race)re") {
  DeviceArray<float> x(64, 1), sum(1);
  FASTNN_RUN("sum_kernel", sum_kernel, dim3(2), dim3(32), 0, nullptr, x.data(), sum.data());
  return nullptr;
}
FASTNN_FAULTY(blocks_sum_without_atomics, "none",
              R"re(of global memory at byte 0 of 4, which .* block .* a race)re") {
  DeviceArray<float> x(64, 1), sum(1);
  FASTNN_RUN("sum_kernel", sum_kernel, dim3(64), dim3(1), 0, nullptr, x.data(), sum.data());
  return nullptr;
}

__global__ void overlapping_output_kernel(float* y, int stride) {
  const unsigned i = blockIdx.x * static_cast<unsigned>(stride) + threadIdx.x;
  y[i] = static_cast<float>(i);
}
FASTNN_FAULTY(blocks_write_the_same_element, "none",
              R"re(writes .* of 1024, which thread \(\d+, 0, 0\) of block \(\d, 0, 0\) writes)re") {
  DeviceArray<float> y(256);
  FASTNN_RUN("overlapping_output_kernel", overlapping_output_kernel, dim3(8), dim3(32), 0, nullptr, y.data(),
             31);
  return nullptr;
}
FASTNN_CORRECT(blocks_write_their_own) {
  DeviceArray<float> y(256);
  FASTNN_RUN("overlapping_output_kernel", overlapping_output_kernel, dim3(8), dim3(32), 0, nullptr, y.data(),
             32);
  for (int i = 0; i < 256; ++i) FASTNN_EXPECT(y[i] == static_cast<float>(i), "y[%d] is %g", i, y[i]);
  return nullptr;
}

// Halves at the border of two blocks lie in one word.
__global__ void halves_kernel(unsigned short* x) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  x[i] = static_cast<unsigned short>(x[i] + 1);
}
FASTNN_CORRECT(blocks_write_halves_of_a_word) {
  DeviceArray<unsigned short> x(33 * 7, 4);
  FASTNN_RUN("halves_kernel", halves_kernel, dim3(7), dim3(33), 0, nullptr, x.data());
  for (const int v : x) FASTNN_EXPECT(v == 5, "x is %d", v);
  return nullptr;
}

__global__ void counter_kernel(unsigned* counter, unsigned* out) {
  const unsigned before = *counter;
  atomicAdd(counter, 1u);
  out[blockIdx.x * blockDim.x + threadIdx.x] = before;
}
FASTNN_FAULTY(plain_read_of_an_atomic_counter, "none", R"re((updates atomically|reads) .* a race)re") {
  DeviceArray<unsigned> counter(1), out(128);
  FASTNN_RUN("counter_kernel", counter_kernel, dim3(4), dim3(32), 0, nullptr, counter.data(), out.data());
  return nullptr;
}

// --- fences and atomics ---

// Each block writes 64 numbers; the last to come adds them all.
enum LastBlock { kRight, kNoBarrier, kNoFence, kBlockFence, kNoFenceAfter };
__global__ void last_block_of_kernel(LastBlock fault, int* numbers, unsigned* tickets, int* total) {
  FASTNN_SHARED(bool, last, 1);
  numbers[blockIdx.x * blockDim.x + threadIdx.x] = 1;
  if (fault != kNoBarrier) __syncthreads();
  if (threadIdx.x == 0) {
    if (fault == kBlockFence) __threadfence_block();
    if (fault != kNoFence && fault != kBlockFence) __threadfence();
    last[0] = atomicAdd(tickets, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last[0]) return;
  if (fault != kNoFenceAfter) __threadfence();
  int sum = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x * blockDim.x; i += blockDim.x) sum += numbers[i];
  atomicAdd(total, sum);
}
const char* run_last_block(LastBlock fault) {
  DeviceArray<int> numbers(20 * 64), total(1);
  DeviceArray<unsigned> tickets(1);
  FASTNN_RUN("last_block_of_kernel", last_block_of_kernel, dim3(20), dim3(64), 0, nullptr, fault,
             numbers.data(), tickets.data(), total.data());
  FASTNN_EXPECT(total[0] == 20 * 64, "the total is %d", total[0]);
  return nullptr;
}
FASTNN_CORRECT(last_block_adds) { return run_last_block(kRight); }
FASTNN_FAULTY(last_block_without_barrier_before, "none",
              R"re(reads .* which thread \(\d+, 0, 0\) of block .* writes .* a race)re") {
  return run_last_block(kNoBarrier);
}
FASTNN_FAULTY(last_block_without_fence, "none",
              R"re(reads .* which thread .* of block .* writes .* a race)re") {
  return run_last_block(kNoFence);
}
FASTNN_FAULTY(last_block_with_fence_of_the_block, "none",
              R"re(reads .* which thread .* of block .* writes .* a race)re") {
  return run_last_block(kBlockFence);
}
FASTNN_FAULTY(last_block_without_fence_after, "none",
              R"re(reads .* which thread .* of block .* writes .* a race)re") {
  return run_last_block(kNoFenceAfter);
}

}  // namespace
}  // namespace fastnn::selftest
