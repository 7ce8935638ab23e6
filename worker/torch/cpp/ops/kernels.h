// Fused loops over rows in host memory, for the operations of a layer between its matrix products.
//
// Values are `float` or bfloat16 in memory; all arithmetic is fp32. Each function works on one row or one head and is
// independent of tensors and threads, so its result depends only on its arguments.
#pragma once

#include <cstdint>

namespace foil::kernels {

// bfloat16 in memory: the upper half of a float.
struct Bf16 {
  std::uint16_t bits;
};

// residual = x + delta (delta may be null), out = residual · rstd · weight; returns rstd = 1/sqrt(mean(residual²) +
// eps).
float rms_norm(const float* x, const float* delta, const float* weight, float eps, std::int64_t width, float* residual,
               float* out);
float rms_norm(const float* x, const Bf16* delta, const float* weight, float eps, std::int64_t width, float* residual,
               Bf16* out);

// Adds to `weight_grad` and writes grad_x = rstd · (grad · weight − x̂ · mean(grad · weight · x̂)) + grad_residual
// (which may be null), with x̂ = residual · rstd. Writes the same values to `delta_grad` if that is not null.
void rms_norm_backward(const float* grad, const float* grad_residual, const float* residual, const float* weight,
                       float rstd, std::int64_t width, float* grad_x, float* delta_grad, float* weight_grad);
void rms_norm_backward(const Bf16* grad, const float* grad_residual, const float* residual, const float* weight,
                       float rstd, std::int64_t width, float* grad_x, Bf16* delta_grad, float* weight_grad);

// out = silu(gate) · up.
void swiglu(const float* gate, const float* up, std::int64_t count, float* out);
void swiglu(const Bf16* gate, const Bf16* up, std::int64_t count, Bf16* out);
void swiglu_backward(const float* grad, const float* gate, const float* up, std::int64_t count, float* gate_grad,
                     float* up_grad);
void swiglu_backward(const Bf16* grad, const Bf16* gate, const Bf16* up, std::int64_t count, Bf16* gate_grad,
                     Bf16* up_grad);

// Rotates a head of `2 · half` values by the angles of `cos` and `sin` (`half` values each) and scales it: the halves
// (a, b) become scale · (a·cos − b·sin, b·cos + a·sin).
void rotate(const float* in, const float* cos, const float* sin, float scale, std::int64_t half, float* out);
void rotate(const Bf16* in, const float* cos, const float* sin, float scale, std::int64_t half, Bf16* out);
void rotate(const float* in, const float* cos, const float* sin, float scale, std::int64_t half, Bf16* out);
void rotate(const Bf16* in, const float* cos, const float* sin, float scale, std::int64_t half, float* out);

// Softmax of the first `valid` values in place; the rest of the row becomes 0.
void softmax(float* row, std::int64_t valid, std::int64_t width);
void softmax(Bf16* row, std::int64_t valid, std::int64_t width);

// In place: grad = p · (grad − Σ p · grad), where p is a row of softmax's output.
void softmax_backward(const float* p, float* grad, std::int64_t width);
void softmax_backward(const Bf16* p, Bf16* grad, std::int64_t width);

// One query against `length` cached keys and values, rows of `width` values: out = softmax(keys · query) · values.
// `scores` is scratch space for `length` values. The query is already scaled.
void attend(const float* query, const float* keys, const float* values, std::int64_t length, std::int64_t width,
            float* scores, float* out);
void attend(const float* query, const Bf16* keys, const Bf16* values, std::int64_t length, std::int64_t width,
            float* scores, float* out);

// Maximum of each column over `tokens` rows of `columns` values, and the first row with that value.
void column_max(const float* logits, std::int64_t tokens, std::int64_t columns, float* max, std::int64_t* token);
void column_max(const Bf16* logits, std::int64_t tokens, std::int64_t columns, float* max, std::int64_t* token);

// Adds to each column's `sum` Σ exp(logit − max) over `tokens` rows of `columns` values.
void column_exp_sums(const float* logits, std::int64_t tokens, std::int64_t columns, const float* max, float* sum);
void column_exp_sums(const Bf16* logits, std::int64_t tokens, std::int64_t columns, const float* max, float* sum);

// Samples one token for each column from softmax(logits / temperature), among tokens [first, first + tokens), which
// start at `logits`: the token with the smallest −ln(u)/p, where 1 − u is the column's noise at that token. `max`
// contains the columns' maxima over all tokens. A time below `best_time` replaces it and `token`.
void column_exponential_race(const float* logits, std::int64_t first, std::int64_t tokens, std::int64_t columns,
                             double temperature, const float* max, const std::uint64_t* keys, double* best_time,
                             std::int64_t* token);
void column_exponential_race(const Bf16* logits, std::int64_t first, std::int64_t tokens, std::int64_t columns,
                             double temperature, const float* max, const std::uint64_t* keys, double* best_time,
                             std::int64_t* token);

// log Σ exp of a row.
float log_sum_exp(const float* row, std::int64_t width);
float log_sum_exp(const Bf16* row, std::int64_t width);

// In place, from logits z to upstream · d log p(target) / dz = upstream · (onehot(target) − exp(z − log_sum_exp)).
void log_prob_gradient(float* row, std::int64_t width, float log_sum_exp, std::int64_t target, float upstream);
void log_prob_gradient(Bf16* row, std::int64_t width, float log_sum_exp, std::int64_t target, float upstream);

void widen(const float* in, std::int64_t count, float* out);
void widen(const Bf16* in, std::int64_t count, float* out);
void narrow(const float* in, std::int64_t count, float* out);
void narrow(const float* in, std::int64_t count, Bf16* out);

}  // namespace foil::kernels
