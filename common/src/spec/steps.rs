use foil_proto::v1;

use super::SpecError;
use super::check::{Range, count, path, real, size, wire_size};
use super::choice::choices;
use super::lora::Lora;
use super::optimize::{Optimizer, Schedule};
use super::reward_loss::RewardLoss;

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
    /// The loss of golden answers against samples.
    pub loss: RewardLoss,
    /// w_APO: each golden-vs-sample pair weighs `apo_weight / samples`.
    pub apo_weight: f64,
    /// w_P; 0 if the loss has no human pairs.
    pub human_weight: f64,
    /// S, samples per golden prompt.
    pub samples: u32,
    pub start: RewardStart,
    pub refresh: Refresh,
    pub normalization: Normalization,
    pub learning_rate: f64,
    pub epochs: u32,
    /// Pairs per step over all ranks.
    pub batch_pairs: usize,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub save_dtype: SaveDtype,
    /// `None` trains all weights.
    pub lora: Option<Lora>,
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
    /// The rows over which Σ w·ℓ / Σ w is taken.
    Normalization:
    /// The step's batch over all ranks.
    #[default]
    Global = "global",
    /// Each micro-batch, as the paper's code does.
    Reference = "reference",
}

choices! {
    SaveDtype:
    #[default]
    Fp32 = "fp32",
    Bf16 = "bf16",
}

impl SaveDtype {
    /// Bytes of a number.
    pub const fn size(self) -> u64 {
        match self {
            Self::Fp32 => 4,
            Self::Bf16 => 2,
        }
    }
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
        let loss = RewardLoss::parse(wire.loss.as_ref())?;
        let human = if loss.human_pairs().is_some() { 1.0 } else { 0.0 };
        let step = Self {
            loss,
            apo_weight: real(at, "apo_weight", wire.apo_weight, 1.0, Range::NonNegative)?,
            human_weight: real(at, "human_weight", wire.human_weight, human, Range::NonNegative)?,
            samples: count(at, "samples", wire.samples, 4, 1)?,
            start: RewardStart::parse(at, "start", &wire.start)?,
            refresh: Refresh::parse(at, "refresh", &wire.refresh)?,
            normalization: Normalization::parse(at, "normalization", &wire.normalization)?,
            learning_rate: real(at, "learning_rate", wire.learning_rate, 1e-6, Range::Positive)?,
            epochs: count(at, "epochs", wire.epochs, 1, 1)?,
            batch_pairs: size(at, "batch_pairs", wire.batch_pairs, 64, 1)?,
            optimizer: Optimizer::parse(at, &wire.optimizer.unwrap_or_default())?,
            schedule: Schedule::parse(at, &wire.schedule.unwrap_or_default())?,
            save_dtype: SaveDtype::parse(at, "save_dtype", &wire.save_dtype)?,
            lora: wire.lora.as_ref().map(|lora| Lora::parse(at, lora)).transpose()?,
        };
        step.cross_check(at)?;
        Ok(step)
    }

    /// Checks that involve several fields.
    fn cross_check(&self, at: &str) -> Result<(), SpecError> {
        if self.apo_weight == 0.0 && self.human_weight == 0.0 {
            return Err(SpecError::field(
                &path(at, "human_weight"),
                0,
                "a number above 0 where apo_weight is 0",
            )
            .advice("the reward model needs pairs to learn from"));
        }
        if self.loss.human_pairs().is_none() && self.human_weight > 0.0 {
            let loss = self.loss.name();
            let expected = format!("nothing when the loss is {loss}");
            return Err(SpecError::field(&path(at, "human_weight"), self.human_weight, &expected)
                .advice(&format!("{loss} trains on golden answers against samples alone; leave it out")));
        }
        Ok(())
    }
}

/// Rows of one optimizer step, if `rows` rows hold `items` pairs or answers and a step should take about
/// `batch` of those: a golden answer and its samples are one row of several pairs. At least 1.
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
            loss: Some(step.loss.to_wire()),
            apo_weight: Some(step.apo_weight),
            human_weight: Some(step.human_weight),
            samples: Some(step.samples),
            start: step.start.to_string(),
            refresh: step.refresh.to_string(),
            normalization: step.normalization.to_string(),
            learning_rate: Some(step.learning_rate),
            epochs: Some(step.epochs),
            batch_pairs: Some(wire_size(step.batch_pairs)),
            optimizer: Some((&step.optimizer).into()),
            schedule: Some((&step.schedule).into()),
            save_dtype: step.save_dtype.to_string(),
            lora: step.lora.as_ref().map(Into::into),
        }
    }
}
