//! The state of a job: its events, replayed.

use std::collections::BTreeMap;

use bytes::Bytes;
use foil_common::spec;
use foil_proto::v1;
use prost::Message;

use super::event::{Cause, Change, ChunkDone, Committed, Event, Outcome, RankStarted, Submitted, spec_hash};
use super::log_writers::LogWriters;
use super::pins::Pins;
use super::timeline::Timeline;
use super::trace::JobTrace;
use crate::plan::{Phase, PlanError};

/// Number of checkpoints kept as fallbacks in case the last one cannot be read.
pub(super) const CHECKPOINTS_KEPT: usize = 3;

/// ```text
///            AttemptStarted            AttemptEnded
///   Queued ────────────────▶ Running ◀─────────────▶ Recovering
///     │                         │     AttemptStarted     │
///     │      CancelRequested    ▼                        │
///     └──────────────────▶ Cancelling ◀──────────────────┘
///
///   each of them ──Ended──▶ Ended
/// ```
/// Only [`JobState::apply`] changes it.
#[derive(Debug, Clone, PartialEq)]
pub enum JobStatus {
    /// Waiting for its first devices.
    Queued,
    /// An attempt's ranks are running or being started.
    Running {
        attempt: u32,
    },
    /// The last attempt ended and the next one has no devices yet.
    Recovering,
    /// The job ends as soon as the attempt, if any, is torn down.
    Cancelling {
        attempt: Option<u32>,
    },
    Ended {
        at: u64,
        outcome: Outcome,
    },
}

/// One job: its durable history in the shape that decisions need.
#[derive(Debug, Clone, PartialEq)]
pub struct JobState {
    pub id: String,
    /// Without the specification and the plan's phases, which are kept below.
    pub submitted: Submitted,
    pub submitted_at: u64,
    pub trace: JobTrace,
    pub spec: spec::Job,
    /// The specification as users see it, encoded: decoded it takes many times the memory.
    wire_spec: Bytes,
    /// Hash of the specification.
    pub spec_blake3: String,
    /// The plan.
    pub phases: Vec<Phase>,
    /// Indices into `phases` in the order of ids.
    by_id: Vec<u32>,
    /// Number of events so far.
    pub revision: u64,
    /// Results of `phases[..committed.len()]`.
    pub committed: Vec<Committed>,
    /// Finished chunks of the current phase, by number.
    pub chunks: BTreeMap<u32, ChunkDone>,
    /// Retained checkpoints of the current gang phase, oldest first.
    pub checkpoints: Vec<v1::Checkpoint>,
    /// Number of the last attempt; 0 before the first.
    pub attempt: u32,
    /// The current attempt's rank processes: the most recent one started for each rank.
    pub ranks: BTreeMap<u32, RankStarted>,
    /// Causes of the attempts that failed since the last commit.
    pub failures: Vec<Cause>,
    /// Times of the job's attempts, and how long it waited for them.
    pub times: Times,
    /// Number of attempts that were preempted by jobs of higher priority.
    pub preemptions: u32,
    pub status: JobStatus,
    /// Processes whose logs are accepted.
    pub log_writers: LogWriters,
    pub pins: Pins,
    pub timeline: Timeline,
}

/// Times of a job in milliseconds since the Unix epoch. They come from its events, so that every coordinator
/// agrees on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Start of the first attempt.
    pub started: Option<u64>,
    /// Start of the last attempt; 0 before the first.
    pub attempt_started: u64,
    /// The wait for devices before the last attempt.
    pub waited: u64,
    /// When the job last began to wait for devices.
    pub waits_since: u64,
}

impl Times {
    fn submitted(at: u64) -> Self {
        Self { started: None, attempt_started: 0, waited: 0, waits_since: at }
    }

    fn start(&mut self, at: u64) {
        self.started.get_or_insert(at);
        self.attempt_started = at;
        self.waited = at.saturating_sub(self.waits_since);
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(
        "job {job}: {event} cannot happen while {status}; the log was written by another version or is damaged"
    )]
    Illegal { job: String, event: String, status: String },
    #[error("job {job}: {event} comes before the job was submitted; the log is damaged")]
    Unknown { job: String, event: String },
    #[error("job {job}: its stored specification is not valid: {source}")]
    Spec { job: String, source: spec::SpecError },
    #[error("job {job}: {source}")]
    Plan { job: String, source: PlanError },
}

