// A recurrent cell after its matrix products: the dispatcher's ops, their checks and autograd.
//
// recurrent_cell_pointwise -> _backward -> _double_backward. Backward is the gradient of a scalar function, so
// its Jacobian is symmetric: the double backward gives the tangents of both other ops too, and forward mode
// needs no kernels of its own.
#include "recurrent_cell.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>
#include <vector>

#include "backend.h"
#include "lstm_cell.h"
#include "tensors.h"

namespace fastnn::bindings {

RecurrentCell cell_of(const char* op, at::IntArrayRef numbers, bool peephole, bool zoneout_h, bool zoneout_c) {
  TORCH_CHECK(numbers.size() == 9, op, ": cell must be 9 numbers, got ", numbers.size());
  TORCH_CHECK(numbers[0] >= 0 && numbers[0] <= 3, op, ": cell's kind must be from 0 to 3, got ", numbers[0]);
  for (size_t k = 1; k < 4; ++k) {
    TORCH_CHECK(numbers[k] >= 0 && numbers[k] < kGateActivations, op, ": cell's activations must be from 0 to ",
                kGateActivations - 1, ", got ", numbers[k]);
  }
  RecurrentCell cell;
  cell.kind = static_cast<CellKind>(numbers[0]);
  cell.gate = static_cast<GateActivation>(numbers[1]);
  cell.candidate = static_cast<GateActivation>(numbers[2]);
  cell.output = static_cast<GateActivation>(numbers[3]);
  cell.coupled = numbers[4] != 0;
  cell.peephole_previous = numbers[5] != 0;
  cell.z_takes = numbers[6] != 0;
  cell.z_sees_h = numbers[7] != 0;
  cell.z_sees_tanh_h = numbers[8] != 0;
  cell.peephole = peephole;
  cell.zoneout_h = zoneout_h;
  cell.zoneout_c = zoneout_c;
  TORCH_CHECK(cell.kind == CellKind::kLstm || (!cell.coupled && !peephole && !zoneout_c), op,
              ": coupled gates, peepholes and zoneout of c are an LSTM's");
  return cell;
}

namespace {

constexpr size_t kTensors = 5;  // differentiable: a, u, c, h, peephole
using Tensors = std::array<OptionalTensor, kTensors>;
using SevenTensors =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
constexpr size_t kA = 0, kU = 1, kC = 2, kH = 3, kPeephole = 4, kShareH = 5, kShareC = 6;

// Where an input of a stage lies: a block of one of the tensors.
struct Place {
  int input;
  size_t tensor;
  int64_t block;
};

std::vector<Place> places_of(CellStage stage, const RecurrentCell& cell) {
  switch (stage) {
    case CellStage::kLstm: {
      std::vector<Place> places;
      const int skipped = cell.coupled ? 1 : 0;
      for (int k = skipped; k < 4; ++k) places.push_back({k, kA, k - skipped});
      places.push_back({4, kC, 0});
      for (int k = skipped; k < 3; ++k) places.push_back({5 + k, kPeephole, k - skipped});
      places.insert(places.end(), {{8, kH, 0}, {9, kShareH, 0}, {10, kShareC, 0}});
      return places;
    }
    case CellStage::kGru:
      return {{0, kA, 0}, {1, kA, 1}, {2, kA, 2}, {3, kU, 0},
              {4, kU, 1}, {5, kU, 2}, {6, kH, 0}, {7, kShareH, 0}};
    case CellStage::kRnn:
      return {{0, kA, 0}, {1, kH, 0}, {2, kShareH, 0}};
    case CellStage::kReset:
      return {{0, kA, 0}, {1, kA, 1}, {2, kH, 0}};
    case CellStage::kBlend:
      break;
  }
  return {{0, kA, 0}, {1, kC, 0}, {2, kH, 0}, {3, kShareH, 0}};
}

bool has_second_output(CellStage stage) { return stage == CellStage::kLstm || stage == CellStage::kReset; }

// The tensors of a call, checked and dense. It owns them: the parameters only point.
class CellCall {
 public:
  CellCall(const char* op, const Tensors& tensors, const OptionalTensor& d_h, const OptionalTensor& d_c,
           int64_t stage, at::IntArrayRef cell)
      : op_(op), call_(*tensors[kA]), like_(*tensors[kA]) {
    TORCH_CHECK(stage >= 0 && stage <= static_cast<int64_t>(CellStage::kBlend), op, ": no stage ", stage);
    in_.stage = static_cast<CellStage>(stage);
    in_.cell = cell_of(op, cell, tensors[kPeephole].has_value(), d_h.has_value(), d_c.has_value());
    in_.dtype = dtype_of(op, "a", like_);
    places_ = places_of(in_.stage, in_.cell);
    for (const Place& p : places_) blocks_[p.tensor] = std::max(blocks_[p.tensor], p.block + 1);
    TORCH_CHECK(like_.dim() == 2 && like_.size(1) % blocks_[kA] == 0, op, ": a must be [N, ", blocks_[kA],
                " * H], got ", like_.sizes());
    in_.N = like_.size(0);
    in_.H = like_.size(1) / blocks_[kA];
    for (size_t i = 0; i < kTensors; ++i) {
      shapes_[i] = i == kPeephole ? std::vector<int64_t>{blocks_[i], in_.H}
                                  : std::vector<int64_t>{in_.N, blocks_[i] * in_.H};
    }
    place_inputs(in_.in, tensors);
    place_share(d_h, kShareH);
    place_share(d_c, kShareC);
  }

