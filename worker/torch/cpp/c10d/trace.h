// The order in which backward makes gradients and the reducer sends buckets.
#pragma once

#include <ATen/core/ivalue.h>

#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

namespace foil {

// Autograd may call from threads of its own, so all is guarded; where nothing is traced, a call costs a lock.
class Trace {
 public:
  enum class What : std::uint8_t { Gradient = 0, Sent = 1, Summed = 2 };

  void begin(std::int64_t pause_at) {
    const std::lock_guard lock(mutex_);
    pause_at_ = pause_at;
    tracing_ = true;
    forget();
  }

  // At `pause_at`, backward stands still until what flies has landed. The lock is open meanwhile: other threads may
  // send.
  void gradient(std::int64_t parameter) {
    Flying flying;
    {
      const std::lock_guard lock(mutex_);
      if (!tracing_) {
        return;
      }
      events_.emplace_back(What::Gradient, parameter);
      if (parameter != pause_at_) {
        return;
      }
      flying = std::exchange(flying_, {});
    }
    for (const auto& [bucket, sum] : flying) {
      sum->waitAndThrow();
      const std::lock_guard lock(mutex_);
      events_.emplace_back(What::Summed, bucket);
    }
  }

  void sent(std::int64_t bucket, const c10::intrusive_ptr<c10::ivalue::Future>& sum) {
    const std::lock_guard lock(mutex_);
    if (tracing_) {
      events_.emplace_back(What::Sent, bucket);
      flying_.emplace_back(bucket, sum);
    }
  }

  std::vector<std::pair<What, std::int64_t>> end() {
    const std::lock_guard lock(mutex_);
    tracing_ = false;
    auto events = events_;
    forget();
    return events;
  }

 private:
  using Flying = std::vector<std::pair<std::int64_t, c10::intrusive_ptr<c10::ivalue::Future>>>;

  void forget() {
    events_.clear();
    flying_.clear();
  }

  std::mutex mutex_;
  bool tracing_ = false;
  std::int64_t pause_at_ = -1;
  std::vector<std::pair<What, std::int64_t>> events_;
  Flying flying_;
};

}  // namespace foil
