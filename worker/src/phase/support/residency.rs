//! Decides whether the models of a phase stay on the device together, although training leaves room for only
//! one.

use foil_common::memory::{Estimate, Estimator, ModelShape};

use crate::phase::{PhaseError, TaskContext};
use crate::task::{Artifact, MapWork};

impl TaskContext {
    /// Decides at the phase's first chunk. The models stay resident if the memory plan has room for all of
    /// them in addition to the largest part of the phase, so that later chunks find them loaded.
    pub(in crate::phase) fn decide_residency(&mut self, work: &MapWork) -> Result<(), PhaseError> {
        if self.keeps_masters() || self.together.is_some() {
            return Ok(());
        }
        let estimate = self.estimate_together(work)?;
        let together = estimate.is_some_and(|estimate| estimate.total() <= self.rank.memory);
        tracing::debug!(together, bytes = estimate.map(|estimate| estimate.total()), "residency decided");
        self.together = Some(together);
        Ok(())
    }

    /// The phase's memory with all its models; `None` if it has only one, or if shapes cannot be read.
    fn estimate_together(&mut self, work: &MapWork) -> Result<Option<Estimate>, PhaseError> {
        let (policy, reward) = match work {
            MapWork::EvaluatePolicy(work) => (Some(&work.policy), work.reward_model.as_ref()),
            MapWork::RefLogProbs(work) => (work.reference.as_ref().or(work.old_policy.as_ref()), None),
            MapWork::Generate(_) | MapWork::Score(_) | MapWork::EvaluateReward(_) => (None, None),
        };
        let Some(policy) = policy.map(|policy| self.shape(policy)).transpose()?.flatten() else {
            return Ok(None);
        };
        let reward = reward.map(|reward| self.shape(reward)).transpose()?.flatten();
        let reward = reward.unwrap_or_else(|| policy.clone());
        let estimator = Estimator::new(&self.job, &policy, &reward);
        Ok(Some(match work {
            MapWork::EvaluatePolicy(_) => estimator.evaluate(true),
            _ => estimator.ref_log_probs(true),
        }))
    }

    /// The shape of a model, read without its weights; `None` if its configuration is missing or invalid.
    pub(in crate::phase) fn shape(&mut self, model: &Artifact) -> Result<Option<ModelShape>, PhaseError> {
        let config = model.objects.iter().find(|object| object.path == "config.json");
        let Some(config) = config else { return Ok(None) };
        let config = self.cache.read(config)?;
        Ok(serde_json::from_slice(&config).ok().and_then(|config| ModelShape::from_config(&config).ok()))
    }
}
