//! Compaction: writes a snapshot of the log, and replaces the records that it supersedes with tombstones.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::snapshot::{self, Snapshot};
use super::{LogError, LogState, PREFIX, key};
use crate::failpoint;
use crate::storage::{Store, StoreError};

/// Number of objects written concurrently.
const PARALLEL_WRITES: usize = 8;

/// Writes a snapshot of all current records, and replaces those up to the previous snapshot with tombstones.
/// `select` may leave out events that later ones make superfluous. Returns the number of events kept.
///
/// Any process may do this at any time, even a former leader: the output depends only on the records.
pub async fn compact(
    store: &Store,
    select: impl FnOnce(Vec<Bytes>) -> Result<Vec<Bytes>, LogError>,
) -> Result<usize, LogError> {
    let mut state = LogState::default();
    state.catch_up(store).await?;
    let Some(seq) = state.next.checked_sub(1) else { return Ok(0) };
    let (term, events) = (state.term, select(state.into_events())?);
    let kept = events.len();
    snapshot::write(store, Snapshot { seq, term, events }).await?;
    failpoint::hit("log.compact").map_err(|injected| StoreError::injected(&injected, PREFIX))?;
    let numbers = snapshot::numbers(store).await?;
    let [.., before, _] = numbers.as_slice() else { return Ok(kept) };
    let done = numbers.first().filter(|first| *first < before).copied();
    empty(store, done, *before).await?;
    for old in numbers.iter().filter(|number| *number < before) {
        store.delete(&snapshot::key(*old)).await?;
    }
    Ok(kept)
}

/// Replaces the records up to `last` with tombstones; those up to `done` are tombstones already. Their names
/// stay taken, so that a leader that was suspended cannot create them again.
async fn empty(store: &Store, done: Option<u64>, last: u64) -> Result<(), LogError> {
    let listed = match done {
        Some(done) => store.list_after(PREFIX, &key(done)).await?,
        None => store.list(PREFIX).await?,
    };
    let last = key(last);
    let full = listed.into_iter().filter(|listed| listed.key <= last && listed.size > 0);
    futures::stream::iter(full)
        .map(|record| (store.clone(), record.key))
        .map(|(store, key)| async move { store.overwrite(&key, Bytes::new()).await })
        .buffer_unordered(PARALLEL_WRITES)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(())
}
