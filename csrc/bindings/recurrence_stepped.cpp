#include "recurrence_stepped.h"

#include "lstm_cell.h"
#include "tensors.h"

namespace fastnn::bindings {

namespace {

const auto& lstm_cell_op() {
  static const auto op =
      find_op<TwoTensors(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         const at::Tensor&, const OptionalTensor&, const OptionalTensor&)>("fastnn::lstm_cell");
  return op;
}

at::Tensor activated(GateActivation kind, const at::Tensor& x) {
  switch (kind) {
    case GateActivation::kSigmoid:
      return at::sigmoid(x);
    case GateActivation::kHardSigmoid:
      return at::hardsigmoid(x);
    case GateActivation::kTanh:
      return at::tanh(x);
    case GateActivation::kHardTanh:
      return at::hardtanh(x);
    case GateActivation::kRelu:
      return at::relu(x);
    case GateActivation::kSoftsign:
      return x / (x.abs() + 1);
    case GateActivation::kIdentity:
      break;
  }
  return x;
}

// torch's, over the units. In float32 for a half type on a CPU, where its backward adds up the gradients of
// gain and bias in the half type: ones up to 256 in bfloat16.
at::Tensor layer_norm(const at::Tensor& x, const OptionalTensor& gain, const OptionalTensor& bias) {
  const auto type = x.scalar_type();
  const auto in = x.is_cuda() ? type : acc_scalar_type(type);
  const auto cast = [&](const OptionalTensor& t) { return t.has_value() ? some(t->to(in)) : t; };
  return at::layer_norm(x.to(in), {x.size(1)}, cast(gain), cast(bias), kCellNormEps).to(type);
}

// old where d is 1.
at::Tensor zoned_out(const OptionalTensor& d, const at::Tensor& old, const at::Tensor& made) {
  return d.has_value() ? at::lerp(made, old, *d) : made;
}

// One step of a cell. x are the rows of its input's products, or where `few`, of a plain LSTM, of its input.
class CellStep {
 public:
  CellStep(const LayerTensors& t, const RecurrentCell& cell, bool few)
      : t_(t), cell_(cell), few_(few), H_(t.w_hh.size(0) / cell.recurrent_blocks()) {}

  struct State {
    at::Tensor h, c;
  };

  State operator()(const at::Tensor& x, const State& before, const OptionalTensor& d_h,
                   const OptionalTensor& d_c) const {
    switch (cell_.kind) {
      case CellKind::kLstm:
        return lstm(x, before, d_h, d_c);
      case CellKind::kGru: {
        const at::Tensor u = product(before.h, t_.w_hh, t_.b_hh);
        return {one(recurrent_cell(x, u, {}, before.h, {}, d_h, {}, CellStage::kGru, t_.numbers)), {}};
      }
      case CellKind::kRnn: {
        const at::Tensor a = at::addmm(x, before.h, t_.w_hh.t());
        return {one(recurrent_cell(a, {}, {}, before.h, {}, d_h, {}, CellStage::kRnn, t_.numbers)), {}};
      }
      case CellKind::kReset:
        break;
    }
    return {reset(x, before.h, d_h), {}};
  }

 private:
  static at::Tensor one(const TwoTensors& results) { return std::get<0>(results); }
  static at::Tensor product(const at::Tensor& h, const at::Tensor& w, const OptionalTensor& bias) {
    return bias.has_value() ? at::addmm(*bias, h, w.t()) : at::mm(h, w.t());
  }

  State lstm(const at::Tensor& x, const State& before, const OptionalTensor& d_h,
             const OptionalTensor& d_c) const {
    if (few_) {
      const auto [h, c] = lstm_cell_op().call(x, before.h, before.c, *t_.w_ih, t_.w_hh, t_.b_ih, t_.b_hh);
      return {h, c};
    }
    const at::Tensor a = t_.norm_h.has_value() ? x + layer_norm(at::mm(before.h, t_.w_hh.t()), t_.norm_h, {})
                                               : at::addmm(x, before.h, t_.w_hh.t());
    // With a projection h's zoneout is of what is projected.
    const bool projects = t_.w_hr.has_value();
    const OptionalTensor d_inside = projects ? std::nullopt : d_h;
    at::Tensor h, c;
    if (t_.norm_c_weight.has_value()) {
      std::tie(h, c) = normalised(a, before.c, d_c);
      if (!projects) h = zoned_out(d_h, before.h, h);
    } else if (cell_.is_plain_lstm()) {
      std::tie(h, c) = lstm_cell_after_products(a, {}, {}, before.c);
    } else {
      std::tie(h, c) = recurrent_cell(a, {}, before.c, d_inside.has_value() ? some(before.h) : std::nullopt,
                                      t_.peephole, d_inside, d_c, CellStage::kLstm, t_.numbers);
    }
    if (projects) h = zoned_out(d_h, before.h, at::linear(h, *t_.w_hr));
    return {h, c};
  }

