//! The log as it is stored, for a copy of the store.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::{LogError, PREFIX, key, snapshot};
use crate::storage::{Listed, Store, StoreError};

/// Number of records fetched concurrently.
const PARALLEL_READS: usize = 16;
/// Maximum number of compactions that may overtake one export.
const TRIES: usize = 16;

/// A state of the log that was in the store at one time: its snapshots, and all records from the last one
/// that the oldest snapshot covers.
#[derive(Debug, Default)]
pub(in crate::storage) struct Export {
    /// Keys and bytes, ascending.
    pub(in crate::storage) snapshots: Vec<(String, Bytes)>,
    pub(in crate::storage) records: Vec<(String, Bytes)>,
}

/// Reads the log's objects while a leader may append to it and compact it.
pub(in crate::storage) async fn export(store: &Store) -> Result<Export, LogError> {
    for _ in 0..TRIES {
        match try_export(store).await {
            Err(LogError::Store(StoreError::NotFound { .. })) | Ok(None) => {}
            Ok(Some(export)) => return Ok(export),
            Err(error) => return Err(error),
        }
    }
    let reason = format!("it was compacted {TRIES} times while it was read");
    Err(LogError::Corrupt { key: PREFIX.to_owned(), reason })
}

/// `None` if a compaction has replaced a record that is needed.
async fn try_export(store: &Store) -> Result<Option<Export>, LogError> {
    let numbers = snapshot::numbers(store).await?;
    let mut snapshots = Vec::new();
    for number in &numbers {
        let key = snapshot::key(*number);
        let bytes = store.get(&key).await?;
        snapshots.push((key, bytes));
    }
    let base = numbers.first().map(|number| key(*number));
    let listed = list_from(store, numbers.first().copied()).await?;
    let records: Vec<(String, Bytes)> = futures::stream::iter(listed)
        .map(|record| async move { Ok::<_, StoreError>((record.key.clone(), store.get(&record.key).await?)) })
        .buffered(PARALLEL_READS)
        .try_collect()
        .await?;
    // The record at the base may be a tombstone, because its snapshot stands for it.
    let needed = records.iter().filter(|(key, _)| base.as_ref().is_none_or(|base| key > base));
    let overtaken = needed.clone().any(|(_, bytes)| bytes.is_empty());
    Ok((!overtaken).then_some(Export { snapshots, records }))
}

/// The key of the log's last record; `None` if there is no log.
pub(in crate::storage) async fn last(store: &Store) -> Result<Option<String>, StoreError> {
    let newest = snapshot::numbers(store).await?.last().copied();
    Ok(list_from(store, newest).await?.pop().map(|record| record.key))
}

/// The records from a number on, or all of them. Records before a snapshot are numerous and empty.
async fn list_from(store: &Store, number: Option<u64>) -> Result<Vec<Listed>, StoreError> {
    match number.and_then(|number| number.checked_sub(1)) {
        Some(before) => store.list_after(PREFIX, &key(before)).await,
        None => store.list(PREFIX).await,
    }
}
