// Matrix products with weights that are packed once and used many times.

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/linear.h>
#include <c10/core/GradMode.h>

#include "foil-torch/src/ffi.rs.h"
#include "rows.h"

namespace foil {
namespace {

// oneDNN's operations, which a libtorch built with oneDNN registers; null if it was built without.
template <typename Signature>
const c10::TypedOperatorHandle<Signature>* operation(const char* name) {
  static const auto found = [&]() -> std::optional<c10::TypedOperatorHandle<Signature>> {
    auto handle = c10::Dispatcher::singleton().findSchema({name, ""});
    return handle ? std::optional(handle->template typed<Signature>()) : std::nullopt;
  }();
  return found ? &*found : nullptr;
}

using Reorder = at::Tensor(const at::Tensor&, std::optional<std::int64_t>);
using Linear = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, std::string_view,
                          c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);

const auto* reorder() { return operation<Reorder>("mkldnn::_reorder_linear_weight"); }
const auto* linear() { return operation<Linear>("mkldnn::_linear_pointwise"); }

// libtorch rejects oneDNN's bf16 products on CPUs without AVX-512; ATen's products are used there.
bool computes(at::ScalarType kind) {
#if defined(__x86_64__)
  static const bool has_bf16 =
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  constexpr bool has_bf16 = false;
#endif
  return kind == at::kFloat || (kind == at::kBFloat16 && has_bf16);
}

bool has_onednn(const at::Tensor& weight) {
  return weight.is_cpu() && computes(weight.scalar_type()) && at::globalContext().userEnabledMkldnn() &&
         reorder() != nullptr && linear() != nullptr;
}

at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  return linear()->call(x, weight, bias, "none", c10::List<std::optional<at::Scalar>>(), "");
}

}  // namespace

std::unique_ptr<at::Tensor> pack_weight(const at::Tensor& weight, std::int64_t rows) {
  at::NoGradGuard no_grad;
  const auto unpacked = weight.detach().contiguous();
  return std::make_unique<at::Tensor>(has_onednn(unpacked) ? reorder()->call(unpacked, rows) : unpacked);
}

std::unique_ptr<at::Tensor> packed_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  at::NoGradGuard no_grad;
  const auto optional_bias = bias.defined() ? std::optional(bias) : std::nullopt;
  if (weight.is_mkldnn()) {
    return std::make_unique<at::Tensor>(product(x.contiguous(), weight, optional_bias));
  }
  return std::make_unique<at::Tensor>(at::linear(x, weight, optional_bias));
}

std::unique_ptr<at::Tensor> linear_by_output(const at::Tensor& weight, const at::Tensor& x) {
  at::NoGradGuard no_grad;
  if (has_onednn(weight)) {
    // The large matrix is the input and the small one the weight, so that only the small one is reordered.
    return std::make_unique<at::Tensor>(product(weight.contiguous(), x.contiguous(), std::nullopt));
  }
  return std::make_unique<at::Tensor>(at::linear(weight, x));
}

}  // namespace foil
