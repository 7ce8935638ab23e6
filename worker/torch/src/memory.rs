//! How much memory tensors take on the CPU, by libtorch's own count.

use cxx::UniquePtr;

use crate::error::{During, Result};
use crate::ffi;

/// Counts the bytes of CPU tensors that this thread makes and drops while it lives.
///
/// Tensors that other threads drop stay counted, and those made before are not. It belongs to its thread.
pub struct CpuMemory {
    inner: UniquePtr<ffi::CpuMemory>,
}

impl CpuMemory {
    /// Begins to count. One at a time: a second one hides the first.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] where memory is short.
    pub fn count() -> Result<Self> {
        Ok(Self { inner: ffi::count_cpu_memory().during("counting memory")? })
    }

    /// Bytes made since and not dropped yet.
    pub fn held(&self) -> u64 {
        u64::try_from(self.inner.held()).unwrap_or(0)
    }

    /// The most that was held at once since the beginning or [`CpuMemory::reset_peak`].
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
    fn it_counts_what_is_made_and_dropped_and_the_most_of_it() {
        let memory = CpuMemory::count().unwrap();
        let kept = Tensor::zeros([100], (Kind::Float, Device::Cpu));
        drop(Tensor::zeros([1000], (Kind::Float, Device::Cpu)));
        assert_eq!((memory.held(), memory.peak()), (400, 4400));
        memory.reset_peak();
        assert_eq!(memory.peak(), 400);
        drop(kept);
        assert_eq!((memory.held(), memory.peak()), (0, 400));
        drop(memory);
        drop(Tensor::zeros([1000], (Kind::Float, Device::Cpu)));
    }
}
