// An LSTM layer in one direction over a whole batch of sequences: the dispatcher's ops, their checks and
// autograd.
//
// lstm -> lstm_layer -> lstm_layer_backward where the backend has the recurrence (ops/lstm_sequence.h), which
// is everything that must be done step by step; the products of all steps with W_ih, and those of the weights'
// gradients, are the framework's. Elsewhere, with a projection, where types differ, and for second and forward
// derivatives, lstm is the cell stepped over time, which is differentiable in every way that the cell is.
#include "../ops/lstm_sequence.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "lstm_cell.h"
#include "tensors.h"

namespace fastnn::bindings {

namespace {

using SixTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Indices = std::vector<int64_t>;

// ---- which row is which step --------------------------------------------------------------------------------

// Of a batch: its samples from the longest to the shortest, and where their steps are (ops/lstm_sequence.h).
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

  // The rows that are steps, of a tensor of all rows; and the reverse, with zeros between them.
  at::Tensor take(const at::Tensor& all) const;
  at::Tensor put(const at::Tensor& rows_taken, int64_t of) const;

  LstmSequence sequence(DType dtype, int64_t H) const {
    return {dtype, N, H, T, reverse, lengths.data(), step_rows.data(), sample_rows.data(), state_rows.data()};
  }
};

Indices values_of(const char* op, const char* name, const at::Tensor& t) {
  TORCH_CHECK(t.dim() == 1, op, ": ", name, " must be 1-dimensional, got shape ", t.sizes());
  TORCH_CHECK(at::isIntegralType(t.scalar_type(), /*includeBool=*/false), op, ": ", name,
              " must be of an integral type, got ", t.scalar_type());
  const at::Tensor host = t.to(at::kCPU, at::kLong).contiguous();
  const auto* const data = host.const_data_ptr<int64_t>();
  return {data, data + host.numel()};
}

// input is [T, N, I], with lengths [N] or without, or with batch_sizes [T] the rows [sum of batch_sizes, I] of
// a torch PackedSequence.
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

// [T, N, X], or rows of it, as rows.
at::Tensor flattened(const at::Tensor& t) { return t.reshape({-1, t.size(-1)}); }

// Rows of a tensor by number; a view where they follow each other.
at::Tensor rows_of(const at::Tensor& t, const Indices& indices) {
  bool is_run = true;
  for (size_t i = 1; i < indices.size(); ++i)
    is_run = is_run && indices[i] == indices[0] + static_cast<int64_t>(i);
  if (indices.empty()) return t.narrow(0, 0, 0);
  return is_run ? t.narrow(0, indices[0], static_cast<int64_t>(indices.size()))
                : t.index_select(0, index_tensor(indices, t));
}

// ---- checks -------------------------------------------------------------------------------------------------

void check_layer(const char* op, const at::Tensor& input, int64_t N, const at::Tensor& h0, const at::Tensor& c0,
                 const at::Tensor& w_ih, const at::Tensor& w_hh, const OptionalTensor& b_ih,
                 const OptionalTensor& b_hh, const OptionalTensor& w_hr) {
  TORCH_CHECK(w_ih.dim() == 2 && w_hh.dim() == 2 && w_ih.size(0) % 4 == 0, op,
              ": weights must be [4 * hidden_size, ...], got ", w_ih.sizes(), " and ", w_hh.sizes());
  const int64_t H = w_ih.size(0) / 4, P = w_hr.has_value() ? w_hr->size(0) : H;
  const auto expect = [&](const char* name, const at::Tensor& t, at::IntArrayRef size) {
    TORCH_CHECK(t.sizes() == size, op, ": ", name, " must have shape ", size, ", got ", t.sizes());
    TORCH_CHECK(t.device() == input.device(), op, ": ", name, " must be on input's device ", input.device(),
                ", got ", t.device());
  };
  expect("w_ih", w_ih, {4 * H, input.size(-1)});
  expect("w_hh", w_hh, {4 * H, P});
  expect("h0", h0, {N, P});
  expect("c0", c0, {N, H});
  if (b_ih.has_value()) expect("b_ih", *b_ih, {4 * H});
  if (b_hh.has_value()) expect("b_hh", *b_hh, {4 * H});
  if (w_hr.has_value()) expect("w_hr", *w_hr, {P, H});
}

// ---- kernels ------------------------------------------------------------------------------------------------

// y, the last states, and for backward the gates and every step's c.
FiveTensors lstm_layer(const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0,
                       const at::Tensor& w_ih, const at::Tensor& w_hh, const OptionalTensor& b_ih,
                       const OptionalTensor& b_hh, const OptionalTensor& batch_sizes,
                       const OptionalTensor& lengths, bool reverse, bool save) {
  static constexpr const char* kOp = "lstm_layer";
  const Steps steps = steps_of(kOp, input, batch_sizes, lengths, reverse);
  check_layer(kOp, input, steps.N, h0, c0, w_ih, w_hh, b_ih, b_hh, std::nullopt);
  const int64_t H = w_hh.size(1);
  const at::Tensor all = flattened(input), w = w_hh.contiguous();
  const at::Tensor x = steps.take(all), h_begin = h0.contiguous(), c_begin = c0.contiguous();
  const at::Tensor bias = sum_of(value_or_undefined(b_ih), value_or_undefined(b_hh));
  // What is returned has as many rows as the input, so that its shape is known without the lengths; the first
  // are used.
  const int64_t kept = save ? all.size(0) : steps.rows;
  at::Tensor gates = at::empty({kept, 4 * H}, input.options());
  at::Tensor c = save ? at::empty({kept, H}, input.options()) : absent(input.options());
  if (kept > steps.rows) {
    for (const at::Tensor& t : {gates, c}) t.narrow(0, steps.rows, kept - steps.rows).zero_();
  }
  at::Tensor products = gates.narrow(0, 0, steps.rows);
  if (bias.defined()) {
    at::addmm_out(products, bias, x, w_ih.t());
  } else {
    at::mm_out(products, x, w_ih.t());
  }
  at::Tensor y = at::empty({steps.rows, H}, input.options());
  at::Tensor h_n = at::empty({steps.N, H}, input.options()), c_n = at::empty_like(h_n);
  BackendCall call(input);
  if (h_n.numel() > 0) {
    LstmSequenceForwardParams p;
    p.in = steps.sequence(dtype_of(kOp, "input", input), H);
    p.w_hh = call.data(w);
    p.h0 = call.data(h_begin);
    p.c0 = call.data(c_begin);
    p.gates = call.mutable_data(gates);
    p.y = call.output(y);
    p.c = save ? call.output(c) : nullptr;
    p.h_n = call.output(h_n);
    p.c_n = call.output(c_n);
    call(&Backend::lstm_sequence_forward, &Backend::lstm_sequence_forward_workspace, p);
  }
  auto size = input.sizes().vec();
  size.back() = H;
  return {steps.put(y, all.size(0)).view(size), h_n, c_n, save ? gates : absent(input.options()), c};
}

// The gradient of W_hh: the sum over all steps of the gates' gradient times h before the step.
at::Tensor grad_w_hh(const Steps& steps, const at::Tensor& grad_gates, const at::Tensor& y,
                     const at::Tensor& h0) {
  const int64_t H = h0.size(1);
  const at::Tensor rows = steps.take(flattened(y));
  if (steps.rows > 0 && steps.is_dense && steps.is_in_order() && steps.T * steps.N == steps.rows) {
    // All samples have all steps: rows of a step follow those of the step before.
    const int64_t rest = steps.rows - steps.N;
    const at::Tensor first = grad_gates.narrow(0, steps.reverse ? rest : 0, steps.N);
    const at::Tensor others = grad_gates.narrow(0, steps.reverse ? 0 : steps.N, rest);
    return at::addmm(at::mm(first.t(), h0), others.t(), rows.narrow(0, steps.reverse ? steps.N : 0, rest));
  }
  Indices before(steps.rows);
  for (int64_t n = 0; n < steps.N; ++n) {
    for (int64_t step = 0; step < steps.lengths[n]; ++step) {
      before[steps.row(n, step)] = step == 0 ? steps.rows + steps.state_rows[n] : steps.row(n, step - 1);
    }
  }
  return at::mm(grad_gates.t(), at::cat({rows, h0}).index_select(0, index_tensor(before, y)));
}

SixTensors lstm_layer_backward(const OptionalTensor& grad_y, const OptionalTensor& grad_h_n,
                               const OptionalTensor& grad_c_n, const at::Tensor& input, const at::Tensor& h0,
                               const at::Tensor& c0, const at::Tensor& w_ih, const at::Tensor& w_hh,
                               const at::Tensor& y, const at::Tensor& gates, const at::Tensor& c,
                               const OptionalTensor& batch_sizes, const OptionalTensor& lengths, bool reverse,
                               std::array<bool, 6> output_mask) {
  static constexpr const char* kOp = "lstm_layer_backward";
  const Steps steps = steps_of(kOp, input, batch_sizes, lengths, reverse);
  check_layer(kOp, input, steps.N, h0, c0, w_ih, w_hh, std::nullopt, std::nullopt, std::nullopt);
  const int64_t H = w_hh.size(1);
  const auto options = input.options();
  const std::array<at::IntArrayRef, 3> sizes{y.sizes(), h0.sizes(), c0.sizes()};
  const std::array<const OptionalTensor*, 3> given{&grad_y, &grad_h_n, &grad_c_n};
  std::array<at::Tensor, 3> grads;
  for (size_t i = 0; i < 3; ++i) {
    if (!given[i]->has_value()) continue;
    TORCH_CHECK((*given[i])->sizes() == sizes[i] && (*given[i])->scalar_type() == input.scalar_type(), kOp,
                ": gradients must have the shapes and type of what forward returned, got ",
                (*given[i])->sizes(), " of ", (*given[i])->scalar_type(), ", expected ", sizes[i], " of ",
                input.scalar_type());
    grads[i] = i == 0 ? steps.take(flattened(**given[i])).contiguous() : (*given[i])->contiguous();
  }
  const at::Tensor all = flattened(input);
  at::Tensor grad_gates = at::empty({steps.rows, 4 * H}, options);
  at::Tensor grad_h0 = at::empty(h0.sizes(), options), grad_c0 = at::empty(c0.sizes(), options);
  const at::Tensor w = w_hh.contiguous(), c_begin = c0.contiguous();
  BackendCall call(input);
  if (h0.numel() > 0) {
    LstmSequenceBackwardParams p;
    p.in = steps.sequence(dtype_of(kOp, "input", input), H);
    p.w_hh = call.data(w);
    p.c0 = call.data(c_begin);
    p.gates = call.data(gates);
    p.c = call.data(c);
    p.grad_y = call.data(grads[0]);
    p.grad_h_n = call.data(grads[1]);
    p.grad_c_n = call.data(grads[2]);
    p.grad_gates = call.output(grad_gates);
    p.grad_h0 = call.output(grad_h0);
    p.grad_c0 = call.output(grad_c0);
    call(&Backend::lstm_sequence_backward, &Backend::lstm_sequence_backward_workspace, p);
  }
  const auto wanted = [&](size_t i, const auto& make) { return output_mask[i] ? make() : absent(options); };
  return {wanted(0, [&] { return steps.put(at::mm(grad_gates, w_ih), all.size(0)).view(input.sizes()); }),
          wanted(1, [&] { return grad_h0; }),
          wanted(2, [&] { return grad_c0; }),
          wanted(3, [&] { return at::mm(grad_gates.t(), steps.take(all)); }),
          wanted(4, [&] { return grad_w_hh(steps, grad_gates, y, h0); }),
          wanted(5, [&] { return grad_gates.sum(0); })};
}

// ---- the cell stepped over time -----------------------------------------------------------------------------

const auto& lstm_cell_op() {
  static const auto op =
      find_op<TwoTensors(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         const at::Tensor&, const OptionalTensor&, const OptionalTensor&)>("fastnn::lstm_cell");
  return op;
}

// One layer in one direction, of ops that are differentiable themselves.
ThreeTensors step_through(const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0,
                          const at::Tensor& w_ih, const at::Tensor& w_hh, const OptionalTensor& b_ih,
                          const OptionalTensor& b_hh, const OptionalTensor& w_hr, const Steps& steps) {
  const at::Tensor x = steps.take(flattened(input));
  at::Tensor h = rows_of(h0, steps.state_rows), c = rows_of(c0, steps.state_rows);
  // What is known of each step, and the states of samples that have ended, the shortest first.
  std::vector<at::Tensor> y, h_last, c_last;
  Indices order;
  const auto end = [&](int64_t from) {
    if (from == h.size(0)) return;
    h_last.push_back(h.narrow(0, from, h.size(0) - from));
    c_last.push_back(c.narrow(0, from, c.size(0) - from));
    h = h.narrow(0, 0, from);
    c = c.narrow(0, 0, from);
  };
  const auto step = [&](const at::Tensor& x_t, const at::Tensor& h_before, const at::Tensor& c_before) {
    if (!w_hr.has_value()) return lstm_cell_op().call(x_t, h_before, c_before, w_ih, w_hh, b_ih, b_hh);
    const at::Tensor gates = at::addmm(at::linear(x_t, w_ih), h_before, w_hh.t());
    const auto [hy, cy] = lstm_cell_after_products(gates, b_ih, b_hh, c_before);
    return TwoTensors{at::linear(hy, *w_hr), cy};
  };
  for (int64_t t = 0; t < steps.T; ++t) {
    const int64_t active = steps.active(t);
    end(active);
    Indices rows(active);
    for (int64_t n = 0; n < active; ++n) rows[n] = steps.row(n, t);
    std::tie(h, c) = step(rows_of(x, rows), h, c);
    y.push_back(h);
    order.insert(order.end(), rows.begin(), rows.end());
  }
  end(0);
  std::reverse(h_last.begin(), h_last.end());
  std::reverse(c_last.begin(), c_last.end());
  const auto by_caller = [&](const std::vector<at::Tensor>& parts, const at::Tensor& like) {
    if (parts.empty()) return like;
    const at::Tensor sorted = parts.size() == 1 ? parts[0] : at::cat(parts);
    Indices place(steps.N);
    for (int64_t n = 0; n < steps.N; ++n) place[steps.state_rows[n]] = n;
    return rows_of(sorted, place);
  };
  auto size = input.sizes().vec();
  size.back() = h0.size(1);
  at::Tensor all = y.empty() ? x.new_zeros({0, size.back()}) : at::cat(y);
  if (!std::is_sorted(order.begin(), order.end())) {
    all = at::zeros_like(all).index_copy(0, index_tensor(order, x), all);
  }
  return {steps.put(all, flattened(input).size(0)).view(size), by_caller(h_last, h0), by_caller(c_last, c0)};
}

// ---- autograd -----------------------------------------------------------------------------------------------

using LayerOp = decltype(lstm_layer);
const auto& layer_op() {
  static const auto op = find_op<LayerOp>("fastnn::lstm_layer");
  return op;
}
const auto& layer_backward_op() {
  static const auto op = find_op<decltype(lstm_layer_backward)>("fastnn::lstm_layer_backward");
  return op;
}

struct LayerNode final : Node {  // of (input, h0, c0, w_ih, w_hh, b_ih, b_hh)
  std::array<SavedVariable, 7> inputs;
  SavedVariable y, gates, c;
  OptionalTensor batch_sizes, lengths;
  bool reverse = false;

