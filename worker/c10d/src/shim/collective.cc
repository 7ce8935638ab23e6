#include "shim.h"
#include "tensor_list.h"
#include "trace.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <numeric>
#include <thread>

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/exception.h>
#include <torch/csrc/distributed/c10d/reducer.hpp>
#ifdef FOIL_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

namespace foil {

using Milliseconds = std::chrono::milliseconds;

namespace {

bool contains(const std::string& text, std::initializer_list<const char*> needles) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return std::any_of(needles.begin(), needles.end(),
                     [&](const char* needle) { return lower.find(needle) != std::string::npos; });
}

// Gloo reports time-outs and lost peers as plain runtime errors, told apart by their words only.
std::string with_kind(const std::string& message) {
  if (contains(message, {"timed out", "timeout"})) {
    return "T" + message;
  }
  if (contains(message, {"connection closed", "connection reset", "connection refused", "broken pipe"})) {
    return "P" + message;
  }
  return "O" + message;
}

}  // namespace

std::string describe_exception() noexcept {
  try {
    throw;
  } catch (const c10d::TimeoutError& error) {
    return std::string("T") + error.what_without_backtrace();
  } catch (const c10d::SocketError& error) {
    return std::string("P") + error.what_without_backtrace();
  } catch (const c10::Error& error) {
    return with_kind(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return with_kind(error.what());
  } catch (...) {
    return "Oan exception of unknown type";
  }
}

TensorList::TensorList() : inner(std::make_unique<Inner>()) {}
TensorList::~TensorList() = default;
void TensorList::push(const at::Tensor& tensor) { inner->tensors.push_back(tensor); }
std::size_t TensorList::length() const { return inner->tensors.size(); }
std::unique_ptr<at::Tensor> TensorList::at(std::size_t index) const {
  return std::make_unique<at::Tensor>(inner->tensors.at(index));
}
std::unique_ptr<TensorList> new_tensor_list() { return std::make_unique<TensorList>(); }

// ---- Store ----

struct Store::Inner {
  c10::intrusive_ptr<c10d::Store> store;
  std::uint16_t port = 0;
};
Store::Store() : inner(std::make_unique<Inner>()) {}
Store::~Store() = default;

namespace {

std::unique_ptr<Store> wrap_store(c10::intrusive_ptr<c10d::Store> inner, std::uint16_t port) {
  auto store = std::make_unique<Store>();
  store->inner->store = std::move(inner);
  store->inner->port = port;
  return store;
}

std::unique_ptr<Store> open_store(rust::Str host, c10d::TCPStoreOptions options, std::uint64_t timeout_ms) {
  options.waitWorkers = false;  // the host tells its port before anyone can come
  options.timeout = Milliseconds(timeout_ms);
  auto store = c10::make_intrusive<c10d::TCPStore>(std::string(host), options);
  const auto port = store->getPort();
  return wrap_store(std::move(store), port);
}

}  // namespace

std::unique_ptr<Store> host_store(rust::Str host, std::uint16_t port, std::int32_t listener, std::uint64_t timeout_ms) {
  c10d::TCPStoreOptions options;
  options.isServer = true;
  options.port = port;
  options.masterListenFd = listener;
  return open_store(host, options, timeout_ms);
}

std::unique_ptr<Store> connect_store(rust::Str host, std::uint16_t port, std::uint64_t timeout_ms) {
  c10d::TCPStoreOptions options;
  options.port = port;
  return open_store(host, options, timeout_ms);
}

std::uint16_t Store::port() const { return inner->port; }

std::unique_ptr<Store> Store::prefixed(rust::Str prefix) const {
  return wrap_store(c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), inner->store), inner->port);
}

void Store::set(rust::Str key, rust::Slice<const std::uint8_t> value) const {
  inner->store->set(std::string(key), std::vector<std::uint8_t>(value.begin(), value.end()));
}

rust::Vec<std::uint8_t> Store::get(rust::Str key) const {
  const auto value = inner->store->get(std::string(key));
  rust::Vec<std::uint8_t> bytes;
  bytes.reserve(value.size());
  std::copy(value.begin(), value.end(), std::back_inserter(bytes));
  return bytes;
}

