//! Data-parallel gradients: c10d's `Reducer`, the one that PyTorch's DistributedDataParallel uses.

use cxx::UniquePtr;
use tch::Tensor;

use crate::autograd::{backward, zero_gradients, zero_loss};
use crate::error::{During, Error, Result};
use crate::ffi;

use super::group::ProcessGroup;

/// How many bytes of gradients travel together. They leave as soon as backward has filled a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketSizes {
    /// The bucket that backward fills first; small, so that sending starts early.
    pub first: usize,
    /// All others.
    pub rest: usize,
}

impl Default for BucketSizes {
    /// PyTorch's own: 1 MiB, then 25 MiB.
    fn default() -> Self {
        Self { first: 1 << 20, rest: 25 << 20 }
    }
}

/// What backward and the reducer do, in the order in which they do it; see [`Reducer::trace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceEvent {
    /// The gradient of the parameter of this position is made, and not added yet.
    Gradient(usize),
    /// The all-reduce of a bucket of gradients has started; buckets are counted in the order in which they go.
    Sent(usize),
    /// Backward, paused, has seen that all-reduce end.
    Summed(usize),
}

/// Adds gradients over the ranks of a group while backward runs.
///
/// - Gradients are *summed*, not averaged: divide the loss by the weight of the whole global batch.
/// - Gradients are views of the reducer's buckets: [`Reducer::zero_gradients`] clears them in place, and nothing else
///   may replace them.
/// - [`Reducer::warm_up`] comes before anything else. c10d lays its buckets out anew after the first backward, and
///   where a gradient lies decides the order in which the ranks' parts are added; a run resumed at step *k* has the
///   bits of one that was never stopped only if neither takes a real step in the first layout.
pub struct Reducer {
    inner: UniquePtr<ffi::Reducer>,
    parameters: Vec<Tensor>,
    warm: bool,
}

// SAFETY: c10d's reducer guards its state by a lock, since autograd may call it from threads of its own, and ties
// nothing to the thread that made it; a `Reducer` is used by one thread at a time since it is not `Sync`.
unsafe impl Send for Reducer {}

impl Reducer {
    /// A reducer for `parameters`: leaves that require gradients, in the same order, shapes and kinds on every rank
    /// (checked over the group), all on one device that the group serves. The reducer keeps the group alive.
    ///
    /// # Errors
    /// [`Error::Argument`] for parameters it cannot reduce; [`Error::Torch`] where ranks disagree about them;
    /// [`Error::Timeout`] and [`Error::PeerLost`] where a peer fails.
    pub fn new(group: &ProcessGroup, parameters: &[Tensor], sizes: BucketSizes) -> Result<Self> {
        const OPERATION: &str = "making the reducer";
        let expected = "at least one leaf tensor that requires a gradient, all on one device of the group";
        let device = parameters.first().map(Tensor::device);
        let unfit = parameters.iter().position(|parameter| {
            !parameter.requires_grad() || !parameter.is_leaf() || Some(parameter.device()) != device
        });
        if let Some(position) = unfit {
            let found = format!("parameter {position}, {:?}", parameters[position]);
            return Err(Error::argument(OPERATION, found, expected));
        }
        if !device.is_some_and(|device| group.serves(device)) {
            return Err(Error::argument(OPERATION, format!("parameters on {device:?}"), expected));
        }
        let inner = ffi::new_reducer(group.inner(), &ffi::list(parameters), sizes.first, sizes.rest);
        let parameters = parameters.iter().map(Tensor::shallow_clone).collect();
        Ok(Self { inner: inner.during(OPERATION)?, parameters, warm: false })
    }

    /// Lays out the buckets by the order in which backward reaches the parameters, and leaves zero gradients.
    ///
    /// Calls `loss` twice for a loss that reaches every parameter and discards its gradients. The layout follows
    /// rank 0's graph, so `loss` there must build the same graph in every attempt; any batch of the training
    /// loss does. All ranks call it together; a second call only costs time.
    ///
    /// # Errors
    /// Those of `loss`, and those of [`Reducer::reduce`].
    pub fn warm_up<E: From<Error>>(&mut self, mut loss: impl FnMut() -> Result<Tensor, E>) -> Result<(), E> {
        let first = loss()?;
        self.backward(&first)?;
        self.inner.rebuild_buckets().during("laying out the reducer's buckets")?;
        let second = loss()?;
        self.backward(&second)?;
        self.zero_gradients()?;
        self.warm = true;
        Ok(())
    }

