// Functions that both attention paths share.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "foil-torch/src/ffi.rs.h"

namespace foil {

using Segments = std::vector<std::int64_t>;  // the four fields of each Segment, flattened

// The rows that a segment attends to, those of its prefix followed by its own: [kv_heads, prefix + length, head_dim].
at::Tensor with_prefix(const at::Tensor& x, const std::int64_t* segment);

// Implemented with ATen's operations and differentiated by autograd: rotation of every head of `x`, and attention over
// packed rows.
at::Tensor rotate_with_aten(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);
at::Tensor device_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& cos,
                            const at::Tensor& sin, const Segments& segments, const std::vector<at::Tensor>& index);

}  // namespace foil
