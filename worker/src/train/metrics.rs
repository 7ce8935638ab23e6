//! Metrics of training steps and phases.

use std::borrow::Cow;
use std::time::Duration;

use foil_proto::v1;
use serde::{Deserialize, Serialize};

/// Metrics of one step over the whole gang; equal on all ranks except for `seconds` and `collective_wait`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The step's number, from 1.
    pub step: u64,
    pub steps: u64,
    /// The normalized loss, before the step's update.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Number of pairs or responses in the global batch.
    pub rows: usize,
    /// Number of tokens in the global batch, without padding.
    pub tokens: usize,
    pub seconds: f64,
    /// Time that this rank waited for the others. `None` on a GPU, whose host does not wait, and in a gang
    /// of one.
    #[serde(skip)]
    pub collective_wait: Option<Duration>,
    /// Whether the update was skipped because the loss or the gradient was not finite.
    pub skipped: bool,
    /// The metrics specific to the objective.
    pub objective: Vec<(Cow<'static, str>, f64)>,
}

impl StepMetrics {
    /// Metrics for a `StepReport`: loss, grad_norm, learning_rate, rows, tokens, seconds, skipped (0 or 1)
    /// and those of the objective.
    pub fn metrics(&self) -> Vec<v1::Metric> {
        let own = [
            ("loss", self.loss),
            ("grad_norm", self.grad_norm),
            ("learning_rate", self.learning_rate),
            ("rows", self.rows as f64),
            ("tokens", self.tokens as f64),
            ("seconds", self.seconds),
            ("skipped", f64::from(u8::from(self.skipped))),
        ];
        let objective = self.objective.iter().map(|(name, value)| (&**name, *value));
        own.into_iter().chain(objective).map(|(name, value)| metric(name, value)).collect()
    }
}

/// Metrics of a whole training phase.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    pub steps: u64,
    pub skipped: u64,
    /// Loss of the first step, before any update.
    pub first_loss: f64,
    /// Mean over the last epoch's steps that were not skipped.
    pub loss: f64,
    /// Number of tokens of all steps, without padding.
    pub tokens: u64,
    pub seconds: f64,
    /// The objective's metrics, averaged like `loss`, and its metrics of the data.
    pub objective: Vec<(Cow<'static, str>, f64)>,
}

impl Summary {
    /// Metrics for a `GangResult`: loss, first_loss, steps, skipped_steps, tokens, seconds and those of the
    /// objective.
    pub fn metrics(&self) -> Vec<v1::Metric> {
        let own = [
            ("loss", self.loss),
            ("first_loss", self.first_loss),
            ("steps", self.steps as f64),
            ("skipped_steps", self.skipped as f64),
            ("tokens", self.tokens as f64),
            ("seconds", self.seconds),
        ];
        let objective = self.objective.iter().map(|(name, value)| (&**name, *value));
        own.into_iter().chain(objective).map(|(name, value)| metric(name, value)).collect()
    }

    /// Summarizes a phase's steps; the last `steps_per_epoch` form the last epoch.
    pub(super) fn of(steps: &[StepMetrics], steps_per_epoch: usize) -> Self {
        let last = &steps[steps.len().saturating_sub(steps_per_epoch)..];
        let taken: Vec<&StepMetrics> = last.iter().filter(|metrics| !metrics.skipped).collect();
        let mean = |value: &dyn Fn(&StepMetrics) -> f64| {
            taken.iter().map(|metrics| value(metrics)).sum::<f64>() / taken.len() as f64
        };
        let names = taken.first().map(|metrics| metrics.objective.as_slice()).unwrap_or_default();
        let objective = names.iter().enumerate();
        Self {
            steps: steps.len() as u64,
            skipped: steps.iter().filter(|metrics| metrics.skipped).count() as u64,
            first_loss: steps.first().map_or(f64::NAN, |metrics| metrics.loss),
            loss: mean(&|metrics| metrics.loss),
            tokens: steps.iter().map(|metrics| metrics.tokens as u64).sum(),
            seconds: steps.iter().map(|metrics| metrics.seconds).sum(),
            objective: objective.map(|(i, (name, _))| (name.clone(), mean(&|f| f.objective[i].1))).collect(),
        }
    }
}

fn metric(name: &str, value: f64) -> v1::Metric {
    v1::Metric { name: name.to_owned(), value, se: None }
}
