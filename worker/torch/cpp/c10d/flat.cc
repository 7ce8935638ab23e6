// Whole parameters and their gradients, laid out flat in units; each rank updates a part (ZeRO stage 1).

#include "flat.h"

#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "../tensor_list.h"
#include "trace.h"

namespace foil {
namespace {

struct FlatUnit {
  at::Tensor values;     // fp32, [world * length]; the parameters are views of it
  at::Tensor gradients;  // fp32, [world * length]
  at::Tensor shard;      // this rank's part of the values, [length]; its gradient is the sum's part
  std::vector<at::Tensor> parameters;
  std::vector<at::Tensor> views;  // the parameters' places in `gradients`
  std::size_t reached = 0;        // parameters whose gradients the reducing backward pass has accumulated

  bool complete() const { return reached == parameters.size(); }
};

}  // namespace

struct FlatParameters::Inner {
  std::int64_t rank = 0, world = 1;
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  Milliseconds timeout{};
  std::vector<FlatUnit> units;
  std::vector<std::shared_ptr<torch::autograd::Node>> accumulators;
  bool reducing = false;
  std::size_t sent = 0;  // units whose sums have begun, always in the order of units
  std::vector<c10::intrusive_ptr<c10d::Work>> sums;
  std::shared_ptr<Trace> trace = std::make_shared<Trace>();

  // The gradients are views, which would keep the memory of their units.
  ~Inner() { discard_gradients(); }

  at::Tensor own_part(const at::Tensor& flat) const {
    const auto length = flat.numel() / world;
    return on_storage(flat.storage(), flat.scalar_type(), {length}, rank * length);
  }

  std::vector<at::Tensor> parameters() const {
    std::vector<at::Tensor> all;
    for (const auto& unit : units) {
      all.insert(all.end(), unit.parameters.begin(), unit.parameters.end());
    }
    return all;
  }

  void accumulated(std::size_t index, std::size_t number) {
    at::NoGradGuard no_grad;
    auto& unit = units[index];
    auto& gradient = unit.parameters[number].mutable_grad();
    if (!gradient.defined()) {
      return;
    }
    if (!gradient.is_alias_of(unit.gradients)) {
      // The step's first gradient, which autograd stored without a copy. Later ones are added in place.
      unit.views[number].copy_(gradient);
      gradient = unit.views[number];
    }
    ++unit.reached;
    if (reducing) {
      send_complete();
    }
  }

  // All ranks send the units in order, regardless of the order in which they complete them.
  void send_complete() {
    while (sent < units.size() && units[sent].complete()) {
      send();
    }
  }

  void send() {
    auto& unit = units[sent];
    if (group) {
      sums.push_back(ReduceScatter::begin(*group, unit.gradients, own_part(unit.gradients)).work);
      trace->sent(static_cast<std::int64_t>(sent), sums.back()->getFuture());
    }
    ++sent;
  }

  void begin_reduction(bool has_rows) {
    reducing = true;
    sent = 0;
    sums.clear();
    for (auto& unit : units) {
      unit.reached = 0;
      if (!has_rows) {
        unit.gradients.zero_();
        for (std::size_t i = 0; i < unit.parameters.size(); ++i) {
          unit.parameters[i].mutable_grad() = unit.views[i];
        }
      }
    }
  }

  std::int64_t finish_reduction() {
    at::NoGradGuard no_grad;
    reducing = false;
    // Units reached only by earlier micro-batches.
    for (auto index = sent; index < units.size(); ++index) {
      const auto& parameters = units[index].parameters;
      const auto missed = [](const at::Tensor& parameter) { return !parameter.grad().defined(); };
      if (std::any_of(parameters.begin(), parameters.end(), missed)) {
        return static_cast<std::int64_t>(index);
      }
    }
    while (sent < units.size()) {
      send();
    }
    wait(std::exchange(sums, {}));
    for (auto& unit : units) {
      unit.shard.mutable_grad() = own_part(unit.gradients);
    }
    return -1;
  }

