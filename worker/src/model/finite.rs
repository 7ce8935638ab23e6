//! Rejects NaN and infinity in a checkpoint; later they would look like diverged training.

use foil_common::model::ModelFilesError;
use tch::{Device, Kind, Tensor};

use super::ModelError;

/// The bounds of tensors, which are computed on their device and read together at the end, so that the host
/// does not wait for each tensor.
#[derive(Debug, Default)]
pub(super) struct FiniteCheck {
    /// Names and numbers of elements.
    tensors: Vec<(String, usize)>,
    /// Minimum and maximum of each tensor, `[2]`, fp32. Both are NaN if an element is.
    bounds: Vec<Tensor>,
}

impl FiniteCheck {
    /// Adds a tensor, which must have elements.
    pub(super) fn add(&mut self, name: &str, tensor: &Tensor) -> Result<(), ModelError> {
        // Unlike a mask, they take no memory.
        let (min, max) = tensor.f_aminmax(None, false)?;
        self.bounds.push(Tensor::f_stack(&[min, max], 0)?.to_kind(Kind::Float));
        self.tensors.push((name.to_owned(), tensor.numel()));
        Ok(())
    }

    /// Returns an error that names the first tensor with NaN or infinity.
    pub(super) fn finish(self) -> Result<(), ModelError> {
        if self.bounds.is_empty() {
            return Ok(());
        }
        let bounds = Vec::<f32>::try_from(Tensor::f_cat(&self.bounds, 0)?.to_device(Device::Cpu))?;
        let is_finite = |bounds: &[f32]| bounds.iter().all(|bound| bound.is_finite());
        match self.tensors.iter().zip(bounds.chunks(2)).find(|(_, bounds)| !is_finite(bounds)) {
            None => Ok(()),
            Some(((name, elements), _)) => {
                let reason = format!(
                    "some of its {elements} numbers in the checkpoint are NaN or infinite; the checkpoint is damaged, \
                     or comes from a training that diverged"
                );
                Err(ModelFilesError::tensor(name, reason).into())
            }
        }
    }
}
