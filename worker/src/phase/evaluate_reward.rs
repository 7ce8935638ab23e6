//! Evaluate a reward model: how it ranks a chunk of pairs it was not trained on.

use foil_proto::v1;
use prost::Message;

use super::pairs::Contest;
use super::{Bench, Chunk, Outcome, PhaseError, pairs, score};
use crate::evaluate::PairFigures;
use foil_common::failpoint;

pub(super) fn run(
    bench: &mut Bench,
    chunk: &Chunk,
    work: &v1::EvaluateReward,
) -> Result<Outcome, PhaseError> {
    let judge = bench.judge(&work.reward)?;
    let contests = pairs::encode(bench, &judge, &work.pairs, chunk.span)?;
    let pairs: usize = contests.iter().map(|contest| contest.rejected.len()).sum();

    failpoint::hit("phase.evaluate")?;
    bench.progress(0, pairs, "pairs");
    let groups: Vec<Vec<&[u32]>> = contests.iter().map(sequences).collect();
    let scores = score::scores(bench, &judge, &groups)?;

    // Lengths alone, as a baseline: the longer answer wins.
    let (mut figures, mut by_length) = (PairFigures::default(), PairFigures::default());
    let mut scored = Vec::with_capacity(pairs);
    for (contest, scores) in contests.iter().zip(scores) {
        if scores.iter().any(|score| !score.is_finite()) {
            return Err(PhaseError::NonFinite { what: "the reward", row: contest.row });
        }
        for (answer, &rejected) in contest.rejected.iter().zip(&scores[1..]) {
            by_length.push(contest.chosen.answer().len() as f64, answer.answer().len() as f64);
            figures.push(scores[0], rejected);
            scored.push(v1::PairScore { row_id: contest.row, chosen: scores[0], rejected });
        }
    }
    let mut moments = figures.moments();
    let length_accuracy = by_length.moments().into_iter().find(|moments| moments.name == "accuracy");
    moments
        .extend(length_accuracy.map(|moments| v1::Moments { name: "length_accuracy".to_owned(), ..moments }));
    let scored = v1::PairScores { phase: chunk.phase.clone(), chunk: chunk.number, pairs: scored };
    Ok(Outcome { bytes: scored.encode_to_vec(), moments, calibration: Some(figures.calibration()) })
}

/// The chosen answer's dialogue, then the others'.
fn sequences(contest: &Contest) -> Vec<&[u32]> {
    std::iter::once(&contest.chosen).chain(&contest.rejected).map(|answer| answer.ids.as_slice()).collect()
}
