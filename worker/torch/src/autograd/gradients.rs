//! Backward passes and the gradients they leave.

use tch::{Kind, Tensor};

use crate::error::{During, Result};
use crate::ffi;

/// Runs backward of `loss`, a scalar, adding to the gradients of the leaves it came from.
///
/// # Errors
/// [`Error::Torch`] where backward fails, as for a loss that needs no gradient.
pub fn backward(loss: &Tensor) -> Result<()> {
    ffi::run_backward(ffi::native(loss)).during("backward")
}

/// A loss of exactly zero that reaches every one of `parameters` with a zero gradient. Scalar, fp32.
pub fn zero_loss(parameters: &[Tensor]) -> Tensor {
    let zeros: Vec<Tensor> = parameters
        .iter()
        // The sum over no elements is 0 even where the parameter holds infinities.
        .map(|parameter| parameter.reshape([-1]).narrow(0, 0, 0).sum(Kind::Float))
        .collect();
    Tensor::stack(&zeros, 0).sum(Kind::Float)
}

/// Clears in place whatever gradients `parameters` have.
///
/// # Errors
/// [`Error::Torch`] where the device fails.
pub fn zero_gradients(parameters: &[Tensor]) -> Result<()> {
    let gradients: Vec<Tensor> = parameters.iter().map(Tensor::grad).filter(Tensor::defined).collect();
    ffi::zero(&ffi::list(&gradients)).during("clearing gradients")
}

/// Takes their gradients away from `parameters`: the next backward then leaves its own there, without a sum or a copy.
///
/// # Errors
/// [`Error::Torch`], which is not known to happen.
pub fn clear_gradients(parameters: &[Tensor]) -> Result<()> {
    ffi::clear_gradients(&ffi::list(parameters)).during("dropping gradients")
}
