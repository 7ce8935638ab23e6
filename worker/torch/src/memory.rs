//! Memory use of CPU tensors, as counted by libtorch.

use cxx::UniquePtr;

use crate::error::{During, Result};
use crate::ffi;

/// Counts the bytes of CPU tensors that this thread allocates and frees during its lifetime.
///
/// Tensors freed by other threads stay counted, and those allocated before are not. It must stay on its
/// thread.
pub struct CpuMemory {
    inner: UniquePtr<ffi::CpuMemory>,
}

impl CpuMemory {
    /// Starts counting. Only one counter at a time: a second one hides the first.
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