std::int64_t Store::add(rust::Str key, std::int64_t amount) const { return inner->store->add(std::string(key), amount); }

void Store::wait(rust::Str key, std::uint64_t timeout_ms) const {
  inner->store->wait({std::string(key)}, Milliseconds(timeout_ms));
}

// ---- Group ----

struct Group::Inner {
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  Milliseconds timeout{};

  // Waits for the end of `work` on the host, at most for the group's time-out.
  void finish(const c10::intrusive_ptr<c10d::Work>& work, const at::Device& device) const {
    if (device.is_cpu()) {
      work->wait();
      return;
    }
    // On a GPU `wait` only orders streams, and a collective that hangs would be ended, with the whole process, by
    // NCCL's watchdog. Looking at it until the time-out gives an error value first.
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    while (!work->isCompleted()) {
      if (std::chrono::steady_clock::now() >= deadline) {
        C10D_THROW_ERROR(TimeoutError, "the collective did not end within ", timeout.count(), " ms");
      }
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    work->wait();
  }
};
Group::Group() : inner(std::make_unique<Inner>()) {}
Group::~Group() = default;

namespace {

std::vector<std::uint64_t> all_ranks(int world) {
  std::vector<std::uint64_t> ranks(world);
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

c10::intrusive_ptr<c10d::Store> scoped(const c10::intrusive_ptr<c10d::Store>& store, const char* scope) {
  return c10::make_intrusive<c10d::PrefixStore>(scope, store);
}

c10::intrusive_ptr<c10d::Backend> gloo_backend(const c10::intrusive_ptr<c10d::Store>& store, int rank, int world,
                                               const std::string& address, Milliseconds timeout) {
  auto options = c10d::ProcessGroupGloo::Options::create(timeout);
  options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address, /*lazyInit=*/false));
  options->global_ranks_in_group = all_ranks(world);
  return c10::make_intrusive<c10d::ProcessGroupGloo>(scoped(store, "gloo"), rank, world, options);
}

#ifdef FOIL_NCCL
c10::intrusive_ptr<c10d::Backend> nccl_backend(const c10::intrusive_ptr<c10d::Store>& store, int rank, int world,
                                               Milliseconds timeout) {
  auto options = c10d::ProcessGroupNCCL::Options::create();
  // The watchdog ends the process of a hung bucket; collectives waited for by hand return their error before that.
  options->timeout = timeout + std::chrono::seconds(30);
  options->global_ranks_in_group = all_ranks(world);
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(scoped(store, "nccl"), rank, world, options);
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
    process_group->setBackend(at::kCUDA, Kind::NCCL, nccl_backend(base, rank, world, timeout));
#else
    TORCH_CHECK(false, "this build has no NCCL");
#endif
  }
  group->inner->group = std::move(process_group);
  return group;
}

void Group::all_reduce_sum(const at::Tensor& tensor) const {
  auto tensors = detached(tensor);
  inner->finish(inner->group->allreduce(tensors), tensor.device());
}

void Group::broadcast(const at::Tensor& tensor, std::int32_t root) const {
  auto tensors = detached(tensor);
  c10d::BroadcastOptions options;
  options.rootRank = root;
  inner->finish(inner->group->broadcast(tensors, options), tensor.device());
}

void Group::all_gather(const at::Tensor& output, const at::Tensor& input) const {
  auto to = output.detach();
  auto from = input.detach();
  inner->finish(inner->group->_allgather_base(to, from), input.device());
}

void Group::reduce_scatter_sum(const at::Tensor& output, const at::Tensor& input) const {
  auto to = output.detach();
  auto from = input.detach();
  inner->finish(inner->group->_reduce_scatter_base(to, from), input.device());
}

// Asks the backend itself: ProcessGroup's barrier keeps a tensor for the whole process, which groups in several threads
// would assign to and free at once.
void Group::barrier() const { inner->group->getBackend(at::kCPU)->barrier()->wait(); }

void Group::shutdown() const { inner->group->shutdown(); }
void Group::abort() const { inner->group->abort(); }

// ---- Reducer ----

