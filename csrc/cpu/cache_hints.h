// What kernels that are bound by memory tell the caches: what to fetch, and what not to keep.
//
// A core reads 15 GB/s from memory along one run of addresses (EPYC 9004, 128 KiB and more at a time), which
// the hardware sees coming. Where a kernel goes through a few streams of one or two KB at a time it does not,
// and a line is waited for: half of that rate and less. Such kernels fetch the memory they will need next in
// the order of its addresses, a few lines at a time, while they compute. That holds for outputs too: a store
// reads its line first, and the store buffer is full after 64 of them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {

inline constexpr int64_t kCacheLine = 64;

// Fetches memory into L2 in the order of its addresses. Addresses may lie anywhere: a fetch never faults.
class FetchAhead {
 public:
  // From here on each of `calls` calls of next() fetches an equal part of what is still to be fetched before
  // `end`. What is needed now, [begin, now_end), is fetched at once if nothing was fetched before.
  void plan(const void* begin, const void* now_end, const void* end, int64_t calls) {
    const char* const first = static_cast<const char*>(begin);
    if (at_ < first - kMostBytes || at_ > first + kMostBytes) {
      at_ = first;
      fetch((static_cast<const char*>(now_end) - at_) / kCacheLine);
    }
    const int64_t bytes = std::clamp<int64_t>(static_cast<const char*>(end) - at_, 0, kMostBytes);
    lines_a_call_ = (bytes / kCacheLine + calls - 1) / std::max<int64_t>(1, calls);
  }
  void next() { fetch(lines_a_call_); }

 private:
  // Less than L2, and what a plan can be wrong by where tensors are not dense.
  static constexpr int64_t kMostBytes = 512 << 10;

  void fetch(int64_t lines) {
    lines = std::min(lines, kMostBytes / kCacheLine);
    for (int64_t i = 0; i < lines; ++i, at_ += kCacheLine) __builtin_prefetch(at_, 0, 2);
  }

  const char* at_ = nullptr;
  int64_t lines_a_call_ = 0;
};

// ---- stores past the caches ----

// Whether this instruction set has them.
inline constexpr bool kHasStreamingStores =
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
    true;
#else
    false;
#endif

// Stores a vector past the caches: its line is neither read first nor kept. p is a multiple of the vector's
// size in memory. Threads that do so end with end_stream().
template <typename scalar_t>
inline void store_stream(scalar_t* p, const Vec<acc_type<scalar_t>>& v) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<scalar_t, float>) {
    _mm512_stream_ps(p, v);
  } else if constexpr (std::is_same_v<scalar_t, double>) {
    _mm512_stream_pd(p, v);
  } else {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), pack_halves<scalar_t>(v));
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<scalar_t, float>) {
    _mm256_stream_ps(p, v);
  } else if constexpr (std::is_same_v<scalar_t, double>) {
    _mm256_stream_pd(p, v);
  } else {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), pack_halves<scalar_t>(v));
  }
#else
  store_acc(p, v);
#endif
}

// Before another thread is told of what store_stream() stored.
inline void end_stream() {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  _mm_sfence();
#endif
}

// From this size on glibc maps new pages for every tensor, whose lines the kernel has just zeroed in the
// caches: ordinary stores find them there.
inline constexpr int64_t kFreshBytes = 32 << 20;

// Whether an output of `bytes` at p is to be stored past the caches, if so from `least` on.
template <typename scalar_t>
bool streams_output(const scalar_t* p, int64_t bytes, int64_t least) {
  return kHasStreamingStores && bytes >= least && bytes < kFreshBytes &&
         reinterpret_cast<uintptr_t>(p) % kCacheLine == 0;
}

// Outputs of at least this size are, by most kernels. An ordinary store first reads the line, a third of a
// copy's traffic; it pays where the next operation still finds the line in a cache, of which an output of this
// size would fill the part that a few cores have of L3.
inline constexpr int64_t kStreamBytes = 8 << 20;

// Whether a vector of scalar_t is a whole cache line in memory.
template <typename scalar_t>
inline constexpr bool kVectorIsLine = kLanes<acc_type<scalar_t>> * sizeof(scalar_t) == kCacheLine;

// Whether `elements` dense ones from p on are stored past the caches, by vectors that are whole lines.
template <typename scalar_t>
bool streams_lines(const scalar_t* p, int64_t elements) {
  return kVectorIsLine<scalar_t> &&
         streams_output(p, elements * static_cast<int64_t>(sizeof(scalar_t)), kStreamBytes);
}

}  // namespace fastnn::FASTNN_BACKEND
