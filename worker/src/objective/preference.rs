//! Learning a reward from preferred and rejected answers.

use tch::Tensor;

use super::accumulation_kind;

/// The Bradley–Terry loss Σ_i w_i · −log σ(c_i − r_i), where c_i and r_i are the scores of pair i's chosen and rejected
/// answers and w_i is its weight (Cheng et al., arXiv 2311.08045, Eq. 15).
///
/// All three are `[pairs]`; the result is a scalar in fp32 (fp64 for fp64 scores). −log σ(d) is taken as
/// max(−d, 0) + log(1 + e^−|d|), which neither overflows nor loses its gradient at large |d|.
pub fn bradley_terry(chosen: &Tensor, rejected: &Tensor, weights: &Tensor) -> Tensor {
    let kind = accumulation_kind(chosen.kind());
    let difference = chosen.to_kind(kind) - rejected.to_kind(kind);
    -(difference.log_sigmoid() * weights.to_kind(kind)).sum(kind)
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::bradley_terry;

    #[test]
    fn loss_and_gradient_follow_the_formula() {
        let differences = [-3.0, -0.5, 0.0, 1e-9, 0.25, 7.0, 25.0];
        let weights = [1.0, 0.25, 1.0, 2.0, 0.25, 0.0, 1.0];
        let chosen = Tensor::from_slice(&differences).set_requires_grad(true);
        let loss = bradley_terry(&chosen, &Tensor::zeros_like(&chosen), &Tensor::from_slice(&weights));
        loss.backward();
        let rows = differences.iter().zip(weights);
        let expected: f64 = rows.map(|(d, w): (&f64, f64)| w * (-d).exp().ln_1p()).sum();
        assert!((loss.double_value(&[]) - expected).abs() < 1e-9);
        for (row, (d, w)) in differences.iter().zip(weights).enumerate() {
            let gradient = -w / (1.0 + f64::exp(*d));
            assert!((chosen.grad().double_value(&[row as i64]) - gradient).abs() < 1e-12);
        }
    }

    #[test]
    fn huge_differences_keep_finite_losses_and_gradients() {
        let chosen = Tensor::from_slice(&[-1e4_f32, 1e4]).set_requires_grad(true);
        let loss = bradley_terry(&chosen, &Tensor::zeros_like(&chosen), &Tensor::from_slice(&[1.0_f32, 1.0]));
        loss.backward();
        assert_eq!(loss.double_value(&[]), 1e4);
        assert_eq!(chosen.grad().double_value(&[0]), -1.0);
        assert_eq!(chosen.grad().double_value(&[1]), 0.0);
    }

    #[test]
    fn narrow_scores_are_summed_in_fp32() {
        let zeros = Tensor::zeros([512], (Kind::BFloat16, tch::Device::Cpu));
        let loss = bradley_terry(&zeros, &zeros, &Tensor::ones([512], (Kind::Float, tch::Device::Cpu)));
        assert_eq!(loss.kind(), Kind::Float);
        assert!((loss.double_value(&[]) - 512.0 * std::f64::consts::LN_2).abs() < 1e-3);
    }
}
