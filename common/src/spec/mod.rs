//! The job file: types whose defaults are filled in and whose ranges are checked.
//!
//! `TryFrom` parses the wire's [`v1::JobSpec`] into a [`Job`]; its errors name the field, the value found and
//! the expected one. [`From`] returns the resolved wire form. Only [`file`] reads files.

mod bounds;
mod check;
mod choice;
mod contract;
mod data;
mod differences;
mod duration;
mod error;
pub mod file;
#[cfg(test)]
mod generated;
mod json_schema;
mod lora;
mod method;
mod name;
mod oneof;
mod optimize;
mod policy_step;
mod preset;
mod reference;
mod resources;
mod reward_loss;
mod sampling;
mod scheduling;
mod schema;
mod source_lists;
mod sources;
mod steps;
mod synonyms;
#[cfg(test)]
mod tests;
mod text;
mod trackers;

pub use contract::preload;
pub use data::{Data, Deduplication, EvaluationData, Generator, GeneratorName, GoldPreferences, Limits};
pub use differences::{Difference, differences};
pub use duration::{duration_text, parse_duration};
pub use error::SpecError;
pub use json_schema::json_schema;
pub use lora::{Lora, LoraTarget};
pub use method::*;
pub use name::JobName;
pub use optimize::{Decay, OnNonfinite, Optimizer, Schedule, ScheduleKind};
pub use policy_step::PolicyStep;
pub use preset::Preset;
pub use reference::{InputRef, ModelRef};
pub use resources::{
    BestMetric, Checkpoints, Controls, DeviceKind, Evaluation, Generation, Gold, Precision, Resources,
    Sharding,
};
pub use reward_loss::*;
pub use sampling::Sampling;
pub use scheduling::{Labels, Priority, Scheduling, without_scheduling};
pub use source_lists::in_lists;
pub use sources::{Bounds, DataSource, RowFilter, SourceSet, column_advice};
pub use steps::{Normalization, Refresh, RewardStart, RewardStep, SaveDtype, SftStep, rows_per_step};
pub use text::{Bos, Side, Template, Text};
pub use trackers::{ReportTo, Tracker, Trackers};

use check::count;
use choice::choices;
use foil_proto::v1;

/// A complete job with all fields in range: the parsed counterpart of `v1::JobSpec`.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    pub name: JobName,
    pub preset: Option<Preset>,
    /// Seed of all randomness.
    pub seed: u32,
    /// At least 1.
    pub rounds: u32,
    pub policy: Policy,
    pub reward: Reward,
    pub text: Text,
    pub data: Data,
    pub sampling: Sampling,
    pub generation: Generation,
    pub sft_step: SftStep,
    pub reward_step: RewardStep,
    pub policy_step: PolicyStep,
    pub evaluation: Evaluation,
    pub resources: Resources,
    pub controls: Controls,
    pub scheduling: Scheduling,
    pub trackers: Trackers,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub model: ModelRef,
    pub init: Init,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reward {
    /// `None` for the policy after SFT, with a fresh scalar head.
    pub model: Option<ModelRef>,
}

choices! {
    /// Initial weights of the policy.
    Init:
    /// The weights in the model directory.
    #[default]
    Weights = "weights",
    /// Random weights from the seed.
    Random = "random",
}

impl Job {
    /// Whether SFT precedes round 1.
    pub fn has_sft(&self) -> bool {
        self.data.generator.is_some() || !self.data.sft.is_empty()
    }

    /// Whether the reward model is trained in `round` (from 1).
    pub fn trains_reward(&self, round: u32) -> bool {
        round == 1 || self.reward_step.refresh == Refresh::EveryRound
    }

    /// Refuses a job that still names local paths, which only a client can read.
    pub fn require_uploaded(&self) -> Result<(), SpecError> {
        let models =
            [("policy.model", Some(&self.policy.model)), ("reward.model", self.reward.model.as_ref())];
        let paths = models.into_iter().filter_map(|(field, model)| match model {
            Some(ModelRef::Path(path)) => Some((field, path)),
            _ => None,
        });
        let data = self.data.inputs().into_iter().filter_map(|(field, input)| match input {
            InputRef::Path(path) | InputRef::Url(path) => Some((field, path)),
            InputRef::Input { .. } => None,
        });
        match paths.chain(data).next() {
            None => Ok(()),
            Some((field, path)) => Err(SpecError::field(field, path, "an uploaded input")
                .advice("submit the job with `foil submit` or `foil run`, which upload local files")),
        }
    }

