//! Preference pairs, whatever their source, as the tokens of one reward model.

use std::collections::HashMap;

use foil_common::data::rows::{GoldenRow, PairRow, Prompt, PromptKey, PromptRow, Row};
use foil_common::letters;
use foil_common::stats::Cluster;
use foil_common::text::Encoded;
use foil_proto::v1;
use foil_proto::v1::pair_source::Source;

use super::dialogue::{Candidate, Reader};
use super::error::need;
use super::models::Judge;
use super::rows::{Sampled, Samples, Span, encode_each, read, read_prompts};
use crate::phase::{PhaseError, TaskContext};

/// Whole dialogues, prompt and answer, of which one is preferred to each of the others.
#[derive(Debug)]
pub(in crate::phase) struct Contest {
    pub(in crate::phase) row: u64,
    /// Contests of one cluster share their prompt, and are not independent of each other.
    pub(in crate::phase) cluster: Cluster,
    pub(in crate::phase) chosen: Encoded,
    /// At least one.
    pub(in crate::phase) rejected: Vec<Encoded>,
    /// What the row asks of the difference of scores; 0 where it asks nothing, or the job does not care.
    pub(in crate::phase) margin: f64,
}

/// The rows `span` of a source, in order.
pub(in crate::phase) fn encode(
    context: &mut TaskContext,
    judge: &Judge,
    source: &Option<v1::PairSource>,
    span: Span,
) -> Result<Vec<Contest>, PhaseError> {
    let source = need(&need(source, "pairs")?.source, "a source of pairs")?;
    let (cache, reports) = (&mut context.cache, &context.reports);
    let reader = Reader { encoder: &judge.encoder, tokenizer: &judge.tokenizer, job: &context.job };
    match source {
        Source::Pairs(dataset) => {
            let all: Vec<PairRow> = read(cache, &Some(dataset.clone()), Span::ALL)?;
            let clusters = by_prompt(&all, span);
            let rows = span.cut(all);
            let mut clusters = clusters.into_iter();
            encode_each(reports, &rows, |row| human(&reader, row, clusters.next().unwrap_or(lone(row.id))))
        }
        Source::Golden(golden) => {
            let rows: Vec<GoldenRow> = read(cache, &golden.golden, span)?;
            let samples = Samples::read(cache, &golden.samples)?;
            encode_each(reports, &rows, |row| against_golden(&reader, row, samples.of(row.id)?))
        }
        Source::GoldLabelled(labelled) => {
            let rows = read_prompts(cache, &labelled.prompts, span)?;
            let samples = Samples::read(cache, &labelled.samples)?;
            encode_each(reports, &rows, |row| gold_labelled(&reader, row, samples.of(row.id)?))
        }
    }
}

/// A cluster of its own.
fn lone(row: u64) -> Cluster {
    Cluster { key: row, is_open: false }
}

/// The clusters of the rows `span`: the pairs of one prompt are one, which is open where rows beyond the span have it.
fn by_prompt(all: &[PairRow], span: Span) -> Vec<Cluster> {
    let keys: Vec<PromptKey> = all.iter().map(|row| row.prompt().key()).collect();
    let count = |keys: &[PromptKey]| {
        keys.iter().fold(HashMap::<PromptKey, usize>::new(), |mut counts, key| {
            *counts.entry(*key).or_default() += 1;
            counts
        })
    };
    let (everywhere, within) = (count(&keys), span.cut(keys));
    let here = count(&within);
    let cluster = |key: &PromptKey| {
        let mut low = [0; 8];
        low.copy_from_slice(&key.0[..8]);
        Cluster { key: u64::from_le_bytes(low), is_open: here.get(key) != everywhere.get(key) }
    };
    within.iter().map(cluster).collect()
}

fn human(reader: &Reader<'_>, row: &PairRow, cluster: Cluster) -> Result<Contest, PhaseError> {
    let uses_margins = reader.job.reward_step.loss.human_pairs().is_some_and(|loss| loss.margin);
    Ok(Contest {
        row: row.id,
        cluster,
        chosen: reader.whole(row.id, &row.prompt, &row.chosen)?,
        rejected: vec![reader.whole(row.id, &row.prompt, &row.rejected)?],
        margin: row.margin.filter(|_| uses_margins).unwrap_or(0.0),
    })
}

/// The golden answer is preferred to every sample.
fn against_golden(reader: &Reader<'_>, row: &GoldenRow, samples: &[Sampled]) -> Result<Contest, PhaseError> {
    let sample = |sampled| reader.competing(row.id, &row.prompt, Candidate::Sample(sampled));
    Ok(Contest {
        row: row.id,
        cluster: lone(row.id),
        chosen: reader.competing(row.id, &row.prompt, Candidate::Text(&row.golden))?,
        rejected: samples.iter().map(sample).collect::<Result<_, _>>()?,
        margin: 0.0,
    })
}

/// Which of the two samples is preferred is drawn by their gold rewards, from the job's seed and the row's id.
fn gold_labelled(reader: &Reader<'_>, row: &PromptRow, samples: &[Sampled]) -> Result<Contest, PhaseError> {
    let [first, second, ..] = samples else {
        let what = format!("they hold {} of row {}, a pair needs 2", samples.len(), row.id);
        return Err(PhaseError::Samples { object: "samples".to_owned(), what });
    };
    let first_wins = prefers_first(reader, row.id, &row.prompt, first, second);
    let (chosen, rejected) = if first_wins { (first, second) } else { (second, first) };
    Ok(Contest {
        row: row.id,
        cluster: lone(row.id),
        chosen: reader.competing(row.id, &row.prompt, Candidate::Sample(chosen))?,
        rejected: vec![reader.competing(row.id, &row.prompt, Candidate::Sample(rejected))?],
        margin: 0.0,
    })
}

fn prefers_first(reader: &Reader<'_>, row: u64, prompt: &Prompt, first: &Sampled, second: &Sampled) -> bool {
    let beta = reader.job.data.gold_preferences.as_ref().map_or(0.0, |preferences| preferences.beta);
    let gold =
        |sampled: &Sampled| letters::gold(prompt.last_text(), &sampled.sample.text, sampled.sample.finished);
    letters::prefer_first(reader.job.seed.into(), row, gold(first), gold(second), beta)
}