  void discard_gradients() {
    reducing = false;
    sums.clear();
    for (auto& unit : units) {
      for (const auto& parameter : unit.parameters) {
        parameter.mutable_grad() = at::Tensor();
      }
      unit.shard.mutable_grad() = at::Tensor();
    }
  }

  void wait(const std::vector<c10::intrusive_ptr<c10d::Work>>& works) const {
    if (!works.empty()) {
      wait_for_all(works, units.front().values.device(), timeout);
    }
  }
};

FlatParameters::FlatParameters() : inner(std::make_shared<Inner>()) {}
FlatParameters::~FlatParameters() = default;

std::unique_ptr<FlatParameters> new_flat_parameters(std::int64_t rank, std::int64_t world) {
  auto flat = std::make_unique<FlatParameters>();
  flat->inner->rank = rank;
  flat->inner->world = world;
  return flat;
}

void FlatParameters::connect(const Group& group) const {
  inner->group = group.inner->group;
  inner->timeout = group.inner->timeout;
}

std::unique_ptr<at::Tensor> FlatParameters::add_unit(const TensorList& list, rust::Slice<const std::int64_t> offsets,
                                                     std::int64_t length) const {
  at::NoGradGuard no_grad;
  const auto& parameters = list.inner->tensors;
  const auto elements = inner->world * length;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto& parameter = parameters[i];
    TORCH_CHECK(parameter.is_leaf() && parameter.requires_grad() && parameter.scalar_type() == at::kFloat &&
                    parameter.device() == parameters.front().device(),
                "parameter ", i, " is not a leaf in fp32 that requires a gradient, on the device of its unit");
    TORCH_CHECK(offsets[i] + parameter.numel() <= elements, "a parameter ends after its unit");
  }
  FlatUnit unit;
  const auto options = parameters.front().options().requires_grad(false);
  unit.values = at::zeros({elements}, options);
  unit.gradients = at::zeros({elements}, options);
  unit.shard = inner->own_part(unit.values);
  const auto index = inner->units.size();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto& parameter = parameters[i];
    const auto place = [&](const at::Tensor& flat) {
      return on_storage(flat.storage(), at::kFloat, parameter.sizes(), offsets[i]);
    };
    const auto values = place(unit.values);
    values.copy_(parameter);
    parameter.set_data(values);
    // A parameter created as a view of another tensor would keep that tensor's memory.
    parameter.unsafeGetTensorImpl()->set_autograd_meta(nullptr);
    parameter.set_requires_grad(true);
    unit.parameters.push_back(parameter);
    unit.views.push_back(place(unit.gradients));
    auto hook = [inner = std::weak_ptr(inner), index, i] {
      if (const auto alive = inner.lock()) {
        alive->accumulated(index, i);
      }
    };
    inner->accumulators.push_back(after_accumulation(parameter, std::move(hook)));
  }
  inner->units.push_back(std::move(unit));
  return std::make_unique<at::Tensor>(inner->units.back().shard);
}

void FlatParameters::begin_reduction(bool has_rows) const { inner->begin_reduction(has_rows); }
std::int64_t FlatParameters::finish_reduction() const { return inner->finish_reduction(); }

void FlatParameters::gather() const {
  if (!inner->group) {
    return;
  }
  std::vector<c10::intrusive_ptr<c10d::Work>> works;
  for (auto& unit : inner->units) {
    works.push_back(inner->group->_allgather_base(unit.values, unit.shard));
    if (unit.values.is_cpu()) {
      // Gloo gathers into a copy, so only one copy exists at a time.
      inner->wait(std::exchange(works, {}));
    }
  }
  inner->wait(works);
}

void FlatParameters::discard_gradients() const { inner->discard_gradients(); }
void FlatParameters::begin_trace(std::int64_t pause_at) const { inner->trace->begin(inner->parameters(), pause_at); }
rust::Vec<std::int64_t> FlatParameters::end_trace() const { return inner->trace->end(); }

}  // namespace foil
