use foil_proto::v1;

use super::super::SpecError;
use super::super::check::{Range, real};
use super::super::oneof::Block;
use super::RewardLossSettings;

/// The Bradley-Terry loss, Eq. 15 of the paper: −log σ(r_w − r_l).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BradleyTerry {
    /// ε, the probability that a pair's preference is the wrong way round; 0 ≤ ε < ½.
    pub label_smoothing: f64,
    /// Weight of (r_w + r_l)², which keeps scores near 0 (pairs alone leave them at any offset); at least 0.
    pub center_rewards_coefficient: f64,
    /// Whether r_w − r_l is trained to exceed the margins that preference rows state.
    pub margin: bool,
}

impl RewardLossSettings for BradleyTerry {
    fn human_pairs(&self) -> Option<BradleyTerry> {
        Some(*self)
    }
}

impl Block for BradleyTerry {
    type Wire = v1::BradleyTerrySpec;

    fn parse(at: &str, wire: &Self::Wire) -> Result<Self, SpecError> {
        let non_negative = |field, value| real(at, field, value, 0.0, Range::NonNegative);
        Ok(Self {
            label_smoothing: real(at, "label_smoothing", wire.label_smoothing, 0.0, Range::BelowHalf)?,
            center_rewards_coefficient: non_negative(
                "center_rewards_coefficient",
                wire.center_rewards_coefficient,
            )?,
            margin: wire.margin,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        v1::BradleyTerrySpec {
            label_smoothing: Some(self.label_smoothing),
            center_rewards_coefficient: Some(self.center_rewards_coefficient),
            margin: self.margin,
        }
    }
}
