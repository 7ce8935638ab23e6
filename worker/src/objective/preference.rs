//! Learning a reward from preferred and rejected answers.

use foil_common::spec::RewardLoss;
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
    pub center_rewards_coefficient: f64,
}

impl BradleyTerry {
    /// Σ_i w_i · [−(1 − ε) log σ(d_i) − ε log σ(−d_i) + c · (r_i + s_i)²] with d_i = r_i − s_i − m_i, where r_i and
    /// s_i are the scores of pair i's chosen and rejected answers; a scalar in fp32 (fp64 for fp64 scores).
    ///
    /// With ε = c = m = 0 it is Eq. 15 of Cheng et al. (arXiv 2311.08045). The margin is that of Llama 2 (arXiv 2307.09288,
    /// Eq. 2), the center_rewards_coefficient that of Eisenstein et al. (arXiv 2312.09244), the smoothing a cross-entropy against 1 − ε
    /// for the probability σ(d). −log σ(d) is taken as max(−d, 0) + log(1 + e^−|d|), which neither overflows nor
    /// loses its gradient at large |d|.
    pub fn loss(&self, pairs: &ScoredPairs<'_>) -> Tensor {
        let kind = accumulation_kind(pairs.chosen.kind());
        let (chosen, rejected) = (pairs.chosen.to_kind(kind), pairs.rejected.to_kind(kind));
        let mut difference = &chosen - &rejected;
        if let Some(margins) = pairs.margins {
            difference -= margins.to_kind(kind);
        }
        let losses = smoothed_nll(&difference, self.label_smoothing) * pairs.weights.to_kind(kind);
        losses.sum(kind) + self.off_centre(pairs)
    }

    /// Σ_i w_i · c · (r_i + s_i)².
    fn off_centre(&self, pairs: &ScoredPairs<'_>) -> Tensor {
        let kind = accumulation_kind(pairs.chosen.kind());
        if self.center_rewards_coefficient == 0.0 {
            return Tensor::zeros([], (kind, pairs.chosen.device()));
        }
        let sums = pairs.chosen.to_kind(kind) + pairs.rejected.to_kind(kind);
        (sums.square() * pairs.weights.to_kind(kind)).sum(kind) * self.center_rewards_coefficient
    }
}

/// What a reward model is trained to do: to rank human pairs, and to tell golden answers from samples.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RewardObjective {
    /// Of golden answers (chosen) against samples (rejected).
    pub golden: RewardLoss,
    /// Of human pairs, and of golden ones where `golden` says so.
    pub bradley_terry: BradleyTerry,
}

impl RewardObjective {
    /// The loss of pairs of both kinds, a sum as [`BradleyTerry::loss`]'s. `golden` is `[pairs]`, 1 for a golden answer
    /// against a sample and 0 for a human pair.
    ///
    /// Centring holds for all pairs but those of a discriminator, whose scores have an offset of their own.
    pub fn loss(&self, pairs: &ScoredPairs<'_>, golden: &Tensor) -> Tensor {
        let ranked = |pairs: &ScoredPairs<'_>| self.bradley_terry.loss(pairs);
        let (of_golden, of_humans) = (pairs.weights * golden, pairs.weights * (1.0 - golden));
        let humans = ScoredPairs { weights: &of_humans, ..*pairs };
        let golden = ScoredPairs { weights: &of_golden, ..*pairs };
        match self.golden {
            RewardLoss::BradleyTerry => ranked(pairs),
            RewardLoss::Wgan => ranked(&humans) + wgan(&golden) + self.bradley_terry.off_centre(&golden),
            RewardLoss::Gail => ranked(&humans) + gail(&golden),
        }
    }
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
    use foil_common::spec::RewardLoss;
    use tch::{Kind, Tensor};

    use super::{BradleyTerry, RewardObjective, ScoredPairs, gail, wgan};