  std::string name() const override { return "FastnnLstmLayerBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(7);
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined()) return result;
    std::array<at::Tensor, 7> t;
    for (size_t i = 0; i < 7; ++i) t[i] = inputs[i].unpack();
    if (at::GradMode::is_enabled()) return by_steps(t, grads);
    std::array<bool, 6> wanted;
    for (size_t i = 0; i < 6; ++i) wanted[i] = task_should_compute_output(i);
    wanted[5] = wanted[5] || task_should_compute_output(6);
    const auto [x, h, c0, w_ih, w_hh, bias] = layer_backward_op().call(
        some(grads[0]), some(grads[1]), some(grads[2]), t[0], t[1], t[2], t[3], t[4], y.unpack(getptr()),
        gates.unpack(getptr()), c.unpack(getptr()), batch_sizes, lengths, reverse, wanted);
    const at::Tensor* const all[7] = {&x, &h, &c0, &w_ih, &w_hh, &bias, &bias};
    for (size_t i = 0; i < 7; ++i) result[i] = if_wanted(task_should_compute_output(i), *all[i]);
    return result;
  }
  void release_variables() override {
    for (SavedVariable& v : inputs) v.reset_data();
    for (SavedVariable* v : {&y, &gates, &c}) v->reset_data();
  }

