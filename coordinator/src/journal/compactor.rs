//! Log compaction: snapshots, written concurrently with appends.

use std::sync::Arc;

use bytes::Bytes;
use foil_common::storage::Store;
use foil_common::storage::log::{LogError, compact};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use super::encode;

/// Policy for snapshots: their frequency, and the events that they keep.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotPolicy<E> {
    /// Number of records between two snapshots.
    pub every: u64,
    /// Returns fewer events that replay to the same state.
    pub compact: fn(Vec<E>) -> Vec<E>,
}

/// [`SnapshotPolicy::compact`] over encoded events, for [`compact`].
type CompactBytes = Arc<dyn Fn(Vec<Bytes>) -> Result<Vec<Bytes>, LogError> + Send + Sync>;

/// Counts appended records and writes one snapshot at a time.
pub(super) struct Compactor {
    store: Store,
    every: u64,
    compact_bytes: CompactBytes,
    /// Number of records since the last snapshot.
    records: u64,
    running: Option<JoinHandle<()>>,
}

impl Compactor {
    pub(super) fn new<E: Serialize + DeserializeOwned + 'static>(
        store: Store,
        snapshot_policy: &SnapshotPolicy<E>,
        records: u64,
    ) -> Self {
        let compact_events = snapshot_policy.compact;
        let compact_bytes = Arc::new(move |events: Vec<Bytes>| compact_encoded(&events, compact_events));
        Self { store, every: snapshot_policy.every, compact_bytes, records, running: None }
    }

    /// Starts a snapshot when one is due and none is running.
    pub(super) fn record_appended(&mut self) {
        self.records += 1;
        let busy = self.running.as_ref().is_some_and(|running| !running.is_finished());
        if self.records < self.every || busy {
            return;
        }
        self.records = 0;
        let (store, compact_bytes) = (self.store.clone(), Arc::clone(&self.compact_bytes));
        self.running = Some(tokio::spawn(async move {
            match compact(&store, |events| compact_bytes(events)).await {
                Ok(()) => tracing::debug!("log compacted"),
                // Nothing is lost: the next snapshot covers more records.
                Err(error) => {
                    tracing::warn!(%error, "cannot compact the log; trying again later");
                }
            }
        }));
    }
}

fn compact_encoded<E: Serialize + DeserializeOwned>(
    events: &[Bytes],
    compact_events: fn(Vec<E>) -> Vec<E>,
) -> Result<Vec<Bytes>, LogError> {
    let fail = |index: usize, reason: String| LogError::Compact { index, reason };
    let decoded: Result<Vec<E>, _> = events
        .iter()
        .enumerate()
        .map(|(index, bytes)| rmp_serde::from_slice(bytes).map_err(|error| fail(index, error.to_string())))
        .collect();
    compact_events(decoded?)
        .iter()
        .enumerate()
        .map(|(index, event)| encode(event).map_err(|error| fail(index, error.to_string())))
        .collect()
}