  const RecurrentCellInputs& in() const { return in_; }
  BackendCall& call() { return call_; }
  bool is_empty() const { return in_.N * in_.H == 0; }

  // Blocks of gradients or directions of the inputs, by the inputs' places.
  void place_inputs(CellBlock* blocks, const Tensors& tensors) {
    std::array<const void*, kTensors> data{};
    for (size_t i = 0; i < kTensors; ++i) data[i] = take(tensors[i], shapes_[i]);
    for (const Place& p : places_) {
      if (p.tensor >= kTensors || data[p.tensor] == nullptr) continue;
      const int64_t pitch = p.tensor == kPeephole ? 0 : blocks_[p.tensor] * in_.H;
      blocks[p.input] = {at(data[p.tensor], p.block), pitch};
    }
  }
  // Blocks of the two outputs, or of their gradients.
  void place_outputs(CellBlock* blocks, const OptionalTensor& first, const OptionalTensor& second) {
    const std::vector<int64_t> shape{in_.N, in_.H};
    blocks[0] = {take(first, shape), in_.H};
    if (has_second_output(in_.stage)) blocks[1] = {take(second, shape), in_.H};
  }
  at::Tensor make_output(CellOutputBlock* block, bool wanted) {
    if (!wanted) return absent(like_.options());
    at::Tensor t = at::empty({in_.N, in_.H}, like_.options());
    *block = {call_.output(t), in_.H};
    return t;
  }
  // Tensors for gradients of the inputs; that of the peepholes has a row for each of a's.
  std::array<at::Tensor, kTensors> make_inputs(CellOutputBlock* blocks, const bool* wanted) {
    std::array<at::Tensor, kTensors> made;
    std::array<void*, kTensors> data{};
    for (size_t i = 0; i < kTensors; ++i) {
      const bool exists = wanted[i] && blocks_[i] > 0;
      made[i] = exists ? at::empty({in_.N, blocks_[i] * in_.H}, like_.options()) : absent(like_.options());
      if (exists) data[i] = call_.output(made[i]);
    }
    for (const Place& p : places_) {
      if (p.tensor >= kTensors || data[p.tensor] == nullptr) continue;
      blocks[p.input] = {static_cast<char*>(data[p.tensor]) + p.block * in_.H * like_.element_size(),
                         blocks_[p.tensor] * in_.H};
    }
    return made;
  }
  at::Tensor sum_of_rows(const at::Tensor& peephole) const {
    return peephole.dim() == 1 ? peephole : peephole.sum(0).view(shapes_[kPeephole]);
  }

