// The c10d objects behind the handles of the Rust side.
#pragma once

#include <chrono>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "../bridge.h"

namespace foil {

using Milliseconds = std::chrono::milliseconds;

struct Store::Inner {
  c10::intrusive_ptr<c10d::Store> store;
  std::uint16_t port = 0;
};

// Adds to the time that this thread has spent waiting for collectives of CPU tensors.
void add_wait(std::chrono::steady_clock::duration time);

// Waits on the host until `work` is done, at most for `timeout`.
void wait_for(const c10::intrusive_ptr<c10d::Work>& work, const at::Device& device, Milliseconds timeout);

// Waits for all of `works` in the order in which they began. On a GPU one wait suffices, since its stream orders them.
void wait_for_all(const std::vector<c10::intrusive_ptr<c10d::Work>>& works, const at::Device& device,
                  Milliseconds timeout);

struct Group::Inner {
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  Milliseconds timeout{};

  // Waits on the host until `work` is done, at most for the group's timeout.
  void wait(const c10::intrusive_ptr<c10d::Work>& work, const at::Device& device) const;
};

}  // namespace foil
