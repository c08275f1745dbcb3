// A recurrent layer in one direction over a whole batch of sequences: the dispatcher's ops and autograd.
//
// recurrence -> recurrence_layer -> recurrence_layer_backward where the backend has the recurrence
// (ops/recurrence.h), which is everything that must be done step by step; the products of all steps with W_ih,
// and those of the weights' gradients, are the framework's or, of x, the kernel's own
// (recurrence_layer.cpp). Elsewhere, with a projection, where types differ, and for second and forward
// derivatives, it is the cell stepped over time (recurrence_stepped.cpp), which is differentiable in every way
// that the cell is.
#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>

#include <array>

#include "autocast.h"
#include "backend.h"
#include "lstm_cell.h"
#include "recurrence_kernels.h"

namespace fastnn::bindings {

namespace {

using FourTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
// ---- autograd -----------------------------------------------------------------------------------------------

const auto& layer_op() {
  static const auto op = find_op<decltype(recurrence_layer)>("fastnn::recurrence_layer");
  return op;
}
const auto& layer_backward_op() {
  static const auto op = find_op<decltype(recurrence_layer_backward)>("fastnn::recurrence_layer_backward");
  return op;
}

struct LayerNode final : Node {  // of the kInputs inputs; outputs y, h_n, and of an LSTM c_n and the record
  std::array<SavedVariable, kInputs> inputs;
  SavedVariable zoneout_h, zoneout_c, y, gates, record, normalised, normalised_x, statistics;
  OptionalTensor batch_sizes, lengths;
  bool reverse = false;
  bool record_is_output = false;
  bool is_saved = true;  // whether gates and record were kept: otherwise backward makes them again
  std::vector<int64_t> numbers;

  std::string name() const override { return "FastnnRecurrenceBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(kInputs);
    grads.resize(4);
    if (std::none_of(grads.begin(), grads.end(), [](const at::Tensor& g) { return g.defined(); }))
      return result;
    std::array<at::Tensor, kInputs> t;
    std::array<bool, kInputs> wanted;
    for (size_t i = 0; i < kInputs; ++i) {
      t[i] = inputs[i].unpack();
      wanted[i] = t[i].defined() && task_should_compute_output(i);
    }
    const OptionalTensor d_h = some(zoneout_h.unpack()), d_c = some(zoneout_c.unpack());
    // What fitted forward may fit no more: torch's flags may have changed since.
    if (at::GradMode::is_enabled() || !fits_backward(t, d_h, d_c)) return by_steps(t, d_h, d_c, wanted, grads);
    at::Tensor gates_then, record_then, normalised_then, normalised_x_then, statistics_then;
    if (is_saved) {
      gates_then = gates.unpack(getptr());
      record_then = record.unpack(getptr());
      normalised_then = normalised.unpack(getptr());
      normalised_x_then = normalised_x.unpack(getptr());
      statistics_then = statistics.unpack(getptr());
    } else {
      std::tie(std::ignore, std::ignore, std::ignore, gates_then, record_then, normalised_then,
               normalised_x_then, statistics_then) =
          layer_op().call(t[kInput], t[kH0], some(t[kC0]), some(t[kWih]), t[kWhh], some(t[kBih]), some(t[kBhh]),
                          some(t[kPeephole]), d_h, d_c, some(t[kNormX]), some(t[kNormH]), some(t[kNormCWeight]),
                          some(t[kNormCBias]), batch_sizes, lengths, reverse, record_is_output, true, numbers,
                          false);
    }
    const auto r = layer_backward_op().call(
        some(grads[0]), some(grads[1]), some(grads[2]), some(grads[3]), t[kInput], t[kH0], some(t[kC0]),
        some(t[kWih]), t[kWhh], some(t[kPeephole]), d_h, d_c, some(t[kNormX]), some(t[kNormH]),
        some(t[kNormCWeight]), some(t[kNormCBias]), y.unpack(getptr()), gates_then, record_then,
        normalised_then, normalised_x_then, statistics_then, batch_sizes, lengths, reverse, wanted, numbers);
    const auto& [g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10, g11] = r;
    const at::Tensor* const all[] = {&g0, &g1, &g2, &g3, &g4, &g5, &g6, &g7, &g8, &g9, &g10, &g11};
    for (size_t i = 0; i < kInputs; ++i) result[i] = if_wanted(wanted[i], *all[i]);
    return result;
  }
  void release_variables() override {
    for (SavedVariable& v : inputs) v.reset_data();
    for (SavedVariable* v :
         {&zoneout_h, &zoneout_c, &y, &gates, &record, &normalised, &normalised_x, &statistics})
      v->reset_data();
  }

