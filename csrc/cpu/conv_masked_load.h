// One vector of accumulators assembled from short runs of memory.
//
// A row of a packed panel is pieces of image rows with zeros at the borders. On an 8-wide image six runs make
// up 48 positions; copied one by one they cost about 60 cycles, mostly branches. AVX-512's masked load reads
// only the lanes that it is asked for, wherever its address lies, so each run costs one load and each vector
// one store.
#pragma once

#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <bit>
#include <cstdint>

#include "conv_gemm.h"
#include "dispatch.h"

namespace fastnn::FASTNN_BACKEND {

// The lanes of one vector of acc_type<scalar_t>, 0 at first. merge(mask, src): lane i becomes src[i] where bit
// i of mask, one run of bits, is set; other elements are not read.
template <typename scalar_t>
struct MaskedVector {
  using acc_t = acc_type<scalar_t>;
  acc_t lane[kLanes<acc_t>] = {};

  void merge(uint32_t mask, const scalar_t* src) {
    const int begin = std::countr_zero(mask), end = begin + std::popcount(mask);
    for (int i = begin; i < end; ++i) lane[i] = static_cast<acc_t>(src[i]);
  }
  Vec<acc_t> value() const { return Vec<acc_t>::loadu(lane); }
};

#if defined(CPU_CAPABILITY_AVX512)

template <>
struct MaskedVector<float> {
  __m512 lanes = _mm512_setzero_ps();
  void merge(uint32_t mask, const float* src) {
    lanes = _mm512_mask_loadu_ps(lanes, static_cast<__mmask16>(mask), src);
  }
  Vec<float> value() const { return lanes; }
};

template <>
struct MaskedVector<double> {
  __m512d lanes = _mm512_setzero_pd();
  void merge(uint32_t mask, const double* src) {
    lanes = _mm512_mask_loadu_pd(lanes, static_cast<__mmask8>(mask), src);
  }
  Vec<double> value() const { return lanes; }
};

template <>
struct MaskedVector<c10::BFloat16> {
  __m256i lanes = _mm256_setzero_si256();
  void merge(uint32_t mask, const c10::BFloat16* src) {
    lanes = _mm256_mask_loadu_epi16(lanes, static_cast<__mmask16>(mask), src);
  }
  Vec<float> value() const { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(lanes), 16)); }
};

template <>
struct MaskedVector<c10::Half> {
  __m256i lanes = _mm256_setzero_si256();
  void merge(uint32_t mask, const c10::Half* src) {
    lanes = _mm256_mask_loadu_epi16(lanes, static_cast<__mmask16>(mask), src);
  }
  Vec<float> value() const { return _mm512_cvtph_ps(lanes); }
};

#endif

}  // namespace fastnn::FASTNN_BACKEND
