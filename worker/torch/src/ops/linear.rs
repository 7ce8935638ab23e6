//! Matrix products with weights that do not change: for inference.

use tch::Tensor;

use crate::error::{During, Result};
use crate::ffi::{self, native, owned};

/// A weight matrix `[out, in]` laid out for many products with about `rows` rows, without gradients.
///
/// Multiplying by it as it lies costs up to half as much again: the matrix is then laid out anew in each product.
#[derive(Debug)]
pub struct PackedWeight {
    /// In oneDNN's own layout where libtorch has oneDNN, else as it was.
    matrix: Tensor,
    bias: Tensor,
}

impl PackedWeight {
    /// Copies `weight`; shares `bias`, `[out]`.
    ///
    /// # Errors
    /// [`Error::Torch`] for kinds other than fp32 and bf16.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, rows: i64) -> Result<Self> {
        let matrix = owned(ffi::pack_weight(native(weight), rows).during("packing a weight")?);
        Ok(Self { matrix, bias: bias.map_or_else(Tensor::new, Tensor::shallow_clone) })
    }

    /// x · weightᵀ + bias, for `x` `[rows, in]` of the weight's kind: `[rows, out]`.
    ///
    /// # Errors
    /// [`Error::Torch`] for tensors that do not fit together.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let product = ffi::packed_linear(native(x), native(&self.matrix), native(&self.bias));
        Ok(owned(product.during("packed_linear")?))
    }
}

/// weight · xᵀ, `[out, rows]`, for `weight` `[out, in]` and `x` `[rows, in]` with far fewer rows: the weight is read as it
/// lies. Without gradients.
///
/// # Errors
/// [`Error::Torch`] for tensors that do not fit together.
pub fn linear_by_output(weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    Ok(owned(ffi::linear_by_output(native(weight), native(x)).during("linear_by_output")?))
}
