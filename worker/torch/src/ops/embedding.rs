//! Rows of an embedding matrix.

use tch::{Kind, Tensor};

use crate::error::{During, Result};
use crate::ffi::{self, native, owned};

/// The rows `ids` (`[tokens]`, int64) of `weight` (`[vocab, hidden]`, fp32 or bf16), in fp32: `[tokens,
/// hidden]`.
///
/// A token's gradient is summed in fp32 and then converted to the weight's kind.
///
/// # Errors
/// [`Error::Torch`] for other kinds; out of memory.
pub fn embedding(weight: &Tensor, ids: &Tensor) -> Result<Tensor> {
    if weight.kind() == Kind::Float {
        return Ok(Tensor::embedding(weight, ids, -1, false, false));
    }
    Ok(owned(ffi::wide_embedding(native(weight), native(ids)).during("embedding")?))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::embedding;
    use crate::autograd::backward;

    #[test]
    fn a_frequent_tokens_gradient_is_summed_in_fp32() {
        let master = Tensor::randn([5, 3], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        let ids = Tensor::from_slice(&[1_i64, 4, 1, 1, 0].repeat(300));
        let upstream = Tensor::rand([1500, 3], (Kind::Float, Device::Cpu)) + 0.5;
        let gradient = |kind| {
            // An explicit copy, since converting to the same kind makes none.
            let weight = master.to_kind(kind).copy().set_requires_grad(true);
            let rows = embedding(&weight, &ids).unwrap();
            assert_eq!(rows.kind(), Kind::Float);
            assert_eq!(rows, master.to_kind(Kind::Float).index_select(0, &ids));
            backward(&(rows * &upstream).sum(Kind::Float)).unwrap();
            weight.grad().to_kind(Kind::Float)
        };
        let (found, expected) = (gradient(Kind::BFloat16), gradient(Kind::Float));
        let distance = ((&found - &expected).norm() / expected.norm()).double_value(&[]);
        assert!(distance < 4e-3, "{distance}");
    }
}
