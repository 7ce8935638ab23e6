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
  // Only warn about kernels without a deterministic version: ATen's list includes some that are deterministic for the
  // shapes used here, such as a cumulative sum over rows.
  context.setDeterministicAlgorithms(on, /*warn_only=*/true);
  // Nothing reads uninitialized memory; filling every new tensor would cost a pass over each.
  context.setDeterministicFillUninitializedMemory(false);
  context.setDeterministicCuDNN(on);
  context.setBenchmarkCuDNN(false);
}

bool is_deterministic() { return at::globalContext().deterministicAlgorithms(); }

void disable_cudnn_attention() { at::globalContext().setSDPUseCuDNN(false); }

namespace {

// Thread-local, so that tests in one process do not affect each other.
thread_local bool cpu_kernels = true;

}  // namespace

void use_cpu_kernels(bool on) { cpu_kernels = on; }

bool cpu_kernels_in_use() { return cpu_kernels; }

bool uses_cpu_kernels(const at::Tensor& tensor) { return cpu_kernels && tensor.is_cpu(); }

void keep_freed_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
  mallopt(M_TOP_PAD, 64 << 20);
  // Per-thread arenas hold only blocks of up to some megabytes; the main arena holds blocks of any size.
  mallopt(M_ARENA_MAX, 1);
#endif
}

}  // namespace foil
