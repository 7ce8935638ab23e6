//! The optimizer of a gang, depending on [`Sharding`].

use foil_common::spec::{Optimizer, Sharding};
use foil_torch::c10d::BucketSizes;
use tch::{Kind, Tensor};

use super::checkpoint::{LoadedCheckpoint, MEAN, SQUARE};
use super::fsdp::Fsdp;
use super::optimizer::{by_name, clip, decays, global_norm};
use super::zero1::Zero1;
use super::{AdamW, RankInfo, TrainError};
use crate::collective::{Gang, Gradients};
use crate::model::{ModelError, Parameters};

/// Sums gradients over the ranks, clips them and applies AdamW. Parameters are equal on all ranks after each
/// step.
pub(super) enum DistributedOptimizer<'a> {
    /// Every rank holds all of the optimizer's state and applies the whole update.
    Ddp {
        gradients: Gradients,
        optimizer: AdamW,
    },
    Zero1(Zero1<'a>),
    Fsdp(Fsdp<'a>),
}

impl<'a> DistributedOptimizer<'a> {
    /// Creates the optimizer of `parameters`, which must require gradients; uses FSDP if they are sharded. A
    /// gang of one has nothing to shard and uses DDP.
    pub(super) fn new(
        parameters: &Parameters,
        settings: &Optimizer,
        sharding: Sharding,
        gang: &'a Gang,
    ) -> Result<Self, TrainError> {
        if let Some(shards) = parameters.shards() {
            return Ok(Self::Fsdp(Fsdp::new(shards, settings, gang)?));
        }
        if sharding == Sharding::Zero1 && gang.world() > 1 {
            return Ok(Self::Zero1(Zero1::new(parameters, settings, gang)?));
        }
        let named =
            parameters.iter().map(|(name, parameter)| (parameter, decays(settings.decay, name, parameter)));
        Ok(Self::Ddp {
            gradients: gang.gradients(parameters.tensors(), BucketSizes::default())?,
            optimizer: AdamW::new(named, settings),
        })
    }

    /// Prepares for the first step with two discarded backward passes of `loss`; see [`Gradients::warm_up`].
    pub(super) fn warm_up(
        &mut self,
        loss: impl FnMut() -> Result<Tensor, TrainError>,
    ) -> Result<(), TrainError> {
        match self {
            Self::Ddp { gradients, .. } => gradients.warm_up(loss),
            // Their sums do not depend on the order in which backward reaches parameters.
            Self::Zero1(_) | Self::Fsdp(_) => Ok(()),
        }
    }

    /// Whether ranks need each other in every forward and backward pass, so that all must run the same number
    /// of passes.
    pub(super) fn in_lockstep(&self) -> bool {
        matches!(self, Self::Fsdp(_))
    }

    /// Begins a forward and backward pass on this rank alone.
    pub(super) fn begin_probe(&mut self) -> Result<(), TrainError> {
        match self {
            Self::Ddp { .. } | Self::Zero1(_) => Ok(()),
            Self::Fsdp(fsdp) => fsdp.begin_probe(),
        }
    }

    /// Ends the pass, whether or not it failed, and clears its gradients.
    pub(super) fn end_probe(&mut self) -> Result<(), TrainError> {
        self.zero_grad()?;
        match self {
            Self::Ddp { .. } | Self::Zero1(_) => Ok(()),
            Self::Fsdp(fsdp) => fsdp.end_probe(),
        }
    }

    /// Number of updates so far: steps that were not skipped.
    pub(super) fn updates(&self) -> u64 {
        match self {
            Self::Ddp { optimizer, .. } => optimizer.updates(),
            Self::Zero1(zero1) => zero1.optimizer().updates(),
            Self::Fsdp(fsdp) => fsdp.optimizer().updates(),
        }
    }

    /// This rank's shard of the optimizer's state, and of the parameters if they are sharded, by name.
    pub(super) fn state(&self, names: &[String], info: RankInfo) -> Vec<(String, &Tensor)> {
        match self {
            Self::Ddp { optimizer, .. } => {
                let own = optimizer.state().filter(|(number, _)| number % info.world == info.rank);
                own.flat_map(|(number, moments)| by_name(&names[number], moments)).collect()
            }
            Self::Zero1(zero1) => zero1.optimizer().moments().collect(),
            Self::Fsdp(fsdp) => fsdp.state().collect(),
        }
    }

    /// Restores the state from a checkpoint, which may come from any number of ranks.
    pub(super) fn restore(&mut self, names: &[String], saved: &LoadedCheckpoint) -> Result<(), ModelError> {
        let updates = saved.metadata.updates;
        match self {
            Self::Ddp { optimizer, .. } => optimizer.restore(updates, |number| {
                Ok([
                    saved.read(&format!("{MEAN}{}", names[number]))?,
                    saved.read(&format!("{SQUARE}{}", names[number]))?,
                ])
            }),
            Self::Zero1(zero1) => zero1.restore(saved),
            Self::Fsdp(fsdp) => fsdp.restore(saved),
        }
    }

    /// Clears all gradients.
    pub(super) fn zero_grad(&mut self) -> Result<(), TrainError> {
        match self {
            Self::Ddp { gradients, .. } => Ok(gradients.zero_grad()?),
            Self::Zero1(zero1) => zero1.zero_grad(),
            Self::Fsdp(fsdp) => fsdp.zero_grad(),
        }
    }

    /// Runs backward of a micro-batch that is not the step's last.
    pub(super) fn accumulate(&mut self, loss: &Tensor) -> Result<(), TrainError> {
        match self {
            Self::Ddp { gradients, .. } => Ok(gradients.accumulate(loss)?),
            Self::Zero1(_) => Ok(foil_torch::autograd::backward(loss)?),
            Self::Fsdp(fsdp) => fsdp.backward(loss),
        }
    }

    /// Runs backward of the step's last micro-batch (`None` on a rank without rows) and sums gradients over
    /// the ranks.
    pub(super) fn reduce(&mut self, loss: Option<&Tensor>) -> Result<(), TrainError> {
        match self {
            Self::Ddp { gradients, .. } => match loss {
                Some(loss) => Ok(gradients.reduce(loss)?),
                None => {
                    let zero = gradients.zero_loss();
                    Ok(gradients.reduce(&zero)?)
                }
            },
            Self::Zero1(zero1) => zero1.reduce(loss),
            Self::Fsdp(fsdp) => loss.map_or(Ok(()), |loss| fsdp.backward(loss)),
        }
    }

    /// The global norm of the summed gradients: `[1]`, fp64, bitwise equal on all ranks.
    pub(super) fn norm(&self) -> Result<Tensor, TrainError> {
        match self {
            Self::Ddp { gradients, .. } => {
                Ok(global_norm(&gradients.tensors())?.to_kind(Kind::Double).view(1))
            }
            Self::Zero1(zero1) => zero1.optimizer().norm(),
            Self::Fsdp(fsdp) => fsdp.optimizer().norm(),
        }
    }

    /// Clips the summed gradients, whose norm is `norm`, to `limit`, and updates the parameters.
    pub(super) fn step(
        &mut self,
        norm: f64,
        limit: Option<f64>,
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        match self {
            Self::Ddp { gradients, optimizer } => {
                let gradients = gradients.tensors();
                if let Some(limit) = limit {
                    clip(&gradients, norm, limit)?;
                }
                optimizer.step(&gradients, learning_rate)
            }
            Self::Zero1(zero1) => zero1.step(norm, limit, learning_rate),
            Self::Fsdp(fsdp) => fsdp.step(norm, limit, learning_rate),
        }
    }
}
