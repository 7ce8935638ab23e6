//! Until when a leader may speak: for so long after it began a renewal that no standby can have been elected.
//!
//! A standby waits the lease's whole length from when it *saw* a renewal, so later than the renewal began. A renewal
//! that was late to land may have been overtaken by an election; only an append to the log tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foil_common::storage::Store;
use foil_common::storage::log::Beat;
use tokio::time::timeout;

use super::Times;
use crate::clock::Clock;
use crate::job::Event;
use crate::journal::Journal;

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

    fn extend(&self, until: Duration) {
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

/// Beats for ever, until the journal fails.
pub(super) async fn renew(
    store: Store,
    journal: Journal<Event>,
    address: String,
    lease: Lease,
    clock: Clock,
    times: Times,
) {
    let mut beat = Beat { address, counter: 0, released: false };
    loop {
        beat.counter += 1;
        let started = clock.now().mono;
        match timeout(times.lease, beat.write(&store, journal.term())).await {
            Ok(Ok(())) => {
                let in_time = lease.holds();
                // Where it was late, the next place of the log tells whether somebody else has it.
                if !in_time && journal.append(&[]).await.is_err() {
                    return;
                }
                lease.extend(started + times.lease);
            }
            Ok(Err(error)) => tracing::warn!(%error, "leadership could not be renewed"),
            Err(_) => tracing::warn!(limit = ?times.lease, "renewing leadership takes too long"),
        }
        metrics::gauge!("foil_leader").set(if lease.holds() { 1.0 } else { 0.0 });
        let spent = clock.now().mono.saturating_sub(started);
        tokio::time::sleep(times.beat.saturating_sub(spent)).await;
    }
}
