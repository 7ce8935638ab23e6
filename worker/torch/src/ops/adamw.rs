//! The AdamW update.

use tch::{Kind, Tensor};

use crate::error::{During, Error, Result};
use crate::ffi::{self, AdamW, owned};

/// The tensors of an AdamW update: five lists in the same order, all of one kind on one device.
#[derive(Debug, Clone, Copy)]
pub struct AdamWState<'a> {
    /// Updated in place.
    pub parameters: &'a [Tensor],
    /// Gradients with the parameters' shapes; read only.
    pub gradients: &'a [Tensor],
    /// Running means of gradients, with the parameters' shapes; updated in place.
    pub exp_avg: &'a [Tensor],
    /// Running means of squared gradients, with the parameters' shapes; updated in place.
    pub exp_avg_sq: &'a [Tensor],
    /// Number of updates so far, one fp32 scalar tensor on the same device per parameter; incremented in
    /// place.
    pub steps: &'a [Tensor],
}

/// One AdamW update of all parameters in one kernel (ATen's `_fused_adamw_`), with bias correction; the first
/// update is step 1. The same inputs give the same bits.
///
/// # Errors
/// [`Error::Argument`] if the lists do not match or a gradient is missing; nothing is changed in that case.
pub fn fused_adamw(state: &AdamWState<'_>, options: &AdamW) -> Result<()> {
    if state.parameters.is_empty() {
        return Ok(());
    }
    check(state)?;
    ffi::fused_adamw(
        &ffi::list(state.parameters),
        &ffi::list(state.gradients),
        &ffi::list(state.exp_avg),
        &ffi::list(state.exp_avg_sq),
        &ffi::list(state.steps),
        options,
    )
    .during("fused_adamw")
}

/// The norm of all of `tensors` as one vector, a scalar in their kind. There must be at least one tensor. On
/// a GPU it takes a few kernels for any number of tensors.
///
/// # Errors
/// [`Error::Torch`] for tensors that are undefined or on several devices.
pub fn global_norm(tensors: &[Tensor]) -> Result<Tensor> {
    Ok(owned(ffi::global_norm(&ffi::list(tensors)).during("global_norm")?))
}

/// Multiplies all of `tensors` by `factor` in place.
///
/// # Errors
/// [`Error::Torch`] for tensors that are undefined.
pub fn scale(tensors: &[Tensor], factor: f64) -> Result<()> {
    ffi::scale(&ffi::list(tensors), factor).during("scaling")
}

fn check(state: &AdamWState<'_>) -> Result<()> {
    const OPERATION: &str = "fused_adamw";
    let count = state.parameters.len();
    let like = [("gradients", state.gradients), ("exp_avg", state.exp_avg), ("exp_avg_sq", state.exp_avg_sq)];
    for (name, list) in like.into_iter().chain([("steps", state.steps)]) {
        if list.len() != count {
            let found = format!("{} tensors in {name}", list.len());
            return Err(Error::argument(OPERATION, found, format!("{count}, as there are parameters")));
        }
    }
    for (position, parameter) in state.parameters.iter().enumerate() {
        for (name, list) in like {
            let tensor = &list[position];
            if !tensor.defined() || tensor.size() != parameter.size() || tensor.kind() != parameter.kind() {
                let found = format!("{name} of parameter {position} as {tensor:?}");
                return Err(Error::argument(OPERATION, found, format!("the parameter's {parameter:?}")));
            }
        }
        let step = &state.steps[position];
        if !step.defined() || step.numel() != 1 || step.kind() != Kind::Float {
            let found = format!("the step of parameter {position} as {step:?}");
            return Err(Error::argument(OPERATION, found, "an fp32 scalar tensor"));
        }
    }
    Ok(())
}
