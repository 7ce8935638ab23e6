use std::time::Duration;

use crate::cluster::Liveness;
use crate::lease::LeadershipTimeouts;
use crate::queue::Policy;
use crate::schedule::Deadlines;

/// Timeouts and sizes; tests change them.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub liveness: Liveness,
    pub deadlines: Deadlines,
    pub policy: Policy,
    pub leadership: LeadershipTimeouts,
    /// Interval of agents' heartbeats.
    pub heartbeat: Duration,
    /// An agent that has had no leader for this long kills its ranks. Shorter than
    /// [`Liveness::heartbeat_timeout`], so that its ranks are dead before they are considered lost.
    pub fence: Duration,
    /// Accept workers of another version or build.
    pub allow_version_skew: bool,
    /// Number of log records between two snapshots.
    pub snapshot_every: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            liveness: Liveness::default(),
            deadlines: Deadlines::default(),
            policy: Policy::default(),
            leadership: LeadershipTimeouts::default(),
            heartbeat: Duration::from_secs(2),
            fence: Duration::from_secs(60),
            allow_version_skew: false,
            snapshot_every: 1000,
        }
    }
}
