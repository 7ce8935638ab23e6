//! Rejection sampling: supervised fine-tuning on the best of n completions.

use foil_common::spec::Rejection;
use tch::Tensor;

use super::super::accumulation_kind;
use super::super::metrics::{Metric, MetricSums};
use super::{Group, GroupLoss, LossOutput, PolicyObjective, ScoredCompletion, best};

impl PolicyObjective for Rejection {
    fn select(&self, completions: &[ScoredCompletion<'_>]) -> Vec<usize> {
        best(completions).into_iter().collect()
    }

    /// The negative log-likelihood, summed over tokens: all tokens of the global batch have equal weight.
    fn group_loss(&self, group: &Group<'_>) -> GroupLoss {
        let tokens: usize =
            group.selected.iter().map(|&completion| group.completions[completion].tokens).sum();
        let device = group.device;
        GroupLoss::new(tokens as f64, move |log_probs| {
            let log_probs = Tensor::cat(log_probs, 0);
            let loss = -log_probs.sum(accumulation_kind(log_probs.kind()));
            LossOutput { loss, metrics: MetricSums::from_scalars([], device) }
        })
    }

    fn metrics(&self) -> &'static [Metric] {
        &[]
    }
}
