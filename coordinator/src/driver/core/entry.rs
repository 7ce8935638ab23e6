//! A job of the core.

use std::time::Duration;

use foil_proto::v1;

use crate::job::{JobState, JobStatus, PastEvent};
use crate::queue::Wait;
use crate::schedule::Attempt;

/// A job, its running attempt, and what was last published of it.
#[derive(Debug)]
pub(super) struct Entry {
    // Boxed because it is large, and the map moves its entries when it grows.
    pub(super) state: Box<JobState>,
    pub(super) attempt: Option<Box<Attempt>>,
    /// Durable events as watchers see them.
    pub(super) history: Vec<PastEvent>,
    /// Progress of the running attempt as last published.
    pub(super) progress: Option<v1::PhaseProgress>,
    pub(super) waiting: Option<Waiting>,
}

impl Entry {
    /// Reason why the job waits; none once it is canceled or has ended, even before the next allocation.
    pub(super) fn current_wait(&self) -> Option<Wait> {
        let wants_devices =
            !self.state.is_ended() && !matches!(self.state.status, JobStatus::Cancelling { .. });
        self.waiting.as_ref().filter(|_| wants_devices)?.current
    }

    /// [`Entry::current_wait`] as users see it.
    pub(super) fn visible_wait(&self) -> Option<v1::JobWait> {
        Some(self.current_wait()?.view(self.state.submitted.tenant()))
    }
}

/// A job that lacks devices.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) since: Duration,
    /// The most recent decision on the job; none before the first.
    pub(super) current: Option<Wait>,
    /// The wait that was last published to watchers.
    pub(super) announced: Option<Wait>,
}
