// Records the order in which the backward pass computes gradients and buckets, or units, are sent.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "rust/cxx.h"

namespace foil {

// Autograd may call from its own threads, so a lock guards everything, even while nothing is traced.
class Trace : public std::enable_shared_from_this<Trace> {
 public:
  enum class EventKind : std::uint8_t { Gradient = 0, Sent = 1, Summed = 2 };

  void begin(const std::vector<at::Tensor>& parameters, std::int64_t pause_at) {
    for (std::size_t at = hooks_.size(); at < parameters.size(); ++at) {
      // Runs when the gradient is computed, before it is accumulated and sent.
      const auto hook = parameters[at].register_hook([trace = weak_from_this(), at](const at::Tensor&) {
        if (const auto alive = trace.lock()) {
          alive->gradient(static_cast<std::int64_t>(at));
        }
      });
      hooks_.emplace_back(parameters[at], hook);
    }
    const std::lock_guard lock(mutex_);
    pause_at_ = pause_at;
    tracing_ = true;
    clear();
  }

  // At parameter `pause_at`, the backward pass waits for all buckets in flight. The lock is released during the wait,
  // so that other threads can send.
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

  // The kind and the parameter or bucket of each event, in order.
  rust::Vec<std::int64_t> end() {
    for (const auto& [parameter, hook] : std::exchange(hooks_, {})) {
      parameter.remove_hook(hook);
    }
    const std::lock_guard lock(mutex_);
    tracing_ = false;
    rust::Vec<std::int64_t> flat;
    for (const auto& [kind, index] : events_) {
      flat.push_back(static_cast<std::int64_t>(kind));
      flat.push_back(index);
    }
    clear();
    return flat;
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
  std::vector<std::pair<at::Tensor, unsigned>> hooks_;
};

}  // namespace foil