impl JobState {
    /// The state after a job's first event.
    pub fn submitted(id: &str, at: u64, mut submitted: Submitted) -> Result<Self, StateError> {
        let wire_spec = submitted.spec.take().map(|spec| *spec).unwrap_or_default();
        let spec_blake3 = spec_hash(&wire_spec);
        let encoded = wire_spec.encode_to_vec().into();
        let spec = spec::Job::try_from(wire_spec)
            .map_err(|source| StateError::Spec { job: id.to_owned(), source })?;
        let phases = std::mem::take(&mut submitted.plan.phases)
            .iter()
            .map(Phase::try_from)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| StateError::Plan { job: id.to_owned(), source })?;
        Ok(Self {
            id: id.to_owned(),
            wire_spec: encoded,
            spec_blake3,
            trace: JobTrace::new(id, at, &submitted.traceparent),
            submitted,
            submitted_at: at,
            spec,
            by_id: by_id(&phases),
            phases,
            revision: 1,
            committed: Vec::new(),
            chunks: BTreeMap::new(),
            checkpoints: Vec::new(),
            attempt: 0,
            ranks: BTreeMap::new(),
            failures: Vec::new(),
            times: Times::submitted(at),
            preemptions: 0,
            status: JobStatus::Queued,
            log_writers: LogWriters::default(),
            pins: Pins::default(),
            timeline: Timeline::default(),
        })
    }

    /// The specification as users see it.
    pub fn wire_spec(&self) -> v1::JobSpec {
        // It was encoded by this process.
        v1::JobSpec::decode(self.wire_spec.clone()).unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.spec.name.as_str()
    }

    /// Applies the next event. An event that is illegal in this state changes nothing.
    pub fn apply(&mut self, event: &Event) -> Result<(), StateError> {
        match (&event.change, &self.status) {
            (Change::AttemptStarted { attempt, .. }, JobStatus::Queued | JobStatus::Recovering)
                if *attempt == self.attempt + 1 =>
            {
                self.attempt = *attempt;
                self.ranks.clear();
                self.times.start(event.at);
                self.status = JobStatus::Running { attempt: *attempt };
            }
            (Change::RankStarted(started), JobStatus::Running { attempt }) if started.attempt == *attempt => {
                self.log_writers.add(started);
                self.ranks.insert(started.rank, started.clone());
            }
            (Change::ChunkDone(done), JobStatus::Running { .. } | JobStatus::Cancelling { .. })
                if self.phase().is_some_and(|phase| phase.id == done.phase && done.chunk < phase.chunks)
                    && !self.chunks.contains_key(&done.chunk) =>
            {
                self.chunks.insert(done.chunk, done.clone());
            }
            (Change::CheckpointCommitted(made), JobStatus::Running { attempt })
                if self.phase().is_some_and(|phase| phase.id == made.phase) && made.attempt == *attempt =>
            {
                self.checkpoints.push(made.clone());
                self.drop_superseded_checkpoint();
                // A checkpoint is progress, so earlier failures stop counting.
                self.failures.clear();
            }
            (Change::CheckpointLost { step, attempt, .. }, JobStatus::Running { .. }) => {
                self.checkpoints.retain(|kept| (kept.step, kept.attempt) != (*step, *attempt));
            }
            (Change::PhaseCommitted(done), JobStatus::Running { .. })
                if self.phase().is_some_and(|phase| phase.id == done.phase) =>
            {
                self.committed.push((**done).clone());
                self.chunks.clear();
                self.checkpoints.clear();
                self.failures.clear();
            }
            (Change::AttemptEnded { attempt, cause }, JobStatus::Running { attempt: current })
                if attempt == current =>
            {
                if cause.class.counts() {
                    self.failures.push(cause.clone());
                }
                self.preemptions += u32::from(cause.detail.preempted_by.is_some());
                self.times.waits_since = event.at;
                self.ranks.clear();
                self.status = JobStatus::Recovering;
            }
            (Change::AttemptEnded { attempt, .. }, JobStatus::Cancelling { attempt: Some(current) })
                if attempt == current =>
            {
                self.ranks.clear();
                self.status = JobStatus::Cancelling { attempt: None };
            }
            (Change::CancelRequested, JobStatus::Queued | JobStatus::Recovering) => {
                self.status = JobStatus::Cancelling { attempt: None };
            }
            (Change::CancelRequested, JobStatus::Running { attempt }) => {
                self.status = JobStatus::Cancelling { attempt: Some(*attempt) };
            }
            (
                Change::Ended(outcome),
                JobStatus::Queued | JobStatus::Recovering | JobStatus::Cancelling { attempt: None },
            ) => {
                self.status = JobStatus::Ended { at: event.at, outcome: outcome.clone() };
            }
            (Change::Pinned(pin), _) => self.pins.add(pin, event.at),
            (Change::Unpinned { artifact }, _) => self.pins.remove(artifact),
            // The holder of the state drops it.
            (Change::Deleted(_), JobStatus::Ended { .. }) => {}
            _ => return Err(self.illegal(&event.change)),
        }
        Timeline::record(self, event);
        self.revision = event.revision.unwrap_or(self.revision + 1);
        Ok(())
    }

    /// Drops the oldest of the recent checkpoints when there are more than [`CHECKPOINTS_KEPT`], unless the
    /// job keeps one every `keep_steps` steps and this is the next of them.
    fn drop_superseded_checkpoint(&mut self) {
        let Some(fallen) = self.checkpoints.len().checked_sub(CHECKPOINTS_KEPT + 1) else { return };
        let landmark = fallen.checked_sub(1).map_or(0, |before| self.checkpoints[before].step);
        let since = self.checkpoints[fallen].step.saturating_sub(landmark);
        if self.spec.resources.checkpoints.keep_steps.is_none_or(|apart| since < apart) {
            self.checkpoints.remove(fallen);
        }
    }

    /// The current phase; none when all are committed.
    pub fn phase(&self) -> Option<&Phase> {
        self.phases.get(self.committed.len())
    }

    /// The attempt whose ranks may report for the job.
    pub fn current_attempt(&self) -> Option<u32> {
        match self.status {
            JobStatus::Running { attempt } => Some(attempt),
            JobStatus::Cancelling { attempt } => attempt,
            JobStatus::Queued | JobStatus::Recovering | JobStatus::Ended { .. } => None,
        }
    }

    pub fn is_ended(&self) -> bool {
        matches!(self.status, JobStatus::Ended { .. })
    }

    /// The time at which the job reaches its timeout, in milliseconds since the Unix epoch.
    pub fn times_out_at(&self) -> Option<u64> {
        let timeout = u64::try_from(self.spec.scheduling.timeout?.as_millis()).unwrap_or(u64::MAX);
        Some(self.times.started?.saturating_add(timeout))
    }

    /// The time at which an ended job is to be deleted, in milliseconds since the Unix epoch.
    pub fn expires_at(&self) -> Option<u64> {
        let JobStatus::Ended { at, .. } = self.status else { return None };
        let ttl = self.spec.scheduling.ttl_after_finished?.as_millis();
        Some(at.saturating_add(u64::try_from(ttl).unwrap_or(u64::MAX)))
    }

    /// True if the job ended at `time` or later, in milliseconds since the Unix epoch.
    pub fn ended_since(&self, time: u64) -> bool {
        matches!(self.status, JobStatus::Ended { at, .. } if at >= time)
    }

    /// True while the job waits for devices.
    pub fn wants_devices(&self) -> bool {
        matches!(self.status, JobStatus::Queued | JobStatus::Recovering)
    }

    /// A committed artifact by its name, for example `policy@1`.
    pub fn artifact(&self, name: &str) -> Option<&v1::Artifact> {
        self.committed.iter().map(|done| &done.artifact).find(|artifact| artifact.name == name)
    }

    /// A committed phase by its id.
    pub fn done(&self, phase: &str) -> Option<&Committed> {
        let at = self.by_id.binary_search_by(|at| self.phases[*at as usize].id.as_str().cmp(phase)).ok()?;
        self.committed.get(self.by_id[at] as usize)
    }

    pub fn dataset(&self, name: &str) -> Option<&v1::Dataset> {
        self.submitted.datasets.iter().find(|dataset| dataset.name == name)
    }

    fn illegal(&self, change: &Change) -> StateError {
        StateError::Illegal {
            job: self.id.clone(),
            event: change.name().to_owned(),
            status: self.status.name().to_owned(),
        }
    }
}

