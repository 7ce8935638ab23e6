//! Policy methods. Each file defines which completions its method reads, the loss of their log-probabilities,
//! and its metrics.
//!
//! # Adding a method
//! 1. Its settings: a message and a member of `PolicyStepSpec.method` in `proto/foil/v1/jobs.proto`.
//! 2. Their defaults and ranges, and what the method needs: a file and a line in `common/src/spec/method/`; a
//!    setting with a few names also has a line in `common/src/spec/json_schema`.
//! 3. Its loss: a file here, and the one arm of [`objective_of`].
//!
//! Its oracle belongs in `scripts/fixtures/objectives.py` and `worker/src/objective/oracles.rs`.

mod dpo;
mod grpo;
mod ipo;
mod preference;
mod rejection;
mod rloo;
mod rrhf;
mod simpo;
#[cfg(test)]
mod tests;

pub use foil_common::selection::{ScoredCompletion, best_of};
pub use preference::{dpo_loss, ipo_loss, log_ratio};
pub use rrhf::terms as rrhf_terms;
pub use simpo::{mean_log_prob, simpo_loss};

use foil_common::selection::comparable;
use foil_common::spec::{Method, Pairing};
use tch::{Device, Tensor};

use super::metrics::{Metric, MetricSums};
use super::pairing::{Preference, pairs};

/// Log-probabilities of one completion's tokens under policies that are not being trained. Empty if the
/// method does not need them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FixedLogProbs {
    /// log π_ref.
    pub reference: Vec<f32>,
    /// log π_old of the policy that generated the completion.
    pub old_policy: Vec<f32>,
}

/// A policy method: the loss of one prompt's completions.
pub trait PolicyObjective {
    /// Indices of the completions that the loss reads, in ascending order. Empty if there is nothing to learn
    /// from them. A completion without tokens is never read.
    fn select(&self, completions: &[ScoredCompletion<'_>]) -> Vec<usize>;

    /// The loss of the completions selected by [`PolicyObjective::select`], at least one.
    fn group_loss(&self, group: &Group<'_>) -> GroupLoss;

    /// The metrics of every [`LossOutput`], in order.
    fn metrics(&self) -> &'static [Metric];
}

/// The objective of a method's settings.
pub fn objective_of(method: &Method) -> &dyn PolicyObjective {
    match method {
        Method::Rejection(settings) => settings,
        Method::Rrhf(settings) => settings,
        Method::Dpo(settings) => settings,
        Method::Ipo(settings) => settings,
        Method::Grpo(settings) => settings,
        Method::Rloo(settings) => settings,
        Method::Simpo(settings) => settings,
    }
}

/// A prompt's completions and the values that stay constant while the policy is trained on them.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    pub completions: &'a [ScoredCompletion<'a>],
    /// Indices of the completions that the loss reads, in ascending order.
    pub selected: &'a [usize],
    /// Log-probabilities of the selected completions, one number per token if the method needs them.
    pub fixed: &'a [FixedLogProbs],
    /// Number of tokens of the longest completion that sampling allows.
    pub max_new_tokens: usize,
    /// The device of the policy.
    pub device: Device,
}

impl Group<'_> {
    fn rewards(&self) -> Vec<f64> {
        self.completions.iter().map(|completion| completion.reward).collect()
    }

    /// The values of the selected completions.
    fn of_selected(&self, values: &[f64]) -> Vec<f64> {
        self.selected.iter().map(|&completion| values[completion]).collect()
    }

    /// The position of a completion among the selected ones.
    fn position(&self, completion: usize) -> Option<usize> {
        self.selected.binary_search(&completion).ok()
    }

    /// Pairs of all completions, as positions among the selected ones.
    fn pairs(&self, pairing: Pairing) -> Vec<Preference> {
        let found = pairs_of(self.completions, pairing).into_iter();
        let local = found.filter_map(|Preference { chosen, rejected }| {
            Some(Preference { chosen: self.position(chosen)?, rejected: self.position(rejected)? })
        });
        local.collect()
    }

    /// The reference's log-probabilities, `[tokens]` for each selected completion.
    fn ref_log_probs(&self) -> Vec<Tensor> {
        self.fixed.iter().map(|fixed| self.tensor(&fixed.reference)).collect()
    }

    /// The old policy's log-probabilities, `[tokens]` for each selected completion.
    fn old_log_probs(&self) -> Vec<Tensor> {
        self.fixed.iter().map(|fixed| self.tensor(&fixed.old_policy)).collect()
    }

    fn tensor(&self, log_probs: &[f32]) -> Tensor {
        Tensor::from_slice(log_probs).to_device(self.device)
    }
}

/// The loss of one group, as a function of the policy's log-probabilities.
pub struct GroupLoss {
    weight: f64,
    loss: Box<LossFn>,
}

type LossFn = dyn Fn(&[Tensor]) -> LossOutput;

/// The loss of one group under the current policy.
#[derive(Debug)]
pub struct LossOutput {
    /// A sum over the group: a differentiable scalar in fp32 (fp64 for fp64 log-probabilities).
    pub loss: Tensor,
    pub metrics: MetricSums,
}

impl GroupLoss {
    /// `weight` is the group's share of the denominator of a global batch's loss: its pairs (dpo, ipo), its
    /// completions, including unread ones (grpo, rloo), its tokens (rejection), or 1 for a mean over prompts
    /// (rrhf). `loss` receives the policy's log-probabilities of the selected completions, `[tokens]` each.
    pub fn new(weight: f64, loss: impl Fn(&[Tensor]) -> LossOutput + 'static) -> Self {
        Self { weight, loss: Box::new(loss) }
    }

    pub fn weight(&self) -> f64 {
        self.weight
    }

    pub fn loss(&self, log_probs: &[Tensor]) -> LossOutput {
        (self.loss)(log_probs)
    }
}

impl std::fmt::Debug for GroupLoss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupLoss").field("weight", &self.weight).finish_non_exhaustive()
    }
}

/// Indices in ascending order without repetitions.
fn ascending(indices: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut indices: Vec<usize> = indices.collect();
    indices.sort_unstable();
    indices.dedup();
    indices
}

/// Completions with tokens, which policy gradients read.
fn with_tokens(completions: &[ScoredCompletion<'_>]) -> Vec<usize> {
    (0..completions.len()).filter(|&completion| completions[completion].tokens > 0).collect()
}

/// The best completion that is not blank.
fn best(completions: &[ScoredCompletion<'_>]) -> Option<usize> {
    let (rewards, texts) = comparable(completions);
    best_of(&rewards, &texts)
}

fn pairs_of(completions: &[ScoredCompletion<'_>], pairing: Pairing) -> Vec<Preference> {
    let (rewards, texts) = comparable(completions);
    pairs(&rewards, &texts, pairing)
}

/// The completions on both sides of the pairs.
fn members(pairs: &[Preference]) -> impl Iterator<Item = usize> {
    pairs.iter().flat_map(|pair| [pair.chosen, pair.rejected])
}
