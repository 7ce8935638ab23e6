//! What training tells of itself.

use std::borrow::Cow;

use foil_proto::v1;
use serde::{Deserialize, Serialize};

/// Of one step, over the whole gang: the same on every rank but for `seconds`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepFigures {
    /// From 1.
    pub step: u64,
    pub steps: u64,
    /// The normalized loss, before the step's update.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Pairs or answers of the global batch.
    pub rows: usize,
    /// Tokens of the global batch, without padding.
    pub tokens: usize,
    pub seconds: f64,
    /// The update was left out: the loss or the gradient was not finite.
    pub skipped: bool,
    /// The objective's own.
    pub objective: Vec<(Cow<'static, str>, f64)>,
}

impl StepFigures {
    /// For a `StepReport`: loss, grad_norm, learning_rate, rows, tokens, seconds, skipped (0 or 1) and the objective's own.
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

/// Of a whole training phase.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    pub steps: u64,
    pub skipped: u64,
    /// Of the first step, before any update.
    pub first_loss: f64,
    /// Mean over the last epoch's steps that were not skipped.
    pub loss: f64,
    /// Seen in all steps, without padding.
    pub tokens: u64,
    pub seconds: f64,
    /// The objective's own figures, averaged as `loss` is, and what it says of the data.
    pub objective: Vec<(Cow<'static, str>, f64)>,
}

impl Summary {
    /// For a `GangResult`: loss, first_loss, steps, skipped_steps, tokens, seconds and the objective's own.
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

    /// Gathers a phase's summary from its steps, of which the last `last_epoch` are one epoch's.
    pub(super) fn of(steps: &[StepFigures], last_epoch: usize) -> Self {
        let last = &steps[steps.len().saturating_sub(last_epoch)..];
        let taken: Vec<&StepFigures> = last.iter().filter(|figures| !figures.skipped).collect();
        let mean = |value: &dyn Fn(&StepFigures) -> f64| {
            taken.iter().map(|figures| value(figures)).sum::<f64>() / taken.len() as f64
        };
        let names = taken.first().map(|figures| figures.objective.as_slice()).unwrap_or_default();
        let objective = names.iter().enumerate();
        Self {
            steps: steps.len() as u64,
            skipped: steps.iter().filter(|figures| figures.skipped).count() as u64,
            first_loss: steps.first().map_or(f64::NAN, |figures| figures.loss),
            loss: mean(&|figures| figures.loss),
            tokens: steps.iter().map(|figures| figures.tokens as u64).sum(),
            seconds: steps.iter().map(|figures| figures.seconds).sum(),
            objective: objective.map(|(i, (name, _))| (name.clone(), mean(&|f| f.objective[i].1))).collect(),
        }
    }
}

fn metric(name: &str, value: f64) -> v1::Metric {
    v1::Metric { name: name.to_owned(), value, se: None }
}
