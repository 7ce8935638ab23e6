//! Keeping the log short: snapshots, made beside the appends.

use std::sync::Arc;

use bytes::Bytes;
use foil_common::storage::Store;
use foil_common::storage::log::{LogError, compact};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use super::encode;

/// When a snapshot is made, and what it leaves out.
#[derive(Debug, Clone, Copy)]
pub struct Keeping<E> {
    /// Records between two snapshots.
    pub every: u64,
    /// Gives events that add up to the same.
    pub fold: fn(Vec<E>) -> Vec<E>,
}

/// Folds bytes of events, for [`compact`].
type Fold = Arc<dyn Fn(Vec<Bytes>) -> Result<Vec<Bytes>, LogError> + Send + Sync>;

/// Watches the log grow; makes one snapshot at a time.
pub(super) struct Keeper {
    store: Store,
    every: u64,
    fold: Fold,
    /// Records since the last snapshot.
    grown: u64,
    running: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn new<E: Serialize + DeserializeOwned + 'static>(
        store: Store,
        keeping: &Keeping<E>,
        grown: u64,
    ) -> Self {
        let events_fold = keeping.fold;
        let fold = Arc::new(move |events: Vec<Bytes>| fold_bytes(&events, events_fold));
        Self { store, every: keeping.every, fold, grown, running: None }
    }

    /// One more record is there.
    pub(super) fn grew(&mut self) {
        self.grown += 1;
        let busy = self.running.as_ref().is_some_and(|running| !running.is_finished());
        if self.grown < self.every || busy {
            return;
        }
        self.grown = 0;
        let (store, fold) = (self.store.clone(), Arc::clone(&self.fold));
        self.running = Some(tokio::spawn(async move {
            match compact(&store, |events| fold(events)).await {
                Ok(()) => tracing::debug!("the log was compacted"),
                // Nothing is lost: the next one covers more.
                Err(error) => {
                    tracing::warn!(%error, "the log could not be compacted; it is tried again later");
                }
            }
        }));
    }
}

fn fold_bytes<E: Serialize + DeserializeOwned>(
    events: &[Bytes],
    fold: fn(Vec<E>) -> Vec<E>,
) -> Result<Vec<Bytes>, LogError> {
    let fail = |index: usize, reason: String| LogError::Fold { index, reason };
    let decoded: Result<Vec<E>, _> = events
        .iter()
        .enumerate()
        .map(|(index, bytes)| rmp_serde::from_slice(bytes).map_err(|error| fail(index, error.to_string())))
        .collect();
    fold(decoded?)
        .iter()
        .enumerate()
        .map(|(index, event)| encode(event).map_err(|error| fail(index, error.to_string())))
        .collect()
}
