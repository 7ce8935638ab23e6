//! Evaluate a reward model: how it ranks a chunk of pairs it was not trained on.

use foil_proto::v1;
use prost::Message;

use super::{Bench, Chunk, Outcome, PhaseError, pairs, score};
use crate::evaluate::PairFigures;
use crate::failpoint;

pub(super) fn run(
    bench: &mut Bench,
    chunk: &Chunk,
    work: &v1::EvaluateReward,
) -> Result<Outcome, PhaseError> {
    let judge = bench.judge(&work.reward)?;
    let pairs = pairs::encode(bench, &judge, &work.pairs, chunk.span)?;

    failpoint::hit("phase.evaluate");
    bench.progress(0, pairs.len(), "pairs");
    // Lengths alone, as a baseline: the longer answer wins.
    let mut by_length = PairFigures::default();
    let mut sequences = Vec::with_capacity(2 * pairs.len());
    for pair in &pairs {
        by_length.push(pair.chosen.answer().len() as f64, pair.rejected.answer().len() as f64);
        sequences.extend([pair.chosen.ids.clone(), pair.rejected.ids.clone()]);
    }
    let scores = score::scores(bench, &judge, &sequences)?;

    let mut figures = PairFigures::default();
    let mut scored = Vec::with_capacity(pairs.len());
    for (pair, scores) in pairs.iter().zip(scores.chunks_exact(2)) {
        let (chosen, rejected) = (scores[0], scores[1]);
        if !(chosen.is_finite() && rejected.is_finite()) {
            return Err(PhaseError::NonFinite { what: "the reward", row: pair.row });
        }
        figures.push(chosen, rejected);
        scored.push(v1::PairScore { row_id: pair.row, chosen, rejected });
    }
    let mut moments = figures.moments();
    let length_accuracy = by_length.moments().into_iter().find(|moments| moments.name == "accuracy");
    moments
        .extend(length_accuracy.map(|moments| v1::Moments { name: "length_accuracy".to_owned(), ..moments }));
    let scored = v1::PairScores { phase: chunk.phase.clone(), chunk: chunk.number, pairs: scored };
    Ok(Outcome { bytes: scored.encode_to_vec(), moments, calibration: Some(figures.calibration()) })
}
