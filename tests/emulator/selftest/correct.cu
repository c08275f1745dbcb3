// Correct kernels: each must give its known result and be accused of nothing, in every order of execution.
#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>

#include "selftest.h"

namespace fastnn::selftest {
namespace {

__device__ int linear_thread() {
  return static_cast<int>((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
}

// --- the grid ---

__global__ void count_visits_kernel(int* visits) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  visits[block * blockDim.x * blockDim.y * blockDim.z + linear_thread()] += 1;
}

FASTNN_CORRECT(every_thread_runs_once) {
  const dim3 grids[] = {{1}, {7, 3, 2}, {1, 1, 65}, {401}};
  const dim3 blocks[] = {{1}, {33}, {5, 4, 3}, {1024}, {1, 1, 64}, {32, 32}};
  for (const dim3 grid : grids) {
    for (const dim3 block : blocks) {
      const size_t count = size_t{grid.x} * grid.y * grid.z * block.x * block.y * block.z;
      DeviceArray<int> visits(count);
      FASTNN_RUN("count_visits_kernel", count_visits_kernel, grid, block, 0, nullptr, visits.data());
      FASTNN_EXPECT(std::count(visits.begin(), visits.end(), 1) == static_cast<int64_t>(count),
                    "a thread was lost");
    }
  }
  return nullptr;
}

FASTNN_CORRECT(empty_grid_is_no_launch) {
  DeviceArray<int> visits(1);
  FASTNN_RUN("count_visits_kernel", count_visits_kernel, dim3(0), dim3(32), 0, nullptr, visits.data());
  FASTNN_RUN("count_visits_kernel", count_visits_kernel, dim3(1, 0), dim3(32), 0, nullptr, visits.data());
  FASTNN_EXPECT(visits[0] == 0, "%d visits", visits[0]);
  return nullptr;
}

struct ByValue {
  double factor;
  int64_t shift[4];
};

__global__ void scale_kernel(const ByValue by_value, const float* __restrict__ x, double* __restrict__ y,
                             int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) y[i] = by_value.factor * __ldg(x + i) + static_cast<double>(by_value.shift[i % 4]);
}

FASTNN_CORRECT(arguments_are_converted_and_copied) {
  DeviceArray<float> x(1000, 3.0f);
  DeviceArray<double> y(1000);
  const ByValue by_value{0.5, {10, 20, 30, 40}};
  FASTNN_RUN("scale_kernel", scale_kernel, dim3(8), dim3(128), 0, nullptr, by_value, x.data(), y.data(),
             int64_t{1000});
  for (int i = 0; i < 1000; ++i) FASTNN_EXPECT(y[i] == 1.5 + 10 * (i % 4 + 1), "y[%d] is %g", i, y[i]);
  return nullptr;
}

// --- barriers and shared memory ---

template <typename T>
__device__ T block_sum(T v) {
  FASTNN_SHARED(T, warp_sums, 32);
  const int thread = linear_thread(), warps = static_cast<int>(blockDim.x / 32);
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(kFullMask, v, distance);
  __syncthreads();  // the last call's sums have been read
  if (thread % 32 == 0) warp_sums[thread / 32] = v;
  __syncthreads();
  T sum = 0;
  for (int w = 0; w < warps; ++w) sum += warp_sums[w];
  return sum;
}

__global__ void two_sums_kernel(double* out) {
  // Two instantiations of one declaration are two arrays; two calls of one share theirs.
  const int i = linear_thread();
  const double a = block_sum(static_cast<double>(i)), b = block_sum(static_cast<double>(2 * i));
  const int c = block_sum(3 * i);
  out[blockIdx.x * blockDim.x + i] = a + b + c;
}

FASTNN_CORRECT(block_reduction) {
  DeviceArray<double> out(20 * 256);
  FASTNN_RUN("two_sums_kernel", two_sums_kernel, dim3(20), dim3(256), 0, nullptr, out.data());
  for (const double v : out) FASTNN_EXPECT(v == 6 * (255 * 256 / 2), "the sum is %g", v);
  return nullptr;
}

__global__ void rotate_kernel(int rounds, int* out) {
  FASTNN_DYNAMIC_SHARED(int, values);
  FASTNN_SHARED(int, seen, 1024);
  const int i = linear_thread(), n = static_cast<int>(blockDim.x);
  values[i] = i;
  for (int r = 0; r < rounds; ++r) {
    __syncthreads();
    const int next = values[(i + 1) % n];
    __syncthreads();
    values[i] = next;
    seen[i] = next;
  }
  out[blockIdx.x * n + i] = seen[i];
}

FASTNN_CORRECT(barriers_in_a_loop) {
  for (const int n : {1, 2, 31, 32, 100, 1024}) {
    DeviceArray<int> out(3 * n);
    FASTNN_RUN("rotate_kernel", rotate_kernel, dim3(3), dim3(n), n * sizeof(int), nullptr, 17, out.data());
    for (int i = 0; i < 3 * n; ++i)
      FASTNN_EXPECT(out[i] == (i % n + 17) % n, "%d threads: [%d] is %d", n, i, out[i]);
  }
  return nullptr;
}

__global__ void counting_barriers_kernel(int threshold, int* out) {
  const int i = linear_thread();
  const int count = __syncthreads_count(i < threshold);
  const int all = __syncthreads_and(i < threshold);
  const int any = __syncthreads_or(i < threshold);
  out[i] = count * 4 + (all != 0) * 2 + (any != 0);
}

FASTNN_CORRECT(counting_barriers) {
  for (const int threshold : {0, 1, 37, 95, 96}) {
    DeviceArray<int> out(96);
    FASTNN_RUN("counting_barriers_kernel", counting_barriers_kernel, dim3(1), dim3(96), 0, nullptr, threshold,
               out.data());
    const int expected = threshold * 4 + (threshold == 96) * 2 + (threshold > 0);
    for (const int v : out) FASTNN_EXPECT(v == expected, "threshold %d gives %d", threshold, v);
  }
  return nullptr;
}

__global__ void largest_shared_kernel(float* out) {
  FASTNN_SHARED(float, fixed, 12 * 1024);
  FASTNN_DYNAMIC_SHARED(float, dynamic);
  const int i = linear_thread(), n = static_cast<int>(blockDim.x);
  for (int j = i; j < 12 * 1024; j += n) fixed[j] = 1;
  for (int j = i; j < 179 * 256; j += n) dynamic[j] = 2;
  __syncthreads();
  out[static_cast<int>(blockIdx.x) * n + i] = fixed[12 * 1024 - 1 - i] + dynamic[179 * 256 - 1 - i];
  static_assert(sizeof(fixed) == 48 * 1024);
}

FASTNN_CORRECT(shared_memory_of_227_kb) {
  DeviceArray<float> out(2 * 128);
  FASTNN_RUN("largest_shared_kernel", largest_shared_kernel, dim3(2), dim3(128), 179 * 1024, nullptr,
             out.data());
  for (const float v : out) FASTNN_EXPECT(v == 3, "the sum is %g", v);
  return nullptr;
}

__global__ void deep_stack_kernel(int* out) {
  volatile int local[16 * 1024];
  const int i = linear_thread();
  for (int j = 0; j < 16 * 1024; ++j) local[j] = i + j;
  __syncthreads();
  int wrong = 0;
  for (int j = 0; j < 16 * 1024; ++j) wrong += local[j] != i + j;
  out[i] = wrong;
}

FASTNN_CORRECT(threads_have_64_kb_of_stack) {
  DeviceArray<int> out(64, -1);
  FASTNN_RUN("deep_stack_kernel", deep_stack_kernel, dim3(1), dim3(64), 0, nullptr, out.data());
  FASTNN_EXPECT(std::count(out.begin(), out.end(), 0) == 64, "a local array was damaged");
  return nullptr;
}

__global__ void flag_kernel(int* out) {
  FASTNN_SHARED(volatile int, flag, 1);
  const int i = linear_thread();
  if (i == 0) flag[0] = 0;
  __syncthreads();
  if (i == 7) flag[0] = 42;
  while (flag[0] != 42) __nanosleep(20);
  out[i] = flag[0];
}

FASTNN_CORRECT(waiting_for_a_flag) {
  DeviceArray<int> out(32);
  FASTNN_RUN("flag_kernel", flag_kernel, dim3(1), dim3(32), 0, nullptr, out.data());
  FASTNN_EXPECT(std::count(out.begin(), out.end(), 42) == 32, "the flag was not seen");
  return nullptr;
}

// --- the warp ---

template <typename T>
__global__ void shuffle_kernel(int width, int distance, T* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const T v = static_cast<T>(100 + lane);
  out[lane] = __shfl_sync(kFullMask, v, lane + distance, width);
  out[32 + lane] = __shfl_up_sync(kFullMask, v, static_cast<unsigned>(distance), width);
  out[64 + lane] = __shfl_down_sync(kFullMask, v, static_cast<unsigned>(distance), width);
  out[96 + lane] = __shfl_xor_sync(kFullMask, v, distance, width);
}

template <typename T>
const char* check_shuffles() {
  for (const int width : {32, 16, 8, 4, 2, 1}) {
    for (int distance = 0; distance < 32; ++distance) {
      DeviceArray<T> out(128);
      FASTNN_RUN("shuffle_kernel", shuffle_kernel<T>, dim3(1), dim3(32), 0, nullptr, width, distance,
                 out.data());
      for (int lane = 0; lane < 32; ++lane) {
        const int segment = lane / width, at = lane % width;
        const int expected[4] = {segment * width + (lane + distance) % width,
                                 at - distance >= 0 ? lane - distance : lane,
                                 at + distance < width ? lane + distance : lane,
                                 (lane ^ distance) / width <= segment ? lane ^ distance : lane};
        for (int mode = 0; mode < 4; ++mode) {
          FASTNN_EXPECT(out[mode * 32 + lane] == static_cast<T>(100 + expected[mode]),
                        "mode %d, width %d, distance %d, lane %d: from lane %d", mode, width, distance, lane,
                        static_cast<int>(out[mode * 32 + lane]) - 100);
        }
      }
    }
  }
  return nullptr;
}

FASTNN_CORRECT(shuffles_of_4_bytes) { return check_shuffles<float>(); }
FASTNN_CORRECT(shuffles_of_8_bytes) { return check_shuffles<double>(); }
FASTNN_CORRECT(shuffles_of_integers) { return check_shuffles<unsigned>(); }

__global__ void vote_kernel(unsigned pattern, unsigned* out) {
  const unsigned lane = threadIdx.x;
  const int bit = static_cast<int>(pattern >> lane & 1);
  int all_equal = -1;
  const unsigned matched = __match_all_sync(kFullMask, bit, &all_equal);
  const unsigned results[] = {__ballot_sync(kFullMask, bit),
                              static_cast<unsigned>(__any_sync(kFullMask, bit)),
                              static_cast<unsigned>(__all_sync(kFullMask, bit)),
                              __match_any_sync(kFullMask, bit) ^ (bit ? 0u : kFullMask),
                              matched,
                              static_cast<unsigned>(all_equal)};
  for (int i = 0; i < 6; ++i) out[i * 32 + lane] = results[i];
}

FASTNN_CORRECT(votes_and_matches) {
  for (const unsigned pattern : {0u, 1u, 0x80000000u, 0x12345678u, kFullMask}) {
    DeviceArray<unsigned> out(6 * 32);
    FASTNN_RUN("vote_kernel", vote_kernel, dim3(1), dim3(32), 0, nullptr, pattern, out.data());
    const bool uniform = pattern == 0 || pattern == kFullMask;
    const unsigned expected[] = {pattern, pattern != 0, pattern == kFullMask, pattern, uniform ? kFullMask : 0,
                                 uniform};
    for (int i = 0; i < 6 * 32; ++i) {
      FASTNN_EXPECT(out[i] == expected[i / 32], "vote %d of %#x is %#x", i / 32, pattern, out[i]);
    }
  }
  return nullptr;
}

__global__ void reduce_kernel(const int* values, int* out) {
  const int v = values[threadIdx.x];
  const auto u = static_cast<unsigned>(v);
  const int results[] = {__reduce_add_sync(kFullMask, v),
                         __reduce_min_sync(kFullMask, v),
                         __reduce_max_sync(kFullMask, v),
                         static_cast<int>(__reduce_min_sync(kFullMask, u)),
                         static_cast<int>(__reduce_max_sync(kFullMask, u)),
                         static_cast<int>(__reduce_and_sync(kFullMask, u)),
                         static_cast<int>(__reduce_or_sync(kFullMask, u)),
                         static_cast<int>(__reduce_xor_sync(kFullMask, u))};
  for (int i = 0; i < 8; ++i) out[i * 32 + threadIdx.x] = results[i];
}

FASTNN_CORRECT(warp_reductions) {
  DeviceArray<int> values(32), out(8 * 32);
  for (int i = 0; i < 32; ++i) values[i] = (i * 37 - 300) | 16;
  FASTNN_RUN("reduce_kernel", reduce_kernel, dim3(1), dim3(32), 0, nullptr, values.data(), out.data());
  const auto fold = [&](auto f) {
    int result = values[0];
    for (int i = 1; i < 32; ++i) result = f(result, values[i]);
    return result;
  };
  const auto less = [](int a, int b) { return static_cast<unsigned>(a) < static_cast<unsigned>(b); };
  const int expected[] = {fold([](int a, int b) { return a + b; }),
                          fold([](int a, int b) { return a < b ? a : b; }),
                          fold([](int a, int b) { return a > b ? a : b; }),
                          fold([&](int a, int b) { return less(a, b) ? a : b; }),
                          fold([&](int a, int b) { return less(a, b) ? b : a; }),
                          fold([](int a, int b) { return a & b; }),
                          fold([](int a, int b) { return a | b; }),
                          fold([](int a, int b) { return a ^ b; })};
  for (int i = 0; i < 8 * 32; ++i)
    FASTNN_EXPECT(out[i] == expected[i / 32], "reduction %d is %d", i / 32, out[i]);
  return nullptr;
}

// The halves of each warp go their own ways, with collectives of their own, and meet again.
__global__ void divergent_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int v = lane;
  if (lane < 16) {
    for (int i = 0; i < 5; ++i) v = __shfl_xor_sync(0x0000ffffu, v, 1, 16);
  } else {
    for (int i = 0; i < 2; ++i) v += __popc(__ballot_sync(0xffff0000u, lane % 2));
    __syncwarp(0xffff0000u);
  }
  __syncwarp();
  out[threadIdx.x] = __shfl_sync(kFullMask, v, lane ^ 16);
}

FASTNN_CORRECT(groups_of_lanes_apart) {
  DeviceArray<int> out(128);
  FASTNN_RUN("divergent_kernel", divergent_kernel, dim3(1), dim3(128), 0, nullptr, out.data());
  for (int i = 0; i < 128; ++i) {
    const int lane = i % 32, expected = lane < 16 ? lane + 16 + 16 : (lane - 16) ^ 1;
    FASTNN_EXPECT(out[i] == expected, "[%d] is %d", i, out[i]);
  }
  return nullptr;
}

__global__ void partial_warp_kernel(unsigned* out) {
  __syncwarp();
  const unsigned ballot = __ballot_sync(kFullMask, 1);
  __syncthreads();
  out[threadIdx.x] = ballot;
}

FASTNN_CORRECT(lanes_that_a_block_lacks_may_be_named) {
  DeviceArray<unsigned> out(43);
  FASTNN_RUN("partial_warp_kernel", partial_warp_kernel, dim3(1), dim3(43), 0, nullptr, out.data());
  for (int i = 0; i < 43; ++i) FASTNN_EXPECT(out[i] == (i < 32 ? kFullMask : 0x7ffu), "[%d] is %#x", i, out[i]);
  return nullptr;
}

__global__ void early_exit_kernel(int* out) {
  const unsigned lane = threadIdx.x;
  if (lane >= 20) return;
  __syncwarp(0xfffffu);
  out[lane] = __any_sync(0xfffffu, lane == 19);
}

FASTNN_CORRECT(lanes_that_exited_are_not_named) {
  DeviceArray<int> out(32);
  FASTNN_RUN("early_exit_kernel", early_exit_kernel, dim3(1), dim3(32), 0, nullptr, out.data());
  for (int i = 0; i < 32; ++i) FASTNN_EXPECT(out[i] == (i < 20), "[%d] is %d", i, out[i]);
  return nullptr;
}

__global__ void active_mask_kernel(int* out) {
  // What a program may rely on: the caller is among them, and they may act together.
  const unsigned mask = __activemask(), lane = threadIdx.x;
  out[lane] = (mask >> lane & 1) != 0 && __popc(__ballot_sync(mask, 1)) == __popc(mask);
}

FASTNN_CORRECT(active_mask) {
  DeviceArray<int> out(32);
  FASTNN_RUN("active_mask_kernel", active_mask_kernel, dim3(1), dim3(32), 0, nullptr, out.data());
  for (int i = 0; i < 32; ++i) FASTNN_EXPECT(out[i] == 1, "lane %d", i);
  return nullptr;
}

// --- atomics ---

struct Counters {
  int add, min, max, sub, bits_or, bits_and, bits_xor;
  unsigned inc, dec;
  unsigned long long wide, wide_max;
  float real;
  double precise;
  float product;  // by compare-and-swap
};

__global__ void atomics_kernel(Counters* c) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&c->add, 3);
  atomicSub(&c->sub, 2);
  atomicMin(&c->min, -i);
  atomicMax(&c->max, i);
  atomicOr(&c->bits_or, 1 << i % 31);
  atomicAnd(&c->bits_and, ~(1 << i % 31));
  atomicXor(&c->bits_xor, i);
  atomicInc(&c->inc, 99);
  atomicDec(&c->dec, 99);
  atomicAdd(&c->wide, 1ull << 32);
  atomicMax(&c->wide_max, static_cast<unsigned long long>(i) << 33);
  atomicAdd(&c->real, 1.0f);
  atomicAdd(&c->precise, 0.5);
  int* const bits = reinterpret_cast<int*>(&c->product);
  int old = atomicAdd(bits, 0), assumed;
  do {
    assumed = old;
    old = atomicCAS(bits, assumed, __float_as_int(__int_as_float(assumed) + 2.0f));
  } while (old != assumed);
}

