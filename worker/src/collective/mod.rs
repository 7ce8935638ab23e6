//! The ranks of a gang phase, and what they do together.
//!
//! Rank 0 opens a [`Host`], tells the others where it listens, and gathers them; they join at that [`Rendezvous`].
//! A gang of one needs no sockets and runs the same code.

#![expect(clippy::disallowed_methods, reason = "ranks wait for each other")]

mod gradients;
mod reach;
#[cfg(test)]
pub(crate) mod testing;

use std::thread;
use std::time::Duration;

use foil_torch::c10d::{BucketSizes, ProcessGroup, ProcessGroupConfig, Store};
use tch::{Device, Kind, Tensor};

pub use foil_torch::Error as CollectiveError;
pub use gradients::Gradients;

use reach::Door;

/// Between two looks at who has come.
const ASSEMBLY_PERIOD: Duration = Duration::from_millis(10);

type Result<T, E = CollectiveError> = std::result::Result<T, E>;

/// What a process brings to a gang.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// A host name or an IP address of this machine that the other ranks can reach.
    pub address: String,
    /// Where this rank's tensors live: CPU for Gloo, CUDA for NCCL (and Gloo beside it, for tensors on CPU).
    pub device: Device,
    /// How long to wait for other ranks in every collective. How long they take to come is nobody's business here.
    pub timeout: Duration,
}

/// Where rank 0 awaits the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    /// This process's number, from 1 up: rank 0 gathers instead.
    pub rank: usize,
    /// How many ranks the gang has.
    pub world: usize,
    /// Rank 0's address.
    pub host: String,
    /// Rank 0's port.
    pub port: u16,
    /// What sets this gang apart from any other: the phase and the attempt. The same on all ranks.
    pub prefix: String,
}

/// Rank 0, listening.
pub struct Host {
    store: Store,
    place: Place,
}

impl Host {
    /// Listens on the place's address at a free port.
    ///
    /// # Errors
    /// Where the address is not this machine's.
    pub fn open(place: Place) -> Result<Self> {
        Self::open_at(place, 0)
    }

    /// As [`Host::open`], at a port agreed on beforehand; 0 is any free one.
    ///
    /// # Errors
    /// Those of [`Host::open`]; a port that is taken.
    pub fn open_at(place: Place, port: u16) -> Result<Self> {
        Ok(Self { store: Store::host_at(&place.address, port, place.timeout)?, place })
    }

    /// The address to tell the others.
    pub fn address(&self) -> &str {
        &self.place.address
    }

    /// The port to tell the others.
    pub fn port(&self) -> u16 {
        self.store.port()
    }

    /// Waits for the others, without end, and becomes rank 0 of `world`.
    ///
    /// # Errors
    /// Where a rank comes and fails.
    pub fn gather(self, world: usize, prefix: &str) -> Result<Gang> {
        Gang::form(&self.store, prefix, 0, world, &self.place)
    }
}

/// The ranks that train together: a fixed number of processes that take the same steps.
pub struct Gang {
    group: Option<ProcessGroup>,
}

impl Gang {
    /// A gang of this process only.
    pub fn alone() -> Self {
        Self { group: None }
    }

    /// Goes to where rank 0 listens and becomes one of its gang when all are there.
    ///
    /// # Errors
    /// [`CollectiveError::Unreachable`] where a rank's address leads nowhere from here; where another rank comes and fails.
    pub fn join(rendezvous: &Rendezvous, place: &Place) -> Result<Self> {
        reach::reach(0, &rendezvous.host, rendezvous.port)?;
        let store = Store::connect(&rendezvous.host, rendezvous.port, place.timeout)?;
        Self::form(&store, &rendezvous.prefix, rendezvous.rank, rendezvous.world, place)
    }

    fn form(store: &Store, prefix: &str, rank: usize, world: usize, place: &Place) -> Result<Self> {
        if world == 1 {
            return Ok(Self::alone());
        }
        let store = store.prefixed(prefix)?;
        let door = Door::open(&store, rank, &place.address)?;
        assemble(&store, world)?;
        door.try_all(world)?;
        let member =
            ProcessGroupConfig { rank, world, timeout: place.timeout, address: place.address.clone() };
        let group = match place.device {
            Device::Cuda(_) => ProcessGroup::nccl(&store, member)?,
            Device::Cpu | Device::Mps | Device::Vulkan => ProcessGroup::gloo(&store, member)?,
        };
        Ok(Self { group: Some(group) })
    }

    /// This process's number.
    pub fn rank(&self) -> usize {
        self.group.as_ref().map_or(0, ProcessGroup::rank)
    }

    /// How many ranks there are.
    pub fn world(&self) -> usize {
        self.group.as_ref().map_or(1, ProcessGroup::world)
    }

