// A node of libtorch's autograd graph whose backward pass is a function of Rust.

#include <stdexcept>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <utility>
#include <vector>

namespace {

using torch::autograd::edge_list;
using torch::autograd::variable_list;

// Owned by the node. `backward` takes ownership of the gradients, null where there is none, and writes owned results,
// null where there is none. It returns 0, or a message that lives as long as the state.
struct Backward {
  void *state;
  const char *(*backward)(void *state, at::Tensor **gradients, at::Tensor **results);
  void (*drop)(void *state);
};

struct RustNode : torch::autograd::Node {
  explicit RustNode(Backward function) : function(function) {}

  ~RustNode() override { release_variables(); }

  variable_list apply(variable_list &&gradients) override {
    if (function.state == nullptr) {
      throw std::runtime_error("a second backward pass through the same graph");
    }
    std::vector<at::Tensor *> given;
    for (at::Tensor &gradient : gradients) {
      given.push_back(gradient.defined() ? new at::Tensor(std::move(gradient)) : nullptr);
    }
    std::vector<at::Tensor *> found(num_outputs(), nullptr);
    const char *message = function.backward(function.state, given.data(), found.data());
    variable_list results;
    for (at::Tensor *result : found) {
      results.push_back(result == nullptr ? at::Tensor() : std::move(*result));
      delete result;
    }
    if (message != nullptr) {
      throw std::runtime_error(message);
    }
    return results;
  }

  // libtorch calls this after a backward pass that keeps no graph, so that saved tensors are freed early.
  void release_variables() override {
    if (function.state != nullptr) {
      function.drop(function.state);
      function.state = nullptr;
    }
  }

  std::string name() const override { return "RustBackward"; }

  Backward function;
};

} // namespace

extern "C" {

// Whether an operation on these tensors must record a backward pass.
bool ddk_needs_gradient(at::Tensor *const *inputs, size_t count) {
  if (!at::GradMode::is_enabled()) {
    return false;
  }
  for (size_t index = 0; index < count; ++index) {
    if (inputs[index]->requires_grad()) {
      return true;
    }
  }
  return false;
}

// Makes the outputs results of a node whose inputs are given. The outputs must be new. Takes ownership of the state.
// Returns false, with the state dropped, if libtorch fails.
bool ddk_attach(at::Tensor *const *outputs, size_t output_count, at::Tensor *const *inputs, size_t input_count,
                Backward function) {
  try {
    // First, so that the node frees the state whatever fails after it.
    std::shared_ptr<RustNode> node(new RustNode(function), torch::autograd::deleteNode);
    edge_list edges;
    for (size_t index = 0; index < input_count; ++index) {
      edges.push_back(torch::autograd::impl::gradient_edge(*inputs[index]));
    }
    node->set_next_edges(std::move(edges));
    for (size_t index = 0; index < output_count; ++index) {
      torch::autograd::create_gradient_edge(*outputs[index], node);
    }
    return true;
  } catch (...) {
    return false;
  }
}
}
