// The stream that a launch goes to, nameable without a CUDA header.
#pragma once

struct CUstream_st;

namespace fastnn {

// The same type as cudaStream_t. CPU kernels ignore it.
using Stream = CUstream_st*;

}  // namespace fastnn

// Declares an op's entry point in the backend being compiled: the build defines FASTNN_BACKEND as `cuda`, or
// as `cpu_baseline`, `cpu_avx2`, `cpu_avx512` or `cpu_avx512_bf16` (the CPU kernels are compiled once for
// each). Entry points allocate nothing, never synchronise and never read a value back from the device; memory
// that they need is in the parameters. The bindings see no entry points, only tables of them (backend.h).
//
// The workspace query returns bytes, 0 when none is needed. Its parameters' pointers need not be valid, but
// null optional ones mean "not wanted" there too.
#if defined(FASTNN_BACKEND)
#define FASTNN_DECLARE_OP(name, Params) \
  namespace FASTNN_BACKEND {            \
  Status name(const Params&, Stream);   \
  }
#define FASTNN_DECLARE_WORKSPACE(name, Params) \
  namespace FASTNN_BACKEND {                   \
  int64_t name##_workspace(const Params&);     \
  }
#else
#define FASTNN_DECLARE_OP(name, Params)
#define FASTNN_DECLARE_WORKSPACE(name, Params)
#endif
