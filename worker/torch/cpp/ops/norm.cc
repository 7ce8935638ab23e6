// RMSNorm with the preceding residual addition, and SwiGLU: forward and backward, each in one pass on the CPU.

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "foil-torch/src/ffi.rs.h"
#include "rows.h"

namespace foil {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows per partial sum of the weight's gradient. The number is fixed, so that rounding does not depend on the number of
// threads.
constexpr std::int64_t kBlock = 64;

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  // Returns the sum x + delta, if there is a delta, and its norm in `kind`.
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const std::optional<at::Tensor>& added,
                               const at::Tensor& weight, double eps, at::ScalarType kind) {
    const std::int64_t width = x.size(-1);
    const std::int64_t rows = x.numel() / width;
    auto from = x.contiguous();
    auto delta = added ? added->contiguous() : at::Tensor();
    auto residual = added ? at::empty_like(from) : from;
    auto out = at::empty(x.sizes(), x.options().dtype(kind));
    auto rstd = at::empty({rows}, x.options());
    with_kind(kind, [&](auto number) {
      using T = decltype(number);
      const T* more = added ? data<T>(delta) : nullptr;
      at::parallel_for(0, rows, grain(width), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          const std::int64_t at = row * width;
          data<float>(rstd)[row] =
              kernels::rms_norm(data<float>(from) + at, more == nullptr ? nullptr : more + at, data<float>(weight),
                                static_cast<float>(eps), width, data<float>(residual) + at, data<T>(out) + at);
        }
      });
    });
    ctx->set_materialize_grads(false);
    ctx->saved_data["delta"] = added.has_value();
    ctx->saved_data["kind"] = static_cast<std::int64_t>(kind);
    ctx->save_for_backward({residual, weight, rstd});
    if (added) {
      return {residual, out};
    }
    return {out};
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const bool has_delta = ctx->saved_data["delta"].toBool();
    const auto kind = static_cast<at::ScalarType>(ctx->saved_data["kind"].toInt());
    const auto saved = ctx->get_saved_variables();
    const auto &residual = saved[0], &weight = saved[1], &rstd = saved[2];
    const auto grad_sum = has_delta ? gradients[0] : at::Tensor();
    const auto grad = gradients.back();
    if (!grad.defined()) {
      return {grad_sum, has_delta && grad_sum.defined() ? grad_sum.to(kind) : at::Tensor(), {}, {}, {}};
    }
    const std::int64_t width = residual.size(-1);
    const std::int64_t rows = residual.numel() / width;
    const std::int64_t blocks = (rows + kBlock - 1) / kBlock;
    auto from = grad.contiguous();
    auto grad_residual = grad_sum.defined() ? grad_sum.contiguous() : grad_sum;
    auto grad_x = at::empty_like(residual);
    auto grad_delta = has_delta ? at::empty(residual.sizes(), residual.options().dtype(kind)) : at::Tensor();
    auto grad_weight = at::zeros({blocks, width}, weight.options());
    with_kind(kind, [&](auto number) {
      using T = decltype(number);
      at::parallel_for(0, blocks, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin * kBlock; row < std::min(end * kBlock, rows); ++row) {
          const std::int64_t at = row * width;
          kernels::rms_norm_backward(
              data<T>(from) + at, grad_residual.defined() ? data<float>(grad_residual) + at : nullptr,
              data<float>(residual) + at, data<float>(weight), data<float>(rstd)[row], width, data<float>(grad_x) + at,
              has_delta ? data<T>(grad_delta) + at : nullptr, data<float>(grad_weight) + row / kBlock * width);
        }
      });
    });
    return {grad_x, grad_delta, grad_weight.sum(0), {}, {}};
  }
};

class SwiGlu : public torch::autograd::Function<SwiGlu> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate, const at::Tensor& up) {
    auto g = gate.contiguous();
    auto u = up.contiguous();
    auto out = at::empty_like(g);
    with_kind(g.scalar_type(), [&](auto number) {
      using T = decltype(number);
      at::parallel_for(0, g.numel(), 16384, [&](std::int64_t begin, std::int64_t end) {
        kernels::swiglu(data<T>(g) + begin, data<T>(u) + begin, end - begin, data<T>(out) + begin);
      });
    });
    ctx->save_for_backward({g, u});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto &g = saved[0], &u = saved[1];
    auto from = gradients[0].contiguous();
    auto grad_gate = at::empty_like(g);
    auto grad_up = at::empty_like(u);
    with_kind(g.scalar_type(), [&](auto number) {
      using T = decltype(number);
      at::parallel_for(0, g.numel(), 16384, [&](std::int64_t begin, std::int64_t end) {
        kernels::swiglu_backward(data<T>(from) + begin, data<T>(g) + begin, data<T>(u) + begin, end - begin,
                                 data<T>(grad_gate) + begin, data<T>(grad_up) + begin);
      });
    });
    return {grad_gate, grad_up};
  }
};

}  // namespace

std::unique_ptr<at::Tensor> rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, bool bf16) {
  const auto kind = bf16 ? at::kBFloat16 : at::kFloat;
  if (!uses_cpu_kernels(x)) {
    return std::make_unique<at::Tensor>(at::rms_norm(x, {x.size(-1)}, weight, eps).to(kind));
  }
  return std::make_unique<at::Tensor>(RmsNorm::apply(x, std::optional<at::Tensor>(), weight, eps, kind)[0]);
}

std::unique_ptr<TensorPair> add_rms_norm(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight,
                                         double eps) {
  if (!uses_cpu_kernels(x)) {
    auto sum = x + delta;
    return pair(sum, at::rms_norm(sum, {x.size(-1)}, weight, eps).to(delta.scalar_type()));
  }
  auto both = RmsNorm::apply(x, std::optional<at::Tensor>(delta), weight, eps, delta.scalar_type());
  return pair(both[0], both[1]);
}

std::unique_ptr<at::Tensor> swiglu(const at::Tensor& gate, const at::Tensor& up) {
  if (!uses_cpu_kernels(gate)) {
    return std::make_unique<at::Tensor>(at::silu(gate) * up);
  }
  return std::make_unique<at::Tensor>(SwiGlu::apply(gate, up));
}

}  // namespace foil
