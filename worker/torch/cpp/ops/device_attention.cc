// Rotary attention with ATen's operations, for GPUs.

#include <ATen/TensorOperators.h>
#include <ATen/ops/_efficient_attention_forward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/roll.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "../tensor_list.h"
#include "attention.h"

namespace foil {

at::Tensor with_prefix(const at::Tensor& x, const std::int64_t* segment) {
  auto own = x.narrow(0, segment[0], segment[1]);
  if (segment[3] == 0) {
    return own.transpose(0, 1);
  }
  const std::vector<at::Tensor> parts{x.narrow(0, segment[2], segment[3]), own};
  return at::cat(parts, 0).transpose(0, 1);
}

// Rotates both halves in one operation. `sin` is [tokens, half], or [tokens, 2, half] with the sign of the first half
// already changed.
at::Tensor rotate_with_aten(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  // With gradients in fp32, so that both terms are added before rounding.
  const auto from = at::GradMode::is_enabled() ? x.to(at::kFloat) : x;
  const auto halves = from.view({x.size(0), x.size(1), 2, -1});
  const auto turned = sin.dim() == 3 ? sin : at::stack({-sin, sin}, 1);
  const auto kept = halves * cos.unsqueeze(1).unsqueeze(1);
  return at::addcmul(kept, at::roll(halves, {1}, {2}), turned.unsqueeze(1)).view(x.sizes()).to(x.scalar_type());
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows of `x`, [rows, …], each repeated for every segment that attends to it. The gradient is summed in fp32 and
// rounded once. index_select would sum it in x's kind, and a prefix shared by many completions would lose most of it.
class GatherRows : public torch::autograd::Function<GatherRows> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& rows) {
    ctx->save_for_backward({rows});
    ctx->saved_data["sizes"] = x.sizes().vec();
    return at::index_select(x, 0, rows);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto rows = ctx->get_saved_variables()[0];
    const auto sizes = ctx->saved_data["sizes"].toIntVector();
    auto sum = at::zeros(sizes, gradients[0].options().dtype(at::kFloat));
    sum.index_add_(0, rows, gradients[0].to(at::kFloat));
    return {sum.to(gradients[0].scalar_type()), {}};
  }
};

// Inputs of one attention call over all segments: a segment's keys are its prefix's followed by its own.
struct PackedAttention {
  at::Tensor k, v, q_ends, k_ends;
  std::int64_t max_q_len = 0, max_k_len = 0;
};

// `index` contains the ends of the segments' queries and of their keys, [segments + 1], int32 each. If any segment has
// a prefix, it also contains the rows of the keys, int64.
PackedAttention packed_attention(const at::Tensor& k, const at::Tensor& v, const Segments& segments,
                                 const std::vector<at::Tensor>& index) {
  PackedAttention packed{k, v, index.at(0), index.at(1)};
  for (std::size_t i = 0; i < segments.size(); i += 4) {
    packed.max_q_len = std::max(packed.max_q_len, segments[i + 1]);
    packed.max_k_len = std::max(packed.max_k_len, segments[i + 1] + segments[i + 3]);
  }
  // Without shared prefixes the keys are already in order.
  if (index.size() > 2) {
    packed.k = GatherRows::apply(k, index[2]);
    packed.v = GatherRows::apply(v, index[2]);
  }
  return packed;
}

at::Tensor flash_attention(const at::Tensor& q, const PackedAttention& packed) {
  const auto result = at::_flash_attention_forward(q, packed.k, packed.v, packed.q_ends, packed.k_ends,
                                                   packed.max_q_len, packed.max_k_len, /*dropout_p=*/0.0,
                                                   /*is_causal=*/true, /*return_debug_mask=*/false);
  return std::get<0>(result);
}

