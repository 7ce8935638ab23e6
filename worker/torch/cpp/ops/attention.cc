// Rotary attention over packed sequences, several of which may share a prefix.

#include <ATen/TensorOperators.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>

#include "foil-torch/src/ffi.rs.h"
#include "rows.h"

namespace foil {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Segments = std::vector<std::int64_t>;  // the four fields of each Segment, flattened

Segments flatten(rust::Slice<const Segment> segments) {
  Segments data;
  for (const auto& s : segments) {
    data.insert(data.end(), {s.start, s.length, s.prefix_start, s.prefix_length});
  }
  return data;
}

// Every head of `x`, [tokens, heads, head_dim], rotated by its token's angles, [tokens, head_dim / 2], and scaled.
at::Tensor rotate_heads(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, float scale,
                        at::ScalarType kind) {
  const std::int64_t heads = x.size(1), width = x.size(2), half = width / 2;
  auto from = x.contiguous();
  auto out = at::empty(x.sizes(), x.options().dtype(kind));
  with_kind(x.scalar_type(), [&](auto in) {
    with_kind(kind, [&](auto number) {
      using In = decltype(in);
      using Out = decltype(number);
      at::parallel_for(0, x.size(0), grain(heads * width), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t token = begin; token < end; ++token) {
          for (std::int64_t head = 0; head < heads; ++head) {
            const std::int64_t at = (token * heads + head) * width;
            kernels::rotate(data<In>(from) + at, data<float>(cos) + token * half, data<float>(sin) + token * half,
                            scale, half, data<Out>(out) + at);
          }
        }
      });
    });
  });
  return out;
}

// One segment's part of a tensor [tokens, heads, head_dim] as [kv_heads, groups · length, head_dim]: heads that share
// keys are stacked along the position axis.
at::Tensor grouped(const at::Tensor& x, std::int64_t start, std::int64_t length, std::int64_t kv_heads) {
  auto part = x.narrow(0, start, length);
  if (x.size(1) == kv_heads) {
    return part.transpose(0, 1);
  }
  return part.view({length, kv_heads, -1, x.size(2)}).permute({1, 2, 0, 3}).reshape({kv_heads, -1, x.size(2)});
}

void put_grouped(const at::Tensor& grouped, const at::Tensor& into, std::int64_t start, std::int64_t length) {
  const std::int64_t kv_heads = grouped.size(0), width = grouped.size(2);
  auto part = into.narrow(0, start, length).view({length, kv_heads, -1, width});
  part.copy_(grouped.view({kv_heads, -1, length, width}).permute({2, 0, 1, 3}));
}

// The rows that a segment attends to, its prefix's and its own: [kv_heads, prefix + length, head_dim].
at::Tensor with_prefix(const at::Tensor& x, const std::int64_t* segment) {
  auto own = x.narrow(0, segment[0], segment[1]);
  if (segment[3] == 0) {
    return own.transpose(0, 1);
  }
  const std::vector<at::Tensor> parts{x.narrow(0, segment[2], segment[3]), own};
  return at::cat(parts, 0).transpose(0, 1);
}

// The attention probabilities of a segment, [kv_heads, groups · length, prefix + length].
at::Tensor probabilities(const at::Tensor& q, const at::Tensor& k, std::int64_t length) {
  auto scores = at::bmm(q, k.transpose(1, 2));
  const std::int64_t width = scores.size(2), rows = scores.numel() / width;
  with_kind(scores.scalar_type(), [&](auto number) {
    using T = decltype(number);
    at::parallel_for(0, rows, grain(8 * width), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        kernels::softmax(data<T>(scores) + row * width, width - length + row % length + 1, width);
      }
    });
  });
  return scores;
}

void softmax_backward(const at::Tensor& p, const at::Tensor& grad) {
  const std::int64_t width = p.size(2), rows = p.numel() / width;
  with_kind(p.scalar_type(), [&](auto number) {
    using T = decltype(number);
    at::parallel_for(0, rows, grain(4 * width), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        kernels::softmax_backward(data<T>(p) + row * width, data<T>(grad) + row * width, width);
      }
    });
  });
}

