// New tensors, copies and views.

#include <ATen/EmptyTensor.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "memory.h"
#include "trace.h"

namespace fake_gpu {
namespace {

at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> kind, std::optional<at::Layout> /*layout*/,
                 std::optional<at::Device> /*device*/, std::optional<bool> /*pin*/,
                 std::optional<at::MemoryFormat> format) {
  return at::Tensor(at::detail::empty_generic(sizes, device_memory(), c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                              c10::dtype_or_default(kind), format));
}

at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> kind,
                         std::optional<at::Layout> /*layout*/, std::optional<at::Device> /*device*/,
                         std::optional<bool> /*pin*/) {
  return device_tensor(sizes, strides, c10::dtype_or_default(kind));
}

// A copy to pinned memory that the host does not wait for yet.
struct PendingCopy {
  std::uint64_t number;
  at::Tensor to, from;
};
std::mutex pending_mutex;
std::uint64_t copies = 0;
std::vector<PendingCopy> pending;

// Whether the host waits for the copy: always if it is from or to pageable memory, regardless of `non_blocking`.
bool is_async(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  return non_blocking && is_pinned((to.is_cuda() ? from : to).storage().data());
}

void note_copy(const at::Tensor& to, const at::Tensor& from, bool async) {
  if (to.is_cuda() && from.is_cuda()) {
    launch(c10::str("aten::copy_ ", from.sizes(), c10::toString(from.scalar_type()), " ",
                    c10::toString(to.scalar_type())));
    return;
  }
  note(to.is_cuda() ? "h2d" : "d2h",
       c10::str(async ? "async " : "sync ", from.nbytes(), " ", from.sizes(), c10::toString(from.scalar_type())));
}

at::Tensor& copy(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  const bool async = is_async(to, from, non_blocking);
  note_copy(to, from, async);
  if (async) {
    const std::lock_guard lock(pending_mutex);
    ++copies;
    if (from.is_cuda()) {
      pending.push_back({copies, to, from});
      return to;
    }
    protect_pinned(from.storage().data(), copies);
  }
  const auto target = to.is_cuda() ? on_host(to) : to.detach();
  target.copy_(from.is_cuda() ? on_host(from) : from.detach());
  return to;
}

at::Tensor as_strided(const at::Tensor& self, at::IntArrayRef sizes, at::IntArrayRef strides,
                      std::optional<std::int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, sizes, strides, offset);
}
at::Tensor view(const at::Tensor& self, at::IntArrayRef sizes) { return at::native::view(self, sizes); }
at::Tensor reshape_alias(const at::Tensor& self, at::IntArrayRef sizes, at::IntArrayRef strides) {
  return at::native::_reshape_alias(self, sizes, strides);
}
void record_stream(at::Tensor& /*self*/, c10::Stream /*stream*/) {}

}  // namespace

std::uint64_t last_copy() {
  const std::lock_guard lock(pending_mutex);
  return copies;
}

void finish_copies(std::uint64_t last) {
  const std::lock_guard lock(pending_mutex);
  const auto later = std::find_if(pending.begin(), pending.end(), [&](const auto& copy) { return copy.number > last; });
  for (auto copy = pending.begin(); copy != later; ++copy) {
    copy->to.detach().copy_(on_host(copy->from));
  }
  pending.erase(pending.begin(), later);
  unprotect_pinned(last);
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("record_stream", &record_stream);
}

}  // namespace fake_gpu
