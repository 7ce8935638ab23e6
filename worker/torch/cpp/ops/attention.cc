// Rotary attention over packed sequences, some of which may share a prefix, and over a cache, with this crate's own
// loops.

#include "attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>

#include "../tensor_list.h"
#include "rows.h"

namespace foil {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

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
  TORCH_CHECK(sin.dim() == 2, "this crate's loops take sines without the sign of the first half");
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

// Runs `work` for every segment. Groups share no rows, so each belongs to one thread; within a group, segments run in
// order. A group's products are small, and threads with whole groups never wait for each other.
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

// q: [tokens, heads, head_dim], rotated and scaled; k, v: [tokens, kv_heads, head_dim]. Returns q's shape.
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
    // Always in fp32: scores rounded to bf16 would cause most of a bf16 model's error, and products this small are not
    // faster in bf16.
    auto rotated_q = rotate_heads(q, cos, sin, scale_of(q), at::kFloat);
    auto rotated_k = rotate_heads(k, cos, sin, 1.0f, at::kFloat);
    auto values = v.to(at::kFloat).contiguous();
    ctx->save_for_backward({rotated_q, rotated_k, values, cos, sin});
    ctx->saved_data["segments"] = segments;
    ctx->saved_data["kind"] = static_cast<std::int64_t>(q.scalar_type());
    return attend(rotated_q, rotated_k, values, segments).to(q.scalar_type());
  }

  // Scores are recomputed rather than kept: this costs one more product, but no memory that grows with length².
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto &q = saved[0], &k = saved[1], &v = saved[2], &cos = saved[3], &sin = saved[4];
    const Segments segments = ctx->saved_data["segments"].toIntVector();
    const auto kind = static_cast<at::ScalarType>(ctx->saved_data["kind"].toInt());
    const auto grad = gradients[0].to(at::kFloat).contiguous();
    auto grad_q = at::empty_like(q);
    // A prefix accumulates the gradients of all segments that attend to it.
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
  // Adds [kv_heads, prefix + length, head_dim] to the corresponding rows.
  static void accumulate(const at::Tensor& grad, const at::Tensor& into, const std::int64_t* s) {
    auto rows = grad.transpose(0, 1);
    if (s[3] > 0) {
      into.narrow(0, s[2], s[3]).add_(rows.narrow(0, 0, s[3]));
    }
    into.narrow(0, s[0], s[1]).add_(rows.narrow(0, s[3], s[1]));
  }
};

}  // namespace

std::unique_ptr<at::Tensor> attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const at::Tensor& cos, const at::Tensor& sin, rust::Slice<const Segment> segments,
                                      const TensorList& index) {
  const auto list = flatten(segments);
  if (uses_cpu_kernels(q)) {
    return std::make_unique<at::Tensor>(Attention::apply(q, k, v, cos, sin, list));
  }
  return std::make_unique<at::Tensor>(device_attention(q, k, v, cos, sin, list, index.inner->tensors));
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
  TORCH_CHECK(sin.dim() == 2, "this crate's loops take sines without the sign of the first half");
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
