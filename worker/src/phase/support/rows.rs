//! Reads a task's rows and stored completions.

use std::collections::BTreeMap;

use foil_common::activity::Activity;
use foil_common::data::rows::{self, GoldenRow, PromptRow, Row};
use foil_common::datasets;
use prost::Message;

use super::error::samples_error;
use super::records::{RewardScores, Sample, SampleBatch};
use crate::phase::PhaseError;
use crate::task::{Artifact, Dataset, Object, RowRange};
use crate::task_io::artifact_cache::ArtifactCache;
use crate::task_io::progress::Reporter;

/// The rows `range` of a data set.
pub(in crate::phase) fn read<T: Row>(
    cache: &mut ArtifactCache,
    dataset: &Dataset,
    range: RowRange,
) -> Result<Vec<T>, PhaseError> {
    let all = rows::read(&dataset.object.key, &cache.read(&dataset.object)?)?;
    Ok(range.select(all))
}

/// Reads the record in an object.
pub(in crate::phase) fn read_record<R: Message + Default>(
    cache: &mut ArtifactCache,
    object: &Object,
) -> Result<R, PhaseError> {
    let bytes = cache.read(object)?;
    R::decode(bytes.as_slice()).map_err(|error| samples_error(object, error.to_string()))
}

/// Encodes rows one by one and reports progress.
pub(in crate::phase) fn encode_each<T, R>(
    reports: &Reporter,
    rows: &[T],
    mut encode: impl FnMut(&T) -> Result<R, PhaseError>,
) -> Result<Vec<R>, PhaseError> {
    reports.expect(Activity::Encoding, rows.len() as u64);
    let encoded = rows.iter().map(|row| {
        let encoded = encode(row)?;
        reports.advance(Activity::Encoding, 1);
        Ok(encoded)
    });
    encoded.collect()
}

/// The prompts of a data set of any row type.
pub(in crate::phase) fn read_prompts(
    cache: &mut ArtifactCache,
    dataset: &Dataset,
    range: RowRange,
) -> Result<Vec<PromptRow>, PhaseError> {
    match dataset.name.as_str() {
        datasets::GOLDEN | datasets::GOLDEN_HOLDOUT => {
            let rows: Vec<GoldenRow> = read(cache, dataset, range)?;
            Ok(rows.into_iter().map(|row| PromptRow { id: row.id, prompt: row.prompt }).collect())
        }
        _ => read(cache, dataset, range),
    }
}

/// A stored completion, with the fingerprint of the tokenizer that its tokens belong to.
#[derive(Clone, Debug)]
pub(in crate::phase) struct StoredCompletion {
    pub(in crate::phase) sample: Sample,
    pub(in crate::phase) tokenizer: String,
}

/// Stored completions by prompt, sorted by index.
#[derive(Debug, Default)]
pub(in crate::phase) struct Completions(BTreeMap<u64, Vec<StoredCompletion>>);

impl Completions {
    pub(in crate::phase) fn read(cache: &mut ArtifactCache, artifact: &Artifact) -> Result<Self, PhaseError> {
        let mut completions = Self::default();
        for object in &artifact.objects {
            let batch: SampleBatch = read_record(cache, object)?;
            for sample in batch.samples {
                let stored = StoredCompletion { tokenizer: batch.tokenizer_blake3.clone(), sample };
                completions.0.entry(stored.sample.prompt_id).or_default().push(stored);
            }
        }
        for of_prompt in completions.0.values_mut() {
            of_prompt.sort_by_key(|stored| stored.sample.index);
        }
        Ok(completions)
    }

    /// The completions of a row. If there are none, the artifact belongs to another data set.
    pub(in crate::phase) fn of_prompt(&self, prompt_id: u64) -> Result<&[StoredCompletion], PhaseError> {
        let missing = || PhaseError::Record {
            object: "samples".to_owned(),
            reason: format!("no samples of row {prompt_id}; they belong to another data set"),
        };
        self.0.get(&prompt_id).map(Vec::as_slice).ok_or_else(missing)
    }
}

/// Scores by prompt and index.
pub(in crate::phase) fn read_scores(
    cache: &mut ArtifactCache,
    artifact: &Artifact,
) -> Result<BTreeMap<(u64, u32), f64>, PhaseError> {
    let mut scores = BTreeMap::new();
    for object in &artifact.objects {
        let batch: RewardScores = read_record(cache, object)?;
        scores.extend(batch.scores.iter().map(|score| ((score.prompt_id, score.index), score.reward)));
    }
    Ok(scores)
}