// Segments [first, last), as offsets into the flattened list, that share a prefix, and their cost.
struct SegmentGroup {
  std::size_t first, last;
  double cost;
};

std::vector<SegmentGroup> segment_groups(const Segments& segments) {
  std::vector<SegmentGroup> found;
  for (std::size_t i = 0; i < segments.size(); i += 4) {
    if (found.empty() || segments[i + 3] == 0) {
      found.push_back({i, i, 0});
    }
    found.back().last = i + 4;
    found.back().cost += static_cast<double>(segments[i + 1]) * static_cast<double>(segments[i + 1] + segments[i + 3]);
  }
  return found;
}

// Runs `work` for every segment. Groups share no rows, so each belongs to one thread; within a group, segments come in
// order. A group's products are small: threads that take whole groups never wait for one another.
template <typename Work>
void for_each_segment(const Segments& segments, Work&& work) {
  auto all = segment_groups(segments);
  std::stable_sort(all.begin(), all.end(),
                   [](const SegmentGroup& a, const SegmentGroup& b) { return a.cost > b.cost; });
  const auto threads = static_cast<std::size_t>(at::get_num_threads());
  std::vector<std::vector<SegmentGroup>> per_thread(std::min(threads, all.size()));
  std::vector<double> costs(per_thread.size(), 0);
  for (const auto& group : all) {
    const auto cheapest = std::min_element(costs.begin(), costs.end()) - costs.begin();
    per_thread[static_cast<std::size_t>(cheapest)].push_back(group);
    costs[static_cast<std::size_t>(cheapest)] += group.cost;
  }
  at::parallel_for(0, static_cast<std::int64_t>(per_thread.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    at::NoGradGuard no_grad;  // thread-local: not inherited from the caller
    for (std::int64_t thread = begin; thread < end; ++thread) {
      for (const auto& group : per_thread[static_cast<std::size_t>(thread)]) {
        for (std::size_t i = group.first; i < group.last; i += 4) {
          work(&segments[i]);
        }
      }
    }
  });
}

// q: [tokens, heads, head_dim], rotated and scaled; k, v: [tokens, kv_heads, head_dim]; gives q's shape.
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Segments& segments) {
  auto out = at::empty_like(q);
  for_each_segment(segments, [&](const std::int64_t* s) {
    auto p = probabilities(grouped(q, s[0], s[1], k.size(1)), with_prefix(k, s), s[1]);
    put_grouped(at::bmm(p, with_prefix(v, s)), out, s[0], s[1]);
  });
  return out;
}

float scale_of(const at::Tensor& q) { return 1.0f / std::sqrt(static_cast<float>(q.size(2))); }

