//! The teardown of an attempt: its ranks are stopped and reaped, then its cause is recorded.

use std::time::Duration;

use foil_proto::v1;
use foil_proto::v1::rank_command::Command;

use super::context::Context;
use super::diagnosis::{Observation, diagnose};
use super::ranks::RankSet;
use crate::clock::Now;
use crate::job::{Cause, CauseClass, Change, Detail};

/// An attempt that is ending. It is over when every slot is vacant.
#[derive(Debug)]
pub(super) struct Teardown {
    /// When ranks that are still alive get killed.
    kill_at: Duration,
    reason: Reason,
}

#[derive(Debug)]
enum Reason {
    /// The cause is diagnosed and recorded once all ranks have exited.
    Failed {
        observations: Vec<Observation>,
        poison: Option<String>,
        unrecoverable: bool,
        /// A worker's fault counts as if it were the job's.
        charged: bool,
    },
    Canceled,
    /// The job has reached its timeout.
    TimedOut(Box<Cause>),
    /// Other jobs can use its devices.
    Yielded,
    /// A job of higher priority takes its devices.
    Preempted {
        by: String,
        /// The ranks were asked to exit.
        asked: bool,
    },
    /// The end is already in the log.
    Recorded,
}

impl Teardown {
    /// Teardown after a failure; another attempt may follow.
    pub(super) fn failed(observation: Observation, kill_at: Duration) -> Self {
        let observations = vec![observation];
        let reason = Reason::Failed { observations, poison: None, unrecoverable: false, charged: false };
        Self { kill_at, reason }
    }

    /// Teardown after a failure that every other attempt would repeat.
    pub(super) fn unrecoverable(observation: Observation, poison: Option<String>, kill_at: Duration) -> Self {
        let observations = vec![observation];
        let reason = Reason::Failed { observations, poison, unrecoverable: true, charged: false };
        Self { kill_at, reason }
    }

    /// Teardown after the last phase: ranks may exit by themselves.
    pub(super) fn complete(ranks: &RankSet, cx: &mut Context<'_>) -> Self {
        for rank in ranks.numbers() {
            ranks.send(rank, Command::Exit(v1::RankExit {}), cx);
        }
        let cause = Cause::new(CauseClass::Completed, "every phase is committed");
        cx.out.because(cause.message.clone());
        cx.out.changes.push(Change::AttemptEnded { attempt: cx.id.attempt, cause });
        Self { kill_at: cx.now.mono + cx.deadlines.exit, reason: Reason::Recorded }
    }

    /// Teardown after a user canceled the job.
    pub(super) fn canceled(now: Now) -> Self {
        Self { kill_at: now.mono, reason: Reason::Canceled }
    }

    /// Teardown that frees the attempt's devices for other jobs.
    pub(super) fn yielded(now: Now) -> Self {
        Self { kill_at: now.mono, reason: Reason::Yielded }
    }

    /// Teardown after the job's timeout.
    pub(super) fn timed_out(cause: Cause, now: Now) -> Self {
        Self { kill_at: now.mono, reason: Reason::TimedOut(Box::new(cause)) }
    }

    /// Teardown for a job of higher priority: ranks may save a checkpoint before they are killed.
    pub(super) fn preempted(by: &str, kill_at: Duration) -> Self {
        Self { kill_at, reason: Reason::Preempted { by: by.to_owned(), asked: false } }
    }

    /// True if the end of the attempt is in the log.
    pub(super) fn is_recorded(&self) -> bool {
        matches!(self.reason, Reason::Recorded)
    }

    /// True if the attempt's outcome is settled, or its end is in the log.
    pub(super) fn is_final(&self) -> bool {
        matches!(self.reason, Reason::Recorded | Reason::Canceled | Reason::TimedOut(_))
    }

    /// Adds an observation made while a failed attempt is torn down.
    pub(super) fn note(&mut self, observation: Observation) {
        if let Reason::Failed { observations, .. } = &mut self.reason {
            observations.push(observation);
        }
    }

    /// Counts a worker's fault against the job.
    pub(super) fn charge(&mut self) {
        if let Reason::Failed { charged, .. } = &mut self.reason {
            *charged = true;
        }
    }

    /// Kills the ranks when it is time, and records the end once all of them have exited.
    pub(super) fn advance(&mut self, ranks: &mut RankSet, phase: &str, cx: &mut Context<'_>) {
        if let Reason::Preempted { by, asked: asked @ false } = &mut self.reason {
            *asked = true;
            cx.out.because(format!("job {by} of higher priority takes its devices"));
            ranks.terminate_all(cx);
        }
        if cx.now.mono >= self.kill_at {
            for rank in ranks.numbers() {
                ranks.stop(rank, cx);
            }
        }
        if !ranks.is_empty() {
            return;
        }
        if let Some(cause) = std::mem::replace(&mut self.reason, Reason::Recorded).into_cause(phase) {
            let attempt = cx.id.attempt;
            cx.out.because(format!("all ranks of attempt {attempt} are gone: {}", cause.message));
            cx.out.changes.push(Change::AttemptEnded { attempt, cause });
        }
    }
}

impl Reason {
    /// The cause to record; none if it has already been recorded.
    fn into_cause(self, phase: &str) -> Option<Cause> {
        match self {
            Self::Recorded => None,
            Self::Canceled => Some(Cause::new(CauseClass::Cancelled, "cancelled")),
            Self::TimedOut(cause) => Some(*cause),
            Self::Preempted { by, .. } => {
                let message = format!(
                    "job {by} of higher priority takes its devices; it continues when there are others"
                );
                let detail = Detail { preempted_by: Some(by), ..Detail::default() };
                Some(Cause { detail, ..Cause::new(CauseClass::Preempted, &message) })
            }
            Self::Yielded => Some(Cause::new(
                CauseClass::Preempted,
                "it cannot get devices for the ranks that it has lost; it holds none while it waits for all of them",
            )),
            Self::Failed { observations, poison, unrecoverable, charged } => {
                let mut cause = diagnose(phase, &observations);
                if charged && cause.class == CauseClass::Worker {
                    cause.class = CauseClass::Crash;
                }
                if let Some(poison) = poison {
                    cause.message =
                        format!("{poison} ended every rank that tried it; at last {}", cause.message);
                }
                if unrecoverable {
                    cause.detail.last_class = Some(cause.class);
                    cause.class = CauseClass::NoProgress;
                }
                Some(cause)
            }
        }
    }
}
