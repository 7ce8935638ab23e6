// Transfers to the host without waiting for the device after each one.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <optional>
#include <vector>

#include "bridge.h"

namespace foil {

struct Downloads::Inner {
  // The stream of the copies; none on the CPU.
  std::optional<c10::Stream> stream;
  // Tensors in use by copies in flight.
  std::vector<at::Tensor> held;
};
Downloads::Downloads() : inner(std::make_unique<Inner>()) {}
Downloads::~Downloads() {
  if (inner->stream && !inner->held.empty()) {
    try {
      inner->stream->synchronize();
    } catch (...) {  // a broken device, which copies nothing any more
    }
  }
}

void Downloads::copy(const at::Tensor& from, const at::Tensor& into) const {
  TORCH_CHECK(into.is_cpu() && into.is_contiguous() && into.sizes() == from.sizes(),
              "downloads go to contiguous tensors of the host and of the same shape");
  if (!inner->stream || !from.is_cuda()) {
    into.copy_(from);
    return;
  }
  const auto& stream = *inner->stream;
  c10::Event computed(stream.device_type());
  computed.record(c10::impl::VirtualGuardImpl(stream.device_type()).getStream(stream.device()));
  computed.block(stream);
  inner->held.push_back(from);
  inner->held.push_back(into);
  const c10::StreamGuard guard(stream);
  into.copy_(from, /*non_blocking=*/true);
}

void Downloads::wait() const {
  if (inner->stream && !inner->held.empty()) {
    inner->stream->synchronize();
  }
  inner->held.clear();
}

std::unique_ptr<Downloads> new_downloads(std::int32_t device) {
  auto downloads = std::make_unique<Downloads>();
  if (device >= 0) {
    const c10::Device gpu(c10::kCUDA, static_cast<c10::DeviceIndex>(device));
    downloads->inner->stream = c10::impl::VirtualGuardImpl(c10::kCUDA).getStreamFromGlobalPool(gpu);
  }
  return downloads;
}

std::unique_ptr<at::Tensor> host_buffer(std::int64_t elements, bool pinned) {
  return std::make_unique<at::Tensor>(
      at::empty({elements}, at::TensorOptions().dtype(at::kFloat).pinned_memory(pinned)));
}

}  // namespace foil
