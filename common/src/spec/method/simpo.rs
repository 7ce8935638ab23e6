use foil_proto::v1;

use super::super::SpecError;
use super::super::check::{Range, real};
use super::super::oneof::Block;
use super::{MethodSettings, Needs, Pairing};

/// Simple preference optimization on pairs of completions, without a reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Simpo {
    /// β, the scale of the implicit reward; above 0.
    pub beta: f64,
    /// γ, the target margin of implicit rewards; at least 0.
    pub gamma: f64,
    pub pairing: Pairing,
}

impl MethodSettings for Simpo {
    fn needs(&self) -> Needs {
        Needs { reference: None, old_log_probs: false, comparison: true }
    }

    fn max_completions(&self, samples: u32) -> u32 {
        self.pairing.max_completions(samples)
    }
}

impl Block for Simpo {
    type Wire = v1::SimpoSpec;

    fn parse(at: &str, wire: &Self::Wire) -> Result<Self, SpecError> {
        Ok(Self {
            beta: real(at, "beta", wire.beta, 2.0, Range::Positive)?,
            gamma: real(at, "gamma", wire.gamma, 1.0, Range::NonNegative)?,
            pairing: Pairing::parse(at, &wire.pairing, wire.pairs_k)?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        let (pairing, pairs_k) = self.pairing.to_wire();
        v1::SimpoSpec { beta: Some(self.beta), gamma: Some(self.gamma), pairing, pairs_k }
    }
}
