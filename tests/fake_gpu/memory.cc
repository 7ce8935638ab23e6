#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "trace.h"

namespace fake_gpu {
namespace {

// Size to which CUDA's allocator rounds and aligns.
constexpr std::size_t kBlock = 512;

std::size_t rounded(std::size_t bytes) { return (bytes + kBlock - 1) / kBlock * kBlock; }

// The unit of memory protection.
constexpr std::size_t kPage = 4096;

void* aligned(std::size_t bytes, std::size_t alignment = kBlock) {
  void* block = nullptr;
  if (posix_memalign(&block, alignment, bytes) != 0) {
    throw std::bad_alloc();
  }
  return block;
}

// A block begins with its size, followed by the tensor's memory.
void free_device(void* address) {
  if (address == nullptr) {
    return;
  }
  auto* block = static_cast<char*>(address) - kBlock;
  std::size_t bytes;
  std::memcpy(&bytes, block, sizeof bytes);
  freed(static_cast<std::int64_t>(bytes));
  // Fills the memory with NaN, to expose reads after it is freed.
  std::memset(address, 0xFF, bytes);
  std::free(block);
}

class DeviceMemory final : public c10::DeviceAllocator {
 public:
  at::DataPtr allocate(std::size_t wanted) override {
    const c10::Device device(c10::kCUDA, 0);
    if (wanted == 0) {
      return {nullptr, nullptr, &free_device, device};
    }
    const std::size_t bytes = rounded(wanted);
    allocated(static_cast<std::int64_t>(bytes));
    auto* block = static_cast<char*>(aligned(bytes + kBlock));
    std::memcpy(block, &bytes, sizeof bytes);
    char* address = block + kBlock;
    // All bits set: NaN in every float kind, −1 as an index.
    std::memset(address, 0xFF, bytes);
    return {address, address, &free_device, device};
  }
  at::DeleterFnPtr raw_deleter() const override { return &free_device; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t /*pool*/) override {}
  void recordStream(const at::DataPtr& /*pointer*/, c10::Stream /*stream*/) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex /*device*/) override {
    const auto now = memory(/*reset=*/false);
    c10::CachingDeviceAllocator::DeviceStats stats;
    auto& all = stats.allocated_bytes[static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
    all.current = now.live;
    all.peak = now.peak;
    return stats;
  }
  std::pair<std::size_t, std::size_t> getMemoryInfo(c10::DeviceIndex /*device*/) override {
    constexpr auto total = static_cast<std::size_t>(kBoardBytes);
    return {total - static_cast<std::size_t>(memory(/*reset=*/false).live), total};
  }
  void resetAccumulatedStats(c10::DeviceIndex /*device*/) override {}
  void resetPeakStats(c10::DeviceIndex /*device*/) override { memory(/*reset=*/true); }
};

DeviceMemory device;
REGISTER_ALLOCATOR(c10::DeviceType::CUDA, &device)

class PinnedMemory final : public c10::Allocator {
 public:
  at::DataPtr allocate(std::size_t bytes) override {
    const std::size_t pages = (bytes + kPage - 1) / kPage * kPage;
    char* address = bytes == 0 ? nullptr : static_cast<char*>(aligned(pages, kPage));
    if (address != nullptr) {
      const std::lock_guard lock(mutex_);
      blocks_[address] = {pages};
    }
    return {address, address, &release, c10::Device(c10::kCPU)};
  }
  at::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }

  bool holds(const void* address) {
    const std::lock_guard lock(mutex_);
    return find(address) != blocks_.end();
  }

  void protect(const void* address, std::uint64_t copy) {
    const std::lock_guard lock(mutex_);
    const auto found = find(address);
    if (found != blocks_.end()) {
      found->second.copy = copy;
      set_access(*found, PROT_READ);
    }
  }

  void unprotect(std::uint64_t last_copy) {
    const std::lock_guard lock(mutex_);
    for (auto& block : blocks_) {
      if (block.second.copy != 0 && block.second.copy <= last_copy) {
        set_access(block, PROT_READ | PROT_WRITE);
        block.second.copy = 0;
      }
    }
  }

 private:
  struct Block {
    std::size_t bytes;
    // The last copy that reads it; 0 after the host has waited for that.
    std::uint64_t copy = 0;
  };
  using Blocks = std::map<char*, Block>;

  static void release(void* address);

  static void set_access(const Blocks::value_type& block, int access) {
    if (mprotect(block.first, block.second.bytes, access) != 0) {
      throw std::bad_alloc();
    }
  }

  Blocks::iterator find(const void* address) {
    auto* byte = const_cast<char*>(static_cast<const char*>(address));
    const auto after = blocks_.upper_bound(byte);
    const bool found = after != blocks_.begin() && byte < std::prev(after)->first + std::prev(after)->second.bytes;
    return found ? std::prev(after) : blocks_.end();
  }

  std::mutex mutex_;
  Blocks blocks_;
};

PinnedMemory pinned;

void PinnedMemory::release(void* address) {
  // CUDA's allocator keeps the block until the copy from it has finished.
  const std::lock_guard lock(pinned.mutex_);
  const auto found = pinned.find(address);
  if (found != pinned.blocks_.end()) {
    set_access(*found, PROT_READ | PROT_WRITE);
    pinned.blocks_.erase(found);
    std::free(address);
  }
}

}  // namespace

c10::Allocator* device_memory() { return &device; }
c10::Allocator* pinned_memory() { return &pinned; }
bool is_pinned(const void* address) { return pinned.holds(address); }
void protect_pinned(const void* address, std::uint64_t copy) { pinned.protect(address, copy); }
void unprotect_pinned(std::uint64_t last_copy) { pinned.unprotect(last_copy); }

at::Tensor device_tensor(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType kind) {
  return at::detail::empty_strided_generic(sizes, strides, &device, c10::DispatchKeySet(c10::DispatchKey::CUDA), kind);
}

at::Tensor on_host(const at::Tensor& tensor) {
  const auto& storage = tensor.storage();
  at::DataPtr same(const_cast<void*>(storage.data()), c10::Device(c10::kCPU));
  auto borrowed =
      c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), storage.nbytes(), std::move(same),
                                            c10::GetAllocator(c10::kCPU), /*resizable=*/true);
  auto view = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(std::move(borrowed)),
                                                       c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  view.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return view;
}

at::Tensor to_device(const at::Tensor& host) {
  if (!host.defined()) {
    return host;
  }
  const auto dense = host.is_non_overlapping_and_dense() ? host : host.contiguous();
  auto copied = device_tensor(dense.sizes(), dense.strides(), dense.scalar_type());
  if (dense.numel() > 0) {
    std::memcpy(copied.data_ptr(), dense.const_data_ptr(), dense.nbytes());
  }
  return copied;
}

}  // namespace fake_gpu