 private:
  // A gradient that is to be differentiated again: that of the cell stepped over time.
  variable_list by_steps(const std::array<at::Tensor, 7>& t, const variable_list& grads) {
    const Steps steps = steps_of("lstm_layer", t[0], batch_sizes, lengths, reverse);
    const auto [y_again, h_n, c_n] =
        step_through(t[0], t[1], t[2], t[3], t[4], some(t[5]), some(t[6]), std::nullopt, steps);
    variable_list outputs, directions, wanted;
    const std::array<at::Tensor, 3> all{y_again, h_n, c_n};
    for (size_t i = 0; i < 3; ++i) {
      if (!grads[i].defined() || !all[i].requires_grad()) continue;
      outputs.push_back(all[i]);
      directions.push_back(grads[i]);
    }
    std::vector<size_t> places;
    for (size_t i = 0; i < 7; ++i) {
      if (!task_should_compute_output(i) || !t[i].defined()) continue;
      wanted.push_back(t[i]);
      places.push_back(i);
    }
    variable_list result(7);
    if (outputs.empty() || wanted.empty()) return result;
    const variable_list found = torch::autograd::grad(outputs, wanted, directions, /*retain_graph=*/true,
                                                      /*create_graph=*/true, /*allow_unused=*/true);
    for (size_t i = 0; i < places.size(); ++i) result[places[i]] = found[i];
    return result;
  }
};

