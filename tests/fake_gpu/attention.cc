// Kernels that only CUDA has, computed step by step in fp32 with the checks of the real ones: flash attention of
// sequences of different lengths, memory-efficient attention, RMSNorm.

#include <ATen/ATen.h>
#include <ATen/native/transformers/attention.h>
#include <torch/library.h>

#include "memory.h"
#include "trace.h"

namespace fake_gpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalInt = std::optional<std::int64_t>;

// Positions of one sequence's queries and keys.
struct Span {
  std::int64_t query, queries, key, keys;
};

// The sequences with these cumulative lengths, each with `used` keys if given.
std::vector<Span> spans(const Tensor& q_ends, const Tensor& k_ends, const OptionalTensor& used) {
  const auto q = on_host(q_ends), k = on_host(k_ends);
  const auto lengths = used ? on_host(*used) : Tensor();
  std::vector<Span> found;
  for (std::int64_t i = 0; i + 1 < q.numel(); ++i) {
    const std::int64_t first = q[i].item<int>(), key = k[i].item<int>();
    const std::int64_t keys = used ? lengths[i].item<int>() : k[i + 1].item<int>() - key;
    found.push_back({first, q[i + 1].item<int>() - first, key, keys});
  }
  return found;
}

Tensor wide(const Tensor& tensor) { return on_host(tensor).to(at::kFloat); }

// [tokens, heads, width] → [heads of queries, tokens, width] of one span.
Tensor part(const Tensor& tensor, std::int64_t first, std::int64_t count, std::int64_t groups) {
  return tensor.narrow(0, first, count).transpose(0, 1).repeat_interleave(groups, 0);
}

// The probabilities of a span, [heads, queries, keys]; the last query sees the last key.
struct Scores {
  Tensor p, log_sum_exp;
};
Scores scores(const Tensor& q, const Tensor& k, double scale, bool causal) {
  auto scores = at::matmul(q, k.transpose(1, 2)) * scale;
  if (causal) {
    const auto keys = at::arange(k.size(1)).unsqueeze(0);
    const auto last = at::arange(q.size(1)).unsqueeze(1) + (k.size(1) - q.size(1));
    scores = scores.masked_fill(keys.gt(last), -INFINITY);
  }
  return {at::softmax(scores, -1), at::logsumexp(scores, {-1})};
}

struct Attended {
  Tensor out, log_sum_exp;
};
// q: [tokens, heads, width]; k, v: [keys, kv_heads, width], on the host in fp32.
Attended attend(const Tensor& q, const Tensor& k, const Tensor& v, const std::vector<Span>& all, double scale,
                bool causal) {
  const std::int64_t groups = q.size(1) / k.size(1);
  auto out = at::full(q.sizes(), NAN, at::kFloat), log_sum_exp = at::full({q.size(1), q.size(0)}, NAN, at::kFloat);
  for (const auto& s : all) {
    const auto found =
        scores(part(q, s.query, s.queries, 1), part(k, s.key, s.keys, groups), scale, causal && s.queries > 1);
    out.narrow(0, s.query, s.queries).copy_(at::matmul(found.p, part(v, s.key, s.keys, groups)).transpose(0, 1));
    log_sum_exp.narrow(1, s.query, s.queries).copy_(found.log_sum_exp);
  }
  return {out, log_sum_exp};
}

