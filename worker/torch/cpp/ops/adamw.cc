#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <c10/core/GradMode.h>

#include "../tensor_list.h"
#include "foil-torch/src/ffi.rs.h"

namespace foil {

void fused_adamw(const TensorList& parameters, const TensorList& gradients, const TensorList& exp_avg,
                 const TensorList& exp_avg_sq, const TensorList& steps, const AdamW& options) {
  at::NoGradGuard no_grad;
  // The kernel reads the number of its step but does not increment it.
  at::_foreach_add_(steps.inner->tensors, 1);
  at::_fused_adamw_(parameters.inner->tensors, gradients.inner->tensors, exp_avg.inner->tensors,
                    exp_avg_sq.inner->tensors, /*max_exp_avg_sqs=*/{}, steps.inner->tensors, options.learning_rate,
                    options.beta1, options.beta2, options.weight_decay, options.epsilon, /*amsgrad=*/false,
                    /*maximize=*/false);
}

std::unique_ptr<at::Tensor> global_norm(const TensorList& tensors) {
  at::NoGradGuard no_grad;
  return std::make_unique<at::Tensor>(at::linalg_vector_norm(at::stack(at::_foreach_norm(tensors.inner->tensors))));
}

void scale(const TensorList& tensors, double factor) {
  at::NoGradGuard no_grad;
  at::_foreach_mul_(tensors.inner->tensors, factor);
}

}  // namespace foil
