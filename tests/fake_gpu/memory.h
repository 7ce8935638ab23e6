// Device memory and pinned host memory; both are allocated in host memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>

#include <cstdint>

namespace fake_gpu {

c10::Allocator* device_memory();
c10::Allocator* pinned_memory();
// Whether `address` is in pinned memory.
bool is_pinned(const void* address);
// Makes the block of pinned memory with `address`, which a copy reads, fail when the host writes to it, until
// `finish_copies` finishes the copy with this number.
void protect_pinned(const void* address, std::uint64_t copy);
// Ends the protection of blocks that are read by no later copy.
void unprotect_pinned(std::uint64_t last_copy);

// A tensor of uninitialized device memory, filled with NaN.
at::Tensor device_tensor(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType kind);

// A CPU tensor that shares the memory.
at::Tensor on_host(const at::Tensor& tensor);
// A device tensor with the numbers of a CPU tensor, and with its layout if that is dense.
at::Tensor to_device(const at::Tensor& host);

// Asynchronous copies between device and pinned memory are numbered from 1.
std::uint64_t last_copy();
// Finishes copies up to a number, for which the host has waited. Copies to the host run only now, the latest possible
// time, so that results show if a source changes too early, or if its copy is read too early.
void finish_copies(std::uint64_t last);

}  // namespace fake_gpu
