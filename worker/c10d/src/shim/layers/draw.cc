// One token for each of many sequences, from logits [vocab, rows] in host memory.

#include <cmath>

#include "foil-c10d/src/ffi.rs.h"
#include "rows.h"

namespace foil {
namespace {

// A part of the vocabulary: few enough parts that merging them costs nothing, enough to keep many threads busy.
constexpr std::int64_t kPart = 2048;

struct Best {
  std::vector<double> value;
  std::vector<std::int64_t> token;
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

template <typename T>
Best greatest_of(const T* logits, std::int64_t tokens, std::int64_t rows) {
  const std::int64_t parts = (tokens + kPart - 1) / kPart;
  const auto none = Best{std::vector<double>(static_cast<std::size_t>(rows), -INFINITY),
                         std::vector<std::int64_t>(static_cast<std::size_t>(rows), 0)};
  std::vector<Best> found(static_cast<std::size_t>(parts), none);
  at::parallel_for(0, parts, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> greatest(static_cast<std::size_t>(rows));
    for (std::int64_t part = begin; part < end; ++part) {
      auto& best = found[static_cast<std::size_t>(part)];
      std::fill(greatest.begin(), greatest.end(), -INFINITY);
      const std::int64_t first = part * kPart;
      kernels::column_greatest(logits + first * rows, std::min(kPart, tokens - first), rows, greatest.data(),
                               best.token.data());
      for (std::size_t i = 0; i < greatest.size(); ++i) {
        best.value[i] = greatest[i];
        best.token[i] += first;
      }
    }
  });
  for (std::size_t part = 1; part < found.size(); ++part) {
    merge(found[0], found[part], [](double a, double b) { return a > b; });
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

rust::Vec<std::uint32_t> draw_tokens(const at::Tensor& logits, rust::Slice<const std::uint64_t> keys,
                                     double temperature) {
  TORCH_CHECK(logits.is_cpu() && logits.is_contiguous() && logits.dim() == 2 &&
                  logits.size(1) == static_cast<std::int64_t>(keys.size()),
              "draw_tokens wants contiguous logits [vocab, rows] in host memory and a key for each row");
  const std::int64_t tokens = logits.size(0), rows = logits.size(1);
  rust::Vec<std::uint32_t> drawn;
  with_kind(logits.scalar_type(), [&](auto number) {
    using T = decltype(number);
    const T* numbers_of = numbers<T>(logits);
    auto best = greatest_of(numbers_of, tokens, rows);
    if (temperature > 0) {
      best = drawn_from(numbers_of, tokens, rows, temperature, best, keys.data());
    }
    for (const auto token : best.token) {
      drawn.push_back(static_cast<std::uint32_t>(token));
    }
  });
  return drawn;
}

}  // namespace foil