FASTNN_CORRECT(atomics_across_blocks) {
  constexpr int kThreads = 200 * 64;
  DeviceArray<Counters> counters(1);
  counters[0].bits_and = -1;
  FASTNN_RUN("atomics_kernel", atomics_kernel, dim3(200), dim3(64), 0, nullptr, counters.data());
  const Counters& c = counters[0];
  int parity = 0;
  for (int i = 0; i < kThreads; ++i) parity ^= i;
  FASTNN_EXPECT(c.add == 3 * kThreads && c.sub == -2 * kThreads, "add");
  FASTNN_EXPECT(c.min == 1 - kThreads && c.max == kThreads - 1, "min, max");
  FASTNN_EXPECT(c.bits_or == 0x7fffffff && c.bits_and == static_cast<int>(0x80000000u) && c.bits_xor == parity,
                "bits");
  FASTNN_EXPECT(c.inc == kThreads % 100 && c.dec == 99 - (kThreads - 1) % 100, "inc %u, dec %u", c.inc, c.dec);
  FASTNN_EXPECT(c.wide == uint64_t{kThreads} << 32 && c.wide_max == uint64_t{kThreads - 1} << 33, "64 bits");
  FASTNN_EXPECT(c.real == kThreads && c.precise == 0.5 * kThreads && c.product == 2 * kThreads, "reals");
  return nullptr;
}

