use foil_proto::v1;

use super::super::SpecError;
use super::super::check::{Range, real};
use super::super::oneof::Block;
use super::{MethodSettings, Needs, Reduction};

/// RRHF: likelihoods in the order of rewards, and fine-tuning on the best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rrhf {
    /// Weight of the ranking term, at least 0.
    pub ranking_weight: f64,
    /// How the best completion's negative log-likelihood is taken over its tokens.
    pub nll: Reduction,
}

impl MethodSettings for Rrhf {
    fn needs(&self) -> Needs {
        Needs { reference: None, old_log_probs: false, comparison: true }
    }

    fn max_completions(&self, samples: u32) -> u32 {
        samples
    }
}

impl Block for Rrhf {
    type Wire = v1::RrhfSpec;

    fn parse(at: &str, wire: &Self::Wire) -> Result<Self, SpecError> {
        Ok(Self {
            ranking_weight: real(at, "ranking_weight", wire.ranking_weight, 1.0, Range::NonNegative)?,
            nll: Reduction::parse(at, "nll", &wire.nll)?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        v1::RrhfSpec { ranking_weight: Some(self.ranking_weight), nll: self.nll.to_string() }
    }
}
