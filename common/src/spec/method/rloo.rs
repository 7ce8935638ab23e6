use foil_proto::v1;

use super::super::SpecError;
use super::super::check::{Range, path, real};
use super::super::oneof::Block;
use super::{KlPenalty, MethodSettings, Needs, ReferencePolicy};

/// REINFORCE with a leave-one-out baseline: one probability ratio per completion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rloo {
    /// Ratios are clipped to 1 ± ε; above 0, at most 1.
    pub epsilon: f64,
    /// Subtracted from the rewards.
    pub kl: Option<KlPenalty>,
}

impl MethodSettings for Rloo {
    fn needs(&self) -> Needs {
        Needs { reference: self.kl.map(|kl| kl.reference), old_log_probs: true, comparison: true }
    }

    fn max_completions(&self, samples: u32) -> u32 {
        samples
    }
}

impl Block for Rloo {
    type Wire = v1::RlooSpec;

    fn parse(at: &str, wire: &Self::Wire) -> Result<Self, SpecError> {
        let kl = KlPenalty::parse(at, wire.beta, &wire.reference)?;
        if kl.is_some_and(|kl| kl.reference == ReferencePolicy::RoundStart) {
            return Err(SpecError::field(&path(at, "reference"), "round_start", "initial").advice(
                "rloo subtracts from the rewards how far the policy that generated the completions diverges from the \
                 reference; that policy is the one the round started with, so the penalty would always be 0",
            ));
        }
        Ok(Self { epsilon: real(at, "epsilon", wire.epsilon, 0.2, Range::Share)?, kl })
    }

    fn to_wire(&self) -> Self::Wire {
        let (beta, reference) = KlPenalty::to_wire(self.kl);
        v1::RlooSpec { epsilon: Some(self.epsilon), beta, reference }
    }
}
