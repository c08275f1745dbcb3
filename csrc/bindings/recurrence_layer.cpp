#include "recurrence_layer.h"

#include "backend.h"
#include "tensors.h"

namespace fastnn::bindings {

// ---- checks -------------------------------------------------------------------------------------------------

RecurrentCell checked_cell(const char* op, const LayerTensors& t, const Steps& steps) {
  const RecurrentCell cell =
      cell_of(op, t.numbers, t.peephole.has_value(), t.zoneout_h.has_value(), t.zoneout_c.has_value());
  const int64_t G = cell.gates(), R = cell.recurrent_blocks();
  const auto expect = [&](const char* name, const at::Tensor& value, at::IntArrayRef size) {
    TORCH_CHECK(value.sizes() == size, op, ": ", name, " must have shape ", size, ", got ", value.sizes());
    TORCH_CHECK(value.device() == t.input.device(), op, ": ", name, " must be on input's device ",
                t.input.device(), ", got ", value.device());
  };
  TORCH_CHECK(t.w_hh.dim() == 2 && t.w_hh.size(0) % R == 0, op, ": w_hh must be [", R,
              " * hidden_size, hidden_size], got ", t.w_hh.sizes());
  const int64_t H = t.w_hh.size(0) / R, P = t.w_hr.has_value() ? t.w_hr->size(0) : H, I = t.input.size(-1);
  if (t.w_ih.has_value()) {
    expect("w_ih", *t.w_ih, {G * H, I});
  } else {
    TORCH_CHECK(I == G * H, op, ": without w_ih input must have ", G, " * hidden_size = ", G * H,
                " columns, got ", I);
    TORCH_CHECK(!t.b_ih.has_value() && (!t.b_hh.has_value() || cell.kind == CellKind::kGru), op,
                ": without w_ih input has the biases too");
  }
  expect("w_hh", t.w_hh, {R * H, P});
  expect("h0", t.h0, {steps.N, P});
  TORCH_CHECK(t.c0.has_value() == cell.has_c(), op, ": c0 must ", cell.has_c() ? "" : "not ", "be given");
  if (t.c0.has_value()) expect("c0", *t.c0, {steps.N, H});
  if (t.b_ih.has_value()) expect("b_ih", *t.b_ih, {G * H});
  if (t.b_hh.has_value()) expect("b_hh", *t.b_hh, {G * H});
  TORCH_CHECK(!t.w_hr.has_value() || cell.has_c(), op, ": w_hr is an LSTM's");
  if (t.w_hr.has_value()) expect("w_hr", *t.w_hr, {P, H});
  if (t.peephole.has_value()) expect("peephole", *t.peephole, {cell.coupled ? 2 : 3, H});
  TORCH_CHECK(cell.has_c() || !(t.norm_h.has_value() || t.norm_c_weight.has_value()), op,
              ": normalised gates are an LSTM's");
  TORCH_CHECK(!t.norm_x.has_value() || (cell.has_c() && t.w_ih.has_value()), op,
              ": norm_x is of an LSTM's products with w_ih");
  if (t.norm_x.has_value()) expect("norm_x", *t.norm_x, {G * H});
  if (t.norm_h.has_value()) expect("norm_h", *t.norm_h, {G * H});
  if (t.norm_c_weight.has_value()) expect("norm_c_weight", *t.norm_c_weight, {H});
  if (t.norm_c_bias.has_value()) expect("norm_c_bias", *t.norm_c_bias, {H});
  const auto expect_shares = [&](const char* name, const OptionalTensor& d, int64_t width) {
    if (!d.has_value()) return;
    auto size = t.input.sizes().vec();
    size.back() = width;
    expect(name, *d, d->dim() == 1 ? std::vector<int64_t>{width} : size);
  };
  expect_shares("zoneout_h", t.zoneout_h, P);
  expect_shares("zoneout_c", t.zoneout_c, H);
  return cell;
}

namespace {

// Kernels take tensors of one type.
void check_types(const char* op, const LayerTensors& t) {
  for (const OptionalTensor& x :
       {OptionalTensor(t.h0), t.c0, t.w_ih, OptionalTensor(t.w_hh), t.b_ih, t.b_hh, t.peephole, t.zoneout_h,
        t.zoneout_c, t.norm_x, t.norm_h, t.norm_c_weight, t.norm_c_bias}) {
    TORCH_CHECK(!x.has_value() || x->scalar_type() == t.input.scalar_type(), op,
                ": tensors must have input's dtype ", t.input.scalar_type(), ", got ",
                x.has_value() ? x->scalar_type() : t.input.scalar_type());
  }
}

// ---- kernels ------------------------------------------------------------------------------------------------

// Rows of d, or the one of all, for kernels; `keep` owns them.
CellBlock share_block(BackendCall& call, const Steps& steps, const OptionalTensor& d, at::Tensor& keep) {
  if (!d.has_value()) return {};
  keep = d->dim() == 1 ? d->contiguous() : steps.take(flattened(*d)).contiguous();
  return {call.data(keep), d->dim() == 1 ? 0 : keep.size(1)};
}

// An LSTM's gains and biases, dense.
struct DenseNorm {
  DenseNorm(BackendCall& call, const OptionalTensor& x_weight, const OptionalTensor& h_weight,
            const OptionalTensor& c_weight, const OptionalTensor& c_bias) {
    const auto take = [&](const OptionalTensor& t, at::Tensor& keep) -> const void* {
      if (!t.has_value()) return nullptr;
      keep = t->contiguous();
      return call.data(keep);
    };
    data = {take(x_weight, kept[0]), take(h_weight, kept[1]), take(c_weight, kept[2]), take(c_bias, kept[3])};
  }
  at::Tensor kept[4];
  CellNorm data;
};

// What the gates have besides x's product; undefined for nothing. Of a GRU the bias of u_n stays out of it.
at::Tensor bias_of_gates(const RecurrentCell& cell, const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                         int64_t H) {
  if (cell.kind != CellKind::kGru || !b_hh.has_value()) {
    return sum_of(value_or_undefined(b_ih), value_or_undefined(b_hh));
  }
  at::Tensor bias = b_ih.has_value() ? b_ih->clone() : at::zeros_like(*b_hh);
  bias.narrow(0, 0, 2 * H).add_(b_hh->narrow(0, 0, 2 * H));
  return bias;
}

// The sizes of a recurrence, as a question to the backend.
RecurrenceFitsParams question(const BackendCall& call, const at::Tensor& input, const RecurrentCell& cell,
                              int64_t N, int64_t H, int64_t T, bool normalised) {
  RecurrenceFitsParams p{};
  p.in.cell = cell;
  p.in.dtype = dtype_of("recurrence", "input", input);
  p.in.N = N;
  p.in.H = H;
  p.in.T = T;
  p.in.allow_tf32 = tf32_is_allowed(call, input);
  p.normalised = normalised;
  return p;
}

// Whether forward wants x and W_ih, and not their product.
bool kernel_multiplies_x(const at::Tensor& input, const RecurrentCell& cell, int64_t N, int64_t H, int64_t T,
                         bool normalised, bool normalised_x) {
  BackendCall call(input);
  RecurrenceFitsParams p = question(call, input, cell, N, H, T, normalised);
  p.normalised_x = normalised_x;
  bool multiplies = false;
  p.multiplies_x = &multiplies;
  call(&Backend::recurrence_fits, p);
  return multiplies;
}

// Where the kernel does not multiply x: gates = gain * norm(products) + bias, and, where they are kept, what
// the norm gave and its scales.
void normalise_x(const at::Tensor& products, const at::Tensor& gain, const at::Tensor& bias, at::Tensor& gates,
                 at::Tensor& kept, at::Tensor& statistics) {
  const auto [made, mean, scale] = at::native_layer_norm(products, {products.size(1)}, {}, {}, kCellNormEps);
  at::mul_out(gates, made, gain);
  if (bias.defined()) gates.add_(bias);
  if (kept.numel() == 0) return;
  kept.narrow(0, 0, made.size(0)).copy_(made);
  statistics.narrow(0, 0, made.size(0)).select(1, kCellStatistics - 1).copy_(scale.view(-1));
}

// The way back: gradients of the products, the gain and the bias. What was normalised has the mean 0 and the
// scale 1. In float32 for a half type on a CPU, where torch adds up the latter two in the half type: ones up to
// 256 in bfloat16.
std::tuple<at::Tensor, at::Tensor, at::Tensor> normalise_x_backward(const at::Tensor& grad,
                                                                    const at::Tensor& kept,
                                                                    const at::Tensor& gain,
                                                                    const at::Tensor& statistics) {
  if (acc_scalar_type(grad.scalar_type()) != grad.scalar_type() && !grad.is_cuda()) {
    const auto [of_products, of_gain, of_bias] =
        normalise_x_backward(grad.to(at::kFloat), kept.to(at::kFloat), gain.to(at::kFloat), statistics);
    const auto type = grad.scalar_type();
    return {of_products.to(type), of_gain.to(type), of_bias.to(type)};
  }
  const at::Tensor made = kept.narrow(0, 0, grad.size(0));
  const at::Tensor scale = statistics.narrow(0, 0, grad.size(0)).narrow(1, kCellStatistics - 1, 1);
  // torch's kernels take moments of the accumulation type on a GPU, of the tensors' on the CPU.
  const auto moments = grad.is_cuda() ? scale.options() : grad.options();
  const at::Tensor mean = at::zeros(scale.sizes(), moments), one = at::ones(scale.sizes(), moments);
  const auto [of_made, of_gain, of_bias] = at::native_layer_norm_backward(
      grad, made, {grad.size(1)}, mean, one, gain, at::zeros_like(gain), {true, true, true});
  return {of_made.mul(scale).to(grad.scalar_type()), of_gain, of_bias};
}

}  // namespace

bool kernels_fit(const at::Tensor& input, const RecurrentCell& cell, int64_t N, int64_t H, int64_t T,
                 bool normalised, bool backward) {
  BackendCall call(input);
  RecurrenceFitsParams p = question(call, input, cell, N, H, T, normalised);
  bool fits = false;
  p.backward = backward;
  p.fits = &fits;
  call(&Backend::recurrence_fits, p);
  return fits;
}

EightTensors recurrence_layer(const at::Tensor& input, const at::Tensor& h0, const OptionalTensor& c0,
                              const OptionalTensor& w_ih, const at::Tensor& w_hh, const OptionalTensor& b_ih,
                              const OptionalTensor& b_hh, const OptionalTensor& peephole,
                              const OptionalTensor& zoneout_h, const OptionalTensor& zoneout_c,
                              const OptionalTensor& norm_x, const OptionalTensor& norm_h,
                              const OptionalTensor& norm_c_weight, const OptionalTensor& norm_c_bias,
                              const OptionalTensor& batch_sizes, const OptionalTensor& lengths, bool reverse,
                              bool cells, bool save, at::IntArrayRef numbers,
                              bool /*memory_efficient: autograd's*/) {
  static constexpr const char* kOp = "recurrence_layer";
  const Steps steps = steps_of(kOp, input, batch_sizes, lengths, reverse);
  const LayerTensors t{input,        h0,           c0,        w_ih,      w_hh,   b_ih,   b_hh,
                       std::nullopt, peephole,     zoneout_h, zoneout_c, norm_x, norm_h, norm_c_weight,
                       norm_c_bias,  numbers.vec()};
  const RecurrentCell cell = checked_cell(kOp, t, steps);
  check_types(kOp, t);
  const int64_t H = w_hh.size(1), width = cell.gates() * H;
  const bool record_wanted = cell.has_c() ? save || cells : save && cell.kind != CellKind::kRnn;
  const auto options = input.options();
  const at::Tensor all = flattened(input), w = w_hh.contiguous();
  // What is returned has as many rows as the input, so that its shape is known without the lengths; the first
  // are used.
  const auto rows_kept = [&](bool kept, int64_t columns) {
    at::Tensor t = at::empty({kept ? all.size(0) : steps.rows, columns}, options);
    if (t.size(0) > steps.rows) t.narrow(0, steps.rows, t.size(0) - steps.rows).zero_();
    return t;
  };
  const bool normalises = norm_h.has_value() || norm_c_weight.has_value();
  const bool multiplies_x =
      w_ih.has_value() && kernel_multiplies_x(input, cell, steps.N, H, steps.T, normalises, norm_x.has_value());
  // Who multiplies x reads it, and writes y, where they are.
  const bool in_place = multiplies_x && !steps.is_dense;
  const at::Tensor x = in_place ? all : steps.take(all);
  at::Tensor gates = save || !multiplies_x ? rows_kept(save, width) : absent(options);
  at::Tensor record = record_wanted ? rows_kept(true, H) : absent(options);
  const at::Tensor bias = bias_of_gates(cell, b_ih, b_hh, H);
  const auto kept_of_norm = [&](bool norm) { return save && norm ? rows_kept(true, width) : absent(options); };
  at::Tensor normalised = kept_of_norm(norm_h.has_value()), normalised_x = kept_of_norm(norm_x.has_value());
  at::Tensor statistics =
      save && (normalises || norm_x.has_value())
          ? at::zeros({all.size(0), kCellStatistics}, options.dtype(acc_scalar_type(input.scalar_type())))
          : absent(options);
  if (!multiplies_x) {
    at::Tensor products = gates.narrow(0, 0, steps.rows);
    if (!w_ih.has_value()) {
      products.copy_(x);
    } else if (norm_x.has_value()) {
      normalise_x(at::mm(x, w_ih->t()), *norm_x, bias, products, normalised_x, statistics);
    } else if (bias.defined()) {
      at::addmm_out(products, bias, x, w_ih->t());
    } else {
      at::mm_out(products, x, w_ih->t());
    }
  }
  at::Tensor y = in_place ? at::zeros({all.size(0), H}, options) : at::empty({steps.rows, H}, options);
  at::Tensor h_n = at::empty({steps.N, H}, options);
  at::Tensor c_n = cell.has_c() ? at::empty_like(h_n) : absent(options);
  BackendCall call(input);
  if (h_n.numel() > 0) {
    at::Tensor tables, shares[2];
    const at::Tensor h_begin = h0.contiguous(), c_begin = cell.has_c() ? c0->contiguous() : at::Tensor();
    const at::Tensor p_dense = cell.peephole ? peephole->contiguous() : at::Tensor();
    const at::Tensor b_n =
        cell.kind == CellKind::kGru && b_hh.has_value() ? b_hh->narrow(0, 2 * H, H).contiguous() : at::Tensor();
    const DenseNorm norm(call, multiplies_x ? norm_x : std::nullopt, norm_h, norm_c_weight, norm_c_bias);
    RecurrenceForwardParams p{};
    p.in = steps.tables(call, input, tables);
    p.in.cell = cell;
    p.in.dtype = dtype_of(kOp, "input", input);
    p.in.H = H;
    const at::Tensor x_dense = multiplies_x ? x.contiguous() : at::Tensor();
    const at::Tensor w_ih_dense = multiplies_x ? w_ih->contiguous() : at::Tensor();
    p.x = call.data(x_dense);
    p.places = in_place ? steps.taken.data() : nullptr;
    p.I = x.size(1);
    p.w_ih = call.data(w_ih_dense);
    p.bias = multiplies_x ? call.data(bias) : nullptr;
    p.w_hh = call.data(w);
    p.b_n = call.data(b_n);
    p.peephole = call.data(p_dense);
    p.zoneout_h = share_block(call, steps, zoneout_h, shares[0]);
    p.zoneout_c = share_block(call, steps, zoneout_c, shares[1]);
    p.norm = norm.data;
    p.h0 = call.data(h_begin);
    p.c0 = call.data(c_begin);
    p.gates = !multiplies_x ? call.mutable_data(gates) : save ? call.output(gates) : nullptr;
    p.y = call.output(y);
    p.record = record_wanted ? call.output(record) : nullptr;
    p.save = save;
    p.normalised = normalised.numel() > 0 ? call.output(normalised) : nullptr;
    p.normalised_x = multiplies_x && normalised_x.numel() > 0 ? call.output(normalised_x) : nullptr;
    p.statistics = statistics.numel() > 0 ? call.mutable_data(statistics) : nullptr;
    p.h_n = call.output(h_n);
    p.c_n = cell.has_c() ? call.output(c_n) : nullptr;
    call(&Backend::recurrence_forward, &Backend::recurrence_forward_workspace, p);
  }
  auto size = input.sizes().vec();
  size.back() = H;
  return {(in_place ? y : steps.put(y, all.size(0))).view(size),
          h_n,
          c_n,
          save ? gates : absent(options),
          record,
          normalised,
          normalised_x,
          statistics};
}

namespace {

// The rows of h before each step.
class HBefore {
 public:
  // y are its rows that are steps.
  HBefore(const Steps& steps, const at::Tensor& y, const at::Tensor& h0) : steps_(steps), rows_(y), h0_(h0) {
    if (steps.rows == 0 || steps.is_whole()) return;
    Indices before(steps.rows);
    for (int64_t n = 0; n < steps.N; ++n) {
      for (int64_t step = 0; step < steps.lengths[n]; ++step) {
        before[steps.row(n, step)] = step == 0 ? steps.rows + steps.state_rows[n] : steps.row(n, step - 1);
      }
    }
    before_ = at::cat({rows_, h0}).index_select(0, index_tensor(before, y));
  }