    /// Chosen scores against zeros.
    fn against_zeros(chosen: &Tensor, weights: &Tensor, loss: impl Fn(&ScoredPairs<'_>) -> Tensor) -> Tensor {
        let rejected = chosen.zeros_like();
        loss(&ScoredPairs { chosen, rejected: &rejected, margins: None, weights })
    }

    fn bradley_terry(pairs: &ScoredPairs<'_>) -> Tensor {
        BradleyTerry::default().loss(pairs)
    }

    #[test]
    fn loss_and_gradient_follow_the_formula() {
        let differences = [-3.0, -0.5, 0.0, 1e-9, 0.25, 7.0, 25.0];
        let weights = [1.0, 0.25, 1.0, 2.0, 0.25, 0.0, 1.0];
        let chosen = Tensor::from_slice(&differences).set_requires_grad(true);
        let loss = against_zeros(&chosen, &Tensor::from_slice(&weights), bradley_terry);
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
        let weights = chosen.ones_like();
        let loss = against_zeros(&chosen, &weights, bradley_terry);
        loss.backward();
        assert_eq!(loss.double_value(&[]), 1e4);
        assert_eq!(Vec::<f32>::try_from(chosen.grad()).unwrap(), [-1.0, 0.0]);
        let smooth = BradleyTerry { label_smoothing: 0.25, center_rewards_coefficient: 0.0 };
        let smooth = against_zeros(&chosen, &weights, |pairs| smooth.loss(pairs)).double_value(&[]);
        assert_eq!(smooth, 0.75 * 1e4 + 0.25 * 1e4);
        let discriminated = against_zeros(&chosen, &weights, gail).double_value(&[]);
        assert!((discriminated - 1e4 - 2.0 * std::f64::consts::LN_2).abs() < 1e-2);
        assert_eq!(against_zeros(&chosen, &weights, wgan).double_value(&[]), 0.0);
    }

    #[test]
    fn smoothing_puts_the_minimum_where_the_smoothed_odds_are() {
        // σ(d) = 1 − ε at the minimum, so the gradient vanishes at d = log((1 − ε) / ε) + m.
        let (epsilon, margin) = (0.1_f64, 0.5);
        let chosen = Tensor::from_slice(&[((1.0 - epsilon) / epsilon).ln() + margin]).set_requires_grad(true);
        let margins = Tensor::from_slice(&[margin]);
        let objective = BradleyTerry { label_smoothing: epsilon, center_rewards_coefficient: 0.0 };
        let loss = against_zeros(&chosen, &Tensor::from_slice(&[1.0]), |pairs| {
            objective.loss(&ScoredPairs { margins: Some(&margins), ..*pairs })
        });
        loss.backward();
        assert!(chosen.grad().double_value(&[0]).abs() < 1e-12);
    }

    #[test]
    fn human_pairs_are_ranked_whatever_golden_ones_are_for() {
        let (chosen, rejected) =
            (Tensor::from_slice(&[1.0, 2.0, -1.0]), Tensor::from_slice(&[0.5, 3.0, 0.0]));
        let (weights, golden) = (Tensor::from_slice(&[1.0, 0.5, 0.5]), Tensor::from_slice(&[0.0, 1.0, 1.0]));
        let pairs = ScoredPairs { chosen: &chosen, rejected: &rejected, margins: None, weights: &weights };
        let loss = |golden_loss, center_rewards_coefficient| {
            let bradley_terry = BradleyTerry { label_smoothing: 0.0, center_rewards_coefficient };
            RewardObjective { golden: golden_loss, bradley_terry }.loss(&pairs, &golden).double_value(&[])
        };
        let softplus = |x: f64| x.exp().ln_1p();
        let human = softplus(-0.5);
        let ranked = human + 0.5 * (softplus(1.0) + softplus(1.0));
        let told_apart = 0.5 * (softplus(-2.0) + softplus(3.0) + softplus(1.0) + softplus(0.0));
        let off_centre = 0.1 * (1.5 * 1.5 + 0.5 * 25.0 + 0.5);
        for (found, expected) in [
            (loss(RewardLoss::BradleyTerry, 0.0), ranked),
            (loss(RewardLoss::BradleyTerry, 0.1), ranked + off_centre),
            (loss(RewardLoss::Wgan, 0.0), human + 0.5 * (1.0 + 1.0)),
            (loss(RewardLoss::Wgan, 0.1), human + 1.0 + off_centre),
            (loss(RewardLoss::Gail, 0.0), human + told_apart),
        ] {
            assert!((found - expected).abs() < 1e-12, "{found} not {expected}");
        }
    }

    #[test]
    fn narrow_scores_are_summed_in_fp32() {
        let zeros = Tensor::zeros([512], (Kind::BFloat16, tch::Device::Cpu));
        let ones = Tensor::ones([512], (Kind::Float, tch::Device::Cpu));
        let losses =
            [(against_zeros(&zeros, &ones, bradley_terry), 1.0), (against_zeros(&zeros, &ones, gail), 2.0)];
        for (loss, each) in losses {
            assert_eq!(loss.kind(), Kind::Float);
            assert!((loss.double_value(&[]) - each * 512.0 * std::f64::consts::LN_2).abs() < 1e-3);
        }
    }
}