// Each block writes a partial sum; the last to come adds them all.
__global__ void last_block_kernel(double* partial, unsigned* tickets, double* total) {
  FASTNN_SHARED(int, is_last, 1);
  const double sum = block_sum(static_cast<double>(blockIdx.x * blockDim.x + threadIdx.x));
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    is_last[0] = atomicAdd(tickets, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (is_last[0] == 0) return;
  __threadfence();
  double v = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += blockDim.x) v += partial[i];
  v = block_sum(v);
  if (threadIdx.x == 0) *total = v;
}

FASTNN_CORRECT(last_block_finishes) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    DeviceArray<double> partial(100);
    DeviceArray<unsigned> tickets(1);
    DeviceArray<double> total(1);
    FASTNN_RUN("last_block_kernel", last_block_kernel, dim3(100), dim3(64), 0, nullptr, partial.data(),
               tickets.data(), total.data());
    FASTNN_EXPECT(total[0] == 6400.0 * 6399 / 2, "the total is %g", total[0]);
  }
  return nullptr;
}

// --- types and functions ---

__global__ void vector_kernel(const float4* x, float4* y, double2* z, ushort4* w) {
  const unsigned i = threadIdx.x;
  const float4 v = x[i];
  y[i] = make_float4(v.w, v.z, v.y, v.x);
  z[i] = make_double2(v.x, v.y);
  w[i] = make_ushort4(1, 2, 3, static_cast<unsigned short>(i));
}