    /// Warnings about valid settings that are probably mistakes.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.foreign_to_control();
        warnings.extend(self.large_learning_rates());
        warnings.extend(self.reward_step.loss.warning().map(str::to_owned));
        if self.evaluation.metric_for_best_model == BestMetric::RewardMean
            && self.reward_step.refresh == Refresh::EveryRound
        {
            warnings.push(
                "evaluation.metric_for_best_model: reward_mean compares rewards of different reward models, whose offsets and scales are \
                 arbitrary; reward_gain, the default, measures each from the start policy"
                    .to_owned(),
            );
        }
        if self.policy_step.method.needs().old_log_probs && !self.sampling.is_plain() {
            let method = self.policy_step.method.name();
            warnings.push(format!(
                "policy_step.method: {method} assumes completions drawn from the policy's own distribution, which sampling \
                 changes; temperature 1 without filters and penalties leaves it as it is"
            ));
        }
        if self.sampling.is_greedy() && self.policy_step.samples > 1 {
            warnings.push(format!(
                "sampling: greedy answers to a prompt are all the same, so that all {} of policy_step.samples are one",
                self.policy_step.samples
            ));
        }
        warnings
    }

    /// Learning rates with which AdamW trains no model: each of its steps changes a weight by about the rate.
    fn large_learning_rates(&self) -> Vec<String> {
        const LARGE: f64 = 0.02;
        let policy = self.policy_step.learning_rate.iter().copied().fold(0.0, f64::max);
        let rates = [
            ("sft_step", self.sft_step.learning_rate),
            ("reward_step", self.reward_step.learning_rate),
            ("policy_step", policy),
        ];
        let large = rates.into_iter().filter(|(_, rate)| *rate > LARGE);
        let warning = |(step, rate)| {
            format!(
                "{step}.learning_rate: {rate} moves every weight by about as much in each step, and training probably diverges; \
                 usual rates are 1e-6 to 1e-3"
            )
        };
        large.map(warning).collect()
    }

    /// Fields whose values make the job a different experiment from the control it is named after.
    fn foreign_to_control(&self) -> Vec<String> {
        let Some(preset) = self.preset.filter(|preset| preset.is_control()) else { return Vec::new() };
        let resolved = serde_json::to_value(v1::JobSpec::from(self)).unwrap_or_default();
        let foreign = preset::contradictions(preset, &resolved).into_iter();
        let warning = |preset::Contradiction { path, found, expected }| {
            format!(
                "{path}: {found}, where the control {preset} has {expected}: its figures are not that control's"
            )
        };
        foreign.map(warning).collect()
    }

    /// Checks across fields.
    fn cross_check(&self) -> Result<(), SpecError> {
        if self.policy.init == Init::Random && !self.has_sft() {
            return Err(SpecError::missing("data.sft")
                .advice("policy.init: random starts from noise; give demonstrations in data.sft"));
        }
        if self.sampling.max_new_tokens >= self.text.max_length {
            let limit = format!("less than text.max_length ({})", self.text.max_length);
            return Err(SpecError::field("sampling.max_new_tokens", self.sampling.max_new_tokens, &limit)
                .advice("leave room for the prompt"));
        }
        if self.evaluation.sampling.max_new_tokens >= self.text.max_length {
            let found = self.evaluation.sampling.max_new_tokens;
            let limit = format!("less than text.max_length ({})", self.text.max_length);
            return Err(SpecError::field("evaluation.sampling.max_new_tokens", found, &limit));
        }
        if self.sampling.is_greedy() {
            let (at, found, expected) = match self.sampling.temperature {
                0.0 => ("sampling.temperature", 0, "a number above 0"),
                _ => ("sampling.top_k", 1, "0, or at least 2"),
            };
            let fault = |field, needs: &str| {
                Err(SpecError::field(at, found, expected).advice(&format!(
                    "at {found} all samples of a prompt are the same, and {field} needs {needs}"
                )))
            };
            if self.policy_step.method.needs().comparison {
                return fault("policy_step.method", "completions that differ");
            }
            if self.data.gold_preferences.is_some() {
                return fault("data.gold_preferences", "two completions that differ");
            }
        }
        if self.data.gold_preferences.is_some() && self.evaluation.gold == Gold::None {
            return Err(SpecError::missing("evaluation.gold")
                .advice("data.gold_preferences are labeled by it; set evaluation.gold: letters"));
        }
        if self.evaluation.metric_for_best_model == BestMetric::GoldMean && self.evaluation.gold == Gold::None
        {
            return Err(SpecError::field(
                "evaluation.metric_for_best_model",
                "gold_mean",
                "reward_gain, reward_mean or reward_accuracy",
            )
            .advice("gold_mean needs a gold reward (evaluation.gold)"));
        }
        self.data.cross_check(self.reward_step.apo_weight, self.reward_step.human_weight)
    }
}