class Attention : public torch::autograd::Function<Attention> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& cos, const at::Tensor& sin, const Segments& segments) {
    // Always in fp32: scores rounded to bf16 would be most of a bf16 model's error, and products this small are not
    // faster in bf16.
    auto rotated_q = rotate_heads(q, cos, sin, scale_of(q), at::kFloat);
    auto rotated_k = rotate_heads(k, cos, sin, 1.0f, at::kFloat);
    auto values = v.to(at::kFloat).contiguous();
    ctx->save_for_backward({rotated_q, rotated_k, values, cos, sin});
    ctx->saved_data["segments"] = segments;
    ctx->saved_data["kind"] = static_cast<std::int64_t>(q.scalar_type());
    return attend(rotated_q, rotated_k, values, segments).to(q.scalar_type());
  }

  // Scores are recomputed rather than kept: one more product, but no memory that grows with length².
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto &q = saved[0], &k = saved[1], &v = saved[2], &cos = saved[3], &sin = saved[4];
    const Segments segments = ctx->saved_data["segments"].toIntVector();
    const auto kind = static_cast<at::ScalarType>(ctx->saved_data["kind"].toInt());
    const auto grad = gradients[0].to(at::kFloat).contiguous();
    auto grad_q = at::empty_like(q);
    // A prefix accumulates gradients of all segments that attend to it.
    auto grad_k = at::zeros(k.sizes(), k.options());
    auto grad_v = at::zeros(v.sizes(), v.options());
    for_each_segment(segments, [&](const std::int64_t* s) {
      auto queries = grouped(q, s[0], s[1], k.size(1));
      auto keys = with_prefix(k, s);
      auto p = probabilities(queries, keys, s[1]);
      auto upstream = grouped(grad, s[0], s[1], k.size(1));
      accumulate(at::bmm(p.transpose(1, 2), upstream), grad_v, s);
      auto error = at::bmm(upstream, with_prefix(v, s).transpose(1, 2));
      softmax_backward(p, error);
      put_grouped(at::bmm(error, keys), grad_q, s[0], s[1]);
      accumulate(at::bmm(error.transpose(1, 2), queries), grad_k, s);
    });
    const auto back = -sin;
    return {rotate_heads(grad_q, cos, back, scale_of(q), kind),
            rotate_heads(grad_k, cos, back, 1.0f, kind),
            grad_v.to(kind),
            {},
            {},
            {}};
  }

 private:
  // Adds [kv_heads, prefix + length, head_dim] to the rows it belongs to.
  static void accumulate(const at::Tensor& grad, const at::Tensor& into, const std::int64_t* s) {
    auto rows = grad.transpose(0, 1);
    if (s[3] > 0) {
      into.narrow(0, s[2], s[3]).add_(rows.narrow(0, 0, s[3]));
    }
    into.narrow(0, s[0], s[1]).add_(rows.narrow(0, s[3], s[1]));
  }
};

// The same with ATen's operations, differentiated by autograd.
at::Tensor rotate_with_aten(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const auto halves = x.to(at::kFloat).chunk(2, -1);
  const auto c = cos.unsqueeze(1), s = sin.unsqueeze(1);
  const std::vector<at::Tensor> rotated{halves[0] * c - halves[1] * s, halves[1] * c + halves[0] * s};
  return at::cat(rotated, -1).to(x.scalar_type());
}

// Rows of `x`, [rows, …], each as often as segments attend to it. The gradient is summed in fp32 and rounded once; that
// of index_select is summed in x's own kind, and a prefix shared by many completions would lose most of it.
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

// Flash attention of all segments in one call: a segment's keys are its prefix's followed by its own.
at::Tensor flash_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Segments& segments) {
  std::vector<std::int64_t> rows;
  std::vector<std::int32_t> q_ends{0}, k_ends{0};
  std::int64_t max_q_len = 0, max_k_len = 0;
  for (std::size_t i = 0; i < segments.size(); i += 4) {
    const auto* s = &segments[i];
    for (std::int64_t row = 0; row < s[3]; ++row) rows.push_back(s[2] + row);
    for (std::int64_t row = 0; row < s[1]; ++row) rows.push_back(s[0] + row);
    q_ends.push_back(q_ends.back() + static_cast<std::int32_t>(s[1]));
    k_ends.push_back(static_cast<std::int32_t>(rows.size()));
    max_q_len = std::max(max_q_len, s[1]);
    max_k_len = std::max(max_k_len, s[1] + s[3]);
  }
  auto keys = k, values = v;
  // Without shared prefixes the keys are already in order.
  if (q_ends != k_ends) {
    const auto at_rows = at::tensor(rows, at::kLong).to(q.device());
    keys = GatherRows::apply(k, at_rows);
    values = GatherRows::apply(v, at_rows);
  }
  const auto result = at::_flash_attention_forward(q, keys, values, at::tensor(q_ends, at::kInt).to(q.device()),
                                                   at::tensor(k_ends, at::kInt).to(q.device()), max_q_len, max_k_len,
                                                   /*dropout_p=*/0.0, /*is_causal=*/true, /*return_debug_mask=*/false);
  return std::get<0>(result);
}

// Whether the flash attention kernel supports these queries; called directly, it does not pad heads.
bool fits_flash(const at::Tensor& q) {
  const bool half = q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf;
  return q.is_cuda() && half && q.size(2) % 8 == 0 && q.size(2) <= 256;
}

// One call of scaled dot-product attention per segment, for kinds and heads that flash attention does not support.
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