FiveTensors layer_autograd(c10::DispatchKeySet keys, const at::Tensor& input, const at::Tensor& h0,
                           const at::Tensor& c0, const at::Tensor& w_ih, const at::Tensor& w_hh,
                           const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                           const OptionalTensor& batch_sizes, const OptionalTensor& lengths, bool reverse,
                           bool save_for_backward) {
  const auto node = make_node<LayerNode>(input, h0, c0, w_ih, w_hh, b_ih, b_hh);
  FiveTensors result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = layer_op().redispatch(keys & c10::after_autograd_keyset, input, h0, c0, w_ih, w_hh, b_ih, b_hh,
                                   batch_sizes, lengths, reverse, save_for_backward || node);
  }
  const auto& [y, h_n, c_n, gates, c] = result;
  if (node) {
    node->inputs = {save(input), save(h0), save(c0), save(w_ih), save(w_hh), save(b_ih), save(b_hh)};
    node->batch_sizes = batch_sizes;
    node->lengths = lengths;
    node->reverse = reverse;
    torch::autograd::set_history({y, h_n, c_n}, node);
    node->y = SavedVariable(y, /*is_output=*/true);
    node->gates = save(gates);
    node->c = save(c);
  }
  return result;
}

SixTensors layer_backward_autograd(c10::DispatchKeySet keys, const OptionalTensor& grad_y,
                                   const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
                                   const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0,
                                   const at::Tensor& w_ih, const at::Tensor& w_hh, const at::Tensor& y,
                                   const at::Tensor& gates, const at::Tensor& c,
                                   const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                   bool reverse, std::array<bool, 6> output_mask) {
  SixTensors result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result =
        layer_backward_op().redispatch(keys & c10::after_autograd_keyset, grad_y, grad_h_n, grad_c_n, input, h0,
                                       c0, w_ih, w_hh, y, gates, c, batch_sizes, lengths, reverse, output_mask);
  }
  forbid_derivative("lstm_layer_backward",
                    {std::get<0>(result), std::get<1>(result), std::get<2>(result), std::get<3>(result),
                     std::get<4>(result), std::get<5>(result)},
                    grad_y, grad_h_n, grad_c_n, input, h0, c0, w_ih, w_hh, y, gates, c);
  return result;
}

