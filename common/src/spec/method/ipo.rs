use foil_proto::v1;

use super::super::SpecError;
use super::super::check::{Range, real};
use super::super::oneof::Block;
use super::{MethodSettings, Needs, Pairing, Reduction, ReferencePolicy};

/// Identity preference optimization on pairs of completions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ipo {
    /// The paper's τ, above 0.
    pub beta: f64,
    pub pairing: Pairing,
    /// How a completion's log-ratio to the reference is taken over its tokens.
    pub log_ratio: Reduction,
    pub reference: ReferencePolicy,
}

impl MethodSettings for Ipo {
    fn needs(&self) -> Needs {
        Needs { reference: Some(self.reference), old_log_probs: false, comparison: true }
    }

    fn max_completions(&self, samples: u32) -> u32 {
        self.pairing.max_completions(samples)
    }
}

impl Block for Ipo {
    type Wire = v1::IpoSpec;

    fn parse(at: &str, wire: &Self::Wire) -> Result<Self, SpecError> {
        Ok(Self {
            beta: real(at, "beta", wire.beta, 0.1, Range::Positive)?,
            pairing: Pairing::parse(at, &wire.pairing, wire.pairs_k)?,
            log_ratio: match wire.log_ratio.as_str() {
                "" => Reduction::Mean,
                name => Reduction::parse(at, "log_ratio", name)?,
            },
            reference: ReferencePolicy::parse(at, "reference", &wire.reference)?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        let (pairing, pairs_k) = self.pairing.to_wire();
        v1::IpoSpec {
            beta: Some(self.beta),
            pairing,
            pairs_k,
            log_ratio: self.log_ratio.to_string(),
            reference: self.reference.to_string(),
        }
    }
}