 private:
  bool fits_backward(const std::array<at::Tensor, kInputs>& t, const OptionalTensor& d_h,
                     const OptionalTensor& d_c) const {
    if (!BackendCall(t[kInput]).runs_cuda_kernels()) return true;
    const RecurrentCell cell =
        cell_of("recurrence_layer", numbers, t[kPeephole].defined(), d_h.has_value(), d_c.has_value());
    return kernels_fit(t[kInput], cell, t[kH0].sym_size(0).guard_int(__FILE__, __LINE__),
                       t[kWhh].sym_size(1).guard_int(__FILE__, __LINE__), /*T=*/1,
                       t[kNormH].defined() || t[kNormCWeight].defined(), true);
  }

  // A gradient that is to be differentiated again: that of the cell stepped over time.
  variable_list by_steps(const std::array<at::Tensor, kInputs>& t, const OptionalTensor& d_h,
                         const OptionalTensor& d_c, const std::array<bool, kInputs>& asked,
                         const variable_list& grads) {
    const bool again = at::GradMode::is_enabled();
    const at::AutoGradMode with_graph(true);
    const Steps steps = steps_of("recurrence_layer", t[kInput], batch_sizes, lengths, reverse);
    const LayerTensors tensors{
        t[kInput],     t[kH0],          some(t[kC0]),    some(t[kWih]),         t[kWhh],
        some(t[kBih]), some(t[kBhh]),   std::nullopt,    some(t[kPeephole]),    d_h,
        d_c,           some(t[kNormX]), some(t[kNormH]), some(t[kNormCWeight]), some(t[kNormCBias]),
        numbers};
    const RecurrentCell cell =
        cell_of("recurrence_layer", numbers, t[kPeephole].defined(), d_h.has_value(), d_c.has_value());
    const SteppedLayer stepped = step_through(tensors, cell, steps, grads[3].defined());
    const int64_t rows = flattened(t[kInput]).size(0);
    auto size = t[kInput].sizes().vec();
    size.back() = t[kH0].size(1);
    variable_list outputs, directions, wanted;
    const std::array<at::Tensor, 4> all{steps.put(stepped.y, rows).view(size), stepped.h_n, stepped.c_n,
                                        stepped.c};
    for (size_t i = 0; i < 4; ++i) {
      if (!grads[i].defined() || !all[i].defined() || !all[i].requires_grad()) continue;
      outputs.push_back(all[i]);
      directions.push_back(i == 3 ? grads[i].narrow(0, 0, steps.rows) : grads[i]);
    }
    std::vector<size_t> places;
    for (size_t i = 0; i < kInputs; ++i) {
      if (!asked[i]) continue;
      wanted.push_back(t[i]);
      places.push_back(i);
    }
    variable_list result(kInputs);
    if (outputs.empty() || wanted.empty()) return result;
    const variable_list found = torch::autograd::grad(outputs, wanted, directions, /*retain_graph=*/again,
                                                      /*create_graph=*/again, /*allow_unused=*/true);
    for (size_t i = 0; i < places.size(); ++i) result[places[i]] = found[i];
    return result;
  }
};

EightTensors layer_autograd(c10::DispatchKeySet keys, const at::Tensor& input, const at::Tensor& h0,
                            const OptionalTensor& c0, const OptionalTensor& w_ih, const at::Tensor& w_hh,
                            const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                            const OptionalTensor& peephole, const OptionalTensor& zoneout_h,
                            const OptionalTensor& zoneout_c, const OptionalTensor& norm_x,
                            const OptionalTensor& norm_h, const OptionalTensor& norm_c_weight,
                            const OptionalTensor& norm_c_bias, const OptionalTensor& batch_sizes,
                            const OptionalTensor& lengths, bool reverse, bool cells, bool save_for_backward,
                            at::IntArrayRef numbers, bool memory_efficient) {
  const auto node = make_node<LayerNode>(input, h0, c0, w_ih, w_hh, b_ih, b_hh, peephole, norm_x, norm_h,
                                         norm_c_weight, norm_c_bias);
  EightTensors result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = layer_op().redispatch(keys & c10::after_autograd_keyset, input, h0, c0, w_ih, w_hh, b_ih, b_hh,
                                   peephole, zoneout_h, zoneout_c, norm_x, norm_h, norm_c_weight, norm_c_bias,
                                   batch_sizes, lengths, reverse, cells,
                                   save_for_backward || (node && !memory_efficient), numbers, memory_efficient);
  }
  const auto& [y, h_n, c_n, gates, record, normalised, normalised_x, statistics] = result;
  if (node) {
    node->inputs = {save(input),         save(h0),         save(c0),       save(w_ih),   save(w_hh),
                    save(b_ih),          save(b_hh),       save(peephole), save(norm_x), save(norm_h),
                    save(norm_c_weight), save(norm_c_bias)};
    node->zoneout_h = save(zoneout_h);
    node->zoneout_c = save(zoneout_c);
    node->batch_sizes = batch_sizes;
    node->lengths = lengths;
    node->reverse = reverse;
    node->numbers = numbers.vec();
    node->record_is_output = c0.has_value() && cells;
    variable_list outputs{y, h_n};
    if (c0.has_value()) outputs.push_back(c_n);
    if (node->record_is_output) outputs.push_back(record);
    torch::autograd::set_history(outputs, node);
    node->y = SavedVariable(y, /*is_output=*/true);
    node->is_saved = !memory_efficient;
    if (node->is_saved) {
      node->gates = save(gates);
      node->record = SavedVariable(record, node->record_is_output);
      node->normalised = save(normalised);
      node->normalised_x = save(normalised_x);
      node->statistics = save(statistics);
    }
  }
  return result;
}

TwelveTensors layer_backward_autograd(
    c10::DispatchKeySet keys, const OptionalTensor& grad_y, const OptionalTensor& grad_h_n,
    const OptionalTensor& grad_c_n, const OptionalTensor& grad_record, const at::Tensor& input,
    const at::Tensor& h0, const OptionalTensor& c0, const OptionalTensor& w_ih, const at::Tensor& w_hh,
    const OptionalTensor& peephole, const OptionalTensor& zoneout_h, const OptionalTensor& zoneout_c,
    const OptionalTensor& norm_x, const OptionalTensor& norm_h, const OptionalTensor& norm_c_weight,
    const OptionalTensor& norm_c_bias, const at::Tensor& y, const at::Tensor& gates, const at::Tensor& record,
    const at::Tensor& normalised, const at::Tensor& normalised_x, const at::Tensor& statistics,
    const OptionalTensor& batch_sizes, const OptionalTensor& lengths, bool reverse,
    std::array<bool, kInputs> output_mask, at::IntArrayRef numbers) {
  TwelveTensors result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = layer_backward_op().redispatch(
        keys & c10::after_autograd_keyset, grad_y, grad_h_n, grad_c_n, grad_record, input, h0, c0, w_ih, w_hh,
        peephole, zoneout_h, zoneout_c, norm_x, norm_h, norm_c_weight, norm_c_bias, y, gates, record,
        normalised, normalised_x, statistics, batch_sizes, lengths, reverse, output_mask, numbers);
  }
  const auto& [g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10, g11] = result;
  forbid_derivative("recurrence_layer_backward", {g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10, g11}, grad_y,
                    grad_h_n, grad_c_n, grad_record, input, h0, c0, w_ih, w_hh, peephole, norm_x, norm_h,
                    norm_c_weight, norm_c_bias, y, gates, record, normalised, normalised_x, statistics);
  return result;
}

