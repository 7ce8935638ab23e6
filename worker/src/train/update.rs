//! How the ranks' gradients are summed and who moves which parameters.

use foil_common::spec::{Optimizer, Sharding};
use foil_torch::c10d::BucketSizes;
use tch::{Kind, Tensor, no_grad};

use super::optimizer::{by_name, clip, decays, global_norm};
use super::sharded::Sharded;
use super::snapshot::{MEAN, SQUARE, Saved};
use super::{AdamW, Share, TrainError};
use crate::collective::{Gang, Gradients};
use crate::model::{ModelError, Parameters};

/// The part of a step after the losses: sum over ranks, norm, clipping, AdamW. The same parameters on every rank after it.
pub(super) enum Update<'a> {
    /// Every rank holds the whole optimizer and takes the whole update, from gradients summed under backward.
    Whole { gradients: Gradients, optimizer: AdamW },
    /// Each rank holds one part of the optimizer and updates one part of the parameters.
    Sharded(Sharded<'a>),
}

impl<'a> Update<'a> {
    /// Of `parameters`, which require gradients. A gang of one has nothing to shard.
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
            return Ok(Self::Sharded(Sharded::new(named(), settings, gang)));
        }
        Ok(Self::Whole {
            gradients: gang.gradients(parameters.tensors(), BucketSizes::default())?,
            optimizer: AdamW::new(named(), settings),
        })
    }

    /// Makes ready for the first step with two discarded backward passes of `loss`; see [`Gradients::warm_up`].
    pub(super) fn warm_up(
        &mut self,
        loss: impl FnMut() -> Result<Tensor, TrainError>,
    ) -> Result<(), TrainError> {
        match self {
            Self::Whole { gradients, .. } => gradients.warm_up(loss),
            // Its sums do not depend on an order that backward finds.
            Self::Sharded(_) => Ok(()),
        }
    }

    /// AdamW's updates so far: steps that were not skipped.
    pub(super) fn updates(&self) -> u64 {
        match self {
            Self::Whole { optimizer, .. } => optimizer.updates(),
            Self::Sharded(sharded) => sharded.optimizer().updates(),
        }
    }

    /// This rank's share of the optimizer's state, by name; all ranks' shares together are the whole.
    pub(super) fn state(&self, names: &[String], share: Share) -> Vec<(String, &Tensor)> {
        match self {
            Self::Whole { optimizer, .. } => {
                let mine = optimizer.state().filter(|(number, _)| number % share.world == share.rank);
                mine.flat_map(|(number, moments)| by_name(&names[number], moments)).collect()
            }
            Self::Sharded(sharded) => sharded.state().collect(),
        }
    }

    /// Takes over a state that [`Update::state`]s of all ranks gave, however many those were.
    pub(super) fn restore(&mut self, names: &[String], saved: &Saved) -> Result<(), ModelError> {
        let updates = saved.record.updates;
        match self {
            Self::Whole { optimizer, .. } => optimizer.restore(updates, |number| {
                Ok([
                    saved.read(&format!("{MEAN}{}", names[number]))?,
                    saved.read(&format!("{SQUARE}{}", names[number]))?,
                ])
            }),
            Self::Sharded(sharded) => sharded.restore(saved),
        }
    }

    /// Makes ready for a step: no gradient is left of the one before.
    pub(super) fn zero(&mut self) -> Result<(), TrainError> {
        match self {
            Self::Whole { gradients, .. } => Ok(gradients.zero()?),
            Self::Sharded(sharded) => sharded.zero(),
        }
    }

    /// Backward of a micro-batch that is not the step's last.
    pub(super) fn accumulate(&mut self, loss: &Tensor) -> Result<(), TrainError> {
        match self {
            Self::Whole { gradients, .. } => Ok(gradients.accumulate(loss)?),
            Self::Sharded(_) => Ok(foil_torch::autograd::backward(loss)?),
        }
    }

    /// Backward of the step's last micro-batch, or of nothing on a rank without rows; then gradients are summed.
    pub(super) fn reduce(&mut self, loss: Option<&Tensor>) -> Result<(), TrainError> {
        match self {
            Self::Whole { gradients, .. } => match loss {
                Some(loss) => Ok(gradients.reduce(loss)?),
                None => {
                    let nothing = gradients.zero_loss();
                    Ok(gradients.reduce(&nothing)?)
                }
            },
            Self::Sharded(sharded) => sharded.reduce(loss),
        }
    }

    /// The norm of the summed gradient, taken as one vector: `[1]`, fp64, the same bits on every rank.
    pub(super) fn norm(&self) -> Result<Tensor, TrainError> {
        match self {
            Self::Whole { gradients, .. } => {
                Ok(no_grad(|| global_norm(&gradients.tensors())).to_kind(Kind::Double).view(1))
            }
            Self::Sharded(sharded) => sharded.norm(),
        }
    }

    /// Clips a summed gradient of norm `norm` to `limit`, and moves the parameters.
    pub(super) fn step(
        &mut self,
        norm: f64,
        limit: Option<f64>,
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        match self {
            Self::Whole { gradients, optimizer } => {
                let mut gradients = gradients.tensors();
                if let Some(limit) = limit {
                    no_grad(|| clip(&mut gradients, norm, limit));
                }
                optimizer.step(&gradients, learning_rate)
            }
            Self::Sharded(sharded) => sharded.step(norm, limit, learning_rate),
        }
    }
}
