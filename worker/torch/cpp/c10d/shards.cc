// Parameters sharded over the ranks of a group (ZeRO stage 3): gathered before use, with gradients reduced to shards.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <numeric>

#include "../tensor_list.h"
#include "flat.h"
#include "foil-torch/src/ffi.rs.h"

namespace foil {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Frees the memory of a storage that others, such as a finished collective, may still reference.
void free_memory(const c10::Storage& storage) {
  auto* impl = storage.unsafeGetStorageImpl();
  impl->set_data_ptr_noswap(c10::DataPtr(nullptr, impl->device()));
  impl->set_nbytes(0);
}

struct Unit {
  at::Tensor shard;  // fp32, [length]
  at::ScalarType kind = at::kFloat;
  bool resident = false;
  c10::Storage storage;  // of the gathered parameters; without memory while they are not gathered
  std::vector<at::Tensor> parameters;
  std::vector<std::int64_t> offsets;
  bool gathered = false;
  c10::intrusive_ptr<c10d::Work> gathering;
  at::Tensor sent;  // this rank's part, alive while it is gathered
  std::vector<std::shared_ptr<torch::autograd::Node>> accumulators;
  std::size_t reached = 0;  // parameters whose gradients this backward pass has accumulated
  bool reduced = false;

  std::int64_t length() const { return shard.numel(); }

  void forget_sent() {
    if (sent.defined() && kind != shard.scalar_type()) {
      free_memory(sent.storage());
    }
    sent = at::Tensor();
  }
};

// The sum of a unit's gradients that is in flight.
struct Reduction {
  std::size_t unit = 0;
  ReduceScatter sum;
};

}  // namespace

struct ShardStore::Inner {
  std::int64_t world = 1;
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  Milliseconds timeout{};
  std::vector<Unit> units;
  std::optional<Reduction> reduction;

  void wait(const c10::intrusive_ptr<c10d::Work>& work, const at::Tensor& tensor) const {
    wait_for(work, tensor.device(), timeout);
  }

  void allocate(Unit& unit) const {
    auto* storage = unit.storage.unsafeGetStorageImpl();
    const auto bytes = static_cast<std::size_t>(world * unit.length()) * c10::elementSize(unit.kind);
    storage->set_data_ptr_noswap(storage->allocator()->allocate(bytes));
    storage->set_nbytes(bytes);
  }

  void begin_gather(Unit& unit) const {
    if (unit.gathered || unit.gathering) {
      return;
    }
    at::NoGradGuard no_grad;
    allocate(unit);
    const auto local = unit.shard.detach().to(unit.kind);
    if (!group) {
      // A rehearsal allocates the memory of a gathered unit without other ranks; the values are meaningless.
      on_storage(unit.storage, unit.kind, {world, unit.length()}, 0).copy_(local.unsqueeze(0).expand({world, -1}));
      unit.gathered = true;
      return;
    }
    // As bytes, which every backend can send.
    unit.sent = local.view(at::kByte);
    auto whole = on_storage(unit.storage, at::kByte, {world * unit.sent.numel()}, 0);
    unit.gathering = group->_allgather_base(whole, unit.sent);
  }

  void finish_gather(Unit& unit) const {
    begin_gather(unit);
    if (const auto work = std::exchange(unit.gathering, nullptr)) {
      wait(work, unit.shard);
      unit.gathered = true;
    }
    unit.forget_sent();
  }

  void release(Unit& unit) const {
    if (const auto work = std::exchange(unit.gathering, nullptr)) {
      wait(work, unit.shard);
    }
    unit.forget_sent();
    unit.gathered = false;
    free_memory(unit.storage);
  }

  void gather(std::size_t index, std::int64_t next) {
    const auto ahead = next < 0 ? units.size() : static_cast<std::size_t>(next);
    for (std::size_t other = 0; other < units.size(); ++other) {
      auto& unit = units[other];
      if (other != index && other != ahead && !unit.resident && (unit.gathered || unit.gathering)) {
        release(unit);
      }
    }
    finish_gather(units.at(index));
    if (ahead < units.size()) {
      begin_gather(units[ahead]);
    }
  }

  // Called for each parameter of a unit when its gradient has been accumulated.
  void accumulated(std::size_t index) {
    auto& unit = units[index];
    if (++unit.reached == unit.parameters.size()) {
      reduce(index);
    }
  }

  void reduce(std::size_t index) {
    at::NoGradGuard no_grad;
    finish_reduction();
    auto& unit = units[index];
    const auto length = unit.length();
    auto gradients = at::zeros({world * length}, unit.shard.options().requires_grad(false));
    for (std::size_t i = 0; i < unit.parameters.size(); ++i) {
      auto& gradient = unit.parameters[i].mutable_grad();
      gradients.narrow(0, unit.offsets[i], gradient.numel()).view(gradient.sizes()).copy_(gradient);
      gradient = at::Tensor();
    }
    unit.reached = 0;
    unit.reduced = true;
    if (!unit.resident) {
      release(unit);
    }
    if (!group) {
      add_gradient(unit, gradients.narrow(0, 0, length).clone());
      return;
    }
    const auto sum = at::empty({length}, gradients.options());
    reduction = Reduction{index, ReduceScatter::begin(*group, gradients, sum)};
  }

  void finish_reduction() {
    if (auto finished = std::exchange(reduction, std::nullopt)) {
      auto& [index, sum] = *finished;
      wait(sum.work, sum.flat);
      add_gradient(units[index], sum.result(group->getRank()));
      free_memory(sum.flat.storage());
    }
  }

  static void add_gradient(Unit& unit, const at::Tensor& gradient) {
    auto& total = unit.shard.mutable_grad();
    if (total.defined()) {
      total.add_(gradient);
    } else {
      total = gradient;
    }
  }
};

