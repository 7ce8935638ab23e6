//! Encodes preference pairs from any source for a reward model.

use std::collections::HashMap;

use foil_common::data::rows::{GoldenRow, PairRow, Prompt, PromptKey, PromptRow, Row};
use foil_common::letters;
use foil_common::stats::Cluster;
use foil_common::text::Encoded;

use super::dialogue::{DialogueEncoder, ResponseSource};
use super::models::RewardModel;
use super::rows::{Completions, StoredCompletion, encode_each, read, read_prompts};
use crate::phase::{PhaseError, TaskContext};
use crate::task::{PairSource, RowRange};

/// Whole dialogues of one prompt, one of which is preferred to all others.
#[derive(Debug)]
pub(in crate::phase) struct EncodedComparison {
    pub(in crate::phase) row: u64,
    /// Comparisons of one cluster share their prompt and are not independent.
    pub(in crate::phase) cluster: Cluster,
    pub(in crate::phase) chosen: Encoded,
    /// At least one.
    pub(in crate::phase) rejected: Vec<Encoded>,
    /// The required difference of scores; 0 if the row has none or the job ignores it.
    pub(in crate::phase) margin: f64,
    /// The benchmark parts that it belongs to.
    pub(in crate::phase) groups: Vec<String>,
}

/// The rows `range` of a source, in order.
pub(in crate::phase) fn encode(
    context: &mut TaskContext,
    reward_model: &RewardModel,
    source: &PairSource,
    range: RowRange,
) -> Result<Vec<EncodedComparison>, PhaseError> {
    let (cache, reports) = (&mut context.cache, &context.reports);
    let encoder = DialogueEncoder::new(reward_model, &context.job);
    match source {
        PairSource::Pairs(dataset) => {
            let all: Vec<PairRow> = read(cache, dataset, RowRange::ALL)?;
            let clusters = clusters_by_prompt(&all, range);
            let rows = range.select(all);
            let mut clusters = clusters.into_iter();
            encode_each(reports, &rows, |row| {
                human_pair(&encoder, row, clusters.next().unwrap_or(own_cluster(row.id)))
            })
        }
        PairSource::Golden { golden, completions } => {
            let rows: Vec<GoldenRow> = read(cache, golden, range)?;
            let completions = Completions::read(cache, completions)?;
            encode_each(reports, &rows, |row| against_golden(&encoder, row, completions.of_prompt(row.id)?))
        }
        PairSource::GoldLabeled { prompts, completions } => {
            let rows = read_prompts(cache, prompts, range)?;
            let completions = Completions::read(cache, completions)?;
            encode_each(reports, &rows, |row| gold_labeled(&encoder, row, completions.of_prompt(row.id)?))
        }
    }
}

/// A cluster of this row alone.
fn own_cluster(row: u64) -> Cluster {
    Cluster { key: row, is_open: false }
}

/// The clusters of the rows `range`. Pairs with the same prompt form one cluster, which is open if rows
/// outside the range have the same prompt.
fn clusters_by_prompt(all: &[PairRow], range: RowRange) -> Vec<Cluster> {
    let keys: Vec<PromptKey> = all.iter().map(|row| row.prompt().key()).collect();
    let count = |keys: &[PromptKey]| {
        keys.iter().fold(HashMap::<PromptKey, usize>::new(), |mut counts, key| {
            *counts.entry(*key).or_default() += 1;
            counts
        })
    };
    let (everywhere, within) = (count(&keys), range.select(keys));
    let here = count(&within);
    let cluster = |key: &PromptKey| {
        let mut low = [0; 8];
        low.copy_from_slice(&key.0[..8]);
        Cluster { key: u64::from_le_bytes(low), is_open: here.get(key) != everywhere.get(key) }
    };
    within.iter().map(cluster).collect()
}

fn human_pair(
    encoder: &DialogueEncoder<'_>,
    row: &PairRow,
    cluster: Cluster,
) -> Result<EncodedComparison, PhaseError> {
    let uses_margins = encoder.job.reward_step.loss.human_pairs().is_some_and(|loss| loss.margin);
    Ok(EncodedComparison {
        row: row.id,
        cluster,
        chosen: encoder.encode_full(row.id, &row.prompt, &row.chosen)?,
        rejected: vec![encoder.encode_full(row.id, &row.prompt, &row.rejected)?],
        margin: row.margin.filter(|_| uses_margins).unwrap_or(0.0),
        groups: row.groups.clone(),
    })
}

/// Comparisons in which the golden answer is preferred to every completion.
fn against_golden(
    encoder: &DialogueEncoder<'_>,
    row: &GoldenRow,
    completions: &[StoredCompletion],
) -> Result<EncodedComparison, PhaseError> {
    let rejected =
        |completion| encoder.encode_truncated(row.id, &row.prompt, ResponseSource::Completion(completion));
    Ok(EncodedComparison {
        row: row.id,
        cluster: own_cluster(row.id),
        chosen: encoder.encode_truncated(row.id, &row.prompt, ResponseSource::Text(&row.golden))?,
        rejected: completions.iter().map(rejected).collect::<Result<_, _>>()?,
        margin: 0.0,
        groups: Vec::new(),
    })
}

/// Comparisons of two completions. The preferred one is sampled by their gold rewards, using the job's seed
/// and the row's id.
fn gold_labeled(
    encoder: &DialogueEncoder<'_>,
    row: &PromptRow,
    completions: &[StoredCompletion],
) -> Result<EncodedComparison, PhaseError> {
    let [first, second, ..] = completions else {
        let reason = format!("{} samples of row {}, but a pair needs 2", completions.len(), row.id);
        return Err(PhaseError::Record { object: "samples".to_owned(), reason });
    };
    let first_wins = prefers_first(encoder, row.id, &row.prompt, first, second);
    let (chosen, rejected) = if first_wins { (first, second) } else { (second, first) };
    Ok(EncodedComparison {
        row: row.id,
        cluster: own_cluster(row.id),
        chosen: encoder.encode_truncated(row.id, &row.prompt, ResponseSource::Completion(chosen))?,
        rejected: vec![encoder.encode_truncated(
            row.id,
            &row.prompt,
            ResponseSource::Completion(rejected),
        )?],
        margin: 0.0,
        groups: Vec::new(),
    })
}

fn prefers_first(
    encoder: &DialogueEncoder<'_>,
    row: u64,
    prompt: &Prompt,
    first: &StoredCompletion,
    second: &StoredCompletion,
) -> bool {
    let beta = encoder.job.data.gold_preferences.as_ref().map_or(0.0, |preferences| preferences.beta);
    let gold = |stored: &StoredCompletion| {
        letters::gold(prompt.last_text(), &stored.sample.text, stored.sample.finished)
    };
    letters::prefer_first(encoder.job.seed.into(), row, gold(first), gold(second), beta)
}
