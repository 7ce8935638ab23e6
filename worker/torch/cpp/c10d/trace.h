// Records the order in which the backward pass computes gradients and the reducer sends buckets.
#pragma once

#include <ATen/core/ivalue.h>

#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

namespace foil {

// Autograd may call from its own threads, so everything is guarded by a lock, also while nothing is traced.
class Trace {
 public:
  enum class EventKind : std::uint8_t { Gradient = 0, Sent = 1, Summed = 2 };

  void begin(std::int64_t pause_at) {
    const std::lock_guard lock(mutex_);
    pause_at_ = pause_at;
    tracing_ = true;
    clear();
  }

  // At parameter `pause_at`, the backward pass waits for all buckets in flight. The lock is released meanwhile, so that
  // other threads can send.
  void gradient(std::int64_t parameter) {
    InFlight in_flight;
    {
      const std::lock_guard lock(mutex_);
      if (!tracing_) {
        return;
      }
      events_.emplace_back(EventKind::Gradient, parameter);
      if (parameter != pause_at_) {
        return;
      }
      in_flight = std::exchange(in_flight_, {});
    }
    for (const auto& [bucket, sum] : in_flight) {
      sum->waitAndThrow();
      const std::lock_guard lock(mutex_);
      events_.emplace_back(EventKind::Summed, bucket);
    }
  }

  void sent(std::int64_t bucket, const c10::intrusive_ptr<c10::ivalue::Future>& sum) {
    const std::lock_guard lock(mutex_);
    if (tracing_) {
      events_.emplace_back(EventKind::Sent, bucket);
      in_flight_.emplace_back(bucket, sum);
    }
  }

  std::vector<std::pair<EventKind, std::int64_t>> end() {
    const std::lock_guard lock(mutex_);
    tracing_ = false;
    auto events = events_;
    clear();
    return events;
  }

 private:
  using InFlight = std::vector<std::pair<std::int64_t, c10::intrusive_ptr<c10::ivalue::Future>>>;

  void clear() {
    events_.clear();
    in_flight_.clear();
  }

  std::mutex mutex_;
  bool tracing_ = false;
  std::int64_t pause_at_ = -1;
  std::vector<std::pair<EventKind, std::int64_t>> events_;
  InFlight in_flight_;
};

}  // namespace foil
