//! The log: the durable order of everything the coordinator decides.
//!
//! Record `n` is the object `meta/log/{n:020}`, written with create-once and never changed. One append is in
//! flight at a time. If its outcome is unknown, the same name and bytes are tried again. If the name is then
//! taken, the record is read back: if it has this append's nonce, it is this append; otherwise another leader
//! wrote it and this one is deposed.
//!
//! The leader is the process that appended the last [`Entry::LeaderElected`]; each election has a higher
//! term. A leader that was suspended during an election finds the next name taken, so it can append nothing
//! more. A used name is never freed ([`compact`] overwrites records with tombstones), or such a leader could
//! fill the gap. Readers start at the newest snapshot, after the tombstones.

mod compact;
mod export;
mod framed;
mod heartbeat;
mod read;
mod record;
mod snapshot;
#[cfg(test)]
mod tests;

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use tokio::time::Instant;
use ulid::Ulid;

pub use self::compact::compact;
pub(super) use self::export::{export, last};
pub use self::framed::FrameError;
pub use self::heartbeat::Heartbeat;
pub use self::read::{LogState, read};
pub use self::record::{Entry, Events, LeaderElected, Record};
#[doc(hidden)]
pub use self::snapshot::frame as frame_snapshot;
use super::{Put, Store, StoreError};
use crate::failpoint;

/// Prefix of the log in a store.
pub const PREFIX: &str = "meta/log";

/// Retry timeout of an append: most outages should end without a restart of the coordinator.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// The name of record `seq`.
pub fn key(seq: u64) -> String {
    format!("{PREFIX}/{seq:020}")
}

/// The error of reading or writing the log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(
        "another coordinator leads this store: record {seq} is by {leader} of term {term}, and this one no longer leads; \
         stop one of the two"
    )]
    Deposed { seq: u64, term: u64, leader: String },
    #[error(
        "the log record {key} is damaged: {reason}; restore it from a copy, or give another store to start empty"
    )]
    Corrupt { key: String, reason: String },
    #[error("the log record {key} is missing although later ones exist; restore it, or give another store")]
    Gap { key: String },
    #[error(
        "the log record {key} exists, but {listings} listings of the store held later records without it; \
         the log needs a store whose listings show every object that was written"
    )]
    Unlisted { key: String, listings: u32 },
    #[error(
        "the log record {key}, which this leader has written or read, is not in the store any more: the store was removed, \
         replaced or unmounted, and nothing more is acknowledged; bring it back, and start the coordinator again"
    )]
    Vanished { key: String },
    #[error(
        "whether record {seq} was written is unknown after {tried:?}; start the coordinator again when the store answers"
    )]
    InDoubt { seq: u64, tried: Duration, source: StoreError },
    #[error(
        "the event {index} of the log cannot be compacted into a snapshot: {reason}; this is a bug in Foil"
    )]
    Compact { index: usize, reason: String },
    #[error("this log took no more appends after an earlier failure; start the coordinator again")]
    Closed,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How a taken name is recognized as this append. Every variant except the nonce is a deliberate bug, to test
/// the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settle {
    ByNonce,
    #[cfg(test)]
    AlwaysMine,
    #[cfg(test)]
    NeverMine,
}

/// The log, held by its leader. Dropping it does not end leadership, which ends when another leader is
/// elected.
#[derive(Debug)]
pub struct Log {
    store: Store,
    term: u64,
    next: u64,
    closed: bool,
    patience: Duration,
    settle: Settle,
}

impl Log {
    /// Reads the whole log and becomes its leader with the next higher term, whoever leads now. Also returns
    /// what was read.
    ///
    /// If two processes try at the same time, one gets [`LogError::Deposed`].
    pub async fn lead(store: Store, leader: &str) -> Result<(Self, LogState), LogError> {
        Self::lead_with(store, leader, PATIENCE, Settle::ByNonce).await
    }

    /// Becomes the leader if nothing was appended after `read`. Otherwise the former leader is alive, and
    /// this returns [`LogError::Deposed`].
    pub async fn campaign(store: Store, read: &LogState, leader: &str) -> Result<Self, LogError> {
        let mut log = Self::after(store, read, PATIENCE, Settle::ByNonce);
        log.write(elected(leader)).await?;
        Ok(log)
    }