std::array<Tensor, 3> attend_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                                      const std::vector<Span>& all, double scale, bool causal) {
  const std::int64_t groups = q.size(1) / k.size(1);
  auto grad_q = at::zeros_like(q), grad_k = at::zeros_like(k), grad_v = at::zeros_like(v);
  // Sums over the query heads that share a key head.
  const auto add = [&](const Tensor& into, const Span& s, const Tensor& grad) {
    const auto shared = grad.view({into.size(1), groups, s.keys, into.size(2)}).sum(1);
    into.narrow(0, s.key, s.keys).add_(shared.transpose(0, 1));
  };
  for (const auto& s : all) {
    const auto queries = part(q, s.query, s.queries, 1), keys = part(k, s.key, s.keys, groups);
    const auto upstream = part(grad, s.query, s.queries, 1);
    const auto p = scores(queries, keys, scale, causal && s.queries > 1).p;
    add(grad_v, s, at::matmul(p.transpose(1, 2), upstream));
    const auto grad_p = at::matmul(upstream, part(v, s.key, s.keys, groups).transpose(1, 2));
    const auto error = p * (grad_p - (grad_p * p).sum(-1, true)) * scale;
    grad_q.narrow(0, s.query, s.queries).copy_(at::matmul(error, keys).transpose(0, 1));
    add(grad_k, s, at::matmul(error.transpose(1, 2), queries));
  }
  return {grad_q, grad_k, grad_v};
}

double scale_of(const Tensor& q, std::optional<double> scale) {
  return scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(-1))));
}

void check_on_device(std::initializer_list<Tensor> tensors) {
  for (const auto& tensor : tensors) {
    TORCH_CHECK(tensor.is_cuda(), "Input tensor must be on CUDA device");
    TORCH_CHECK(tensor.dim() == 1 || tensor.stride(-1) == 1, "Input tensor must have contiguous last dimension");
  }
}

// The checks of FlashAttention's mha_varlen_fwd.
void check_flash(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_ends, const Tensor& k_ends) {
  const auto kind = q.scalar_type();
  TORCH_CHECK(kind == at::kHalf || kind == at::kBFloat16, "FlashAttention only support fp16 and bf16 data type");
  TORCH_CHECK(k.scalar_type() == kind && v.scalar_type() == kind, "query, key and value must have the same dtype");
  TORCH_CHECK(q_ends.scalar_type() == at::kInt && k_ends.scalar_type() == at::kInt, "cu_seqlens must be int32");
  check_on_device({q, k, v, q_ends, k_ends});
  TORCH_CHECK(q_ends.is_contiguous() && k_ends.is_contiguous(), "cu_seqlens must be contiguous");
  TORCH_CHECK(q_ends.numel() == k_ends.numel() && q_ends.numel() > 1, "batch size must be positive");
  TORCH_CHECK(q.size(2) % 8 == 0, "head_size should be a multiple of 8");
  TORCH_CHECK(q.size(2) <= 256, "FlashAttention only supports head dimension at most 256");
  TORCH_CHECK(q.size(1) % k.size(1) == 0, "Number of heads in key/value must divide number of heads in query");
}

void check_lengths(const std::vector<Span>& all, std::int64_t max_q, std::int64_t max_k) {
  for (const auto& s : all) {
    TORCH_CHECK(s.queries <= max_q && s.keys <= max_k, "a sequence is longer than max_seqlen");
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> flash_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& q_ends, const OptionalTensor& k_ends,
    std::int64_t max_q, std::int64_t max_k, double /*dropout*/, bool causal, bool /*debug*/,
    std::optional<double> scale, OptionalInt /*left*/, OptionalInt /*right*/, const OptionalTensor& used,
    const OptionalTensor& /*alibi*/) {
  check_flash(q, k, v, *q_ends, *k_ends);
  TORCH_CHECK(!used || (used->is_cuda() && used->scalar_type() == at::kInt && used->is_contiguous()),
              "seqused_k must be a contiguous int32 tensor on the device");
  launch(c10::str("aten::_flash_attention_forward ", q.sizes(), " ", k.sizes(), used ? " decode" : " varlen"));
  const auto all = spans(*q_ends, *k_ends, used);
  check_lengths(all, max_q, max_k);
  const auto found = attend(wide(q), wide(k), wide(v), all, scale_of(q, scale), causal);
  const auto none = at::zeros({2}, at::kLong);
  return {to_device(found.out.to(q.scalar_type())), to_device(found.log_sum_exp), to_device(none), to_device(none),
          to_device(at::zeros({0}, at::kFloat))};
}

std::tuple<Tensor, Tensor, Tensor> flash_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                                                  const Tensor& /*out*/, const Tensor& /*log_sum_exp*/,
                                                  const Tensor& q_ends, const Tensor& k_ends, std::int64_t max_q,
                                                  std::int64_t max_k, double /*dropout*/, bool causal,
                                                  const Tensor& /*rng*/, const Tensor& /*unused*/,
                                                  std::optional<double> scale, OptionalInt /*left*/,
                                                  OptionalInt /*right*/) {
  check_flash(q, k, v, q_ends, k_ends);
  launch(c10::str("aten::_flash_attention_backward ", q.sizes(), " ", k.sizes()));
  const auto all = spans(q_ends, k_ends, std::nullopt);
  check_lengths(all, max_q, max_k);
  const auto found = attend_backward(wide(grad), wide(q), wide(k), wide(v), all, scale_of(q, scale), causal);
  const auto kind = q.scalar_type();
  return {to_device(found[0].to(kind)), to_device(found[1].to(kind)), to_device(found[2].to(kind))};
}

