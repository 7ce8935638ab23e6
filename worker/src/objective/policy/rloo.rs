//! REINFORCE with a leave-one-out baseline (Ahmadian et al., arXiv 2402.14740), clipped as in TRL.

use foil_common::spec::Rloo;

use super::super::advantage::{leave_one_out, penalized_rewards};
use super::super::metrics::{Metric, MetricSums};
use super::super::surrogate::{Rollouts, sequence_surrogate};
use super::{Group, GroupLoss, LossOutput, PolicyObjective, ScoredCompletion, with_tokens};

const CLIP_FRACTION: &str = "clip_fraction";

impl PolicyObjective for Rloo {
    fn select(&self, completions: &[ScoredCompletion<'_>]) -> Vec<usize> {
        with_tokens(completions)
    }

    /// The trainer divides the sum over completions by the number of completions in the global batch,
    /// including those without tokens.
    fn group_loss(&self, group: &Group<'_>) -> GroupLoss {
        let beta = self.kl.map_or(0.0, |kl| kl.beta);
        let advantages = group.of_selected(&leave_one_out(&penalized(group, beta)));
        let (epsilon, old_log_probs, device) = (self.epsilon, group.old_log_probs(), group.device);
        GroupLoss::new(group.completions.len() as f64, move |log_probs| {
            let rollouts = Rollouts { log_probs, old_log_probs: &old_log_probs, advantages: &advantages };
            let surrogate = sequence_surrogate(&rollouts, epsilon);
            let metrics = MetricSums::from_scalars([(CLIP_FRACTION, &surrogate.clipped)], device);
            LossOutput { loss: surrogate.loss, metrics }
        })
    }

    /// A mean over completions: the fraction of clipped probability ratios.
    fn metrics(&self) -> &'static [Metric] {
        const METRICS: [Metric; 1] = [Metric::per_weight(CLIP_FRACTION)];
        &METRICS
    }
}

/// The rewards of all completions, minus the KL penalty for the selected ones. The others have no tokens, so
/// they have no penalty.
fn penalized(group: &Group<'_>, beta: f64) -> Vec<f64> {
    let mut rewards = group.rewards();
    if beta == 0.0 {
        return rewards;
    }
    let old: Vec<&[f32]> = group.fixed.iter().map(|fixed| fixed.old_policy.as_slice()).collect();
    let reference: Vec<&[f32]> = group.fixed.iter().map(|fixed| fixed.reference.as_slice()).collect();
    let penalized = penalized_rewards(&group.of_selected(&rewards), &old, &reference, beta);
    group.selected.iter().zip(penalized).for_each(|(&completion, reward)| rewards[completion] = reward);
    rewards
}
