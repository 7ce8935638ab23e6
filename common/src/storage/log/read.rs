//! Reading the log.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryFutureExt, TryStreamExt};

use super::{Entry, LogError, PREFIX, Record, key, snapshot};
use crate::storage::{Listed, Store};

/// Number of records fetched concurrently.
const PARALLEL_READS: usize = 16;

/// Number of listings after which a record that exists must be listed.
pub(super) const MAX_LISTINGS: u32 = 8;
/// Pause after the first listing that lacks a record; it doubles with each further one.
const LISTING_PAUSE: Duration = Duration::from_millis(20);

/// The part of a log read so far.
#[derive(Debug, Default)]
pub struct LogState {
    /// Events of the snapshot, which stand for the records before `records`.
    pub snapshot: Vec<Bytes>,
    /// Valid records of events, in order.
    pub records: Vec<Record>,
    /// Term of the last elected leader; 0 before the first.
    pub term: u64,
    /// Number of the first unread record.
    pub next: u64,
    /// The snapshot at which reading started.
    base: Option<u64>,
    begun: bool,
}

/// Reads a log without leading it.
pub async fn read(store: &Store) -> Result<LogState, LogError> {
    let mut state = LogState::default();
    state.catch_up(store).await?;
    Ok(state)
}

/// A compaction has replaced an unread record with a tombstone.
struct Overtaken {
    seq: u64,
}

impl LogState {
    /// Reads what was appended since the last read. If a compaction has overtaken the reader, reading
    /// restarts at its snapshot.
    pub async fn catch_up(&mut self, store: &Store) -> Result<(), LogError> {
        if !self.begun {
            self.begin(store).await?;
        }
        while let Err(Overtaken { seq }) = self.advance(store).await? {
            let before = self.base;
            self.begin(store).await?;
            if self.base <= before {
                let reason = "it is empty, and no snapshot stands for it".to_owned();
                return Err(LogError::Corrupt { key: key(seq), reason });
            }
        }
        Ok(())
    }

    /// All events so far, those of the snapshot first.
    pub fn into_events(self) -> Vec<Bytes> {
        let of_records = self.records.into_iter().flat_map(|record| match record.entry {
            Some(Entry::Events(events)) => events.events,
            _ => Vec::new(),
        });
        self.snapshot.into_iter().chain(of_records).collect()
    }

    async fn begin(&mut self, store: &Store) -> Result<(), LogError> {
        *self = match snapshot::newest(store).await? {
            Some(found) => Self {
                base: Some(found.seq),
                next: found.seq + 1,
                term: found.term,
                snapshot: found.events,
                ..Self::default()
            },
            None => Self::default(),
        };
        self.begun = true;
        Ok(())
    }

    async fn advance(&mut self, store: &Store) -> Result<Result<(), Overtaken>, LogError> {
        let new = self.list(store).await?;
        let mut fetched = futures::stream::iter(new)
            .map(|(seq, size)| fetch(store.clone(), seq, size).map_ok(move |record| (seq, record)))
            .buffered(PARALLEL_READS);
        while let Some((seq, record)) = fetched.try_next().await? {
            let Some(record) = record else { return Ok(Err(Overtaken { seq })) };
            self.take(record)?;
            self.next = seq + 1;
        }
        Ok(Ok(()))
    }

    /// Numbers and sizes of the unread records.
    async fn list(&self, store: &Store) -> Result<Vec<(u64, u64)>, LogError> {
        let (mut listings, mut lacking) = (0, String::new());
        loop {
            let listed = match self.next.checked_sub(1) {
                Some(last) => store.list_after(PREFIX, &key(last)).await?,
                None => store.list(PREFIX).await?,
            };
            match self.unread(listed) {
                // A listing is not atomic: of records appended while it runs, it may contain a later one but
                // lack an earlier one.
                Err(LogError::Gap { key }) if store.exists(&key).await? => {
                    listings = if lacking == key { listings + 1 } else { 1 };
                    lacking.clone_from(&key);
                    if listings == MAX_LISTINGS {
                        return Err(LogError::Unlisted { key, listings });
                    }
                    store.nap(LISTING_PAUSE * (1 << (listings - 1))).await;
                }
                unread => return unread,
            }
        }
    }

    /// Numbers and sizes of the unread records, which must be consecutive.
    fn unread(&self, listed: Vec<Listed>) -> Result<Vec<(u64, u64)>, LogError> {
        let mut unread = Vec::new();
        for Listed { key: name, size } in listed {
            let seq: u64 = name
                .strip_prefix(PREFIX)
                .and_then(|rest| rest.strip_prefix('/'))
                .filter(|digits| digits.len() == 20)
                .and_then(|digits| digits.parse().ok())
                .ok_or_else(|| LogError::Corrupt {
                    key: name.clone(),
                    reason: "its name is no number".to_owned(),
                })?;
            let expected = unread.last().map_or(self.next, |(last, _)| last + 1);
            if seq != expected {
                return Err(LogError::Gap { key: key(expected) });
            }
            unread.push((seq, size));
        }
        Ok(unread)
    }

    fn take(&mut self, record: Record) -> Result<(), LogError> {
        match &record.entry {
            Some(Entry::LeaderElected(_)) => self.term = self.term.max(record.term),
            _ if record.term < self.term => {
                tracing::warn!(
                    seq = record.seq,
                    term = record.term,
                    "passing over a record of a deposed leader"
                );
            }
            _ if record.term > self.term => {
                let reason = format!("its term {} was never elected", record.term);
                return Err(LogError::Corrupt { key: key(record.seq), reason });
            }
            _ => self.records.push(record),
        }
        Ok(())
    }
}

/// The record; `None` if it is a tombstone.
async fn fetch(store: Store, seq: u64, size: u64) -> Result<Option<Record>, LogError> {
    if size == 0 {
        return Ok(None);
    }
    let corrupt = |reason: String| LogError::Corrupt { key: key(seq), reason };
    let bytes = store.get(&key(seq)).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let record = Record::decode_framed(&bytes).map_err(|error| corrupt(error.to_string()))?;
    if record.seq != seq {
        return Err(corrupt(format!("it says it is record {}", record.seq)));
    }
    Ok(Some(record))
}
