// The device interface of the stand-in for libtorch: guard, streams, events and hooks. There is one device and one
// stream, and every operation is complete when it returns, except copies to and from pinned memory.

#include <ATen/core/Generator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "memory.h"
#include "trace.h"

namespace fake_gpu {
namespace {

const c10::Device kDevice(c10::kCUDA, 0);
const c10::Stream kStream(c10::Stream::DEFAULT, kDevice);

// Waits for copies up to a number; `what` it waits for is traced.
void wait_for(const char* what, std::uint64_t last = UINT64_MAX) {
  finish_copies(last);
  note("wait", what);
}

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  static constexpr c10::DeviceType static_type = c10::kCUDA;
  c10::DeviceType type() const override { return static_type; }
  c10::Device exchangeDevice(c10::Device /*to*/) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device /*to*/) const override {}
  void uncheckedSetDevice(c10::Device /*to*/) const noexcept override {}
  c10::Stream getStream(c10::Device /*of*/) const override { return kStream; }
  c10::Stream getDefaultStream(c10::Device /*of*/) const override { return kStream; }
  c10::Stream getStreamFromGlobalPool(c10::Device /*of*/, bool /*high_priority*/) const override { return kStream; }
  c10::Stream exchangeStream(c10::Stream /*to*/) const override { return kStream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const c10::Stream& /*on*/, const c10::DeviceIndex /*device*/,
              const c10::EventFlag /*flag*/) const override {
    // An event is the number of the last copy before it.
    *event = reinterpret_cast<void*>(last_copy());
  }
  void destroyEvent(void* /*event*/, const c10::DeviceIndex /*device*/) const noexcept override {}
  void block(void* /*event*/, const c10::Stream& /*stream*/) const override {}
  bool queryEvent(void* /*event*/) const override { return true; }
  bool queryStream(const c10::Stream& /*stream*/) const override { return true; }
  void synchronizeStream(const c10::Stream& /*stream*/) const override { wait_for("stream"); }
  void synchronizeEvent(void* event) const override { wait_for("event", reinterpret_cast<std::uint64_t>(event)); }
  void synchronizeDevice(const c10::DeviceIndex /*device*/) const override { wait_for("device"); }
  void recordDataPtrOnStream(const c10::DataPtr& /*pointer*/, const c10::Stream& /*stream*/) const override {}
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

}  // namespace
}  // namespace fake_gpu

namespace at {
namespace {

// The name under which libtorch looks the class up.
class CUDAHooks final : public CUDAHooksInterface {
 public:
  explicit CUDAHooks(CUDAHooksArgs /*none*/) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex /*device*/) const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  long versionCUDART() const override { return 13000; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex /*device*/) const override {}
  DeviceIndex exchangeDevice(DeviceIndex /*device*/) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex /*device*/) const override { return 0; }
  Allocator* getCUDADeviceAllocator() const override { return fake_gpu::device_memory(); }
  Allocator* getPinnedMemoryAllocator() const override { return fake_gpu::pinned_memory(); }
  bool isPinnedPtr(const void* address) const override { return fake_gpu::is_pinned(address); }
  Device getDeviceFromPtr(void* /*address*/) const override { return {kCUDA, 0}; }
  void deviceSynchronize(DeviceIndex /*device*/) const override { fake_gpu::wait_for("device"); }
};

REGISTER_CUDA_HOOKS(CUDAHooks);

}  // namespace
}  // namespace at
