use std::time::Duration;

use super::GangResult;
use super::watchdog::ProgressWatchdog;
use crate::clock::Now;

/// The work that a rank is assigned.
#[derive(Debug)]
pub(super) enum Assignment {
    Idle,
    Chunk(ChunkLease),
    Gang(GangMember),
}

/// A chunk leased to a rank.
#[derive(Debug)]
pub(super) struct ChunkLease {
    /// Id of the chunk's phase. A lease may outlive its phase if the chunk was leased twice.
    pub(super) phase: String,
    pub(super) chunk: u32,
    pub(super) lease: u64,
    /// Key under which the result is written.
    pub(super) key: String,
    pub(super) since: Duration,
    /// Milliseconds since the Unix epoch.
    pub(super) leased_at: u64,
    pub(super) watchdog: ProgressWatchdog,
}

/// A rank's membership in a gang.
#[derive(Debug)]
pub(super) struct GangMember {
    pub(super) watchdog: ProgressWatchdog,
    /// Last step that the rank reported.
    pub(super) step: u64,
    pub(super) result: Option<GangResult>,
}

impl GangMember {
    pub(super) fn new(now: Now) -> Self {
        Self { watchdog: ProgressWatchdog::new(now), step: 0, result: None }
    }
}
