//! Writes the data sets to the store, where ranks read them.

use foil_common::data::row_set::Lines;
use foil_common::storage::Store;
use foil_common::storage::object::Digest;
use foil_proto::v1;
use futures::future::try_join_all;

use super::ResolveError;
use super::sets::Sets;

/// Size up to which sets are written concurrently; of larger ones, one at a time has parts in memory.
const SMALL_BYTES: u64 = 1 << 20;

/// Key of a job's data set.
pub(super) fn key(job_id: &str, set: &str) -> String {
    format!("jobs/{job_id}/data/{set}.jsonl")
}

pub(super) async fn sets(job_id: &str, sets: &Sets, store: &Store) -> Result<Vec<v1::Dataset>, ResolveError> {
    let mut datasets = descriptions(sets);
    let mut small = Vec::new();
    let filled = sets.all().into_iter().filter(|(_, lines)| !lines.is_empty());
    for (dataset, (_, lines)) in datasets.iter_mut().zip(filled) {
        let written = set(job_id, dataset, lines, store);
        if lines.bytes() <= SMALL_BYTES {
            small.push(written);
        } else {
            written.await?;
        }
    }
    try_join_all(small).await?;
    Ok(datasets)
}

async fn set(
    job_id: &str,
    dataset: &mut v1::Dataset,
    lines: &Lines,
    store: &Store,
) -> Result<(), ResolveError> {
    let mut hasher = blake3::Hasher::new();
    for piece in lines.pieces() {
        hasher.update(&piece?);
        tokio::task::yield_now().await;
    }
    let digest = Digest { size: lines.bytes(), blake3: hasher.finalize().to_hex().to_string() };
    let mut writer = store.write_object(&key(job_id, &dataset.name), digest).await?;
    for piece in lines.pieces() {
        writer.write(piece?).await?;
    }
    let object = writer.finish().await?;
    dataset.object = Some(v1::Object { path: format!("{}.jsonl", dataset.name), ..object });
    Ok(())
}

/// The sets that have rows, without objects.
pub(super) fn descriptions(sets: &Sets) -> Vec<v1::Dataset> {
    let filled = sets.counts().into_iter().filter(|(_, rows)| *rows > 0);
    filled.map(|(name, rows)| v1::Dataset { name: name.to_owned(), object: None, rows }).collect()
}
