//! One step: forward and backward of every micro-batch, the sum over ranks, the update.

use std::time::Instant;

use foil_c10d::BucketSizes;
use foil_common::spec::{Normalisation, OnNonfinite, Optimizer, Schedule};
use tch::{Device, Kind, Tensor, no_grad};

use super::error::first;
use super::optimizer::{clip, global_norm};
use super::{AdamW, Objective, Part, Share, StepFigures, StepPlan, TrainError};
use crate::collective::{Gang, Gradients};
use crate::failpoint;
use crate::model::Parameters;

/// How a phase's parameters move.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'a> {
    pub optimizer: &'a Optimizer,
    pub schedule: &'a Schedule,
    /// Of the schedule's factor 1.
    pub peak_learning_rate: f64,
    /// Of the whole phase.
    pub steps: u64,
}

/// Parameters in training: their gradients, shared by a gang, and the optimizer's state.
///
/// The first step of an attempt has to come after [`Trainer::warm_up`], on all ranks.
pub struct Trainer<'a> {
    recipe: Recipe<'a>,
    gang: &'a Gang,
    gradients: Gradients,
    parameters: Vec<Tensor>,
    optimizer: AdamW,
    device: Device,
    /// Steps taken, skipped ones included.
    step: u64,
}

impl<'a> Trainer<'a> {
    /// Makes `parameters` require gradients. They must be the same bits on every rank, and nobody else may
    /// replace their gradients from here on.
    ///
    /// # Errors
    /// Those of [`Gang::gradients`].
    pub fn new(parameters: &Parameters, recipe: Recipe<'a>, gang: &'a Gang) -> Result<Self, TrainError> {
        parameters.set_requires_grad(true);
        Ok(Self {
            recipe,
            gang,
            gradients: gang.gradients(parameters.tensors(), BucketSizes::default())?,
            optimizer: AdamW::new(parameters.iter(), recipe.optimizer),
            parameters: parameters.tensors().iter().map(Tensor::shallow_clone).collect(),
            device: parameters.tensors().first().map_or(Device::Cpu, Tensor::device),
            step: 0,
        })
    }

    /// This rank's share of every batch.
    pub fn share(&self) -> Share {
        Share { rank: self.gang.rank(), world: self.gang.world() }
    }

    /// Lets the reducer lay out its buckets, with two discarded backward passes over this rank's first micro-batch:
    /// the layout decides the order of the ranks' sums, so it has to be there before the first real step. The
    /// layout follows rank 0, which always has rows. Does nothing in a gang of one.
    ///
    /// # Errors
    /// Those of the objective and of the reducer.
    pub fn warm_up(&mut self, objective: &dyn Objective, plan: &StepPlan) -> Result<(), TrainError> {
        if self.gang.world() == 1 {
            return Ok(());
        }
        let parameters = &self.parameters;
        self.gradients.warm_up(|| match plan.micro_batches.first() {
            Some(rows) => Ok(objective.part(rows)?.loss),
            None => Ok(foil_c10d::touch(parameters)),
        })
    }

    /// Takes one step over a global batch planned for this rank.
    ///
    /// The host waits for the device once, to read the loss and the gradient's norm.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] on all ranks alike, unless such steps are to be skipped; else those of the
    /// objective, of backward and of the collectives.
    pub fn step(&mut self, objective: &dyn Objective, plan: &StepPlan) -> Result<StepFigures, TrainError> {
        let started = Instant::now();
        self.step += 1;
        self.gradients.zero()?;
        let mut totals = self.accumulate(objective, plan)?;
        self.gang.sum_tensor(&mut totals)?;
        let mut gradients = self.gradients.tensors();
        let norm = no_grad(|| global_norm(&gradients)).to_kind(Kind::Double).view(1);
        let read = Vec::<f64>::try_from(Tensor::cat(&[norm, totals], 0).to_device(Device::Cpu))?;
        let (grad_norm, loss, sums) = (read[0], read[1], &read[2..]);

        let learning_rate =
            self.recipe.peak_learning_rate * self.recipe.schedule.factor(self.step, self.recipe.steps);
        let finite = loss.is_finite() && grad_norm.is_finite();
        if finite {
            if let Some(limit) = self.recipe.optimizer.clip_norm {
                no_grad(|| clip(&mut gradients, grad_norm, limit));
            }
            failpoint::hit("train.optimizer");
            self.optimizer.step(learning_rate)?;
            no_grad(|| objective.after_update());
        } else if self.recipe.optimizer.on_nonfinite == OnNonfinite::Fail {
            let rows = name_rows(objective, plan);
            return Err(TrainError::NonFinite { step: self.step, loss, grad_norm, rows });
        }
        Ok(StepFigures {
            step: self.step,
            steps: self.recipe.steps,
            loss,
            grad_norm,
            learning_rate,
            rows: plan.items,
            tokens: plan.tokens,
            seconds: started.elapsed().as_secs_f64(),
            skipped: !finite,
            objective: objective.figures(sums, plan),
        })
    }

    /// Runs all of this rank's micro-batches, the last one's backward reducing over the gang. Returns this rank's part of
    /// the loss and of the objective's sums, `[1 + sums]`, fp64.
    fn accumulate(&mut self, objective: &dyn Objective, plan: &StepPlan) -> Result<Tensor, TrainError> {
        let mut totals = Tensor::zeros([1 + objective.sums() as i64], (Kind::Double, self.device));
        for (index, rows) in plan.micro_batches.iter().enumerate() {
            failpoint::hit("train.forward");
            let part = objective.part(rows)?;
            failpoint::hit("train.backward");
            let loss = &part.loss * self.scale(objective, plan, rows)?;
            no_grad(|| totals += figures_of(&part, &loss));
            if index + 1 == plan.micro_batches.len() {
                self.gradients.reduce(&loss)?;
            } else {
                self.gradients.accumulate(&loss)?;
            }
        }
        if plan.micro_batches.is_empty() {
            let nothing = self.gradients.touch();
            self.gradients.reduce(&nothing)?;
        }
        Ok(totals)
    }

    /// What a micro-batch's loss is multiplied by.
    fn scale(&self, objective: &dyn Objective, plan: &StepPlan, rows: &[usize]) -> Result<f64, TrainError> {
        match objective.normalisation() {
            Normalisation::Global if plan.weight > 0.0 => Ok(1.0 / plan.weight),
            Normalisation::Global => {
                Err(TrainError::NoWeight { step: self.step, rows: first(&name_rows(objective, plan)) })
            }
            // Mean over the micro-batches of all ranks of (Σ w·ℓ / pairs) of each, weights left out of the denominator.
            Normalisation::Reference => {
                let pairs: usize = rows.iter().map(|&row| objective.shape(row).items).sum();
                Ok(1.0 / (pairs * plan.gang_micro_batches) as f64)
            }
        }
    }
}

/// `[1 + sums]`, fp64, without a graph.
fn figures_of(part: &Part, loss: &Tensor) -> Tensor {
    let loss = loss.detach().to_kind(Kind::Double).view(1);
    match &part.sums {
        Some(sums) => Tensor::cat(&[loss, sums.detach().to_kind(Kind::Double)], 0),
        None => loss,
    }
}

/// The rows of a batch, by name.
fn name_rows(objective: &dyn Objective, plan: &StepPlan) -> Vec<String> {
    plan.rows.iter().map(|&row| objective.row_name(row)).collect()
}
