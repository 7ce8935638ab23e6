//! Measures drift when a policy's log-probabilities of its own completions are recomputed.

use foil_common::drift::{KL, MEAN};
use foil_proto::v1;

use crate::evaluate::Drift;
use crate::phase::{Figures, PhaseError};

/// Adds the drift between the recorded log-probabilities of completions and the recomputed ones. Completions of a build that
/// recorded none are skipped.
///
/// # Errors
/// A completion without one recorded and one recomputed log-probability for each token.
pub(in crate::phase) fn measure<'a>(
    figures: &mut Figures,
    completions: impl IntoIterator<Item = (&'a v1::Sample, &'a Vec<f32>)>,
) -> Result<(), PhaseError> {
    let mut drift = Drift::default();
    for (sample, recomputed) in completions.into_iter().filter(|(sample, _)| !sample.log_probs.is_empty()) {
        let counts = [sample.tokens.len(), sample.log_probs.len(), recomputed.len()];
        if counts.iter().any(|count| *count != counts[0]) {
            return Err(PhaseError::Samples {
                object: "samples".to_owned(),
                what: format!(
                    "sample {} of row {} has {} tokens, {} recorded log-probabilities and {} recomputed; expected one of each per token",
                    sample.index, sample.prompt_id, counts[0], counts[1], counts[2]
                ),
            });
        }
        drift.push(&sample.log_probs, recomputed);
    }
    figures.merge(MEAN, &drift.distance);
    figures.merge(KL, &drift.divergence);
    Ok(())
}
