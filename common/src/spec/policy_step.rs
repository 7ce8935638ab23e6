use foil_proto::v1;

use super::SpecError;
use super::check::{Range, count, path, real, size, wire_size};
use super::lora::Lora;
use super::method::Method;
use super::optimize::{Optimizer, Schedule};
use super::steps::SaveDtype;

const AT: &str = "policy_step";

/// The policy's epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyStep {
    pub method: Method,
    /// n, samples per prompt; at least 2 for all methods but rejection.
    pub samples: u32,
    /// Never empty; see [`PolicyStep::learning_rate_of`].
    pub learning_rate: Vec<f64>,
    pub epochs: u32,
    /// Sequences per step over all ranks, or the nearest number that whole prompts allow.
    pub batch_sequences: usize,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub save_dtype: SaveDtype,
    /// `None` trains all weights.
    pub lora: Option<Lora>,
}

impl PolicyStep {
    pub(crate) fn parse(wire: v1::PolicyStepSpec) -> Result<Self, SpecError> {
        let method = Method::parse(wire.method.as_ref())?;
        let samples = count(AT, "samples", wire.samples, 4, 1)?;
        if samples < 2 && method.needs().comparison {
            return Err(SpecError::field(&path(AT, "samples"), samples, "at least 2")
                .advice(&format!("{} compares a prompt's completions with each other", method.name())));
        }
        let learning_rate = if wire.learning_rate.is_empty() {
            vec![5e-6, 2e-6, 9e-7]
        } else {
            for rate in &wire.learning_rate {
                real(AT, "learning_rate", Some(*rate), 0.0, Range::Positive)?;
            }
            wire.learning_rate
        };
        Ok(Self {
            method,
            samples,
            learning_rate,
            epochs: count(AT, "epochs", wire.epochs, 1, 1)?,
            batch_sequences: size(AT, "batch_sequences", wire.batch_sequences, 64, 1)?,
            optimizer: Optimizer::parse(AT, &wire.optimizer.unwrap_or_default())?,
            schedule: Schedule::parse(AT, &wire.schedule.unwrap_or_default())?,
            save_dtype: SaveDtype::parse(AT, "save_dtype", &wire.save_dtype)?,
            lora: wire.lora.as_ref().map(|lora| Lora::parse(AT, lora)).transpose()?,
        })
    }

    /// The peak learning rate of `round` (from 1); the list's last holds for the rounds after.
    pub fn learning_rate_of(&self, round: u32) -> f64 {
        let index = (round.max(1) as usize - 1).min(self.learning_rate.len().saturating_sub(1));
        self.learning_rate.get(index).copied().unwrap_or_default()
    }
}

impl From<&PolicyStep> for v1::PolicyStepSpec {
    fn from(step: &PolicyStep) -> Self {
        Self {
            method: Some(step.method.to_wire()),
            samples: Some(step.samples),
            learning_rate: step.learning_rate.clone(),
            epochs: Some(step.epochs),
            batch_sequences: Some(wire_size(step.batch_sequences)),
            optimizer: Some((&step.optimizer).into()),
            schedule: Some((&step.schedule).into()),
            save_dtype: step.save_dtype.to_string(),
            lora: step.lora.as_ref().map(Into::into),
        }
    }
}
