//! Settings of libtorch and of the allocator, for the whole process.

use crate::error::{During, Result};
use crate::ffi;

/// Makes libtorch prefer deterministic kernels in this process and warn about operations without one; `false`
/// undoes it. Call it before a process group is created: NCCL then avoids algorithms whose sums depend on
/// timing.
///
/// On CUDA, cuBLAS also needs `CUBLAS_WORKSPACE_CONFIG=:4096:8` in the environment before the process starts.
///
/// # Errors
/// [`Error::Torch`], which should not happen.
pub fn set_deterministic(on: bool) -> Result<()> {
    ffi::set_deterministic(on).during("choosing deterministic kernels")
}

/// Disables cuDNN's scaled dot-product attention in this process. It compiles a plan for every new shape,
/// which takes tenths of a second, and every decoding step has a new shape.
pub fn disable_cudnn_attention() {
    ffi::disable_cudnn_attention();
}

/// Sets whether this thread's CPU tensors use this crate's own loops (the default) or ATen's operations like
/// every other device, so that tests can check that path without a GPU.
pub fn use_cpu_kernels(on: bool) {
    ffi::use_cpu_kernels(on);
}

/// Makes this process keep freed memory for its next allocations.
///
/// By default glibc returns large blocks to the system at once, and every step pays for zeroing and mapping
/// their pages again: a fifth of a small model's training step. Call it before the first tensor is created.
/// Has no effect with another libc.
pub fn keep_freed_memory() {
    ffi::keep_freed_memory();
}
