//! Process groups: the collectives.

use std::time::Duration;

use cxx::UniquePtr;
use tch::{Cuda, Device, Tensor};

use super::store::{Store, milliseconds};
use crate::error::{During, Error, Result};
use crate::ffi;

/// Whether this build supports NCCL. This does not imply that there is a GPU.
pub fn nccl_built() -> bool {
    cfg!(foil_nccl)
}

/// Time that this thread has spent waiting for other ranks in collectives of CPU tensors. It excludes
/// collectives of GPU tensors: the device waits for those, while the host continues.
pub fn waited() -> Duration {
    Duration::from_nanos(ffi::waited_nanoseconds())
}

/// The settings of one process of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessGroupConfig {
    /// Rank of this process, below `world`.
    pub rank: usize,
    /// Number of processes in the group.
    pub world: usize,
    /// Timeout for peers, for the rendezvous and for every collective.
    pub timeout: Duration,
    /// A host name or IP address of this machine that its peers can reach. Gloo binds its sockets there.
    pub address: String,
}

/// A fixed set of processes that issue the same collectives in the same order.
///
/// Sums have the same bits on every rank. Dropping a group waits for its collectives in flight, at most until
/// its timeout. Other ranks may drop theirs at any time after their last collective has finished.
pub struct ProcessGroup {
    inner: UniquePtr<ffi::Group>,
    config: ProcessGroupConfig,
    cuda: bool,
}

// SAFETY: c10d's groups tie nothing to the thread that created them (PyTorch itself moves them between
// threads); they run on their own threads behind a queue, and a `ProcessGroup` is used by one thread at a
// time since it is not `Sync`.
unsafe impl Send for ProcessGroup {}

impl ProcessGroup {
    /// Creates a group for CPU tensors over Gloo. Returns when all `config.world` processes have joined.
    ///
    /// # Errors
    /// [`Error::Argument`] for a rank outside the world; [`Error::Timeout`] if a peer does not join;
    /// [`Error::Torch`] if `config.address` is not this machine's.
    pub fn gloo(store: &Store, config: ProcessGroupConfig) -> Result<Self> {
        Self::new(store, config, false)
    }

    /// Creates a group for tensors on this process's GPU over NCCL, and for CPU tensors over Gloo.
    ///
    /// NCCL chooses its own interface. To set it, assign the result of [`crate::network_interface`] to
    /// `NCCL_SOCKET_IFNAME` before the process starts. NCCL's watchdog ends the process if a bucket hangs
    /// past the timeout; collectives called here return [`Error::Timeout`] before that.
    ///
    /// # Errors
    /// [`Error::NcclMissing`] or [`Error::NoCudaDevice`] if there is no NCCL to use; else as
    /// [`ProcessGroup::gloo`].
    pub fn nccl(store: &Store, config: ProcessGroupConfig) -> Result<Self> {
        if !nccl_built() {
            return Err(Error::NcclMissing);
        }
        if !Cuda::is_available() {
            return Err(Error::NoCudaDevice);
        }
        Self::new(store, config, true)
    }

    fn new(store: &Store, config: ProcessGroupConfig, nccl: bool) -> Result<Self> {
        const OPERATION: &str = "joining the process group";
        let (Ok(rank), Ok(world)) = (i32::try_from(config.rank), i32::try_from(config.world)) else {
            return Err(Error::argument(OPERATION, format!("{config:?}"), "ranks that fit in 31 bits"));
        };
        if rank >= world {
            let found = format!("rank {rank} in a world of {world}");
            return Err(Error::argument(OPERATION, found, "a rank below the world size"));
        }
        let timeout = milliseconds(config.timeout);
        let inner = ffi::new_group(store.inner(), rank, world, &config.address, timeout, nccl);
        Ok(Self { inner: inner.during(OPERATION)?, config, cuda: nccl })
    }

    /// Rank of this process.
    pub fn rank(&self) -> usize {
        self.config.rank
    }

    /// Number of processes in the group.
    pub fn world(&self) -> usize {
        self.config.world
    }

    /// Replaces `tensor` by its sum over the ranks. Shape and kind (float or integer) must be equal
    /// everywhere.
    ///
    /// # Errors
    /// [`Error::Argument`] for a tensor that is not contiguous or not on the group's device;
    /// [`Error::Timeout`] and [`Error::PeerLost`] if a peer fails.
    pub fn all_reduce(&self, tensor: &mut Tensor) -> Result<()> {
        self.check("all_reduce", tensor)?;
        self.inner.all_reduce_sum(ffi::native(tensor)).during("all_reduce")
    }

