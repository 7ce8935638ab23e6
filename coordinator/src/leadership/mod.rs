//! Leader election: standing by, campaigning, leading, and stepping down.
//!
//! The log alone decides. A leader writes a heartbeat every second; a standby that has seen none for five
//! seconds campaigns by appending an election record to the log. A leader that was paused in the meantime
//! fails its next append and steps down: its state belongs to its driver, which ends, and the process
//! continues as a standby.

mod handle;
mod monitor;
mod renewal;

use std::sync::Arc;

use foil_common::failpoint;
use foil_common::storage::Store;
use foil_common::storage::log::{Heartbeat, LogError, LogState};
use tokio_util::sync::CancellationToken;

pub use self::handle::{LeadershipHandle, NotLeading};
pub use self::monitor::{LeaderMonitor, Observation, Verdict};
use crate::clock::Clock;
use crate::driver::{Driver, DriverError, Settings};
use crate::job::{Compaction, Event};
use crate::journal::{Journal, JournalError, SnapshotPolicy};
use crate::lease::Lease;

/// One coordinator's participation in the election of its store's leader.
#[derive(Debug, Clone)]
pub struct Election {
    pub store: Store,
    /// URL at which others reach this process; empty if unknown.
    pub address: String,
    /// Become the leader immediately instead of waiting for the current leader's heartbeats to stop.
    pub take_over: bool,
    pub settings: Settings,
    pub clock: Clock,
    pub handle: LeadershipHandle,
}

/// A won election: the log and the state to lead with.
struct Elected {
    journal: Journal<Event>,
    events: Vec<Event>,
    lease: Lease,
}

impl Election {
    /// Alternates between standing by and leading until `stop` is canceled.
    ///
    /// # Errors
    /// The store cannot be used; the process must end.
    pub async fn run(&self, stop: CancellationToken) -> Result<(), DriverError> {
        let mut take_over = self.take_over;
        loop {
            self.handle.stand_by(None);
            let elected = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                elected = self.campaign(std::mem::take(&mut take_over)) => elected?,
            };
            match self.lead(elected, &stop).await {
                Err(DriverError::Journal(error)) if error.is_deposed() => {
                    metrics::counter!("foil_fenced_writes_total").increment(1);
                    tracing::warn!(%error, "stepping down to standby");
                }
                ended => return ended,
            }
        }
    }

    async fn lead(&self, elected: Elected, stop: &CancellationToken) -> Result<(), DriverError> {
        let Elected { journal, events, lease } = elected;
        let term = journal.term();
        let (store, clock, timeouts) = (self.store.clone(), self.clock, self.settings.leadership);
        let renewal = renewal::renew(
            store.clone(),
            journal.clone(),
            self.address.clone(),
            lease.clone(),
            clock,
            timeouts,
        );
        let (driver, handle) =
            Driver::begin(journal, events, store.clone(), clock, self.settings, lease.clone())?;
        tracing::info!(term, address = self.address, "leading");
        failpoint::hit("leader.elected")?;
        self.handle.lead(handle, lease);
        let ended = tokio::select! {
            ended = driver.run(stop.clone().cancelled_owned()) => ended,
            // Renewal ends when the journal has failed; the driver reports that error.
            () = async { renewal.await; std::future::pending().await } => Ok(()),
        };
        metrics::gauge!("foil_leader").set(0.0);
        if ended.is_ok() {
            let last = Heartbeat { address: String::new(), counter: 0, released: true };
            if let Err(error) = last.write(&store, term).await {
                tracing::warn!(%error, "cannot release leadership: the next leader has to wait for the lease to expire");
            }
        }
        ended
    }

    async fn campaign(&self, take_over: bool) -> Result<Elected, JournalError> {
        let lease = self.settings.leadership.lease;
        loop {
            let read = match take_over {
                true => None,
                false => Some(self.wait_for_leader_loss().await?),
            };
            let started = self.clock.now().mono;
            let (store, name, snapshot_policy) = (self.store.clone(), self.name(), self.snapshot_policy());
            let elected = match read {
                Some(read) => Journal::campaign(store, read, name, snapshot_policy).await,
                None => Journal::open(store, name, snapshot_policy).await,
            };
            match elected {
                Ok((journal, events)) => {
                    let until = started + lease;
                    self.delete_stale_heartbeats(journal.term());
                    return Ok(Elected { journal, events, lease: Lease::new(self.clock, until) });
                }
                Err(error) if error.is_deposed() => tracing::info!(%error, "lost the election"),
                Err(error) => return Err(error),
            }
        }
    }

    /// Stands by until the leader is lost. Returns the log as it was *before* the last check of the leader's
    /// heartbeat: any later append proves that the leader is alive.
    async fn wait_for_leader_loss(&self) -> Result<LogState, JournalError> {
        let timeouts = self.settings.leadership;
        let mut monitor = LeaderMonitor::new(timeouts.lease);
        let mut read = LogState::default();
        loop {
            match self.observe(&mut read).await {
                Ok(observation) => {
                    let address =
                        observation.heartbeat.as_ref().map(|(_, heartbeat)| heartbeat.address.clone());
                    self.handle.stand_by(address.filter(|address| !address.is_empty()));
                    if let Verdict::Campaign(reason) = monitor.observe(observation, self.clock.now().mono) {
                        tracing::info!(reason, "starting an election");
                        return Ok(read);
                    }
                }
                Err(LogError::Store(error)) if error.is_transient() => {
                    tracing::warn!(%error, "this standby cannot read the store");
                    monitor.reset();
                }
                Err(error) => return Err(Arc::new(error).into()),
            }
            tokio::time::sleep(timeouts.poll_interval).await;
        }
    }

    async fn observe(&self, read: &mut LogState) -> Result<Observation, LogError> {
        read.catch_up(&self.store).await?;
        let heartbeat = match Heartbeat::latest(&self.store).await {
            Err(LogError::Corrupt { key, reason }) => {
                tracing::warn!(key, reason, "cannot read the leader's heartbeat");
                None
            }
            heartbeat => heartbeat?,
        };
        Ok(Observation { term: read.term, next: read.next, heartbeat })
    }

    /// Deletes the heartbeats of former leaders, in the background.
    fn delete_stale_heartbeats(&self, term: u64) {
        let store = self.store.clone();
        tokio::spawn(async move {
            if let Err(error) = Heartbeat::delete_before(&store, term).await {
                tracing::debug!(%error, "cannot delete a stale heartbeat");
            }
        });
    }

    fn name(&self) -> &str {
        if self.address.is_empty() { "a coordinator without an address" } else { &self.address }
    }

    fn snapshot_policy(&self) -> SnapshotPolicy<Event> {
        SnapshotPolicy { every: self.settings.snapshot_every, select: Compaction::begin }
    }
}
