// Vectors of up to 16 bytes: the widest access a thread can make, which the memory-bound kernels need to keep
// enough bytes in flight.
//
// How elements are shared out among threads follows from the shape alone, and `aligned` says only whether a
// vector may be moved in one piece. A misaligned pointer thus costs speed and changes no bit of a result.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "platform.cuh"

namespace fastnn::cuda {

inline constexpr int kVecBytes = 16;

// Elements of T in the widest vector.
template <typename T>
inline constexpr int kVecSize = kVecBytes / static_cast<int>(sizeof(T));

template <typename T, int kSize>
struct alignas(kSize * sizeof(T) < kVecBytes ? kSize * sizeof(T) : kVecBytes) Vec {
  T v[kSize];
};

template <int kSize, typename T>
__device__ __forceinline__ Vec<T, kSize> load_vec(const T* p, bool aligned) {
  if (aligned) return *reinterpret_cast<const Vec<T, kSize>*>(p);
  Vec<T, kSize> r;
#pragma unroll
  for (int k = 0; k < kSize; ++k) r.v[k] = p[k];
  return r;
}

template <int kSize, typename T>
__device__ __forceinline__ void store_vec(T* p, const Vec<T, kSize>& value, bool aligned) {
  if (aligned) {
    *reinterpret_cast<Vec<T, kSize>*>(p) = value;
    return;
  }
#pragma unroll
  for (int k = 0; k < kSize; ++k) p[k] = value.v[k];
}

// For the end of an array: only `count` elements exist, the rest read as 0.
template <int kSize, typename T>
__device__ __forceinline__ Vec<T, kSize> load_vec_partial(const T* p, int64_t count) {
  Vec<T, kSize> r;
#pragma unroll
  for (int k = 0; k < kSize; ++k) r.v[k] = k < count ? p[k] : T(0);
  return r;
}

template <int kSize, typename T>
__device__ __forceinline__ void store_vec_partial(T* p, const Vec<T, kSize>& value, int64_t count) {
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    if (k < count) p[k] = value.v[k];
  }
}

// Whether vectors of kSize elements of T can be moved whole at every one of these addresses; null ones count
// as aligned, for nothing is moved there.
template <typename T, int kSize>
bool all_aligned(std::initializer_list<const void*> pointers) {
  uintptr_t bits = 0;
  for (const void* p : pointers) bits |= reinterpret_cast<uintptr_t>(p);
  return bits % alignof(Vec<T, kSize>) == 0;
}

}  // namespace fastnn::cuda
