#include "recurrence_steps.h"

#include <numeric>

namespace fastnn::bindings {

namespace {

Indices values_of(const char* op, const char* name, const at::Tensor& t) {
  TORCH_CHECK(t.dim() == 1, op, ": ", name, " must be 1-dimensional, got shape ", t.sizes());
  TORCH_CHECK(at::isIntegralType(t.scalar_type(), /*includeBool=*/false), op, ": ", name,
              " must be of an integral type, got ", t.scalar_type());
  const at::Tensor host = t.to(at::kCPU, at::kLong).contiguous();
  const auto* const data = host.const_data_ptr<int64_t>();
  return {data, data + host.numel()};
}

}  // namespace

Steps steps_of(const char* op, const at::Tensor& input, const OptionalTensor& batch_sizes,
               const OptionalTensor& lengths, bool reverse) {
  Steps s;
  s.reverse = reverse;
  if (batch_sizes.has_value()) {
    TORCH_CHECK(!lengths.has_value(), op, ": got both batch_sizes and lengths; a packed sequence has its own");
    TORCH_CHECK(input.dim() == 2, op, ": packed input must be 2-dimensional, got shape ", input.sizes());
    const Indices sizes = values_of(op, "batch_sizes", *batch_sizes);
    s.T = static_cast<int64_t>(sizes.size());
    TORCH_CHECK(s.T > 0 && std::is_sorted(sizes.rbegin(), sizes.rend()) && sizes.back() > 0, op,
                ": batch_sizes must be positive and not ascending, got ", *batch_sizes);
    s.N = sizes[0];
    s.rows = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    TORCH_CHECK(s.rows == input.size(0), op, ": batch_sizes add up to ", s.rows, " rows, but input has ",
                input.size(0));
    for (int64_t t = 0, row = 0; t < s.T; row += sizes[t++]) s.step_rows.push_back(row);
    s.lengths.resize(s.N);
    for (int64_t n = 0; n < s.N; ++n) {
      s.lengths[n] = std::partition_point(sizes.begin(), sizes.end(), [&](int64_t size) { return size > n; }) -
                     sizes.begin();
    }
    s.state_rows.resize(s.N);
    std::iota(s.state_rows.begin(), s.state_rows.end(), 0);
    s.sample_rows = s.state_rows;
    return s;
  }
  TORCH_CHECK(input.dim() == 3, op, ": input must be 3-dimensional [T, N, I], got shape ", input.sizes());
  const int64_t time = input.size(0);
  s.N = input.size(1);
  s.rows = time * s.N;
  Indices given(s.N, time);
  if (lengths.has_value()) {
    given = values_of(op, "lengths", *lengths);
    TORCH_CHECK(static_cast<int64_t>(given.size()) == s.N, op, ": lengths must have a value for each of ", s.N,
                " samples, got ", given.size());
    for (const int64_t length : given) {
      TORCH_CHECK_VALUE(length >= 0 && length <= time, op, ": lengths must be from 0 to the ", time,
                        " steps of input, got ", length);
      s.is_dense = s.is_dense && length == time;
    }
  }
  s.state_rows.resize(s.N);
  std::iota(s.state_rows.begin(), s.state_rows.end(), 0);
  std::stable_sort(s.state_rows.begin(), s.state_rows.end(),
                   [&](int64_t a, int64_t b) { return given[a] > given[b]; });
  s.sample_rows = s.state_rows;
  for (const int64_t n : s.state_rows) s.lengths.push_back(given[n]);
  s.T = s.N == 0 ? 0 : s.lengths[0];
  if (s.is_dense) {
    for (int64_t t = 0; t < time; ++t) s.step_rows.push_back(t * s.N);
    return s;
  }
  for (int64_t t = 0; t < s.T; ++t) {
    s.step_rows.push_back(static_cast<int64_t>(s.taken.size()));
    const int64_t active = s.active(t);
    for (int64_t n = 0; n < active; ++n) s.taken.push_back(t * s.N + s.state_rows[n]);
  }
  std::iota(s.sample_rows.begin(), s.sample_rows.end(), 0);
  s.rows = static_cast<int64_t>(s.taken.size());
  return s;
}

at::Tensor index_tensor(const Indices& indices, const at::Tensor& like) {
  // Under torch.func's transforms a new tensor would be wrapped before it is filled.
  const c10::impl::ExcludeDispatchKeyGuard plain(c10::DispatchKeySet(
      {c10::DispatchKey::FuncTorchDynamicLayerFrontMode, c10::DispatchKey::FuncTorchDynamicLayerBackMode}));
  return at::tensor(indices, at::kLong).to(like.device());
}

at::Tensor Steps::take(const at::Tensor& all) const {
  return is_dense ? all : all.index_select(0, index_tensor(taken, all));
}

at::Tensor Steps::put(const at::Tensor& rows_taken, int64_t of) const {
  if (is_dense) return rows_taken;
  return rows_taken.new_zeros({of, rows_taken.size(1)})
      .index_copy(0, index_tensor(taken, rows_taken), rows_taken);
}

at::Tensor put_by_lengths(const at::Tensor& rows, const at::Tensor& padded, const at::Tensor& lengths) {
  const at::Tensor of = lengths.to(rows.device(), at::kLong);
  const at::Tensor step = at::ones_like(padded.select(2, 0), at::kLong).cumsum(0) - 1;
  const at::Tensor is_step = step < of;
  // A sample's place among those of a step, from the longest to the shortest, and where the step begins.
  const at::Tensor rank = at::argsort(at::argsort(of, /*stable=*/true, 0, /*descending=*/true));
  const at::Tensor active = is_step.sum(1, /*keepdim=*/true);
  const at::Tensor place = at::where(is_step, active.cumsum(0) - active + rank, 0);
  return at::index(rows, {place}).masked_fill(is_step.logical_not().unsqueeze(2), 0);
}

at::Tensor rows_of(const at::Tensor& t, const Indices& indices) {
  bool is_run = true;
  for (size_t i = 1; i < indices.size(); ++i)
    is_run = is_run && indices[i] == indices[0] + static_cast<int64_t>(i);
  if (indices.empty()) return t.narrow(0, 0, 0);
  return is_run ? t.narrow(0, indices[0], static_cast<int64_t>(indices.size()))
                : t.index_select(0, index_tensor(indices, t));
}

bool tf32_is_allowed(const BackendCall& call, const at::Tensor& like) {
  return like.scalar_type() == at::kFloat && call.runs_cuda_kernels() &&
         at::globalContext().allowTF32CuDNN(at::Float32Op::RNN);
}

Recurrence Steps::tables(BackendCall& call, const at::Tensor& like, at::Tensor& keep) const {
  Recurrence r{};
  r.N = N;
  r.T = T;
  r.reverse = reverse;
  r.allow_tf32 = tf32_is_allowed(call, like);
  if (is_whole()) return r;
  if (!call.runs_cuda_kernels()) {
    r.lengths = lengths.data();
    r.step_rows = step_rows.data();
    r.sample_rows = sample_rows.data();
    r.state_rows = state_rows.data();
    return r;
  }
  Indices all;
  const int64_t** const tables[] = {&r.lengths, &r.step_rows, &r.sample_rows, &r.state_rows};
  const Indices* const values[] = {&lengths, &step_rows, &sample_rows, &state_rows};
  for (const Indices* v : values) all.insert(all.end(), v->begin(), v->end());
  keep = index_tensor(all, like);
  const auto* data = static_cast<const int64_t*>(call.data(keep));
  for (size_t i = 0; i < 4; ++i) {
    *tables[i] = data;
    data += values[i]->size();
  }
  return r;
}

}  // namespace fastnn::bindings
