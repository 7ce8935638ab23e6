// NCCL's process group, implemented over Gloo. Like NCCL, it accepts device tensors only.

#include <cstdlib>
#include <new>
#include <string>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "memory.h"
#include "trace.h"

namespace fake_gpu {
namespace {

using c10d::Work;
using WorkPtr = c10::intrusive_ptr<Work>;

// Work that is complete on creation.
class DoneWork final : public Work {
 public:
  explicit DoneWork(const std::vector<at::Tensor>& result) : Work(0, c10d::OpType::UNKNOWN) {
    const std::vector<c10::Device> devices{c10::Device(c10::kCUDA, 0)};
    future_ = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()), devices);
    future_->markCompleted(c10::IValue(result));
    finish();
  }
  bool isCompleted() override { return true; }
  bool wait(std::chrono::milliseconds /*timeout*/) override { return true; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }

 private:
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

WorkPtr done(const std::vector<at::Tensor>& result) { return c10::make_intrusive<DoneWork>(result); }

// A host copy of a device tensor. bf16 is converted to fp32, since Gloo does not add bf16 reliably.
at::Tensor taken(const at::Tensor& tensor) {
  if (!tensor.is_cuda()) {
    refuse(c10::str("NCCL takes no tensor on ", tensor.device()));
  }
  TORCH_CHECK(tensor.is_non_overlapping_and_dense(), "Tensors must be contiguous");
  const auto host = on_host(tensor);
  return host.scalar_type() == at::kBFloat16 ? host.to(at::kFloat) : host;
}

// Writes the result back to the tensor that `taken` copied.
void give(const at::Tensor& host, const at::Tensor& tensor) {
  const auto target = on_host(tensor);
  if (target.data_ptr() != host.data_ptr()) {
    target.copy_(host);
  }
}

class NcclOverGloo final : public c10d::Backend {
 public:
  NcclOverGloo(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size, std::chrono::milliseconds timeout)
      : Backend(rank, size) {
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    // Ranks may be on several hosts, like NCCL's.
    const char* named = std::getenv("NCCL_SOCKET_IFNAME");
    const std::string interface = named == nullptr ? "" : named + (*named == '=');
    options->devices.push_back(interface.empty()
                                   ? c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1", /*lazyInit=*/false)
                                   : c10d::ProcessGroupGloo::createDeviceForInterface(interface, /*lazyInit=*/false));
    gloo_ = c10::make_intrusive<c10d::ProcessGroupGloo>(c10::make_intrusive<c10d::PrefixStore>("fake_gpu", store), rank,
                                                        size, options);
  }
  const std::string getBackendName() const override { return "nccl"; }
  void eagerConnectSingleDevice(at::Device /*device*/) override { note("nccl", "connect"); }

  WorkPtr broadcast(std::vector<at::Tensor>& tensors, const c10d::BroadcastOptions& options) override {
    return in_place("broadcast", tensors, [&](auto& hosts) { return gloo_->broadcast(hosts, options); });
  }
  WorkPtr allreduce(std::vector<at::Tensor>& tensors, const c10d::AllreduceOptions& options) override {
    return in_place("allreduce", tensors, [&](auto& hosts) { return gloo_->allreduce(hosts, options); });
  }
  WorkPtr allgather(std::vector<std::vector<at::Tensor>>& outputs, std::vector<at::Tensor>& inputs,
                    const c10d::AllgatherOptions& options) override {
    note("nccl", c10::str("allgather ", inputs[0].sizes()));
    std::vector<at::Tensor> hosts{taken(inputs[0])};
    std::vector<std::vector<at::Tensor>> gathered(1);
    for (const auto& output : outputs[0]) {
      gathered[0].push_back(taken(output));
    }
    gloo_->allgather(gathered, hosts, options)->wait();
    for (std::size_t i = 0; i < outputs[0].size(); ++i) {
      give(gathered[0][i], outputs[0][i]);
    }
    return done(outputs[0]);
  }
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions& options) override {
    note("nccl", c10::str("allgather ", input.sizes()));
    auto from = taken(input), to = taken(output);
    gloo_->_allgather_base(to, from, options)->wait();
    give(to, output);
    return done({output});
  }
  WorkPtr _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                               const c10d::ReduceScatterOptions& /*options*/) override {
    note("nccl", c10::str("reduce_scatter ", input.sizes()));
    // A copy, because the input must not change.
    std::vector<at::Tensor> whole{taken(input).clone()};
    gloo_->allreduce(whole)->wait();
    const auto part = whole[0].view({size_, -1}).select(0, rank_);
    on_host(output).view(-1).copy_(part);
    return done({output});
  }

 private:
  template <typename Collective>
  WorkPtr in_place(const char* name, std::vector<at::Tensor>& tensors, Collective&& collective) {
    note("nccl", c10::str(name, " ", tensors[0].sizes(), c10::toString(tensors[0].scalar_type())));
    std::vector<at::Tensor> hosts{taken(tensors[0])};
    collective(hosts)->wait();
    give(hosts[0], tensors[0]);
    return done(tensors);
  }

  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo_;
};

}  // namespace
}  // namespace fake_gpu

namespace c10d {

ProcessGroupNCCL::Options::Options(bool high_priority)
    : Backend::Options(NCCL_BACKEND_NAME, kProcessGroupNCCLDefaultTimeout), is_high_priority_stream(high_priority) {}

// Replaces the constructor of ProcessGroupNCCL by its symbol. In the memory of a ProcessGroupNCCL it constructs a
// backend that is only called through the base class. Defining the class's own constructor would need all of its
// members.
void construct(void* memory, c10::intrusive_ptr<Store> store, int rank, int size, c10::intrusive_ptr<ProcessGroupNCCL::Options> options) asm(
    "_ZN4c10d16ProcessGroupNCCLC1EN3c1013intrusive_ptrINS_5StoreENS1_6detail34intrusive_target_default_null_"
    "typeIS3_EEEEiiNS2_INS0_7OptionsENS5_IS8_EEEE");
__attribute__((visibility("default"))) void construct(void* memory, c10::intrusive_ptr<Store> store, int rank, int size,
                                                      c10::intrusive_ptr<ProcessGroupNCCL::Options> options) {
  static_assert(sizeof(fake_gpu::NcclOverGloo) <= sizeof(ProcessGroupNCCL));
  new (memory) fake_gpu::NcclOverGloo(store, rank, size, options->timeout);
}

}  // namespace c10d