    /// Replaces each number by its sum over the ranks, the same bits on all of them. The same count everywhere.
    ///
    /// # Errors
    /// Where a rank fails.
    pub fn sum(&self, numbers: &mut [f64]) -> Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        let mut tensor = Tensor::from_slice(numbers);
        group.all_reduce(&mut tensor)?;
        tensor.copy_data(numbers, numbers.len());
        Ok(())
    }

    /// Replaces `tensor`, contiguous and of one shape and kind everywhere, by its sum over the ranks.
    ///
    /// # Errors
    /// Where a rank fails, or the tensor cannot be sent.
    pub fn sum_tensor(&self, tensor: &mut Tensor) -> Result<()> {
        self.group.as_ref().map_or(Ok(()), |group| group.all_reduce(tensor))
    }

    /// This rank's part of the sum over the ranks: `[world, …]` on every rank gives `[…]`, the sum of row `rank`.
    ///
    /// # Errors
    /// Where a rank fails, or the tensor cannot be sent.
    pub fn reduce_scatter(&self, tensor: &Tensor) -> Result<Tensor> {
        match &self.group {
            None => Ok(tensor.select(0, 0)),
            Some(group) => group.reduce_scatter(tensor),
        }
    }

    /// The ranks' tensors, contiguous and of one shape and kind everywhere, one behind another: `[…]` gives `[world, …]`.
    ///
    /// # Errors
    /// Where a rank fails, or the tensor cannot be sent.
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        match &self.group {
            None => Ok(tensor.unsqueeze(0)),
            Some(group) => group.all_gather(tensor),
        }
    }

    /// Rank 0's bytes on every rank; those given elsewhere are dropped.
    ///
    /// # Errors
    /// Where a rank fails.
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

    /// Waits until every rank has come here.
    ///
    /// # Errors
    /// Where a rank fails.
    pub fn barrier(&self) -> Result<()> {
        self.group.as_ref().map_or(Ok(()), ProcessGroup::barrier)
    }

    /// Shared gradients of `parameters`: leaves that require gradients, in the same order on every rank.
    ///
    /// # Errors
    /// Where a rank fails, or the ranks' parameters differ in shape or kind.
    pub fn gradients(&self, parameters: &[Tensor], sizes: BucketSizes) -> Result<Gradients> {
        Gradients::new(self.group.as_ref(), parameters, sizes)
    }

    /// Ends the gang in order: no rank goes before all have done their last collective.
    ///
    /// # Errors
    /// Where a rank fails.
    pub fn leave(self) -> Result<()> {
        self.barrier()?;
        self.group.map_or(Ok(()), ProcessGroup::shutdown)
    }
}

/// Waits until all ranks have come. Some may have gigabytes more to load than others: a rank that is stuck shows by its
/// silence at the coordinator, which then kills this process too.
fn assemble(store: &Store, world: usize) -> Result<()> {
    const COME: &str = "come";
    let mut come = store.add(COME, 1)?;
    while come < world as i64 {
        thread::sleep(ASSEMBLY_PERIOD);
        come = store.add(COME, 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::testing::{in_threads, place};
    use super::*;

    #[test]
    fn one_rank_needs_no_sockets() {
        let gang = Gang::alone();
        let mut numbers = [1.5, -2.0];
        gang.sum(&mut numbers).unwrap();
        assert_eq!(numbers, [1.5, -2.0]);
        assert_eq!(gang.broadcast(vec![1, 2]).unwrap(), [1, 2]);
        assert_eq!((gang.rank(), gang.world()), (0, 1));
        gang.leave().unwrap();
    }

    #[test]
    fn a_rank_that_loads_for_longer_than_a_collective_may_last_is_waited_for() {
        let place = || Place { timeout: Duration::from_secs(1), ..place() };
        let host = Host::open(place()).unwrap();
        let (address, port) = (host.address().to_owned(), host.port());
        thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(3 * place().timeout);
                let rendezvous =
                    Rendezvous { rank: 1, world: 2, host: address, port, prefix: "p".to_owned() };
                Gang::join(&rendezvous, &place()).unwrap().leave().unwrap();
            });
            host.gather(2, "p").unwrap().leave().unwrap();
        });
    }

    /// c10d's own barrier keeps a tensor for the whole process, which ranks in threads would free twice.
    #[test]
    fn ranks_in_threads_come_to_barriers_at_once() {
        in_threads(2, |gang| (0..5000).for_each(|_| gang.barrier().unwrap()));
    }

    #[test]
    fn ranks_meet_and_add_up() {
        in_threads(3, |gang| {
            let mut numbers = [gang.rank() as f64, 1.0];
            gang.sum(&mut numbers).unwrap();
            assert_eq!(numbers, [3.0, 3.0]);
            let said = if gang.rank() == 0 { b"stop at 7".to_vec() } else { Vec::new() };
            assert_eq!(gang.broadcast(said).unwrap(), b"stop at 7");
            assert!(gang.broadcast(Vec::new()).unwrap().is_empty());
        });
    }
}
