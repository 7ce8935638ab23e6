//! AdamW over the ranks of a gang. Each rank holds the state of its shards and updates them.

use std::ops::Range;

use foil_common::model::ModelFilesError;
use foil_common::spec::Optimizer;
use tch::{Device, Kind, Tensor, no_grad};

use super::checkpoint::{LoadedCheckpoint, MEAN, PARAMETER, SQUARE};
use super::optimizer::{by_name, clip, decays, global_norm};
use super::{AdamW, TrainError};
use crate::collective::Gang;
use crate::model::{ModelError, ShardedUnit, overlap, shard_range};

/// AdamW for a rank's shards of units. Autograd or a reduction stores each gradient with its shard.
pub(super) struct ShardedAdamW<'a> {
    gang: &'a Gang,
    /// In the order of the optimizer's parameters.
    parts: Vec<Part>,
    optimizer: AdamW,
    device: Device,
}

/// A range of a unit's parameters with the same weight decay.
struct Run {
    name: String,
    decays: bool,
    /// The range of its elements in the unit.
    range: Range<i64>,
    /// Number of elements of the whole unit.
    unit_elements: i64,
}

/// This rank's elements of a run.
struct Part {
    run: Run,
    range: Range<i64>,
    /// The unit's shard, which holds the gradient.
    shard: Tensor,
    /// Offset of the part in the shard.
    start: i64,
    /// The masters, a part of the shard.
    masters: Tensor,
}

impl Run {
    /// The elements held by `rank` of `world` ranks.
    fn held_by(&self, rank: usize, world: usize) -> Range<i64> {
        overlap(&self.range, &shard_range(self.unit_elements, rank, world))
    }

    /// The name of a rank's part in a checkpoint.
    fn name_of(&self, rank: usize) -> String {
        format!("{}.part{rank}", self.name)
    }
}

impl<'a> ShardedAdamW<'a> {
    /// Creates the optimizer. `units` must be the same on all ranks except for their shards.
    pub(super) fn new<'u>(
        units: impl Iterator<Item = &'u ShardedUnit>,
        settings: &Optimizer,
        gang: &'a Gang,
    ) -> Self {
        let mut device = Device::Cpu;
        let mut parts = Vec::new();
        for unit in units {
            device = unit.shard().device();
            let held = |run| Part::new(run, unit.shard(), gang.rank(), gang.world());
            parts.extend(runs(unit, settings).into_iter().filter_map(held));
        }
        let optimizer = AdamW::new(parts.iter().map(|part| (&part.masters, part.run.decays)), settings);
        Self { gang, parts, optimizer, device }
    }

    /// See [`super::distributed_optimizer::DistributedOptimizer::norm`]: the shards' squared norms, summed
    /// over the ranks.
    pub(super) fn norm(&self) -> Result<Tensor, TrainError> {
        let gradients = self.gradients();
        let mut squares = match gradients.is_empty() {
            true => Tensor::zeros([1], (Kind::Double, self.device)),
            false => {
                no_grad(|| global_norm(&gradients).map(|norm| norm.to_kind(Kind::Double).square().view(1)))?
            }
        };
        self.gang.all_reduce(&mut squares)?;
        Ok(squares.sqrt())
    }

    /// Clips the shards' summed gradients, whose norm over all ranks is `norm`, to `limit` and updates the
    /// shards.
    pub(super) fn step(
        &mut self,
        norm: f64,
        limit: Option<f64>,
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        let gradients = self.gradients();
        no_grad(|| {
            if let Some(limit) = limit {
                clip(&gradients, norm, limit)?;
            }
            self.optimizer.step(&gradients, learning_rate)
        })
    }

    fn gradients(&self) -> Vec<Tensor> {
        self.parts.iter().map(Part::gradient).collect()
    }

    /// Number of updates taken so far.
    pub(super) fn updates(&self) -> u64 {
        self.optimizer.updates()
    }

    /// This rank's parts of the moments, by name.
    pub(super) fn moments(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let rank = self.gang.rank();
        self.optimizer
            .state()
            .flat_map(move |(number, moments)| by_name(&self.parts[number].run.name_of(rank), moments))
    }

    /// This rank's parts of the parameters, by name.
    pub(super) fn masters(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let rank = self.gang.rank();
        let name = move |run: &Run| format!("{PARAMETER}{}", run.name_of(rank));
        self.parts.iter().map(move |part| (name(&part.run), &part.masters))
    }

    /// Restores the shards from a checkpoint with [`ShardedAdamW::masters`], which may come from any number
    /// of ranks.
    pub(super) fn restore_masters(&self, saved: &LoadedCheckpoint) -> Result<(), ModelError> {
        for part in &self.parts {
            let masters = part.read(saved, PARAMETER)?;
            no_grad(|| part.masters.shallow_clone().copy_(&masters));
        }
        Ok(())
    }

    /// Restores the moments from a checkpoint, which may come from any number of ranks.
    pub(super) fn restore_moments(&mut self, saved: &LoadedCheckpoint) -> Result<(), ModelError> {
        let parts = &self.parts;
        self.optimizer.restore(saved.metadata.updates, |number| {
            Ok([parts[number].read(saved, MEAN)?, parts[number].read(saved, SQUARE)?])
        })
    }
}

/// The runs of a unit.
fn runs(unit: &ShardedUnit, settings: &Optimizer) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (name, parameter, range) in unit.members() {
        let decays = decays(settings.decay, name, parameter);
        match runs.last_mut() {
            Some(run) if run.decays == decays => run.range.end = range.end,
            _ => runs.push(Run {
                name: format!("{}.{}", unit.name(), runs.len()),
                decays,
                range,
                unit_elements: unit.elements(),
            }),
        }
    }
    runs
}

impl Part {
    /// `None` if the rank holds no element of the run.
    fn new(run: Run, shard: &Tensor, rank: usize, world: usize) -> Option<Self> {
        let range = run.held_by(rank, world);
        if range.is_empty() {
            return None;
        }
        let start = range.start - shard_range(run.unit_elements, rank, world).start;
        let masters = shard.narrow(0, start, range.end - range.start);
        Some(Self { run, range, shard: shard.shallow_clone(), start, masters })
    }

    /// The gradient, a part of the shard's; zero before a backward pass.
    fn gradient(&self) -> Tensor {
        let length = self.range.end - self.range.start;
        match self.shard.grad() {
            gradient if gradient.defined() => gradient.narrow(0, self.start, length),
            _ => self.masters.zeros_like(),
        }
    }

    /// Assembles the part from the ranks' parts in a checkpoint.
    fn read(&self, saved: &LoadedCheckpoint, prefix: &str) -> Result<Tensor, ModelError> {
        let read = Tensor::zeros([self.range.end - self.range.start], (Kind::Float, tch::Device::Cpu));
        let world = saved.metadata.world;
        for rank in 0..world {
            let held = self.run.held_by(rank, world);
            let common = overlap(&held, &self.range);
            if common.is_empty() {
                continue;
            }
            let name = format!("{prefix}{}", self.run.name_of(rank));
            let tensor = saved.read(&name)?;
            let expected = vec![held.end - held.start];
            if tensor.size() != expected {
                let found = tensor.size();
                return Err(ModelFilesError::Shape { name, found, expected }.into());
            }
            let length = common.end - common.start;
            let source = tensor.narrow(0, common.start - held.start, length);
            read.narrow(0, common.start - self.range.start, length).copy_(&source);
        }
        Ok(read)
    }
}