FASTNN_CORRECT(vector_types) {
  static_assert(sizeof(float4) == 16 && alignof(float4) == 16 && alignof(float2) == 8 && alignof(float3) == 4);
  static_assert(sizeof(uchar4) == 4 && alignof(uchar4) == 4 && alignof(short4) == 8 && alignof(int2) == 8);
  static_assert(alignof(double2) == 16 && alignof(longlong2) == 16 && alignof(uint4) == 16 &&
                alignof(double3) == 8);
  static_assert(sizeof(cuda::float16_t) == 2 && sizeof(cuda::bfloat16_t) == 2);
  DeviceArray<float4> x(32), y(32);
  DeviceArray<double2> z(32);
  DeviceArray<ushort4> w(32);
  for (int i = 0; i < 32; ++i) x[i] = make_float4(static_cast<float>(i), 1, 2, 3);
  FASTNN_RUN("vector_kernel", vector_kernel, dim3(1), dim3(32), 0, nullptr, x.data(), y.data(), z.data(),
             w.data());
  for (int i = 0; i < 32; ++i) {
    FASTNN_EXPECT(y[i].x == 3 && y[i].w == static_cast<float>(i) && z[i].x == i && w[i].w == i, "[%d]", i);
  }
  return nullptr;
}

struct Outcome {
  bool counts, positions, reversal, products, wide_products, bytes, funnel, reinterpretation, rounding,
      saturation, arithmetic, division, fast_forms, integer_minimum, real_maximum;
};

