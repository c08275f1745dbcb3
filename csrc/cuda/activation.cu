// The activations of ops/activation.h by themselves, behind a sum where there is one.
//
// Bound by memory: y is written, x and the residual are read; in backward grad_y and what was kept. A thread
// owns kVectors vectors of 16 bytes, all loaded before the first is used, a block apart.
#include <cstdint>

#include "../ops/activation.h"
#include "activation.cuh"
#include "dispatch.cuh"
#include "platform.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kThreads = 256;
// 32 bytes of each input in flight by a thread, of which 2,048 are on a multiprocessor: 64 KiB, twice what
// bandwidth times latency asks for.
constexpr int kVectors = 2;

// act(x + residual); a null residual is none.
template <typename scalar_t>
struct Value {
  using acc_t = acc_type<scalar_t>;
  static constexpr int kInputs = 2;
  ActivationOf<scalar_t> act;
  bool has_residual;
  __device__ __forceinline__ acc_t operator()(const acc_t (&in)[kInputs]) const {
    return act.value(has_residual ? in[0] + in[1] : in[0]);  // 0 added to -0 would be +0
  }
};

// gy * y' of (gy, kept, residual).
template <typename scalar_t>
struct Gradient {
  using acc_t = acc_type<scalar_t>;
  static constexpr int kInputs = 3;
  ActivationOf<scalar_t> act;
  bool has_residual;
  __device__ __forceinline__ acc_t operator()(const acc_t (&in)[kInputs]) const {
    return act.gradient_of_kept(in[0], has_residual ? in[1] + in[2] : in[1]);
  }
};

template <typename scalar_t, int kInputs>
struct Pointers {
  const scalar_t* p[kInputs];  // null: not read
};

template <typename scalar_t, typename Map>
__global__ void __launch_bounds__(kThreads, 1) activation_kernel(Map map, Pointers<scalar_t, Map::kInputs> in,
                                                                 scalar_t* out, int64_t count, bool aligned) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kVec = kVecSize<scalar_t>, kInputs = Map::kInputs;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kVectors * kThreads + threadIdx.x) * kVec;
  Vec<scalar_t, kVec> values[kVectors][kInputs];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = first + static_cast<int64_t>(v) * kThreads * kVec;
#pragma unroll
    for (int k = 0; k < kInputs; ++k) {
      if (in.p[k] == nullptr || at >= count) continue;
      values[v][k] = at + kVec <= count ? load_vec<kVec>(in.p[k] + at, aligned)
                                        : load_vec_partial<kVec>(in.p[k] + at, count - at);
    }
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = first + static_cast<int64_t>(v) * kThreads * kVec;
    if (at >= count) return;
    Vec<scalar_t, kVec> result;
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      acc_t of[kInputs];
#pragma unroll
      for (int k = 0; k < kInputs; ++k) of[k] = in.p[k] == nullptr ? acc_t(0) : to_acc(values[v][k].v[i]);
      result.v[i] = from_acc<scalar_t>(map(of));
    }
    if (at + kVec <= count) {
      store_vec(out + at, result, aligned);
    } else {
      store_vec_partial(out + at, result, count - at);
    }
  }
}

template <typename scalar_t, typename Map>
Status launch_map(const char* name, const Map& map, const Pointers<scalar_t, Map::kInputs>& in, void* out,
                  int64_t count, Stream stream) {
  constexpr int kVec = kVecSize<scalar_t>;
  bool aligned = all_aligned<scalar_t, kVec>({out});
  for (const scalar_t* p : in.p) aligned = aligned && all_aligned<scalar_t, kVec>({p});
  const int64_t blocks = ceil_div(count, static_cast<int64_t>(kThreads) * kVectors * kVec);
  return launch(name, activation_kernel<scalar_t, Map>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
                stream, map, in, static_cast<scalar_t*>(out), count, aligned);
}

}  // namespace

Status activation_forward(const ActivationForwardParams& p, Stream stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const Value<scalar_t> map{ActivationOf<scalar_t>(p.kind, p.alpha), p.residual != nullptr};
    const Pointers<scalar_t, 2> in{
        {static_cast<const scalar_t*>(p.x), static_cast<const scalar_t*>(p.residual)}};
    return launch_map("activation_forward", map, in, p.y, p.count, stream);
  });
}

Status activation_backward(const ActivationBackwardParams& p, Stream stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const Gradient<scalar_t> map{ActivationOf<scalar_t>(p.kind, p.alpha), p.residual != nullptr};
    const Pointers<scalar_t, 3> in{{static_cast<const scalar_t*>(p.grad_y), static_cast<const scalar_t*>(p.x),
                                    static_cast<const scalar_t*>(p.residual)}};
    return launch_map("activation_backward", map, in, p.grad_x, p.count, stream);
  });
}

}  // namespace fastnn::cuda
