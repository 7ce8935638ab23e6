//! Rank responses to align with human feedback: answers ranked by reward, likelihoods ranked alike.

use foil_common::spec::Reduction;
use tch::Tensor;

use super::accumulation_kind;
use super::pairing::{Preference, sides};

/// How RRHF's two terms are put together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rrhf {
    /// Of the ranking term.
    pub ranking_weight: f64,
    /// Of the best answer's negative log-likelihood over its tokens.
    pub nll: Reduction,
}

/// The two terms of [`Rrhf::loss`], each a scalar.
#[derive(Debug)]
pub struct RrhfTerms {
    /// Before it is weighted.
    pub ranking: Tensor,
    pub nll: Tensor,
}

impl Rrhf {
    /// The loss of one prompt's answers (Yuan et al., arXiv 2304.05302, Eqs. 2-5): ranking_weight · Σ max(0, p_l − p_w) over
    /// `pairs` of a better answer w and a worse one l, with p the mean log-probability of an answer's tokens, plus
    /// the negative log-likelihood of answer `best` as a sum or a mean over its tokens. A scalar in fp32 (fp64 for fp64
    /// log-probabilities).
    ///
    /// `log_probs` holds each answer's log-probabilities token by token, `[tokens]`. An answer without tokens has p = 0,
    /// above all others, and belongs in no pair.
    ///
    /// # Panics
    /// An index beyond the answers.
    pub fn loss(&self, log_probs: &[Tensor], pairs: &[Preference], best: usize) -> Tensor {
        self.weigh(&self.terms(log_probs, pairs, best))
    }

    pub fn weigh(&self, terms: &RrhfTerms) -> Tensor {
        &terms.ranking * self.ranking_weight + &terms.nll
    }

    /// As [`Rrhf::loss`], term by term.
    ///
    /// # Panics
    /// An index beyond the answers.
    pub fn terms(&self, log_probs: &[Tensor], pairs: &[Preference], best: usize) -> RrhfTerms {
        let kind = accumulation_kind(log_probs[best].kind());
        let nll = match self.nll {
            Reduction::Sum => -log_probs[best].sum(kind),
            Reduction::Mean => -mean(&log_probs[best]),
        };
        let likelihood = Tensor::stack(&log_probs.iter().map(mean).collect::<Vec<_>>(), 0); // [answers]
        let (better, worse) = sides(&likelihood, pairs);
        RrhfTerms { ranking: (worse - better).relu().sum(kind), nll }
    }
}

/// Over an answer's tokens; 0 where it has none.
fn mean(log_probs: &Tensor) -> Tensor {
    log_probs.sum(accumulation_kind(log_probs.kind())) / log_probs.size()[0].max(1) as f64
}

#[cfg(test)]
mod tests {
    use foil_common::spec::{Pairing, Reduction};
    use tch::Tensor;

    use super::Rrhf;
    use crate::objective::pairing::pairs;

    #[test]
    fn likelihoods_in_the_order_of_rewards_cost_nothing_but_the_best_answers() {
        let answers = [&[-0.5_f64, -0.5][..], &[-1.0, -2.0, -3.0], &[-4.0]].map(Tensor::from_slice);
        let (texts, rrhf) = (["a", "b", "c"], Rrhf { ranking_weight: 10.0, nll: Reduction::Sum });
        let ordered = pairs(&[3.0, 2.0, 1.0], &texts, Pairing::All);
        assert_eq!(rrhf.loss(&answers, &ordered, 0).double_value(&[]), 1.0);
        // The other way round every pair pays its difference: .5 → 2, .5 → 4, 2 → 4.
        let reversed = pairs(&[1.0, 2.0, 3.0], &texts, Pairing::All);
        let loss = rrhf.loss(&answers, &reversed, 2).double_value(&[]);
        assert!((loss - (10.0 * (1.5 + 3.5 + 2.0) + 4.0)).abs() < 1e-12);
        let mean = Rrhf { nll: Reduction::Mean, ..rrhf }.loss(&answers, &[], 1).double_value(&[]);
        assert!((mean - 2.0).abs() < 1e-12);
    }
}
