// Memory of CPU tensors as libtorch's allocator reports it to a profiler, and memory of the GPU's allocator.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>

#include "bridge.h"
#include "foil-torch/src/ffi.rs.h"

namespace foil {
namespace {

class Counter final : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void* /*pointer*/, std::int64_t size, std::size_t /*allocated*/, std::size_t /*reserved*/,
                         c10::Device device) override {
    if (device.is_cpu()) {
      current += size;
      peak = std::max(peak, current);
    }
  }

  bool memoryProfilingEnabled() const override { return true; }

  std::int64_t current = 0;
  std::int64_t peak = 0;
};

}  // namespace

struct CpuMemory::Inner {
  std::shared_ptr<Counter> counter = std::make_shared<Counter>();
  c10::DebugInfoGuard guard{c10::DebugInfoKind::PROFILER_STATE, counter};
};
CpuMemory::CpuMemory() : inner(std::make_unique<Inner>()) {}
CpuMemory::~CpuMemory() = default;

std::int64_t CpuMemory::current() const { return inner->counter->current; }
std::int64_t CpuMemory::peak() const { return inner->counter->peak; }
void CpuMemory::reset_peak() const { inner->counter->peak = inner->counter->current; }

namespace {

// The allocator of this process's GPU; null before its first allocation.
c10::DeviceAllocator* device_allocator() {
  auto* allocator = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(at::kCUDA));
  return allocator != nullptr && allocator->initialized() ? allocator : nullptr;
}

}  // namespace

void release_cached_device_memory() {
  if (auto* allocator = device_allocator()) {
    allocator->emptyCache();
  }
}

std::int64_t peak_device_memory() {
  auto* allocator = device_allocator();
  if (allocator == nullptr) {
    return 0;
  }
  const auto stats = allocator->getDeviceStats(0);
  return stats.allocated_bytes[static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
}

std::int64_t total_device_memory() {
  auto* allocator = device_allocator();
  return allocator == nullptr ? 0 : static_cast<std::int64_t>(allocator->getMemoryInfo(0).second);
}

std::int64_t cuda_runtime_version() {
  try {
    return at::detail::getCUDAHooks().versionCUDART();
  } catch (const c10::Error&) {  // libtorch without CUDA
    return 0;
  }
}

std::unique_ptr<CpuMemory> count_cpu_memory() { return std::make_unique<CpuMemory>(); }

}  // namespace foil
