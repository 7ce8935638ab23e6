use foil_proto::v1;

use super::SpecError;
use super::check::{Range, count, path, real, size, wire_size};
use super::choice::choices;
use super::optimize::{Optimizer, Schedule};

/// Supervised fine-tuning before round 1.
#[derive(Debug, Clone, PartialEq)]
pub struct SftStep {
    pub learning_rate: f64,
    pub epochs: u32,
    /// Sequences per step over all ranks.
    pub batch_sequences: usize,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
}

/// The reward model's epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct RewardStep {
    pub loss: RewardLoss,
    /// w_APO: each golden-vs-sample pair weighs `apo_weight / samples`.
    pub apo_weight: f64,
    /// w_P.
    pub human_weight: f64,
    /// S, samples per golden prompt.
    pub samples: u32,
    pub start: RewardStart,
    pub refresh: Refresh,
    pub normalisation: Normalisation,
    pub learning_rate: f64,
    pub epochs: u32,
    /// Pairs per step over all ranks.
    pub batch_pairs: usize,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub save_dtype: SaveDtype,
}

/// The policy's epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyStep {
    pub method: Method,
    /// n, samples per prompt.
    pub samples: u32,
    /// Never empty; see [`PolicyStep::learning_rate_of`].
    pub learning_rate: Vec<f64>,
    pub epochs: u32,
    /// Sequences per step over all ranks.
    pub batch_sequences: usize,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub save_dtype: SaveDtype,
}

choices! {
    RewardLoss:
    /// Eq. 15 of the paper: −log σ(r_w − r_l).
    #[default]
    BradleyTerry = "bradley_terry",
}

choices! {
    /// Where each round's reward model starts.
    RewardStart:
    #[default]
    Base = "base",
    Previous = "previous",
}

choices! {
    /// When the reward model is trained.
    Refresh:
    #[default]
    EveryRound = "every_round",
    FirstRound = "first_round",
}

choices! {
    /// What Σ w·ℓ / Σ w runs over.
    Normalisation:
    /// The step's batch over all ranks.
    #[default]
    Global = "global",
    /// Each micro-batch, as the paper's code does.
    Reference = "reference",
}

choices! {
    Method:
    /// Supervised fine-tuning on the best of n.
    #[default]
    Rejection = "rejection",
}

choices! {
    SaveDtype:
    #[default]
    Fp32 = "fp32",
    Bf16 = "bf16",
}

impl SftStep {
    pub(crate) fn parse(wire: v1::SftStepSpec) -> Result<Self, SpecError> {
        let at = "sft_step";
        Ok(Self {
            learning_rate: real(at, "learning_rate", wire.learning_rate, 1e-5, Range::Positive)?,
            epochs: count(at, "epochs", wire.epochs, 1, 1)?,
            batch_sequences: size(at, "batch_sequences", wire.batch_sequences, 64, 1)?,
            optimizer: Optimizer::parse(at, &wire.optimizer.unwrap_or_default())?,
            schedule: Schedule::parse(at, &wire.schedule.unwrap_or_default())?,
        })
    }
}

impl RewardStep {
    pub(crate) fn parse(wire: v1::RewardStepSpec) -> Result<Self, SpecError> {
        let at = "reward_step";
        let step = Self {
            loss: RewardLoss::parse(at, "loss", &wire.loss)?,
            apo_weight: real(at, "apo_weight", wire.apo_weight, 1.0, Range::NonNegative)?,
            human_weight: real(at, "human_weight", wire.human_weight, 1.0, Range::NonNegative)?,
            samples: count(at, "samples", wire.samples, 4, 1)?,
            start: RewardStart::parse(at, "start", &wire.start)?,
            refresh: Refresh::parse(at, "refresh", &wire.refresh)?,
            normalisation: Normalisation::parse(at, "normalisation", &wire.normalisation)?,
            learning_rate: real(at, "learning_rate", wire.learning_rate, 1e-6, Range::Positive)?,
            epochs: count(at, "epochs", wire.epochs, 1, 1)?,
            batch_pairs: size(at, "batch_pairs", wire.batch_pairs, 64, 1)?,
            optimizer: Optimizer::parse(at, &wire.optimizer.unwrap_or_default())?,
            schedule: Schedule::parse(at, &wire.schedule.unwrap_or_default())?,
            save_dtype: SaveDtype::parse(at, "save_dtype", &wire.save_dtype)?,
        };
        if step.apo_weight == 0.0 && step.human_weight == 0.0 {
            return Err(SpecError::field(
                &path(at, "human_weight"),
                0,
                "a number above 0 where apo_weight is 0",
            )
            .advice("the reward model needs pairs to learn from"));
        }
        Ok(step)
    }
}