// ---- the layer ----------------------------------------------------------------------------------------------

// Whether lstm_layer serves these tensors: the backend has the recurrence, all are of one type, which autocast
// does not promise, and no derivative is wanted that it has not.
bool has_recurrence(const at::Tensor& input, std::initializer_list<const at::Tensor*> others,
                    const OptionalTensor& b_ih, const OptionalTensor& b_hh) {
  if (!BackendCall::has(input, &Backend::lstm_sequence_forward)) return false;
  constexpr c10::DispatchKeySet kTransformed(
      {c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper});
  const auto fits = [&](const at::Tensor& t) {
    return t.scalar_type() == input.scalar_type() && t.device() == input.device() && !has_tangent(t) &&
           !t.key_set().has_any(kTransformed);
  };
  return fits(input) &&
         std::all_of(others.begin(), others.end(), [&](const at::Tensor* t) { return fits(*t); }) &&
         (!b_ih.has_value() || fits(*b_ih)) && (!b_hh.has_value() || fits(*b_hh));
}

// Steps for which packing the weights does not pay: the cell reads them where they are.
constexpr int64_t kFewSteps = 3;

ThreeTensors lstm(const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0, const at::Tensor& w_ih,
                  const at::Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                  const OptionalTensor& w_hr, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                  bool reverse) {
  // A traced call is for any number of steps.
  const bool traced = input.key_set().has(c10::DispatchKey::Python);
  const at::Tensor& of_steps = batch_sizes.has_value() ? *batch_sizes : input;
  if (!w_hr.has_value() && (traced || of_steps.size(0) > kFewSteps) &&
      has_recurrence(input, {&h0, &c0, &w_ih, &w_hh}, b_ih, b_hh)) {
    auto [y, h_n, c_n, gates, c] =
        layer_op().call(input, h0, c0, w_ih, w_hh, b_ih, b_hh, batch_sizes, lengths, reverse, false);
    return {y, h_n, c_n};
  }
  const Steps steps = steps_of("lstm", input, batch_sizes, lengths, reverse);
  check_layer("lstm", input, steps.N, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr);
  return step_through(input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, steps);
}

