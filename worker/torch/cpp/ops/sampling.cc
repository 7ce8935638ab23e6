// One token for each of many sequences, from logits [vocab, rows] in host memory.

#include <cmath>

#include "foil-torch/src/ffi.rs.h"
#include "rows.h"

namespace foil {
namespace {

// A part of the vocabulary: few enough parts that merging them costs nothing, enough to keep many threads busy.
constexpr std::int64_t kPart = 2048;

struct Best {
  std::vector<double> value;
  std::vector<std::int64_t> token;
};

// What a first pass over the logits finds of each row.
struct Peaks {
  Best greatest;
  // Σ exp(logit − greatest).
  std::vector<double> sum;
};

// Takes what is better in `other`; of equals the earlier part, which is this one, stays.
template <typename Better>
void merge(Best& best, const Best& other, Better&& better) {
  for (std::size_t i = 0; i < best.value.size(); ++i) {
    if (better(other.value[i], best.value[i])) {
      best.value[i] = other.value[i];
      best.token[i] = other.token[i];
    }
  }
}

// Sums of parts around their own peaks become one around the peak of all; a part of −∞ alone adds nothing.
void merge(Peaks& peaks, const Peaks& other) {
  for (std::size_t i = 0; i < peaks.sum.size(); ++i) {
    const double mine = peaks.greatest.value[i], theirs = other.greatest.value[i];
    const double peak = std::max(mine, theirs);
    const auto around = [&](double sum, double at) { return at == -INFINITY ? 0.0 : sum * std::exp(at - peak); };
    peaks.sum[i] = around(peaks.sum[i], mine) + around(other.sum[i], theirs);
  }
  merge(peaks.greatest, other.greatest, [](double a, double b) { return a > b; });
}

template <typename T>
Peaks peaks_of(const T* logits, std::int64_t tokens, std::int64_t rows) {
  const std::int64_t parts = (tokens + kPart - 1) / kPart;
  const auto columns = static_cast<std::size_t>(rows);
  const auto none = Peaks{Best{std::vector<double>(columns, -INFINITY), std::vector<std::int64_t>(columns, 0)},
                          std::vector<double>(columns, 0.0)};
  std::vector<Peaks> found(static_cast<std::size_t>(parts), none);
  at::parallel_for(0, parts, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> greatest(columns), sum(columns);
    for (std::int64_t part = begin; part < end; ++part) {
      auto& peaks = found[static_cast<std::size_t>(part)];
      std::fill(greatest.begin(), greatest.end(), -INFINITY);
      std::fill(sum.begin(), sum.end(), 0.0f);
      const std::int64_t first = part * kPart, count = std::min(kPart, tokens - first);
      kernels::column_greatest(logits + first * rows, count, rows, greatest.data(), peaks.greatest.token.data());
      // The part is still in the processor's cache.
      kernels::column_exponentials(logits + first * rows, count, rows, greatest.data(), sum.data());
      for (std::size_t i = 0; i < columns; ++i) {
        peaks.greatest.value[i] = greatest[i];
        peaks.greatest.token[i] += first;
        peaks.sum[i] = sum[i];
      }
    }
  });
  for (std::size_t part = 1; part < found.size(); ++part) {
    merge(found[0], found[part]);
  }
  return found[0];
}

template <typename T>
Best drawn_from(const T* logits, std::int64_t tokens, std::int64_t rows, double temperature, const Best& greatest,
                const std::uint64_t* keys) {
  const std::vector<float> peaks(greatest.value.begin(), greatest.value.end());
  const std::int64_t parts = (tokens + kPart - 1) / kPart;
  // The likeliest token's own time bounds every part's race from the start.
  Best start{std::vector<double>(static_cast<std::size_t>(rows), INFINITY), greatest.token};
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t token = greatest.token[static_cast<std::size_t>(row)];
    std::int64_t winner = token;
    kernels::column_race(logits + token * rows + row, token, 1, 1, temperature, &peaks[static_cast<std::size_t>(row)],
                         keys + row, &start.value[static_cast<std::size_t>(row)], &winner);
  }
  std::vector<Best> found(static_cast<std::size_t>(parts), start);
  at::parallel_for(0, parts, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t part = begin; part < end; ++part) {
      auto& best = found[static_cast<std::size_t>(part)];
      const std::int64_t first = part * kPart;
      kernels::column_race(logits + first * rows, first, std::min(kPart, tokens - first), rows, temperature,
                           peaks.data(), keys, best.value.data(), best.token.data());
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
              "sample_tokens wants contiguous logits [vocab, rows] in host memory and a key for each row");
  const std::int64_t tokens = logits.size(0), rows = logits.size(1);
  rust::Vec<SampledToken> drawn;
  with_kind(logits.scalar_type(), [&](auto number) {
    using T = decltype(number);
    const T* numbers_of = numbers<T>(logits);
    const auto peaks = peaks_of(numbers_of, tokens, rows);
    const auto best = temperature > 0 ? drawn_from(numbers_of, tokens, rows, temperature, peaks.greatest, keys.data())
                                      : peaks.greatest;
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto column = static_cast<std::size_t>(row);
      float logit;
      kernels::widen(numbers_of + best.token[column] * rows + row, 1, &logit);
      const double log_sum_exp = peaks.greatest.value[column] + std::log(peaks.sum[column]);
      drawn.push_back(SampledToken{static_cast<std::uint32_t>(best.token[column]), logit, log_sum_exp});
    }
  });
  return drawn;
}

}  // namespace foil
