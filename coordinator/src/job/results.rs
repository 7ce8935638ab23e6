//! A job's committed artifacts and the metrics of its rounds.

use foil_proto::v1;

use super::event::Committed;
use super::state::JobState;
use crate::plan::{Phase, Work};

/// All committed artifacts, in order.
pub(super) fn artifacts(state: &JobState) -> impl DoubleEndedIterator<Item = &v1::Artifact> + Clone {
    state.committed.iter().flat_map(of_phase)
}

pub(super) fn of_phase(done: &Committed) -> impl DoubleEndedIterator<Item = &v1::Artifact> + Clone {
    std::iter::once(&done.artifact).chain(&done.steps)
}

/// A round's metrics, if it has any. Evaluation metrics keep their names; those on fresh golden-vs-sample
/// pairs become `fresh_…`, those of training `train_…`, and the drift found in the RefLogProbs phase
/// `log_probs_drift_…`.
pub(super) fn round(state: &JobState, round: u32) -> Option<v1::RoundResult> {
    let mut reward = metrics_of(state, round, Work::EvaluateReward).to_vec();
    reward.extend(prefixed("fresh_", metrics_of(state, round, Work::EvaluateRewardFresh)));
    reward.extend(prefixed("train_", metrics_of(state, round, Work::TrainReward)));
    let mut policy = metrics_of(state, round, Work::EvaluatePolicy).to_vec();
    let reference = metrics_of(state, round, Work::RefLogProbs).iter();
    let drift = reference.filter(|metric| metric.name.starts_with("drift_")).cloned();
    policy.extend(prefixed("reference_", &drift.collect::<Vec<_>>()));
    policy.extend(prefixed("train_", metrics_of(state, round, Work::TrainPolicy)));
    let has_figures = !(reward.is_empty() && policy.is_empty());
    has_figures.then_some(v1::RoundResult { round, reward, policy })
}

pub(super) fn metrics_of(state: &JobState, round: u32, work: Work) -> &[v1::Metric] {
    state.done(&Phase::id_of(round, work)).map(|done| done.metrics.as_slice()).unwrap_or_default()
}

fn prefixed(prefix: &str, metrics: &[v1::Metric]) -> Vec<v1::Metric> {
    let name = |metric: &v1::Metric| match metric.name.starts_with(prefix) {
        true => metric.name.clone(),
        false => format!("{prefix}{}", metric.name),
    };
    metrics.iter().map(|metric| v1::Metric { name: name(metric), ..metric.clone() }).collect()
}
