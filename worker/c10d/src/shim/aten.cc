#include "foil-c10d/src/ffi.rs.h"
#include "layers/rows.h"
#include "tensor_list.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#if __has_include(<malloc.h>)
#include <malloc.h>
#endif

#include <climits>

#include <ATen/Context.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_zero.h>
#include <ATen/ops/_fused_adamw.h>
#include <c10/core/GradMode.h>

namespace foil {

void fused_adamw(const TensorList& parameters, const TensorList& gradients, const TensorList& exp_avg,
                 const TensorList& exp_avg_sq, const TensorList& steps, const AdamW& options) {
  at::NoGradGuard no_grad;
  // The kernel reads the number of the step it takes; counting is its caller's part.
  at::_foreach_add_(steps.inner->tensors, 1);
  at::_fused_adamw_(parameters.inner->tensors, gradients.inner->tensors, exp_avg.inner->tensors,
                    exp_avg_sq.inner->tensors, /*max_exp_avg_sqs=*/{}, steps.inner->tensors, options.learning_rate,
                    options.beta1, options.beta2, options.weight_decay, options.epsilon, /*amsgrad=*/false,
                    /*maximize=*/false);
}

void zero(const TensorList& tensors) {
  at::NoGradGuard no_grad;
  if (!tensors.inner->tensors.empty()) {
    at::_foreach_zero_(tensors.inner->tensors);
  }
}

void drop_gradients(const TensorList& tensors) {
  for (auto& tensor : tensors.inner->tensors) {
    tensor.mutable_grad() = at::Tensor();
  }
}

void set_deterministic(bool on) {
  auto& context = at::globalContext();
  // Where ATen knows no deterministic kernel it warns and goes on: it also says so of kernels that are deterministic for the
  // shapes used here, such as a cumulative sum over rows.
  context.setDeterministicAlgorithms(on, /*warn_only=*/true);
  // Nothing reads memory that it has not written; filling every new tensor would cost a pass over each.
  context.setDeterministicFillUninitializedMemory(false);
  context.setDeterministicCuDNN(on);
  context.setBenchmarkCuDNN(false);
}

void disable_cudnn_attention() { at::globalContext().setSDPUseCuDNN(false); }

namespace {

// Of this thread, so that tests of one process do not meet.
thread_local bool loops = true;

}  // namespace

void use_loops(bool on) { loops = on; }

bool has_loops(const at::Tensor& tensor) { return loops && tensor.is_cpu(); }

void keep_freed_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
  mallopt(M_TOP_PAD, 64 << 20);
  // A thread's own arena holds no block of more than some megabytes; the main one holds any.
  mallopt(M_ARENA_MAX, 1);
#endif
}

namespace {

// Whether `found` is the address that `wanted` spells.
bool is_address(const sockaddr* found, const std::string& wanted) {
  if (found == nullptr) {
    return false;
  }
  char text[INET6_ADDRSTRLEN] = {};
  const void* raw = nullptr;
  if (found->sa_family == AF_INET) {
    raw = &reinterpret_cast<const sockaddr_in*>(found)->sin_addr;
  } else if (found->sa_family == AF_INET6) {
    raw = &reinterpret_cast<const sockaddr_in6*>(found)->sin6_addr;
  } else {
    return false;
  }
  return inet_ntop(found->sa_family, raw, text, sizeof text) != nullptr && wanted == text;
}

}  // namespace

rust::String interface_of(rust::Str address) {
  const std::string wanted(address);
  ifaddrs* all = nullptr;
  TORCH_CHECK(getifaddrs(&all) == 0, "the list of network interfaces could not be read");
  std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(all, &freeifaddrs);
  for (const ifaddrs* entry = all; entry != nullptr; entry = entry->ifa_next) {
    if (is_address(entry->ifa_addr, wanted)) {
      return rust::String(entry->ifa_name);
    }
  }
  return rust::String();
}

}  // namespace foil