    /// Runs backward of a micro-batch that is not the step's last: gradients add up on this rank only.
    ///
    /// # Errors
    /// [`Error::Torch`] where backward fails.
    pub fn accumulate(&mut self, loss: &Tensor) -> Result<()> {
        backward(loss)
    }

    /// Runs backward of the step's last micro-batch and sums what the ranks have gathered in this step.
    ///
    /// Every rank calls it once per step; one without rows gives [`Reducer::zero_loss`] as its loss. On CPU the sums stand
    /// when it returns; on a GPU, work queued on the current stream sees them.
    ///
    /// # Errors
    /// [`Error::Argument`] before [`Reducer::warm_up`]; [`Error::Unreduced`] where the loss does not reach every
    /// parameter; [`Error::Timeout`] and [`Error::PeerLost`] where a peer fails. After any of these but the first the
    /// gradients are unspecified and the attempt is over.
    pub fn reduce(&mut self, loss: &Tensor) -> Result<()> {
        self.check_warm()?;
        self.backward(loss)
    }

    /// [`Reducer::reduce`], with what happened in it: shows how far communication overlaps backward.
    ///
    /// At the gradient of parameter `pause_at`, backward waits until the sums of the buckets sent so far have come: they come
    /// only if nothing of them waits for the rest of backward. All ranks call it together.
    ///
    /// # Errors
    /// Those of [`Reducer::reduce`].
    pub fn trace(&mut self, loss: &Tensor, pause_at: usize) -> Result<Vec<TraceEvent>> {
        const OPERATION: &str = "tracing backward";
        self.inner.begin_trace(i64::try_from(pause_at).unwrap_or(-1)).during(OPERATION)?;
        let reduced = self.reduce(loss);
        let flat = self.inner.end_trace().during(OPERATION)?;
        reduced?;
        let event = |pair: &[i64]| match pair {
            [0, parameter] => Some(TraceEvent::Gradient(*parameter as usize)),
            [1, bucket] => Some(TraceEvent::Sent(*bucket as usize)),
            [2, bucket] => Some(TraceEvent::Summed(*bucket as usize)),
            _ => None,
        };
        Ok(flat.chunks(2).filter_map(event).collect())
    }

    /// Makes the next backward reduce, for callers who run backward themselves.
    ///
    /// # Errors
    /// [`Error::Argument`] before [`Reducer::warm_up`]; [`Error::Unreduced`] where the last one did not reach every
    /// parameter.
    pub fn prepare(&mut self) -> Result<()> {
        self.check_warm()?;
        self.check_finalized()?;
        self.inner.prepare().during("preparing the reducer")
    }

    /// A loss of exactly zero that reaches every parameter, whatever their values, with zero gradients: for a rank
    /// without rows, or to add to a loss that may leave parameters unused. Scalar, fp32.
    pub fn zero_loss(&self) -> Tensor {
        zero_loss(&self.parameters)
    }

    /// Clears the gradients in place, as views of buckets must be.
    ///
    /// # Errors
    /// [`Error::Torch`] where the device fails.
    pub fn zero_gradients(&mut self) -> Result<()> {
        zero_gradients(&self.parameters)
    }

    /// The gradients, in the parameters' order, sharing storage with the reducer.
    pub fn gradients(&self) -> Vec<Tensor> {
        self.parameters.iter().map(Tensor::grad).collect()
    }

    fn backward(&self, loss: &Tensor) -> Result<()> {
        self.inner.backward(ffi::native(loss)).during("data-parallel backward")?;
        self.check_finalized()
    }

    fn check_finalized(&self) -> Result<()> {
        self.inner.check_finalized().map_err(|exception| {
            match Error::caught("data-parallel backward", &exception) {
                Error::Torch { detail, .. } => Error::Unreduced { detail },
                other => other,
            }
        })
    }

    fn check_warm(&self) -> Result<()> {
        if self.warm {
            return Ok(());
        }
        Err(Error::argument("data-parallel backward", "a reducer that was not warmed up", "`warm_up` first"))
    }
}
