//! The optimizer of a gang: DDP, where every rank has all of its state, or ZeRO stage 1, where ranks shard
//! it.

use foil_common::spec::{Optimizer, Sharding};
use foil_torch::c10d::BucketSizes;
use tch::{Kind, Tensor, no_grad};

use super::checkpoint::{LoadedCheckpoint, MEAN, SQUARE};
use super::optimizer::{by_name, clip, decays, global_norm};
use super::zero1::Zero1;
use super::{AdamW, RankInfo, TrainError};
use crate::collective::{Gang, Gradients};
use crate::model::{ModelError, Parameters};

/// Sums gradients over the ranks, clips them and applies AdamW. Parameters are equal on all ranks after each
/// step.
pub(super) enum DistributedOptimizer<'a> {
    /// Every rank holds all of the optimizer's state and applies the whole update. Gradients are summed
    /// during backward.
    Ddp { gradients: Gradients, optimizer: AdamW },
    /// Each rank holds one shard of the optimizer's state and updates one shard of the parameters.
    Zero1(Zero1<'a>),
}

impl<'a> DistributedOptimizer<'a> {
    /// Creates the optimizer of `parameters`, which require gradients. A gang of one has nothing to shard,
    /// and uses DDP.
    pub(super) fn new(
        parameters: &Parameters,
        settings: &Optimizer,
        sharding: Sharding,
        gang: &'a Gang,
    ) -> Result<Self, TrainError> {
        let named = || {
            parameters.iter().map(|(name, parameter)| (parameter, decays(settings.decay, name, parameter)))
        };
        if sharding == Sharding::Zero1 && gang.world() > 1 {
            return Ok(Self::Zero1(Zero1::new(named(), settings, gang)));
        }
        Ok(Self::Ddp {
            gradients: gang.gradients(parameters.tensors(), BucketSizes::default())?,
            optimizer: AdamW::new(named(), settings),
        })
    }

    /// Prepares for the first step with two discarded backward passes of `loss`; see [`Gradients::warm_up`].
    pub(super) fn warm_up(
        &mut self,
        loss: impl FnMut() -> Result<Tensor, TrainError>,
    ) -> Result<(), TrainError> {
        match self {
            Self::Ddp { gradients, .. } => gradients.warm_up(loss),
            // Its sums do not depend on the order in which backward reaches parameters.
            Self::Zero1(_) => Ok(()),
        }
    }

    /// Updates so far: steps that were not skipped.
    pub(super) fn updates(&self) -> u64 {
        match self {
            Self::Ddp { optimizer, .. } => optimizer.updates(),
            Self::Zero1(zero1) => zero1.optimizer().updates(),
        }
    }

    /// This rank's shard of the optimizer's state, by name.
    pub(super) fn state(&self, names: &[String], info: RankInfo) -> Vec<(String, &Tensor)> {
        match self {
            Self::Ddp { optimizer, .. } => {
                let own = optimizer.state().filter(|(number, _)| number % info.world == info.rank);
                own.flat_map(|(number, moments)| by_name(&names[number], moments)).collect()
            }
            Self::Zero1(zero1) => zero1.state().collect(),
        }
    }

    /// Restores the state of a checkpoint, which any number of ranks saved.
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
        }
    }

    /// Clears all gradients.
    pub(super) fn zero_grad(&mut self) -> Result<(), TrainError> {
        match self {
            Self::Ddp { gradients, .. } => Ok(gradients.zero_grad()?),
            Self::Zero1(zero1) => zero1.zero_grad(),
        }
    }

    /// Runs backward of a micro-batch that is not the step's last.
    pub(super) fn accumulate(&mut self, loss: &Tensor) -> Result<(), TrainError> {
        match self {
            Self::Ddp { gradients, .. } => Ok(gradients.accumulate(loss)?),
            Self::Zero1(_) => Ok(foil_torch::autograd::backward(loss)?),
        }
    }

    /// Runs backward of the step's last micro-batch (`None` on a rank without rows), then sums gradients over
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
        }
    }

    /// The global norm of the summed gradients: `[1]`, fp64, bitwise equal on all ranks.
    pub(super) fn norm(&self) -> Result<Tensor, TrainError> {
        match self {
            Self::Ddp { gradients, .. } => {
                Ok(no_grad(|| global_norm(&gradients.tensors())).to_kind(Kind::Double).view(1))
            }
            Self::Zero1(zero1) => zero1.norm(),
        }
    }

    /// Clips the summed gradients, whose norm is `norm`, to `limit` and updates the parameters.
    pub(super) fn step(
        &mut self,
        norm: f64,
        limit: Option<f64>,
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        match self {
            Self::Ddp { gradients, optimizer } => {
                let mut gradients = gradients.tensors();
                if let Some(limit) = limit {
                    no_grad(|| clip(&mut gradients, norm, limit));
                }
                optimizer.step(&gradients, learning_rate)
            }
            Self::Zero1(zero1) => zero1.step(norm, limit, learning_rate),
        }
    }
}