// The checks of memory-efficient attention for concatenated sequences: [1, tokens, heads, width].
void check_efficient(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& q_ends,
                     const OptionalTensor& k_ends, std::int64_t mask) {
  TORCH_CHECK(q_ends && k_ends, "this stand-in has sequences end to end only");
  check_on_device({q, k, v, *q_ends, *k_ends});
  TORCH_CHECK(q_ends->scalar_type() == at::kInt && k_ends->scalar_type() == at::kInt, "cu_seqlens must be int32");
  TORCH_CHECK(q.dim() == 4 && q.size(0) == 1 && k.size(0) == 1, "with cu_seqlens the batch is one");
  TORCH_CHECK(q.size(2) == k.size(2) && q.size(2) == v.size(2), "query, key and value have the same heads");
  TORCH_CHECK(q.scalar_type() != at::kFloat || q.size(3) % 4 == 0, "query is not correctly aligned");
  TORCH_CHECK(mask == 2, "this stand-in has the causal mask from the bottom right only");
}

std::tuple<Tensor, Tensor, Tensor, Tensor, c10::SymInt, c10::SymInt> efficient_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& /*bias*/, const OptionalTensor& q_ends,
    const OptionalTensor& k_ends, OptionalInt max_q, OptionalInt max_k, double /*dropout*/, std::int64_t mask,
    bool /*log_sum_exp*/, std::optional<double> scale, const OptionalTensor& /*lengths*/, OptionalInt /*window*/) {
  check_efficient(q, k, v, q_ends, k_ends, mask);
  launch(c10::str("aten::_efficient_attention_forward ", q.sizes(), " ", k.sizes()));
  const auto all = spans(*q_ends, *k_ends, std::nullopt);
  check_lengths(all, *max_q, *max_k);
  const auto found =
      attend(wide(q).squeeze(0), wide(k).squeeze(0), wide(v).squeeze(0), all, scale_of(q, scale), /*causal=*/true);
  const auto none = to_device(at::zeros({}, at::kLong));
  return {to_device(found.out.unsqueeze(0).to(q.scalar_type())),
          to_device(found.log_sum_exp.unsqueeze(0)),
          none,
          none,
          *max_q,
          *max_k};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> efficient_backward(
    const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& /*bias*/,
    const Tensor& /*out*/, const OptionalTensor& q_ends, const OptionalTensor& k_ends, std::int64_t max_q,
    std::int64_t max_k, const Tensor& /*log_sum_exp*/, double /*dropout*/, const Tensor& /*seed*/,
    const Tensor& /*offset*/, std::int64_t mask, bool /*bias_gradient*/, std::optional<double> scale,
    OptionalInt /*splits*/, OptionalInt /*window*/, bool /*shared*/) {
  check_efficient(q, k, v, q_ends, k_ends, mask);
  launch(c10::str("aten::_efficient_attention_backward ", q.sizes(), " ", k.sizes()));
  const auto all = spans(*q_ends, *k_ends, std::nullopt);
  check_lengths(all, max_q, max_k);
  const auto found = attend_backward(wide(grad).squeeze(0), wide(q).squeeze(0), wide(k).squeeze(0), wide(v).squeeze(0),
                                     all, scale_of(q, scale), /*causal=*/true);
  const auto result = [&](const Tensor& tensor) { return to_device(tensor.unsqueeze(0).to(q.scalar_type())); };
  return {result(found[0]), result(found[1]), result(found[2]), Tensor()};
}

// Inference with a mask, as scaled_dot_product_attention calls it: [rows, heads, tokens, width].
std::tuple<Tensor, Tensor, Tensor, Tensor> masked_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                                            const OptionalTensor& mask, bool log_sum_exp,
                                                            double /*dropout*/, bool causal,
                                                            std::optional<double> scale) {
  TORCH_CHECK(!log_sum_exp && !causal, "this stand-in has masked attention for inference only");
  check_on_device({q, k, v});
  launch(c10::str("aten::_scaled_dot_product_efficient_attention ", q.sizes(), " ", k.sizes()));
  auto scores = at::matmul(wide(q), wide(k).transpose(-2, -1)) * scale_of(q, scale);
  if (mask && mask->defined()) {
    TORCH_CHECK(mask->stride(-2) % 8 == 0, "attn_bias is not correctly aligned");
    scores = scores + wide(*mask);
  }
  const auto out = at::matmul(at::softmax(scores, -1), wide(v)).to(q.scalar_type());
  const auto none = to_device(at::zeros({}, at::kLong));
  return {to_device(out), to_device(at::zeros({0}, at::kFloat)), none, none};
}

