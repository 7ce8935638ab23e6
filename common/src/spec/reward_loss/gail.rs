use foil_proto::v1;

use super::super::SpecError;
use super::super::oneof::Block;
use super::{BradleyTerry, RewardLossSettings};

/// A logistic discriminator, −log σ(r_gold) − log(1 − σ(r_sample)), without human pairs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gail;

impl RewardLossSettings for Gail {
    fn human_pairs(&self) -> Option<BradleyTerry> {
        None
    }
}

impl Block for Gail {
    type Wire = v1::GailSpec;

    fn parse(_at: &str, _wire: &Self::Wire) -> Result<Self, SpecError> {
        Ok(Self)
    }

    fn to_wire(&self) -> Self::Wire {
        v1::GailSpec {}
    }
}