// Autocast casts every tensor of a layer, as it does for torch's own.
ThreeTensors lstm_autocast(const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0,
                           const at::Tensor& w_ih, const at::Tensor& w_hh, const OptionalTensor& b_ih,
                           const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                           const OptionalTensor& batch_sizes, const OptionalTensor& lengths, bool reverse) {
  const auto device = input.device().type();
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      c10::DispatchKeySet(at::autocast::get_autocast_dispatch_key_from_device_type(device)));
  const auto type = at::autocast::get_lower_precision_fp_from_device_type(device);
  const auto cast = [&](const auto& t) { return at::autocast::cached_cast(type, t, device); };
  static const auto op = find_op<decltype(lstm)>("fastnn::lstm");
  return op.call(cast(input), cast(h0), cast(c0), cast(w_ih), cast(w_hh), cast(b_ih), cast(b_hh), cast(w_hr),
                 batch_sizes, lengths, reverse);
}

}  // namespace

// ---- registration -------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "lstm(Tensor input, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih=None, Tensor? "
      "b_hh=None, "
      "Tensor? w_hr=None, Tensor? batch_sizes=None, Tensor? lengths=None, bool reverse=False) -> (Tensor y, "
      "Tensor h_n, Tensor c_n)",
      lstm);
  m.def(
      "lstm_layer(Tensor input, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "
      "Tensor? batch_sizes, Tensor? lengths, bool reverse, bool save_for_backward) -> (Tensor y, Tensor h_n, "
      "Tensor c_n, Tensor gates, Tensor c)");
  m.def(
      "lstm_layer_backward(Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, Tensor input, Tensor h0, Tensor "
      "c0, "
      "Tensor w_ih, Tensor w_hh, Tensor y, Tensor gates, Tensor c, Tensor? batch_sizes, Tensor? lengths, bool "
      "reverse, bool[6] output_mask) -> (Tensor grad_input, Tensor grad_h0, Tensor grad_c0, Tensor grad_w_ih, "
      "Tensor "
      "grad_w_hh, Tensor grad_bias)");
}

// On the CPU alone: no other backend has the recurrence.
TORCH_LIBRARY_IMPL(fastnn, AutocastCPU, m) { m.impl("lstm", lstm_autocast); }
TORCH_LIBRARY_IMPL(fastnn, AutocastCUDA, m) { m.impl("lstm", lstm_autocast); }
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("lstm_layer", lstm_layer);
  m.impl("lstm_layer_backward", lstm_layer_backward);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("lstm_layer", layer_autograd);
  m.impl("lstm_layer_backward", layer_backward_autograd);
}

}  // namespace fastnn::bindings
