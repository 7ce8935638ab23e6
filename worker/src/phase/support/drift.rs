//! The drift gauge, where a policy reads answers that it drew itself.

use foil_common::drift;
use foil_proto::v1;

use crate::evaluate::Drift;
use crate::phase::{Figures, PhaseError};

/// Adds how far `read`, the policy's log-probabilities of a sample's tokens, are from those its sampler recorded. Samples of
/// a build that recorded none take no part.
///
/// # Errors
/// A sample that has not one recorded number, and one read, for each token.
pub(in crate::phase) fn gauge<'a>(
    figures: &mut Figures,
    answers: impl IntoIterator<Item = (&'a v1::Sample, &'a Vec<f32>)>,
) -> Result<(), PhaseError> {
    let mut found = Drift::default();
    for (sample, read) in answers.into_iter().filter(|(sample, _)| !sample.log_probs.is_empty()) {
        let counts = [sample.tokens.len(), sample.log_probs.len(), read.len()];
        if counts.iter().any(|count| *count != counts[0]) {
            return Err(PhaseError::Samples {
                object: "samples".to_owned(),
                what: format!(
                    "sample {} of row {} has {} tokens, {} recorded log-probabilities and {} read; expected as many of each",
                    sample.index, sample.prompt_id, counts[0], counts[1], counts[2]
                ),
            });
        }
        found.push(&sample.log_probs, read);
    }
    figures.merge(drift::MEAN, &found.distance);
    figures.merge(drift::KL, &found.divergence);
    Ok(())
}