    async fn lead_with(
        store: Store,
        leader: &str,
        patience: Duration,
        settle: Settle,
    ) -> Result<(Self, LogState), LogError> {
        let mut state = LogState::default();
        state.catch_up(&store).await?;
        loop {
            let before = state.term;
            let mut log = Self::after(store.clone(), &state, patience, settle);
            match log.write(elected(leader)).await {
                Ok(_) => return Ok((log, state)),
                Err(LogError::Deposed { seq, term, leader }) => {
                    // The former leader may append between the read and the election; another election may
                    // not happen.
                    state.catch_up(&store).await?;
                    if state.term != before {
                        return Err(LogError::Deposed { seq, term, leader });
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn after(store: Store, read: &LogState, patience: Duration, settle: Settle) -> Self {
        Self { store, term: read.term + 1, next: read.next, closed: false, patience, settle }
    }

    pub fn term(&self) -> u64 {
        self.term
    }

    /// The number of the next record.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Appends events as one record, which is durable when this returns its number.
    ///
    /// After an error the outcome is unknown, and the log is closed: read it again. While the disk is full,
    /// this waits.
    pub async fn append(&mut self, events: Vec<Bytes>) -> Result<u64, LogError> {
        self.write(Entry::Events(Events { events })).await
    }

    async fn write(&mut self, entry: Entry) -> Result<u64, LogError> {
        if self.closed {
            return Err(LogError::Closed);
        }
        // Closed until the outcome is known, so that a canceled append leaves no ambiguity.
        self.closed = true;
        let seq = self.next;
        let nonce = Bytes::copy_from_slice(&Ulid::new().to_bytes());
        let record = Record { term: self.term, seq, nonce, entry: Some(entry) };
        #[expect(clippy::disallowed_methods, reason = "retries end by the clock")]
        let started = Instant::now();
        self.create(&record).await?;
        metrics::histogram!("foil_log_append_seconds").record(started.elapsed().as_secs_f64());
        self.next = seq + 1;
        self.closed = false;
        Ok(seq)
    }

    async fn create(&self, record: &Record) -> Result<(), LogError> {
        let name = key(record.seq);
        let bytes = record.encode_framed();
        #[expect(clippy::disallowed_methods, reason = "retries end by the clock")]
        let started = Instant::now();
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100).min(self.patience / 100))
            .with_max_delay(Duration::from_secs(10))
            .without_max_times()
            .with_jitter()
            .build();
        loop {
            let outcome = match self.put_after(record.seq, bytes.clone()).await {
                Ok(Put::Created) => return Ok(()),
                Ok(Put::Exists) => self.settle(record).await,
                Err(error) => Err(error),
            };
            let error = match outcome {
                Ok(()) => return Ok(()),
                Err(LogError::Store(error)) if worth_another_try(&error) => error,
                Err(error) => return Err(error),
            };
            let tried = started.elapsed();
            if tried >= self.patience {
                return Err(LogError::InDoubt { seq: record.seq, tried, source: error });
            }
            tracing::warn!(%error, key = %name, ?tried, "append is waiting for the store");
            self.store.nap(delays.next().unwrap_or(Duration::from_secs(10))).await;
        }
    }

    /// One try, provided that the previous record still exists: names are never freed, so a place without it
    /// is not this log, and a write there would be lost.
    async fn put_after(&self, seq: u64, bytes: Bytes) -> Result<Put, LogError> {
        if let Some(before) = seq.checked_sub(1).map(key)
            && !self.store.exists(&before).await?
        {
            return Err(LogError::Vanished { key: before });
        }
        Ok(self.put(&key(seq), bytes).await?)
    }

    /// One try; after an error the record may or may not exist.
    async fn put(&self, name: &str, bytes: Bytes) -> Result<Put, StoreError> {
        failpoint::hit("log.append").map_err(|injected| StoreError::injected(&injected, name))?;
        let put = self.store.create(name, bytes).await?;
        failpoint::hit("log.appended").map_err(|injected| StoreError::injected(&injected, name))?;
        Ok(put)
    }

    async fn settle(&self, mine: &Record) -> Result<(), LogError> {
        let name = key(mine.seq);
        match self.settle {
            Settle::ByNonce => {}
            #[cfg(test)]
            Settle::AlwaysMine => return Ok(()),
            #[cfg(test)]
            Settle::NeverMine => return Err(deposed(mine.seq, None)),
        }
        let bytes = self.store.get(&name).await?;
        if bytes.is_empty() {
            return Err(deposed(mine.seq, None));
        }
        let found = Record::decode_framed(&bytes)
            .map_err(|error| LogError::Corrupt { key: name, reason: error.to_string() })?;
        if found.nonce == mine.nonce { Ok(()) } else { Err(deposed(mine.seq, Some(&found))) }
    }
}

fn elected(leader: &str) -> Entry {
    Entry::LeaderElected(LeaderElected { leader: leader.to_owned() })
}

/// Whether a retry may help. A taken name that cannot be read is a temporary inconsistency after concurrent
/// writes.
fn worth_another_try(error: &StoreError) -> bool {
    error.is_transient() || matches!(error, StoreError::NotFound { .. })
}

fn deposed(seq: u64, found: Option<&Record>) -> LogError {
    let term = found.map_or(0, |record| record.term);
    let leader = match found.and_then(|record| record.entry.as_ref()) {
        Some(Entry::LeaderElected(elected)) => elected.leader.clone(),
        Some(Entry::Events(_)) => "the leader".to_owned(),
        None => "a later leader, already compacted,".to_owned(),
    };
    LogError::Deposed { seq, term, leader }
}