impl JobStatus {
    /// Name used in metric labels and messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running { .. } => "running",
            Self::Recovering => "recovering",
            Self::Cancelling { .. } => "cancelling",
            Self::Ended { outcome: Outcome::Succeeded, .. } => "succeeded",
            Self::Ended { outcome: Outcome::Failed(_), .. } => "failed",
            Self::Ended { outcome: Outcome::Cancelled, .. } => "cancelled",
        }
    }
}

impl Change {
    /// True if the change may alter which rank processes write for the job.
    pub fn moves_ranks(&self) -> bool {
        !matches!(
            self,
            Self::Submitted(_)
                | Self::ChunkDone(_)
                | Self::CheckpointCommitted(_)
                | Self::CheckpointLost { .. }
                | Self::PhaseCommitted(_)
                | Self::Pinned(_)
                | Self::Unpinned { .. }
                | Self::QuotaSet(_)
        )
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Submitted(_) => "submitted",
            Self::AttemptStarted { .. } => "attempt_started",
            Self::RankStarted(_) => "rank_started",
            Self::ChunkDone(_) => "chunk_done",
            Self::CheckpointCommitted(_) => "checkpoint_committed",
            Self::CheckpointLost { .. } => "checkpoint_lost",
            Self::PhaseCommitted(_) => "phase_committed",
            Self::AttemptEnded { .. } => "attempt_ended",
            Self::CancelRequested => "cancel_requested",
            Self::Ended(_) => "ended",
            Self::Pinned(_) => "pinned",
            Self::Unpinned { .. } => "unpinned",
            Self::Deleted(_) => "deleted",
            Self::Erased => "erased",
            Self::QuotaSet(_) => "quota_set",
        }
    }
}

/// Indices of phases in the order of their ids.
fn by_id(phases: &[Phase]) -> Vec<u32> {
    let mut indices: Vec<u32> = (0..).take(phases.len()).collect();
    indices.sort_unstable_by(|a, b| phases[*a as usize].id.cmp(&phases[*b as usize].id));
    indices
}
