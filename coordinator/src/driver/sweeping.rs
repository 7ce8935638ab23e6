//! Deleting what nothing will name again, beside everything else.

use foil_common::storage::object::SIDECAR;
use foil_common::storage::{Store, StoreError};
use futures::{StreamExt, TryStreamExt};

use crate::job::Sweep;

/// Deletions on their way at once.
const PARALLEL: usize = 8;

/// Where the store fails, objects stay until the job's next sweep: they are only a waste of room.
pub(super) fn spawn(store: Store, sweep: Sweep) {
    tokio::spawn(async move {
        match carry_out(&store, &sweep).await {
            Ok(0) => {}
            Ok(objects) => {
                metrics::counter!("foil_objects_swept_total").increment(objects);
                tracing::debug!(prefix = sweep.prefix(), objects, "superfluous objects deleted");
            }
            Err(error) => tracing::warn!(%error, prefix = sweep.prefix(), "superfluous objects stay for now"),
        }
    });
}

/// How many objects were deleted.
async fn carry_out(store: &Store, sweep: &Sweep) -> Result<u64, StoreError> {
    let listed = store.list(sweep.prefix().trim_end_matches('/')).await?;
    // Of an object that was never finished there may be the bytes alone, of one that was half deleted the sidecar.
    let mut keys: Vec<&str> = listed.iter().map(|listed| listed.key.trim_end_matches(SIDECAR)).collect();
    keys.dedup();
    let condemned: Vec<String> =
        keys.into_iter().filter(|key| sweep.condemns(key)).map(str::to_owned).collect();
    let count = condemned.len() as u64;
    futures::stream::iter(condemned)
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
    async fn what_artifacts_name_stays_and_the_rest_goes() {
        let store = Store::in_memory();
        let state = after(&[], 1);
        let named: Vec<&str> =
            state.committed[0].artifact.objects.iter().map(|object| object.key.as_str()).collect();
        let phase = &state.committed[0].phase;
        let stray = format!("jobs/{JOB}/phases/{phase}/a0/model.safetensors");
        let torn = format!("jobs/{JOB}/phases/{phase}/a0/checkpoints/{:012}/rank-0.safetensors", 3);
        let data = format!("jobs/{JOB}/data/sft.jsonl");
        for key in named.iter().copied().chain([stray.as_str(), data.as_str()]) {
            store.put_object(key, Bytes::from_static(b"x")).await.unwrap();
        }
        store.create(&torn, Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(carry_out(&store, &Sweep::of_ended(&state)).await.unwrap(), 2);
        for key in named.iter().copied().chain([data.as_str()]) {
            store.stat_object(key).await.unwrap();
        }
        for gone in [stray.clone(), format!("{stray}{SIDECAR}"), torn] {
            assert!(!store.exists(&gone).await.unwrap(), "{gone}");
        }
        assert_eq!(carry_out(&store, &Sweep::of_ended(&state)).await.unwrap(), 0, "it is done");
    }
}
