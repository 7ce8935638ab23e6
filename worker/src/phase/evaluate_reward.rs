//! Evaluate a reward model on a chunk of pairs that it was not trained on.

use std::collections::HashMap;

use foil_common::failpoint;
use foil_common::spec::BestMetric;
use foil_common::stats::{self, ClusteredMoments};
use foil_proto::v1;
use foil_proto::v1::pair_source::Source;
use prost::Message;

use super::support::error::samples_error;
use super::support::pairs;
use super::support::pairs::Contest;
use super::{Chunk, ChunkOutput, PhaseError, TaskContext, score};
use crate::evaluate::{PairMetrics, is_correct};

pub(super) fn run(
    context: &mut TaskContext,
    chunk: &Chunk,
    work: &v1::EvaluateReward,
) -> Result<ChunkOutput, PhaseError> {
    let judge = context.judge(&work.reward)?;
    let contests = pairs::encode(context, &judge, &work.pairs, chunk.span)?;
    let pairs: usize = contests.iter().map(|contest| contest.rejected.len()).sum();

    failpoint::hit("phase.evaluate")?;
    context.progress(0, pairs, "pairs");
    let groups: Vec<Vec<&[u32]>> = contests.iter().map(sequences).collect();
    let scores = score::scores(context, &judge, &groups)?;

    let mut figures = PairMetrics::default();
    // A baseline that uses only lengths: the longer text wins.
    let mut by_length = ClusteredMoments::default();
    let mut scored = Vec::with_capacity(pairs);
    for (contest, scores) in contests.iter().zip(&scores) {
        if scores.iter().any(|score| !score.is_finite()) {
            return Err(PhaseError::NonFinite { what: "the reward", row: contest.row });
        }
        figures.push(contest.cluster, scores[0], &scores[1..]);
        for (answer, &rejected) in contest.rejected.iter().zip(&scores[1..]) {
            let lengths = (contest.chosen.response().len(), answer.response().len());
            by_length.push(contest.cluster, is_correct(lengths.0 as f64, lengths.1 as f64));
            scored.push(v1::PairScore { row_id: contest.row, chosen: scores[0], rejected });
        }
    }
    let mut moments = figures.moments();
    moments.push(by_length.moments().to_wire("length_accuracy"));
    moments.extend(halves(context, work, &contests, &scores));
    moments.extend(change(context, work, &contests, &scores)?);
    let scored = v1::PairScores { phase: chunk.phase.clone(), chunk: chunk.number, pairs: scored };
    Ok(ChunkOutput { bytes: scored.encode_to_vec(), moments, calibration: Some(figures.calibration()) })
}

/// If accuracy on human pairs selects the best round: accuracy on the half used for selection and on the half reported.
fn halves(
    context: &TaskContext,
    work: &v1::EvaluateReward,
    contests: &[Contest],
    scores: &[Vec<f64>],
) -> Vec<v1::Moments> {
    let rows = match work.pairs.as_ref().and_then(|pairs| pairs.source.as_ref()) {
        _ if context.job.evaluation.metric_for_best_model != BestMetric::RewardAccuracy => return Vec::new(),
        Some(Source::Pairs(pairs)) => pairs.rows,
        Some(Source::GoldLabelled(labelled)) => labelled.prompts.as_ref().map_or(0, |prompts| prompts.rows),
        Some(Source::Golden(_)) | None => return Vec::new(),
    };
    let accuracy_of = |half: &str| {
        let mut accuracy = ClusteredMoments::default();
        for (contest, scores) in contests.iter().zip(scores) {
            if stats::half_of(contest.cluster.key, rows) == Some(half) {
                scores[1..]
                    .iter()
                    .for_each(|&other| accuracy.push(contest.cluster, is_correct(scores[0], other)));
            }
        }
        accuracy.moments().to_wire(&format!("{half}accuracy"))
    };
    [stats::SELECTION, stats::REPORT]
        .map(accuracy_of)
        .into_iter()
        .filter(|moments| moments.count > 0)
        .collect()
}

/// The change of accuracy since round 1, pair by pair.
fn change(
    context: &mut TaskContext,
    work: &v1::EvaluateReward,
    contests: &[Contest],
    scores: &[Vec<f64>],
) -> Result<Option<v1::Moments>, PhaseError> {
    let Some(object) = work.first.as_ref().and_then(|first| first.objects.first()) else { return Ok(None) };
    let bytes = context.cache.read(object)?;
    let first = v1::PairScores::decode(bytes.as_slice()).map_err(|e| samples_error(object, e.to_string()))?;
    let mut before: HashMap<u64, Vec<f64>> = HashMap::new();
    for pair in &first.pairs {
        before.entry(pair.row_id).or_default().push(is_correct(pair.chosen, pair.rejected));
    }
    let mut change = ClusteredMoments::default();
    for (contest, scores) in contests.iter().zip(scores) {
        let before = before.remove(&contest.row).unwrap_or_default();
        if before.len() != contest.rejected.len() {
            let (row, found, expected) = (contest.row, before.len(), contest.rejected.len());
            return Err(samples_error(object, format!("{found} scores of row {row}, expected {expected}")));
        }
        for (other, before) in scores[1..].iter().zip(before) {
            change.push(contest.cluster, is_correct(scores[0], *other) - before);
        }
    }
    Ok(Some(change.moments().to_wire(stats::ACCURACY_CHANGE)))
}

/// The chosen dialogue, then the rejected ones.
fn sequences(contest: &Contest) -> Vec<&[u32]> {
    std::iter::once(&contest.chosen).chain(&contest.rejected).map(|answer| answer.ids.as_slice()).collect()
}
