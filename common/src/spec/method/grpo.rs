use foil_proto::v1;

use super::super::SpecError;
use super::super::check::{Range, real};
use super::super::oneof::Block;
use super::{KlPenalty, MethodSettings, Needs};

/// Group relative policy optimization: advantages from the group's mean and deviation, probability ratios token by token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grpo {
    /// Ratios are clipped to 1 ± ε; above 0, at most 1.
    pub epsilon: f64,
    /// Added to the loss.
    pub kl: Option<KlPenalty>,
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
            epsilon: real(at, "epsilon", wire.epsilon, 0.2, Range::Share)?,
            kl: KlPenalty::parse(at, wire.beta, &wire.reference)?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        let (beta, reference) = KlPenalty::to_wire(self.kl);
        v1::GrpoSpec { epsilon: Some(self.epsilon), beta, reference }
    }
}