__global__ void intrinsics_kernel(Outcome* outcome) {
  outcome->counts = __popc(0xf0f0u) == 8 && __popcll(~0ull) == 64 && __clz(1) == 31 && __clz(0) == 32;
  outcome->positions = __ffs(0) == 0 && __ffs(8) == 4 && __clzll(1) == 63 && __ffsll(1ll << 40) == 41;
  outcome->reversal =
      __brev(1u) == 0x80000000u && __brev(0x12345678u) == 0x1e6a2c48u && __brevll(2) == 1ull << 62;
  outcome->products = __umulhi(0x80000000u, 6u) == 3 && __mulhi(-1, 2) == -1 && __mul24(-3, 5) == -15;
  outcome->wide_products = __umul64hi(1ull << 63, 6) == 3 && __mul64hi(-1, 2) == -1;
  outcome->bytes = __byte_perm(0x33221100u, 0x77665544u, 0x7520) == 0x77552200u;
  outcome->funnel = __funnelshift_l(0x80000000u, 1u, 1) == 3 && __funnelshift_r(0u, 1u, 1) == 0x80000000u;
  outcome->reinterpretation = __float_as_int(1.0f) == 0x3f800000 && __int_as_float(0x40000000) == 2 &&
                              __hiloint2double(0x3ff00000, 0) == 1;
  outcome->rounding = __float2int_rn(2.5f) == 2 && __float2int_rz(-2.9f) == -2 && __float2int_rd(-2.1f) == -3;
  outcome->saturation =
      __float2int_rn(1e20f) == INT_MAX && __float2int_rn(-1e20f) == INT_MIN && __float2int_rn(NAN) == 0;
  outcome->arithmetic = fabsf(rsqrtf(4.0f) - 0.5f) < 1e-7f && fabs(rsqrt(0.25) - 2) < 1e-15 &&
                        fmaf(2, 3, 4) == 10 && __saturatef(-1) == 0;
  outcome->division = fabsf(__fdividef(6, 3) - 2) < 1e-6f && __fdividef(1, 0x1p127f) == 0 &&
                      isnan(__fdividef(INFINITY, 0x1p127f));
  outcome->fast_forms = fabsf(__expf(1.0f) - 2.7182818f) < 1e-6f && fabsf(__logf(10.0f) - 2.3025851f) < 1e-6f;
  outcome->integer_minimum = min(1, 2u) == 1 && max(-1, 2) == 2 && min(int64_t{3}, int64_t{4}) == 3;
  outcome->real_maximum = max(NAN, 1.0f) == 1 && min(1.0f, 2.0) == 1 && max(2.0, 3.0) == 3;
}

