//! A job's past events, kept for late watchers: a coordinator holds those of all its jobs in memory.

use std::sync::Arc;

use foil_proto::v1::{self, job_event};

use super::pages;
use super::pins::Pins;
use super::state::{JobState, JobStatus, Times};
use super::view;

/// A durable event of a job.
#[derive(Debug, Clone)]
pub enum PastEvent {
    /// The job as it was. Its view takes many times the memory of this.
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
    /// The job as it is now.
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

    /// The event with the job's view of then; `state` is the job's state now or at any time between.
    fn event(&self, state: &JobState) -> v1::JobEvent {
        let mut then = state.clone();
        then.revision = self.revision;
        then.status = self.status.clone();
        then.committed.truncate(self.committed);
        then.attempt = self.attempt;
        then.times = self.times;
        then.preemptions = self.preemptions;
        then.pins = self.pins.clone();
        view::event(&then, job_event::Event::Job(view::job(&then)), self.at)
    }
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

/// The events of an ended job that are kept: most jobs are long over. Dropped are all but the last view of
/// the job, checkpoints, and the objects of artifacts, which ListArtifacts returns.
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
