//! Transfers from the host without waiting for the device.

use tch::{Device, Kind, Tensor};

use crate::error::{During, Result};
use crate::ffi::{self, native, owned};

/// The alignment of each part of a transfer in bytes, which is that of the widest kind.
const ALIGNMENT: usize = 8;

/// Numbers on the host that become a tensor on a device.
#[derive(Debug, Clone, PartialEq)]
pub enum Numbers {
    Int64(Vec<i64>),
    Int32(Vec<i32>),
    Float(Vec<f32>),
}

impl Numbers {
    fn kind(&self) -> Kind {
        match self {
            Self::Int64(_) => Kind::Int64,
            Self::Int32(_) => Kind::Int,
            Self::Float(_) => Kind::Float,
        }
    }

    fn host(&self) -> Tensor {
        match self {
            Self::Int64(numbers) => Tensor::from_slice(numbers),
            Self::Int32(numbers) => Tensor::from_slice(numbers),
            Self::Float(numbers) => Tensor::from_slice(numbers),
        }
    }

    /// Appends the bytes, aligned, and returns their position.
    fn append(&self, bytes: &mut Vec<u8>) -> (usize, usize) {
        let start = bytes.len();
        match self {
            Self::Int64(numbers) => numbers.iter().for_each(|number| bytes.extend(number.to_ne_bytes())),
            Self::Int32(numbers) => numbers.iter().for_each(|number| bytes.extend(number.to_ne_bytes())),
            Self::Float(numbers) => numbers.iter().for_each(|number| bytes.extend(number.to_ne_bytes())),
        }
        let length = bytes.len() - start;
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        (start, length)
    }
}

/// The numbers as tensors on `device`, `[n]` each. For a GPU they are transferred in one copy, for which the
/// host does not wait; the tensors are views of it.
///
/// # Errors
/// [`crate::Error::Torch`] if memory is short.
pub fn upload(parts: &[Numbers], device: Device) -> Result<Vec<Tensor>> {
    let Device::Cuda(index) = device else {
        return Ok(parts.iter().map(|part| part.host().to_device(device)).collect());
    };
    let mut bytes = Vec::new();
    let places: Vec<(usize, usize)> = parts.iter().map(|part| part.append(&mut bytes)).collect();
    let host = Tensor::from_slice(&bytes);
    let copied = owned(ffi::upload(native(&host), index as i32).during("copying to the GPU")?);
    Ok(views(&copied, parts, &places))
}

/// The parts of `copied`, `[bytes]`, at their places: (start, length) in bytes.
fn views(copied: &Tensor, parts: &[Numbers], places: &[(usize, usize)]) -> Vec<Tensor> {
    let view = |(part, &(start, length)): (&Numbers, &(usize, usize))| match length {
        0 => Tensor::zeros([0], (part.kind(), copied.device())),
        _ => copied.narrow(0, start as i64, length as i64).view_dtype(part.kind()),
    };
    parts.iter().zip(places).map(view).collect()
}

#[cfg(test)]
mod tests {
    use tch::{Device, Tensor};

    use super::{Numbers, upload, views};

    #[test]
    fn parts_of_one_copy_are_the_numbers() {
        let parts = [
            Numbers::Int32(vec![7, -8, 9]),
            Numbers::Int64(vec![-1, 1 << 40]),
            Numbers::Float(Vec::new()),
            Numbers::Float(vec![0.1]),
            Numbers::Int32(vec![5]),
        ];
        let mut bytes = Vec::new();
        let places: Vec<_> = parts.iter().map(|part| part.append(&mut bytes)).collect();
        let joint = views(&Tensor::from_slice(&bytes), &parts, &places);
        let separate = upload(&parts, Device::Cpu).unwrap();
        for (joint, separate) in joint.iter().zip(&separate) {
            assert!(joint.kind() == separate.kind() && joint.equal(separate), "{joint:?} {separate:?}");
        }
    }
}
