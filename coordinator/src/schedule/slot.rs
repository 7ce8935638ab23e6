use std::time::Duration;

use super::assignment::Assignment;
use crate::cluster::Placement;

/// The slot of one rank.
///
/// ```text
///   Vacant ──start──▶ Starting ──hello──▶ Up
///      ▲                 │ overdue         │ stream ended, failed, hung
///      └────reaped──── Stopping ◀──────────┘
/// ```
#[derive(Debug)]
pub(super) enum Slot {
    /// Waits for a device.
    Vacant,
    Starting {
        process: Process,
        since: Duration,
    },
    Up {
        process: Process,
        assignment: Assignment,
    },
    /// The process is being killed; it holds its device until it is dead.
    Stopping {
        process: Process,
        since: Duration,
    },
}

/// A rank process.
#[derive(Debug, Clone)]
pub struct Process {
    pub session: String,
    pub placement: Placement,
    /// The process is known only from the log: its agent has not registered with this coordinator, so the
    /// process cannot be stopped and may live until its agent is considered lost.
    pub(super) unseen: bool,
    /// Started by a previous leader.
    pub(super) adopted: bool,
    /// The agent is shutting down: however the process ends, neither the job nor its chunk is to blame.
    pub(super) leaving: bool,
    /// Fingerprint of its secret.
    pub proof: String,
}

impl Slot {
    pub(super) fn process(&self) -> Option<&Process> {
        match self {
            Self::Vacant => None,
            Self::Starting { process, .. } | Self::Up { process, .. } | Self::Stopping { process, .. } => {
                Some(process)
            }
        }
    }

    /// True for a rank that is idle or already in the gang.
    pub(super) fn is_available_for_gang(&self) -> bool {
        matches!(self, Self::Up { assignment: Assignment::Idle | Assignment::Gang(_), .. })
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self, Self::Up { assignment: Assignment::Idle, .. })
    }
}
