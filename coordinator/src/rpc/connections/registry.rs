//! All connections there are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Limits;
use super::peer::{Cut, Peer, Totals};

/// Connections beyond the limit that may wait for the end of those whose places they took.
const LEAVING: usize = 32;
/// Every connection has so much time to make a request, however many others want its place. Those that wait for one have
/// sent theirs meanwhile, and go through all the silent ones before them at this pace.
const CHANCE: Duration = Duration::from_millis(25);

/// Why there is no place for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// There will be one in a moment.
    Yet,
    /// All connections are at work.
    AtAll,
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::rpc) struct Registry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    peers: Mutex<Peers>,
    totals: Arc<Totals>,
}

#[derive(Debug, Default)]
struct Peers {
    by_number: BTreeMap<u64, Peer>,
    next: u64,
}

impl Registry {
    pub(in crate::rpc) fn new(limits: Limits) -> Self {
        Self { shared: Arc::new(Shared { limits, peers: Mutex::default(), totals: Arc::default() }) }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// A place for one more connection, which may be that of an idle one.
    pub(super) fn admit(&self, address: SocketAddr) -> Result<Place, NoPlace> {
        let mut peers = self.peers();
        let count = peers.by_number.len();
        let limit = self.shared.limits.connections;
        if count >= limit + LEAVING {
            return Err(NoPlace::Yet);
        }
        if count >= limit {
            peers.shed()?;
        }
        let number = peers.next;
        peers.next += 1;
        let peer = Peer::new(address, Arc::clone(&self.shared.totals));
        peers.by_number.insert(number, peer.clone());
        metrics::gauge!("foil_connections").set(peers.by_number.len() as f64);
        Ok(Place { registry: self.clone(), number, peer })
    }

    /// Closes the connection that is missed least, where one is idle.
    pub(super) fn shed(&self) -> Result<(), NoPlace> {
        self.peers().shed()
    }

    /// Closes the connection with most unread bytes, where all of them are too many.
    pub(super) fn check_memory(&self) {
        if self.shared.totals.unread.load(Ordering::Relaxed) > self.shared.limits.unread_bytes {
            self.peers().cut_largest(Peer::unread_bytes);
        }
    }

    /// Closes the connection with most bytes of messages that are not whole, where all of them are too many.
    pub(super) fn check_inflow(&self) {
        if self.shared.totals.inflow.load(Ordering::Relaxed) > self.shared.limits.inflow_bytes {
            self.peers().cut_largest(Peer::inflow_bytes);
        }
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peers {
    fn cut_largest(&self, bytes: fn(&Peer) -> Option<usize>) {
        let sizes = self.by_number.values().filter_map(|peer| Some((bytes(peer)?, peer)));
        if let Some((_, peer)) = sizes.max_by_key(|(bytes, _)| *bytes) {
            peer.cut(Cut::Memory);
        }
    }

    fn shed(&self) -> Result<(), NoPlace> {
        let ranks = self.by_number.values().filter_map(|peer| Some((peer.rank()?, peer)));
        let (rank, peer) = ranks.min_by_key(|(rank, _)| *rank).ok_or(NoPlace::AtAll)?;
        if rank.quiet_for() < CHANCE {
            return Err(NoPlace::Yet);
        }
        peer.cut(Cut::Shed);
        Ok(())
    }
}

/// A connection's place among all, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    registry: Registry,
    number: u64,
    pub(super) peer: Peer,
}

impl Place {
    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = self.registry.peers();
        peers.by_number.remove(&self.number);
        metrics::gauge!("foil_connections").set(peers.by_number.len() as f64);
    }
}
