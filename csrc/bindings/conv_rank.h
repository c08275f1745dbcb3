// What the functions of torch's signatures, of fixed rank, share: the tensors' ranks and unbatched inputs.
#pragma once

#include <type_traits>

#include "conv_ops.h"
#include "tensors.h"

namespace fastnn::bindings {

// Calls f(integral_constant) for the ranks 1 to 3.
template <typename F>
void for_each_rank(F&& f) {
  f(std::integral_constant<int64_t, 1>());
  f(std::integral_constant<int64_t, 2>());
  f(std::integral_constant<int64_t, 3>());
}

inline void check_rank(const char* op, int64_t rank, const at::Tensor& input, const at::Tensor& weight) {
  TORCH_CHECK(weight.dim() == rank + 2, op, ": Expected ", rank + 2, "D weight, but got weight of size ",
              weight.sym_sizes());
  check_input_rank(op, rank, input);
}

// compute(input), or of an unbatched one as a batch of one.
template <typename F>
at::Tensor batched(int64_t rank, const at::Tensor& input, const F& compute) {
  return without_batch(rank, input, compute(with_batch(rank, input)));
}

}  // namespace fastnn::bindings
