use foil_proto::v1;

use super::super::SpecError;
use super::super::oneof::Block;
use super::{MethodSettings, Needs};

/// Rejection sampling: supervised fine-tuning on the best of n.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rejection;

impl MethodSettings for Rejection {
    fn needs(&self) -> Needs {
        Needs { reference: None, old_log_probs: false, comparison: false }
    }

    fn max_completions(&self, _samples: u32) -> u32 {
        1
    }
}

impl Block for Rejection {
    type Wire = v1::RejectionSpec;

    fn parse(_at: &str, _wire: &Self::Wire) -> Result<Self, SpecError> {
        Ok(Self)
    }

    fn to_wire(&self) -> Self::Wire {
        v1::RejectionSpec {}
    }
}
