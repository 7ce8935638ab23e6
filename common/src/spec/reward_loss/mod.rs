//! Losses of the reward model on golden answers against samples: one file each, with the loss's settings.

mod bradley_terry;
mod gail;
mod wgan;

pub use bradley_terry::BradleyTerry;
pub use gail::Gail;
pub use wgan::Wgan;

use foil_proto::v1;

use super::oneof::oneof;

oneof! {
    /// The loss of golden answers against samples.
    RewardLoss: dyn RewardLossSettings, v1::reward_step_spec::Loss in "reward_step", default BradleyTerry;
    BradleyTerry = "bradley_terry",
    Wgan = "wgan",
    Gail = "gail",
}

/// The settings of a loss that the training around it reads.
pub trait RewardLossSettings {
    /// The loss of human pairs; `None` if the reward model learns from golden answers and samples alone.
    fn human_pairs(&self) -> Option<BradleyTerry>;

    /// The bound that the scalar head's weights are clipped to after each step, above 0.
    fn weight_clip(&self) -> Option<f64> {
        None
    }

    /// A warning about settings that are valid but probably a mistake.
    fn warning(&self) -> Option<&'static str> {
        None
    }
}
