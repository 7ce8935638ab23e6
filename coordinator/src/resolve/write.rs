//! Writes the data sets to the store, where ranks read them.

use foil_common::data::rows::write;
use foil_common::datasets;
use foil_common::storage::{Store, StoreError};
use foil_proto::v1;
use futures::future::try_join_all;

use super::ResolveError;
use super::sets::Sets;

/// Size up to which sets are written concurrently; larger ones are held in memory one at a time.
const SMALL_BYTES: usize = 1 << 20;

/// Key of a job's data set.
pub(super) fn key(job_id: &str, set: &str) -> String {
    format!("jobs/{job_id}/data/{set}.jsonl")
}

pub(super) async fn sets(job_id: &str, sets: &Sets, store: &Store) -> Result<Vec<v1::Dataset>, ResolveError> {
    let mut datasets = descriptions(sets);
    let mut small = Vec::new();
    for dataset in &mut datasets {
        let bytes = bytes(sets, &dataset.name);
        let is_small = bytes.len() <= SMALL_BYTES;
        let written = set(job_id, dataset, bytes, store);
        if is_small {
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
    bytes: Vec<u8>,
    store: &Store,
) -> Result<(), StoreError> {
    let object = store.put_object(&key(job_id, &dataset.name), bytes.into()).await?;
    dataset.object = Some(v1::Object { path: format!("{}.jsonl", dataset.name), ..object });
    Ok(())
}

pub(super) fn descriptions(sets: &Sets) -> Vec<v1::Dataset> {
    let filled = sets.counts().into_iter().filter(|(_, rows)| *rows > 0);
    filled.map(|(name, rows)| v1::Dataset { name: name.to_owned(), object: None, rows }).collect()
}

fn bytes(sets: &Sets, name: &str) -> Vec<u8> {
    match name {
        datasets::SFT => write(&sets.sft),
        datasets::PREFERENCES => write(&sets.preferences),
        datasets::GOLDEN => write(&sets.golden),
        datasets::GOLDEN_HOLDOUT => write(&sets.golden_holdout),
        datasets::PROMPTS => write(&sets.prompts),
        datasets::EVALUATION_PREFERENCES => write(&sets.evaluation_preferences),
        datasets::EVALUATION_PROMPTS => write(&sets.evaluation_prompts),
        datasets::GOLD_PREFERENCE_PROMPTS => write(&sets.gold_preference_prompts),
        datasets::GOLD_PREFERENCE_EVALUATION_PROMPTS => write(&sets.gold_preference_evaluation_prompts),
        _ => Vec::new(),
    }
}
