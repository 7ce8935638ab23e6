//! Policy methods: one file each, with the method's settings and its requirements on the phases before it.

mod dpo;
mod grpo;
mod ipo;
mod kl;
mod pairing;
mod rejection;
mod rloo;
mod rrhf;
mod simpo;

pub use dpo::Dpo;
pub use grpo::{Grpo, GrpoLossType, ImportanceSampling, ScaleRewards};
pub use ipo::Ipo;
pub use kl::KlPenalty;
pub use pairing::{Pairing, PairingName};
pub use rejection::Rejection;
pub use rloo::Rloo;
pub use rrhf::Rrhf;
pub use simpo::Simpo;

use foil_proto::v1;

use super::choice::choices;
use super::oneof::oneof;

oneof! {
    /// The method that trains the policy on its own scored completions.
    Method: dyn MethodSettings, v1::policy_step_spec::Method in "policy_step", default Rejection;
    Rejection = "rejection",
    Rrhf = "rrhf",
    Dpo = "dpo",
    Ipo = "ipo",
    Grpo = "grpo",
    Rloo = "rloo",
    Simpo = "simpo",
}

/// The needs of a method, which the phases before it provide for and plans estimate.
pub trait MethodSettings {
    fn needs(&self) -> Needs;

    /// The maximum number of a prompt's n completions that the loss reads; ties, and blank completions that
    /// would win, leave fewer.
    fn max_completions(&self, samples: u32) -> u32;
}

/// Inputs of a method in addition to completions and rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// π_ref, if the loss compares the policy with one.
    pub reference: Option<ReferencePolicy>,
    /// Log-probabilities of the policy that generated the completions, for probability ratios.
    pub old_log_probs: bool,
    /// At least two different completions per prompt.
    pub comparison: bool,
}

choices! {
    /// π_ref of a policy step.
    ReferencePolicy:
    /// The policy that the round began with.
    #[default]
    RoundStart = "round_start",
    /// The start policy, after its SFT.
    Initial = "initial",
}

choices! {
    /// The reduction of a completion's tokens to one number.
    Reduction:
    #[default]
    Sum = "sum",
    Mean = "mean",
}
