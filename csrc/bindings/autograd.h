// What the autograd kernels of all ops share.
//
// Each differentiable op has one node class, put on its outputs by the kernel that stands at the Autograd
// dispatch keys, as torch's generated code does for its own ops. torch::autograd::Function would do the same
// in eager mode but refuses to run under torch.func's transforms; a kernel that only redispatches needs no
// adapter there. Every derivative is again a dispatcher op, so derivatives of any order that exist compose,
// and forward-mode tangents come from the same ops.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <optional>
#include <string>
#include <type_traits>

namespace fastnn::bindings {

using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<at::Tensor>;

// The handle of the dispatcher's op of that name, whose C++ signature is F.
template <typename F>
c10::TypedOperatorHandle<F> find_op(const std::string& name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload).typed<F>();
}

inline at::Tensor value_or_undefined(const OptionalTensor& t) { return t.has_value() ? *t : at::Tensor(); }
inline OptionalTensor some(const at::Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

inline bool has_tangent(const at::Tensor& t) { return t.defined() && t._fw_grad(/*level=*/0).defined(); }
inline bool has_tangent(const OptionalTensor& t) { return t.has_value() && has_tangent(*t); }
template <typename... Tensors>
bool any_tangent(const Tensors&... tensors) {
  return (has_tangent(tensors) || ...);
}

// Undefined where there is none.
inline at::Tensor tangent(const at::Tensor& t) { return t.defined() ? t._fw_grad(0) : at::Tensor(); }
inline OptionalTensor tangent(const OptionalTensor& t) {
  return t.has_value() ? some(tangent(*t)) : std::nullopt;
}
// The tensor without its tangent, still attached to the graph.
inline at::Tensor primal(const at::Tensor& t) { return has_tangent(t) ? t._fw_primal(0) : t; }
inline OptionalTensor primal(const OptionalTensor& t) {
  return t.has_value() ? some(primal(*t)) : std::nullopt;
}

inline void set_tangent(const at::Tensor& t, const at::Tensor& value) {
  if (t.defined() && value.defined()) t._set_fw_grad(value, /*level=*/0, /*is_inplace_op=*/false);
}

// Sum of two that may be undefined.
inline at::Tensor sum_of(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined()) return b;
  if (!b.defined()) return a;
  return a + b;
}

// How this torch owns nodes: std::shared_ptr up to 2.11, c10::intrusive_ptr in 2.13.
using NodePointer = decltype(torch::autograd::Edge::function);

// A node with edges to the tensors that need a gradient, or null when none does.
template <typename NodeType, typename... Tensors>
auto make_node(const Tensors&... tensors) {
  const bool wanted = torch::autograd::compute_requires_grad(value_or_undefined(tensors)...);
  const auto connect = [&](const auto& node) {
    node->set_next_edges(torch::autograd::collect_next_edges(value_or_undefined(tensors)...));
    return node;
  };
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<Node>>) {
    if (!wanted) return std::shared_ptr<NodeType>();
    // torch's own deleter, found by argument: it unwinds long graphs without recursion.
    return connect(std::shared_ptr<NodeType>(new NodeType(), [](auto* node) { deleteNode(node); }));
  } else {
    if (!wanted) return c10::intrusive_ptr<NodeType>();
    return connect(c10::make_intrusive<NodeType>());
  }
}

// Puts on the outputs of an op without a derivative a node that says so when somebody asks for one.
template <typename... Tensors>
void forbid_derivative(const char* op, variable_list outputs, const Tensors&... inputs) {
  TORCH_CHECK_NOT_IMPLEMENTED(!any_tangent(inputs...), "fastnn: the derivative of ", op, " is not implemented");
  struct NoDerivative : Node {
    variable_list apply(variable_list&&) override {
      TORCH_CHECK_NOT_IMPLEMENTED(false, "fastnn: the derivative of ", op,
                                  " is not implemented; it would be a third derivative of the layer");
    }
    std::string name() const override { return std::string("NoDerivativeOf_") + op; }
    std::string op;
  };
  const auto node = make_node<NoDerivative>(inputs...);
  if (!node) return;
  node->op = op;
  torch::autograd::set_history(outputs, node);
}

// An output that was not asked for: an op's outputs are always tensors, so that tracing needs no special case.
inline at::Tensor absent(const at::TensorOptions& options) { return at::empty({0}, options); }

// Undefined for one that was not asked for.
inline at::Tensor if_wanted(bool wanted, at::Tensor t) { return wanted ? std::move(t) : at::Tensor(); }

// Held by a node: a tensor for backward, which may be none.
inline SavedVariable save(const at::Tensor& t) { return SavedVariable(t, /*is_output=*/false); }
inline SavedVariable save(const OptionalTensor& t) { return save(value_or_undefined(t)); }

}  // namespace fastnn::bindings
