// Log-probabilities of given tokens and the gradient of any function of them, without a second logits tensor.

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/logsumexp.h>
#include <c10/core/GradMode.h>

#include "foil-torch/src/ffi.rs.h"
#include "rows.h"

namespace foil {
namespace {

bool has_kernel(const at::Tensor& logits) {
  return uses_cpu_kernels(logits) && (logits.scalar_type() == at::kFloat || logits.scalar_type() == at::kBFloat16);
}

}  // namespace

std::unique_ptr<TensorPair> target_log_probs(const at::Tensor& logits, const at::Tensor& targets) {
  at::NoGradGuard no_grad;
  if (!has_kernel(logits)) {
    const auto wide = logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
    auto log_sum_exp = at::logsumexp(wide, {-1});
    return pair(wide.gather(1, targets.unsqueeze(1)).squeeze(1) - log_sum_exp, log_sum_exp);
  }
  const auto from = logits.contiguous();
  const std::int64_t rows = from.size(0), width = from.size(1);
  auto log_probs = at::empty({rows}, logits.options().dtype(at::kFloat));
  auto log_sum_exp = at::empty_like(log_probs);
  with_kind(from.scalar_type(), [&](auto number) {
    using T = decltype(number);
    at::parallel_for(0, rows, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        const T* z = data<T>(from) + row * width;
        data<float>(log_sum_exp)[row] = kernels::log_sum_exp(z, width);
        kernels::widen(z + targets.data_ptr<std::int64_t>()[row], 1, data<float>(log_probs) + row);
        data<float>(log_probs)[row] -= data<float>(log_sum_exp)[row];
      }
    });
  });
  return pair(log_probs, log_sum_exp);
}

void log_prob_gradient(const at::Tensor& logits, const at::Tensor& log_sum_exp, const at::Tensor& targets,
                       const at::Tensor& upstream) {
  at::NoGradGuard no_grad;
  auto into = logits;
  if (!has_kernel(logits)) {
    // Computed in at least fp32 and rounded once, as in the CPU's loop. In bf16, 1 − p of a confident token is a
    // difference of two values near 1 with 8 bits each, and cancels completely.
    const auto wide = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    auto gradient = into.to(wide);
    gradient.sub_(log_sum_exp.unsqueeze(1)).exp_().mul_(-upstream.unsqueeze(1));
    gradient.scatter_add_(1, targets.unsqueeze(1), upstream.to(wide).unsqueeze(1));
    if (!gradient.is_same(into)) {
      into.copy_(gradient);
    }
    return;
  }
  const std::int64_t rows = into.size(0), width = into.size(1);
  with_kind(into.scalar_type(), [&](auto number) {
    using T = decltype(number);
    at::parallel_for(0, rows, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        kernels::log_prob_gradient(data<T>(into) + row * width, width, data<float>(log_sum_exp)[row],
                                   targets.data_ptr<std::int64_t>()[row], data<float>(upstream)[row]);
      }
    });
  });
}

}  // namespace foil
