use foil_proto::v1;

use super::super::SpecError;
use super::super::check::{Range, path, real};
use super::super::oneof::Block;
use super::{BradleyTerry, RewardLossSettings};

/// The Wasserstein loss, Eq. 14 of the paper: −(r_gold − r_sample), without a lower bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wgan {
    /// Bound of the scalar head's weights, above 0; `None` leaves them unbounded.
    pub weight_clip: Option<f64>,
    /// The loss of human pairs.
    pub human: BradleyTerry,
}

impl RewardLossSettings for Wgan {
    fn human_pairs(&self) -> Option<BradleyTerry> {
        Some(self.human)
    }

    fn weight_clip(&self) -> Option<f64> {
        self.weight_clip
    }

    fn warning(&self) -> Option<&'static str> {
        self.weight_clip.is_none().then_some(
            "reward_step.wgan has no lower bound, so scores grow with every step; set reward_step.wgan.weight_clip, and keep \
             epochs few",
        )
    }
}

impl Block for Wgan {
    type Wire = v1::WganSpec;

    fn parse(at: &str, wire: &Self::Wire) -> Result<Self, SpecError> {
        let clip = wire.weight_clip.map(|clip| real(at, "weight_clip", Some(clip), 0.0, Range::Positive));
        Ok(Self {
            weight_clip: clip.transpose()?,
            human: BradleyTerry::parse(&path(at, "human"), &wire.human.unwrap_or_default())?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        v1::WganSpec { weight_clip: self.weight_clip, human: Some(self.human.to_wire()) }
    }
}
