//! Memory estimates of a job: the sizes of its phases from its fields.

use anyhow::{Context, Result, anyhow};
use foil_common::memory::{Estimate, Estimator, ModelShape};
use foil_common::spec::{self, ModelRef, Sharding};

use foil_coordinator::plan::{Phase, Work};
use foil_coordinator::resolve;

/// Memory of a rank in each kind of phase of the job.
pub(super) struct Memory {
    pub(super) policy: ModelShape,
    pub(super) reward: ModelShape,
    pub(super) kinds: Vec<Kind>,
}

pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) estimate: Estimate,
    /// Activations of a training phase with the other setting of checkpointing.
    pub(super) other_activations: Option<u64>,
}

impl Memory {
    pub(super) fn of(job: &spec::Job, phases: &[Phase], policy: ModelShape, reward: ModelShape) -> Self {
        let estimator = Estimator::new(job, &policy, &reward);
        // With `fsdp`, models that are not trained may be in memory one at a time.
        let together = job.resources.sharding != Sharding::Fsdp;
        let kind = |name, estimate| Kind { name, estimate, other_activations: None };
        let checkpointing = job.resources.activation_checkpointing;
        let trained = |name, of: &dyn Fn(bool) -> Estimate| {
            let other_activations = Some(of(!checkpointing).activations);
            Kind { name, estimate: of(checkpointing), other_activations }
        };
        let has = |work: Work| phases.iter().any(|phase| phase.work == work);
        let mut kinds = vec![kind("generate", estimator.generate())];
        kinds.push(kind("score", estimator.score()));
        if has(Work::RefLogProbs) {
            kinds.push(kind("ref_log_probs", estimator.ref_log_probs(together)));
        }
        if has(Work::Sft) {
            kinds.push(trained("sft", &|checkpointing| estimator.sft(checkpointing)));
        }
        kinds.push(trained("reward epoch", &|checkpointing| estimator.reward_epoch(checkpointing)));
        kinds.push(trained("policy epoch", &|checkpointing| estimator.policy_epoch(checkpointing)));
        kinds.push(kind("evaluate", estimator.evaluate(together)));
        Self { kinds, policy, reward }
    }

    /// The memory of another job with the same models.
    pub(super) fn again(&self, job: &spec::Job, phases: &[Phase]) -> Self {
        Self::of(job, phases, self.policy.clone(), self.reward.clone())
    }
}

/// Shapes of the policy and of the reward model.
pub(super) fn shapes(job: &spec::Job) -> Result<(ModelShape, ModelShape)> {
    let policy = shape("policy.model", &job.policy.model)?;
    let reward = match &job.reward.model {
        Some(model) => shape("reward.model", model)?,
        None => policy.clone(),
    };
    Ok((policy, reward))
}

fn shape(field: &'static str, model: &ModelRef) -> Result<ModelShape> {
    let ModelRef::Path(dir) = model else {
        return Err(anyhow!(
            "{field}: {} is in a store; name its local directory to plan with it",
            model.name()
        ));
    };
    let config = resolve::local_config(field, dir)?;
    ModelShape::from_config(&config).with_context(|| format!("{field}: {dir}"))
}