 private:
  const void* at(const void* data, int64_t block) const {
    return static_cast<const char*>(data) + block * in_.H * like_.element_size();
  }
  const void* take(const OptionalTensor& t, at::IntArrayRef shape) {
    if (!t.has_value()) return nullptr;
    TORCH_CHECK(t->sizes() == shape, op_, ": expected a tensor of shape ", shape, ", got ", t->sizes());
    TORCH_CHECK(t->scalar_type() == like_.scalar_type() && t->device() == like_.device(), op_,
                ": tensors must have the dtype and device of a, ", like_.scalar_type(), " on ", like_.device(),
                ", got ", t->scalar_type(), " on ", t->device());
    kept_.push_back(t->contiguous());
    return call_.data(kept_.back());
  }
  void place_share(const OptionalTensor& d, size_t tensor) {
    if (!d.has_value()) return;
    const std::vector<int64_t> shape =
        d->dim() == 1 ? std::vector<int64_t>{in_.H} : std::vector<int64_t>{in_.N, in_.H};
    const void* const data = take(d, shape);
    for (const Place& p : places_) {
      if (p.tensor == tensor) in_.in[p.input] = {data, d->dim() == 1 ? 0 : in_.H};
    }
  }

  const char* const op_;
  BackendCall call_;
  const at::Tensor like_;
  RecurrentCellInputs in_;
  std::vector<Place> places_;
  std::array<int64_t, 7> blocks_{};
  std::array<std::vector<int64_t>, kTensors> shapes_;
  std::vector<at::Tensor> kept_;
};

// ---- kernels ------------------------------------------------------------------------------------------------

TwoTensors forward(const at::Tensor& a, const OptionalTensor& u, const OptionalTensor& c,
                   const OptionalTensor& h, const OptionalTensor& peephole, const OptionalTensor& d_h,
                   const OptionalTensor& d_c, int64_t stage, at::IntArrayRef cell) {
  CellCall call("recurrent_cell", {a, u, c, h, peephole}, d_h, d_c, stage, cell);
  RecurrentCellForwardParams p{call.in(), {}};
  const at::Tensor first = call.make_output(&p.out[0], true);
  const at::Tensor second = call.make_output(&p.out[1], has_second_output(p.in.stage));
  if (!call.is_empty()) call.call()(&Backend::recurrent_cell_forward, p);
  return {first, second};
}

FiveTensors backward(const OptionalTensor& grad_first, const OptionalTensor& grad_second, const at::Tensor& a,
                     const OptionalTensor& u, const OptionalTensor& c, const OptionalTensor& h,
                     const OptionalTensor& peephole, const OptionalTensor& d_h, const OptionalTensor& d_c,
                     int64_t stage, at::IntArrayRef cell, std::array<bool, 5> output_mask) {
  CellCall call("recurrent_cell_backward", {a, u, c, h, peephole}, d_h, d_c, stage, cell);
  RecurrentCellBackwardParams p{call.in(), {}, {}};
  call.place_outputs(p.grad_out, grad_first, grad_second);
  const auto made = call.make_inputs(p.grad_in, output_mask.data());
  if (!call.is_empty()) call.call()(&Backend::recurrent_cell_backward, p);
  return {made[0], made[1], made[2], made[3], call.sum_of_rows(made[4])};
}

SevenTensors double_backward(const OptionalTensor& gg_a, const OptionalTensor& gg_u, const OptionalTensor& gg_c,
                             const OptionalTensor& gg_h, const OptionalTensor& gg_peephole,
                             const OptionalTensor& grad_first, const OptionalTensor& grad_second,
                             const at::Tensor& a, const OptionalTensor& u, const OptionalTensor& c,
                             const OptionalTensor& h, const OptionalTensor& peephole, const OptionalTensor& d_h,
                             const OptionalTensor& d_c, int64_t stage, at::IntArrayRef cell,
                             std::array<bool, 7> output_mask) {
  CellCall call("recurrent_cell_double_backward", {a, u, c, h, peephole}, d_h, d_c, stage, cell);
  RecurrentCellDoubleBackwardParams p{call.in(), {}, {}, {}, {}};
  call.place_outputs(p.grad_out, grad_first, grad_second);
  call.place_inputs(p.direction, {gg_a, gg_u, gg_c, gg_h, gg_peephole});
  const at::Tensor d_first = call.make_output(&p.d_grad_out[0], output_mask[0]);
  const at::Tensor d_second =
      call.make_output(&p.d_grad_out[1], output_mask[1] && has_second_output(p.in.stage));
  const auto made = call.make_inputs(p.d_in, output_mask.data() + 2);
  if (!call.is_empty()) call.call()(&Backend::recurrent_cell_double_backward, p);
  return {d_first, d_second, made[0], made[1], made[2], made[3], call.sum_of_rows(made[4])};
}

// ---- autograd -----------------------------------------------------------------------------------------------

const auto& forward_op() {
  static const auto op = find_op<decltype(forward)>("fastnn::recurrent_cell_pointwise");
  return op;
}
const auto& backward_op() {
  static const auto op = find_op<decltype(backward)>("fastnn::recurrent_cell_pointwise_backward");
  return op;
}
const auto& double_backward_op() {
  static const auto op = find_op<decltype(double_backward)>("fastnn::recurrent_cell_pointwise_double_backward");
  return op;
}

// What both nodes hold: the inputs of the cell.
struct CellNode : Node {
  std::array<SavedVariable, 7> inputs;
  int64_t stage = 0;
  std::vector<int64_t> cell;
  void keep(const std::array<OptionalTensor, 7>& tensors, int64_t of_stage, at::IntArrayRef numbers) {
    for (size_t i = 0; i < 7; ++i) inputs[i] = save(tensors[i]);
    stage = of_stage;
    cell = numbers.vec();
  }
  std::array<OptionalTensor, 7> unpack() {
    std::array<OptionalTensor, 7> t;
    for (size_t i = 0; i < 7; ++i) t[i] = some(inputs[i].unpack());
    return t;
  }
  void release_variables() override {
    for (SavedVariable& v : inputs) v.reset_data();
  }
};

struct PointwiseNode final : CellNode {  // of (a, u, c, h, peephole)
  std::string name() const override { return "FastnnRecurrentCellBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(kTensors);
    grads.resize(2);
    if (!grads[0].defined() && !grads[1].defined()) return result;
    const auto t = unpack();
    std::array<bool, 5> wanted;
    for (size_t i = 0; i < 5; ++i) wanted[i] = t[i].has_value() && task_should_compute_output(i);
    const auto [ga, gu, gc, gh, gp] = backward_op().call(some(grads[0]), some(grads[1]), *t[0], t[1], t[2],
                                                         t[3], t[4], t[5], t[6], stage, cell, wanted);
    const at::Tensor* const all[] = {&ga, &gu, &gc, &gh, &gp};
    for (size_t i = 0; i < 5; ++i) result[i] = if_wanted(wanted[i], *all[i]);
    return result;
  }
};

struct PointwiseBackwardNode final : CellNode {  // of (grad_first, grad_second, a, u, c, h, peephole)
  std::array<SavedVariable, 2> grad_out;
  std::array<bool, 5> made{};  // which outputs were asked for: only those have gradients
  std::string name() const override { return "FastnnRecurrentCellBackwardBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(7);
    bool any = false;
    for (size_t i = 0; i < 5; ++i) {
      grads[i] = if_wanted(made[i], grads[i]);
      any = any || grads[i].defined();
    }
    if (!any) return result;
    const auto t = unpack();
    const OptionalTensor first = some(grad_out[0].unpack()), second = some(grad_out[1].unpack());
    std::array<bool, 7> wanted;
    for (size_t i = 0; i < 7; ++i) wanted[i] = task_should_compute_output(i);
    const auto [d0, d1, da, du, dc, dh, dp] = double_backward_op().call(
        some(grads[0]), some(grads[1]), some(grads[2]), some(grads[3]), some(grads[4]), first, second, *t[0],
        t[1], t[2], t[3], t[4], t[5], t[6], stage, cell, wanted);
    const at::Tensor* const all[] = {&d0, &d1, &da, &du, &dc, &dh, &dp};
    for (size_t i = 0; i < 7; ++i) result[i] = if_wanted(wanted[i], *all[i]);
    return result;
  }
  void release_variables() override {
    CellNode::release_variables();
    for (SavedVariable& v : grad_out) v.reset_data();
  }
};

TwoTensors forward_autograd(c10::DispatchKeySet keys, const at::Tensor& a, const OptionalTensor& u,
                            const OptionalTensor& c, const OptionalTensor& h, const OptionalTensor& peephole,
                            const OptionalTensor& d_h, const OptionalTensor& d_c, int64_t stage,
                            at::IntArrayRef cell) {
  const auto node = make_node<PointwiseNode>(a, u, c, h, peephole);
  if (node) node->keep({a, u, c, h, peephole, d_h, d_c}, stage, cell);
  TwoTensors result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result =
        forward_op().redispatch(keys & c10::after_autograd_keyset, a, u, c, h, peephole, d_h, d_c, stage, cell);
  }
  const bool two = has_second_output(static_cast<CellStage>(stage));
  if (node) {
    variable_list outputs{std::get<0>(result)};
    if (two) outputs.push_back(std::get<1>(result));
    torch::autograd::set_history(outputs, node);
  }
  if (any_tangent(a, u, c, h, peephole)) {
    const auto tangents = double_backward_op().call(
        some(tangent(a)), tangent(u), tangent(c), tangent(h), tangent(peephole), std::nullopt, std::nullopt,
        primal(a), primal(u), primal(c), primal(h), primal(peephole), d_h, d_c, stage, cell,
        {true, two, false, false, false, false, false});
    set_tangent(std::get<0>(result), std::get<0>(tangents));
    if (two) set_tangent(std::get<1>(result), std::get<1>(tangents));
  }
  return result;
}

FiveTensors backward_autograd(c10::DispatchKeySet keys, const OptionalTensor& grad_first,
                              const OptionalTensor& grad_second, const at::Tensor& a, const OptionalTensor& u,
                              const OptionalTensor& c, const OptionalTensor& h, const OptionalTensor& peephole,
                              const OptionalTensor& d_h, const OptionalTensor& d_c, int64_t stage,
                              at::IntArrayRef cell, std::array<bool, 5> output_mask) {
  const auto node = make_node<PointwiseBackwardNode>(grad_first, grad_second, a, u, c, h, peephole);
  if (node) {
    node->keep({a, u, c, h, peephole, d_h, d_c}, stage, cell);
    node->grad_out = {save(grad_first), save(grad_second)};
    node->made = output_mask;
  }
  FiveTensors result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = backward_op().redispatch(keys & c10::after_autograd_keyset, grad_first, grad_second, a, u, c, h,
                                      peephole, d_h, d_c, stage, cell, output_mask);
  }
  auto& [ga, gu, gc, gh, gp] = result;
  if (node) torch::autograd::set_history({ga, gu, gc, gh, gp}, node);
  if (any_tangent(grad_first, grad_second, a, u, c, h, peephole)) {
    std::array<at::Tensor, 5> t;
    if (any_tangent(grad_first, grad_second)) {
      std::tie(t[0], t[1], t[2], t[3], t[4]) =
          backward_op().call(tangent(grad_first), tangent(grad_second), primal(a), primal(u), primal(c),
                             primal(h), primal(peephole), d_h, d_c, stage, cell, output_mask);
    }
    if (any_tangent(a, u, c, h, peephole)) {
      const auto d = double_backward_op().call(
          some(tangent(a)), tangent(u), tangent(c), tangent(h), tangent(peephole), primal(grad_first),
          primal(grad_second), primal(a), primal(u), primal(c), primal(h), primal(peephole), d_h, d_c, stage,
          cell, {false, false, output_mask[0], output_mask[1], output_mask[2], output_mask[3], output_mask[4]});
      const at::Tensor* const all[] = {&std::get<2>(d), &std::get<3>(d), &std::get<4>(d), &std::get<5>(d),
                                       &std::get<6>(d)};
      for (size_t i = 0; i < 5; ++i) t[i] = sum_of(t[i], *all[i]);
    }
    const at::Tensor* const outputs[] = {&ga, &gu, &gc, &gh, &gp};
    for (size_t i = 0; i < 5; ++i) {
      if (output_mask[i]) set_tangent(*outputs[i], t[i]);
    }
  }
  return result;
}