FASTNN_CORRECT(intrinsics) {
  DeviceArray<Outcome> outcome(1);
  FASTNN_RUN("intrinsics_kernel", intrinsics_kernel, dim3(1), dim3(1), 0, nullptr, outcome.data());
  FASTNN_EXPECT(outcome[0].counts, "counts");
  FASTNN_EXPECT(outcome[0].positions, "positions");
  FASTNN_EXPECT(outcome[0].reversal, "reversal");
  FASTNN_EXPECT(outcome[0].products, "products");
  FASTNN_EXPECT(outcome[0].wide_products, "wide products");
  FASTNN_EXPECT(outcome[0].bytes, "bytes");
  FASTNN_EXPECT(outcome[0].funnel, "funnel");
  FASTNN_EXPECT(outcome[0].reinterpretation, "reinterpretation");
  FASTNN_EXPECT(outcome[0].rounding, "rounding");
  FASTNN_EXPECT(outcome[0].saturation, "saturation");
  FASTNN_EXPECT(outcome[0].arithmetic, "arithmetic");
  FASTNN_EXPECT(outcome[0].division, "division");
  FASTNN_EXPECT(outcome[0].fast_forms, "fast forms");
  FASTNN_EXPECT(outcome[0].integer_minimum, "integer minimum");
  FASTNN_EXPECT(outcome[0].real_maximum, "real maximum");
  return nullptr;
}

}  // namespace
}  // namespace fastnn::selftest
