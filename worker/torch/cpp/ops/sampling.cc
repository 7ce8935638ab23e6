// One token for each of many sequences, from logits [vocab, rows] in host memory.

#include <cmath>

#include "foil-torch/src/ffi.rs.h"
#include "rows.h"

namespace foil {
namespace {

// Tokens per part of the vocabulary: large enough that merging parts costs almost nothing, small enough to keep many
// threads busy.
constexpr std::int64_t kPart = 2048;

struct ColumnBest {
  std::vector<double> value;
  std::vector<std::int64_t> token;
};

// Maximum and normalizer of each column, from a first pass over the logits.
struct ColumnStats {
  ColumnBest max;
  // Σ exp(logit − max).
  std::vector<double> sum;
};

// Adopts the better values of `other`. Of equals, the earlier part (this one) is kept.
template <typename Better>
void merge(ColumnBest& best, const ColumnBest& other, Better&& better) {
  for (std::size_t i = 0; i < best.value.size(); ++i) {
    if (better(other.value[i], best.value[i])) {
      best.value[i] = other.value[i];
      best.token[i] = other.token[i];
    }
  }
}

// Rescales the sums of both parts to their common maximum; a part of only −∞ adds nothing.
void merge(ColumnStats& stats, const ColumnStats& other) {
  for (std::size_t i = 0; i < stats.sum.size(); ++i) {
    const double mine = stats.max.value[i], theirs = other.max.value[i];
    const double both = std::max(mine, theirs);
    const auto around = [&](double sum, double at) { return at == -INFINITY ? 0.0 : sum * std::exp(at - both); };
    stats.sum[i] = around(stats.sum[i], mine) + around(other.sum[i], theirs);
  }
  merge(stats.max, other.max, [](double a, double b) { return a > b; });
}

template <typename T>
ColumnStats column_stats(const T* logits, std::int64_t tokens, std::int64_t rows) {
  const std::int64_t parts = (tokens + kPart - 1) / kPart;
  const auto columns = static_cast<std::size_t>(rows);
  const auto none =
      ColumnStats{ColumnBest{std::vector<double>(columns, -INFINITY), std::vector<std::int64_t>(columns, 0)},
                  std::vector<double>(columns, 0.0)};
  std::vector<ColumnStats> found(static_cast<std::size_t>(parts), none);
  at::parallel_for(0, parts, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> max(columns), sum(columns);
    for (std::int64_t part = begin; part < end; ++part) {
      auto& stats = found[static_cast<std::size_t>(part)];
      std::fill(max.begin(), max.end(), -INFINITY);
      std::fill(sum.begin(), sum.end(), 0.0f);
      const std::int64_t first = part * kPart, count = std::min(kPart, tokens - first);
      kernels::column_max(logits + first * rows, count, rows, max.data(), stats.max.token.data());
      // The part is still in the CPU cache.
      kernels::column_exp_sums(logits + first * rows, count, rows, max.data(), sum.data());
      for (std::size_t i = 0; i < columns; ++i) {
        stats.max.value[i] = max[i];
        stats.max.token[i] += first;
        stats.sum[i] = sum[i];
      }
    }
  });
  for (std::size_t part = 1; part < found.size(); ++part) {
    merge(found[0], found[part]);
  }
  return found[0];
}

template <typename T>
ColumnBest sample_columns(const T* logits, std::int64_t tokens, std::int64_t rows, double temperature,
                          const ColumnBest& max, const std::uint64_t* keys) {
  const std::vector<float> maxima(max.value.begin(), max.value.end());
  const std::int64_t parts = (tokens + kPart - 1) / kPart;
  // The time of the likeliest token bounds the race of every part from the start.
  ColumnBest start{std::vector<double>(static_cast<std::size_t>(rows), INFINITY), max.token};
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t token = max.token[static_cast<std::size_t>(row)];
    std::int64_t winner = token;
    kernels::column_exponential_race(logits + token * rows + row, token, 1, 1, temperature,
                                     &maxima[static_cast<std::size_t>(row)], keys + row,
                                     &start.value[static_cast<std::size_t>(row)], &winner);
  }
  std::vector<ColumnBest> found(static_cast<std::size_t>(parts), start);
  at::parallel_for(0, parts, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t part = begin; part < end; ++part) {
      auto& best = found[static_cast<std::size_t>(part)];
      const std::int64_t first = part * kPart;
      kernels::column_exponential_race(logits + first * rows, first, std::min(kPart, tokens - first), rows, temperature,
                                       maxima.data(), keys, best.value.data(), best.token.data());
    }
  });
  for (std::size_t part = 1; part < found.size(); ++part) {
    merge(found[0], found[part], [](double a, double b) { return a < b; });
  }
  return found[0];
}

}  // namespace

rust::Vec<SampledToken> sample_tokens(const at::Tensor& logits, rust::Slice<const std::uint64_t> keys,
                                      double temperature) {
  TORCH_CHECK(logits.is_cpu() && logits.is_contiguous() && logits.dim() == 2 && logits.size(0) > 0 &&
                  logits.size(1) == static_cast<std::int64_t>(keys.size()),
              "sample_tokens expects contiguous logits [vocab, rows] in host memory and a key for each row");
  const std::int64_t tokens = logits.size(0), rows = logits.size(1);
  rust::Vec<SampledToken> sampled;
  with_kind(logits.scalar_type(), [&](auto number) {
    using T = decltype(number);
    const T* values = data<T>(logits);
    const auto stats = column_stats(values, tokens, rows);
    const auto best =
        temperature > 0 ? sample_columns(values, tokens, rows, temperature, stats.max, keys.data()) : stats.max;
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto column = static_cast<std::size_t>(row);
      float logit;
      kernels::widen(values + best.token[column] * rows + row, 1, &logit);
      const double log_sum_exp = stats.max.value[column] + std::log(stats.sum[column]);
      sampled.push_back(SampledToken{static_cast<std::uint32_t>(best.token[column]), logit, log_sum_exp});
    }
  });
  return sampled;
}

}  // namespace foil
