//! ZeRO stage 1 (Rajbhandari et al. 2020): the optimizer's state is sharded over the ranks, which hold whole
//! parameters.
//!
//! Parameters and gradients are laid out flat in units, on which the collectives work in place. In the step's
//! last backward pass, a reduce-scatter sums a unit's gradients as soon as all of them are computed, the
//! rank's AdamW updates its shard of the parameters, and an all-gather collects the shards; see
//! [`foil_torch::c10d::FlatParameters`]. On W ranks the moments take 8/W bytes per parameter instead of 8.

use foil_common::spec::Optimizer;
use foil_torch::c10d::FlatParameters;
use tch::Tensor;

use super::TrainError;
use super::checkpoint::LoadedCheckpoint;
use super::sharded_adamw::ShardedAdamW;
use crate::collective::Gang;
use crate::model::{ModelError, Parameters, flatten};

/// Whole parameters and gradients, and a rank's shard of AdamW's state.
pub(super) struct Zero1<'a> {
    flat: FlatParameters,
    optimizer: ShardedAdamW<'a>,
}

impl<'a> Zero1<'a> {
    /// Moves `parameters`, which must be equal on all ranks, into flat units.
    pub(super) fn new(
        parameters: &Parameters,
        settings: &Optimizer,
        gang: &'a Gang,
    ) -> Result<Self, TrainError> {
        let flat = gang.flat_parameters()?;
        let units = flatten(parameters, &flat, gang.rank(), gang.world())?;
        let optimizer = ShardedAdamW::new(units.iter(), settings, gang);
        Ok(Self { flat, optimizer })
    }

    /// Clears all gradients.
    pub(super) fn zero_grad(&mut self) -> Result<(), TrainError> {
        Ok(self.flat.discard_gradients()?)
    }

    /// Runs backward of the step's last micro-batch, if any, and sums gradients.
    pub(super) fn reduce(&mut self, loss: Option<&Tensor>) -> Result<(), TrainError> {
        Ok(self.flat.reduce(loss)?)
    }

    pub(super) fn step(
        &mut self,
        norm: f64,
        limit: Option<f64>,
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        self.optimizer.step(norm, limit, learning_rate)?;
        self.zero_grad()?;
        Ok(self.flat.gather()?)
    }

    pub(super) fn optimizer(&self) -> &ShardedAdamW<'a> {
        &self.optimizer
    }

    /// Restores this rank's shard of the moments from a checkpoint, which may come from any number of ranks.
    pub(super) fn restore(&mut self, saved: &LoadedCheckpoint) -> Result<(), ModelError> {
        self.optimizer.restore_moments(saved)
    }
}
