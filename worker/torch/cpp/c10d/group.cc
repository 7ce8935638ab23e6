#include <torch/csrc/distributed/c10d/exception.h>

#include <numeric>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#ifdef FOIL_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

// With that in ops/device_sampling.cc, all symbols of libtorch's CUDA libraries that this program calls. They are bound
// weakly, so that it also starts without those libraries, as in a CPU image.
__asm__(".weak _ZN4c10d16ProcessGroupNCCL7OptionsC1Eb");
__asm__(
    ".weak "
    "_ZN4c10d16ProcessGroupNCCLC1EN3c1013intrusive_ptrINS_5StoreENS1_6detail34intrusive_target_default_null_typeIS3_"
    "EEEEiiNS2_INS0_7OptionsENS5_IS8_EEEE");
#endif

#include "handles.h"

namespace foil {

namespace {

thread_local std::chrono::steady_clock::duration waited{};

}  // namespace

void add_wait(std::chrono::steady_clock::duration time) { waited += time; }

std::uint64_t waited_nanoseconds() {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(waited).count());
}

void wait_for(const c10::intrusive_ptr<c10d::Work>& work, const at::Device& device, Milliseconds timeout) {
  if (device.is_cpu()) {
    const auto begin = std::chrono::steady_clock::now();
    work->wait();
    add_wait(std::chrono::steady_clock::now() - begin);
    return;
  }
  // On a GPU, `wait` only orders streams, and NCCL's watchdog would end the whole process if a collective hangs.
  // Polling until the timeout returns an error first.
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (!work->isCompleted()) {
    if (std::chrono::steady_clock::now() >= deadline) {
      C10D_THROW_ERROR(TimeoutError, "the collective did not finish within ", timeout.count(), " ms");
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  work->wait();
}

void wait_for_all(const std::vector<c10::intrusive_ptr<c10d::Work>>& works, const at::Device& device,
                  Milliseconds timeout) {
  if (!device.is_cpu() && !works.empty()) {
    wait_for(works.back(), device, timeout);
  }
  for (const auto& work : works) {
    work->wait();
  }
}

void Group::Inner::wait(const c10::intrusive_ptr<c10d::Work>& work, const at::Device& device) const {
  wait_for(work, device, timeout);
}

Group::Group() : inner(std::make_unique<Inner>()) {}
Group::~Group() = default;

namespace {

std::vector<std::uint64_t> all_ranks(int world) {
  std::vector<std::uint64_t> ranks(world);
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

c10::intrusive_ptr<c10d::Store> with_prefix(const c10::intrusive_ptr<c10d::Store>& store, const char* prefix) {
  return c10::make_intrusive<c10d::PrefixStore>(prefix, store);
}

c10::intrusive_ptr<c10d::Backend> gloo_backend(const c10::intrusive_ptr<c10d::Store>& store, int rank, int world,
                                               const std::string& address, Milliseconds timeout) {
  auto options = c10d::ProcessGroupGloo::Options::create(timeout);
  options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address, /*lazyInit=*/false));
  options->global_ranks_in_group = all_ranks(world);
  return c10::make_intrusive<c10d::ProcessGroupGloo>(with_prefix(store, "gloo"), rank, world, options);
}

#ifdef FOIL_NCCL
c10::intrusive_ptr<c10d::Backend> nccl_backend(const c10::intrusive_ptr<c10d::Store>& store, int rank, int world,
                                               Milliseconds timeout) {
  TORCH_CHECK(at::hasCUDA(), "CUDA's half of libtorch is not installed");
  auto options = c10d::ProcessGroupNCCL::Options::create(/*is_high_priority_stream=*/true);
  // NCCL's watchdog ends a process whose bucket hangs. Polled collectives return their error before that.
  options->timeout = timeout + std::chrono::seconds(30);
  options->global_ranks_in_group = all_ranks(world);
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(with_prefix(store, "nccl"), rank, world, options);
}
#endif

std::vector<at::Tensor> detached(const at::Tensor& tensor) { return {tensor.detach()}; }

}  // namespace

std::unique_ptr<Group> new_group(const Store& store, std::int32_t rank, std::int32_t world, rust::Str address,
                                 std::uint64_t timeout_ms, bool nccl) {
  using Kind = c10d::ProcessGroup::BackendType;
  const auto& base = store.inner->store;
  const Milliseconds timeout(timeout_ms);
  auto group = std::make_unique<Group>();
  group->inner->timeout = timeout;
  auto process_group = c10::make_intrusive<c10d::ProcessGroup>(base, rank, world);
  process_group->setBackend(at::kCPU, Kind::GLOO, gloo_backend(base, rank, world, std::string(address), timeout));
  process_group->setDefaultBackend(nccl ? Kind::NCCL : Kind::GLOO);
  if (nccl) {
#ifdef FOIL_NCCL
    const auto backend = nccl_backend(base, rank, world, timeout);
    process_group->setBackend(at::kCUDA, Kind::NCCL, backend);
    // Otherwise NCCL connects at the first collective. Its memory is outside the allocator, and by then training has
    // filled the device.
    backend->eagerConnectSingleDevice(at::Device(at::kCUDA, 0));
#else
    TORCH_CHECK(false, "this build has no NCCL");
#endif
  }
  group->inner->group = std::move(process_group);
  return group;
}

void Group::all_reduce_sum(const at::Tensor& tensor) const {
  auto tensors = detached(tensor);
  inner->wait(inner->group->allreduce(tensors), tensor.device());
}

void Group::all_reduce_sums(const at::Tensor& tensor, std::uint32_t times) const {
  c10::intrusive_ptr<c10d::Work> last;
  for (std::uint32_t i = 0; i < times; ++i) {
    auto tensors = detached(tensor);
    last = inner->group->allreduce(tensors);
    // Gloo runs collectives concurrently; a GPU's are ordered by their stream.
    if (tensor.is_cpu()) {
      last->wait();
    }
  }
  if (last) {
    inner->wait(last, tensor.device());
  }
}

void Group::broadcast(const at::Tensor& tensor, std::int32_t root) const {
  auto tensors = detached(tensor);
  c10d::BroadcastOptions options;
  options.rootRank = root;
  inner->wait(inner->group->broadcast(tensors, options), tensor.device());
}

void Group::all_gather(const at::Tensor& output, const at::Tensor& input) const {
  auto to = output.detach();
  auto from = input.detach();
  inner->wait(inner->group->_allgather_base(to, from), input.device());
}

void Group::reduce_scatter_sum(const at::Tensor& output, const at::Tensor& input) const {
  auto to = output.detach();
  auto from = input.detach();
  inner->wait(inner->group->_reduce_scatter_base(to, from), input.device());
}

// Calls the backend directly: ProcessGroup's barrier keeps a process-wide tensor, which groups in several threads would
// assign and free concurrently.
void Group::barrier() const { inner->group->getBackend(at::kCPU)->barrier()->wait(); }

void Group::shutdown() const { inner->group->shutdown(); }
void Group::abort() const { inner->group->abort(); }

}  // namespace foil
