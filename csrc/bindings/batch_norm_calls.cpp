#include "batch_norm_calls.h"

namespace fastnn::bindings {

// Checks one of the [C] tensors.
static void check_param(const char* op, const char* name, const OptionalTensor& t, const at::Tensor& x) {
  if (!t.has_value()) return;
  TORCH_CHECK(t->dim() == 1 && t->size(0) == x.size(1), op, ": ", name, " should contain ", x.size(1),
              " elements, one per channel of input of shape ", x.sizes(), ", but has shape ", t->sizes());
  TORCH_CHECK(t->device() == x.device(), op, ": expected ", name, " to be on ", x.device(),
              " as input is, but got ", t->device());
  TORCH_CHECK(t->scalar_type() == x.scalar_type() ||
                  (t->scalar_type() == at::kFloat &&
                   (x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16)),
              op, ": expected ", name, " to have input's dtype ", x.scalar_type(),
              " (or float32 beside a half-precision input), but got ", t->scalar_type());
}

DType param_dtype(const char* op, const at::Tensor& x,
                  std::initializer_list<std::pair<const char*, OptionalTensor>> params) {
  const at::Tensor* first = &x;
  const char* first_name = nullptr;
  for (const auto& [name, t] : params) {
    check_param(op, name, t, x);
    if (!t.has_value()) continue;
    if (first_name == nullptr) {
      first = &*t;
      first_name = name;
    }
    TORCH_CHECK(t->scalar_type() == first->scalar_type(), op, ": expected ", first_name, " and ", name,
                " to have the same dtype, but got ", first->scalar_type(), " and ", t->scalar_type());
  }
  return dtype_of(op, first_name == nullptr ? "input" : first_name, *first);
}

void check_statistics(const char* op, const at::Tensor& x, at::IntArrayRef size,
                      std::initializer_list<std::pair<const char*, const at::Tensor&>> values) {
  for (const auto& [name, t] : values) {
    TORCH_CHECK(t.sizes() == size && t.is_contiguous() && t.device() == x.device() &&
                    t.scalar_type() == acc_scalar_type(x.scalar_type()),
                op, ": ", name, " must have shape ", size, " and dtype ", acc_scalar_type(x.scalar_type()),
                " on ", x.device(), ", got ", t.sizes(), " of ", t.scalar_type(), " on ", t.device());
  }
}

at::TensorOptions param_options(const at::Tensor& x, const OptionalTensor& weight) {
  return x.options().dtype(weight.has_value() ? weight->scalar_type() : x.scalar_type());
}

BatchNormActivation BatchNormEpilogue::parameters(const char* op, const BatchNormForm& form,
                                                  const at::Tensor& x, BackendCall& call, bool forward,
                                                  at::Tensor& hold) const {
  BatchNormActivation a{kind, alpha, nullptr, nullptr, nullptr, nullptr};
  if (residual.defined()) {
    check_like_input(op, "residual", residual, x);
    hold = residual.contiguous(form.format);
    a.residual = call.data(hold);
  }
  // Kernels read through pointers that they write through in forward.
  const auto point = [&](const at::Tensor& t) {
    return forward ? call.output(t) : const_cast<void*>(call.data(t));
  };
  if (scale.defined()) {
    check_statistics(op, x, {x.size(1)}, {{"scale", scale}, {"shift", shift}});
    a.scale = point(scale);
    a.shift = point(shift);
  }
  if (mask.defined()) {
    TORCH_CHECK(mask.scalar_type() == at::kByte && mask.is_contiguous() && mask.device() == x.device() &&
                    mask.numel() == batch_norm_mask_bytes(form.shape),
                op, ": mask must be ", batch_norm_mask_bytes(form.shape), " bytes on ", x.device(), ", got ",
                mask.scalar_type(), " ", mask.sizes(), " on ", mask.device());
    a.mask = point(mask);
  }
  return a;
}

BatchNormResult run_batch_norm_forward(const char* op, const at::Tensor& input,
                                       const BatchNormArguments& arguments, const BatchNormEpilogue& epilogue) {
  const auto& [weight, bias, running_mean, running_var, num_batches_tracked, training, momentum, eps,
               skip_nonfinite_stats] = arguments;
  const BatchNormForm form(op, input);
  BatchNormForwardParams p;
  p.dtype = dtype_of(op, "input", input);
  p.shape = form.shape;
  TORCH_CHECK_VALUE(running_mean.has_value() == running_var.has_value(), op,
                    ": running_mean and running_var must either both be None or neither be None");
  TORCH_CHECK(training || running_mean.has_value(), op, ": running_mean must be defined in evaluation mode");
  TORCH_CHECK_VALUE(eps > 0 || (!training && eps >= 0), op, ": eps must be positive during training, but got ",
                    eps);
  p.param_dtype = param_dtype(
      op, input,
      {{"weight", weight}, {"bias", bias}, {"running_mean", running_mean}, {"running_var", running_var}});
  if (num_batches_tracked.has_value()) {
    TORCH_CHECK(num_batches_tracked->numel() == 1 && num_batches_tracked->scalar_type() == at::kLong &&
                    num_batches_tracked->device() == input.device(),
                op, ": num_batches_tracked must be one int64 value on ", input.device(), ", but got ",
                num_batches_tracked->scalar_type(), " of shape ", num_batches_tracked->sizes(), " on ",
                num_batches_tracked->device());
  }
  TORCH_CHECK_VALUE(
      !training || momentum.has_value() || !running_mean.has_value() || num_batches_tracked.has_value(), op,
      ": momentum=None (a cumulative average) needs num_batches_tracked");
  TORCH_CHECK_VALUE(!training || form.shape.N * form.shape.S != 1, op,
                    ": Expected more than 1 value per channel when training, got input size ", input.sizes());

  BackendCall call(input);
  at::Tensor output = form.empty_like(input);
  const auto stats = input.options().dtype(acc_scalar_type(input.scalar_type()));
  at::Tensor mean = at::empty({form.shape.C}, stats);
  at::Tensor invstd = at::empty({form.shape.C}, stats);
  if (input.numel() == 0) {
    // No statistics to take: as in torch the running ones stay, and the batch still counts.
    for (const at::Tensor& t : {mean, invstd, epilogue.scale, epilogue.shift}) {
      if (t.defined()) t.zero_();
    }
    if (training && num_batches_tracked.has_value()) num_batches_tracked->add_(1);
    return {output, mean, invstd};
  }
  const at::Tensor x = input.contiguous(form.format);
  const OptionalTensor w = dense(weight), b = dense(bias);
  // Statistics kept in strided tensors are updated in a dense copy, which goes back when the kernel is queued.
  const OptionalTensor dense_mean = dense(running_mean), dense_var = dense(running_var);
  p.training = training;
  p.eps = eps;
  p.x = call.data(x);
  p.weight = call.data(w);
  p.bias = call.data(b);
  const auto statistics = [&, training = training](const OptionalTensor& t) {
    // Evaluation reads them alone.
    return training && t.has_value() ? call.mutable_data(*t) : const_cast<void*>(call.data(t));
  };
  p.running_mean = statistics(dense_mean);
  p.running_var = statistics(dense_var);
  p.momentum = momentum.value_or(0);
  p.cumulative = !momentum.has_value();
  p.num_batches_tracked = training && num_batches_tracked.has_value()
                              ? static_cast<int64_t*>(call.mutable_data(*num_batches_tracked))
                              : nullptr;
  p.skip_nonfinite = skip_nonfinite_stats;
  at::Tensor hold;
  p.activation = epilogue.parameters(op, form, input, call, /*forward=*/true, hold);
  p.y = call.output(output);
  p.mean = call.output(mean);
  p.invstd = call.output(invstd);
  call(&Backend::batch_norm_forward, &Backend::batch_norm_forward_workspace, p);
  const auto put_back = [training = training](const OptionalTensor& from, const OptionalTensor& to) {
    if (training && to.has_value() && !from->is_same(*to)) to->copy_(*from);
  };
  put_back(dense_mean, running_mean);
  put_back(dense_var, running_var);
  return {output, mean, invstd};
}

BatchNormGradients run_batch_norm_backward(const char* op, const at::Tensor& grad_output,
                                           const at::Tensor& input, const OptionalTensor& weight,
                                           const at::Tensor& mean, const at::Tensor& invstd, bool training,
                                           const BatchNormEpilogue& epilogue, std::array<bool, 4> output_mask) {
  const BatchNormForm form(op, input);
  BatchNormBackwardParams p;
  p.dtype = dtype_of(op, "input", input);
  p.param_dtype = param_dtype(op, input, {{"weight", weight}});
  p.shape = form.shape;
  p.training = training;
  check_like_input(op, "grad_output", grad_output, input);
  check_statistics(op, input, {input.size(1)}, {{"mean", mean}, {"invstd", invstd}});
  BackendCall call(input);
  const auto params = param_options(input, weight);
  const auto param_out = [&](bool wanted) {
    return wanted ? at::empty({form.shape.C}, params) : absent(params);
  };
  const auto like_input = [&](bool wanted) {
    return wanted ? form.empty_like(input) : absent(input.options());
  };
  at::Tensor grad_input = like_input(output_mask[0]), grad_residual = like_input(output_mask[3]);
  at::Tensor grad_weight = param_out(output_mask[1]), grad_bias = param_out(output_mask[2]);
  if (input.numel() == 0) return {grad_input, grad_weight.zero_(), grad_bias.zero_(), grad_residual};
  const at::Tensor g = grad_output.contiguous(form.format), x = input.contiguous(form.format);
  const OptionalTensor w = dense(weight);
  p.grad_y = call.data(g);
  p.x = call.data(x);
  p.weight = call.data(w);
  p.mean = call.data(mean);
  p.invstd = call.data(invstd);
  at::Tensor hold;
  p.activation = epilogue.parameters(op, form, input, call, /*forward=*/false, hold);
  p.grad_x = output_mask[0] ? call.output(grad_input) : nullptr;
  p.grad_weight = output_mask[1] ? call.output(grad_weight) : nullptr;
  p.grad_bias = output_mask[2] ? call.output(grad_bias) : nullptr;
  p.grad_residual = output_mask[3] ? call.output(grad_residual) : nullptr;
  call(&Backend::batch_norm_backward, &Backend::batch_norm_backward_workspace, p);
  return {grad_input, grad_weight, grad_bias, grad_residual};
}

at::Tensor run_batch_norm_apply(const char* op, const at::Tensor& grad_output, const at::Tensor& input,
                                const at::Tensor& mean, const BatchNormEpilogue& epilogue) {
  const BatchNormForm form(op, input);
  BatchNormApplyParams p;
  p.dtype = dtype_of(op, "input", input);
  p.shape = form.shape;
  check_statistics(op, input, {input.size(1)},
                   {{"mean", mean}, {"scale", epilogue.scale}, {"shift", epilogue.shift}});
  if (grad_output.defined()) check_like_input(op, "grad_output", grad_output, input);
  BackendCall call(input);
  at::Tensor out = form.empty_like(input);
  if (input.numel() == 0) return out;
  const at::Tensor x = input.contiguous(form.format);
  const at::Tensor g = grad_output.defined() ? grad_output.contiguous(form.format) : grad_output;
  at::Tensor hold;
  p.activation = epilogue.parameters(op, form, input, call, /*forward=*/false, hold);
  p.grad_y = call.data(g);
  p.x = call.data(x);
  p.mean = call.data(mean);
  p.out = call.output(out);
  call(&Backend::batch_norm_apply, p);
  return out;
}

}  // namespace fastnn::bindings
