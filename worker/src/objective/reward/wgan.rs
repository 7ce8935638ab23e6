//! The Wasserstein loss.

use foil_common::spec::Wgan;
use tch::Tensor;

use super::super::accumulation_kind;
use super::bradley_terry::{bradley_terry, centering};
use super::{RewardObjective, ScoredPairs};

impl RewardObjective for Wgan {
    fn loss(&self, golden: &ScoredPairs<'_>, human: &ScoredPairs<'_>, _all: &ScoredPairs<'_>) -> Tensor {
        bradley_terry(&self.human, human) + wgan(golden) + centering(&self.human, golden)
    }
}

/// The Wasserstein objective Σ_i w_i · −(g_i − s_i) between golden responses (`chosen`) and completions
/// (`rejected`): the reward player's side of the game (Cheng et al., arXiv 2311.08045, Eq. 14). Margins are
/// ignored.
///
/// It has no lower bound: scores grow throughout training unless the head's weights are clipped.
pub fn wgan(pairs: &ScoredPairs<'_>) -> Tensor {
    let kind = accumulation_kind(pairs.chosen.kind());
    let difference = pairs.rejected.to_kind(kind) - pairs.chosen.to_kind(kind);
    (difference * pairs.weights.to_kind(kind)).sum(kind)
}
