#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "bridge.h"

struct foil::TensorList::Inner {
  std::vector<at::Tensor> tensors;
};
