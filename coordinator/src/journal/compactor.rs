//! Log compaction: snapshots, written concurrently with appends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use foil_common::storage::Store;
use foil_common::storage::log::{LogError, LogState, compact};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinHandle;

use super::encode;

/// Divisor that spaces snapshots in proportion to their size: after one of N events, at least N / `PART`
/// records are appended before the next, so that the work on snapshots stays proportional to the appended
/// data.
const PART: u64 = 8;

/// Policy for snapshots: their frequency, and the events that they keep.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotPolicy<E> {
    /// Minimum number of records between two snapshots.
    pub every: u64,
    /// Begins a selection of the events that replay to the same state.
    pub select: fn() -> Box<dyn Selection<E>>,
}

/// Selects the events of a log that a snapshot needs. It sees all events twice, so that they need not be held
/// in memory.
pub trait Selection<E>: Send {
    /// First pass: records an event, in the order of the log.
    fn record(&mut self, event: &E);

    /// Called between the two passes.
    fn turn(&mut self);

    /// Second pass: decides on an event, in the same order. May modify the event.
    fn select(&mut self, event: &mut E) -> Selected;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selected {
    Dropped,
    Kept,
    /// Kept in modified form.
    Changed,
}

/// [`SnapshotPolicy::select`] over encoded events, for [`compact`].
type CompactBytes = Arc<dyn Fn(Vec<Bytes>) -> Result<Vec<Bytes>, LogError> + Send + Sync>;

/// Counts appended records and writes one snapshot at a time.
pub(super) struct Compactor {
    store: Store,
    every: u64,
    compact_bytes: CompactBytes,
    /// Number of records since the last snapshot.
    records: u64,
    /// Number of events in the last snapshot.
    kept: Arc<AtomicU64>,
    running: Option<JoinHandle<()>>,
}

impl Compactor {
    pub(super) fn new<E: Serialize + DeserializeOwned + 'static>(
        store: Store,
        snapshot_policy: &SnapshotPolicy<E>,
        read: &LogState,
    ) -> Self {
        let select = snapshot_policy.select;
        let compact_bytes = Arc::new(move |events: Vec<Bytes>| compact_encoded(events, &mut *select()));
        let (records, kept) = (read.records.len() as u64, read.snapshot.len() as u64);
        let kept = Arc::new(AtomicU64::new(kept));
        Self { store, every: snapshot_policy.every, compact_bytes, records, kept, running: None }
    }

    /// Starts a snapshot when one is due and none is running.
    pub(super) fn record_appended(&mut self) {
        self.records += 1;
        let busy = self.running.as_ref().is_some_and(|running| !running.is_finished());
        let due = self.every.max(self.kept.load(Ordering::Relaxed) / PART);
        if self.records < due || busy {
            return;
        }
        self.records = 0;
        let (store, compact_bytes) = (self.store.clone(), Arc::clone(&self.compact_bytes));
        let kept = Arc::clone(&self.kept);
        self.running = Some(tokio::spawn(async move {
            match compact(&store, |events| in_place(|| compact_bytes(events))).await {
                Ok(events) => {
                    kept.store(events as u64, Ordering::Relaxed);
                    tracing::debug!(events, "log compacted");
                }
                // Nothing is lost: the next snapshot covers more records.
                Err(error) => {
                    tracing::warn!(%error, "cannot compact the log; trying again later");
                }
            }
        }));
    }
}

/// Runs work that takes seconds for a long log. Where another thread can take over this thread's tasks, they
/// are not delayed.
fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// The events that a selection keeps. They are decoded one at a time, because all of them decoded take many
/// times the memory of their bytes.
fn compact_encoded<E: Serialize + DeserializeOwned>(
    events: Vec<Bytes>,
    selection: &mut dyn Selection<E>,
) -> Result<Vec<Bytes>, LogError> {
    let fail = |index: usize, reason: String| LogError::Compact { index, reason };
    let decode = |index: usize, bytes: &Bytes| {
        rmp_serde::from_slice::<E>(bytes).map_err(|error| fail(index, error.to_string()))
    };
    for (index, bytes) in events.iter().enumerate() {
        selection.record(&decode(index, bytes)?);
    }
    selection.turn();
    let mut kept = Vec::new();
    for (index, bytes) in events.into_iter().enumerate() {
        let mut event = decode(index, &bytes)?;
        match selection.select(&mut event) {
            Selected::Dropped => {}
            Selected::Kept => kept.push(bytes),
            Selected::Changed => {
                kept.push(encode(&event).map_err(|error| fail(index, error.to_string()))?);
            }
        }
    }
    Ok(kept)
}
