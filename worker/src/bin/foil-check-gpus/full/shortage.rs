//! A shortage of device memory is recognized, and the device remains usable.

use anyhow::Result;
use foil_common::oom::{self, MemoryKind};
use foil_torch::device_memory;
use tch::{Device, Kind, Tensor};

use super::finding::{Finding, log, report};

pub(super) fn run(device: Device) -> Result<()> {
    // The host's memory is promised without being there.
    if !device.is_cuda() {
        return Ok(());
    }
    let number = Tensor::from_slice(&[2.0_f32]).to_device(device);
    let total = i64::try_from(device_memory::total()?)?;
    let refused = Tensor::f_zeros([2 * total], (Kind::Uint8, device)).err().map(|error| error.to_string());
    let shortage = refused.as_deref().and_then(oom::parse);
    let is_recognized = shortage.is_some_and(|shortage| shortage.place == MemoryKind::Device.name());
    report(&Finding::must_hold("a shortage of device memory is recognized", is_recognized))?;
    if let (Some(error), false) = (refused, is_recognized) {
        log(&error)?;
    }
    device_memory::release_cached()?;
    let is_usable = (&number * 21.0).double_value(&[0]) == 42.0;
    report(&Finding::must_hold("the device computes after a shortage", is_usable))?;
    Ok(())
}
