//! Transfers to the host without waiting for the device after each one.

use cxx::UniquePtr;
use tch::{Device, Tensor};

use crate::error::{During, Result};
use crate::ffi::{self, native, owned};

/// Copies of tensors to the host. On a GPU they run on a separate stream, concurrently with its other work
/// and after all work queued before them. On the CPU they are complete immediately.
///
/// Dropping it waits for the copies in flight.
pub struct Downloads {
    inner: UniquePtr<ffi::Downloads>,
}

impl Downloads {
    /// Creates a queue of copies from `device`.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] if the device has no stream for them.
    pub fn new(device: Device) -> Result<Self> {
        let device = match device {
            Device::Cuda(index) => index as i32,
            Device::Cpu | Device::Mps | Device::Vulkan => -1,
        };
        Ok(Self { inner: ffi::new_downloads(device).during("preparing copies from the GPU")? })
    }

    /// Starts to copy `from` into `into`, which must be contiguous, of the same shape and on the host.
    /// Neither may change before [`Downloads::wait`]. The host waits here if `into` is not
    /// [pinned](host_buffer).
    ///
    /// # Errors
    /// [`crate::Error::Torch`] if the shapes differ or the device fails.
    pub fn copy(&self, from: &Tensor, into: &Tensor) -> Result<()> {
        self.inner.copy(native(from), native(into)).during("copying from the GPU")
    }

    /// Waits for all copies.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] if the device fails.
    pub fn wait(&self) -> Result<()> {
        self.inner.wait().during("waiting for copies from the GPU")
    }
}

/// Uninitialized host memory for [`Downloads`] from `device`, pinned if it is a GPU: `[elements]`, fp32.
/// The allocator of pinned memory rounds a block up to a power of two.
///
/// # Errors
/// [`crate::Error::Torch`] if memory is short.
pub fn host_buffer(elements: i64, device: Device) -> Result<Tensor> {
    let pinned = matches!(device, Device::Cuda(_));
    Ok(owned(ffi::host_buffer(elements, pinned).during("allocating host memory")?))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::{Downloads, host_buffer};

    #[test]
    fn copies_on_the_cpu_are_the_tensors() {
        let downloads = Downloads::new(Device::Cpu).unwrap();
        let buffer = host_buffer(6, Device::Cpu).unwrap();
        let [first, second] = [buffer.narrow(0, 0, 4), buffer.narrow(0, 4, 2)];
        downloads.copy(&Tensor::from_slice(&[1.5_f32, -2.0, 3.25, 0.0]), &first).unwrap();
        // Also a tensor of another kind.
        downloads.copy(&Tensor::from_slice(&[7_i64, 8]).to_kind(Kind::BFloat16), &second).unwrap();
        downloads.wait().unwrap();
        assert!(buffer.equal(&Tensor::from_slice(&[1.5_f32, -2.0, 3.25, 0.0, 7.0, 8.0])));
        let error = downloads.copy(&Tensor::from_slice(&[1.0_f32]), &first).unwrap_err().to_string();
        assert!(error.contains("same shape"), "{error}");
    }
}