  // sum over the steps of grad^T f(h before), f elementwise.
  template <typename F>
  at::Tensor product(const at::Tensor& grad, const F& f) const {
    if (before_.defined() || steps_.rows == 0) return at::mm(grad.t(), f(before_.defined() ? before_ : rows_));
    // All samples have all steps: rows of a step follow those of the step before.
    const int64_t rest = steps_.rows - steps_.N;
    const at::Tensor first = grad.narrow(0, steps_.reverse ? rest : 0, steps_.N);
    const at::Tensor others = grad.narrow(0, steps_.reverse ? 0 : steps_.N, rest);
    return at::addmm(at::mm(first.t(), f(h0_)), others.t(),
                     f(rows_.narrow(0, steps_.reverse ? steps_.N : 0, rest)));
  }
  at::Tensor product(const at::Tensor& grad) const {
    return product(grad, [](const at::Tensor& h) { return h; });
  }

 private:
  const Steps& steps_;
  const at::Tensor rows_, h0_;
  at::Tensor before_;
};

at::Tensor grad_w_hh(const RecurrentCell& cell, const Steps& steps, const at::Tensor& grad_gates,
                     const at::Tensor& grad_u_n, const at::Tensor& record, const at::Tensor& y,
                     const at::Tensor& h0) {
  const int64_t H = h0.size(1);
  const HBefore h(steps, y, h0);
  const auto block = [&](int64_t k, int64_t blocks = 1) { return grad_gates.narrow(1, k * H, blocks * H); };
  if (cell.kind == CellKind::kGru) return at::cat({h.product(block(0, 2)), h.product(grad_u_n)});
  if (cell.kind != CellKind::kReset) return h.product(grad_gates);
  const at::Tensor of_n = at::mm(block(2).t(), record.narrow(0, 0, steps.rows));
  if (!cell.z_sees_h) return at::cat({h.product(block(0)), of_n});
  if (!cell.z_sees_tanh_h) return at::cat({h.product(block(0, 2)), of_n});
  return at::cat(
      {h.product(block(0)), h.product(block(1), [](const at::Tensor& t) { return at::tanh(t); }), of_n});
}

}  // namespace

TwelveTensors recurrence_layer_backward(
    const OptionalTensor& grad_y, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const OptionalTensor& grad_record, const at::Tensor& input, const at::Tensor& h0, const OptionalTensor& c0,
    const OptionalTensor& w_ih, const at::Tensor& w_hh, const OptionalTensor& peephole,
    const OptionalTensor& zoneout_h, const OptionalTensor& zoneout_c, const OptionalTensor& norm_x,
    const OptionalTensor& norm_h, const OptionalTensor& norm_c_weight, const OptionalTensor& norm_c_bias,
    const at::Tensor& y, const at::Tensor& gates, const at::Tensor& record, const at::Tensor& normalised,
    const at::Tensor& normalised_x, const at::Tensor& statistics, const OptionalTensor& batch_sizes,
    const OptionalTensor& lengths, bool reverse, std::array<bool, kInputs> output_mask,
    at::IntArrayRef numbers) {
  static constexpr const char* kOp = "recurrence_layer_backward";
  const Steps steps = steps_of(kOp, input, batch_sizes, lengths, reverse);
  const LayerTensors t{input,        h0,           c0,        w_ih,      w_hh,   std::nullopt, std::nullopt,
                       std::nullopt, peephole,     zoneout_h, zoneout_c, norm_x, norm_h,       norm_c_weight,
                       norm_c_bias,  numbers.vec()};
  const RecurrentCell cell = checked_cell(kOp, t, steps);
  check_types(kOp, t);
  const int64_t H = w_hh.size(1), width = cell.gates() * H;
  const auto options = input.options();
  auto y_size = input.sizes().vec();
  y_size.back() = H;
  TORCH_CHECK(y.sizes() == at::IntArrayRef(y_size) && y.scalar_type() == input.scalar_type(), kOp,
              ": y must be of shape ", at::IntArrayRef(y_size), " and ", input.scalar_type(), ", got ",
              y.sizes(), " of ", y.scalar_type());
  const std::array<at::IntArrayRef, 4> sizes{y.sizes(), h0.sizes(), h0.sizes(), record.sizes()};
  const std::array<const OptionalTensor*, 4> given{&grad_y, &grad_h_n, &grad_c_n, &grad_record};
  std::array<at::Tensor, 4> grads;
  for (size_t i = 0; i < 4; ++i) {
    if (!given[i]->has_value()) continue;
    TORCH_CHECK((*given[i])->sizes() == sizes[i] && (*given[i])->scalar_type() == input.scalar_type(), kOp,
                ": gradients must have the shapes and type of what forward returned, got ",
                (*given[i])->sizes(), " of ", (*given[i])->scalar_type(), ", expected ", sizes[i], " of ",
                input.scalar_type());
    grads[i] = i == 0 ? steps.take(flattened(**given[i])).contiguous() : (*given[i])->contiguous();
  }
  const at::Tensor all = flattened(input), w = w_hh.contiguous();
  const at::Tensor y_rows = steps.take(flattened(y)).contiguous();
  // What forward left.
  const auto left = [&](const char* name, const at::Tensor& value, bool exists, int64_t columns,
                        at::ScalarType type) {
    if (!exists) return at::Tensor();
    const std::array<int64_t, 2> size{all.size(0), columns};
    TORCH_CHECK(value.sizes() == at::IntArrayRef(size) && value.scalar_type() == type, kOp, ": ", name,
                " must be of shape ", at::IntArrayRef(size), " and ", type, ", got ", value.sizes(), " of ",
                value.scalar_type());
    return value.contiguous();
  };
  const auto type = input.scalar_type();
  const at::Tensor gates_left = left("gates", gates, true, width, type);
  const at::Tensor record_left = left("record", record, cell.kind != CellKind::kRnn, H, type);
  const at::Tensor normalised_left = left("normalised", normalised, norm_h.has_value(), width, type);
  const at::Tensor normalised_x_left = left("normalised_x", normalised_x, norm_x.has_value(), width, type);
  const at::Tensor statistics_left =
      left("statistics", statistics, norm_x.has_value() || norm_h.has_value() || norm_c_weight.has_value(),
           kCellStatistics, acc_scalar_type(type));
  const bool kernel_normalises_x =
      norm_x.has_value() && kernel_multiplies_x(input, cell, steps.N, H, steps.T,
                                                norm_h.has_value() || norm_c_weight.has_value(), true);
  at::Tensor grad_gates = at::empty({steps.rows, width}, options);
  at::Tensor grad_u_n = cell.kind == CellKind::kGru ? at::empty({steps.rows, H}, options) : at::Tensor();
  at::Tensor grad_h0 = at::empty(h0.sizes(), options);
  at::Tensor grad_c0 = cell.has_c() ? at::empty_like(grad_h0) : absent(options);
  at::Tensor grad_peephole =
      cell.peephole && output_mask[kPeephole] ? at::empty(peephole->sizes(), options) : absent(options);
  const auto made_where = [&](bool exists, int64_t size) {
    return exists ? at::empty({size}, options) : absent(options);
  };
  at::Tensor grad_products =
      norm_h.has_value() || kernel_normalises_x ? at::empty_like(grad_gates) : at::Tensor();
  at::Tensor grad_norm_x = made_where(kernel_normalises_x, width),
             grad_bias = made_where(kernel_normalises_x, width),
             grad_norm_h = made_where(norm_h.has_value(), width),
             grad_norm_c_weight = made_where(norm_c_weight.has_value(), H),
             grad_norm_c_bias = made_where(norm_c_weight.has_value(), H);
  BackendCall call(input);
  if (h0.numel() > 0) {
    at::Tensor tables, shares[2];
    const at::Tensor h_begin = h0.contiguous(), c_begin = cell.has_c() ? c0->contiguous() : at::Tensor();
    const at::Tensor p_dense = cell.peephole ? peephole->contiguous() : at::Tensor();
    const DenseNorm norm(call, kernel_normalises_x ? norm_x : std::nullopt, norm_h, norm_c_weight, norm_c_bias);
    RecurrenceBackwardParams p{};
    p.norm = norm.data;
    p.normalised = call.data(normalised_left);
    p.normalised_x = kernel_normalises_x ? call.data(normalised_x_left) : nullptr;
    p.statistics = call.data(statistics_left);
    p.grad_products = call.output(grad_products);
    p.grad_norm_x = kernel_normalises_x ? call.output(grad_norm_x) : nullptr;
    p.grad_bias = kernel_normalises_x ? call.output(grad_bias) : nullptr;
    p.grad_norm_h = norm_h.has_value() ? call.output(grad_norm_h) : nullptr;
    p.grad_norm_c_weight = norm_c_weight.has_value() ? call.output(grad_norm_c_weight) : nullptr;
    p.grad_norm_c_bias = norm_c_weight.has_value() ? call.output(grad_norm_c_bias) : nullptr;
    p.in = steps.tables(call, input, tables);
    p.in.cell = cell;
    p.in.dtype = dtype_of(kOp, "input", input);
    p.in.H = H;
    p.w_hh = call.data(w);
    p.peephole = call.data(p_dense);
    p.zoneout_h = share_block(call, steps, zoneout_h, shares[0]);
    p.zoneout_c = share_block(call, steps, zoneout_c, shares[1]);
    p.h0 = call.data(h_begin);
    p.c0 = call.data(c_begin);
    p.y = call.data(y_rows);
    p.gates = call.data(gates_left);
    p.record = call.data(record_left);
    p.grad_y = call.data(grads[0]);
    p.grad_h_n = call.data(grads[1]);
    p.grad_c_n = call.data(grads[2]);
    p.grad_c = call.data(grads[3]);
    p.grad_gates = call.output(grad_gates);
    p.grad_u_n = call.output(grad_u_n);
    p.grad_h0 = call.output(grad_h0);
    p.grad_c0 = cell.has_c() ? call.output(grad_c0) : nullptr;
    p.grad_peephole = grad_peephole.numel() > 0 ? call.output(grad_peephole) : nullptr;
    call(&Backend::recurrence_backward, &Backend::recurrence_backward_workspace, p);
  } else {
    for (const at::Tensor& t :
         {grad_peephole, grad_norm_x, grad_bias, grad_norm_h, grad_norm_c_weight, grad_norm_c_bias})
      t.zero_();
  }
  at::Tensor grad_x_products = grad_gates;
  if (norm_x.has_value() && !kernel_normalises_x)
    std::tie(grad_x_products, grad_norm_x, grad_bias) =
        normalise_x_backward(grad_gates, normalised_x_left, *norm_x, statistics_left);
  const auto wanted = [&](size_t i, const auto& make) { return output_mask[i] ? make() : absent(options); };
  const auto of_input = [&] {
    return steps.put(w_ih.has_value() ? at::mm(grad_x_products, *w_ih) : grad_gates, all.size(0))
        .view(input.sizes());
  };
  const at::Tensor grad_b_ih = !(output_mask[kBih] || output_mask[kBhh]) ? absent(options)
                               : grad_bias.numel() > 0                   ? grad_bias
                                                                         : grad_gates.sum(0);
  const auto of_b_hh = [&] {
    return cell.kind == CellKind::kGru ? at::cat({grad_b_ih.narrow(0, 0, 2 * H), grad_u_n.sum(0)})
                                       : grad_b_ih.clone();
  };
  return {wanted(kInput, of_input),
          wanted(kH0, [&] { return grad_h0; }),
          wanted(kC0, [&] { return grad_c0; }),
          wanted(kWih, [&] { return at::mm(grad_x_products.t(), steps.take(all)); }),
          wanted(kWhh,
                 [&] {
                   return grad_w_hh(cell, steps, grad_products.defined() ? grad_products : grad_gates, grad_u_n,
                                    record, y_rows, h0);
                 }),
          wanted(kBih, [&] { return grad_b_ih; }),
          wanted(kBhh, of_b_hh),
          grad_peephole,
          wanted(kNormX, [&] { return grad_norm_x; }),
          wanted(kNormH, [&] { return grad_norm_h; }),
          wanted(kNormCWeight, [&] { return grad_norm_c_weight; }),
          wanted(kNormCBias, [&] { return grad_norm_c_bias; })};
}

}  // namespace fastnn::bindings