// ---- the layer ----------------------------------------------------------------------------------------------

// Whether recurrence_layer serves these tensors: the backend has the recurrence, all are of one type, which
// autocast does not promise, and no derivative is wanted that it has not.
bool has_recurrence(const LayerTensors& t, const RecurrentCell& cell, const Steps* steps) {
  if (!BackendCall::has(t.input, &Backend::recurrence_forward)) return false;
  if (t.w_hr.has_value()) return false;
  constexpr c10::DispatchKeySet kTransformed(
      {c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper});
  const auto fits = [&](const OptionalTensor& x) {
    return !x.has_value() || (x->scalar_type() == t.input.scalar_type() && x->device() == t.input.device() &&
                              !has_tangent(*x) && !x->key_set().has_any(kTransformed));
  };
  for (const OptionalTensor& x :
       {OptionalTensor(t.input), OptionalTensor(t.h0), t.c0, t.w_ih, OptionalTensor(t.w_hh), t.b_ih, t.b_hh,
        t.peephole, t.zoneout_h, t.zoneout_c, t.norm_x, t.norm_h, t.norm_c_weight, t.norm_c_bias}) {
    if (!fits(x)) return false;
  }
  const bool normalises = t.norm_h.has_value() || t.norm_c_weight.has_value();
  const bool backward = at::GradMode::is_enabled();
  if (steps != nullptr) {
    return steps->T > kFewSteps &&
           kernels_fit(t.input, cell, steps->N, t.w_hh.size(1), steps->T, normalises, backward);
  }
  // A traced call is for any number of steps. The sizes on which a GPU's kernels depend are then those of this
  // call.
  if (!BackendCall(t.input).runs_cuda_kernels()) return true;
  return kernels_fit(t.input, cell, t.h0.sym_size(0).guard_int(__FILE__, __LINE__),
                     t.w_hh.sym_size(1).guard_int(__FILE__, __LINE__), kFewSteps + 1, normalises, backward);
}

