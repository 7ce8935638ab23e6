//! Direct preference optimization.

use foil_common::spec::Dpo;

use super::super::metrics::Metric;
use super::preference::{self, dpo_loss};
use super::{Group, GroupLoss, PolicyObjective, ScoredCompletion};

impl PolicyObjective for Dpo {
    fn select(&self, completions: &[ScoredCompletion<'_>]) -> Vec<usize> {
        preference::select(completions, self.pairing)
    }

    fn group_loss(&self, group: &Group<'_>) -> GroupLoss {
        let Self { beta, label_smoothing, pairing, log_ratio, .. } = *self;
        preference::group_loss(group, (pairing, log_ratio, beta), move |chosen, rejected| {
            dpo_loss(chosen, rejected, beta, label_smoothing)
        })
    }

    fn metrics(&self) -> &'static [Metric] {
        &preference::METRICS
    }
}
