// Transfers from the host without waiting for the device.

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>

#include "bridge.h"

namespace foil {

std::unique_ptr<at::Tensor> upload(const at::Tensor& host, std::int32_t device) {
  // A copy from pageable memory waits until the device has finished all its work. The allocator of pinned memory reuses
  // a block only after the copy from it has finished.
  return std::make_unique<at::Tensor>(
      host.pin_memory().to(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(device)), /*non_blocking=*/true));
}

}  // namespace foil
