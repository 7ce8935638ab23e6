#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// The loader picks the widest variant that the processor supports.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOIL_VARIANTS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOIL_VARIANTS
#endif
#define FOIL_INLINE static inline __attribute__((always_inline))

namespace foil::kernels {
namespace {

FOIL_INLINE float load(const float* at) { return *at; }
FOIL_INLINE float load(const Bf16* at) {
  const std::uint32_t bits = static_cast<std::uint32_t>(at->bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

FOIL_INLINE void store(float* at, float value) { *at = value; }
// Rounds to nearest, ties to even. A NaN stays a NaN.
FOIL_INLINE void store(Bf16* at, float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  at->bits = static_cast<std::uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
}

// eˣ to 2 ulp, in a form that compilers vectorize: 2ⁿ · p(r) with x = n·ln 2 + r and p Cephes' minimax polynomial.
// Below −87 it returns e⁻⁸⁷, which is negligible in any sum of probabilities.
FOIL_INLINE float exponential(float x) {
  x = std::min(std::max(x, -87.0f), 88.0f);
  const float n = __builtin_rintf(x * 1.44269504088896341f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const std::int32_t exponent = (static_cast<std::int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return p * scale;
}

FOIL_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

template <typename T>
FOIL_INLINE float rms_norm_row(const float* x, const T* delta, const float* weight, float eps, std::int64_t width,
                               float* residual, T* out) {
  float squares = 0;
  if (delta != nullptr) {
#pragma omp simd reduction(+ : squares)
    for (std::int64_t i = 0; i < width; ++i) {
      const float value = x[i] + load(delta + i);
      residual[i] = value;
      squares += value * value;
    }
  } else {
#pragma omp simd reduction(+ : squares)
    for (std::int64_t i = 0; i < width; ++i) {
      squares += x[i] * x[i];
    }
    residual = const_cast<float*>(x);
  }
  const float rstd = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
#pragma omp simd
  for (std::int64_t i = 0; i < width; ++i) {
    store(out + i, residual[i] * rstd * weight[i]);
  }
  return rstd;
}

template <typename T>
FOIL_INLINE void rms_norm_backward_row(const T* grad, const float* grad_residual, const float* residual,
                                       const float* weight, float rstd, std::int64_t width, float* grad_x,
                                       T* delta_grad, float* weight_grad) {
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t i = 0; i < width; ++i) {
    const float g = load(grad + i);
    const float normed = residual[i] * rstd;
    weight_grad[i] += g * normed;
    dot += g * weight[i] * normed;
  }
  const float mean = dot / static_cast<float>(width);
#pragma omp simd
  for (std::int64_t i = 0; i < width; ++i) {
    grad_x[i] = rstd * (load(grad + i) * weight[i] - residual[i] * rstd * mean);
  }
  if (grad_residual != nullptr) {
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) {
      grad_x[i] += grad_residual[i];
    }
  }
  if (delta_grad != nullptr) {
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) {
      store(delta_grad + i, grad_x[i]);
    }
  }
}

template <typename T>
FOIL_INLINE void swiglu_row(const T* gate, const T* up, std::int64_t count, T* out) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = load(gate + i);
    store(out + i, g * sigmoid(g) * load(up + i));
  }
}

template <typename T>
FOIL_INLINE void swiglu_backward_row(const T* grad, const T* gate, const T* up, std::int64_t count, T* gate_grad,
                                     T* up_grad) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    const float d = load(grad + i);
    const float g = load(gate + i);
    const float s = sigmoid(g);
    store(gate_grad + i, d * load(up + i) * s * (1.0f + g * (1.0f - s)));
    store(up_grad + i, d * g * s);
  }
}

template <typename In, typename Out>
FOIL_INLINE void rotate_head(const In* in, const float* cos, const float* sin, float scale, std::int64_t half,
                             Out* out) {
#pragma omp simd
  for (std::int64_t i = 0; i < half; ++i) {
    const float a = load(in + i) * scale;
    const float b = load(in + half + i) * scale;
    store(out + i, a * cos[i] - b * sin[i]);
    store(out + half + i, b * cos[i] + a * sin[i]);
  }
}

template <typename T>
FOIL_INLINE void softmax_row(T* row, std::int64_t valid, std::int64_t width) {
  float max = -INFINITY;
#pragma omp simd reduction(max : max)
  for (std::int64_t i = 0; i < valid; ++i) {
    max = std::max(max, load(row + i));
  }
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < valid; ++i) {
    sum += exponential(load(row + i) - max);
  }
  const float inverse = 1.0f / sum;
#pragma omp simd
  for (std::int64_t i = 0; i < valid; ++i) {
    store(row + i, exponential(load(row + i) - max) * inverse);
  }
  std::memset(static_cast<void*>(row + valid), 0, static_cast<std::size_t>(width - valid) * sizeof(T));
}

