//! What a job's events add up to.

use std::collections::{BTreeMap, HashMap};

use foil_common::spec;
use foil_proto::v1;

use super::event::{Cause, Change, ChunkDone, Committed, Event, Outcome, RankStarted, Submitted, spec_hash};
use crate::plan::{Phase, PlanError};

/// Attempts of one phase that may end without a commit before the job is given up.
pub const ATTEMPTS_WITHOUT_COMMIT: usize = 3;

/// Checkpoints to fall back on where the last cannot be read.
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
/// Written by [`JobState::apply`] alone.
#[derive(Debug, Clone, PartialEq)]
pub enum Life {
    /// Waits for its first devices.
    Queued,
    /// An attempt's ranks run, or are being started.
    Running {
        attempt: u32,
    },
    /// The last attempt ended and the next has no devices yet.
    Recovering,
    /// Ends as soon as the attempt, if any, is gone.
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
    pub submitted: Submitted,
    pub submitted_at: u64,
    pub spec: spec::Job,
    /// Of the specification as it is told.
    pub spec_blake3: String,
    pub phases: Vec<Phase>,
    /// Of each phase in `phases`, by its id.
    positions: HashMap<String, usize>,
    /// The number of events so far.
    pub revision: u64,
    /// Of `phases[..committed.len()]`.
    pub committed: Vec<Committed>,
    /// Of the current phase, by number.
    pub chunks: BTreeMap<u32, ChunkDone>,
    /// Those kept of the current gang phase, oldest first.
    pub checkpoints: Vec<v1::Checkpoint>,
    /// The last attempt's number; 0 before the first.
    pub attempt: u32,
    /// The current attempt's rank processes, by rank: the last one started for each.
    pub seats: BTreeMap<u32, RankStarted>,
    /// Of the attempts that failed since the last commit.
    pub failures: Vec<Cause>,
    pub life: Life,
}

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(
        "job {job}: {event} cannot happen while {life}; the log was written by another version or is damaged"
    )]
    Illegal { job: String, event: String, life: String },
    #[error("job {job}: {event} comes before the job was submitted; the log is damaged")]
    Unknown { job: String, event: String },
    #[error("job {job}: its stored specification is not valid: {source}")]
    Spec { job: String, source: spec::SpecError },
    #[error("job {job}: {source}")]
    Plan { job: String, source: PlanError },
}

