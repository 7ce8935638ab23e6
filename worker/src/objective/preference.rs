//! Learning a reward from preferred and rejected answers.

use tch::Tensor;

use super::accumulation_kind;

/// What a reward model says of some pairs, and what the pairs weigh. All tensors are `[pairs]`.
#[derive(Debug, Clone, Copy)]
pub struct ScoredPairs<'a> {
    pub chosen: &'a Tensor,
    pub rejected: &'a Tensor,
    /// m, by how much the chosen answer's score should exceed the other's; none is 0.
    pub margins: Option<&'a Tensor>,
    /// w of the loss.
    pub weights: &'a Tensor,
}

/// The Bradley–Terry loss and what may be added to it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BradleyTerry {
    /// ε, the probability that a pair's preference is the wrong way round; 0 ≤ ε < ½.
    pub label_smoothing: f64,
    /// c of the term that holds scores near 0, which pairs alone leave at any offset; 0 is none.
    pub centring: f64,
}

impl BradleyTerry {
    /// Σ_i w_i · [−(1 − ε) log σ(d_i) − ε log σ(−d_i) + c · (r_i + s_i)²] with d_i = r_i − s_i − m_i, where r_i and
    /// s_i are the scores of pair i's chosen and rejected answers; a scalar in fp32 (fp64 for fp64 scores).
    ///
    /// With ε = c = m = 0 it is Eq. 15 of Cheng et al. (arXiv 2311.08045). The margin is that of Llama 2 (arXiv 2307.09288,
    /// Eq. 2), the centring that of Eisenstein et al. (arXiv 2312.09244), the smoothing a cross-entropy against 1 − ε
    /// for the probability σ(d). −log σ(d) is taken as max(−d, 0) + log(1 + e^−|d|), which neither overflows nor
    /// loses its gradient at large |d|.
    pub fn loss(&self, pairs: &ScoredPairs<'_>) -> Tensor {
        let kind = accumulation_kind(pairs.chosen.kind());
        let (chosen, rejected) = (pairs.chosen.to_kind(kind), pairs.rejected.to_kind(kind));
        let mut difference = &chosen - &rejected;
        if let Some(margins) = pairs.margins {
            difference -= margins.to_kind(kind);
        }
        let mut losses = smoothed_nll(&difference, self.label_smoothing);
        if self.centring > 0.0 {
            losses += (chosen + rejected).square() * self.centring;
        }
        (losses * pairs.weights.to_kind(kind)).sum(kind)
    }
}

/// The plain Bradley–Terry loss Σ_i w_i · −log σ(c_i − r_i) of chosen and rejected scores, each `[pairs]`; see
/// [`BradleyTerry::loss`].
pub fn bradley_terry(chosen: &Tensor, rejected: &Tensor, weights: &Tensor) -> Tensor {
    BradleyTerry::default().loss(&ScoredPairs { chosen, rejected, margins: None, weights })
}

/// −(1 − ε) log σ(d) − ε log σ(−d), element by element: the cross-entropy of σ(d) against 1 − ε.
pub(super) fn smoothed_nll(difference: &Tensor, label_smoothing: f64) -> Tensor {
    if label_smoothing == 0.0 {
        return -difference.log_sigmoid();
    }
    -(difference.log_sigmoid() * (1.0 - label_smoothing)) - (-difference).log_sigmoid() * label_smoothing
}

/// The Wasserstein objective Σ_i w_i · −(g_i − s_i) between golden answers (`chosen`) and samples (`rejected`): the reward
/// player's side of the game itself (Cheng et al., Eq. 14). Margins have no part in it.
///
/// It has no lower bound: the scores grow for as long as the model is trained, unless its weights are clipped.
pub fn wgan(pairs: &ScoredPairs<'_>) -> Tensor {
    let kind = accumulation_kind(pairs.chosen.kind());
    let difference = pairs.rejected.to_kind(kind) - pairs.chosen.to_kind(kind);
    (difference * pairs.weights.to_kind(kind)).sum(kind)
}

/// A logistic discriminator's loss Σ_i w_i · [−log σ(g_i) − log(1 − σ(s_i))] between golden answers (`chosen`) and samples
/// (`rejected`), as in GAIL (Ho and Ermon, arXiv 1606.03476); margins have no part in it.
///
/// Each score is judged by itself: σ(r) is the probability that the answer is golden.
pub fn gail(pairs: &ScoredPairs<'_>) -> Tensor {
    let kind = accumulation_kind(pairs.chosen.kind());
    let (golden, sampled) = (pairs.chosen.to_kind(kind), pairs.rejected.to_kind(kind));
    // log(1 − σ(s)) = log σ(−s)
    let losses = -(golden.log_sigmoid() + (-sampled).log_sigmoid());
    (losses * pairs.weights.to_kind(kind)).sum(kind)
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::{BradleyTerry, ScoredPairs, bradley_terry, gail, wgan};

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
        let scores = || Tensor::from_slice(&[-1e4_f32, 1e4]).set_requires_grad(true);
        let weights = Tensor::from_slice(&[1.0_f32, 1.0]);
        let (chosen, zeros) = (scores(), Tensor::zeros([2], (Kind::Float, tch::Device::Cpu)));
        let pairs = ScoredPairs { chosen: &chosen, rejected: &zeros, margins: None, weights: &weights };
        let loss = bradley_terry(&chosen, &zeros, &weights);
        loss.backward();
        assert_eq!(loss.double_value(&[]), 1e4);
        assert_eq!(Vec::<f32>::try_from(chosen.grad()).unwrap(), [-1.0, 0.0]);
        let smooth = BradleyTerry { label_smoothing: 0.25, centring: 0.0 }.loss(&pairs);
        assert_eq!(smooth.double_value(&[]), 0.75 * 1e4 + 0.25 * 1e4);
        assert!((gail(&pairs).double_value(&[]) - 1e4 - 2.0 * std::f64::consts::LN_2).abs() < 1e-2);
        assert_eq!(wgan(&pairs).double_value(&[]), 0.0);
    }

    #[test]
    fn smoothing_puts_the_minimum_where_the_smoothed_odds_are() {
        // σ(d) = 1 − ε at the minimum, so the gradient vanishes at d = log((1 − ε) / ε) + m.
        let (epsilon, margin) = (0.1_f64, 0.5);
        let chosen = Tensor::from_slice(&[((1.0 - epsilon) / epsilon).ln() + margin]).set_requires_grad(true);
        let (rejected, margins, weights) =
            (Tensor::zeros_like(&chosen), Tensor::from_slice(&[margin]), Tensor::from_slice(&[1.0]));
        let pairs =
            ScoredPairs { chosen: &chosen, rejected: &rejected, margins: Some(&margins), weights: &weights };
        BradleyTerry { label_smoothing: epsilon, centring: 0.0 }.loss(&pairs).backward();
        assert!(chosen.grad().double_value(&[0]).abs() < 1e-12);
    }

    #[test]
    fn narrow_scores_are_summed_in_fp32() {
        let zeros = Tensor::zeros([512], (Kind::BFloat16, tch::Device::Cpu));
        let ones = Tensor::ones([512], (Kind::Float, tch::Device::Cpu));
        let pairs = ScoredPairs { chosen: &zeros, rejected: &zeros, margins: None, weights: &ones };
        for (loss, each) in [(bradley_terry(&zeros, &zeros, &ones), 1.0), (gail(&pairs), 2.0)] {
            assert_eq!(loss.kind(), Kind::Float);
            assert!((loss.double_value(&[]) - each * 512.0 * std::f64::consts::LN_2).abs() < 1e-3);
        }
    }
}
