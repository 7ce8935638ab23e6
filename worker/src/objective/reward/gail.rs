//! A logistic discriminator between golden answers and samples.

use foil_common::spec::Gail;
use tch::Tensor;

use super::super::accumulation_kind;
use super::{RewardObjective, ScoredPairs};

impl RewardObjective for Gail {
    /// Human pairs weigh 0: a job refuses any other weight.
    fn loss(&self, golden: &ScoredPairs<'_>, _human: &ScoredPairs<'_>, _all: &ScoredPairs<'_>) -> Tensor {
        gail(golden)
    }
}

/// A logistic discriminator's loss Σ_i w_i · [−log σ(g_i) − log(1 − σ(s_i))] between golden answers (`chosen`) and samples
/// (`rejected`), as in GAIL (Ho and Ermon, arXiv 1606.03476); margins have no part in it.
///
/// Each score stands for itself: σ(r) is the probability that the completion is golden.
pub fn gail(pairs: &ScoredPairs<'_>) -> Tensor {
    let kind = accumulation_kind(pairs.chosen.kind());
    let (golden, sampled) = (pairs.chosen.to_kind(kind), pairs.rejected.to_kind(kind));
    // log(1 − σ(s)) = log σ(−s)
    let losses = -(golden.log_sigmoid() + (-sampled).log_sigmoid());
    (losses * pairs.weights.to_kind(kind)).sum(kind)
}
