//! Lease renewal by the leader's heartbeats.

use foil_common::storage::Store;
use foil_common::storage::log::Heartbeat;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::job::Event;
use crate::journal::Journal;
use crate::lease::{LeadershipTimeouts, Lease};

/// Writes heartbeats until the journal fails.
pub(super) async fn renew(
    store: Store,
    journal: Journal<Event>,
    address: String,
    lease: Lease,
    clock: Clock,
    timeouts: LeadershipTimeouts,
) {
    let mut heartbeat = Heartbeat { address, counter: 0, released: false };
    loop {
        heartbeat.counter += 1;
        let started = clock.now().mono;
        match timeout(timeouts.lease, heartbeat.write(&store, journal.term())).await {
            Ok(Ok(())) => {
                let in_time = lease.is_valid();
                // A late renewal may have been overtaken. An append to the log tells whether another leader
                // was elected.
                if !in_time && journal.append(&[]).await.is_err() {
                    return;
                }
                lease.extend(started + timeouts.lease);
            }
            Ok(Err(error)) => tracing::warn!(%error, "cannot renew leadership"),
            Err(_) => tracing::warn!(limit = ?timeouts.lease, "renewing leadership timed out"),
        }
        metrics::gauge!("foil_leader").set(if lease.is_valid() { 1.0 } else { 0.0 });
        let spent = clock.now().mono.saturating_sub(started);
        tokio::time::sleep(timeouts.heartbeat_interval.saturating_sub(spent)).await;
    }
}
