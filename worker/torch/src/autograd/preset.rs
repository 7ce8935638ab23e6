//! A value whose gradients are known already.

use tch::Tensor;

use crate::error::{During, Result};
use crate::ffi::{self, native, owned};

/// A scalar of `value`'s number whose gradients with respect to `a` and `b` are those given, times what comes from above.
///
/// For losses whose gradients are made along with their value. It can be differentiated once: the gradients given are
/// used up.
///
/// # Errors
/// [`Error::Torch`], which is not known to happen.
pub fn with_gradients(
    value: &Tensor,
    (a, a_gradient): (&Tensor, &Tensor),
    (b, b_gradient): (&Tensor, &Tensor),
) -> Result<Tensor> {
    let preset =
        ffi::with_gradients(native(value), native(a), native(a_gradient), native(b), native(b_gradient));
    Ok(owned(preset.during("with_gradients")?))
}
