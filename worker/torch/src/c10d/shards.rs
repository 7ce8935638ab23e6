//! Parameters sharded over the ranks of a group: ZeRO stage 3 (Rajbhandari et al. 2020), as in PyTorch's FSDP
//! (Zhao et al. 2023).

use cxx::SharedPtr;
use tch::{Kind, Tensor};

use super::group::ProcessGroup;
use crate::error::{During, Error, Result};
use crate::ffi::{self, list, native, owned, tensors};

/// A group of parameters that are gathered and freed together.
#[derive(Debug)]
pub struct Unit<'a> {
    /// This rank's part of the flattened parameters: fp32, of equal length on all ranks. It may be changed
    /// in place while the unit is not gathered.
    pub shard: &'a Tensor,
    /// Index of each parameter's first element in the flattened unit, and its shape.
    pub parameters: &'a [(i64, Vec<i64>)],
    /// The kind of the gathered parameters: fp32 or bf16.
    pub kind: Kind,
    /// Whether the unit is small and stays gathered from the first forward pass after an update to the next
    /// update.
    pub resident: bool,
}

/// Parameters that are sharded over the ranks of a group.
///
/// A parameter is a leaf tensor of its full shape without memory of its own. It has values from
/// [`ShardStore::gather`] until another unit is gathered. Reading it at another time is an error of the
/// caller, which libtorch reports or which ends the process.
///
/// Backward passes need only [`ShardStore::gather_in_backward`]. Once all gradients of a unit are
/// accumulated, they are summed over the ranks in fp32, and each rank's part of the sums is added to the
/// gradient of its shard. All ranks must gather and run backward in the same order.
#[derive(Clone)]
pub struct ShardStore {
    inner: SharedPtr<ffi::ShardStore>,
}

// SAFETY: the C++ side ties nothing to the thread that created it. Autograd calls it from its own threads
// only while the thread that runs the backward pass waits for them, and so does every other caller in this
// project: a store belongs to the device thread of a rank.
unsafe impl Send for ShardStore {}
// SAFETY: as above.
unsafe impl Sync for ShardStore {}

impl std::fmt::Debug for ShardStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardStore").field("gathered_bytes", &self.gathered_bytes()).finish()
    }
}

impl ShardStore {
    /// Creates an empty store for a group of `world` ranks, to which it is not connected yet.
    ///
    /// # Errors
    /// [`Error::Torch`] if memory is short.
    pub fn new(world: usize) -> Result<Self> {
        Ok(Self { inner: ffi::new_shard_store(world as i64).during("making a store of shards")? })
    }

    /// Adds a unit. Returns its index and its parameters, which do not require gradients yet.
    ///
    /// # Errors
    /// [`Error::Torch`] for a parameter that does not fit the unit; [`Error::Argument`] for another kind.
    pub fn add_unit(&self, unit: &Unit<'_>) -> Result<(usize, Vec<Tensor>)> {
        const OPERATION: &str = "adding a unit of shards";
        if !matches!(unit.kind, Kind::Float | Kind::BFloat16) {
            return Err(Error::argument(OPERATION, format!("{:?}", unit.kind), "fp32 or bf16"));
        }
        let offsets: Vec<i64> = unit.parameters.iter().map(|(offset, _)| *offset).collect();
        let dimensions: Vec<i64> = unit.parameters.iter().map(|(_, shape)| shape.len() as i64).collect();
        let sizes: Vec<i64> = unit.parameters.iter().flat_map(|(_, shape)| shape).copied().collect();
        let mut parameters = ffi::new_tensor_list();
        let bf16 = unit.kind == Kind::BFloat16;
        let shard = native(unit.shard);
        let number = self
            .inner
            .add_unit(shard, &offsets, &dimensions, &sizes, bf16, unit.resident, parameters.pin_mut())
            .during(OPERATION)?;
        Ok((number, tensors(&parameters)))
    }

    /// Connects to `group`, over which units are gathered and gradients are summed.
    pub fn connect(&self, group: &ProcessGroup) {
        self.inner.connect(group.inner());
    }

    /// Disconnects from other ranks. Gathered units still allocate their memory, but their values are
    /// meaningless.
    pub fn disconnect(&self) {
        self.inner.disconnect();
    }

    /// Starts to sum the gradients of all units whose parameters require them.
    ///
    /// # Errors
    /// [`Error::Torch`], which should not happen.
    pub fn watch_gradients(&self) -> Result<()> {
        self.inner.watch_gradients().during("watching gradients")
    }

    /// Gathers the parameters of `unit`, frees those of all other units except the resident ones, and starts
    /// to gather `next`.
    ///
    /// # Errors
    /// [`Error::Timeout`] and [`Error::PeerLost`] if a peer fails; [`Error::Torch`] if memory is short.
    pub fn gather(&self, unit: usize, next: Option<usize>) -> Result<()> {
        self.inner.gather(unit, index(next)).during("all-gather of parameters")
    }

    /// Gathers the parameters of resident units.
    ///
    /// # Errors
    /// Those of [`ShardStore::gather`].
    pub fn gather_residents(&self) -> Result<()> {
        self.inner.gather_residents().during("all-gather of parameters")
    }

    /// Returns the unchanged `results` of a computation with `unit`. Before the backward pass enters that
    /// computation, the unit is [gathered](ShardStore::gather) again.
    ///
    /// # Errors
    /// [`Error::Torch`], which should not happen.
    pub fn gather_in_backward(
        &self,
        unit: usize,
        next: Option<usize>,
        results: &[Tensor],
    ) -> Result<Vec<Tensor>> {
        let mut same = ffi::new_tensor_list();
        let listed = list(results);
        let marked = self.inner.gather_in_backward(unit, index(next), &listed, same.pin_mut());
        marked.during("marking a computation")?;
        Ok(tensors(&same))
    }

    /// Finishes a backward pass: waits for its last sums and frees all parameters except resident ones.
    ///
    /// # Errors
    /// [`Error::Unreduced`] if a parameter got no gradient; else as [`ShardStore::gather`].
    pub fn finish_backward(&self) -> Result<()> {
        match self.inner.finish_backward().during("reduce-scatter of gradients")? {
            unit if unit < 0 => Ok(()),
            unit => Err(Error::Unreduced { detail: format!("a parameter of unit {unit} of the shards") }),
        }
    }

    /// Frees all parameters before the shards change.
    ///
    /// # Errors
    /// As [`ShardStore::gather`].
    pub fn release(&self) -> Result<()> {
        self.inner.release().during("freeing parameters")
    }

    /// Drops all gradients, including those of a failed backward pass.
    ///
    /// # Errors
    /// [`Error::Torch`], which should not happen.
    pub fn discard_gradients(&self) -> Result<()> {
        self.inner.discard_gradients().during("dropping gradients")
    }

    /// All ranks' shards of a unit, concatenated: `[world · shard]`, fp32.
    ///
    /// # Errors
    /// As [`ShardStore::gather`], and [`Error::Torch`] without a group.
    pub fn whole(&self, unit: usize) -> Result<Tensor> {
        Ok(owned(self.inner.whole(unit).during("all-gather of a shard")?))
    }

    /// Size of the currently gathered parameters in bytes.
    pub fn gathered_bytes(&self) -> u64 {
        u64::try_from(self.inner.gathered_bytes()).unwrap_or(0)
    }
}

fn index(unit: Option<usize>) -> i64 {
    unit.and_then(|unit| i64::try_from(unit).ok()).unwrap_or(-1)
}
