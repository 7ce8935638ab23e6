//! Until when a leader may speak: for so long after it began a renewal that no standby can have been elected.
//!
//! A standby waits the lease's whole length from when it *saw* a renewal, so later than the renewal began. A renewal
//! that was late to land may have been overtaken by an election; only an append to the log tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;

/// Shared by who renews and who asks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lease {
    clock: Clock,
    /// On the clock, in microseconds.
    until: Arc<AtomicU64>,
}

impl Lease {
    /// Holds until `until` on the clock.
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

    pub fn holds(&self) -> bool {
        self.clock.now().mono < self.until()
    }

    /// Waits until it holds no more.
    pub async fn lapsed(&self) {
        loop {
            let left = self.until().saturating_sub(self.clock.now().mono);
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

/// How leadership is kept and passed on.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Between two signs of life.
    pub beat: Duration,
    /// A leader without one for so long may be replaced, and answers no more reads.
    pub lease: Duration,
    /// Between two looks of a standby.
    pub look: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { beat: Duration::from_secs(1), lease: Duration::from_secs(5), look: Duration::from_millis(500) }
    }
}
