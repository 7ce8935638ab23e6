//! ZeRO stage 3 (Rajbhandari et al. 2020), as in PyTorch's FSDP (Zhao et al. 2023): parameters, gradients and
//! the optimizer's state are all sharded over the ranks.
//!
//! A unit of parameters is gathered in the compute precision before it is used, in the forward and again in
//! the backward pass, and its gradients are summed over the ranks as soon as backward has them all; see
//! [`foil_torch::c10d::ShardStore`]. Ranks gather in turn, so all of them run as many micro-batches.

use std::ops::Range;
use std::rc::Rc;

use foil_common::model::ModelFilesError;
use foil_common::spec::Optimizer;
use tch::{Kind, Tensor, no_grad};

use super::checkpoint::{LoadedCheckpoint, MEAN, PARAMETER, SQUARE};
use super::optimizer::{by_name, clip, decays};
use super::{AdamW, TrainError};
use crate::collective::Gang;
use crate::model::{ModelError, ShardedUnit, Shards, overlap, shard_range};

/// A rank's shards of the parameters, of their gradients and of AdamW's state.
pub(super) struct Fsdp<'a> {
    gang: &'a Gang,
    shards: Rc<Shards>,
    /// In the order of the optimizer's parameters.
    parts: Vec<Part>,
    optimizer: AdamW,
}

/// A run of parameters of a unit that share a weight decay.
struct Run {
    name: String,
    decays: bool,
    /// Its elements within the unit.
    range: Range<i64>,
    /// Elements of the whole unit.
    unit_elements: i64,
}

/// This rank's elements of a run.
struct Part {
    run: Run,
    range: Range<i64>,
    /// The unit's shard, whose gradient autograd fills.
    shard: Tensor,
    /// Where the part begins in the shard.
    start: i64,
    /// The masters, part of the shard.
    masters: Tensor,
}

impl Run {
    /// The elements that `rank` of `world` ranks holds.
    fn held_by(&self, rank: usize, world: usize) -> Range<i64> {
        overlap(&self.range, &shard_range(self.unit_elements, rank, world))
    }

    /// The name of a rank's part in a checkpoint.
    fn name_of(&self, rank: usize) -> String {
        format!("{}.part{rank}", self.name)
    }
}

impl<'a> Fsdp<'a> {
    /// Trains the units of `shards` whose parameters require gradients.
    pub(super) fn new(shards: &Rc<Shards>, settings: &Optimizer, gang: &'a Gang) -> Result<Self, TrainError> {
        gang.connect(shards.store());
        shards.store().watch_gradients()?;
        let placement = shards.placement();
        debug_assert_eq!((placement.rank, placement.world), (gang.rank(), gang.world()));
        let parts: Vec<Part> = runs(shards, settings)
            .filter_map(|(run, shard)| Part::new(run, shard, placement.rank, placement.world))
            .collect();
        let optimizer = AdamW::new(parts.iter().map(|part| (&part.masters, part.run.decays)), settings);
        Ok(Self { gang, shards: Rc::clone(shards), parts, optimizer })
    }

    /// Clears all gradients.
    pub(super) fn zero_grad(&mut self) -> Result<(), TrainError> {
        Ok(self.shards.store().discard_gradients()?)
    }

    /// Runs backward of a micro-batch; gradients are summed over the ranks, and added to those of the step's
    /// other micro-batches.
    pub(super) fn backward(&mut self, loss: &Tensor) -> Result<(), TrainError> {
        foil_torch::autograd::backward(loss)?;
        Ok(self.shards.store().finish_backward()?)
    }

    /// Begins a rehearsal, in which this rank needs no other: the ranks may run out of memory at different
    /// points.
    pub(super) fn begin_probe(&mut self) -> Result<(), TrainError> {
        self.shards.store().release()?;
        self.shards.store().disconnect();
        Ok(())
    }

