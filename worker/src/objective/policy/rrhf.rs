//! Rank responses to align with human feedback (Yuan et al., arXiv 2304.05302): ranks completions by reward
//! and trains their likelihoods to have the same order.

use foil_common::spec::{Pairing, Reduction, Rrhf};
use tch::Tensor;

use super::super::accumulation_kind;
use super::super::metrics::{Metric, MetricSums};
use super::super::pairing::Sides;
use super::{
    Group, GroupLoss, LossOutput, PolicyObjective, ScoredCompletion, ascending, best, members, pairs_of,
};

const RANKING: &str = "ranking_loss";
const BEST_NLL: &str = "best_nll";

impl PolicyObjective for Rrhf {
    fn select(&self, completions: &[ScoredCompletion<'_>]) -> Vec<usize> {
        let pairs = pairs_of(completions, Pairing::All);
        ascending(members(&pairs).chain(best(completions)))
    }

    fn group_loss(&self, group: &Group<'_>) -> GroupLoss {
        let (settings, device) = (*self, group.device);
        let pairs = Sides::new(&group.pairs(Pairing::All), device);
        let best = best(group.completions).and_then(|best| group.position(best)).unwrap_or_default();
        GroupLoss::new(1.0, move |log_probs| {
            let (ranking, nll) = terms(log_probs, &pairs, best, settings.nll);
            let metrics = MetricSums::from_scalars([(RANKING, &ranking), (BEST_NLL, &nll)], device);
            LossOutput { loss: ranking * settings.ranking_weight + nll, metrics }
        })
    }

    /// Means over prompts: the ranking term before its weight, and the best completion's negative
    /// log-likelihood.
    fn metrics(&self) -> &'static [Metric] {
        const METRICS: [Metric; 2] = [Metric::per_weight(RANKING), Metric::per_weight(BEST_NLL)];
        &METRICS
    }
}

/// The ranking and the likelihood term (Eqs. 2-5), scalars in fp32 (fp64 for fp64 log-probabilities). The
/// first is Σ max(0, p_l − p_w) over `pairs` of a better completion w and a worse one l, where p is the mean
/// log-probability of a completion's tokens. The second is the negative log-likelihood of completion `best`
/// as a sum or a mean over its tokens.
///
/// `log_probs` holds each completion's log-probabilities per token, `[tokens]`. A completion without tokens
/// has p = 0, above all others, and must not be in a pair.
///
/// # Panics
/// An index beyond the completions.
pub fn terms(log_probs: &[Tensor], pairs: &Sides, best: usize, nll: Reduction) -> (Tensor, Tensor) {
    let kind = accumulation_kind(log_probs[best].kind());
    let nll = match nll {
        Reduction::Sum => -log_probs[best].sum(kind),
        Reduction::Mean => -mean(&log_probs[best]),
    };
    let likelihood = Tensor::stack(&log_probs.iter().map(mean).collect::<Vec<_>>(), 0); // [completions]
    let (better, worse) = pairs.of(&likelihood);
    ((worse - better).relu().sum(kind), nll)
}

/// The mean over a completion's tokens; 0 if it has none.
fn mean(log_probs: &Tensor) -> Tensor {
    log_probs.sum(accumulation_kind(log_probs.kind())) / log_probs.size()[0].max(1) as f64
}

#[cfg(test)]
mod tests {
    use foil_common::spec::{Pairing, Reduction};
    use tch::{Device, Tensor};

    use super::terms;
    use crate::objective::pairing::{Sides, pairs};

    #[test]
    fn likelihoods_in_the_order_of_rewards_cost_nothing_but_the_best_completions() {
        let completions = [&[-0.5_f64, -0.5][..], &[-1.0, -2.0, -3.0], &[-4.0]].map(Tensor::from_slice);
        let texts = ["a", "b", "c"];
        let cost = |pairs: &[_], best, reduction| {
            let (ranking, nll) = terms(&completions, &Sides::new(pairs, Device::Cpu), best, reduction);
            (ranking.double_value(&[]), nll.double_value(&[]))
        };
        let ordered = pairs(&[3.0, 2.0, 1.0], &texts, Pairing::All);
        assert_eq!(cost(&ordered, 0, Reduction::Sum), (0.0, 1.0));
        // In reverse order, every pair costs its difference: .5 → 2, .5 → 4, 2 → 4.
        let reversed = pairs(&[1.0, 2.0, 3.0], &texts, Pairing::All);
        let (ranking, nll) = cost(&reversed, 2, Reduction::Sum);
        assert!((ranking - (1.5 + 3.5 + 2.0)).abs() < 1e-12 && nll == 4.0);
        assert!((cost(&[], 1, Reduction::Mean).1 - 2.0).abs() < 1e-12);
    }
}