    /// Calls [`ProcessGroup::all_reduce`] `times` times. On a GPU the host waits only for the last one, so
    /// that the measured time is that of the links.
    ///
    /// # Errors
    /// Those of [`ProcessGroup::all_reduce`].
    pub fn all_reduce_repeatedly(&self, tensor: &mut Tensor, times: u32) -> Result<()> {
        self.check("all_reduce", tensor)?;
        self.inner.all_reduce_sums(ffi::native(tensor), times).during("all_reduce")
    }

    /// Replaces `tensor` by the tensor of rank `root`.
    ///
    /// # Errors
    /// Those of [`ProcessGroup::all_reduce`], and [`Error::Argument`] for a root outside the world.
    pub fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<()> {
        self.check("broadcast", tensor)?;
        match i32::try_from(root) {
            Ok(rank) if root < self.world() => {
                self.inner.broadcast(ffi::native(tensor), rank).during("broadcast")
            }
            _ => {
                let expected = format!("a rank below the world size {}", self.world());
                Err(Error::argument("broadcast", format!("root {root}"), expected))
            }
        }
    }

    /// Stacks the ranks' tensors: `[…]` on every rank becomes `[world, …]`.
    ///
    /// # Errors
    /// Those of [`ProcessGroup::all_reduce`].
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        self.check("all_gather", tensor)?;
        let shape: Vec<i64> = std::iter::once(self.world() as i64).chain(tensor.size()).collect();
        let output = Tensor::empty(&shape, (tensor.kind(), tensor.device()));
        // Each rank's part of the output is contiguous, so flat views work for every shape.
        let (flat_output, flat_input) = (output.view(-1), tensor.view(-1));
        self.inner.all_gather(ffi::native(&flat_output), ffi::native(&flat_input)).during("all_gather")?;
        Ok(output)
    }

    /// This rank's part of the sum over ranks: from `[world, …]` on every rank it returns `[…]`, the sum of
    /// row `rank`.
    ///
    /// # Errors
    /// Those of [`ProcessGroup::all_reduce`], and [`Error::Argument`] if the first dimension is not the world
    /// size.
    pub fn reduce_scatter(&self, tensor: &Tensor) -> Result<Tensor> {
        self.check("reduce_scatter", tensor)?;
        let shape = tensor.size();
        let Some((rows, rest)) = shape.split_first().filter(|(rows, _)| **rows == self.world() as i64) else {
            let expected = format!("a first dimension of the world size {}", self.world());
            return Err(Error::argument("reduce_scatter", format!("a tensor of shape {shape:?}"), expected));
        };
        debug_assert!(*rows > 0);
        let output = Tensor::empty(rest, (tensor.kind(), tensor.device()));
        let (flat_output, flat_input) = (output.view(-1), tensor.view(-1));
        self.inner
            .reduce_scatter_sum(ffi::native(&flat_output), ffi::native(&flat_input))
            .during("reduce_scatter")?;
        Ok(output)
    }

    /// Waits until every rank has called it.
    ///
    /// # Errors
    /// [`Error::Timeout`] and [`Error::PeerLost`] if a peer fails.
    pub fn barrier(&self) -> Result<()> {
        self.inner.barrier().during("barrier")
    }

    /// Shuts the group down after its last collective. All ranks must call it.
    ///
    /// # Errors
    /// [`Error::Torch`] if the backend fails to stop.
    pub fn shutdown(self) -> Result<()> {
        self.inner.shutdown().during("ending the process group")
    }

    /// Aborts collectives in flight and ends the group. Gloo cannot abort: its collectives run until their
    /// timeout.
    ///
    /// # Errors
    /// [`Error::Torch`] if the backend fails to stop.
    pub fn abort(self) -> Result<()> {
        self.inner.abort().during("aborting the process group")
    }

    pub(crate) fn inner(&self) -> &ffi::Group {
        &self.inner
    }

    /// Whether collectives of this group support tensors on `device`.
    pub(crate) fn serves(&self, device: Device) -> bool {
        match device {
            Device::Cpu => true,
            Device::Cuda(_) => self.cuda,
            Device::Mps | Device::Vulkan => false,
        }
    }

    fn check(&self, operation: &'static str, tensor: &Tensor) -> Result<()> {
        if !tensor.defined() {
            return Err(Error::argument(operation, "an undefined tensor", "a defined one"));
        }
        if !self.serves(tensor.device()) {
            let found = format!("a tensor on {:?}", tensor.device());
            return Err(Error::argument(operation, found, if self.cuda { "CPU or CUDA" } else { "CPU" }));
        }
        if !tensor.is_contiguous() {
            let found = format!("a tensor of shape {:?} that is not contiguous", tensor.size());
            return Err(Error::argument(operation, found, "a contiguous one"));
        }
        Ok(())
    }
}