    pub(super) fn end_probe(&mut self) -> Result<(), TrainError> {
        self.shards.store().release()?;
        self.gang.connect(self.shards.store());
        Ok(())
    }

    /// See [`super::distributed_optimizer::DistributedOptimizer::norm`]: the shards' squared norms, summed
    /// over the ranks.
    pub(super) fn norm(&self) -> Result<Tensor, TrainError> {
        let device = self.shards.device();
        let mut squares = no_grad(|| {
            let mut squares = Tensor::zeros([1], (Kind::Double, device));
            for gradient in self.gradients() {
                squares += gradient.norm().to_kind(Kind::Double).square();
            }
            squares
        });
        self.gang.all_reduce(&mut squares)?;
        Ok(squares.sqrt())
    }

    fn gradients(&self) -> Vec<Tensor> {
        self.parts.iter().map(Part::gradient).collect()
    }

    pub(super) fn step(
        &mut self,
        norm: f64,
        limit: Option<f64>,
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        self.shards.store().release()?;
        let gradients = self.gradients();
        no_grad(|| {
            if let Some(limit) = limit {
                clip(&gradients, norm, limit)?;
            }
            self.optimizer.step(&gradients, learning_rate)
        })?;
        drop(gradients);
        self.zero_grad()
    }

    pub(super) fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// This rank's parts of the parameters and of their moments, by name.
    pub(super) fn state(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let rank = self.gang.rank();
        let masters = self.parts.iter().map(move |part| {
            let name = format!("{PARAMETER}{}", part.run.name_of(rank));
            (name, &part.masters)
        });
        let moments = self
            .optimizer
            .state()
            .flat_map(move |(number, moments)| by_name(&self.parts[number].run.name_of(rank), moments));
        masters.chain(moments)
    }

    /// Restores this rank's shards from a checkpoint, which any number of ranks saved.
    pub(super) fn restore(&mut self, saved: &LoadedCheckpoint) -> Result<(), ModelError> {
        self.shards.store().release()?;
        for part in &self.parts {
            let masters = part.read(saved, PARAMETER)?;
            no_grad(|| part.masters.shallow_clone().copy_(&masters));
        }
        let parts = &self.parts;
        self.optimizer.restore(saved.metadata.updates, |number| {
            Ok([parts[number].read(saved, MEAN)?, parts[number].read(saved, SQUARE)?])
        })
    }
}

impl Drop for Fsdp<'_> {
    fn drop(&mut self) {
        // Gathered parameters and gradients would outlive the training of a model that is saved next.
        let freed = self.shards.store().discard_gradients();
        if let Err(error) = freed.and_then(|()| self.shards.store().release()) {
            tracing::debug!(%error, "the shards could not be freed");
        }
    }
}

/// The runs of all trained units, with their shards.
fn runs(shards: &Shards, settings: &Optimizer) -> impl Iterator<Item = (Run, Tensor)> {
    let of_unit = move |unit: &ShardedUnit| {
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
        let shard = unit.shard().shallow_clone();
        runs.into_iter().map(move |run| (run, shard.shallow_clone()))
    };
    shards.trained().flat_map(of_unit)
}

impl Part {
    /// `None` if the rank holds no element of the run.
    fn new(run: Run, shard: Tensor, rank: usize, world: usize) -> Option<Self> {
        let range = run.held_by(rank, world);
        if range.is_empty() {
            return None;
        }
        let start = range.start - shard_range(run.unit_elements, rank, world).start;
        let masters = shard.narrow(0, start, range.end - range.start);
        Some(Self { run, range, shard, start, masters })
    }

    /// The gradient, part of the shard's; zero before a backward pass.
    fn gradient(&self) -> Tensor {
        let length = self.range.end - self.range.start;
        match self.shard.grad() {
            gradient if gradient.defined() => gradient.narrow(0, self.start, length),
            _ => self.masters.zeros_like(),
        }
    }

    /// Reads the part from the ranks' parts in a checkpoint.
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