template <typename T>
FOIL_INLINE void softmax_backward_row(const T* p, T* grad, std::int64_t width) {
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t i = 0; i < width; ++i) {
    dot += load(p + i) * load(grad + i);
  }
#pragma omp simd
  for (std::int64_t i = 0; i < width; ++i) {
    store(grad + i, load(p + i) * (load(grad + i) - dot));
  }
}

template <typename T>
FOIL_INLINE void attend_row(const float* query, const T* keys, const T* values, std::int64_t length, std::int64_t width,
                            float* scores, float* out) {
  for (std::int64_t j = 0; j < length; ++j) {
    float score = 0;
#pragma omp simd reduction(+ : score)
    for (std::int64_t i = 0; i < width; ++i) {
      score += query[i] * load(keys + j * width + i);
    }
    scores[j] = score;
  }
  softmax_row(scores, length, length);
  std::fill(out, out + width, 0.0f);
  for (std::int64_t j = 0; j < length; ++j) {
    const float p = scores[j];
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) {
      out[i] += p * load(values + j * width + i);
    }
  }
}

template <typename T>
FOIL_INLINE void column_max_of(const T* logits, std::int64_t tokens, std::int64_t columns, float* max,
                               std::int64_t* token) {
  for (std::int64_t row = 0; row < tokens; ++row) {
    const T* z = logits + row * columns;
#pragma omp simd
    for (std::int64_t i = 0; i < columns; ++i) {
      const float value = load(z + i);
      const bool better = value > max[i];
      max[i] = better ? value : max[i];
      token[i] = better ? row : token[i];
    }
  }
}

template <typename T>
FOIL_INLINE void column_exp_sums_of(const T* logits, std::int64_t tokens, std::int64_t columns, const float* max,
                                    float* sum) {
  for (std::int64_t row = 0; row < tokens; ++row) {
    const T* z = logits + row * columns;
#pragma omp simd
    for (std::int64_t i = 0; i < columns; ++i) {
      sum[i] += exponential(load(z + i) - max[i]);
    }
  }
}

constexpr std::uint64_t kGoldenGamma = 0x9E3779B97F4A7C15ULL;

// SplitMix64's output function (Steele, Lea, Flood 2014).
FOIL_INLINE std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

// Columns checked together; one in a few hundred tokens needs the exact check.
constexpr std::int64_t kColumns = 16;

// A token loses if its (1 − u)/p is not below the best −ln(u)/p so far, since 1 − u ≤ −ln(u). A lower bound of 1 − u
// from its first 32 bits and an upper bound of p in fp32 rule out nearly all tokens; the others are computed in fp64.
template <typename T>
FOIL_INLINE void column_exponential_race_of(const T* logits, std::int64_t first, std::int64_t tokens,
                                            std::int64_t columns, double temperature, const float* max,
                                            const std::uint64_t* keys, double* best_time, std::int64_t* token) {
  constexpr float kSlack = 1.0f + 1e-4f;  // far above what fp32 loses in the exponential and in the bounds
  const auto inverse = static_cast<float>(1.0 / temperature);
  for (std::int64_t row = 0; row < tokens; ++row) {
    const T* z = logits + row * columns;
    const std::uint64_t at = static_cast<std::uint64_t>(first + row + 1) * kGoldenGamma;
    for (std::int64_t block = 0; block < columns; block += kColumns) {
      const std::int64_t end = std::min(block + kColumns, columns);
      int candidates = 0;
#pragma omp simd reduction(+ : candidates)
      for (std::int64_t i = block; i < end; ++i) {
        const auto high = static_cast<std::uint32_t>(mix(keys[i] + at) >> 32);
        const float complement = static_cast<float>(high >> 8) * 0x1p-24f;
        const float bound = exponential((load(z + i) - max[i]) * inverse) * kSlack;
        candidates += complement < static_cast<float>(best_time[i]) * kSlack * bound ? 1 : 0;
      }
      if (candidates == 0) {
        continue;
      }
      for (std::int64_t i = block; i < end; ++i) {
        const double value = load(z + i);
        const double p = std::exp((value - static_cast<double>(max[i])) / temperature);
        if (!(p > 0)) {
          continue;
        }
        const double complement = (static_cast<double>(mix(keys[i] + at) >> 11) + 0.5) * 0x1p-53;
        if (complement < best_time[i] * p) {
          const double time = -std::log1p(-complement) / p;
          if (time < best_time[i]) {
            best_time[i] = time;
            token[i] = first + row;
          }
        }
      }
    }
  }
}

template <typename T>
FOIL_INLINE float log_sum_exp_row(const T* row, std::int64_t width) {
  float max = -INFINITY;
#pragma omp simd reduction(max : max)
  for (std::int64_t i = 0; i < width; ++i) {
    max = std::max(max, load(row + i));
  }
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < width; ++i) {
    sum += exponential(load(row + i) - max);
  }
  return max + std::log(sum);
}

