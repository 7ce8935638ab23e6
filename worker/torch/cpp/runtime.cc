#if __has_include(<malloc.h>)
#include <malloc.h>
#endif

#include <ATen/Context.h>

#include <climits>

#include "bridge.h"
#include "ops/rows.h"

namespace foil {

void set_deterministic(bool on) {
  auto& context = at::globalContext();
  // Where ATen knows no deterministic kernel it warns and goes on: it also says so of kernels that are deterministic
  // for the shapes used here, such as a cumulative sum over rows.
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

void use_cpu_kernels(bool on) { loops = on; }

bool uses_cpu_kernels(const at::Tensor& tensor) { return loops && tensor.is_cpu(); }

void keep_freed_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
  mallopt(M_TOP_PAD, 64 << 20);
  // A thread's own arena holds no block of more than some megabytes; the main one holds any.
  mallopt(M_ARENA_MAX, 1);
#endif
}

}  // namespace foil
