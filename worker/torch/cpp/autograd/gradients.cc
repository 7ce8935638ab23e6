#include <ATen/ops/_foreach_zero.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include "../tensor_list.h"

namespace foil {

void run_backward(const at::Tensor& loss) { torch::autograd::backward({loss}, {}); }

bool grad_enabled() { return c10::GradMode::is_enabled(); }

void zero(const TensorList& tensors) {
  at::NoGradGuard no_grad;
  if (!tensors.inner->tensors.empty()) {
    at::_foreach_zero_(tensors.inner->tensors);
  }
}

void clear_gradients(const TensorList& tensors) {
  for (auto& tensor : tensors.inner->tensors) {
    tensor.mutable_grad() = at::Tensor();
  }
}

}  // namespace foil
