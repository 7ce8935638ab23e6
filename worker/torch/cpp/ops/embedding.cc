// Rows of an embedding matrix whose kind is not fp32.

#include <ATen/ops/embedding_dense_backward.h>
#include <ATen/ops/index_select.h>
#include <torch/csrc/autograd/custom_function.h>

#include "foil-torch/src/ffi.rs.h"

namespace foil {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The gradient of a frequent token is a sum of many terms, which bf16 would lose, so it is summed in fp32.
class WideEmbedding : public torch::autograd::Function<WideEmbedding> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& weight, const at::Tensor& ids) {
    ctx->save_for_backward({ids});
    ctx->saved_data["rows"] = weight.size(0);
    return weight.index_select(0, ids).to(at::kFloat);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto ids = ctx->get_saved_variables()[0];
    const auto rows = ctx->saved_data["rows"].toInt();
    return {at::embedding_dense_backward(gradients[0], ids, rows, /*padding_idx=*/-1, /*scale_grad_by_freq=*/false),
            {}};
  }
};

}  // namespace

std::unique_ptr<at::Tensor> wide_embedding(const at::Tensor& weight, const at::Tensor& ids) {
  return std::make_unique<at::Tensor>(WideEmbedding::apply(weight, ids));
}

}  // namespace foil
