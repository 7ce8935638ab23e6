#include <algorithm>
#include <chrono>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include "../tensor_list.h"
#include "handles.h"
#include "trace.h"

namespace foil {

namespace {

using Clock = std::chrono::steady_clock;

// Sums gradients over the ranks without dividing: the loss is normalized over the global batch.
class SumHook final : public c10d::CppCommHookInterface<c10::intrusive_ptr<c10d::ProcessGroup>> {
 public:
  SumHook(c10::intrusive_ptr<c10d::ProcessGroup> group, std::shared_ptr<Trace> trace,
          std::shared_ptr<Clock::time_point> last_sent)
      : CppCommHookInterface(std::move(group)), trace_(std::move(trace)), last_sent_(std::move(last_sent)) {}
  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override {
    std::vector<at::Tensor> tensors{bucket.getBufferRef()};
    auto sum = state_->allreduce(tensors)->getFuture();
    trace_->sent(static_cast<std::int64_t>(bucket.getIndex()), sum);
    *last_sent_ = Clock::now();
    return sum;
  }

 private:
  std::shared_ptr<Trace> trace_;
  std::shared_ptr<Clock::time_point> last_sent_;
};

}  // namespace

struct Reducer::Inner {
  std::shared_ptr<c10d::Reducer> reducer;
  std::vector<at::Tensor> parameters;
  std::shared_ptr<Trace> trace = std::make_shared<Trace>();
  // Time at which the last bucket was sent. Autograd's threads write it only while a backward pass runs.
  std::shared_ptr<Clock::time_point> last_sent = std::make_shared<Clock::time_point>();

  ~Inner() {
    try {
      reducer.reset();
    } catch (...) {  // the destructor may throw; there is nothing left to clean up
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
  std::reverse(buckets.begin(), buckets.end());  // the backward pass reaches the last parameters first
  auto reducer = std::make_unique<Reducer>();
  reducer->inner->reducer = std::make_shared<c10d::Reducer>(
      parameters, std::move(buckets), process_group, sparse, static_cast<std::int64_t>(bucket_bytes),
      /*find_unused_parameters=*/false, /*gradient_as_bucket_view=*/true,
      /*param_names=*/std::unordered_map<std::size_t, std::string>{}, static_cast<std::int64_t>(first_bucket_bytes),
      /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false,
      /*bucket_bytes_cap_list=*/std::vector<std::int64_t>{});
  reducer->inner->reducer->register_comm_hook(
      std::make_unique<SumHook>(process_group, reducer->inner->trace, reducer->inner->last_sent));
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
  const auto begin = Clock::now();
  run_backward(loss);
  // The last bucket is sent once all gradients are computed; the rest of the time is the wait for the sums.
  if (inner->parameters.front().is_cpu() && *inner->last_sent > begin) {
    add_wait(Clock::now() - *inner->last_sent);
  }
}

void Reducer::check_finalized() const { inner->reducer->check_finalized(); }

void Reducer::begin_trace(std::int64_t pause_at) const { inner->trace->begin(inner->parameters, pause_at); }
rust::Vec<std::int64_t> Reducer::end_trace() const { return inner->trace->end(); }

}  // namespace foil