// Memory-efficient attention, which also supports fp32, but not heads that share keys.
at::Tensor efficient_attention(const at::Tensor& q, const PackedAttention& packed) {
  constexpr std::int64_t kCausalFromBottomRight = 2;  // sdp::CustomMaskType
  const std::int64_t groups = q.size(1) / packed.k.size(1);
  const auto repeated = [&](const at::Tensor& x) {
    return (groups == 1 ? x : at::repeat_interleave(x, groups, 1)).unsqueeze(0);
  };
  const bool differentiable = q.requires_grad() || packed.k.requires_grad() || packed.v.requires_grad();
  const auto result = at::_efficient_attention_forward(
      q.unsqueeze(0), repeated(packed.k), repeated(packed.v), /*bias=*/std::nullopt, packed.q_ends, packed.k_ends,
      packed.max_q_len, packed.max_k_len, /*dropout_p=*/0.0, kCausalFromBottomRight,
      /*compute_log_sumexp=*/at::GradMode::is_enabled() && differentiable);
  return std::get<0>(result).squeeze(0);
}

// Whether the flash attention kernel supports these queries. A direct call does not pad heads.
bool fits_flash(const at::Tensor& q) {
  const bool half = q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf;
  return q.is_cuda() && half && q.size(2) % 8 == 0 && q.size(2) <= 256;
}

// Whether the memory-efficient kernel supports these queries: rows must begin at a multiple of 16 bytes.
bool fits_efficient(const at::Tensor& q) {
  return q.is_cuda() && q.size(2) * static_cast<std::int64_t>(q.element_size()) % 16 == 0;
}

// One call of scaled dot-product attention per segment, for heads that neither kernel supports, and when the CPU takes
// the path of other devices.
at::Tensor attend_per_segment(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Segments& segments) {
  std::vector<at::Tensor> parts;
  for (std::size_t i = 0; i < segments.size(); i += 4) {
    const auto* s = &segments[i];
    const auto positions = at::arange(s[3] + s[1], q.options().dtype(at::kLong));
    const auto mask = positions.unsqueeze(0).le(positions.narrow(0, s[3], s[1]).unsqueeze(1));
    parts.push_back(at::scaled_dot_product_attention(q.narrow(0, s[0], s[1]).transpose(0, 1).unsqueeze(0),
                                                     with_prefix(k, s).unsqueeze(0), with_prefix(v, s).unsqueeze(0),
                                                     mask, 0.0, false, std::nullopt, q.size(1) != k.size(1))
                        .squeeze(0)
                        .transpose(0, 1));
  }
  return at::cat(parts, 0);
}

}  // namespace

at::Tensor device_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& cos,
                            const at::Tensor& sin, const Segments& segments, const std::vector<at::Tensor>& index) {
  const auto rotated_q = rotate_with_aten(q, cos, sin), rotated_k = rotate_with_aten(k, cos, sin);
  if (!fits_flash(q) && !fits_efficient(q)) {
    return attend_per_segment(rotated_q, rotated_k, v, segments);
  }
  TORCH_CHECK(index.size() == 2 || index.size() == 3, "attention on a GPU needs the index of its segments");
  const auto packed = packed_attention(rotated_k, v, segments, index);
  return fits_flash(q) ? flash_attention(rotated_q, packed) : efficient_attention(rotated_q, packed);
}

std::unique_ptr<at::Tensor> gather_rows(const at::Tensor& x, const at::Tensor& rows) {
  return std::make_unique<at::Tensor>(GatherRows::apply(x, rows));
}

std::unique_ptr<at::Tensor> decode_by_flash(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values,
                                            const TensorList& index) {
  at::NoGradGuard no_grad;
  const auto& tensors = index.inner->tensors;
  TORCH_CHECK(tensors.size() == 3, "decoding by flash attention needs the ends of queries and keys, and the lengths");
  // The kernel packs the query heads that share a key head, and reads only the used part of a slot.
  const auto result = at::_flash_attention_forward(
      q, keys.flatten(0, 1), values.flatten(0, 1), tensors[0], tensors[1], /*max_q=*/1, /*max_k=*/keys.size(1),
      /*dropout_p=*/0.0, /*is_causal=*/false, /*return_debug_mask=*/false, /*scale=*/std::nullopt,
      /*window_size_left=*/std::nullopt, /*window_size_right=*/std::nullopt, /*seqused_k=*/tensors[2]);
  return std::make_unique<at::Tensor>(std::get<0>(result));
}

}  // namespace foil
