//! A job's past events, kept for late watchers. A coordinator holds those of all its jobs in memory.

use std::sync::Arc;

use foil_proto::v1::{self, job_event};

use super::event::{CauseClass, Change};
use super::pages;
use super::pins::Pins;
use super::rows;
use super::state::{JobState, JobStatus, Times};
use super::view;
use crate::plan::Phase;

/// Size limit of the object list in an event.
const EVENT_OBJECTS_BYTES: usize = 256 << 10;

/// A durable event of a job.
#[derive(Debug, Clone)]
pub enum PastEvent {
    /// The job as it was at the time, in compact form: its full view takes many times the memory.
    Job(PastJob),
    Other(Arc<v1::JobEvent>),
}

/// The parts of a job that change, at one of its revisions.
#[derive(Debug, Clone)]
pub struct PastJob {
    revision: u64,
    at: u64,
    status: JobStatus,
    committed: usize,
    attempt: u32,
    times: Times,
    preemptions: u32,
    pins: Pins,
}

impl PastJob {
    /// Captures the job in its current state.
    pub(super) fn new(state: &JobState, at: u64) -> Self {
        Self {
            revision: state.revision,
            at,
            status: state.status.clone(),
            committed: state.committed.len(),
            attempt: state.attempt,
            times: state.times,
            preemptions: state.preemptions,
            pins: state.pins.clone(),
        }
    }

    /// The event with the job's view at that time; `state` is the job's state at that time or later.
    fn event(&self, state: &JobState) -> v1::JobEvent {
        let event = |state: &JobState| view::event(state, job_event::Event::Job(view::job(state)), self.at);
        if self.revision == state.revision {
            return event(state);
        }
        let mut then = state.clone();
        then.revision = self.revision;
        then.status = self.status.clone();
        then.committed.truncate(self.committed);
        then.attempt = self.attempt;
        then.times = self.times;
        then.preemptions = self.preemptions;
        then.pins = self.pins.clone();
        event(&then)
    }
}

/// Events for watchers about a change that was applied. Chunks have no event of their own; progress reports
/// cover them.
pub fn events(state: &JobState, change: &Change, at: u64) -> Vec<PastEvent> {
    let other = |event| PastEvent::Other(Arc::new(view::event(state, event, at)));
    let started = |phase: &str| {
        job_event::Event::PhaseStarted(v1::PhaseStarted { phase: phase.to_owned(), attempt: state.attempt })
    };
    let bodies = match change {
        Change::Submitted(_) | Change::CancelRequested | Change::Ended(_) => {
            return vec![PastEvent::Job(PastJob::new(state, at))];
        }
        Change::AttemptStarted { phase, .. } => {
            return vec![PastEvent::Job(PastJob::new(state, at)), other(started(phase))];
        }
        Change::ChunkDone(_)
        | Change::RankStarted(_)
        | Change::CheckpointLost { .. }
        | Change::QuotaSet(_)
        | Change::Pinned(_)
        | Change::Unpinned { .. }
        | Change::Deleted(_)
        | Change::Erased => Vec::new(),
        Change::CheckpointCommitted(made) => {
            vec![job_event::Event::CheckpointCommitted(v1::CheckpointCommitted {
                phase: made.phase.clone(),
                step: made.step,
                attempt: made.attempt,
                bytes: made.objects.iter().map(|object| object.size).sum(),
            })]
        }
        Change::PhaseCommitted(done) => {
            let committed = v1::PhaseCommitted {
                phase: done.phase.clone(),
                metrics: done.metrics.clone(),
                artifact: Some(event_artifact(&done.artifact)),
                seconds: done.seconds,
            };
            let counted = state.phases.iter().find(|phase| phase.id == done.phase);
            let counted =
                counted.map(|phase| job_event::Event::PhaseProgress(complete_progress(state, phase)));
            let next = state.phase().map(|phase| started(&phase.id));
            let committed = job_event::Event::PhaseCommitted(committed);
            counted.into_iter().chain([committed]).chain(next).collect()
        }
        Change::AttemptEnded { attempt, cause } => match cause.class {
            CauseClass::Completed | CauseClass::Cancelled => Vec::new(),
            // The end of the job reports it.
            class if class.is_final() => Vec::new(),
            CauseClass::CoordinatorRestart => {
                vec![view::notice("info", format!("attempt {attempt} ended: {}", cause.message))]
            }
            _ => vec![view::notice("warning", format!("attempt {attempt} ended: {}", cause.message))],
        },
    };
    bodies.into_iter().map(other).collect()
}

impl PastEvent {
    pub fn revision(&self) -> u64 {
        match self {
            Self::Job(job) => job.revision,
            Self::Other(event) => event.revision,
        }
    }

    /// The event as watchers see it.
    pub fn event(&self, state: &JobState) -> Arc<v1::JobEvent> {
        match self {
            Self::Job(job) => Arc::new(job.event(state)),
            Self::Other(event) => Arc::clone(event),
        }
    }
}

/// The artifact as it appears in an event: without its objects if they are too many.
fn event_artifact(artifact: &v1::Artifact) -> v1::Artifact {
    let bytes: usize = artifact.objects.iter().map(pages::size_of).sum();
    let objects = if bytes > EVENT_OBJECTS_BYTES { Vec::new() } else { artifact.objects.clone() };
    v1::Artifact { objects, ..pages::without_objects(artifact) }
}

/// A phase's final progress, so that watchers also learn the size of a phase that finished immediately.
fn complete_progress(state: &JobState, phase: &Phase) -> v1::PhaseProgress {
    let total = match phase.work.is_gang() {
        true => phase.steps.into(),
        false => rows::total(state, phase),
    };
    let (phase, unit) = (phase.id.to_string(), phase.work.unit().to_owned());
    v1::PhaseProgress { phase, done: total, total, unit, step: Vec::new() }
}

/// The events kept for an ended job; most jobs ended long ago. All views of the job but the last,
/// checkpoints, and the objects of artifacts (which ListArtifacts returns) are dropped.
pub fn retained(history: &[PastEvent]) -> Vec<PastEvent> {
    let last_job = history.iter().rposition(|event| matches!(event, PastEvent::Job(_)));
    let kept = history.iter().enumerate().filter(|(index, event)| match event {
        PastEvent::Job(_) => Some(*index) == last_job,
        PastEvent::Other(event) => !matches!(event.event, Some(job_event::Event::CheckpointCommitted(_))),
    });
    kept.map(|(_, event)| without_objects(event)).collect()
}

fn without_objects(past: &PastEvent) -> PastEvent {
    match past {
        PastEvent::Other(event) => match &event.event {
            Some(job_event::Event::PhaseCommitted(committed)) => {
                let artifact = committed.artifact.as_ref().map(pages::without_objects);
                let committed = v1::PhaseCommitted { artifact, ..committed.clone() };
                PastEvent::Other(Arc::new(v1::JobEvent {
                    event: Some(job_event::Event::PhaseCommitted(committed)),
                    revision: event.revision,
                    at: event.at,
                }))
            }
            _ => past.clone(),
        },
        PastEvent::Job(_) => past.clone(),
    }
}
