//! RMSNorm, with the preceding residual addition, and SwiGLU.

use tch::{Kind, Tensor};

use crate::error::{During, Result};
use crate::ffi::{self, native, owned};

/// x / sqrt(mean(x²) + eps) · weight over the last axis (Zhang and Sennrich 2019).
///
/// `x`: fp32, `weight`: `[width]`, fp32. The result has x's shape and kind `kind`, fp32 or bf16.
///
/// # Errors
/// [`Error::Torch`] for other kinds.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, kind: Kind) -> Result<Tensor> {
    let normed = ffi::rms_norm(native(x), native(weight), eps, kind == Kind::BFloat16);
    Ok(owned(normed.during("rms_norm")?))
}

/// The residual stream after an addition, x + delta in fp32, and its [`rms_norm`] in delta's kind.
///
/// # Errors
/// [`Error::Torch`] for kinds other than fp32 and bf16.
pub fn add_rms_norm(x: &Tensor, delta: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let pair = ffi::add_rms_norm(native(x), native(delta), native(weight), eps);
    let mut pair = pair.during("add_rms_norm")?;
    Ok((owned(pair.pin_mut().first()), owned(pair.pin_mut().second())))
}

/// silu(gate) · up (Shazeer 2020), for tensors of the same shape and kind.
///
/// # Errors
/// [`Error::Torch`] for kinds other than fp32 and bf16.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok(owned(ffi::swiglu(native(gate), native(up)).during("swiglu")?))
}
