//! Gradients that all ranks of a gang share.

use foil_torch::Error;
use foil_torch::autograd::{backward, clear_gradients, zero_loss};
use foil_torch::c10d::{BucketSizes, ProcessGroup, Reducer};
use tch::Tensor;

/// Sums gradients over the ranks of a gang while backward runs, by the same calls for any number of ranks.
///
/// The sums are divided by nothing: losses carry the weight of the whole global batch.
pub enum Gradients {
    /// One rank: its own gradients are the sums.
    Alone(Vec<Tensor>),
    /// Several: c10d's reducer.
    Shared(Box<Reducer>),
}

impl Gradients {
    pub(super) fn new(
        group: Option<&ProcessGroup>,
        parameters: &[Tensor],
        sizes: BucketSizes,
    ) -> Result<Self, Error> {
        Ok(match group {
            None => Self::Alone(parameters.iter().map(Tensor::shallow_clone).collect()),
            Some(group) => Self::Shared(Box::new(Reducer::new(group, parameters, sizes)?)),
        })
    }

    /// Makes ready for the first step: calls `loss` twice for a loss that reaches every parameter, built from the same
    /// graph in every attempt, and discards its gradients. All ranks call it before anything else; see
    /// [`Reducer::warm_up`] for why.
    ///
    /// # Errors
    /// Those of `loss` and of [`Gradients::reduce`].
    pub fn warm_up<E: From<Error>>(&mut self, mut loss: impl FnMut() -> Result<Tensor, E>) -> Result<(), E> {
        match self {
            Self::Alone(parameters) => {
                backward(&loss()?)?;
                Ok(clear_gradients(parameters)?)
            }
            Self::Shared(reducer) => reducer.warm_up(loss),
        }
    }

    /// Backward of a micro-batch that is not the step's last.
    ///
    /// # Errors
    /// Where backward fails.
    pub fn accumulate(&mut self, loss: &Tensor) -> Result<(), Error> {
        match self {
            Self::Alone(_) => backward(loss),
            Self::Shared(reducer) => reducer.accumulate(loss),
        }
    }

    /// Backward of the step's last micro-batch, after which [`Gradients::tensors`] are the sums over all ranks. Every
    /// rank calls it once per step; one without rows gives [`Gradients::zero_loss`].
    ///
    /// # Errors
    /// Where a rank fails, or the loss leaves a parameter out.
    pub fn reduce(&mut self, loss: &Tensor) -> Result<(), Error> {
        match self {
            Self::Alone(_) => backward(loss),
            Self::Shared(reducer) => reducer.reduce(loss),
        }
    }

    /// A loss of exactly zero that reaches every parameter with a zero gradient. Scalar, fp32.
    pub fn zero_loss(&self) -> Tensor {
        match self {
            Self::Alone(parameters) => zero_loss(parameters),
            Self::Shared(reducer) => reducer.zero_loss(),
        }
    }

    /// Makes ready for a step: no gradient is left of the one before.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn zero(&mut self) -> Result<(), Error> {
        match self {
            Self::Alone(parameters) => clear_gradients(parameters),
            Self::Shared(reducer) => reducer.zero_gradients(),
        }
    }

    /// The gradients in the parameters' order, sharing storage.
    pub fn tensors(&self) -> Vec<Tensor> {
        match self {
            Self::Alone(parameters) => parameters.iter().map(Tensor::grad).collect(),
            Self::Shared(reducer) => reducer.gradients(),
        }
    }
}
