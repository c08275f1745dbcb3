// Backward of one layer in one direction: the backend's recurrence, which leaves the gradients of all steps'
// gates, and their products with the weights, the inputs and the states, which are the framework's.
//
// The gates' gradients are the largest tensors of all, each number of them is read three times, and nobody
// keeps them. On a CPU they are therefore made and multiplied by parts of the steps, in memory that is used
// again.
#include "backend.h"
#include "recurrence_kernels.h"
#include "tensors.h"

namespace fastnn::bindings {

namespace {

constexpr const char* kOp = "recurrence_layer_backward";

// Of the gates' gradients of a part. The allocator gives such memory back to the next call, where it maps more
// than 32 MB anew for each, and it may stay in the last cache until it has been multiplied.
constexpr int64_t kPartBytes = 24 << 20;

// What forward left.
struct Left {
  at::Tensor y, gates, record, normalised, normalised_x, statistics;  // some undefined
};

// Rows of a tensor of all steps' rows, which may be undefined.
struct RowRange {
  int64_t first, count;
  at::Tensor of(const at::Tensor& t) const { return t.defined() ? t.narrow(0, first, count) : t; }
};

// The rows of h before each step.
class HBefore {
 public:
  // y are its rows that are steps, `h0` the states before the first.
  HBefore(const Steps& steps, const at::Tensor& y, const at::Tensor& h0) : steps_(steps), rows_(y), h0_(h0) {
    if (steps.rows == 0 || steps.is_whole()) return;
    Indices before(steps.rows), first;
    for (int64_t n = 0; n < steps.N && steps.lengths[n] > 0; ++n) {
      first.push_back(steps.row(n, 0));
      for (int64_t step = 1; step < steps.lengths[n]; ++step)
        before[steps.row(n, step)] = steps.row(n, step - 1);
    }
    const Indices states(steps.state_rows.begin(), steps.state_rows.begin() + first.size());
    before_ = rows_.index_select(0, index_tensor(before, y));
    before_.index_copy_(0, index_tensor(first, y), rows_of(h0, states));
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

at::Tensor grad_w_hh(const RecurrentCell& cell, const HBefore& h, const at::Tensor& grad_products,
                     const at::Tensor& grad_u_n, const at::Tensor& record) {
  const int64_t H = grad_products.size(1) / cell.gates();
  const auto block = [&](int64_t k, int64_t blocks = 1) { return grad_products.narrow(1, k * H, blocks * H); };
  if (cell.kind == CellKind::kGru) return at::cat({h.product(block(0, 2)), h.product(grad_u_n)});
  if (cell.kind != CellKind::kReset) return h.product(grad_products);
  const at::Tensor of_n = at::mm(block(2).t(), record);
  if (!cell.z_sees_h) return at::cat({h.product(block(0)), of_n});
  if (!cell.z_sees_tanh_h) return at::cat({h.product(block(0, 2)), of_n});
  return at::cat(
      {h.product(block(0)), h.product(block(1), [](const at::Tensor& t) { return at::tanh(t); }), of_n});
}

// The way back from what x's products were normalised to: gradients of the products, the gain and the bias.
// What was normalised has the mean 0 and the scale 1. In float32 for a half type on a CPU, where torch adds up
// the latter two in the half type: ones up to 256 in bfloat16.
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

// Backward from the last step to the first, in one part or several.
class LayerBackward {
 public:
  // `grads`: of the rows of y that are steps, h_n, c_n and the record; undefined for 0.
  LayerBackward(const LayerTensors& t, const RecurrentCell& cell, const Steps& steps, const Left& left,
                const std::array<at::Tensor, 4>& grads, const std::array<bool, kInputs>& wanted)
      : t_(t),
        cell_(cell),
        steps_(steps),
        left_(left),
        grad_y_(grads[0]),
        grad_h_(grads[1]),
        grad_c_(grads[2]),
        grad_record_(grads[3]),
        wanted_(wanted),
        options_(t.input.options()),
        x_(flattened(t.input)),
        w_hh_(t.w_hh.contiguous()),
        peephole_(cell.peephole ? t.peephole->contiguous() : at::Tensor()),
        zoneout_h_(dense_share(steps, t.zoneout_h)),
        zoneout_c_(dense_share(steps, t.zoneout_c)),
        h0_(t.h0.contiguous()),
        c0_(cell.has_c() ? t.c0->contiguous() : at::Tensor()),
        H_(t.w_hh.size(1)),
        width_(cell.gates() * H_),
        kernel_normalises_x_(t.norm_x.has_value() &&
                             kernel_multiplies_x(t.input, cell, steps.N, H_, steps.T,
                                                 t.norm_h.has_value() || t.norm_c_weight.has_value(), true)),
        has_grad_products_(t.norm_h.has_value() || kernel_normalises_x_) {}

  TwelveTensors run() {
    const int64_t parts = count_parts(), longest = (steps_.T + parts - 1) / parts;
    const int64_t rows = parts == 1 ? steps_.rows : longest * steps_.N;
    grad_gates_ = at::empty({rows, width_}, options_);
    if (cell_.kind == CellKind::kGru) grad_u_n_ = at::empty({rows, H_}, options_);
    if (has_grad_products_) grad_products_ = at::empty_like(grad_gates_);
    if (parts == 1) {
      compute(steps_, {0, steps_.rows}, h0_, c0_);
    } else {
      grad_input_ = wanted_[kInput] ? at::empty({steps_.rows, x_.size(1)}, options_) : at::Tensor();
      for (int64_t end = steps_.T; end > 0; end -= std::min(end, longest))
        compute_part(std::max(end - longest, int64_t{0}), end);
    }
    const auto made = [&](size_t i, const at::Tensor& grad) {
      return wanted_[i] && grad.defined() ? grad : absent(options_);
    };
    if (wanted_[kBhh]) {
      const at::Tensor& of_gates = sums_[kBih];
      sums_[kBhh] =
          cell_.kind == CellKind::kGru ? at::cat({of_gates.narrow(0, 0, 2 * H_), grad_b_n_}) : of_gates.clone();
    }
    return {made(kInput, grad_input_.defined() ? grad_input_.view(t_.input.sizes()) : grad_input_),
            made(kH0, grad_h_),
            made(kC0, grad_c_),
            made(kWih, sums_[kWih]),
            made(kWhh, sums_[kWhh]),
            made(kBih, sums_[kBih]),
            made(kBhh, sums_[kBhh]),
            made(kPeephole, sums_[kPeephole]),
            made(kNormX, sums_[kNormX]),
            made(kNormH, sums_[kNormH]),
            made(kNormCWeight, sums_[kNormCWeight]),
            made(kNormCBias, sums_[kNormCBias])};
  }

 private:
  // Parts are for rows in the order of the steps, and for types in which sums of sums lose nothing. Of a part
  // the sums over its rows should be longer than they are many, or adding them up costs as much again.
  int64_t count_parts() const {
    if (!steps_.is_whole() || !t_.w_ih.has_value() || BackendCall(t_.input).runs_cuda_kernels()) return 1;
    if (acc_scalar_type(t_.input.scalar_type()) != t_.input.scalar_type()) return 1;
    const int64_t numbers = width_ * (has_grad_products_ ? 2 : 1) + (cell_.kind == CellKind::kGru ? H_ : 0);
    const int64_t rows = std::max(kPartBytes / std::max<int64_t>(1, numbers * t_.input.element_size()), width_);
    return std::max<int64_t>(1, (steps_.rows + rows - 1) / std::max<int64_t>(1, rows));
  }

  void compute_part(int64_t begin, int64_t end) {
    Steps part = steps_;
    part.T = end - begin;
    part.rows = part.T * part.N;
    const auto rows_at = [&](int64_t step) { return (steps_.reverse ? steps_.T - 1 - step : step) * steps_.N; };
    const RowRange before{begin > 0 ? rows_at(begin - 1) : 0, steps_.N};
    compute(part, {rows_at(steps_.reverse ? end - 1 : begin), part.rows}, begin > 0 ? before.of(left_.y) : h0_,
            begin > 0 && cell_.has_c() ? before.of(left_.record) : c0_);
  }

  static void add(at::Tensor& total, const at::Tensor& sum) {
    if (total.defined()) {
      total.add_(sum);
    } else {
      total = sum;
    }
  }

  // Some steps, whose rows these are, and the states before the first of them. What grad_h_ and grad_c_ are to
  // the states after the last they become to those.
  void compute(const Steps& steps, const RowRange& rows, const at::Tensor& h0, const at::Tensor& c0) {
    const RowRange made{0, rows.count};
    const at::Tensor grad_gates = made.of(grad_gates_), grad_u_n = made.of(grad_u_n_),
                     grad_products = made.of(grad_products_);
    std::array<at::Tensor, kInputs> of_part;
    differentiate(steps, rows, h0, c0, grad_gates, grad_u_n, grad_products, of_part);
    at::Tensor grad_x_products = grad_gates;
    if (t_.norm_x.has_value() && !kernel_normalises_x_)
      std::tie(grad_x_products, of_part[kNormX], of_part[kBih]) =
          normalise_x_backward(grad_gates, left_.normalised_x, *t_.norm_x, left_.statistics);
    if (wanted_[kInput]) {
      if (grad_input_.defined()) {
        at::Tensor here = rows.of(grad_input_);
        at::mm_out(here, grad_x_products, *t_.w_ih);
      } else {
        grad_input_ =
            steps.put(t_.w_ih.has_value() ? at::mm(grad_x_products, *t_.w_ih) : grad_gates, x_.size(0));
      }
    }
    if (wanted_[kWih])
      add(sums_[kWih], at::mm(grad_x_products.t(), steps.is_dense ? rows.of(x_) : steps.take(x_)));
    if (wanted_[kWhh]) {
      add(sums_[kWhh], grad_w_hh(cell_, HBefore(steps, rows.of(left_.y), h0),
                                 grad_products.defined() ? grad_products : grad_gates, grad_u_n,
                                 cell_.kind == CellKind::kReset ? rows.of(left_.record) : at::Tensor()));
    }
    if ((wanted_[kBih] || wanted_[kBhh]) && !of_part[kBih].defined()) of_part[kBih] = grad_gates.sum(0);
    if (wanted_[kBhh] && cell_.kind == CellKind::kGru) add(grad_b_n_, grad_u_n.sum(0));
    for (size_t i = 0; i < kInputs; ++i) {
      if (of_part[i].defined()) add(sums_[i], of_part[i]);
    }
  }

  // The backend's recurrence over some steps.
  void differentiate(const Steps& steps, const RowRange& rows, const at::Tensor& h0, const at::Tensor& c0,
                     const at::Tensor& grad_gates, const at::Tensor& grad_u_n, const at::Tensor& grad_products,
                     std::array<at::Tensor, kInputs>& sums) {
    const auto make = [&](size_t i, bool exists, at::IntArrayRef size) {
      if (exists) sums[i] = at::empty(size, options_);
    };
    make(kPeephole, cell_.peephole && wanted_[kPeephole],
         cell_.peephole ? peephole_.sizes() : at::IntArrayRef());
    make(kNormX, kernel_normalises_x_, {width_});
    make(kBih, kernel_normalises_x_, {width_});
    make(kNormH, t_.norm_h.has_value(), {width_});
    make(kNormCWeight, t_.norm_c_weight.has_value(), {H_});
    make(kNormCBias, t_.norm_c_weight.has_value(), {H_});
    const at::Tensor grad_h0 = at::empty(h0.sizes(), options_);
    const at::Tensor grad_c0 = cell_.has_c() ? at::empty_like(grad_h0) : at::Tensor();
    BackendCall call(t_.input);
    if (h0.numel() > 0) {
      at::Tensor tables;
      const auto share = [&](const at::Tensor& d) { return d.defined() && d.dim() > 1 ? rows.of(d) : d; };
      const DenseNorm norm(call, kernel_normalises_x_ ? t_.norm_x : std::nullopt, t_.norm_h, t_.norm_c_weight,
                           t_.norm_c_bias);
      RecurrenceBackwardParams p{};
      p.in = steps.tables(call, t_.input, tables);
      p.in.cell = cell_;
      p.in.dtype = dtype_of(kOp, "input", t_.input);
      p.in.H = H_;
      p.w_hh = call.data(w_hh_);
      p.peephole = call.data(peephole_);
      p.zoneout_h = share_block(call, share(zoneout_h_));
      p.zoneout_c = share_block(call, share(zoneout_c_));
      p.norm = norm.data;
      p.h0 = call.data(h0);
      p.c0 = call.data(c0);
      p.y = call.data(rows.of(left_.y));
      p.gates = call.data(rows.of(left_.gates));
      p.record = call.data(rows.of(left_.record));
      p.normalised = call.data(rows.of(left_.normalised));
      p.normalised_x = kernel_normalises_x_ ? call.data(rows.of(left_.normalised_x)) : nullptr;
      p.statistics = call.data(rows.of(left_.statistics));
      p.grad_y = call.data(rows.of(grad_y_));
      p.grad_c = call.data(rows.of(grad_record_));
      p.grad_h_n = call.data(grad_h_);
      p.grad_c_n = call.data(grad_c_);
      p.grad_gates = call.output(grad_gates);
      p.grad_u_n = call.output(grad_u_n);
      p.grad_h0 = call.output(grad_h0);
      p.grad_c0 = call.output(grad_c0);
      p.grad_peephole = call.output(sums[kPeephole]);
      p.grad_products = call.output(grad_products);
      p.grad_norm_x = call.output(sums[kNormX]);
      p.grad_bias = call.output(sums[kBih]);
      p.grad_norm_h = call.output(sums[kNormH]);
      p.grad_norm_c_weight = call.output(sums[kNormCWeight]);
      p.grad_norm_c_bias = call.output(sums[kNormCBias]);
      call(&Backend::recurrence_backward, &Backend::recurrence_backward_workspace, p);
    } else {
      for (const at::Tensor& sum : sums) {
        if (sum.defined()) sum.zero_();
      }
    }
    grad_h_ = grad_h0;
    grad_c_ = grad_c0;
  }

  const LayerTensors& t_;
  const RecurrentCell& cell_;
  const Steps& steps_;
  const Left& left_;
  const at::Tensor grad_y_;
  at::Tensor grad_h_, grad_c_;
  const at::Tensor grad_record_;
  const std::array<bool, kInputs> wanted_;
  const at::TensorOptions options_;
  const at::Tensor x_, w_hh_, peephole_, zoneout_h_, zoneout_c_, h0_, c0_;  // but for x dense
  const int64_t H_, width_;
  const bool kernel_normalises_x_, has_grad_products_;
  at::Tensor grad_gates_, grad_u_n_, grad_products_;  // of a part
  at::Tensor grad_input_, grad_b_n_;                  // of all steps; the latter a GRU's, of b_hh's last block
  std::array<at::Tensor, kInputs> sums_;              // of those before
};

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
  const Steps steps = steps_of(kOp, input, batch_sizes, lengths, reverse);
  const LayerTensors t{input,        h0,           c0,        w_ih,      w_hh,   std::nullopt, std::nullopt,
                       std::nullopt, peephole,     zoneout_h, zoneout_c, norm_x, norm_h,       norm_c_weight,
                       norm_c_bias,  numbers.vec()};
  const RecurrentCell cell = checked_cell(kOp, t, steps);
  check_types(kOp, t);
  const int64_t H = w_hh.size(1), width = cell.gates() * H;
  const auto type = input.scalar_type();
  auto y_size = input.sizes().vec();
  y_size.back() = H;
  TORCH_CHECK(y.sizes() == at::IntArrayRef(y_size) && y.scalar_type() == type, kOp, ": y must be of shape ",
              at::IntArrayRef(y_size), " and ", type, ", got ", y.sizes(), " of ", y.scalar_type());
  const std::array<at::IntArrayRef, 4> sizes{y.sizes(), h0.sizes(), h0.sizes(), record.sizes()};
  const std::array<const OptionalTensor*, 4> given{&grad_y, &grad_h_n, &grad_c_n, &grad_record};
  std::array<at::Tensor, 4> grads;
  for (size_t i = 0; i < 4; ++i) {
    if (!given[i]->has_value()) continue;
    TORCH_CHECK((*given[i])->sizes() == sizes[i] && (*given[i])->scalar_type() == type, kOp,
                ": gradients must have the shapes and type of what forward returned, got ",
                (*given[i])->sizes(), " of ", (*given[i])->scalar_type(), ", expected ", sizes[i], " of ",
                type);
    grads[i] = i == 0 ? steps.take(flattened(**given[i])).contiguous() : (*given[i])->contiguous();
  }
  const int64_t rows = flattened(input).size(0);
  const auto left = [&](const char* name, const at::Tensor& value, bool exists, int64_t columns,
                        at::ScalarType of_type) {
    if (!exists) return at::Tensor();
    const std::array<int64_t, 2> size{rows, columns};
    TORCH_CHECK(value.sizes() == at::IntArrayRef(size) && value.scalar_type() == of_type, kOp, ": ", name,
                " must be of shape ", at::IntArrayRef(size), " and ", of_type, ", got ", value.sizes(), " of ",
                value.scalar_type());
    return value.contiguous();
  };
  const bool normalises = norm_x.has_value() || norm_h.has_value() || norm_c_weight.has_value();
  const Left what_is_left{steps.take(flattened(y)).contiguous(),
                          left("gates", gates, true, width, type),
                          left("record", record, cell.kind != CellKind::kRnn, H, type),
                          left("normalised", normalised, norm_h.has_value(), width, type),
                          left("normalised_x", normalised_x, norm_x.has_value(), width, type),
                          left("statistics", statistics, normalises, kCellStatistics, acc_scalar_type(type))};
  return LayerBackward(t, cell, steps, what_is_left, grads, output_mask).run();
}

}  // namespace fastnn::bindings
