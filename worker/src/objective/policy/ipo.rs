//! Identity preference optimization.

use foil_common::spec::Ipo;

use super::super::metrics::Metric;
use super::preference::{self, ipo_loss, log_ratios};
use super::{Group, GroupLoss, PolicyObjective, ScoredCompletion};

impl PolicyObjective for Ipo {
    fn select(&self, completions: &[ScoredCompletion<'_>]) -> Vec<usize> {
        preference::select(completions, self.pairing)
    }

    fn group_loss(&self, group: &Group<'_>) -> GroupLoss {
        let Self { beta, pairing, log_ratio, .. } = *self;
        let score = log_ratios(group, log_ratio);
        preference::group_loss(group, (pairing, beta), score, move |chosen, rejected| {
            ipo_loss(chosen, rejected, beta)
        })
    }

    fn metrics(&self) -> &'static [Metric] {
        &preference::METRICS
    }
}