SevenTensors double_backward_autograd(c10::DispatchKeySet keys, const OptionalTensor& gg_a,
                                      const OptionalTensor& gg_u, const OptionalTensor& gg_c,
                                      const OptionalTensor& gg_h, const OptionalTensor& gg_peephole,
                                      const OptionalTensor& grad_first, const OptionalTensor& grad_second,
                                      const at::Tensor& a, const OptionalTensor& u, const OptionalTensor& c,
                                      const OptionalTensor& h, const OptionalTensor& peephole,
                                      const OptionalTensor& d_h, const OptionalTensor& d_c, int64_t stage,
                                      at::IntArrayRef cell, std::array<bool, 7> output_mask) {
  SevenTensors result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = double_backward_op().redispatch(keys & c10::after_autograd_keyset, gg_a, gg_u, gg_c, gg_h,
                                             gg_peephole, grad_first, grad_second, a, u, c, h, peephole, d_h,
                                             d_c, stage, cell, output_mask);
  }
  const auto& [d0, d1, da, du, dc, dh, dp] = result;
  forbid_derivative("recurrent_cell_pointwise_double_backward", {d0, d1, da, du, dc, dh, dp}, gg_a, gg_u, gg_c,
                    gg_h, gg_peephole, grad_first, grad_second, a, u, c, h, peephole);
  return result;
}

