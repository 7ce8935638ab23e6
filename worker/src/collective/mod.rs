//! The process group of a gang phase and its collectives.
//!
//! Rank 0 opens a [`RendezvousHost`], publishes its address, and gathers the others, which join at that
//! [`Rendezvous`]. A gang of one needs no sockets and runs the same code.

#![expect(clippy::disallowed_methods, reason = "ranks poll while they wait for each other")]

mod gradients;
mod ports;
mod reachability;
#[cfg(test)]
pub(crate) mod testing;

use std::thread;
use std::time::Duration;

use foil_torch::c10d::{BucketSizes, FlatParameters, ProcessGroup, ProcessGroupConfig, ShardStore, Store};
use tch::{Device, Kind, Tensor};

pub use foil_torch::Error as CollectiveError;
pub use gradients::Gradients;
pub use ports::PortRange;

use reachability::ProbeListener;

/// Time between two polls of the store.
const POLL_PERIOD: Duration = Duration::from_millis(10);

type Result<T, E = CollectiveError> = std::result::Result<T, E>;

/// A process's settings as a rank.
#[derive(Debug, Clone, PartialEq)]
pub struct RankConfig {
    /// A host name or IP address of this machine that the other ranks can reach.
    pub address: String,
    /// The ports at which this rank listens for the others.
    pub ports: PortRange,
    /// The device of this rank's tensors: CPU for Gloo, CUDA for NCCL (with Gloo for CPU tensors).
    pub device: Device,
    /// Timeout of each collective. The rendezvous has none.
    pub timeout: Duration,
}

/// Where and how a rank joins rank 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    /// This process's rank, at least 1: rank 0 is the host.
    pub rank: usize,
    /// The number of ranks.
    pub world: usize,
    /// Rank 0's address.
    pub host: String,
    /// Rank 0's port.
    pub port: u16,
    /// A prefix unique to this gang, made of the phase and the attempt. The same on all ranks.
    pub prefix: String,
}

/// Rank 0's listening store, at which the other ranks join.
pub struct RendezvousHost {
    store: Store,
    config: RankConfig,
}

impl RendezvousHost {
    /// Listens on the configured address at the first free configured port.
    ///
    /// # Errors
    /// The address is not this machine's, or all ports are taken.
    pub fn open(config: RankConfig) -> Result<Self> {
        let ports = config.ports;
        Self::open_at(config, ports)
    }

    /// Listens on the configured address at the first free port of `ports`, which may differ from the rank's
    /// ports.
    ///
    /// # Errors
    /// The address is not this machine's, or all ports are taken.
    pub fn open_at(config: RankConfig, ports: PortRange) -> Result<Self> {
        let listener = ports.listen(&config.address)?;
        Ok(Self { store: Store::host_on(listener, &config.address, config.timeout)?, config })
    }

    /// The address at which the others join.
    pub fn address(&self) -> &str {
        &self.config.address
    }

    /// The port at which the others join.
    pub fn port(&self) -> u16 {
        self.store.port()
    }

    /// Waits for the other ranks, without a timeout, and becomes rank 0 of `world`.
    ///
    /// # Errors
    /// A rank joins and fails.
    pub fn gather(self, world: usize, prefix: &str) -> Result<Gang> {
        Gang::form(&self.store, prefix, 0, world, &self.config)
    }
}

/// The process group of ranks that train together and take the same steps.
pub struct Gang {
    group: Option<ProcessGroup>,
}

impl Gang {
    /// A gang of this process alone.
    pub fn single() -> Self {
        Self { group: None }
    }

    /// Connects to rank 0 and returns once all ranks have joined.
    ///
    /// # Errors
    /// [`CollectiveError::Unreachable`] if a rank cannot be reached from here; another rank joins and fails.
    pub fn join(rendezvous: &Rendezvous, config: &RankConfig) -> Result<Self> {
        reachability::connect_to_peer(0, &rendezvous.host, rendezvous.port)?;
        let store = Store::connect(&rendezvous.host, rendezvous.port, config.timeout)?;
        Self::form(&store, &rendezvous.prefix, rendezvous.rank, rendezvous.world, config)
    }

    fn form(store: &Store, prefix: &str, rank: usize, world: usize, config: &RankConfig) -> Result<Self> {
        if world == 1 {
            return Ok(Self::single());
        }
        let store = store.prefixed(prefix)?;
        let listener = ProbeListener::open(&store, rank, config)?;
        wait_for_all(&store, world)?;
        listener.probe_all(world)?;
        let group_config =
            ProcessGroupConfig { rank, world, timeout: config.timeout, address: config.address.clone() };
        let group = match config.device {
            Device::Cuda(_) => ProcessGroup::nccl(&store, group_config)?,
            Device::Cpu | Device::Mps | Device::Vulkan => ProcessGroup::gloo(&store, group_config)?,
        };
        Ok(Self { group: Some(group) })
    }

    /// This process's rank.
    pub fn rank(&self) -> usize {
        self.group.as_ref().map_or(0, ProcessGroup::rank)
    }

    /// The number of ranks.
    pub fn world(&self) -> usize {
        self.group.as_ref().map_or(1, ProcessGroup::world)
    }

