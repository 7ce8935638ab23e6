//! Reading of a task's rows and stored completions.

use std::collections::BTreeMap;

use foil_common::activity::Activity;
use foil_common::data::rows::{self, GoldenRow, PromptRow, Row};
use foil_proto::v1;
use prost::Message;

use super::error::{need, samples_error};
use crate::phase::PhaseError;
use crate::task_io::artifact_cache::ArtifactCache;
use crate::task_io::progress::Reporter;

/// Rows [first, first + count) of a data set.
#[derive(Clone, Copy, Debug)]
pub(in crate::phase) struct Span {
    pub(in crate::phase) first: u64,
    pub(in crate::phase) count: u64,
}

impl Span {
    pub(in crate::phase) const ALL: Self = Self { first: 0, count: u64::MAX };

    pub(in crate::phase) fn cut<T>(self, rows: Vec<T>) -> Vec<T> {
        let (first, count) = (narrow(self.first), narrow(self.count));
        rows.into_iter().skip(first).take(count).collect()
    }
}

fn narrow(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

pub(in crate::phase) fn read<T: Row>(
    cache: &mut ArtifactCache,
    dataset: &Option<v1::Dataset>,
    span: Span,
) -> Result<Vec<T>, PhaseError> {
    let dataset = need(dataset, "a data set")?;
    let object = need(&dataset.object, "a data set's object")?;
    let all = rows::read(&object.key, &cache.read(object)?)?;
    Ok(span.cut(all))
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
    dataset: &Option<v1::Dataset>,
    span: Span,
) -> Result<Vec<PromptRow>, PhaseError> {
    match need(dataset, "a data set")?.name.as_str() {
        "golden" | "golden_holdout" => {
            let rows: Vec<GoldenRow> = read(cache, dataset, span)?;
            Ok(rows.into_iter().map(|row| PromptRow { id: row.id, prompt: row.prompt }).collect())
        }
        _ => read(cache, dataset, span),
    }
}

/// A stored completion, with the fingerprint of the tokenizer of its tokens.
#[derive(Clone, Debug)]
pub(in crate::phase) struct Sampled {
    pub(in crate::phase) sample: v1::Sample,
    pub(in crate::phase) tokenizer: String,
}

/// Stored completions by prompt, sorted by index.
#[derive(Debug, Default)]
pub(in crate::phase) struct Samples(BTreeMap<u64, Vec<Sampled>>);

impl Samples {
    pub(in crate::phase) fn read(
        cache: &mut ArtifactCache,
        artifact: &Option<v1::Artifact>,
    ) -> Result<Self, PhaseError> {
        let mut samples = Self::default();
        for object in &need(artifact, "samples")?.objects {
            let batch = read_batch(cache, object)?;
            for sample in batch.samples {
                let sampled = Sampled { tokenizer: batch.tokenizer_blake3.clone(), sample };
                samples.0.entry(sampled.sample.prompt_id).or_default().push(sampled);
            }
        }
        for of_prompt in samples.0.values_mut() {
            of_prompt.sort_by_key(|sampled| sampled.sample.index);
        }
        Ok(samples)
    }

    /// The completions of a row. An artifact without any belongs to another data set.
    pub(in crate::phase) fn of(&self, prompt_id: u64) -> Result<&[Sampled], PhaseError> {
        let missing = || PhaseError::Samples {
            object: "samples".to_owned(),
            what: format!("no samples of row {prompt_id}; they belong to another data set"),
        };
        self.0.get(&prompt_id).map(Vec::as_slice).ok_or_else(missing)
    }
}

pub(in crate::phase) fn read_batch(
    cache: &mut ArtifactCache,
    object: &v1::Object,
) -> Result<v1::SampleBatch, PhaseError> {
    let bytes = cache.read(object)?;
    v1::SampleBatch::decode(bytes.as_slice()).map_err(|error| samples_error(object, error.to_string()))
}

/// Scores by prompt and index.
pub(in crate::phase) fn read_scores(
    cache: &mut ArtifactCache,
    artifact: &Option<v1::Artifact>,
) -> Result<BTreeMap<(u64, u32), f64>, PhaseError> {
    let mut scores = BTreeMap::new();
    for object in &need(artifact, "scores")?.objects {
        let bytes = cache.read(object)?;
        let batch =
            v1::RewardScores::decode(bytes.as_slice()).map_err(|e| samples_error(object, e.to_string()))?;
        scores.extend(batch.scores.iter().map(|score| ((score.prompt_id, score.index), score.reward)));
    }
    Ok(scores)
}
