//! Matrix products with constant weights, for inference.

use tch::Tensor;

use crate::error::{During, Result};
use crate::ffi::{self, native, owned};

/// A weight matrix `[out, in]` packed for many products with about `rows` rows, without gradients.
///
/// An unpacked matrix is reordered in each product, which makes the product cost up to half as much again.
#[derive(Debug)]
pub struct PackedWeight {
    /// In oneDNN's layout if libtorch has oneDNN, otherwise unchanged.
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

/// weight · xᵀ, `[out, rows]`, for `weight` `[out, in]` and `x` `[rows, in]` with far fewer rows: the weight
/// is not reordered. Without gradients.
///
/// # Errors
/// [`Error::Torch`] for tensors that do not fit together.
pub fn linear_by_output(weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    Ok(owned(ffi::linear_by_output(native(weight), native(x)).during("linear_by_output")?))
}
