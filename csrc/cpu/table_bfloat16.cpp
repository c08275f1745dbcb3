// The table of processors that multiply bfloat16 (AVX512-BF16): that of AVX-512, but for bfloat16 convolutions.
//
// conv.cpp is compiled once more for them, for that type alone: nothing else has a use for the instructions.
#include "../ops/backend.h"

namespace fastnn {

namespace cpu_avx512 {
const Backend& table();
}

namespace {

// An entry point of conv.cpp, or of the table for AVX-512 where tensors have another type.
template <auto entry_point, auto otherwise, typename Params>
Status run(const Params& params, Stream stream) {
  if (params.dtype == DType::kBFloat16) return entry_point(params, stream);
  return (cpu_avx512::table().*otherwise)(params, stream);
}

template <auto entry_point, auto otherwise, typename Params>
int64_t workspace(const Params& params) {
  if (params.dtype == DType::kBFloat16) return entry_point(params);
  return (cpu_avx512::table().*otherwise)(params);
}

}  // namespace

const Backend& FASTNN_BACKEND::table() {
  static const Backend kTable = [] {
    namespace bf16 = FASTNN_BACKEND;
    Backend t = cpu_avx512::table();
    t.conv_forward = run<bf16::conv_forward, &Backend::conv_forward, ConvForwardParams>;
    t.conv_forward_workspace =
        workspace<bf16::conv_forward_workspace, &Backend::conv_forward_workspace, ConvForwardParams>;
    t.conv_grad_input = run<bf16::conv_grad_input, &Backend::conv_grad_input, ConvGradInputParams>;
    t.conv_grad_input_workspace =
        workspace<bf16::conv_grad_input_workspace, &Backend::conv_grad_input_workspace, ConvGradInputParams>;
    t.conv_grad_weight = run<bf16::conv_grad_weight, &Backend::conv_grad_weight, ConvGradWeightParams>;
    t.conv_grad_weight_workspace =
        workspace<bf16::conv_grad_weight_workspace, &Backend::conv_grad_weight_workspace, ConvGradWeightParams>;
    return t;
  }();
  return kTable;
}

}  // namespace fastnn