    /// Replaces each value by its sum over the ranks, bitwise equal on all of them. All ranks pass the same
    /// number of values.
    ///
    /// # Errors
    /// A rank fails.
    pub fn all_reduce_values(&self, values: &mut [f64]) -> Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        let mut tensor = Tensor::from_slice(values);
        group.all_reduce(&mut tensor)?;
        tensor.copy_data(values, values.len());
        Ok(())
    }

    /// Replaces `tensor` by its sum over the ranks. It must be contiguous and of equal shape and kind on all
    /// ranks.
    ///
    /// # Errors
    /// A rank fails, or the tensor cannot be sent.
    pub fn all_reduce(&self, tensor: &mut Tensor) -> Result<()> {
        self.group.as_ref().map_or(Ok(()), |group| group.all_reduce(tensor))
    }

    /// Stacks the ranks' tensors from `[…]` to `[world, …]`. They must be contiguous and of equal shape and
    /// kind.
    ///
    /// # Errors
    /// A rank fails, or the tensor cannot be sent.
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        match &self.group {
            None => Ok(tensor.unsqueeze(0)),
            Some(group) => group.all_gather(tensor),
        }
    }

    /// Returns rank 0's bytes on every rank; other ranks' bytes are ignored.
    ///
    /// # Errors
    /// A rank fails.
    pub fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let Some(group) = &self.group else { return Ok(bytes) };
        let mut length = Tensor::from_slice(&[bytes.len() as i64]);
        group.broadcast(&mut length, 0)?;
        let count = length.int64_value(&[0]);
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut tensor = if group.rank() == 0 {
            Tensor::from_slice(&bytes)
        } else {
            Tensor::zeros([count], (Kind::Uint8, Device::Cpu))
        };
        group.broadcast(&mut tensor, 0)?;
        let mut received = vec![0; tensor.numel()];
        tensor.copy_data(&mut received, tensor.numel());
        Ok(received)
    }

    /// Waits until every rank has called it.
    ///
    /// # Errors
    /// A rank fails.
    pub fn barrier(&self) -> Result<()> {
        self.group.as_ref().map_or(Ok(()), ProcessGroup::barrier)
    }

    /// Gradients of `parameters`, which are leaves that require gradients, in the same order on all ranks.
    ///
    /// # Errors
    /// A rank fails, or the ranks' parameters differ in shape or kind.
    pub fn gradients(&self, parameters: &[Tensor], sizes: BucketSizes) -> Result<Gradients> {
        Gradients::new(self.group.as_ref(), parameters, sizes)
    }

    /// Flat parameters without units, whose gradients are summed over this gang.
    ///
    /// # Errors
    /// Memory is short.
    pub fn flat_parameters(&self) -> Result<FlatParameters> {
        FlatParameters::new(self.group.as_ref())
    }

    /// Lets `store` gather and reduce over this gang; a gang of one has no other ranks to gather from.
    pub fn connect(&self, store: &ShardStore) {
        if let Some(group) = &self.group {
            store.connect(group);
        }
    }

    /// Shuts the gang down. No rank leaves before all have finished their last collective.
    ///
    /// # Errors
    /// A rank fails.
    pub fn shutdown(self) -> Result<()> {
        self.barrier()?;
        self.group.map_or(Ok(()), ProcessGroup::shutdown)
    }
}

/// Waits until all ranks have joined. There is no timeout, because some ranks may load gigabytes more than
/// others. The coordinator notices a rank that hangs and then also ends this process.
fn wait_for_all(store: &Store, world: usize) -> Result<()> {
    const JOINED: &str = "joined";
    let mut joined = store.add(JOINED, 1)?;
    while joined < world as i64 {
        thread::sleep(POLL_PERIOD);
        joined = store.add(JOINED, 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::testing::{in_threads, rank_config};
    use super::*;

    #[test]
    fn one_rank_needs_no_sockets() {
        let gang = Gang::single();
        let mut numbers = [1.5, -2.0];
        gang.all_reduce_values(&mut numbers).unwrap();
        assert_eq!(numbers, [1.5, -2.0]);
        assert_eq!(gang.broadcast(vec![1, 2]).unwrap(), [1, 2]);
        assert_eq!((gang.rank(), gang.world()), (0, 1));
        gang.shutdown().unwrap();
    }

    #[test]
    fn joining_has_no_timeout() {
        let config = || RankConfig { timeout: Duration::from_secs(1), ..rank_config() };
        let host = RendezvousHost::open(config()).unwrap();
        let (address, port) = (host.address().to_owned(), host.port());
        thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(3 * config().timeout);
                let rendezvous =
                    Rendezvous { rank: 1, world: 2, host: address, port, prefix: "p".to_owned() };
                Gang::join(&rendezvous, &config()).unwrap().shutdown().unwrap();
            });
            host.gather(2, "p").unwrap().shutdown().unwrap();
        });
    }

    /// c10d's own barrier keeps a tensor for the whole process, which ranks that run as threads would free
    /// twice.
    #[test]
    fn ranks_in_threads_can_wait_at_barriers() {
        in_threads(2, |gang| (0..5000).for_each(|_| gang.barrier().unwrap()));
    }

    #[test]
    fn ranks_join_and_sum() {
        in_threads(3, |gang| {
            let mut numbers = [gang.rank() as f64, 1.0];
            gang.all_reduce_values(&mut numbers).unwrap();
            assert_eq!(numbers, [3.0, 3.0]);
            let sent = if gang.rank() == 0 { b"stop at 7".to_vec() } else { Vec::new() };
            assert_eq!(gang.broadcast(sent).unwrap(), b"stop at 7");
            assert!(gang.broadcast(Vec::new()).unwrap().is_empty());
        });
    }
}
