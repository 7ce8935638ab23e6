//! Whether a rank gets on with its task. Progress, not heartbeat, decides liveness: a rank speaks of its task only when
//! something has moved, so its silence means that nothing does.

use std::time::Duration;

use foil_common::activity::Activity;
use foil_proto::v1;

use crate::clock::Now;

/// When a rank last moved, and what it is at.
#[derive(Debug)]
pub(super) struct Pulse {
    moved: Duration,
    told: Option<v1::TaskProgress>,
}

impl Pulse {
    /// Of a rank that is given a task.
    pub(super) fn new(now: Now) -> Self {
        Self { moved: now.mono, told: None }
    }

    /// When the rank last moved.
    pub(super) fn moved(&self) -> Duration {
        self.moved
    }

    /// A step, a result.
    pub(super) fn beat(&mut self, now: Now) {
        self.moved = now.mono;
        self.told = None;
    }

    pub(super) fn hear(&mut self, progress: v1::TaskProgress, now: Now) {
        self.moved = now.mono;
        self.told = Some(progress);
    }

    /// That it stands still is not the rank's fault.
    pub(super) fn excuse(&mut self, now: Now) {
        self.moved = now.mono;
    }

    /// How far the rank is with rows or samples; none before it is at them.
    pub(super) fn rows(&self) -> Option<&v1::TaskProgress> {
        self.told.as_ref().filter(|told| Activity::from_unit(&told.unit).is_none())
    }

    /// What the rank is at before or after its rows or steps.
    pub(super) fn stage(&self) -> Option<&v1::TaskProgress> {
        self.told.as_ref().filter(|told| Activity::from_unit(&told.unit).is_some())
    }
}