impl TryFrom<v1::JobSpec> for Job {
    type Error = SpecError;

    fn try_from(wire: v1::JobSpec) -> Result<Self, SpecError> {
        bounds::check(&wire)?;
        let wire = preset::apply(wire)?;
        let scheduling = Scheduling::parse(&wire)?;
        let policy = wire.policy.unwrap_or_default();
        if policy.model.is_empty() {
            return Err(SpecError::missing("policy.model")
                .advice("give a Hugging Face model directory: config.json, safetensors, tokenizer.json"));
        }
        let reward_model = wire.reward.unwrap_or_default().model;
        let sampling = Sampling::parse("sampling", &wire.sampling.unwrap_or_default(), &Sampling::default())?;
        let evaluation = Evaluation::parse(wire.evaluation.unwrap_or_default(), &sampling)?;
        let job = Job {
            name: JobName::parse(&wire.name)?,
            preset: Preset::parse_optional(&wire.preset)?,
            seed: wire.seed.unwrap_or(0),
            rounds: count("", "rounds", wire.rounds, 3, 1)?,
            policy: Policy {
                model: ModelRef::parse("policy", "model", &policy.model)?,
                init: Init::parse("policy", "init", &policy.init)?,
            },
            reward: Reward {
                model: match reward_model.as_str() {
                    "" => None,
                    path => Some(ModelRef::parse("reward", "model", path)?),
                },
            },
            text: Text::parse(wire.text.unwrap_or_default())?,
            data: Data::parse(wire.data.unwrap_or_default())?,
            generation: Generation::parse(&wire.generation.unwrap_or_default())?,
            sft_step: SftStep::parse(wire.sft_step.unwrap_or_default())?,
            reward_step: RewardStep::parse(wire.reward_step.unwrap_or_default())?,
            policy_step: PolicyStep::parse(wire.policy_step.unwrap_or_default())?,
            resources: Resources::parse(&wire.resources.unwrap_or_default())?,
            controls: Controls::from(wire.controls.unwrap_or_default()),
            trackers: Trackers::parse(wire.trackers.unwrap_or_default())?,
            evaluation,
            sampling,
            scheduling,
        };
        job.cross_check()?;
        Ok(job)
    }
}

impl From<&Job> for v1::JobSpec {
    fn from(job: &Job) -> Self {
        Self {
            name: job.name.to_string(),
            preset: job.preset.map(|preset| preset.to_string()).unwrap_or_default(),
            seed: Some(job.seed),
            rounds: Some(job.rounds),
            policy: Some(v1::PolicySpec {
                model: job.policy.model.to_string(),
                init: job.policy.init.to_string(),
            }),
            reward: Some(v1::RewardSpec {
                model: job.reward.model.as_ref().map(ToString::to_string).unwrap_or_default(),
            }),
            text: Some((&job.text).into()),
            data: Some((&job.data).into()),
            sampling: Some((&job.sampling).into()),
            generation: Some((&job.generation).into()),
            sft_step: Some((&job.sft_step).into()),
            reward_step: Some((&job.reward_step).into()),
            policy_step: Some((&job.policy_step).into()),
            evaluation: Some((&job.evaluation).into()),
            resources: Some((&job.resources).into()),
            controls: Some((&job.controls).into()),
            priority: Some(job.scheduling.priority.value()),
            labels: job.scheduling.labels.clone().into(),
            retries: Some(job.scheduling.retries),
            timeout: duration::text(job.scheduling.timeout),
            ttl_after_finished: duration::text(job.scheduling.ttl_after_finished),
            trackers: Some((&job.trackers).into()),
        }
    }
}
