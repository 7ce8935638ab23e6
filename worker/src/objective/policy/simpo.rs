//! Simple preference optimization.

use foil_common::spec::Simpo;
use tch::Tensor;

use super::super::accumulation_kind;
use super::super::metrics::Metric;
use super::preference;
use super::{Group, GroupLoss, PolicyObjective, ScoredCompletion};

impl PolicyObjective for Simpo {
    fn select(&self, completions: &[ScoredCompletion<'_>]) -> Vec<usize> {
        preference::select(completions, self.pairing)
    }

    fn group_loss(&self, group: &Group<'_>) -> GroupLoss {
        let Self { beta, gamma, pairing } = *self;
        let score = |_, log_probs: &Tensor| mean_log_prob(log_probs);
        preference::group_loss(group, (pairing, beta), score, move |chosen, rejected| {
            simpo_loss(chosen, rejected, beta, gamma)
        })
    }

    fn metrics(&self) -> &'static [Metric] {
        &preference::METRICS
    }
}

/// Simple preference optimization (Meng et al., arXiv 2405.14734, Eq. 6): Σ over pairs of −log σ(β·(p_w −
/// p_l) − γ), with p the mean log-probability of a completion's tokens.
///
/// `chosen` and `rejected` are p of the two sides, `[pairs]`; the result is a scalar in fp32 (fp64 for fp64
/// inputs).
pub fn simpo_loss(chosen: &Tensor, rejected: &Tensor, beta: f64, gamma: f64) -> Tensor {
    let kind = accumulation_kind(chosen.kind());
    let margins = (chosen.to_kind(kind) - rejected.to_kind(kind)) * beta - gamma;
    -margins.log_sigmoid().sum(kind)
}

/// The mean of a completion's log-probabilities, `[tokens]`; 0 if it has no tokens.
pub fn mean_log_prob(log_probs: &Tensor) -> Tensor {
    log_probs.sum(accumulation_kind(log_probs.kind())) / log_probs.size()[0].max(1) as f64
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::simpo_loss;

    #[test]
    fn the_gradient_follows_the_formula() {
        // ∂/∂p_w of −log σ(β(p_w − p_l) − γ) is −β σ(γ − β(p_w − p_l)).
        let (beta, gamma) = (2.5, 0.8);
        let margins = [-3.0_f64, 0.0, 0.32, 20.0];
        let chosen = Tensor::from_slice(&margins).set_requires_grad(true);
        let rejected = Tensor::zeros_like(&chosen).set_requires_grad(true);
        let loss = simpo_loss(&chosen, &rejected, beta, gamma);
        let found = Tensor::run_backward(&[&loss], &[&chosen, &rejected], false, false);
        for (pair, margin) in margins.into_iter().enumerate() {
            let expected = -beta / (1.0 + (beta * margin - gamma).exp());
            assert!((found[0].double_value(&[pair as i64]) - expected).abs() < 1e-12);
            assert!((found[1].double_value(&[pair as i64]) + expected).abs() < 1e-12);
        }
    }
}
