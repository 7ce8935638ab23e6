use foil_proto::v1;

use super::SpecError;
use super::check::{count, size, wire_size};
use super::choice::choices;
use super::sampling::Sampling;

/// How generation is chunked and batched, which is part of what determines its exact results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// Prompts per chunk, the unit of leasing and of determinism.
    pub chunk_prompts: usize,
    /// Sequences decoded together.
    pub max_num_seqs: usize,
}

/// The evaluation after every round.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    pub gold: Gold,
    pub sampling: Sampling,
    /// Evaluation prompts on which KL(π ‖ π_ref) is measured; 0 measures none.
    pub kl_prompts: usize,
    pub metric_for_best_model: BestMetric,
}

/// The resources of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    pub ranks: u32,
    pub device: DeviceKind,
    /// Precision of matrix products; master weights stay fp32.
    pub precision: Precision,
    pub sharding: Sharding,
    /// CPU threads per rank, which are part of what determines a run's exact results.
    pub threads_per_rank: u32,
    /// A training step that takes longer counts as a hang.
    pub hang_timeout: std::time::Duration,
    pub checkpoints: Checkpoints,
    /// Recomputes activations in the backward pass instead of keeping them.
    pub activation_checkpointing: bool,
    /// Whether GPUs use deterministic kernels only; CPUs always do.
    pub deterministic: bool,
}

/// When training writes checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoints {
    /// Number of steps between checkpoints.
    pub steps: Option<u64>,
    /// Time between checkpoints.
    pub every: Option<std::time::Duration>,
    /// In addition to the latest checkpoints, one every this many steps is kept until its phase is done.
    pub keep_steps: Option<u64>,
}

/// Negative controls: with either of them on, an honest experiment must fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Controls {
    pub swap_preferences: bool,
    /// The policy is trained as if every reward had the opposite sign.
    pub select_worst: bool,
}

choices! {
    /// A reward measured exactly.
    Gold:
    #[default]
    None = "none",
    Letters = "letters",
}

choices! {
    /// The metric that determines the best round; higher is better.
    BestMetric:
    GoldMean = "gold_mean",
    /// The reward over the start policy's under the round's own reward model, in standard deviations of the latter.
    #[default]
    RewardGain = "reward_gain",
    /// The reward under the round's own reward model, whatever its offset and scale.
    RewardMean = "reward_mean",
    RewardAccuracy = "reward_accuracy",
}

choices! {
    DeviceKind:
    #[default]
    Cpu = "cpu",
    Cuda = "cuda",
}

choices! {
    Precision:
    #[default]
    Fp32 = "fp32",
    Bf16 = "bf16",
}

choices! {
    Sharding:
    /// Every rank holds the whole model.
    #[default]
    Ddp = "ddp",
    /// Each rank holds its part of the optimizer's state.
    Zero1 = "zero1",
    /// Each rank holds its part of the parameters, of their gradients and of the optimizer's state.
    Fsdp = "fsdp",
}

impl Generation {
    pub(crate) fn parse(wire: &v1::GenerationSpec) -> Result<Self, SpecError> {
        Ok(Self {
            chunk_prompts: size("generation", "chunk_prompts", wire.chunk_prompts, 32, 1)?,
            max_num_seqs: size("generation", "max_num_seqs", wire.max_num_seqs, 32, 1)?,
        })
    }
}

impl Evaluation {
    /// `sampling` is the job's; evaluation uses its length and stop texts unless it sets its own.
    pub(crate) fn parse(wire: v1::EvaluationSpec, sampling: &Sampling) -> Result<Self, SpecError> {
        let base = Sampling {
            max_new_tokens: sampling.max_new_tokens,
            stop: sampling.stop.clone(),
            ..Sampling::default()
        };
        let gold = Gold::parse("evaluation", "gold", &wire.gold)?;
        let metric_for_best_model = match (wire.metric_for_best_model.as_str(), gold) {
            ("", Gold::Letters) => BestMetric::GoldMean,
            (name, _) => BestMetric::parse("evaluation", "metric_for_best_model", name)?,
        };
        Ok(Self {
            gold,
            sampling: Sampling::parse("evaluation.sampling", &wire.sampling.unwrap_or_default(), &base)?,
            kl_prompts: size("evaluation", "kl_prompts", wire.kl_prompts, 64, 0)?,
            metric_for_best_model,
        })
    }
}

