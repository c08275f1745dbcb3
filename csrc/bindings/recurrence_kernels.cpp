#include "recurrence_kernels.h"

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

at::Tensor dense_share(const Steps& steps, const OptionalTensor& d) {
  if (!d.has_value()) return {};
  return d->dim() == 1 ? d->contiguous() : steps.take(flattened(*d)).contiguous();
}

CellBlock share_block(BackendCall& call, const at::Tensor& dense) {
  if (!dense.defined()) return {};
  return {call.data(dense), dense.dim() == 1 ? 0 : dense.size(1)};
}

DenseNorm::DenseNorm(BackendCall& call, const OptionalTensor& x_weight, const OptionalTensor& h_weight,
                     const OptionalTensor& c_weight, const OptionalTensor& c_bias) {
  const auto take = [&](const OptionalTensor& t, at::Tensor& keep) -> const void* {
    if (!t.has_value()) return nullptr;
    keep = t->contiguous();
    return call.data(keep);
  };
  data = {take(x_weight, kept[0]), take(h_weight, kept[1]), take(c_weight, kept[2]), take(c_bias, kept[3])};
}

namespace {

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

}  // namespace

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

}  // namespace fastnn::bindings
