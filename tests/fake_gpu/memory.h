// Device memory and pinned host memory; both are allocated in host memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>

namespace fake_gpu {

c10::Allocator* device_memory();
c10::Allocator* pinned_memory();
// Whether `address` is in pinned memory.
bool is_pinned(const void* address);

// A tensor of uninitialized device memory, filled with NaN.
at::Tensor device_tensor(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType kind);

// A CPU tensor that shares the memory.
at::Tensor on_host(const at::Tensor& tensor);
// A device tensor with the numbers of a CPU tensor, and with its layout if that is dense.
at::Tensor to_device(const at::Tensor& host);

// Runs the copies to pinned memory for which the host has not waited. That is the latest possible time, so that results
// show if a source changes too early, or if its copy is read too early.
void finish_copies();

}  // namespace fake_gpu
