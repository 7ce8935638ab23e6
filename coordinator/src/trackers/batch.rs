//! Batches of metrics and facts to deliver to a tracker.

use foil_common::spec::Tracker;
use foil_proto::v1;
use serde_json::Value;

use super::points::Point;
use super::samples::Completions;
use super::source::Ending;
use crate::job::JobState;

/// Facts about the whole job that trackers show.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct JobFacts {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) tenant: String,
    /// Empty if unknown.
    pub(super) owner: String,
    pub(super) run_name: String,
    /// None for the coordinator's default experiment.
    pub(super) experiment: Option<String>,
    pub(super) labels: Vec<(String, String)>,
    /// The specification with every default filled in.
    pub(super) spec: Value,
    /// Milliseconds since the Unix epoch.
    pub(super) submitted_at: u64,
    pub(super) logging_steps: u32,
    pub(super) num_completions: u32,
}

impl JobFacts {
    pub(super) fn of(state: &JobState) -> Self {
        let trackers = &state.spec.trackers;
        let labels = state.spec.scheduling.labels.iter();
        Self {
            id: state.id.clone(),
            name: state.name().to_owned(),
            tenant: state.submitted.tenant().to_owned(),
            owner: state.submitted.owner.clone(),
            run_name: trackers.run_name.clone().unwrap_or_else(|| state.name().to_owned()),
            experiment: trackers.experiment.clone(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            spec: serde_json::to_value(state.wire_spec()).unwrap_or_default(),
            submitted_at: state.submitted_at,
            logging_steps: trackers.logging_steps,
            num_completions: trackers.num_completions,
        }
    }
}

/// The distribution of a kind of reward in a round.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Histogram {
    pub(super) tag: String,
    pub(super) step: u64,
    pub(super) at: u64,
    pub(super) histogram: v1::RewardHistogram,
    pub(super) edges: Vec<f64>,
}

/// A part of a job's log in the form that trackers accept. The points of each metric are in step order.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Batch {
    pub(super) points: Vec<Point>,
    pub(super) completions: Option<Completions>,
    pub(super) histograms: Vec<Histogram>,
    /// When and how the job ended; only in the last batch.
    pub(super) ending: Option<(u64, Ending)>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.points.is_empty()
            && self.completions.is_none()
            && self.histograms.is_empty()
            && self.ending.is_none()
    }
}

/// Key prefix of a job's objects for a tracker, without a trailing '/'.
pub(super) fn prefix(job: &str, tracker: Tracker) -> String {
    format!("jobs/{job}/trackers/{tracker}")
}
