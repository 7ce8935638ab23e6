// Computations that keep their inputs only, and run again when their gradients are wanted.

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

// Owns the Rust side's closure for as long as the graph may want it.
struct Held : torch::CustomClassHolder {
  explicit Held(rust::Box<Computation> given) : computation(std::move(given)) {}
  rust::Box<Computation> computation;
};

variable_list run(const Computation& computation, const variable_list& inputs) {
  TensorList given;
  given.inner->tensors = inputs;
  TensorList results;
  computation.run(given, results);
  return std::move(results.inner->tensors);
}

class Checkpoint : public torch::autograd::Function<Checkpoint> {
 public:
  static variable_list forward(AutogradContext* ctx, c10::intrusive_ptr<Held> held, at::TensorList given) {
    const auto inputs = given.vec();
    auto results = run(*held->computation, inputs);
    ctx->saved_data["computation"] = c10::IValue::make_capsule(std::move(held));
    std::vector<bool> wanted;
    for (const auto& input : inputs) {
      wanted.push_back(input.requires_grad());
    }
    ctx->saved_data["wanted"] = wanted;
    ctx->save_for_backward(inputs);
    return results;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto held = c10::static_intrusive_pointer_cast<Held>(ctx->saved_data["computation"].toCapsule());
    const auto wanted = ctx->saved_data["wanted"].toBoolList();
    const auto saved = ctx->get_saved_variables();
    at::AutoGradMode recording(true);
    variable_list inputs, leaves, results, upstream;
    for (std::size_t i = 0; i < saved.size(); ++i) {
      inputs.push_back(saved[i].detach().set_requires_grad(wanted[i]));
      if (wanted[i]) {
        leaves.push_back(inputs.back());
      }
    }
    const auto all = run(*held->computation, inputs);
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (all[i].requires_grad() && gradients[i].defined()) {
        results.push_back(all[i]);
        upstream.push_back(gradients[i]);
      }
    }
    auto found = torch::autograd::grad(results, leaves, upstream, /*retain_graph=*/false, /*create_graph=*/false,
                                       /*allow_unused=*/true);
    // One for the closure, then one for each input.
    variable_list answer(1 + saved.size());
    for (std::size_t i = 0, next = 0; i < saved.size(); ++i) {
      if (wanted[i]) {
        answer[1 + i] = std::move(found[next++]);
      }
    }
    return answer;
  }
};

}  // namespace

void checkpoint(rust::Box<Computation> computation, const TensorList& inputs, TensorList& results) {
  auto held = c10::make_intrusive<Held>(std::move(computation));
  results.inner->tensors = Checkpoint::apply(std::move(held), at::TensorList(inputs.inner->tensors));
}

}  // namespace foil