FourTensors recurrence(const at::Tensor& input, const at::Tensor& h0, const OptionalTensor& c0,
                       const OptionalTensor& w_ih, const at::Tensor& w_hh, const OptionalTensor& b_ih,
                       const OptionalTensor& b_hh, const OptionalTensor& w_hr, const OptionalTensor& peephole,
                       const OptionalTensor& zoneout_h, const OptionalTensor& zoneout_c,
                       const OptionalTensor& norm_x, const OptionalTensor& norm_h,
                       const OptionalTensor& norm_c_weight, const OptionalTensor& norm_c_bias,
                       const OptionalTensor& batch_sizes, const OptionalTensor& given_lengths, bool reverse,
                       bool cells, at::IntArrayRef numbers, bool memory_efficient) {
  static constexpr const char* kOp = "recurrence";
  const LayerTensors t{input,       h0,           c0,        w_ih,      w_hh,   b_ih,   b_hh,
                       w_hr,        peephole,     zoneout_h, zoneout_c, norm_x, norm_h, norm_c_weight,
                       norm_c_bias, numbers.vec()};
  const bool traced = input.key_set().has(c10::DispatchKey::Python);
  // To the host once, where the layer and its backward look at them too.
  const OptionalTensor lengths =
      given_lengths.has_value() && !traced ? some(given_lengths->to(at::kCPU)) : given_lengths;
  const auto by_layer = [&](const RecurrentCell& cell, const Steps* steps) -> FourTensors {
    auto [y, h_n, c_n, gates, record, normalised, normalised_x, statistics] = layer_op().call(
        input, h0, c0, w_ih, w_hh, b_ih, b_hh, peephole, zoneout_h, zoneout_c, norm_x, norm_h, norm_c_weight,
        norm_c_bias, batch_sizes, lengths, reverse, cells, false, numbers, memory_efficient);
    at::Tensor c = absent(input.options());
    if (cells && cell.has_c()) {
      // Rows of a batch that is not dense stand together at the record's beginning.
      if (steps == nullptr && lengths.has_value()) {
        c = put_by_lengths(record, y, *lengths);
      } else {
        c = steps == nullptr || steps->is_dense ? record
                                                : steps->put(record.narrow(0, 0, steps->rows), record.size(0));
        c = c.view_symint(y.sym_sizes());
      }
    }
    return {y, h_n, c_n, c};
  };
  if (traced) {
    const RecurrentCell cell =
        cell_of(kOp, numbers, peephole.has_value(), zoneout_h.has_value(), zoneout_c.has_value());
    if (has_recurrence(t, cell, nullptr)) return by_layer(cell, nullptr);
  }
  const Steps steps = steps_of(kOp, input, batch_sizes, lengths, reverse);
  const RecurrentCell cell = checked_cell(kOp, t, steps);
  if (has_recurrence(t, cell, &steps)) return by_layer(cell, &steps);
  const SteppedLayer s = step_through(t, cell, steps, cells);
  const auto by_caller = [&](const at::Tensor& rows) {
    auto size = input.sizes().vec();
    size.back() = rows.size(1);
    return steps.put(rows, flattened(input).size(0)).view(size);
  };
  return {by_caller(s.y), s.h_n, s.c_n.defined() ? s.c_n : absent(input.options()),
          s.c.defined() ? by_caller(s.c) : absent(input.options())};
}

