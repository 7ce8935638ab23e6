//! A value with precomputed gradients.

use tch::Tensor;

use crate::error::{During, Result};
use crate::ffi::{self, native, owned};

/// A scalar equal to `value` whose gradients with respect to `a` and `b` are the given ones times the
/// upstream gradient.
///
/// For losses whose gradients are computed along with their value. It can be differentiated only once, since
/// this consumes the given gradients.
///
/// # Errors
/// [`Error::Torch`], which should not happen.
pub fn with_gradients(
    value: &Tensor,
    (a, a_gradient): (&Tensor, &Tensor),
    (b, b_gradient): (&Tensor, &Tensor),
) -> Result<Tensor> {
    let preset =
        ffi::with_gradients(native(value), native(a), native(a_gradient), native(b), native(b_gradient));
    Ok(owned(preset.during("with_gradients")?))
}
