//! Losses of the reward model. Each file defines the loss of golden responses against completions, and that
//! of human pairs.
//!
//! # Adding a loss
//! 1. Its settings: a message and a member of `RewardStepSpec.loss` in `proto/foil/v1/jobs.proto`.
//! 2. Their defaults and ranges: a file and a line in `common/src/spec/reward_loss/`; a setting with a few
//!    names also has a line in `common/src/spec/json_schema`.
//! 3. The loss: a file here, and the one arm of [`objective_of`].
//!
//! Its oracle belongs in `scripts/fixtures/objectives.py` and `worker/src/objective/oracles.rs`.

mod bradley_terry;
mod gail;
#[cfg(test)]
mod tests;
mod wgan;

pub use bradley_terry::bradley_terry;
pub(super) use bradley_terry::smoothed_nll;
pub use gail::gail;
pub use wgan::wgan;

use foil_common::spec::RewardLoss;
use tch::Tensor;

/// Scores of some pairs, and the pairs' weights. All tensors are `[pairs]`.
#[derive(Debug, Clone, Copy)]
pub struct ScoredPairs<'a> {
    pub chosen: &'a Tensor,
    pub rejected: &'a Tensor,
    /// m, the margin by which the chosen response's score should exceed the other's; `None` means 0.
    pub margins: Option<&'a Tensor>,
    /// w, the weights in the loss.
    pub weights: &'a Tensor,
}

/// A loss of the reward model.
pub trait RewardObjective {
    /// The loss of golden responses (chosen) against completions (rejected), and of human pairs: a scalar, Σ
    /// over pairs of w·ℓ, in fp32 (fp64 for fp64 scores). A pair has weight 0 in the set that it does not
    /// belong to; `all` has the weights of both.
    fn loss(&self, golden: &ScoredPairs<'_>, human: &ScoredPairs<'_>, all: &ScoredPairs<'_>) -> Tensor;
}

/// The objective of a loss's settings.
pub fn objective_of(loss: &RewardLoss) -> &dyn RewardObjective {
    match loss {
        RewardLoss::BradleyTerry(settings) => settings,
        RewardLoss::Wgan(settings) => settings,
        RewardLoss::Gail(settings) => settings,
    }
}

/// The loss of pairs from both sets. `golden` is `[pairs]`, 1 for a golden response against a completion, 0
/// for a human pair.
pub fn pair_loss(objective: &dyn RewardObjective, pairs: &ScoredPairs<'_>, golden: &Tensor) -> Tensor {
    let (golden, human) = (pairs.weights * golden, pairs.weights * (1.0 - golden));
    let with = |weights| ScoredPairs { weights, ..*pairs };
    objective.loss(&with(&golden), &with(&human), pairs)
}