std::unique_ptr<at::Tensor> attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const at::Tensor& cos, const at::Tensor& sin,
                                      rust::Slice<const Segment> segments) {
  const auto list = flatten(segments);
  if (uses_cpu_kernels(q)) {
    return std::make_unique<at::Tensor>(Attention::apply(q, k, v, cos, sin, list));
  }
  const auto rotated_q = rotate_with_aten(q, cos, sin), rotated_k = rotate_with_aten(k, cos, sin);
  return std::make_unique<at::Tensor>(fits_flash(q) ? flash_attention(rotated_q, rotated_k, v, list)
                                                    : attend_per_segment(rotated_q, rotated_k, v, list));
}

std::unique_ptr<at::Tensor> gather_rows(const at::Tensor& x, const at::Tensor& rows) {
  return std::make_unique<at::Tensor>(GatherRows::apply(x, rows));
}

std::unique_ptr<at::Tensor> rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  if (!uses_cpu_kernels(x)) {
    return std::make_unique<at::Tensor>(rotate_with_aten(x, cos, sin));
  }
  at::NoGradGuard no_grad;
  return std::make_unique<at::Tensor>(rotate_heads(x, cos, sin, 1.0f, x.scalar_type()));
}

namespace {

// The query heads of one row that share a key head.
struct HeadTask {
  std::int64_t row, kv_head;
};

// Rotates, stores and attends for one key head of one row; `scratch` holds 2 · head_dim + capacity values.
template <typename T>
void decode_head(HeadTask head_task, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& keys, const at::Tensor& values,
                 std::int64_t slot, std::int64_t position, float* scratch, const at::Tensor& out) {
  const std::int64_t heads = q.size(1), kv_heads = k.size(1), width = q.size(2), half = width / 2;
  const std::int64_t capacity = keys.size(2), groups = heads / kv_heads;
  const auto *c = data<float>(cos) + head_task.row * half, *s = data<float>(sin) + head_task.row * half;
  const std::int64_t cached = (slot * kv_heads + head_task.kv_head) * capacity * width;
  T *key = data<T>(keys) + cached, *value = data<T>(values) + cached;
  const std::int64_t new_row = (head_task.row * kv_heads + head_task.kv_head) * width;
  kernels::rotate(data<T>(k) + new_row, c, s, 1.0f, half, key + position * width);
  std::copy_n(data<T>(v) + new_row, width, value + position * width);
  float *query = scratch, *attended = scratch + width, *scores = scratch + 2 * width;
  for (std::int64_t head = head_task.kv_head * groups; head < (head_task.kv_head + 1) * groups; ++head) {
    const std::int64_t at = (head_task.row * heads + head) * width;
    kernels::rotate(data<T>(q) + at, c, s, scale_of(q), half, query);
    kernels::attend(query, key, value, position + 1, width, scores, attended);
    kernels::narrow(attended, width, data<T>(out) + at);
  }
}

}  // namespace

std::unique_ptr<at::Tensor> decode_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                             const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& keys,
                                             const at::Tensor& values, rust::Slice<const std::int64_t> slots,
                                             rust::Slice<const std::int64_t> positions) {
  at::NoGradGuard no_grad;
  const auto from_q = q.contiguous(), from_k = k.contiguous(), from_v = v.contiguous();
  auto out = at::empty_like(from_q);
  const std::int64_t kv_heads = k.size(1), scratch = 2 * q.size(2) + keys.size(2);
  with_kind(q.scalar_type(), [&](auto number) {
    using T = decltype(number);
    at::parallel_for(0, q.size(0) * kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
      std::vector<float> buffer(static_cast<std::size_t>(scratch));
      for (std::int64_t task = begin; task < end; ++task) {
        const HeadTask head_task{task / kv_heads, task % kv_heads};
        decode_head<T>(head_task, from_q, from_k, from_v, cos, sin, keys, values, slots[head_task.row],
                       positions[head_task.row], buffer.data(), out);
      }
    });
  });
  return std::make_unique<at::Tensor>(out);
}

}  // namespace foil
