//! Settings of libtorch and of the allocator, for the whole process.

use crate::error::{During, Result};
use crate::ffi;

/// Makes libtorch prefer deterministic kernels in this process, and warn by name where it knows none; `false` undoes it.
/// Call it before a process group is made: NCCL then leaves out the algorithms whose sums depend on timing.
///
/// On CUDA, cuBLAS also wants `CUBLAS_WORKSPACE_CONFIG=:4096:8` in the environment before the process starts.
///
/// # Errors
/// [`Error::Torch`], which is not known to happen.
pub fn set_deterministic(on: bool) -> Result<()> {
    ffi::set_deterministic(on).during("choosing deterministic kernels")
}

/// Keeps cuDNN out of scaled dot-product attention in this process. It compiles a plan for every new shape, some tenths of a
/// second each, and a decoding step's shape is always new.
pub fn disable_cudnn_attention() {
    ffi::disable_cudnn_attention();
}

/// Whether this thread's CPU tensors go through this crate's own loops, as they do at first. Off, they take the path of
/// every other device, ATen's operations: a test then holds that path against the same oracles without a GPU.
pub fn use_cpu_kernels(on: bool) {
    ffi::use_cpu_kernels(on);
}

/// Makes this process keep the memory it frees, for its next allocations.
///
/// By default glibc gives large blocks back to the system at once, and every step pays for having their pages zeroed and
/// mapped again: a fifth of a small model's training step. Call it before the first tensor. Does nothing under another libc.
pub fn keep_freed_memory() {
    ffi::keep_freed_memory();
}
