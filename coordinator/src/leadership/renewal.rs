//! Renewing the lease of who leads.

use foil_common::storage::Store;
use foil_common::storage::log::Beat;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::job::Event;
use crate::journal::Journal;
use crate::lease::{Lease, Times};

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
