// Activation checkpointing: computations that keep only their inputs and run again in the backward pass.

#include <ATen/core/ivalue.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../tensor_list.h"
#include "foil-torch/src/ffi.rs.h"

namespace foil {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Owns the Rust closure for as long as the graph needs it.
struct Closure : torch::CustomClassHolder {
  explicit Closure(rust::Box<Computation> computation) : computation(std::move(computation)) {}
  rust::Box<Computation> computation;
};

variable_list run(const Computation& computation, const variable_list& inputs) {
  TensorList list;
  list.inner->tensors = inputs;
  TensorList results;
  computation.run(list, results);
  return std::move(results.inner->tensors);
}

class Checkpoint : public torch::autograd::Function<Checkpoint> {
 public:
  static variable_list forward(AutogradContext* ctx, c10::intrusive_ptr<Closure> closure, at::TensorList list) {
    const auto inputs = list.vec();
    auto results = run(*closure->computation, inputs);
    ctx->saved_data["computation"] = c10::IValue::make_capsule(std::move(closure));
    std::vector<bool> needs_grad;
    for (const auto& input : inputs) {
      needs_grad.push_back(input.requires_grad());
    }
    ctx->saved_data["needs_grad"] = needs_grad;
    ctx->save_for_backward(inputs);
    return results;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto closure = c10::static_intrusive_pointer_cast<Closure>(ctx->saved_data["computation"].toCapsule());
    const auto needs_grad = ctx->saved_data["needs_grad"].toBoolList();
    const auto saved = ctx->get_saved_variables();
    at::AutoGradMode recording(true);
    variable_list inputs, leaves, results, upstream;
    for (std::size_t i = 0; i < saved.size(); ++i) {
      inputs.push_back(saved[i].detach().set_requires_grad(needs_grad[i]));
      if (needs_grad[i]) {
        leaves.push_back(inputs.back());
      }
    }
    const auto outputs = run(*closure->computation, inputs);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i].requires_grad() && gradients[i].defined()) {
        results.push_back(outputs[i]);
        upstream.push_back(gradients[i]);
      }
    }
    auto grads = torch::autograd::grad(results, leaves, upstream, /*retain_graph=*/false, /*create_graph=*/false,
                                       /*allow_unused=*/true);
    // One for the closure and one for each input.
    variable_list input_grads(1 + saved.size());
    for (std::size_t i = 0, next = 0; i < saved.size(); ++i) {
      if (needs_grad[i]) {
        input_grads[1 + i] = std::move(grads[next++]);
      }
    }
    return input_grads;
  }
};

}  // namespace

void checkpoint(rust::Box<Computation> computation, const TensorList& inputs, TensorList& results) {
  auto closure = c10::make_intrusive<Closure>(std::move(computation));
  results.inner->tensors = Checkpoint::apply(std::move(closure), at::TensorList(inputs.inner->tensors));
}

}  // namespace foil
