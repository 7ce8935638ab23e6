use foil_proto::v1;

use super::super::SpecError;
use super::super::check::{Range, real};
use super::super::choice::choices;
use super::super::oneof::Block;
use super::{KlPenalty, MethodSettings, Needs};

/// Group relative policy optimization: advantages from the group's mean and deviation, probability ratios
/// token by token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grpo {
    /// Ratios are clipped to 1 ± ε; above 0, at most 1.
    pub epsilon: f64,
    /// Added to the loss.
    pub kl: Option<KlPenalty>,
    pub loss_type: GrpoLossType,
    pub importance_sampling_level: ImportanceSampling,
    pub scale_rewards: ScaleRewards,
}

impl Default for Grpo {
    fn default() -> Self {
        Self {
            epsilon: 0.2,
            kl: None,
            loss_type: GrpoLossType::default(),
            importance_sampling_level: ImportanceSampling::default(),
            scale_rewards: ScaleRewards::default(),
        }
    }
}

choices! {
    /// The aggregation of a completion's tokens.
    GrpoLossType:
    /// Their mean.
    #[default]
    Grpo = "grpo",
    /// Their sum over the longest completion that sampling allows.
    DrGrpo = "dr_grpo",
}

choices! {
    /// The unit that a probability ratio belongs to.
    ImportanceSampling:
    #[default]
    Token = "token",
    /// The geometric mean over a completion's tokens.
    Sequence = "sequence",
}

choices! {
    /// The scale that advantages are divided by.
    ScaleRewards:
    /// The standard deviation of the group's rewards.
    #[default]
    Group = "group",
    None = "none",
}

impl MethodSettings for Grpo {
    fn needs(&self) -> Needs {
        Needs { reference: self.kl.map(|kl| kl.reference), old_log_probs: true, comparison: true }
    }

    fn max_completions(&self, samples: u32) -> u32 {
        samples
    }
}

impl Block for Grpo {
    type Wire = v1::GrpoSpec;

    fn parse(at: &str, wire: &Self::Wire) -> Result<Self, SpecError> {
        Ok(Self {
            epsilon: real(at, "epsilon", wire.epsilon, Self::default().epsilon, Range::Share)?,
            kl: KlPenalty::parse(at, wire.beta, &wire.reference)?,
            loss_type: GrpoLossType::parse(at, "loss_type", &wire.loss_type)?,
            importance_sampling_level: ImportanceSampling::parse(
                at,
                "importance_sampling_level",
                &wire.importance_sampling_level,
            )?,
            scale_rewards: ScaleRewards::parse(at, "scale_rewards", &wire.scale_rewards)?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        let (beta, reference) = KlPenalty::to_wire(self.kl);
        v1::GrpoSpec {
            epsilon: Some(self.epsilon),
            beta,
            reference,
            loss_type: self.loss_type.to_string(),
            importance_sampling_level: self.importance_sampling_level.to_string(),
            scale_rewards: self.scale_rewards.to_string(),
        }
    }
}
