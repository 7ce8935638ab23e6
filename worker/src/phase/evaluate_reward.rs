//! Evaluate a reward model on a chunk of pairs that it was not trained on.

use std::collections::{BTreeMap, HashMap};

use foil_common::failpoint;
use foil_common::spec::BestMetric;
use foil_common::stats::{self, ClusteredMoments};
use prost::Message;

use super::support::error::samples_error;
use super::support::pairs;
use super::support::pairs::EncodedComparison;
use super::support::records::{MomentsRecord, PairScore, PairScores};
use super::support::rows::read_record;
use super::{ChunkOutput, PhaseError, TaskContext, score};
use crate::evaluate::{PairMetrics, is_correct};
use crate::task::{ChunkTask, EvaluateReward, PairSource};

pub(super) fn run(
    context: &mut TaskContext,
    task: &ChunkTask,
    work: &EvaluateReward,
) -> Result<ChunkOutput, PhaseError> {
    let reward_model = context.reward_model(&work.reward_model)?;
    let comparisons = pairs::encode(context, &reward_model, &work.pairs, task.rows)?;
    let pairs: usize = comparisons.iter().map(|comparison| comparison.rejected.len()).sum();

    failpoint::hit("phase.evaluate")?;
    context.progress(0, pairs, "pairs");
    let groups: Vec<Vec<&[u32]>> = comparisons.iter().map(sequences).collect();
    let scores = score::scores(context, &reward_model, &groups)?;

    let mut metrics = PairMetrics::default();
    // A baseline that uses only lengths: the longer text wins.
    let mut by_length = ClusteredMoments::default();
    let mut scored = Vec::with_capacity(pairs);
    for (comparison, scores) in comparisons.iter().zip(&scores) {
        if scores.iter().any(|score| !score.is_finite()) {
            return Err(PhaseError::NonFinite { what: "the reward", row: comparison.row });
        }
        metrics.push(comparison.cluster, scores[0], &scores[1..]);
        for (dialogue, &rejected) in comparison.rejected.iter().zip(&scores[1..]) {
            let lengths = (comparison.chosen.response().len(), dialogue.response().len());
            by_length.push(comparison.cluster, is_correct(lengths.0 as f64, lengths.1 as f64));
            scored.push(PairScore { row_id: comparison.row, chosen: scores[0], rejected });
        }
    }
    let mut moments = metrics.moments();
    moments.push(by_length.moments().to_wire("length_accuracy"));
    moments.extend(by_group(&comparisons, &scores));
    moments.extend(halves(context, work, &comparisons, &scores));
    moments.extend(change(context, work, &comparisons, &scores)?);
    let scored = PairScores { phase: task.phase.name.clone(), chunk: task.chunk, pairs: scored };
    Ok(ChunkOutput { bytes: scored.encode_to_vec(), moments, calibration: Some(metrics.calibration()) })
}

/// Accuracy on each benchmark part that pairs belong to.
fn by_group(comparisons: &[EncodedComparison], scores: &[Vec<f64>]) -> Vec<MomentsRecord> {
    let mut groups: BTreeMap<&str, ClusteredMoments> = BTreeMap::new();
    for (comparison, scores) in comparisons.iter().zip(scores) {
        for group in &comparison.groups {
            let accuracy = groups.entry(group).or_default();
            scores[1..]
                .iter()
                .for_each(|&other| accuracy.push(comparison.cluster, is_correct(scores[0], other)));
        }
    }
    let named = |(group, accuracy): (&str, ClusteredMoments)| {
        accuracy.moments().to_wire(&stats::group_accuracy(group))
    };
    groups.into_iter().map(named).collect()
}

/// Accuracy on the half used for selection and on the half reported, if accuracy on human pairs selects the
/// best round.
fn halves(
    context: &TaskContext,
    work: &EvaluateReward,
    comparisons: &[EncodedComparison],
    scores: &[Vec<f64>],
) -> Vec<MomentsRecord> {
    let rows = match &work.pairs {
        _ if context.job.evaluation.metric_for_best_model != BestMetric::RewardAccuracy => return Vec::new(),
        PairSource::Pairs(pairs) => pairs.rows,
        PairSource::GoldLabeled { prompts, .. } => prompts.rows,
        PairSource::Golden { .. } => return Vec::new(),
    };
    let accuracy_of = |half: &str| {
        let mut accuracy = ClusteredMoments::default();
        for (comparison, scores) in comparisons.iter().zip(scores) {
            if stats::half_of(comparison.cluster.key, rows) == Some(half) {
                scores[1..]
                    .iter()
                    .for_each(|&other| accuracy.push(comparison.cluster, is_correct(scores[0], other)));
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
    work: &EvaluateReward,
    comparisons: &[EncodedComparison],
    scores: &[Vec<f64>],
) -> Result<Option<MomentsRecord>, PhaseError> {
    let Some(object) = &work.first else { return Ok(None) };
    let first: PairScores = read_record(&mut context.cache, object)?;
    let mut before: HashMap<u64, Vec<f64>> = HashMap::new();
    for pair in &first.pairs {
        before.entry(pair.row_id).or_default().push(is_correct(pair.chosen, pair.rejected));
    }
    let mut change = ClusteredMoments::default();
    for (comparison, scores) in comparisons.iter().zip(scores) {
        let before = before.remove(&comparison.row).unwrap_or_default();
        if before.len() != comparison.rejected.len() {
            let (row, found, expected) = (comparison.row, before.len(), comparison.rejected.len());
            return Err(samples_error(object, format!("{found} scores of row {row}, expected {expected}")));
        }
        for (other, before) in scores[1..].iter().zip(before) {
            change.push(comparison.cluster, is_correct(scores[0], *other) - before);
        }
    }
    Ok(Some(change.moments().to_wire(stats::ACCURACY_CHANGE)))
}

/// The chosen dialogue, then the rejected ones.
fn sequences(comparison: &EncodedComparison) -> Vec<&[u32]> {
    std::iter::once(&comparison.chosen)
        .chain(&comparison.rejected)
        .map(|dialogue| dialogue.ids.as_slice())
        .collect()
}
