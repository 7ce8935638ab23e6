//! Data-parallel gradients: c10d's `Reducer`, which PyTorch's DistributedDataParallel uses.

use cxx::UniquePtr;
use tch::Tensor;

use crate::autograd::{backward, zero_gradients, zero_loss};
use crate::error::{During, Error, Result};
use crate::ffi;

use super::group::ProcessGroup;

/// Bucket sizes in bytes. A bucket is sent as soon as the backward pass has filled it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketSizes {
    /// The bucket that is filled first. It is small, so that communication starts early.
    pub first: usize,
    /// All other buckets.
    pub rest: usize,
}

impl Default for BucketSizes {
    /// PyTorch's defaults: 1 MiB, then 25 MiB.
    fn default() -> Self {
        Self { first: 1 << 20, rest: 25 << 20 }
    }
}

/// An event of a backward pass that sums gradients; see [`Reducer::trace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceEvent {
    /// The gradient of the parameter at this position has been computed but not accumulated yet.
    Gradient(usize),
    /// The sum of a bucket has started. Buckets are numbered in the order in which they are sent.
    Sent(usize),
    /// That sum has finished while the backward pass was paused.
    Summed(usize),
}

impl TraceEvent {
    /// Events from pairs of kind and position.
    pub(super) fn read(flat: &[i64]) -> Vec<Self> {
        let event = |pair: &[i64]| match pair {
            [0, parameter] => Some(Self::Gradient(*parameter as usize)),
            [1, bucket] => Some(Self::Sent(*bucket as usize)),
            [2, bucket] => Some(Self::Summed(*bucket as usize)),
            _ => None,
        };
        flat.chunks(2).filter_map(event).collect()
    }
}

/// Sums gradients over the ranks of a group during the backward pass.
///
/// - Gradients are *summed*, not averaged: divide the loss by the weight of the whole global batch.
/// - Gradients are views of the reducer's buckets: [`Reducer::zero_gradients`] clears them in place, and
///   nothing else may replace them.
/// - [`Reducer::warm_up`] must be called first. c10d rebuilds its buckets after the first backward pass, and
///   the position of a gradient in its bucket determines the order in which the ranks' parts are added. A run
///   resumed at step *k* is bitwise equal to an uninterrupted one only if neither takes a real step with the
///   initial buckets.
pub struct Reducer {
    inner: UniquePtr<ffi::Reducer>,
    parameters: Vec<Tensor>,
    warm: bool,
}

// SAFETY: c10d's reducer guards its state by a lock, since autograd may call it from its own threads, and
// ties nothing to the thread that created it; a `Reducer` is used by one thread at a time since it is not
// `Sync`.
unsafe impl Send for Reducer {}

impl Reducer {
    /// Creates a reducer for `parameters`: leaves that require gradients, in the same order, shapes and kinds
    /// on every rank (checked over the group), all on one device that the group supports. The reducer keeps
    /// the group alive.
    ///
    /// # Errors
    /// [`Error::Argument`] for parameters it cannot reduce; [`Error::Torch`] if ranks disagree about them;
    /// [`Error::Timeout`] and [`Error::PeerLost`] if a peer fails.
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

    /// Rebuilds the buckets in the order in which the backward pass reaches the parameters. Gradients are
    /// zero afterwards.
    ///
    /// Calls `loss` twice for a loss that reaches every parameter, and discards the gradients. The buckets
    /// follow rank 0's graph, so `loss` must build the same graph there in every attempt; any batch of the
    /// training loss does. All ranks must call it together; a second call only costs time.
    ///
    /// # Errors
    /// Errors of `loss` and of [`Reducer::reduce`].
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

    /// Runs the backward pass of a micro-batch that is not the step's last: gradients accumulate on this rank
    /// only.
    ///
    /// # Errors
    /// [`Error::Torch`] if backward fails.
    pub fn accumulate(&mut self, loss: &Tensor) -> Result<()> {
        backward(loss)
    }

    /// Runs the backward pass of the step's last micro-batch and sums the accumulated gradients over the
    /// ranks.
    ///
    /// Every rank must call it once per step; a rank without rows passes [`Reducer::zero_loss`]. On CPU the
    /// sums are complete when it returns; on a GPU, work queued on the current stream sees them.
    ///
    /// # Errors
    /// [`Error::Argument`] before [`Reducer::warm_up`]; [`Error::Unreduced`] if the loss does not reach every
    /// parameter; [`Error::Timeout`] and [`Error::PeerLost`] if a peer fails. After any of these except the
    /// first, the gradients are unspecified and the attempt is over.
    pub fn reduce(&mut self, loss: &Tensor) -> Result<()> {
        self.check_warm()?;
        self.backward(loss)
    }

    /// Like [`Reducer::reduce`], with a trace of its events, which shows how communication overlaps the
    /// backward pass.
    ///
    /// At the gradient of parameter `pause_at`, the backward pass waits for the sums of all buckets sent so
    /// far. They arrive only if none of them depends on the rest of the backward pass. All ranks call it
    /// together.
    ///
    /// # Errors
    /// Errors of [`Reducer::reduce`].
    pub fn trace(&mut self, loss: &Tensor, pause_at: usize) -> Result<Vec<TraceEvent>> {
        const OPERATION: &str = "tracing backward";
        self.inner.begin_trace(i64::try_from(pause_at).unwrap_or(-1)).during(OPERATION)?;
        let reduced = self.reduce(loss);
        let flat = self.inner.end_trace().during(OPERATION)?;
        reduced?;
        Ok(TraceEvent::read(&flat))
    }

    /// Prepares the next backward pass to reduce gradients, for callers that run it themselves.
    ///
    /// # Errors
    /// [`Error::Argument`] before [`Reducer::warm_up`]; [`Error::Unreduced`] if the last one did not reach
    /// every parameter.
    pub fn prepare(&mut self) -> Result<()> {
        self.check_warm()?;
        self.check_finalized()?;
        self.inner.prepare().during("preparing the reducer")
    }

    /// A loss of exactly zero that reaches every parameter with zero gradients, whatever the parameters'
    /// values. For a rank without rows, or to add to a loss that may leave parameters unused. Scalar, fp32.
    pub fn zero_loss(&self) -> Tensor {
        zero_loss(&self.parameters)
    }

    /// Sets the gradients to zero in place, because they are views of buckets.
    ///
    /// # Errors
    /// [`Error::Torch`] if the device fails.
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
