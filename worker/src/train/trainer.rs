//! One step: forward and backward of every micro-batch, the sum over ranks, the update.

#![expect(clippy::disallowed_methods, reason = "steps are timed")]

use std::borrow::Cow;
use std::time::Instant;

use foil_common::spec::{Normalization, OnNonfinite};
use tch::{Device, Kind, Tensor, no_grad};

use super::error::first;
use super::snapshot::{PARAMETER, Record, Saved, Snapshot};
use super::update::Update;
use super::{MicroBatchLoss, Objective, Share, StepFigures, StepPlan, TrainConfig, TrainError, Wishes};
use crate::collective::Gang;
use crate::model::{ModelError, ModelFilesError, Parameters};
use crate::objective::metrics::{MeanOver, Metric};
use foil_common::failpoint;

/// Parameters in training: their gradients, shared by a gang, and the optimizer's state.
///
/// The first step of an attempt has to come after [`Trainer::warm_up`], on all ranks.
pub struct Trainer<'a> {
    config: &'a TrainConfig,
    gang: &'a Gang,
    update: Update<'a>,
    names: Vec<String>,
    parameters: Vec<Tensor>,
    device: Device,
    /// Steps of the whole phase.
    steps: u64,
    /// Steps taken, skipped ones included.
    step: u64,
}

impl<'a> Trainer<'a> {
    /// Makes `parameters` require gradients. They must be the same bits on every rank, and nobody else may
    /// replace their gradients from here on.
    ///
    /// # Errors
    /// Those of [`Gang::gradients`].
    pub fn new(
        parameters: &Parameters,
        config: &'a TrainConfig,
        steps: u64,
        gang: &'a Gang,
    ) -> Result<Self, TrainError> {
        parameters.set_requires_grad(true);
        Ok(Self {
            config,
            gang,
            update: Update::new(parameters, &config.optimizer, config.sharding, gang)?,
            names: parameters.names().to_vec(),
            parameters: parameters.tensors().iter().map(Tensor::shallow_clone).collect(),
            device: parameters.tensors().first().map_or(Device::Cpu, Tensor::device),
            steps,
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
            Some(row) => Ok(objective.loss(&[row])?.loss),
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
        let output = objective.loss(rows)?;
        self.update.accumulate(&output.loss)
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
        let (grad_norm, loss) = (read[0], read[1]);
        let (sums, wished) = read[2..].split_at(objective.metrics().len());
        let granted = Wishes { snapshot: wished[0] > 0.0, stop: wished[1] > 0.0 };

        let learning_rate =
            self.config.peak_learning_rate * self.config.schedule.factor(self.step, self.steps);
        let finite = loss.is_finite() && grad_norm.is_finite();
        if finite {
            failpoint::hit("train.optimizer")?;
            self.update.step(grad_norm, self.config.optimizer.max_grad_norm, learning_rate)?;
            no_grad(|| objective.after_update());
        } else if self.config.optimizer.on_nonfinite == OnNonfinite::Fail {
            let rows = name_rows(objective, plan);
            return Err(TrainError::NonFinite { step: self.step, loss, grad_norm, rows });
        }
        let figures = StepFigures {
            step: self.step,
            steps: self.steps,
            loss,
            grad_norm,
            learning_rate,
            rows: plan.items,
            tokens: plan.tokens,
            seconds: started.elapsed().as_secs_f64(),
            skipped: !finite,
            objective: means(objective.metrics(), sums, plan),
        };
        Ok((figures, granted))
    }

    /// `[2]`, fp64: what is above 0 in the sum over ranks is granted.
    fn on_device(&self, wishes: Wishes) -> Tensor {
        let wished = [wishes.snapshot, wishes.stop].map(|wish| f64::from(u8::from(wish)));
        Tensor::from_slice(&wished).to_device(self.device)
    }

    /// Runs all of this rank's micro-batches, the last one's backward reducing over the gang. Returns this rank's part of
    /// the loss and of the objective's metric sums, `[1 + metrics]`, fp64.
    fn accumulate(&mut self, objective: &dyn Objective, plan: &StepPlan) -> Result<Tensor, TrainError> {
        let mut totals = Tensor::zeros([1 + objective.metrics().len() as i64], (Kind::Double, self.device));
        for (index, rows) in plan.micro_batches.iter().enumerate() {
            failpoint::hit("train.forward")?;
            let output = objective.loss(rows)?;
            failpoint::hit("train.backward")?;
            let loss = &output.loss * self.scale(objective, plan, rows)?;
            no_grad(|| totals += totals_of(&output, &loss));
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

/// The scaled loss and the metric sums of a micro-batch, `[1 + metrics]`, fp64, without a graph.
fn totals_of(output: &MicroBatchLoss, loss: &Tensor) -> Tensor {
    let loss = loss.detach().to_kind(Kind::Double).view(1);
    Tensor::cat(&[&loss, output.metrics.tensor()], 0)
}

/// Metrics of a step from their sums over the global batch.
fn means(metrics: &[Metric], sums: &[f64], plan: &StepPlan) -> Vec<(Cow<'static, str>, f64)> {
    let mean = |(metric, sum): (&Metric, &f64)| {
        let denominator = match metric.mean_over {
            MeanOver::Weight => plan.weight,
            MeanOver::Items => plan.items as f64,
        };
        (metric.name.into(), sum / denominator)
    };
    metrics.iter().zip(sums).map(mean).collect()
}

/// The rows of a batch, by name.
fn name_rows(objective: &dyn Objective, plan: &StepPlan) -> Vec<String> {
    plan.rows.iter().map(|&row| objective.row_name(row)).collect()
}
