//! The leader lease: how long after the start of its last renewal a leader may answer, because no standby can
//! have been elected by then.
//!
//! A standby waits for the whole lease from the moment it *saw* a renewal, which is later than the renewal's
//! start. A renewal that lands late may have been overtaken by an election; only an append to the log can
//! tell.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;

/// The lease, shared between the task that renews it and all that check it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lease {
    clock: Clock,
    /// Expiry on the clock, in microseconds.
    until: Arc<AtomicU64>,
}

impl Lease {
    /// A lease that is valid until `until` on the clock.
    pub fn new(clock: Clock, until: Duration) -> Self {
        let lease = Self { clock, until: Arc::default() };
        lease.extend(until);
        lease
    }

    pub(crate) fn extend(&self, until: Duration) {
        let micros = u64::try_from(until.as_micros()).unwrap_or(u64::MAX);
        self.until.store(micros, Ordering::Release);
    }

    fn until(&self) -> Duration {
        Duration::from_micros(self.until.load(Ordering::Acquire))
    }

    /// True while no other coordinator can be the leader.
    pub fn is_valid(&self) -> bool {
        self.clock.now().mono < self.until()
    }

    /// Waits until the lease has expired.
    pub async fn expired(&self) {
        loop {
            let left = self.until().saturating_sub(self.clock.now().mono);
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

/// Timing of heartbeats, lease and failover.
#[derive(Debug, Clone, Copy)]
pub struct LeadershipTimeouts {
    /// Time between two heartbeats of the leader.
    pub heartbeat_interval: Duration,
    /// A leader without a heartbeat for this long may be replaced, and stops answering reads.
    pub lease: Duration,
    /// Time between two checks by a standby.
    pub poll_interval: Duration,
}

impl Default for LeadershipTimeouts {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(1),
            lease: Duration::from_secs(5),
            poll_interval: Duration::from_millis(500),
        }
    }
}
