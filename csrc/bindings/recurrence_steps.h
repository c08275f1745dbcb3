// Which row of a batch of sequences is which step of which sample.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "../ops/recurrence.h"
#include "autograd.h"
#include "backend.h"

namespace fastnn::bindings {

using Indices = std::vector<int64_t>;

// Of a batch: its samples from the longest to the shortest, and where their steps are (ops/recurrence.h).
struct Steps {
  int64_t N, T, rows;
  bool reverse;
  Indices lengths, step_rows, sample_rows, state_rows;
  // Of padded batches in which not every row is a step of a sample: the rows that are. Everything else then
  // counts those alone, so that what lies between them costs nothing.
  Indices taken;
  bool is_dense = true;

  int64_t row(int64_t sample, int64_t step) const {
    return step_rows[reverse ? lengths[sample] - 1 - step : step] + sample_rows[sample];
  }
  int64_t active(int64_t step) const {
    return std::partition_point(lengths.begin(), lengths.end(), [&](int64_t n) { return n > step; }) -
           lengths.begin();
  }
  // Whether samples are numbered as the caller's.
  bool is_in_order() const { return std::is_sorted(state_rows.begin(), state_rows.end()); }
  // Whether all samples have all steps, and row t N + n is step t of sample n.
  bool is_whole() const { return is_dense && rows == T * N && is_in_order(); }

  // The rows that are steps, of a tensor of all rows; and the reverse, with zeros between them.
  at::Tensor take(const at::Tensor& all) const;
  at::Tensor put(const at::Tensor& rows_taken, int64_t of) const;

  // The tables for kernels on a tensor's device; they live as long as `keep`.
  Recurrence tables(BackendCall& call, const at::Tensor& like, at::Tensor& keep) const;
};

// input is [T, N, I], with lengths [N] or without, or with batch_sizes [T] the rows [sum of batch_sizes, I] of
// a torch PackedSequence.
Steps steps_of(const char* op, const at::Tensor& input, const OptionalTensor& batch_sizes,
               const OptionalTensor& lengths, bool reverse);

// Steps::put by tensors alone, for calls that are traced, where no length is known: rows of a batch with
// lengths to [T, N, X], of which `padded` has the first two sizes.
at::Tensor put_by_lengths(const at::Tensor& rows, const at::Tensor& padded, const at::Tensor& lengths);

// Whether torch's flags let the products of a float32 recurrence round their operands to tf32
// (torch.backends.cudnn.rnn.fp32_precision and what it inherits from). CPU kernels have no such thing.
bool tf32_is_allowed(const BackendCall& call, const at::Tensor& like);

at::Tensor index_tensor(const Indices& indices, const at::Tensor& like);

// [T, N, X], or rows of it, as rows.
inline at::Tensor flattened(const at::Tensor& t) { return t.reshape({-1, t.size(-1)}); }

// Rows of a tensor by number; a view where they follow each other.
at::Tensor rows_of(const at::Tensor& t, const Indices& indices);

}  // namespace fastnn::bindings
