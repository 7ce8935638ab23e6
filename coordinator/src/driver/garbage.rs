//! Deletion of garbage objects, in the background.

use foil_common::storage::object::SIDECAR;
use foil_common::storage::{Store, StoreError};
use futures::{StreamExt, TryStreamExt};

use super::handle::Handle;
use crate::job::GarbageSet;

/// Number of concurrent deletions.
const PARALLEL: usize = 8;

/// Starts a collection. If the store fails, the objects stay until the job's next collection, which only
/// wastes space.
pub(super) fn spawn_collection(store: Store, garbage: GarbageSet) {
    tokio::spawn(async move {
        match collect(&store, &garbage).await {
            Ok(0) => {}
            Ok(objects) => {
                metrics::counter!("foil_objects_deleted_total").increment(objects);
                tracing::debug!(prefix = garbage.prefix(), objects, "garbage objects deleted");
            }
            Err(error) => {
                tracing::warn!(%error, prefix = garbage.prefix(), "garbage objects could not be deleted");
            }
        }
    });
}

/// Deletes the objects of a deleted job and reports completion. If the store keeps failing, the next leader
/// tries again.
pub(super) fn spawn_erasure(store: Store, handle: Handle, job: String, garbage: GarbageSet) {
    tokio::spawn(async move {
        match collect(&store, &garbage).await {
            Ok(objects) => {
                metrics::counter!("foil_objects_deleted_total").increment(objects);
                // The driver may have stopped; then the next leader finds nothing left to delete.
                let _ = handle.erased(job).await;
            }
            Err(error) => {
                tracing::error!(%error, job, "objects of a deleted job could not be deleted");
            }
        }
    });
}

/// Deletes the garbage; returns the number of objects.
async fn collect(store: &Store, garbage: &GarbageSet) -> Result<u64, StoreError> {
    let listed = store.list(garbage.prefix().trim_end_matches('/')).await?;
    // An unfinished object may lack its sidecar, a half-deleted one its bytes.
    let mut keys: Vec<&str> = listed.iter().map(|listed| listed.key.trim_end_matches(SIDECAR)).collect();
    keys.dedup();
    let garbage_keys: Vec<String> =
        keys.into_iter().filter(|key| garbage.is_garbage(key)).map(str::to_owned).collect();
    let count = garbage_keys.len() as u64;
    futures::stream::iter(garbage_keys)
        .map(|key| (store.clone(), key))
        .map(|(store, key)| async move { store.delete_object(&key).await })
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::job::fixture::{JOB, after};

    #[tokio::test]
    async fn referenced_objects_are_kept_and_the_rest_is_deleted() {
        let store = Store::in_memory();
        let state = after(&[], 1);
        let referenced: Vec<&str> =
            state.committed[0].artifact.objects.iter().map(|object| object.key.as_str()).collect();
        let phase = &state.committed[0].phase;
        let orphan = format!("jobs/{JOB}/phases/{phase}/a0/model.safetensors");
        let torn = format!("jobs/{JOB}/phases/{phase}/a0/checkpoints/{:012}/rank-0.safetensors", 3);
        let data = format!("jobs/{JOB}/data/sft.jsonl");
        for key in referenced.iter().copied().chain([orphan.as_str(), data.as_str()]) {
            store.put_object(key, Bytes::from_static(b"x")).await.unwrap();
        }
        store.create(&torn, Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(collect(&store, &GarbageSet::of_ended_job(&state)).await.unwrap(), 2);
        for key in referenced.iter().copied().chain([data.as_str()]) {
            store.stat_object(key).await.unwrap();
        }
        for gone in [orphan.clone(), format!("{orphan}{SIDECAR}"), torn] {
            assert!(!store.exists(&gone).await.unwrap(), "{gone}");
        }
        assert_eq!(
            collect(&store, &GarbageSet::of_ended_job(&state)).await.unwrap(),
            0,
            "nothing is left to collect"
        );
    }
}
