// Autograd of a trilinear form T(x, w, g) = <map(x, w), g>: of its three derivatives map(x, w), grad_input(g,
// w) and grad_weight(x, g), each one's derivatives are the other two, so derivatives of any order exist.
//
// A Map computes them, by dispatcher ops, for fixed options:
//   forward(x, w), grad_input(g, w, form of x), grad_weight(x, g, form of w)
//   grad_bias(g), expand_bias(bias, size of the result): of what is added to map and to grad_input
//   kGradInputName, kGradWeightName: names of nodes
#pragma once

#include <ATen/ATen.h>

#include <mutex>
#include <string>
#include <vector>

#include "autograd.h"
#include "tensors.h"

namespace fastnn::bindings {

// The shape and the memory format of a tensor that a node need not keep.
struct Form {
  std::vector<c10::SymInt> size;
  bool channels_last = false;

  Form() = default;
  Form(c10::SymIntArrayRef size, bool channels_last) : size(size.vec()), channels_last(channels_last) {}
  explicit Form(const at::Tensor& t) : Form(t.sym_sizes(), suggests_channels_last(t)) {}
};

// The two operands of one of the three, each kept only if the other one needs a gradient, and their forms.
template <typename Map>
struct BilinearNode : Node {
  Map map;
  SavedVariable first, second;
  Form first_form, second_form;

  void keep(const at::Tensor& a, const at::Tensor& b) {
    first_form = Form(a);
    second_form = Form(b);
    if (should_compute_output(1)) first = save(a);
    if (should_compute_output(0)) second = save(b);
  }
  void release_variables() override {
    first.reset_data();
    second.reset_data();
  }
};

template <typename Map>
struct GradInputNode final : BilinearNode<Map> {  // of (grad_output, weight, bias)
  std::string name() const override { return Map::kGradInputName; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(this->mutex_);
    variable_list result(3);
    const at::Tensor& gg = grads[0];
    if (!gg.defined()) return result;
    if (this->task_should_compute_output(0)) result[0] = this->map.forward(gg, this->second.unpack());
    if (this->task_should_compute_output(1))
      result[1] = this->map.grad_weight(gg, this->first.unpack(), this->second_form);
    if (this->task_should_compute_output(2)) result[2] = this->map.grad_bias(gg);
    return result;
  }
};

template <typename Map>
struct GradWeightNode final : BilinearNode<Map> {  // of (input, grad_output)
  std::string name() const override { return Map::kGradWeightName; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(this->mutex_);
    variable_list result(2);
    const at::Tensor& gg = grads[0];
    if (!gg.defined()) return result;
    if (this->task_should_compute_output(0))
      result[0] = this->map.grad_input(this->second.unpack(), gg, this->first_form);
    if (this->task_should_compute_output(1)) result[1] = this->map.forward(this->first.unpack(), gg);
    return result;
  }
};

// `redispatch` computes the op below autograd; these put its node and its tangent on the result.
template <typename Map, typename Redispatch>
at::Tensor grad_input_with_autograd(const Map& map, const at::Tensor& grad_output, const at::Tensor& weight,
                                    const OptionalTensor& bias, const Form& input,
                                    const Redispatch& redispatch) {
  const auto node = make_node<GradInputNode<Map>>(grad_output, weight, bias);
  if (node) {
    node->map = map;
    node->keep(grad_output, weight);
  }
  at::Tensor output;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    output = redispatch();
  }
  if (node) torch::autograd::set_history(output, node);
  if (any_tangent(grad_output, weight, bias)) {
    at::Tensor t;
    if (has_tangent(grad_output)) t = map.grad_input(tangent(grad_output), primal(weight), input);
    if (has_tangent(weight)) t = sum_of(t, map.grad_input(primal(grad_output), tangent(weight), input));
    if (has_tangent(bias)) t = sum_of(t, map.expand_bias(tangent(*bias), input.size));
    set_tangent(output, t);
  }
  return output;
}

template <typename Map, typename Redispatch>
at::Tensor grad_weight_with_autograd(const Map& map, const at::Tensor& input, const at::Tensor& grad_output,
                                     const Form& weight, const Redispatch& redispatch) {
  const auto node = make_node<GradWeightNode<Map>>(input, grad_output);
  if (node) {
    node->map = map;
    node->keep(input, grad_output);
  }
  at::Tensor output;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    output = redispatch();
  }
  if (node) torch::autograd::set_history(output, node);
  if (any_tangent(input, grad_output)) {
    at::Tensor t;
    if (has_tangent(input)) t = map.grad_weight(tangent(input), primal(grad_output), weight);
    if (has_tangent(grad_output)) t = sum_of(t, map.grad_weight(primal(input), tangent(grad_output), weight));
    set_tangent(output, t);
  }
  return output;
}

}  // namespace fastnn::bindings
