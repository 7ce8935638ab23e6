//! Backward passes and gradients.

use tch::{Kind, Tensor};

use crate::error::{During, Result};
use crate::ffi;

/// Runs the backward pass of `loss`, a scalar, and adds to the gradients of its leaves.
///
/// # Errors
/// [`Error::Torch`] if the backward pass fails, for example because the loss requires no gradient.
pub fn backward(loss: &Tensor) -> Result<()> {
    ffi::run_backward(ffi::native(loss)).during("backward")
}

/// Whether operations are currently recorded for a backward pass. In a checkpointed computation, this means
/// that the backward pass is repeating it.
pub fn grad_enabled() -> bool {
    ffi::grad_enabled()
}

/// A loss of exactly zero that reaches every one of `parameters` with a zero gradient. Scalar, fp32.
pub fn zero_loss(parameters: &[Tensor]) -> Tensor {
    let zeros: Vec<Tensor> = parameters
        .iter()
        // A sum over no elements is 0 even if the parameter contains infinities.
        .map(|parameter| parameter.reshape([-1]).narrow(0, 0, 0).sum(Kind::Float))
        .collect();
    Tensor::stack(&zeros, 0).sum(Kind::Float)
}

/// Sets the gradients of `parameters` to zero in place.
///
/// # Errors
/// [`Error::Torch`] if the device fails.
pub fn zero_gradients(parameters: &[Tensor]) -> Result<()> {
    let gradients: Vec<Tensor> = parameters.iter().map(Tensor::grad).filter(Tensor::defined).collect();
    ffi::zero(&ffi::list(&gradients)).during("clearing gradients")
}

/// Sets the gradients of `parameters` to undefined, so that the next backward pass stores its gradients
/// without a sum or a copy.
///
/// # Errors
/// [`Error::Torch`], which should not happen.
pub fn clear_gradients(parameters: &[Tensor]) -> Result<()> {
    ffi::clear_gradients(&ffi::list(parameters)).during("dropping gradients")
}
