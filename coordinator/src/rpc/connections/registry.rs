//! The registry of all open connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Limits;
use super::peer::{CloseReason, Peer, Totals};

/// Connections allowed beyond the limit while those that they evict are being closed.
const OVERCOMMIT: usize = 32;
/// Time that every connection gets to send a request, however many others want its permit. Waiting
/// connections have sent theirs by then, so they replace silent ones at this rate.
const MIN_REQUEST_WINDOW: Duration = Duration::from_millis(25);

/// The reason why a connection gets no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPermit {
    /// A permit will soon be free.
    NotYet,
    /// Every connection has a request in progress.
    Busy,
}

/// The open connections. Cheap to clone.
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

    /// A permit for one more connection, which may evict an idle one.
    pub(super) fn admit(&self, address: SocketAddr) -> Result<Permit, NoPermit> {
        let mut peers = self.peers();
        let count = peers.by_number.len();
        let limit = self.shared.limits.connections;
        if count >= limit + OVERCOMMIT {
            return Err(NoPermit::NotYet);
        }
        if count >= limit {
            peers.evict_idle()?;
        }
        let number = peers.next;
        peers.next += 1;
        let peer = Peer::new(address, Arc::clone(&self.shared.totals));
        peers.by_number.insert(number, peer.clone());
        metrics::gauge!("foil_connections").set(peers.by_number.len() as f64);
        Ok(Permit { registry: self.clone(), number, peer })
    }

    /// Closes the connection that has been idle longest.
    pub(super) fn evict_idle(&self) -> Result<(), NoPermit> {
        self.peers().evict_idle()
    }

    /// Closes the connection with the most unread bytes, if the total exceeds the limit.
    pub(super) fn check_memory(&self) {
        if self.shared.totals.unread.load(Ordering::Relaxed) > self.shared.limits.unread_bytes {
            self.peers().close_largest(Peer::unread_bytes);
        }
    }

    /// Closes the connection with the most bytes of incomplete messages, if the total exceeds the limit.
    pub(super) fn check_incoming(&self) {
        if self.shared.totals.incoming_bytes.load(Ordering::Relaxed) > self.shared.limits.incoming_bytes {
            self.peers().close_largest(Peer::incoming_bytes);
        }
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peers {
    fn close_largest(&self, bytes: fn(&Peer) -> Option<usize>) {
        let sizes = self.by_number.values().filter_map(|peer| Some((bytes(peer)?, peer)));
        if let Some((_, peer)) = sizes.max_by_key(|(bytes, _)| *bytes) {
            peer.close(CloseReason::Memory);
        }
    }

    fn evict_idle(&self) -> Result<(), NoPermit> {
        let ranks = self.by_number.values().filter_map(|peer| Some((peer.rank()?, peer)));
        let (rank, peer) = ranks.min_by_key(|(rank, _)| *rank).ok_or(NoPermit::Busy)?;
        if rank.quiet_for() < MIN_REQUEST_WINDOW {
            return Err(NoPermit::NotYet);
        }
        peer.close(CloseReason::Evicted);
        Ok(())
    }
}

/// A connection's permit, released when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    registry: Registry,
    number: u64,
    pub(super) peer: Peer,
}

impl Permit {
    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut peers = self.registry.peers();
        peers.by_number.remove(&self.number);
        metrics::gauge!("foil_connections").set(peers.by_number.len() as f64);
    }
}
