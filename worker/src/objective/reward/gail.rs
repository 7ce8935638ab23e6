//! A logistic discriminator between golden responses and completions.

use foil_common::spec::Gail;
use tch::Tensor;

use super::super::accumulation_kind;
use super::{RewardObjective, ScoredPairs};

impl RewardObjective for Gail {
    /// Human pairs have weight 0: a job with any other weight is rejected.
    fn loss(&self, golden: &ScoredPairs<'_>, _human: &ScoredPairs<'_>, _all: &ScoredPairs<'_>) -> Tensor {
        gail(golden)
    }
}

/// A logistic discriminator's loss Σ_i w_i · [−log σ(g_i) − log(1 − σ(s_i))] between golden responses
/// (`chosen`) and completions (`rejected`), as in GAIL (Ho and Ermon, arXiv 1606.03476). Margins are ignored.
///
/// σ(r) is the probability that a response is golden.
pub fn gail(pairs: &ScoredPairs<'_>) -> Tensor {
    let kind = accumulation_kind(pairs.chosen.kind());
    let (golden, completion) = (pairs.chosen.to_kind(kind), pairs.rejected.to_kind(kind));
    // log(1 − σ(s)) = log σ(−s)
    let losses = -(golden.log_sigmoid() + (-completion).log_sigmoid());
    (losses * pairs.weights.to_kind(kind)).sum(kind)
}
