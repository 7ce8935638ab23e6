//! Memory use of tensors, as counted by libtorch.

use cxx::UniquePtr;

use crate::error::{During, Result};
use crate::ffi;

/// Counts the bytes of CPU tensors that this thread allocates and frees during its lifetime.
///
/// Tensors freed by other threads remain counted, and tensors allocated earlier are not counted. The counter
/// must stay on its thread.
pub struct CpuMemory {
    inner: UniquePtr<ffi::CpuMemory>,
}

impl CpuMemory {
    /// Starts counting. Use only one counter at a time: a second one hides the first.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] if memory is short.
    pub fn count() -> Result<Self> {
        Ok(Self { inner: ffi::count_cpu_memory().during("counting memory")? })
    }

    /// Bytes allocated since the start and not freed yet.
    pub fn current(&self) -> u64 {
        u64::try_from(self.inner.current()).unwrap_or(0)
    }

    /// Peak since the start or [`CpuMemory::reset_peak`].
    pub fn peak(&self) -> u64 {
        u64::try_from(self.inner.peak()).unwrap_or(0)
    }

    pub fn reset_peak(&self) {
        self.inner.reset_peak();
    }
}

/// Memory of this process's GPU.
pub mod device {
    use super::{During, Result, ffi};

    /// Returns the allocator's cached memory to the device, since NCCL and cuBLAS allocate outside the
    /// allocator. Does nothing without a GPU.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] if the device fails.
    pub fn release_cached() -> Result<()> {
        ffi::release_cached_device_memory().during("releasing the GPU's cached memory")
    }

    /// Peak bytes of tensors since the process started; 0 without a GPU.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] if the device fails.
    pub fn peak() -> Result<u64> {
        let peak = ffi::peak_device_memory().during("reading the GPU allocator's statistics")?;
        Ok(u64::try_from(peak).unwrap_or(0))
    }

    /// Bytes of the GPU's memory; 0 without a GPU, or before its first tensor.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] if the device fails.
    pub fn total() -> Result<u64> {
        let total = ffi::total_device_memory().during("reading the size of the GPU's memory")?;
        Ok(u64::try_from(total).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::CpuMemory;

    #[test]
    fn current_and_peak_bytes_are_counted() {
        let memory = CpuMemory::count().unwrap();
        let kept = Tensor::zeros([100], (Kind::Float, Device::Cpu));
        drop(Tensor::zeros([1000], (Kind::Float, Device::Cpu)));
        assert_eq!((memory.current(), memory.peak()), (400, 4400));
        memory.reset_peak();
        assert_eq!(memory.peak(), 400);
        drop(kept);
        assert_eq!((memory.current(), memory.peak()), (0, 400));
        drop(memory);
        drop(Tensor::zeros([1000], (Kind::Float, Device::Cpu)));
    }
}
