//! The progress watchdog of a rank. Progress, not heartbeat, decides liveness: a rank reports on its task
//! only when it has made progress, so silence means that it is stuck.

use std::time::Duration;

use foil_proto::v1;

use crate::clock::Now;

/// The time of a rank's last progress, and its last report.
#[derive(Debug)]
pub(super) struct ProgressWatchdog {
    last_progress: Duration,
    report: Option<v1::TaskProgress>,
}

impl ProgressWatchdog {
    /// The watchdog of a rank that has just received a task.
    pub(super) fn new(now: Now) -> Self {
        Self { last_progress: now.mono, report: None }
    }

    pub(super) fn last_progress(&self) -> Duration {
        self.last_progress
    }

    /// Records a step or a result.
    pub(super) fn record_step(&mut self, now: Now) {
        self.last_progress = now.mono;
        self.report = None;
    }

    /// Records a progress report.
    pub(super) fn record_report(&mut self, report: v1::TaskProgress, now: Now) {
        self.last_progress = now.mono;
        self.report = Some(report);
    }

    /// Restarts the deadline because the rank is blocked through no fault of its own.
    pub(super) fn reset_deadline(&mut self, now: Now) {
        self.last_progress = now.mono;
    }

    /// The last report, if it counts rows or samples.
    pub(super) fn rows(&self) -> Option<&v1::TaskProgress> {
        self.report.as_ref().filter(|report| !is_activity(report))
    }

    /// The last report, if it concerns an activity before or after the rows or steps.
    pub(super) fn activity(&self) -> Option<&v1::TaskProgress> {
        self.report.as_ref().filter(|report| is_activity(report))
    }
}

/// True for a report about an activity rather than rows or steps, including activities of later versions.
fn is_activity(report: &v1::TaskProgress) -> bool {
    report.activity != i32::from(v1::Activity::Unspecified)
}