  // h = o * output(norm(c)), where all else takes c itself.
  TwoTensors normalised(const at::Tensor& a, const at::Tensor& c_before, const OptionalTensor& d_c) const {
    const auto results = recurrent_cell(a, {}, c_before, {}, t_.peephole, {}, {}, CellStage::kLstm, t_.numbers);
    const at::Tensor& made = std::get<1>(results);
    at::Tensor a_o = a.narrow(1, (cell_.gates() - 1) * H_, H_);
    if (t_.peephole.has_value()) {
      a_o =
          a_o + t_.peephole->select(0, t_.peephole->size(0) - 1) * (cell_.peephole_previous ? c_before : made);
    }
    const at::Tensor seen = layer_norm(made, t_.norm_c_weight, t_.norm_c_bias);
    return {activated(cell_.gate, a_o) * activated(cell_.output, seen), zoned_out(d_c, c_before, made)};
  }

  at::Tensor reset(const at::Tensor& x, const at::Tensor& h, const OptionalTensor& d_h) const {
    const auto block = [&](const at::Tensor& rows, int64_t k, int64_t blocks = 1) {
      return rows.narrow(1, k * H_, blocks * H_);
    };
    const auto weights = [&](int64_t k, int64_t blocks = 1) {
      return t_.w_hh.narrow(0, k * H_, blocks * H_).t();
    };
    at::Tensor a;
    if (cell_.z_sees_h && !cell_.z_sees_tanh_h) {
      a = at::addmm(block(x, 0, 2), h, weights(0, 2));
    } else {
      const at::Tensor a_z =
          cell_.z_sees_h ? at::addmm(block(x, 1), at::tanh(h), weights(1)) : at::Tensor(block(x, 1));
      a = at::cat({at::addmm(block(x, 0), h, weights(0)), a_z}, 1);
    }
    const auto [reset_h, z] = recurrent_cell(a, {}, {}, h, {}, {}, {}, CellStage::kReset, t_.numbers);
    const at::Tensor a_n = at::addmm(block(x, 2), reset_h, weights(cell_.recurrent_blocks() - 1));
    return one(recurrent_cell(a_n, {}, z, h, {}, d_h, {}, CellStage::kBlend, t_.numbers));
  }

  const LayerTensors& t_;
  const RecurrentCell& cell_;
  const bool few_;
  const int64_t H_;
};

}  // namespace

SteppedLayer step_through(const LayerTensors& t, const RecurrentCell& cell, const Steps& steps, bool want_c) {
  const bool normalises = t.norm_x.has_value() || t.norm_h.has_value() || t.norm_c_weight.has_value();
  const bool few =
      cell.is_plain_lstm() && t.w_ih.has_value() && !t.w_hr.has_value() && !normalises && steps.T <= kFewSteps;
  at::Tensor x = steps.take(flattened(t.input));
  if (t.norm_x.has_value()) {
    const at::Tensor bias = sum_of(value_or_undefined(t.b_ih), value_or_undefined(t.b_hh));
    x = layer_norm(at::linear(x, *t.w_ih), t.norm_x, some(bias));
  } else if (!few && t.w_ih.has_value()) {
    x = at::linear(x, *t.w_ih, t.b_ih);
    if (t.b_hh.has_value() && cell.kind != CellKind::kGru) x = x + *t.b_hh;
  }
  const auto shares = [&](const OptionalTensor& d) {
    return d.has_value() && d->dim() > 1 ? some(steps.take(flattened(*d))) : d;
  };
  const OptionalTensor d_h = shares(t.zoneout_h), d_c = shares(t.zoneout_c);
  const CellStep step(t, cell, few);
  const bool has_c = cell.has_c();
  CellStep::State state{rows_of(t.h0, steps.state_rows),
                        has_c ? rows_of(*t.c0, steps.state_rows) : at::Tensor()};
  // What is known of each step, and the states of samples that have ended, the shortest first.
  std::vector<at::Tensor> y, c, h_last, c_last;
  Indices order;
  const auto end = [&](int64_t from) {
    const int64_t ended = state.h.size(0) - from;
    if (ended == 0) return;
    const auto cut = [&](at::Tensor& now, std::vector<at::Tensor>& last) {
      last.push_back(now.narrow(0, from, ended));
      now = now.narrow(0, 0, from);
    };
    cut(state.h, h_last);
    if (has_c) cut(state.c, c_last);
  };
  // Where no sample has a step, one step of none: what is returned then has the derivatives that it should
  // have.
  for (int64_t time = 0; time < std::max<int64_t>(1, steps.T); ++time) {
    const int64_t active = steps.active(time);
    end(active);
    Indices rows(active);
    for (int64_t n = 0; n < active; ++n) rows[n] = steps.row(n, time);
    const auto of_step = [&](const OptionalTensor& d) {
      return d.has_value() && d->dim() > 1 ? some(rows_of(*d, rows)) : d;
    };
    state = step(rows_of(x, rows), state, of_step(d_h), of_step(d_c));
    y.push_back(state.h);
    if (has_c && want_c) c.push_back(state.c);
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
  const auto by_row = [&](const std::vector<at::Tensor>& parts) {
    at::Tensor all = at::cat(parts);
    if (!std::is_sorted(order.begin(), order.end())) {
      all = at::zeros_like(all).index_copy(0, index_tensor(order, x), all);
    }
    return all;
  };
  return {by_row(y), by_caller(h_last, t.h0), has_c ? by_caller(c_last, *t.c0) : at::Tensor(),
          has_c && want_c ? by_row(c) : at::Tensor()};
}

}  // namespace fastnn::bindings
