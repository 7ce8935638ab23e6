//! ZeRO stage 3 (Rajbhandari et al. 2020), as in PyTorch's FSDP (Zhao et al. 2023): parameters, gradients and
//! the optimizer's state are all sharded over the ranks.
//!
//! A unit of parameters is gathered in the compute precision before each use, once in the forward and once in
//! the backward pass. Its gradients are summed over the ranks as soon as backward has computed all of them;
//! see [`foil_torch::c10d::ShardStore`]. Ranks gather in the same order, so all of them run the same number
//! of micro-batches.

use std::rc::Rc;

use foil_common::spec::Optimizer;
use tch::Tensor;

use super::TrainError;
use super::checkpoint::LoadedCheckpoint;
use super::sharded_adamw::ShardedAdamW;
use crate::collective::Gang;
use crate::model::{ModelError, Shards};

/// A rank's shards of the parameters, of their gradients and of AdamW's state.
pub(super) struct Fsdp<'a> {
    gang: &'a Gang,
    shards: Rc<Shards>,
    optimizer: ShardedAdamW<'a>,
}

impl<'a> Fsdp<'a> {
    /// Trains the units of `shards` whose parameters require gradients.
    pub(super) fn new(shards: &Rc<Shards>, settings: &Optimizer, gang: &'a Gang) -> Result<Self, TrainError> {
        gang.connect(shards.store());
        shards.store().watch_gradients()?;
        let placement = shards.placement();
        debug_assert_eq!((placement.rank, placement.world), (gang.rank(), gang.world()));
        let optimizer = ShardedAdamW::new(shards.trained(), settings, gang);
        Ok(Self { gang, shards: Rc::clone(shards), optimizer })
    }

    /// Clears all gradients.
    pub(super) fn zero_grad(&mut self) -> Result<(), TrainError> {
        Ok(self.shards.store().discard_gradients()?)
    }

    /// Runs backward of a micro-batch. Gradients are summed over the ranks and added to those of the step's
    /// other micro-batches.
    pub(super) fn backward(&mut self, loss: &Tensor) -> Result<(), TrainError> {
        foil_torch::autograd::backward(loss)?;
        Ok(self.shards.store().finish_backward()?)
    }

    /// Begins a rehearsal in which this rank does not need the others: the ranks may run out of memory at
    /// different points.
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

    pub(super) fn step(
        &mut self,
        norm: f64,
        limit: Option<f64>,
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        self.shards.store().release()?;
        self.optimizer.step(norm, limit, learning_rate)?;
        self.zero_grad()
    }

    pub(super) fn optimizer(&self) -> &ShardedAdamW<'a> {
        &self.optimizer
    }

    /// This rank's parts of the parameters and of their moments, by name.
    pub(super) fn state(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.optimizer.masters().chain(self.optimizer.moments())
    }

    /// Restores this rank's shards from a checkpoint, which may come from any number of ranks.
    pub(super) fn restore(&mut self, saved: &LoadedCheckpoint) -> Result<(), ModelError> {
        self.shards.store().release()?;
        self.optimizer.restore_masters(saved)?;
        self.optimizer.restore_moments(saved)
    }
}

impl Drop for Fsdp<'_> {
    fn drop(&mut self) {
        // Otherwise gathered parameters and gradients would stay in memory while the trained model is saved.
        let freed = self.shards.store().discard_gradients();
        if let Err(error) = freed.and_then(|()| self.shards.store().release()) {
            tracing::debug!(%error, "the shards could not be freed");
        }
    }
}