impl JobState {
    /// The job that its first event makes.
    pub fn submitted(id: &str, at: u64, submitted: Submitted) -> Result<Self, StateError> {
        let spec = spec::Job::try_from(submitted.spec.clone())
            .map_err(|source| StateError::Spec { job: id.to_owned(), source })?;
        let phases = submitted
            .plan
            .phases
            .iter()
            .map(Phase::try_from)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| StateError::Plan { job: id.to_owned(), source })?;
        Ok(Self {
            id: id.to_owned(),
            spec_blake3: spec_hash(&submitted.spec),
            submitted,
            submitted_at: at,
            spec,
            positions: phases.iter().enumerate().map(|(at, phase)| (phase.id.clone(), at)).collect(),
            phases,
            revision: 1,
            committed: Vec::new(),
            chunks: BTreeMap::new(),
            checkpoints: Vec::new(),
            attempt: 0,
            seats: BTreeMap::new(),
            failures: Vec::new(),
            life: Life::Queued,
        })
    }

    /// The state after one more event. An event that cannot happen in this state changes nothing.
    pub fn apply(&mut self, event: &Event) -> Result<(), StateError> {
        match (&event.change, &self.life) {
            (Change::AttemptStarted { attempt, .. }, Life::Queued | Life::Recovering)
                if *attempt == self.attempt + 1 =>
            {
                self.attempt = *attempt;
                self.seats.clear();
                self.life = Life::Running { attempt: *attempt };
            }
            (Change::RankStarted(started), Life::Running { attempt }) if started.attempt == *attempt => {
                self.seats.insert(started.rank, started.clone());
            }
            (Change::ChunkDone(done), Life::Running { .. } | Life::Cancelling { .. })
                if self.phase().is_some_and(|phase| phase.id == done.phase && done.chunk < phase.chunks)
                    && !self.chunks.contains_key(&done.chunk) =>
            {
                self.chunks.insert(done.chunk, done.clone());
            }
            (Change::CheckpointCommitted(made), Life::Running { attempt })
                if self.phase().is_some_and(|phase| phase.id == made.phase) && made.attempt == *attempt =>
            {
                self.checkpoints.push(made.clone());
                self.drop_superseded_checkpoint();
                // A checkpoint is progress: what failed before it is over.
                self.failures.clear();
            }
            (Change::CheckpointLost { step, attempt, .. }, Life::Running { .. }) => {
                self.checkpoints.retain(|kept| (kept.step, kept.attempt) != (*step, *attempt));
            }
            (Change::PhaseCommitted(done), Life::Running { .. })
                if self.phase().is_some_and(|phase| phase.id == done.phase) =>
            {
                self.committed.push((**done).clone());
                self.chunks.clear();
                self.checkpoints.clear();
                self.failures.clear();
            }
            (Change::AttemptEnded { attempt, cause }, Life::Running { attempt: current })
                if attempt == current =>
            {
                if cause.class.counts() {
                    self.failures.push(cause.clone());
                }
                self.seats.clear();
                self.life = Life::Recovering;
            }
            (Change::AttemptEnded { attempt, .. }, Life::Cancelling { attempt: Some(current) })
                if attempt == current =>
            {
                self.seats.clear();
                self.life = Life::Cancelling { attempt: None };
            }
            (Change::CancelRequested, Life::Queued | Life::Recovering) => {
                self.life = Life::Cancelling { attempt: None };
            }
            (Change::CancelRequested, Life::Running { attempt }) => {
                self.life = Life::Cancelling { attempt: Some(*attempt) };
            }
            (
                Change::Ended(outcome),
                Life::Queued | Life::Recovering | Life::Cancelling { attempt: None },
            ) => {
                self.life = Life::Ended { at: event.at, outcome: outcome.clone() };
            }
            _ => return Err(self.illegal(&event.change)),
        }
        self.revision = event.revision.unwrap_or(self.revision + 1);
        Ok(())
    }

    /// Of the checkpoint that fell out of the last ones: it stays where the job keeps one in so many steps and it is the next.
    fn drop_superseded_checkpoint(&mut self) {
        let Some(fallen) = self.checkpoints.len().checked_sub(CHECKPOINTS_KEPT + 1) else { return };
        let landmark = fallen.checked_sub(1).map_or(0, |before| self.checkpoints[before].step);
        let since = self.checkpoints[fallen].step.saturating_sub(landmark);
        if self.spec.resources.checkpoints.keep_steps.is_none_or(|apart| since < apart) {
            self.checkpoints.remove(fallen);
        }
    }

    /// The phase to be worked on; none when all are committed.
    pub fn phase(&self) -> Option<&Phase> {
        self.phases.get(self.committed.len())
    }

    /// The attempt whose ranks may speak for the job.
    pub fn current_attempt(&self) -> Option<u32> {
        match self.life {
            Life::Running { attempt } => Some(attempt),
            Life::Cancelling { attempt } => attempt,
            Life::Queued | Life::Recovering | Life::Ended { .. } => None,
        }
    }

    pub fn is_ended(&self) -> bool {
        matches!(self.life, Life::Ended { .. })
    }

    /// Ended then or later, in milliseconds since the Unix epoch.
    pub fn ended_since(&self, time: u64) -> bool {
        matches!(self.life, Life::Ended { at, .. } if at >= time)
    }

    /// The job waits for devices.
    pub fn wants_devices(&self) -> bool {
        matches!(self.life, Life::Queued | Life::Recovering)
    }

    /// A committed artifact by its name, for example `policy@1`.
    pub fn artifact(&self, name: &str) -> Option<&v1::Artifact> {
        self.committed.iter().map(|done| &done.artifact).find(|artifact| artifact.name == name)
    }

    /// A committed phase by its id.
    pub fn done(&self, phase: &str) -> Option<&Committed> {
        self.committed.get(*self.positions.get(phase)?)
    }

    pub fn dataset(&self, name: &str) -> Option<&v1::Dataset> {
        self.submitted.datasets.iter().find(|dataset| dataset.name == name)
    }

    fn illegal(&self, change: &Change) -> StateError {
        StateError::Illegal {
            job: self.id.clone(),
            event: change.name().to_owned(),
            life: self.life.name().to_owned(),
        }
    }
}

impl Life {
    /// As the label of a metric and in messages.
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
        }
    }
}
