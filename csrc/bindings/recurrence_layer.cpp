#include "recurrence_kernels.h"
#include "tensors.h"

namespace fastnn::bindings {

namespace {

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

}  // namespace

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
  // A kernel leaves the products as they are where nothing is to be saved.
  const bool reads_products = !w_ih.has_value() && !save;
  at::Tensor gates = reads_products          ? x.contiguous()
                     : save || !multiplies_x ? rows_kept(save, width)
                                             : absent(options);
  at::Tensor record = record_wanted ? rows_kept(true, H) : absent(options);
  const at::Tensor bias = bias_of_gates(cell, b_ih, b_hh, H);
  const auto kept_of_norm = [&](bool norm) { return save && norm ? rows_kept(true, width) : absent(options); };
  at::Tensor normalised = kept_of_norm(norm_h.has_value()), normalised_x = kept_of_norm(norm_x.has_value());
  at::Tensor statistics =
      save && (normalises || norm_x.has_value())
          ? at::zeros({all.size(0), kCellStatistics}, options.dtype(acc_scalar_type(input.scalar_type())))
          : absent(options);
  if (!multiplies_x && !reads_products) {
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
    at::Tensor tables;
    const at::Tensor shares[] = {dense_share(steps, zoneout_h), dense_share(steps, zoneout_c)};
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
    p.zoneout_h = share_block(call, shares[0]);
    p.zoneout_c = share_block(call, shares[1]);
    p.norm = norm.data;
    p.h0 = call.data(h_begin);
    p.c0 = call.data(c_begin);
    p.gates = reads_products  ? const_cast<void*>(call.data(gates))
              : !multiplies_x ? call.mutable_data(gates)
              : save          ? call.output(gates)
                              : nullptr;
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

}  // namespace fastnn::bindings
