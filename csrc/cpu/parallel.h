// torch's thread pool, with one compiled copy of each loop body.
//
// at::parallel_for is a template that calls its body in two places, for one thread and for several. Inlined
// twice, a body may be contracted to fused multiply-adds in two ways, and the last bit of a result would depend
// on the number of threads. Here the body is compiled once and called from both places.
#pragma once

#include <ATen/Parallel.h>

#include <cstdint>

namespace fastnn::FASTNN_BACKEND {

#if defined(__clang__)
#define FASTNN_COMPILED_ONCE __attribute__((noinline))
#else
#define FASTNN_COMPILED_ONCE __attribute__((noinline, noclone))
#endif

// f(args...), by a call to the one compiled copy of f: for a body that several loops share.
template <typename F, typename... Args>
FASTNN_COMPILED_ONCE void call_compiled_once(const F& f, Args... args) {
  f(args...);
}

// f(begin, end) for ranges that together are [0, tasks), in the calling thread alone where tasks <= grain.
template <typename F>
void parallel_for(int64_t tasks, int64_t grain, const F& f) {
  at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) { call_compiled_once(f, begin, end); });
}

}  // namespace fastnn::FASTNN_BACKEND
