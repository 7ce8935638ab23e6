//! A training step: forward and backward of every micro-batch, the sum over ranks, and the optimizer's
//! update.

#![expect(clippy::disallowed_methods, reason = "steps are timed")]

use std::borrow::Cow;
use std::time::Instant;

use foil_common::spec::{Normalization, OnNonfinite};
use foil_torch::c10d;
use tch::{Device, Kind, Tensor, no_grad};

use super::checkpoint::{CheckpointMetadata, CheckpointShard, LoadedCheckpoint, PARAMETER};
use super::distributed_optimizer::DistributedOptimizer;
use super::error::first;
use super::snapshot::{Snapshot, SnapshotMemory};
use super::{
    MicroBatchLoss, Objective, RankInfo, StepMetrics, StepPlan, StepRequests, TrainConfig, TrainError,
};
use crate::collective::Gang;
use crate::model::{ModelError, ModelFilesError, Parameters};
use crate::objective::metrics::{MeanOver, Metric};
use foil_common::failpoint;

/// Parameters in training, with their gradients and the optimizer's state.
///
/// All ranks call [`Trainer::warm_up`] before an attempt's first step.
pub struct Trainer<'a> {
    config: &'a TrainConfig,
    gang: &'a Gang,
    optimizer: DistributedOptimizer<'a>,
    names: Vec<String>,
    parameters: Vec<Tensor>,
    device: Device,
    /// Number of steps of the whole phase.
    steps: u64,
    /// Number of steps taken, including skipped ones.
    step: u64,
}