namespace {

struct Handle : torch::CustomClassHolder {
  explicit Handle(std::shared_ptr<ShardStore::Inner> store) : store(std::move(store)) {}
  std::shared_ptr<ShardStore::Inner> store;
};

// The identity. Its backward gathers a unit again for the backward pass of the computation that used it.
class GatherInBackward : public torch::autograd::Function<GatherInBackward> {
 public:
  static variable_list forward(AutogradContext* ctx, c10::intrusive_ptr<Handle> handle, std::int64_t unit,
                               std::int64_t next, at::TensorList list) {
    ctx->set_materialize_grads(false);
    ctx->saved_data["store"] = c10::IValue::make_capsule(std::move(handle));
    ctx->saved_data["unit"] = unit;
    ctx->saved_data["next"] = next;
    return list.vec();
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto handle = c10::static_intrusive_pointer_cast<Handle>(ctx->saved_data["store"].toCapsule());
    handle->store->gather(static_cast<std::size_t>(ctx->saved_data["unit"].toInt()), ctx->saved_data["next"].toInt());
    gradients.insert(gradients.begin(), 3, at::Tensor());
    return gradients;
  }
};

}  // namespace

ShardStore::ShardStore() : inner(std::make_shared<Inner>()) {}
ShardStore::~ShardStore() = default;

std::shared_ptr<ShardStore> new_shard_store(std::int64_t world) {
  auto store = std::make_shared<ShardStore>();
  store->inner->world = world;
  return store;
}

std::size_t ShardStore::add_unit(const at::Tensor& shard, rust::Slice<const std::int64_t> offsets,
                                 rust::Slice<const std::int64_t> dimensions, rust::Slice<const std::int64_t> sizes,
                                 bool bf16, bool resident, TensorList& parameters) const {
  Unit unit;
  unit.shard = shard;
  unit.kind = bf16 ? at::kBFloat16 : at::kFloat;
  unit.resident = resident;
  unit.storage = at::empty({0}, shard.options().requires_grad(false).dtype(unit.kind)).storage();
  const auto* next = sizes.data();
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    const at::IntArrayRef shape(next, static_cast<std::size_t>(dimensions[i]));
    next += dimensions[i];
    unit.offsets.push_back(offsets[i]);
    unit.parameters.push_back(on_storage(unit.storage, unit.kind, shape, offsets[i]));
    TORCH_CHECK(offsets[i] + unit.parameters.back().numel() <= inner->world * unit.length(),
                "a parameter ends after its unit");
    parameters.push(unit.parameters.back());
  }
  inner->units.push_back(std::move(unit));
  return inner->units.size() - 1;
}

void ShardStore::connect(const Group& group) const {
  inner->group = group.inner->group;
  inner->timeout = group.inner->timeout;
}

void ShardStore::disconnect() const { inner->group.reset(); }

void ShardStore::watch_gradients() const {
  for (std::size_t index = 0; index < inner->units.size(); ++index) {
    auto& unit = inner->units[index];
    if (!unit.accumulators.empty() || !unit.parameters.front().requires_grad()) {
      continue;
    }
    for (const auto& parameter : unit.parameters) {
      auto hook = [store = std::weak_ptr(inner), index] {
        if (const auto alive = store.lock()) {
          alive->accumulated(index);
        }
      };
      unit.accumulators.push_back(after_accumulation(parameter, std::move(hook)));
    }
  }
}

void ShardStore::gather(std::size_t unit, std::int64_t next) const { inner->gather(unit, next); }

void ShardStore::gather_residents() const {
  for (auto& unit : inner->units) {
    if (unit.resident) {
      inner->finish_gather(unit);
    }
  }
}

void ShardStore::gather_in_backward(std::size_t unit, std::int64_t next, const TensorList& inputs,
                                    TensorList& results) const {
  results.inner->tensors = GatherInBackward::apply(c10::make_intrusive<Handle>(inner), static_cast<std::int64_t>(unit),
                                                   next, at::TensorList(inputs.inner->tensors));
}

std::int64_t ShardStore::finish_backward() const {
  inner->finish_reduction();
  std::int64_t unreached = -1;
  for (std::size_t index = 0; index < inner->units.size(); ++index) {
    auto& unit = inner->units[index];
    if (!unit.accumulators.empty() && !std::exchange(unit.reduced, false) && unreached < 0) {
      unreached = static_cast<std::int64_t>(index);
    }
    if (!unit.resident) {
      inner->release(unit);
    }
  }
  return unreached;
}

void ShardStore::release() const {
  for (auto& unit : inner->units) {
    inner->release(unit);
  }
}

void ShardStore::discard_gradients() const {
  inner->reduction.reset();
  for (auto& unit : inner->units) {
    for (auto& parameter : unit.parameters) {
      parameter.mutable_grad() = at::Tensor();
    }
    unit.shard.mutable_grad() = at::Tensor();
    unit.reached = 0;
    unit.reduced = false;
  }
}

std::unique_ptr<at::Tensor> ShardStore::whole(std::size_t index) const {
  at::NoGradGuard no_grad;
  const auto& unit = inner->units.at(index);
  TORCH_CHECK(inner->group, "the shards' group is not connected");
  auto local = unit.shard.detach();
  auto whole = at::empty({inner->world * unit.length()}, local.options().requires_grad(false));
  inner->wait(inner->group->_allgather_base(whole, local), local);
  return std::make_unique<at::Tensor>(std::move(whole));
}

std::int64_t ShardStore::gathered_bytes() const {
  const auto add = [](std::int64_t sum, const Unit& unit) {
    return sum + static_cast<std::int64_t>(unit.storage.nbytes());
  };
  return std::accumulate(inner->units.begin(), inner->units.end(), std::int64_t{0}, add);
}

}  // namespace foil
