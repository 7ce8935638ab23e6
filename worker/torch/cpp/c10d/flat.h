// Shared code for flat units of parameters, whole or sharded.
#pragma once

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <functional>

#include "handles.h"

namespace foil {

// A tensor on `storage`, which may be empty for now and is allocated before use. It has its own version counter, so
// that writing to it does not invalidate tensors that autograd has saved.
inline at::Tensor on_storage(const c10::Storage& storage, at::ScalarType kind, at::IntArrayRef sizes,
                             std::int64_t offset) {
  const auto like = at::empty({0}, at::TensorOptions().dtype(kind).device(storage.device()));
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), like.key_set(), like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  tensor.unsafeGetTensorImpl()->set_storage_offset(offset);
  return tensor;
}

// Calls `work` whenever a backward pass has accumulated the gradient of `parameter`, until the returned node is
// destroyed.
inline std::shared_ptr<torch::autograd::Node> after_accumulation(const at::Tensor& parameter,
                                                                 std::function<void()> work) {
  using torch::autograd::variable_list;
  auto accumulator = torch::autograd::impl::grad_accumulator(parameter);
  auto hook = [work = std::move(work)](const variable_list& outputs, const variable_list&) {
    work();
    return outputs;
  };
  accumulator->add_post_hook(std::make_unique<torch::autograd::utils::LambdaPostHook>(std::move(hook)));
  return accumulator;
}

// A sum of flat gradients over the ranks that is in flight; each rank receives its part.
struct ReduceScatter {
  c10::intrusive_ptr<c10d::Work> work;
  at::Tensor flat;  // [world * length]; changed by the sum
  at::Tensor part;  // [length]; this rank's part of `flat`, or a tensor of its own

  static ReduceScatter begin(c10d::ProcessGroup& group, const at::Tensor& flat, const at::Tensor& part) {
    ReduceScatter sum{nullptr, flat, part};
    if (flat.is_cpu()) {
      // Gloo's reduce-scatter is an all-reduce on a copy.
      std::vector<at::Tensor> tensors{flat};
      sum.work = group.allreduce(tensors);
    } else {
      sum.work = group._reduce_scatter_base(sum.part, sum.flat);
    }
    return sum;
  }

  // This rank's part of the sum, available once the work is done.
  const at::Tensor& result(std::int64_t rank) {
    if (flat.is_cpu() && !part.is_alias_of(flat)) {
      part.copy_(flat.narrow(0, rank * part.numel(), part.numel()));
    }
    return part;
  }
};

}  // namespace foil