impl PolicyStep {
    pub(crate) fn parse(wire: v1::PolicyStepSpec) -> Result<Self, SpecError> {
        let at = "policy_step";
        let learning_rate = if wire.learning_rate.is_empty() {
            vec![5e-6, 2e-6, 9e-7]
        } else {
            for rate in &wire.learning_rate {
                real(at, "learning_rate", Some(*rate), 0.0, Range::Positive)?;
            }
            wire.learning_rate
        };
        Ok(Self {
            method: Method::parse(at, "method", &wire.method)?,
            samples: count(at, "samples", wire.samples, 4, 1)?,
            learning_rate,
            epochs: count(at, "epochs", wire.epochs, 1, 1)?,
            batch_sequences: size(at, "batch_sequences", wire.batch_sequences, 64, 1)?,
            optimizer: Optimizer::parse(at, &wire.optimizer.unwrap_or_default())?,
            schedule: Schedule::parse(at, &wire.schedule.unwrap_or_default())?,
            save_dtype: SaveDtype::parse(at, "save_dtype", &wire.save_dtype)?,
        })
    }

    /// The peak learning rate of `round` (from 1); the list's last holds for the rounds after.
    pub fn learning_rate_of(&self, round: u32) -> f64 {
        let index = (round.max(1) as usize - 1).min(self.learning_rate.len().saturating_sub(1));
        self.learning_rate.get(index).copied().unwrap_or_default()
    }
}

/// Rows of one optimizer step where `rows` rows hold `items` pairs or answers and a step is to take about `batch` of those:
/// a golden answer and its samples are one row of several pairs. At least 1.
pub fn rows_per_step(batch: usize, rows: usize, items: usize) -> usize {
    ((batch as f64 * rows as f64 / items.max(1) as f64).round() as usize).max(1)
}

impl From<&SftStep> for v1::SftStepSpec {
    fn from(step: &SftStep) -> Self {
        Self {
            learning_rate: Some(step.learning_rate),
            epochs: Some(step.epochs),
            batch_sequences: Some(wire_size(step.batch_sequences)),
            optimizer: Some((&step.optimizer).into()),
            schedule: Some((&step.schedule).into()),
        }
    }
}

impl From<&RewardStep> for v1::RewardStepSpec {
    fn from(step: &RewardStep) -> Self {
        Self {
            loss: step.loss.to_string(),
            apo_weight: Some(step.apo_weight),
            human_weight: Some(step.human_weight),
            samples: Some(step.samples),
            start: step.start.to_string(),
            refresh: step.refresh.to_string(),
            normalisation: step.normalisation.to_string(),
            learning_rate: Some(step.learning_rate),
            epochs: Some(step.epochs),
            batch_pairs: Some(wire_size(step.batch_pairs)),
            optimizer: Some((&step.optimizer).into()),
            schedule: Some((&step.schedule).into()),
            save_dtype: step.save_dtype.to_string(),
        }
    }
}

impl From<&PolicyStep> for v1::PolicyStepSpec {
    fn from(step: &PolicyStep) -> Self {
        Self {
            method: step.method.to_string(),
            samples: Some(step.samples),
            learning_rate: step.learning_rate.clone(),
            epochs: Some(step.epochs),
            batch_sequences: Some(wire_size(step.batch_sequences)),
            optimizer: Some((&step.optimizer).into()),
            schedule: Some((&step.schedule).into()),
            save_dtype: step.save_dtype.to_string(),
        }
    }
}
