//! One step: forward and backward of every micro-batch, the sum over ranks, the update.

use std::time::Instant;

use foil_common::spec::{Normalization, OnNonfinite, Optimizer, Schedule, Sharding};
use tch::{Device, Kind, Tensor, no_grad};

use super::error::first;
use super::snapshot::{PARAMETER, Record, Saved, Snapshot};
use super::update::Update;
use super::{Objective, Part, Share, StepFigures, StepPlan, TrainError, Wishes};
use crate::collective::Gang;
use crate::model::{ModelError, ModelFilesError, Parameters};
use foil_common::failpoint;

/// How a phase's parameters move.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'a> {
    pub optimizer: &'a Optimizer,
    pub schedule: &'a Schedule,
    /// Of the schedule's factor 1.
    pub peak_learning_rate: f64,
    /// Of the whole phase.
    pub steps: u64,
    pub sharding: Sharding,
}

/// Parameters in training: their gradients, shared by a gang, and the optimizer's state.
///
/// The first step of an attempt has to come after [`Trainer::warm_up`], on all ranks.
pub struct Trainer<'a> {
    recipe: Recipe<'a>,
    gang: &'a Gang,
    update: Update<'a>,
    names: Vec<String>,
    parameters: Vec<Tensor>,
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
            update: Update::new(parameters, recipe.optimizer, recipe.sharding, gang)?,
            names: parameters.names().to_vec(),
            parameters: parameters.tensors().iter().map(Tensor::shallow_clone).collect(),
            device: parameters.tensors().first().map_or(Device::Cpu, Tensor::device),
            step: 0,
        })
    }

    /// This rank's share of every batch.
    pub fn share(&self) -> Share {
        Share { rank: self.gang.rank(), world: self.gang.world() }
    }

    /// Lets the reducer lay out its buckets, with two discarded backward passes over the shortest of this rank's rows:
    /// the layout decides the order of the ranks' sums, so it has to be there before the first real step. The
    /// layout follows rank 0, which always has rows, and the order in which backward reaches parameters, which is that of
    /// any batch. Does nothing in a gang of one.
    ///
    /// # Errors
    /// Those of the objective and of the reducer.
    pub fn warm_up(&mut self, objective: &dyn Objective, plan: &StepPlan) -> Result<(), TrainError> {
        if self.gang.world() == 1 {
            return Ok(());
        }
        let parameters = &self.parameters;
        let rows = plan.micro_batches.iter().flatten().copied();
        let shortest = rows.min_by_key(|&row| objective.shape(row).cost);
        self.update.warm_up(|| match shortest {
            Some(row) => Ok(objective.part(&[row])?.loss),
            None => Ok(foil_torch::autograd::zero_loss(parameters)),
        })
    }

    pub(super) fn gang(&self) -> &'a Gang {
        self.gang
    }

    /// Runs a micro-batch forward and backward on this rank alone, for the memory it takes; see [`Trainer::forget`].
    pub(super) fn rehearse(&mut self, objective: &dyn Objective, rows: &[usize]) -> Result<(), TrainError> {
        if rows.is_empty() {
            return Ok(());
        }
        let part = objective.part(rows)?;
        self.update.accumulate(&part.loss)
    }

    /// Leaves no gradient.
    pub(super) fn forget(&mut self) -> Result<(), TrainError> {
        self.update.zero()
    }

    /// A copy on the host of this rank's share of the parameters and of the optimizer's state: all that later steps need.
    /// This is all that training waits for.
    pub(super) fn snapshot(&self) -> Snapshot {
        let share = self.share();
        let named = self.names.iter().zip(&self.parameters).enumerate();
        let mine = named.filter(|(number, _)| number % share.world == share.rank);
        let parameters = mine.map(|(_, (name, tensor))| (format!("{PARAMETER}{name}"), tensor));
        let state = parameters.chain(self.update.state(&self.names, share));
        let tensors = no_grad(|| state.map(|(name, tensor)| (name, on_host(tensor))).collect());
        let (Share { rank, world }, updates) = (share, self.update.updates());
        Snapshot { record: Record { step: self.step, updates, rank, world, ..Record::default() }, tensors }
    }

    /// Goes on from where snapshots of all ranks, which may have been others, left off.
    ///
    /// # Errors
    /// Files that cannot be read, or belong to another model, by tensor.
    pub(super) fn restore(&mut self, saved: &Saved) -> Result<(), TrainError> {
        for (name, parameter) in self.names.iter().zip(&self.parameters) {
            let tensor = saved.read(&format!("{PARAMETER}{name}"))?;
            if tensor.size() != parameter.size() {
                let (found, expected) = (tensor.size(), parameter.size());
                return Err(
                    ModelError::from(ModelFilesError::Shape { name: name.clone(), found, expected }).into()
                );
            }
            no_grad(|| parameter.shallow_clone().copy_(&tensor));
        }
        self.update.restore(&self.names, saved)?;
        self.step = saved.record.step;
        Ok(())
    }

    /// Takes one step over a global batch planned for this rank.
    ///
    /// The host waits for the device once, to read the loss, the gradient's norm and what any rank wishes after this step:
    /// all ranks learn of the same wishes at the same step.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] on all ranks alike, unless such steps are to be skipped; else those of the
    /// objective, of backward and of the collectives.
    pub fn step(
        &mut self,
        objective: &dyn Objective,
        plan: &StepPlan,
        wishes: Wishes,
    ) -> Result<(StepFigures, Wishes), TrainError> {
        let started = Instant::now();
        self.step += 1;
        self.update.zero()?;
        let mut totals = Tensor::cat(&[self.accumulate(objective, plan)?, self.on_device(wishes)], 0);
        self.gang.sum_tensor(&mut totals)?;
        let read =
            Vec::<f64>::try_from(Tensor::cat(&[self.update.norm()?, totals], 0).to_device(Device::Cpu))?;
        let (sums, wished) = read[2..].split_at(objective.sums());
        let (grad_norm, loss) = (read[0], read[1]);
        let granted = Wishes { snapshot: wished[0] > 0.0, stop: wished[1] > 0.0 };

        let learning_rate =
            self.recipe.peak_learning_rate * self.recipe.schedule.factor(self.step, self.recipe.steps);
        let finite = loss.is_finite() && grad_norm.is_finite();
        if finite {
            failpoint::hit("train.optimizer")?;
            self.update.step(grad_norm, self.recipe.optimizer.max_grad_norm, learning_rate)?;
            no_grad(|| objective.after_update());
        } else if self.recipe.optimizer.on_nonfinite == OnNonfinite::Fail {
            let rows = name_rows(objective, plan);
            return Err(TrainError::NonFinite { step: self.step, loss, grad_norm, rows });
        }
        let figures = StepFigures {
            step: self.step,
            steps: self.recipe.steps,
            loss,
            grad_norm,
            learning_rate,
            rows: plan.items,
            tokens: plan.tokens,
            seconds: started.elapsed().as_secs_f64(),
            skipped: !finite,
            objective: objective
                .figures(sums, plan)
                .into_iter()
                .map(|(name, value)| (name.into(), value))
                .collect(),
        };
        Ok((figures, granted))
    }

    /// `[2]`, fp64: what is above 0 in the sum over ranks is granted.
    fn on_device(&self, wishes: Wishes) -> Tensor {
        let wished = [wishes.snapshot, wishes.stop].map(|wish| f64::from(u8::from(wish)));
        Tensor::from_slice(&wished).to_device(self.device)
    }

    /// Runs all of this rank's micro-batches, the last one's backward reducing over the gang. Returns this rank's part of
    /// the loss and of the objective's sums, `[1 + sums]`, fp64.
    fn accumulate(&mut self, objective: &dyn Objective, plan: &StepPlan) -> Result<Tensor, TrainError> {
        let mut totals = Tensor::zeros([1 + objective.sums() as i64], (Kind::Double, self.device));
        for (index, rows) in plan.micro_batches.iter().enumerate() {
            failpoint::hit("train.forward")?;
            let part = objective.part(rows)?;
            failpoint::hit("train.backward")?;
            let loss = &part.loss * self.scale(objective, plan, rows)?;
            no_grad(|| totals += figures_of(&part, &loss));
            if index + 1 == plan.micro_batches.len() {
                self.update.reduce(Some(&loss))?;
            } else {
                self.update.accumulate(&loss)?;
            }
        }
        if plan.micro_batches.is_empty() {
            self.update.reduce(None)?;
        }
        Ok(totals)
    }

    /// What a micro-batch's loss is multiplied by.
    fn scale(&self, objective: &dyn Objective, plan: &StepPlan, rows: &[usize]) -> Result<f64, TrainError> {
        match objective.normalization() {
            Normalization::Global if plan.weight > 0.0 => Ok(1.0 / plan.weight),
            Normalization::Global => {
                Err(TrainError::NoWeight { step: self.step, rows: first(&name_rows(objective, plan)) })
            }
            // Mean over the micro-batches of all ranks of (Σ w·ℓ / pairs) of each, weights left out of the denominator.
            Normalization::Reference => {
                let pairs: usize = rows.iter().map(|&row| objective.shape(row).items).sum();
                Ok(1.0 / (pairs * plan.gang_micro_batches) as f64)
            }
        }
    }
}

/// A copy in host memory.
fn on_host(tensor: &Tensor) -> Tensor {
    let tensor = tensor.detach();
    if tensor.device() == Device::Cpu { tensor.copy() } else { tensor.to_device(Device::Cpu) }
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
