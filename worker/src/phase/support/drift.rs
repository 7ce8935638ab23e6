//! Measures the drift of a policy's log-probabilities of its own completions when they are recomputed.

use foil_common::drift::{KL, MEAN};

use super::records::Sample;
use crate::evaluate::Drift;
use crate::phase::{Metrics, PhaseError};

/// Adds the drift between the recorded and the recomputed log-probabilities of completions. Completions from
/// a build that recorded none are skipped.
///
/// # Errors
/// A completion without one recorded and one recomputed log-probability for each token.
pub(in crate::phase) fn measure<'a>(
    metrics: &mut Metrics,
    completions: impl IntoIterator<Item = (&'a Sample, &'a Vec<f32>)>,
) -> Result<(), PhaseError> {
    let mut drift = Drift::default();
    for (sample, recomputed) in completions.into_iter().filter(|(sample, _)| !sample.log_probs.is_empty()) {
        let counts = [sample.tokens.len(), sample.log_probs.len(), recomputed.len()];
        if counts.iter().any(|count| *count != counts[0]) {
            return Err(PhaseError::Record {
                object: "samples".to_owned(),
                reason: format!(
                    "sample {} of row {} has {} tokens, {} recorded log-probabilities and {} recomputed; expected one of each per token",
                    sample.index, sample.prompt_id, counts[0], counts[1], counts[2]
                ),
            });
        }
        drift.push(&sample.log_probs, recomputed);
    }
    metrics.merge(MEAN, &drift.distance);
    metrics.merge(KL, &drift.divergence);
    Ok(())
}
