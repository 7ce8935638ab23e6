// A value with precomputed gradients.

#include <torch/csrc/autograd/custom_function.h>

#include "foil-torch/src/ffi.rs.h"

namespace foil {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class PresetGradients : public torch::autograd::Function<PresetGradients> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& value, const at::Tensor& /*a*/,
                            const at::Tensor& a_gradient, const at::Tensor& /*b*/, const at::Tensor& b_gradient) {
    ctx->saved_data["a"] = a_gradient;
    ctx->saved_data["b"] = b_gradient;
    return value.detach().clone();
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto scaled = [&](const char* name) {
      // Removed from the context, so that it is freed once it is accumulated rather than with the graph.
      auto gradient = ctx->saved_data.at(name).toTensor();
      ctx->saved_data.erase(name);
      // Used once, so no copy is needed; it may be as large as the embeddings.
      return gradient.defined() ? gradient.mul_(gradients[0]) : gradient;
    };
    return {{}, scaled("a"), {}, scaled("b"), {}};
  }
};

}  // namespace

std::unique_ptr<at::Tensor> with_gradients(const at::Tensor& value, const at::Tensor& a, const at::Tensor& a_gradient,
                                           const at::Tensor& b, const at::Tensor& b_gradient) {
  return std::make_unique<at::Tensor>(PresetGradients::apply(value, a, a_gradient, b, b_gradient));
}

}  // namespace foil
