//! The encoders of a job's models.

use foil_common::spec;
use foil_common::text::Encoder;

use super::compatibility::{POLICY, REWARD};
use super::{Models, ResolveError};

pub(super) struct Encoders {
    pub(super) policy: Encoder,
    /// The reward model's encoder, if that model has its own directory.
    pub(super) own_reward: Option<Encoder>,
}

impl Encoders {
    pub(super) fn load(job: &spec::Job, models: &Models<'_>) -> Result<Self, ResolveError> {
        let load = |field, files| {
            Encoder::new(files, &job.text).map_err(|fault| ResolveError::Text { field, fault })
        };
        Ok(Self {
            policy: load(POLICY, models.policy.0)?,
            own_reward: models.reward.map(|(files, _)| load(REWARD, files)).transpose()?,
        })
    }

    pub(super) fn reward(&self) -> &Encoder {
        self.own_reward.as_ref().unwrap_or(&self.policy)
    }
}
