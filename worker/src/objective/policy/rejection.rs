//! Rejection sampling: supervised fine-tuning on the best of n completions.

use foil_common::spec::Rejection;
use tch::Tensor;

use super::super::accumulation_kind;
use super::super::metrics::{Metric, MetricSums};
use super::super::pairing::is_blank;
use super::{Group, GroupLoss, LossOutput, PolicyObjective, ScoredCompletion, best};

impl PolicyObjective for Rejection {
    fn select(&self, completions: &[ScoredCompletion<'_>]) -> Vec<usize> {
        best(completions).into_iter().collect()
    }

    /// The negative log-likelihood, Σ over tokens: every token of the global batch counts the same.
    fn group_loss(&self, group: &Group<'_>) -> GroupLoss {
        let tokens: usize =
            group.selected.iter().map(|&completion| group.completions[completion].tokens).sum();
        let device = group.device;
        GroupLoss::new(tokens as f64, move |log_probs| {
            let log_probs = Tensor::cat(log_probs, 0);
            let loss = -log_probs.sum(accumulation_kind(log_probs.kind()));
            LossOutput { loss, metrics: MetricSums::from_scalars([], device) }
        })
    }

    fn metrics(&self) -> &'static [Metric] {
        &[]
    }
}

/// The completion with the highest score; its index. The first one wins a tie. A completion that is blank
/// (nothing but white space) or whose score is NaN never wins; `None` if no other is left.
///
/// Scores without a text, and texts without a score, are left out.
pub fn best_of(scores: &[f64], texts: &[impl AsRef<str>]) -> Option<usize> {
    let eligible = scores
        .iter()
        .copied()
        .zip(texts)
        .enumerate()
        .filter(|(_, (score, text))| !score.is_nan() && !is_blank(text.as_ref()));
    let mut winner: Option<(usize, f64)> = None;
    for (index, (score, _)) in eligible {
        if winner.is_none_or(|(_, best)| score > best) {
            winner = Some((index, score));
        }
    }
    winner.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::best_of;

    #[test]
    fn the_best_is_found_and_the_first_wins_a_tie() {
        let texts = ["a", "b", "c"];
        assert_eq!(best_of(&[0.0, 2.0, 1.0], &texts), Some(1));
        assert_eq!(best_of(&[1.0, 3.0, 3.0], &texts), Some(1));
    }

    #[test]
    fn blank_completions_and_nan_never_win() {
        assert_eq!(best_of(&[9.0, 8.0, f64::NAN, 1.0], &["", " \n", "c", "d"]), Some(3));
        assert_eq!(best_of(&[f64::NEG_INFINITY, f64::NAN], &["a", "b"]), Some(0));
        assert_eq!(best_of(&[1.0], &[" "]), None);
        assert_eq!(best_of(&[], &[] as &[&str]), None);
    }
}
