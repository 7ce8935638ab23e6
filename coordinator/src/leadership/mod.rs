//! Who leads: standing by, being elected, leading, and stepping down.
//!
//! The log alone decides. A leader gives a sign of life every second; a standby that saw none for five stands for
//! election by appending to the log. A leader that slept through that loses its next append and steps down to standby:
//! all that it knew belongs to its driver, which ends, and the process goes on as the reserve that it replaced.

mod desk;
mod renewal;
mod vigil;

use std::sync::Arc;

use foil_common::failpoint;
use foil_common::storage::Store;
use foil_common::storage::log::{Beat, LogError, LogState};
use tokio_util::sync::CancellationToken;

pub use self::desk::{Desk, NotLeading};
pub use self::vigil::{Sight, Verdict, Vigil};
use crate::clock::Clock;
use crate::driver::{Driver, DriverError, Settings};
use crate::job::{Event, fold};
use crate::journal::{Journal, JournalError, Keeping};
use crate::lease::Lease;

/// One coordinator's part in who leads its store.
#[derive(Debug, Clone)]
pub struct Office {
    pub store: Store,
    /// Where others reach this process, as a URL; empty where it does not know.
    pub address: String,
    /// Do not wait for a leader before this one to fall silent.
    pub take_over: bool,
    pub settings: Settings,
    pub clock: Clock,
    pub desk: Desk,
}

/// A leader's beginning.
struct Elected {
    journal: Journal<Event>,
    events: Vec<Event>,
    lease: Lease,
}

impl Office {
    /// Stands by and leads in turn until `stop` is cancelled, or fails where the store cannot be used: then the process
    /// must end.
    pub async fn serve(&self, stop: CancellationToken) -> Result<(), DriverError> {
        let mut take_over = self.take_over;
        loop {
            self.desk.stand_by(None);
            let elected = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                elected = self.be_elected(std::mem::take(&mut take_over)) => elected?,
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
        let (store, clock, times) = (self.store.clone(), self.clock, self.settings.leadership);
        let renewal =
            renewal::renew(store.clone(), journal.clone(), self.address.clone(), lease.clone(), clock, times);
        let (driver, handle) =
            Driver::begin(journal, events, store.clone(), clock, self.settings, lease.clone())?;
        tracing::info!(term, address = self.address, "leading");
        failpoint::hit("leader.elected")?;
        self.desk.lead(handle, lease);
        let ended = tokio::select! {
            ended = driver.run(stop.clone().cancelled_owned()) => ended,
            // It ends where the journal has failed, which the driver says better.
            () = async { renewal.await; std::future::pending().await } => Ok(()),
        };
        metrics::gauge!("foil_leader").set(0.0);
        if ended.is_ok() {
            let last = Beat { address: String::new(), counter: 0, released: true };
            if let Err(error) = last.write(&store, term).await {
                tracing::warn!(%error, "the next leader waits a little: this one could not say that it stops");
            }
        }
        ended
    }

    async fn be_elected(&self, take_over: bool) -> Result<Elected, JournalError> {
        let lease = self.settings.leadership.lease;
        loop {
            let read = match take_over {
                true => None,
                false => Some(self.watch().await?),
            };
            let started = self.clock.now().mono;
            let (store, name, keeping) = (self.store.clone(), self.name(), self.keeping());
            let stood = match read {
                Some(read) => Journal::stand(store, read, name, keeping).await,
                None => Journal::open(store, name, keeping).await,
            };
            match stood {
                Ok((journal, events)) => {
                    let until = started + lease;
                    self.tidy(journal.term());
                    return Ok(Elected { journal, events, lease: Lease::new(self.clock, until) });
                }
                Err(error) if error.is_deposed() => tracing::info!(%error, "not elected"),
                Err(error) => return Err(error),
            }
        }
    }

    /// Stands by until the leader is gone. Gives the whole log as it was *before* the last look at the leader's sign
    /// of life: an append after that is one more sign of life.
    async fn watch(&self) -> Result<LogState, JournalError> {
        let times = self.settings.leadership;
        let mut vigil = Vigil::new(times.lease);
        let mut read = LogState::default();
        loop {
            match self.look(&mut read).await {
                Ok(sight) => {
                    let address = sight.beat.as_ref().map(|(_, beat)| beat.address.clone());
                    self.desk.stand_by(address.filter(|address| !address.is_empty()));
                    if let Verdict::Stand(reason) = vigil.looked(sight, self.clock.now().mono) {
                        tracing::info!(reason, "standing for election");
                        return Ok(read);
                    }
                }
                Err(LogError::Store(error)) if error.is_transient() => {
                    tracing::warn!(%error, "a standby cannot see the store");
                    vigil.blind();
                }
                Err(error) => return Err(Arc::new(error).into()),
            }
            tokio::time::sleep(times.look).await;
        }
    }

    async fn look(&self, read: &mut LogState) -> Result<Sight, LogError> {
        read.catch_up(&self.store).await?;
        let beat = match Beat::latest(&self.store).await {
            Err(LogError::Corrupt { key, reason }) => {
                tracing::warn!(key, reason, "the leader's sign of life cannot be read");
                None
            }
            beat => beat?,
        };
        Ok(Sight { term: read.term, next: read.next, beat })
    }

    /// Signs of life of former leaders say nothing any more.
    fn tidy(&self, term: u64) {
        let store = self.store.clone();
        tokio::spawn(async move {
            if let Err(error) = Beat::forget_before(&store, term).await {
                tracing::debug!(%error, "an old sign of life stays behind");
            }
        });
    }

    fn name(&self) -> &str {
        if self.address.is_empty() { "a coordinator without an address" } else { &self.address }
    }

    fn keeping(&self) -> Keeping<Event> {
        Keeping { every: self.settings.snapshot_every, fold }
    }
}