// The choice of scaled_dot_product_attention on a GPU: efficient attention does not support heads that share keys. If
// gradients are required, the math kernel takes its place.
std::int64_t choice(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& /*mask*/,
                    double /*dropout*/, bool /*causal*/, std::optional<double> /*scale*/, bool shared_heads) {
  const bool differentiable =
      at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad());
  constexpr std::int64_t kMath = 0, kEfficient = 2;
  return differentiable || shared_heads ? kMath : kEfficient;
}

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, at::IntArrayRef /*shape*/, const OptionalTensor& weight,
                                    std::optional<double> eps) {
  check_on_device({x, *weight});
  launch(c10::str("aten::_fused_rms_norm ", x.sizes()));
  const auto from = wide(x);
  const auto rstd = (from.square().mean({-1}, true) + eps.value_or(1e-6)).rsqrt();
  return {to_device((from * rstd * wide(*weight)).to(x.scalar_type())), to_device(rstd)};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad, const Tensor& x, at::IntArrayRef /*shape*/,
                                             const Tensor& rstd, const OptionalTensor& weight,
                                             std::array<bool, 2> wanted) {
  check_on_device({grad, x, rstd, *weight});
  launch(c10::str("aten::_fused_rms_norm_backward ", x.sizes()));
  const auto normed = wide(x) * on_host(rstd), upstream = wide(grad), weighted = upstream * wide(*weight);
  const auto grad_x = on_host(rstd) * (weighted - normed * (weighted * normed).mean({-1}, true));
  const auto grad_weight = (upstream * normed).reshape({-1, x.size(-1)}).sum(0);
  return {wanted[0] ? to_device(grad_x.to(x.scalar_type())) : Tensor(),
          wanted[1] ? to_device(grad_weight.to(weight->scalar_type())) : Tensor()};
}

struct RegisterChoice {
  RegisterChoice() { at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choice); }
} register_choice;

}  // namespace

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("_flash_attention_forward", &flash_forward);
  m.impl("_flash_attention_backward", &flash_backward);
  m.impl("_efficient_attention_forward", &efficient_forward);
  m.impl("_efficient_attention_backward", &efficient_backward);
  m.impl("_scaled_dot_product_efficient_attention", &masked_attention);
  m.impl("_fused_rms_norm", &rms_norm);
  m.impl("_fused_rms_norm_backward", &rms_norm_backward);
}

}  // namespace fake_gpu
