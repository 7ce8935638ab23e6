// Helpers that connect tensors with the loops of kernels.h.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include "foil-torch/cpp/bridge.h"
#include "kernels.h"

namespace foil {

// Calls `work` with a value of the kernels' type for `kind`.
template <typename Work>
void with_kind(at::ScalarType kind, Work&& work) {
  switch (kind) {
    case at::kFloat:
      return work(float{});
    case at::kBFloat16:
      return work(kernels::Bf16{});
    default:
      TORCH_CHECK(false, "layers compute in float32 or bfloat16, not in ", kind);
  }
}

// The elements of a contiguous tensor in host memory.
template <typename T>
T* data(const at::Tensor& tensor) {
  TORCH_INTERNAL_ASSERT(tensor.is_cpu() && tensor.is_contiguous());
  return static_cast<T*>(tensor.data_ptr());
}

// Whether `tensor` is handled by this crate's own loops. If not, ATen's operations are used, as on other devices.
bool uses_cpu_kernels(const at::Tensor& tensor);

// Rows per parallel task, so that a task takes at least some microseconds.
inline std::int64_t grain(std::int64_t width) {
  return std::max<std::int64_t>(1, 32768 / std::max<std::int64_t>(1, width));
}

inline std::unique_ptr<TensorPair> pair(const at::Tensor& one, const at::Tensor& two) {
  return std::make_unique<TensorPair>(TensorPair{std::make_unique<at::Tensor>(one), std::make_unique<at::Tensor>(two)});
}

}  // namespace foil
