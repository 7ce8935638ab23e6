//! Whole parameters, of which each rank of a group updates a part: ZeRO stage 1 (Rajbhandari et al. 2020).

use cxx::UniquePtr;
use tch::Tensor;

use super::group::ProcessGroup;
use super::reducer::TraceEvent;
use crate::autograd::backward;
use crate::error::{During, Error, Result};
use crate::ffi::{self, list, owned};

/// Parameters laid out flat in units, and their gradients.
///
/// The parameters and, once backward has computed them, their gradients are views of a unit's two flat
/// tensors. Collectives therefore work in place, without copies into or out of buffers. A unit's gradients
/// are summed over the ranks as soon as the backward pass has computed all of them. Units are summed in the
/// order in which they were added, which should be that of the backward pass, and is the same on all ranks.
pub struct FlatParameters {
    inner: UniquePtr<ffi::FlatParameters>,
}

impl FlatParameters {
    /// Creates it without units. Without a group there is one rank, whose gradients are the sums.
    ///
    /// # Errors
    /// [`Error::Torch`] if memory is short.
    pub fn new(group: Option<&ProcessGroup>) -> Result<Self> {
        let (rank, world) = group.map_or((0, 1), |group| (group.rank(), group.world()));
        let inner = ffi::new_flat_parameters(rank as i64, world as i64).during("making flat parameters")?;
        if let Some(group) = group {
            inner.connect(group.inner());
        }
        Ok(Self { inner })
    }

    /// Moves `parameters`, fp32 leaves on one device that require gradients, into a flat tensor of `length`
    /// elements per rank. They stay the same tensors with the same values. `offsets` are the indices of their
    /// first elements. Returns this rank's part of the flat tensor, a view: `[length]`.
    ///
    /// [`Error::Argument`] without parameters, or for a wrong number of offsets; [`Error::Torch`] for a
    /// parameter of another kind or beyond the end, or if memory is short.
    pub fn add_unit(&self, parameters: &[Tensor], offsets: &[i64], length: i64) -> Result<Tensor> {
        const OPERATION: &str = "adding a unit of flat parameters";
        if parameters.is_empty() || parameters.len() != offsets.len() {
            let found = format!("{} parameters and {} offsets", parameters.len(), offsets.len());
            return Err(Error::argument(OPERATION, found, "at least one, and as many offsets"));
        }
        Ok(owned(self.inner.add_unit(&list(parameters), offsets, length).during(OPERATION)?))
    }

    /// Runs backward of the step's last micro-batch, or nothing on a rank without rows, and sums the
    /// gradients of all micro-batches over the ranks. Afterwards the gradient of each unit's part is this
    /// rank's part of the sum; gradients of parameters are meaningless.
    ///
    /// # Errors
    /// [`Error::Unreduced`] if a parameter has no gradient; [`Error::Timeout`] and [`Error::PeerLost`] if a
    /// peer fails. After any of these the gradients are unspecified and the attempt is over.
    pub fn reduce(&self, loss: Option<&Tensor>) -> Result<()> {
        const OPERATION: &str = "reduce-scatter of gradients";
        self.inner.begin_reduction(loss.is_some()).during(OPERATION)?;
        loss.map_or(Ok(()), backward)?;
        match self.inner.finish_reduction().during(OPERATION)? {
            unit if unit < 0 => Ok(()),
            unit => Err(Error::Unreduced { detail: format!("a parameter of unit {unit} of the flat ones") }),
        }
    }

    /// Like [`FlatParameters::reduce`], with a trace of its events. Parameters are numbered in the order in
    /// which they were added, and units are buckets. See [`super::Reducer::trace`] for `pause_at`.
    ///
    /// # Errors
    /// Errors of [`FlatParameters::reduce`].
    pub fn trace(&self, loss: &Tensor, pause_at: usize) -> Result<Vec<TraceEvent>> {
        const OPERATION: &str = "tracing backward";
        self.inner.begin_trace(i64::try_from(pause_at).unwrap_or(-1)).during(OPERATION)?;
        let reduced = self.reduce(Some(loss));
        let flat = self.inner.end_trace().during(OPERATION)?;
        reduced?;
        Ok(TraceEvent::read(&flat))
    }

    /// Updates the parameters on all ranks to the current values of each rank's parts.
    ///
    /// # Errors
    /// [`Error::Timeout`] and [`Error::PeerLost`] if a peer fails.
    pub fn gather(&self) -> Result<()> {
        self.inner.gather().during("all-gather of parameters")
    }

    /// Drops all gradients, including those of a failed backward pass.
    ///
    /// # Errors
    /// [`Error::Torch`], which should not happen.
    pub fn discard_gradients(&self) -> Result<()> {
        self.inner.discard_gradients().during("dropping gradients")
    }
}

impl std::fmt::Debug for FlatParameters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlatParameters").finish_non_exhaustive()
    }
}
