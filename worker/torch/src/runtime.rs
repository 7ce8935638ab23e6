//! Settings of libtorch and of the allocator, for the whole process.

use tch::Device;

use crate::error::{During, Result};
use crate::ffi;

/// Makes libtorch prefer deterministic kernels in this process and warn about operations without one; `false`
/// reverts that. Call it before a process group is created: NCCL then avoids algorithms whose sums depend on
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

/// Sets whether this thread's CPU tensors use this crate's own loops (the default) or ATen's operations.
/// Other devices always use ATen, so tests can check that path without a GPU.
pub fn use_cpu_kernels(on: bool) {
    ffi::use_cpu_kernels(on);
}

/// The version of CUDA that libtorch was built for, major and minor; `None` if it was built without CUDA.
pub fn cuda_version() -> Option<(u32, u32)> {
    let version = u32::try_from(ffi::cuda_runtime_version()).unwrap_or(0);
    (version > 0).then_some((version / 1000, version % 1000 / 10))
}

/// Whether this thread's tensors on `device` use this crate's own loops.
pub fn uses_cpu_kernels(device: Device) -> bool {
    device == Device::Cpu && ffi::cpu_kernels_in_use()
}

/// Runs `work`, which must write to distinct indices, without requesting deterministic kernels. Its results
/// are deterministic anyway, and ATen would sort the indices first, in a dozen kernels.
///
/// # Errors
/// [`Error::Torch`], which should not happen.
pub fn with_distinct_indices<T>(work: impl FnOnce() -> T) -> Result<T> {
    if !ffi::is_deterministic() {
        return Ok(work());
    }
    set_deterministic(false)?;
    let result = work();
    set_deterministic(true)?;
    Ok(result)
}

/// Makes this process keep freed memory for its next allocations.
///
/// By default glibc returns large blocks to the system immediately, and every step pays for zeroing and
/// mapping their pages again: a fifth of a small model's training step. Call it before the first tensor is
/// created. Has no effect with another libc.
pub fn keep_freed_memory() {
    ffi::keep_freed_memory();
}