impl Resources {
    pub(crate) fn parse(wire: &v1::ResourceSpec) -> Result<Self, SpecError> {
        let at = "resources";
        let hang = count(at, "hang_timeout_seconds", wire.hang_timeout_seconds, 600, 1)?;
        Ok(Self {
            ranks: count(at, "ranks", wire.ranks, 1, 1)?,
            device: DeviceKind::parse(at, "device", &wire.device)?,
            precision: Precision::parse(at, "precision", &wire.precision)?,
            sharding: Sharding::parse(at, "sharding", &wire.sharding)?,
            threads_per_rank: count(at, "threads_per_rank", wire.threads_per_rank, 1, 1)?,
            hang_timeout: std::time::Duration::from_secs(hang.into()),
            checkpoints: Checkpoints::parse(at, wire)?,
            activation_checkpointing: wire.activation_checkpointing,
            deterministic: wire.deterministic.unwrap_or(true),
        })
    }
}

impl Checkpoints {
    fn parse(at: &str, wire: &v1::ResourceSpec) -> Result<Self, SpecError> {
        let steps = count(at, "checkpoint_steps", wire.checkpoint_steps, 0, 0)?;
        let seconds = count(at, "checkpoint_seconds", wire.checkpoint_seconds, 300, 0)?;
        let keep = count(at, "checkpoint_keep_steps", wire.checkpoint_keep_steps, 0, 0)?;
        Ok(Self {
            steps: (steps > 0).then_some(steps.into()),
            every: (seconds > 0).then_some(std::time::Duration::from_secs(seconds.into())),
            keep_steps: (keep > 0).then_some(keep.into()),
        })
    }
}

impl From<v1::ControlSpec> for Controls {
    fn from(wire: v1::ControlSpec) -> Self {
        Self { swap_preferences: wire.swap_preferences, select_worst: wire.select_worst }
    }
}

impl From<&Generation> for v1::GenerationSpec {
    fn from(generation: &Generation) -> Self {
        Self {
            chunk_prompts: Some(wire_size(generation.chunk_prompts)),
            max_num_seqs: Some(wire_size(generation.max_num_seqs)),
        }
    }
}

impl From<&Evaluation> for v1::EvaluationSpec {
    fn from(evaluation: &Evaluation) -> Self {
        Self {
            gold: evaluation.gold.to_string(),
            sampling: Some((&evaluation.sampling).into()),
            kl_prompts: Some(wire_size(evaluation.kl_prompts)),
            metric_for_best_model: evaluation.metric_for_best_model.to_string(),
        }
    }
}

/// Sizes come from the wire's 32 bits, so they fit.
fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl From<&Resources> for v1::ResourceSpec {
    fn from(resources: &Resources) -> Self {
        Self {
            ranks: Some(resources.ranks),
            device: resources.device.to_string(),
            precision: resources.precision.to_string(),
            sharding: resources.sharding.to_string(),
            threads_per_rank: Some(resources.threads_per_rank),
            hang_timeout_seconds: Some(narrow(resources.hang_timeout.as_secs())),
            activation_checkpointing: resources.activation_checkpointing,
            deterministic: Some(resources.deterministic),
            checkpoint_steps: Some(narrow(resources.checkpoints.steps.unwrap_or(0))),
            checkpoint_seconds: Some(narrow(resources.checkpoints.every.map_or(0, |every| every.as_secs()))),
            checkpoint_keep_steps: Some(narrow(resources.checkpoints.keep_steps.unwrap_or(0))),
        }
    }
}

impl From<&Controls> for v1::ControlSpec {
    fn from(controls: &Controls) -> Self {
        Self { swap_preferences: controls.swap_preferences, select_worst: controls.select_worst }
    }
}
