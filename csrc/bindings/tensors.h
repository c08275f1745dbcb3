// From torch's tensors to the contracts' dtypes, layouts and strides.
#pragma once

#include <ATen/core/Tensor.h>

#include "../ops/conv.h"
#include "../ops/dtype.h"

namespace fastnn::bindings {

using Sizes = c10::SmallVector<int64_t, 6>;

// Throws NotImplementedError, naming the argument, for a dtype that no kernel takes.
DType dtype_of(const char* op, const char* argument, const at::Tensor& tensor);

// The type in which sums of this dtype are kept, as torch names it.
at::ScalarType acc_scalar_type(at::ScalarType type);

// channels_last of the tensor's rank (4-D: channels_last, 5-D: channels_last_3d) or contiguous.
at::MemoryFormat memory_format(bool channels_last, int64_t dim);

// Whether torch would keep the output of an op on this tensor in channels_last.
bool suggests_channels_last(const at::Tensor& t);

// An activation [N, C, spatial...] as kernels take it that know no more of its positions than their number:
// dense, in channels_last or contiguous memory.
struct ActivationForm {
  Layout layout;
  int64_t N, C, S;  // S: product of the spatial sizes
  at::MemoryFormat format;

  ActivationForm(const char* op, const at::Tensor& x);
  at::Tensor empty_like(const at::Tensor& x) const;
};

void check_like_input(const char* op, const char* name, const at::Tensor& t, const at::Tensor& x);

// The strides of [N, C, spatial...] with missing leading spatial dimensions of size 1 put in.
void fill_strides(const at::Tensor& t, ConvStrides& strides);

// The last entries of `values` (one per spatial dimension, every `step`-th) into a triple; the leading ones get
// `missing`.
void fill_spatial(at::IntArrayRef values, int64_t missing, int64_t (&triple)[kSpatialDims], int64_t step = 1);

// One value per spatial dimension, from a list of one or of `rank` values, as torch takes them.
Sizes expand_list(const char* op, const char* argument, at::IntArrayRef values, int64_t rank);

// Throws where the input is neither [N, C, ...] nor, unbatched, [C, ...] of this rank.
void check_input_rank(const char* op, int64_t rank, const at::Tensor& input);

inline bool is_batched(int64_t rank, const at::Tensor& input) { return input.dim() == rank + 2; }
inline at::Tensor with_batch(int64_t rank, const at::Tensor& input) {
  return is_batched(rank, input) ? input : input.unsqueeze(0);
}
inline at::Tensor without_batch(int64_t rank, const at::Tensor& input, const at::Tensor& output) {
  return is_batched(rank, input) ? output : output.squeeze(0);
}

}  // namespace fastnn::bindings
