//! Group relative policy optimization (Shao et al., arXiv 2402.03300, Eq. 3), with the aggregation of Dr.
//! GRPO (Liu et al., arXiv 2503.20783) and the ratios of GSPO (Zheng et al., arXiv 2507.18071) as options.

use foil_common::spec::{Grpo, GrpoLossType, ScaleRewards};

use super::super::advantage::{centered, group_advantages};
use super::super::metrics::{Metric, MetricSums};
use super::super::surrogate::{Denominator, Rollouts, kl_estimate, token_surrogate};
use super::{Group, GroupLoss, LossOutput, PolicyObjective, ScoredCompletion, with_tokens};

const CLIP_FRACTION: &str = "clip_fraction";
const KL: &str = "kl";

/// Means over completions: the fraction of clipped probability ratios, and the KL term before its weight.
const METRICS: [Metric; 2] = [Metric::per_weight(CLIP_FRACTION), Metric::per_weight(KL)];

impl PolicyObjective for Grpo {
    fn select(&self, completions: &[ScoredCompletion<'_>]) -> Vec<usize> {
        with_tokens(completions)
    }

    /// The trainer divides the sum over completions by the number of completions in the global batch,
    /// including those without tokens.
    fn group_loss(&self, group: &Group<'_>) -> GroupLoss {
        let Self { epsilon, kl, importance_sampling_level: level, .. } = *self;
        let advantages = match self.scale_rewards {
            ScaleRewards::Group => group_advantages(&group.rewards()),
            ScaleRewards::None => centered(&group.rewards()),
        };
        let advantages = group.of_selected(&advantages);
        let denominator = match self.loss_type {
            GrpoLossType::Grpo => Denominator::Length,
            GrpoLossType::DrGrpo => Denominator::Constant(group.max_new_tokens as f64),
        };
        let (old_log_probs, device) = (group.old_log_probs(), group.device);
        let kl = kl.map(|kl| (kl.beta, group.ref_log_probs()));
        GroupLoss::new(group.completions.len() as f64, move |log_probs| {
            let rollouts = Rollouts { log_probs, old_log_probs: &old_log_probs, advantages: &advantages };
            let surrogate = token_surrogate(&rollouts, epsilon, level, denominator);
            let clipped = (CLIP_FRACTION, &surrogate.clipped);
            match &kl {
                None => {
                    LossOutput { loss: surrogate.loss, metrics: MetricSums::from_scalars([clipped], device) }
                }
                Some((beta, ref_log_probs)) => {
                    let kl = kl_estimate(log_probs, ref_log_probs, denominator);
                    let metrics = MetricSums::from_scalars([clipped, (KL, &kl)], device);
                    LossOutput { loss: surrogate.loss + kl * *beta, metrics }
                }
            }
        })
    }

    fn metrics(&self) -> &'static [Metric] {
        if self.kl.is_some() { &METRICS } else { &METRICS[..1] }
    }
}