void register_kernels(torch::Library& m) {
  m.impl("recurrent_cell_pointwise", forward);
  m.impl("recurrent_cell_pointwise_backward", backward);
  m.impl("recurrent_cell_pointwise_double_backward", double_backward);
}

}  // namespace

TwoTensors recurrent_cell(const at::Tensor& a, const OptionalTensor& u, const OptionalTensor& c,
                          const OptionalTensor& h, const OptionalTensor& peephole, const OptionalTensor& d_h,
                          const OptionalTensor& d_c, CellStage stage, at::IntArrayRef cell) {
  return forward_op().call(a, u, c, h, peephole, d_h, d_c, static_cast<int64_t>(stage), cell);
}

// ---- registration -------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "recurrent_cell_pointwise(Tensor a, Tensor? u, Tensor? c, Tensor? h, Tensor? peephole, Tensor? d_h, "
      "Tensor? "
      "d_c, int stage, int[] cell) -> (Tensor first, Tensor second)");
  m.def(
      "recurrent_cell_pointwise_backward(Tensor? grad_first, Tensor? grad_second, Tensor a, Tensor? u, Tensor? "
      "c, "
      "Tensor? h, Tensor? peephole, Tensor? d_h, Tensor? d_c, int stage, int[] cell, bool[5] output_mask) -> "
      "(Tensor grad_a, Tensor grad_u, Tensor grad_c, Tensor grad_h, Tensor grad_peephole)");
  m.def(
      "recurrent_cell_pointwise_double_backward(Tensor? gg_a, Tensor? gg_u, Tensor? gg_c, Tensor? gg_h, "
      "Tensor? "
      "gg_peephole, Tensor? grad_first, Tensor? grad_second, Tensor a, Tensor? u, Tensor? c, Tensor? h, "
      "Tensor? "
      "peephole, Tensor? d_h, Tensor? d_c, int stage, int[] cell, bool[7] output_mask) -> (Tensor "
      "d_grad_first, "
      "Tensor d_grad_second, Tensor d_a, Tensor d_u, Tensor d_c, Tensor d_h, Tensor d_peephole)");
}

TORCH_LIBRARY_IMPL(fastnn, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, CUDA, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("recurrent_cell_pointwise", forward_autograd);
  m.impl("recurrent_cell_pointwise_backward", backward_autograd);
  m.impl("recurrent_cell_pointwise_double_backward", double_backward_autograd);
}

}  // namespace fastnn::bindings