namespace {

// Adds gradients over the ranks and divides by nothing: the loss carries the global weight.
class SumHook final : public c10d::CppCommHookInterface<c10::intrusive_ptr<c10d::ProcessGroup>> {
 public:
  SumHook(c10::intrusive_ptr<c10d::ProcessGroup> group, std::shared_ptr<Trace> trace)
      : CppCommHookInterface(std::move(group)), trace_(std::move(trace)) {}
  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override {
    std::vector<at::Tensor> tensors{bucket.getBufferRef()};
    auto sum = state_->allreduce(tensors)->getFuture();
    trace_->sent(static_cast<std::int64_t>(bucket.getIndex()), sum);
    return sum;
  }

 private:
  std::shared_ptr<Trace> trace_;
};

}  // namespace

struct Reducer::Inner {
  std::shared_ptr<c10d::Reducer> reducer;
  std::vector<at::Tensor> parameters;
  std::shared_ptr<Trace> trace = std::make_shared<Trace>();
  std::vector<std::pair<std::size_t, unsigned>> gradient_hooks;

  ~Inner() {
    try {
      reducer.reset();
    } catch (...) {  // its destructor may throw; what is left of it is of no use to anyone
    }
  }
};
Reducer::Reducer() : inner(std::make_unique<Inner>()) {}
Reducer::~Reducer() = default;

std::unique_ptr<Reducer> new_reducer(const Group& group, const TensorList& list, std::size_t first_bucket_bytes,
                                     std::size_t bucket_bytes) {
  const auto& parameters = list.inner->tensors;
  const auto& process_group = group.inner->group;
  c10d::verify_params_across_processes(process_group, parameters, std::nullopt);
  const std::vector<bool> sparse(parameters.size(), false);
  auto [buckets, limits] =
      c10d::compute_bucket_assignment_by_size(parameters, {first_bucket_bytes, bucket_bytes}, sparse);
  std::reverse(buckets.begin(), buckets.end());  // backward reaches the last parameters first
  auto reducer = std::make_unique<Reducer>();
  reducer->inner->reducer = std::make_shared<c10d::Reducer>(
      parameters, std::move(buckets), process_group, sparse, static_cast<std::int64_t>(bucket_bytes),
      /*find_unused_parameters=*/false, /*gradient_as_bucket_view=*/true,
      /*param_names=*/std::unordered_map<std::size_t, std::string>{}, static_cast<std::int64_t>(first_bucket_bytes),
      /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false,
      /*bucket_bytes_cap_list=*/std::vector<std::int64_t>{});
  reducer->inner->reducer->register_comm_hook(
      std::make_unique<SumHook>(process_group, reducer->inner->trace));
  reducer->inner->parameters = parameters;
  return reducer;
}

void Reducer::prepare() const {
  inner->reducer->prepare_for_forward();
  inner->reducer->prepare_for_backward({});
}

bool Reducer::rebuild_buckets() const { return inner->reducer->rebuild_buckets(); }

void Reducer::backward(const at::Tensor& loss) const {
  prepare();
  run_backward(loss);
}

void Reducer::check_finalized() const { inner->reducer->check_finalized(); }

void Reducer::begin_trace(std::int64_t pause_at) const {
  auto& hooks = inner->gradient_hooks;
  for (std::size_t at = hooks.size(); at < inner->parameters.size(); ++at) {
    // Runs when the gradient is made, before it is added and the reducer hears of it.
    const auto hook = inner->parameters[at].register_hook([trace = inner->trace, at](const at::Tensor&) {
      trace->gradient(static_cast<std::int64_t>(at));
    });
    hooks.emplace_back(at, hook);
  }
  inner->trace->begin(pause_at);
}

rust::Vec<std::int64_t> Reducer::end_trace() const {
  rust::Vec<std::int64_t> flat;
  for (const auto& [what, number] : inner->trace->end()) {
    flat.push_back(static_cast<std::int64_t>(what));
    flat.push_back(number);
  }
  for (const auto& [at, hook] : std::exchange(inner->gradient_hooks, {})) {
    inner->parameters[at].remove_hook(hook);
  }
  return flat;
}

void run_backward(const at::Tensor& loss) { torch::autograd::backward({loss}, {}); }

}  // namespace foil
