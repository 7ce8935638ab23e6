//! Gradients summed over the ranks of a gang.

use foil_torch::Error;
use foil_torch::autograd::{backward, clear_gradients, zero_loss};
use foil_torch::c10d::{BucketSizes, ProcessGroup, Reducer};
use tch::Tensor;

/// Sums gradients over the ranks of a gang during backward, with the same interface for any number of ranks.
///
/// Gradients are summed, not averaged: losses are already divided by the weight of the global batch.
pub enum Gradients {
    /// One rank, whose own gradients are the sums.
    Single(Vec<Tensor>),
    /// Several ranks: c10d's reducer.
    Distributed(Box<Reducer>),
}

impl Gradients {
    pub(super) fn new(
        group: Option<&ProcessGroup>,
        parameters: &[Tensor],
        sizes: BucketSizes,
    ) -> Result<Self, Error> {
        Ok(match group {
            None => Self::Single(parameters.iter().map(Tensor::shallow_clone).collect()),
            Some(group) => Self::Distributed(Box::new(Reducer::new(group, parameters, sizes)?)),
        })
    }

    /// Prepares for the first step: runs backward of `loss` twice and discards the gradients. The loss must
    /// depend on every parameter, and have the same graph in every attempt. All ranks call it first; see
    /// [`Reducer::warm_up`] for why.
    ///
    /// # Errors
    /// Those of `loss` and of [`Gradients::reduce`].
    pub fn warm_up<E: From<Error>>(&mut self, mut loss: impl FnMut() -> Result<Tensor, E>) -> Result<(), E> {
        match self {
            Self::Single(parameters) => {
                backward(&loss()?)?;
                Ok(clear_gradients(parameters)?)
            }
            Self::Distributed(reducer) => reducer.warm_up(loss),
        }
    }

    /// Runs backward of a micro-batch that is not the step's last.
    ///
    /// # Errors
    /// Backward fails.
    pub fn accumulate(&mut self, loss: &Tensor) -> Result<(), Error> {
        match self {
            Self::Single(_) => backward(loss),
            Self::Distributed(reducer) => reducer.accumulate(loss),
        }
    }

    /// Runs backward of the step's last micro-batch, after which [`Gradients::tensors`] are the sums over all
    /// ranks. Every rank calls it once per step; a rank without rows passes [`Gradients::zero_loss`].
    ///
    /// # Errors
    /// A rank fails, or the loss does not depend on all parameters.
    pub fn reduce(&mut self, loss: &Tensor) -> Result<(), Error> {
        match self {
            Self::Single(_) => backward(loss),
            Self::Distributed(reducer) => reducer.reduce(loss),
        }
    }

    /// A loss of 0 whose gradient is 0 for every parameter. Scalar, fp32.
    pub fn zero_loss(&self) -> Tensor {
        match self {
            Self::Single(parameters) => zero_loss(parameters),
            Self::Distributed(reducer) => reducer.zero_loss(),
        }
    }

    /// Clears all gradients.
    ///
    /// # Errors
    /// The device fails.
    pub fn zero_grad(&mut self) -> Result<(), Error> {
        match self {
            Self::Single(parameters) => clear_gradients(parameters),
            Self::Distributed(reducer) => reducer.zero_gradients(),
        }
    }

    /// The gradients in the order of the parameters; they share storage.
    pub fn tensors(&self) -> Vec<Tensor> {
        match self {
            Self::Single(parameters) => parameters.iter().map(Tensor::grad).collect(),
            Self::Distributed(reducer) => reducer.gradients(),
        }
    }
}
