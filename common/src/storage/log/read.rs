//! Reading the log.

use futures::{StreamExt, TryStreamExt};

use super::{Entry, LogError, PREFIX, Record, key};
use crate::storage::{Listed, Store};

/// Records fetched at once while reading.
const PARALLEL_READS: usize = 16;

/// What has been read of a log so far.
#[derive(Debug, Default)]
pub struct LogState {
    /// Events' records that count, in order.
    pub records: Vec<Record>,
    /// Of the last leader elected; 0 before the first.
    pub term: u64,
    /// The first number not seen.
    pub next: u64,
    /// A tombstone was passed over, so elections may lie in what is gone.
    compacted: bool,
    started: bool,
}

/// Reads a log without leading it.
pub async fn read(store: &Store) -> Result<LogState, LogError> {
    let mut state = LogState::default();
    state.catch_up(store).await?;
    Ok(state)
}

impl LogState {
    /// Reads what was appended since.
    pub async fn catch_up(&mut self, store: &Store) -> Result<(), LogError> {
        let new = self.unread(store.list(PREFIX).await?)?;
        let mut fetched = futures::stream::iter(new)
            .map(|(seq, size)| async move { fetch(store, seq, size).await.map(|record| (seq, record)) })
            .buffered(PARALLEL_READS);
        while let Some((seq, record)) = fetched.try_next().await? {
            match record {
                None => self.compacted = true,
                Some(record) => self.take(record)?,
            }
            self.next = seq + 1;
        }
        Ok(())
    }

    /// The numbers and sizes of records not read yet, which must follow on one another.
    fn unread(&mut self, listed: Vec<Listed>) -> Result<Vec<(u64, u64)>, LogError> {
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
            if self.started && seq < self.next {
                continue;
            }
            let expected = unread.last().map_or(self.next, |(last, _)| last + 1);
            if seq != expected {
                return Err(LogError::Gap { key: key(expected) });
            }
            unread.push((seq, size));
        }
        self.started = true;
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
            _ if record.term > self.term && !self.compacted => {
                let reason = format!("its term {} was never elected", record.term);
                return Err(LogError::Corrupt { key: key(record.seq), reason });
            }
            _ => {
                self.term = record.term;
                self.records.push(record);
            }
        }
        Ok(())
    }
}

/// The record, or nothing where a compaction left a tombstone.
async fn fetch(store: &Store, seq: u64, size: u64) -> Result<Option<Record>, LogError> {
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