// Autocast casts every tensor of a layer, as it does for torch's own.
FourTensors recurrence_autocast(const at::Tensor& input, const at::Tensor& h0, const OptionalTensor& c0,
                                const OptionalTensor& w_ih, const at::Tensor& w_hh, const OptionalTensor& b_ih,
                                const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                                const OptionalTensor& peephole, const OptionalTensor& zoneout_h,
                                const OptionalTensor& zoneout_c, const OptionalTensor& norm_x,
                                const OptionalTensor& norm_h, const OptionalTensor& norm_c_weight,
                                const OptionalTensor& norm_c_bias, const OptionalTensor& batch_sizes,
                                const OptionalTensor& lengths, bool reverse, bool cells,
                                at::IntArrayRef numbers, bool memory_efficient) {
  const Autocast cast(input);
  static const auto op = find_op<decltype(recurrence)>("fastnn::recurrence");
  return op.call(cast(input), cast(h0), cast(c0), cast(w_ih), cast(w_hh), cast(b_ih), cast(b_hh), cast(w_hr),
                 cast(peephole), cast(zoneout_h), cast(zoneout_c), cast(norm_x), cast(norm_h),
                 cast(norm_c_weight), cast(norm_c_bias), batch_sizes, lengths, reverse, cells, numbers,
                 memory_efficient);
}

}  // namespace

// ---- registration -------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "recurrence(Tensor input, Tensor h0, Tensor? c0, Tensor? w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "
      "Tensor? w_hr, Tensor? peephole, Tensor? zoneout_h, Tensor? zoneout_c, Tensor? norm_x, Tensor? norm_h, "
      "Tensor? norm_c_weight, Tensor? norm_c_bias, Tensor? batch_sizes, Tensor? lengths, bool reverse, "
      "bool cells, int[] cell, bool memory_efficient=False) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor c)",
      recurrence);
  m.def(
      "recurrence_layer(Tensor input, Tensor h0, Tensor? c0, Tensor? w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, Tensor? peephole, Tensor? zoneout_h, Tensor? zoneout_c, Tensor? norm_x, Tensor? norm_h, "
      "Tensor? norm_c_weight, Tensor? norm_c_bias, Tensor? batch_sizes, Tensor? lengths, bool reverse, "
      "bool cells, bool save_for_backward, int[] cell, bool memory_efficient=False) -> (Tensor y, Tensor h_n, "
      "Tensor c_n, Tensor gates, Tensor record, Tensor normalised, Tensor normalised_x, Tensor statistics)");
  m.def(
      "recurrence_layer_backward(Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_record, "
      "Tensor input, Tensor h0, Tensor? c0, Tensor? w_ih, Tensor w_hh, Tensor? peephole, Tensor? zoneout_h, "
      "Tensor? zoneout_c, Tensor? norm_x, Tensor? norm_h, Tensor? norm_c_weight, Tensor? norm_c_bias, "
      "Tensor y, Tensor gates, Tensor record, Tensor normalised, Tensor normalised_x, Tensor statistics, "
      "Tensor? batch_sizes, Tensor? lengths, "
      "bool reverse, bool[12] output_mask, int[] cell) -> (Tensor grad_input, Tensor grad_h0, Tensor grad_c0, "
      "Tensor grad_w_ih, Tensor grad_w_hh, Tensor grad_b_ih, Tensor grad_b_hh, Tensor grad_peephole, "
      "Tensor grad_norm_x, Tensor grad_norm_h, Tensor grad_norm_c_weight, Tensor grad_norm_c_bias)");
}

TORCH_LIBRARY_IMPL(fastnn, AutocastCPU, m) { m.impl("recurrence", recurrence_autocast); }
TORCH_LIBRARY_IMPL(fastnn, AutocastCUDA, m) { m.impl("recurrence", recurrence_autocast); }
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("recurrence_layer", recurrence_layer);
  m.impl("recurrence_layer_backward", recurrence_layer_backward);
}
TORCH_LIBRARY_IMPL(fastnn, CUDA, m) {
  m.impl("recurrence_layer", recurrence_layer);
  m.impl("recurrence_layer_backward", recurrence_layer_backward);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("recurrence_layer", layer_autograd);
  m.impl("recurrence_layer_backward", layer_backward_autograd);
}

}  // namespace fastnn::bindings
