#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "shim.h"

struct foil::TensorList::Inner {
  std::vector<at::Tensor> tensors;
};