impl<'a> Trainer<'a> {
    /// Makes `parameters` require gradients. They must be bitwise equal on all ranks, and nothing else may
    /// replace their gradients during the trainer's lifetime.
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
        // For shards, the optimizer saves and restores the parameters.
        let whole = || parameters.iter().filter(|_| parameters.shards().is_none());
        Ok(Self {
            config,
            gang,
            optimizer: DistributedOptimizer::new(parameters, &config.optimizer, config.sharding, gang)?,
            names: whole().map(|(name, _)| name.to_owned()).collect(),
            parameters: whole().map(|(_, tensor)| tensor.shallow_clone()).collect(),
            device: parameters.tensors().first().map_or(Device::Cpu, Tensor::device),
            steps,
            step: 0,
        })
    }

    /// This rank and the number of ranks.
    pub fn rank_info(&self) -> RankInfo {
        RankInfo { rank: self.gang.rank(), world: self.gang.world() }
    }

    /// Lets the reducer build its buckets with two discarded backward passes over the shortest of this rank's
    /// rows. The buckets determine the order of sums over ranks, so they must exist before the first real
    /// step. Their order is that in which rank 0's backward reaches parameters, which is the same for every
    /// batch. A gang of one skips this.
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
        self.optimizer.warm_up(|| match shortest {
            Some(row) => Ok(objective.loss(&[row])?.loss),
            None => Ok(foil_torch::autograd::zero_loss(parameters)),
        })
    }

    pub(super) fn gang(&self) -> &'a Gang {
        self.gang
    }

    /// Runs forward and backward of a micro-batch on this rank only, to test whether it fits in memory; see
    /// [`Trainer::end_probe`].
    pub(super) fn probe(&mut self, objective: &dyn Objective, rows: &[usize]) -> Result<(), TrainError> {
        if rows.is_empty() {
            return Ok(());
        }
        self.optimizer.begin_probe()?;
        let output = objective.loss(rows)?;
        self.optimizer.accumulate(&output.loss)
    }

    /// Clears all gradients after a probe, even if it failed.
    pub(super) fn end_probe(&mut self) -> Result<(), TrainError> {
        self.optimizer.end_probe()
    }

    /// Copies this rank's shard of the parameters and of the optimizer's state into `memory`. Training, which
    /// stopped for the checkpoint at `begun`, waits only for this copy.
    pub(super) fn checkpoint_shard(
        &self,
        begun: Instant,
        memory: SnapshotMemory,
    ) -> Result<CheckpointShard, TrainError> {
        let RankInfo { rank, world } = self.rank_info();
        let named = self.names.iter().zip(&self.parameters).enumerate();
        let own = named.filter(|(number, _)| number % world == rank);
        let parameters = own.map(|(_, (name, tensor))| (format!("{PARAMETER}{name}"), tensor));
        let state = parameters.chain(self.optimizer.state(&self.names, self.rank_info()));
        let metadata = CheckpointMetadata {
            step: self.step,
            updates: self.optimizer.updates(),
            rank,
            world,
            ..CheckpointMetadata::default()
        };
        Ok(CheckpointShard { begun, metadata, snapshot: Snapshot::of(state.collect(), self.device, memory)? })
    }

    /// Restores the state from a checkpoint, which may come from any number of ranks.
    ///
    /// # Errors
    /// Files that cannot be read or belong to another model. The error names the tensor.
    pub(super) fn restore(&mut self, saved: &LoadedCheckpoint) -> Result<(), TrainError> {
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
        self.optimizer.restore(&self.names, saved)?;
        self.step = saved.metadata.step;
        Ok(())
    }

    /// Takes one step over a global batch planned for this rank. Returns its metrics and the combined
    /// requests of all ranks.
    ///
    /// The host waits for the device once, to read the loss, the gradient norm and all ranks' requests.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] on all ranks, unless the job skips such steps; those of the objective, of
    /// backward and of the collectives.
    pub fn step(
        &mut self,
        objective: &dyn Objective,
        plan: &StepPlan,
        requests: StepRequests,
    ) -> Result<(StepMetrics, StepRequests), TrainError> {
        let (started, waited) = (Instant::now(), c10d::waited());
        self.step += 1;
        self.optimizer.zero_grad()?;
        let requests = self.to_device(requests);
        let sums = self.accumulate(objective, plan)?;
        let norm = self.optimizer.norm()?;
        // All ranks clip with rank 0's norm: GPUs of different models may round it differently.
        let norm = if self.gang.rank() == 0 { norm } else { norm.zeros_like() };
        let mut totals = Tensor::cat(&[norm, sums, requests], 0);
        self.gang.all_reduce(&mut totals)?;
        let read = Vec::<f64>::try_from(totals.to_device(Device::Cpu))?;
        let (grad_norm, loss) = (read[0], read[1]);
        let (sums, requested) = read[2..].split_at(objective.metrics().len());
        let agreed = StepRequests { checkpoint: requested[0] > 0.0, stop: requested[1] > 0.0 };

        let learning_rate =
            self.config.peak_learning_rate * self.config.schedule.factor(self.step, self.steps);
        let finite = loss.is_finite() && grad_norm.is_finite();
        if finite {
            failpoint::hit("train.optimizer")?;
            self.optimizer.step(grad_norm, self.config.optimizer.max_grad_norm, learning_rate)?;
            no_grad(|| objective.after_update());
        } else if self.config.optimizer.on_nonfinite == OnNonfinite::Fail {
            let rows = name_rows(objective, plan);
            return Err(TrainError::NonFinite { step: self.step, loss, grad_norm, rows });
        }
        let metrics = StepMetrics {
            step: self.step,
            steps: self.steps,
            loss,
            grad_norm,
            learning_rate,
            rows: plan.items,
            tokens: plan.tokens,
            seconds: started.elapsed().as_secs_f64(),
            collective_wait: self.waits_on_host().then(|| c10d::waited() - waited),
            skipped: !finite,
            objective: means(objective.metrics(), sums, plan),
        };
        Ok((metrics, agreed))
    }

    /// Whether this thread waits for the other ranks in collectives.
    fn waits_on_host(&self) -> bool {
        self.gang.world() > 1 && self.device == Device::Cpu
    }

    /// `[2]`, fp64: a request is agreed if the sum over ranks is above 0.
    fn to_device(&self, requests: StepRequests) -> Tensor {
        // These numbers travel with a kernel's launch: a copy from the host would wait for the device.
        let number =
            |request: bool| Tensor::full([1], f64::from(u8::from(request)), (Kind::Double, self.device));
        Tensor::cat(&[number(requests.checkpoint), number(requests.stop)], 0)
    }

    /// Runs all of this rank's micro-batches. The last backward sums gradients over the gang. Returns this
    /// rank's loss and the objective's metric sums, `[1 + metrics]`, fp64.
    fn accumulate(&mut self, objective: &dyn Objective, plan: &StepPlan) -> Result<Tensor, TrainError> {
        let mut totals = Tensor::zeros([1 + objective.metrics().len() as i64], (Kind::Double, self.device));
        for (index, rows) in plan.micro_batches.iter().enumerate() {
            failpoint::hit("train.forward")?;
            let output = objective.loss(rows)?;
            failpoint::hit("train.backward")?;
            let loss = &output.loss * self.scale(objective, plan, rows)?;
            no_grad(|| totals += totals_of(&output, &loss));
            if index + 1 == plan.micro_batches.len() {
                self.optimizer.reduce(Some(&loss))?;
            } else {
                self.optimizer.accumulate(&loss)?;
            }
        }
        if plan.micro_batches.is_empty() {
            self.optimizer.reduce(None)?;
        }
        if self.optimizer.in_lockstep() {
            for _ in plan.micro_batches.len()..plan.most_micro_batches {
                self.accompany(objective, plan)?;
            }
        }
        Ok(totals)
    }

    /// Takes part in a micro-batch of other ranks with the batch's shortest row, which does not count.
    fn accompany(&mut self, objective: &dyn Objective, plan: &StepPlan) -> Result<(), TrainError> {
        let Some(&row) = plan.rows.iter().min_by_key(|&&row| objective.shape(row).cost) else {
            return Ok(());
        };
        let output = objective.loss(&[row])?;
        self.optimizer.accumulate(&(output.loss * 0.0))
    }

    /// The factor of a micro-batch's loss.
    fn scale(&self, objective: &dyn Objective, plan: &StepPlan, rows: &[usize]) -> Result<f64, TrainError> {
        match objective.normalization() {
            Normalization::Global if plan.weight > 0.0 => Ok(1.0 / plan.weight),
            Normalization::Global => {
                Err(TrainError::NoWeight { step: self.step, rows: first(&name_rows(objective, plan)) })
            }
            // The mean of Σ w·ℓ / pairs over the micro-batches of all ranks; the denominator ignores weights.
            Normalization::Reference => {
                let pairs: usize = rows.iter().map(|&row| objective.shape(row).items).sum();
                Ok(1.0 / (pairs * plan.gang_micro_batches) as f64)
            }
        }
    }
}

/// The scaled loss and the metric sums of a micro-batch, `[1 + metrics]`, fp64, without a graph.
fn totals_of(output: &MicroBatchLoss, loss: &Tensor) -> Tensor {
    let loss = loss.detach().to_kind(Kind::Double).view(1);
    Tensor::cat(&[&loss, output.metrics.tensor()], 0)
}

/// A step's metrics from their sums over the global batch.
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

/// The names of a batch's rows.
fn name_rows(objective: &dyn Objective, plan: &StepPlan) -> Vec<String> {
    plan.rows.iter().map(|&row| objective.row_name(row)).collect()
}