template <typename T>
FOIL_INLINE void log_prob_gradient_row(T* row, std::int64_t width, float log_sum_exp, std::int64_t target,
                                       float upstream) {
  const float at_target = upstream * (1.0f - exponential(load(row + target) - log_sum_exp));
#pragma omp simd
  for (std::int64_t i = 0; i < width; ++i) {
    store(row + i, -upstream * exponential(load(row + i) - log_sum_exp));
  }
  store(row + target, at_target);
}

template <typename T>
FOIL_INLINE void widen_row(const T* in, std::int64_t count, float* out) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    out[i] = load(in + i);
  }
}

template <typename T>
FOIL_INLINE void narrow_row(const float* in, std::int64_t count, T* out) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    store(out + i, in[i]);
  }
}

}  // namespace

#define FOIL_FOR_EACH_KIND(DEFINE) DEFINE(float) DEFINE(Bf16)

#define FOIL_DEFINE(T)                                                                                             \
  FOIL_VARIANTS float rms_norm(const float* x, const T* delta, const float* weight, float eps, std::int64_t width, \
                               float* residual, T* out) {                                                          \
    return rms_norm_row(x, delta, weight, eps, width, residual, out);                                              \
  }                                                                                                                \
  FOIL_VARIANTS void rms_norm_backward(const T* grad, const float* grad_residual, const float* residual,           \
                                       const float* weight, float rstd, std::int64_t width, float* grad_x,         \
                                       T* delta_grad, float* weight_grad) {                                        \
    rms_norm_backward_row(grad, grad_residual, residual, weight, rstd, width, grad_x, delta_grad, weight_grad);    \
  }                                                                                                                \
  FOIL_VARIANTS void swiglu(const T* gate, const T* up, std::int64_t count, T* out) {                              \
    swiglu_row(gate, up, count, out);                                                                              \
  }                                                                                                                \
  FOIL_VARIANTS void swiglu_backward(const T* grad, const T* gate, const T* up, std::int64_t count, T* gate_grad,  \
                                     T* up_grad) {                                                                 \
    swiglu_backward_row(grad, gate, up, count, gate_grad, up_grad);                                                \
  }                                                                                                                \
  FOIL_VARIANTS void rotate(const T* in, const float* cos, const float* sin, float scale, std::int64_t half,       \
                            float* out) {                                                                          \
    rotate_head(in, cos, sin, scale, half, out);                                                                   \
  }                                                                                                                \
  FOIL_VARIANTS void rotate(const T* in, const float* cos, const float* sin, float scale, std::int64_t half,       \
                            Bf16* out) {                                                                           \
    rotate_head(in, cos, sin, scale, half, out);                                                                   \
  }                                                                                                                \
  FOIL_VARIANTS void softmax(T* row, std::int64_t valid, std::int64_t width) { softmax_row(row, valid, width); }   \
  FOIL_VARIANTS void softmax_backward(const T* p, T* grad, std::int64_t width) {                                   \
    softmax_backward_row(p, grad, width);                                                                          \
  }                                                                                                                \
  FOIL_VARIANTS void attend(const float* query, const T* keys, const T* values, std::int64_t length,               \
                            std::int64_t width, float* scores, float* out) {                                       \
    attend_row(query, keys, values, length, width, scores, out);                                                   \
  }                                                                                                                \
  FOIL_VARIANTS void column_max(const T* logits, std::int64_t tokens, std::int64_t columns, float* max,            \
                                std::int64_t* token) {                                                             \
    column_max_of(logits, tokens, columns, max, token);                                                            \
  }                                                                                                                \
  FOIL_VARIANTS void column_exp_sums(const T* logits, std::int64_t tokens, std::int64_t columns, const float* max, \
                                     float* sum) {                                                                 \
    column_exp_sums_of(logits, tokens, columns, max, sum);                                                         \
  }                                                                                                                \
  FOIL_VARIANTS void column_exponential_race(const T* logits, std::int64_t first, std::int64_t tokens,             \
                                             std::int64_t columns, double temperature, const float* max,           \
                                             const std::uint64_t* keys, double* best_time, std::int64_t* token) {  \
    column_exponential_race_of(logits, first, tokens, columns, temperature, max, keys, best_time, token);          \
  }                                                                                                                \
  FOIL_VARIANTS float log_sum_exp(const T* row, std::int64_t width) { return log_sum_exp_row(row, width); }        \
  FOIL_VARIANTS void log_prob_gradient(T* row, std::int64_t width, float log_sum_exp, std::int64_t target,         \
                                       float upstream) {                                                           \
    log_prob_gradient_row(row, width, log_sum_exp, target, upstream);                                              \
  }                                                                                                                \
  FOIL_VARIANTS void widen(const T* in, std::int64_t count, float* out) { widen_row(in, count, out); }             \
  FOIL_VARIANTS void narrow(const float* in, std::int64_t count, T* out) { narrow_row(in, count, out); }

FOIL_FOR_EACH_KIND(FOIL_DEFINE)

}  // namespace foil::kernels
