//! Direct preference optimization.

use foil_common::spec::Dpo;

use super::super::metrics::Metric;
use super::preference::{self, dpo_loss, log_ratios};
use super::{Group, GroupLoss, PolicyObjective, ScoredCompletion};

impl PolicyObjective for Dpo {
    fn select(&self, completions: &[ScoredCompletion<'_>]) -> Vec<usize> {
        preference::select(completions, self.pairing)
    }

    fn group_loss(&self, group: &Group<'_>) -> GroupLoss {
        let Self { beta, label_smoothing, pairing, log_ratio, .. } = *self;
        let score = log_ratios(group, log_ratio);
        preference::group_loss(group, (pairing, beta), score, move |chosen, rejected| {
            dpo_loss(chosen, rejected, beta, label_smoothing)
        })
    }

    fn metrics(&self) -> &'static [Metric] {
        &preference::METRICS
    }
}
