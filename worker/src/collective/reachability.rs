//! Checks that the ranks of a gang can reach each other.
//!
//! The check runs before the backend connects. The backend would report an unreachable rank only after the
//! timeout of its collectives, as a socket error.

#![expect(clippy::disallowed_methods, reason = "connection attempts have a deadline")]

use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};
use std::{io, str};

use foil_torch::c10d::Store;

use super::{CollectiveError, POLL_PERIOD, RankConfig, Result};

/// Time for connecting to a peer that is already listening.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const RETRY_PERIOD: Duration = Duration::from_millis(250);

/// Connects to a peer that listens at `host` and `port`, and closes the connection.
pub(super) fn connect_to_peer(peer: usize, host: &str, port: u16) -> Result<()> {
    connect_within(CONNECT_TIMEOUT, peer, host, port)
}

fn connect_within(timeout: Duration, peer: usize, host: &str, port: u16) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(RETRY_PERIOD);
        match connect(host, port, left) {
            Ok(()) => return Ok(()),
            Err(source) if Instant::now() >= deadline => {
                return Err(CollectiveError::Unreachable { peer, address: format!("{host}:{port}"), source });
            }
            Err(_) => thread::sleep(RETRY_PERIOD),
        }
    }
}

fn connect(host: &str, port: u16, limit: Duration) -> io::Result<()> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, limit) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A listener for the probes of a rank's peers, published in the store.
pub(super) struct ProbeListener<'a> {
    store: &'a Store,
    rank: usize,
    listener: TcpListener,
}

impl<'a> ProbeListener<'a> {
    /// Listens on the rank's address. Must be called before the rank joins.
    pub(super) fn open(store: &'a Store, rank: usize, config: &RankConfig) -> Result<Self> {
        let address = &config.address;
        let listen_error = |source| CollectiveError::Listen { address: address.clone(), source };
        let listener = config.ports.listen(address)?;
        listener.set_nonblocking(true).map_err(listen_error)?;
        let port = listener.local_addr().map_err(listen_error)?.port();
        store.set(&listener_key(rank), format!("{port} {address}").as_bytes())?;
        Ok(Self { store, rank, listener })
    }

    /// Connects to all other ranks, and waits until each has done so. Must be called once all have joined.
    pub(super) fn probe_all(self, world: usize) -> Result<()> {
        for peer in (0..world).filter(|peer| *peer != self.rank) {
            let entry = self.store.get(&listener_key(peer))?;
            let (port, host) = parse(&entry).ok_or_else(|| CollectiveError::Argument {
                operation: "reaching a peer",
                found: String::from_utf8_lossy(&entry).into_owned(),
                expected: "a port and an address".to_owned(),
            })?;
            connect_to_peer(peer, host, port)?;
        }
        const REACHED: &str = "reached";
        let mut reached = self.store.add(REACHED, 1)?;
        while reached < world as i64 {
            // Drains the queue of connections, which would fill up.
            while self.listener.accept().is_ok() {}
            thread::sleep(POLL_PERIOD);
            reached = self.store.add(REACHED, 0)?;
        }
        Ok(())
    }
}

fn listener_key(rank: usize) -> String {
    format!("listener/{rank}")
}

fn parse(entry: &[u8]) -> Option<(u16, &str)> {
    let (port, host) = str::from_utf8(entry).ok()?.split_once(' ')?;
    Some((port.parse().ok()?, host))
}

#[cfg(test)]
mod tests {
    use super::super::testing::rank_config;
    use super::*;

    #[test]
    fn a_peer_that_is_not_there_is_named_with_its_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        connect_to_peer(0, "127.0.0.1", port).unwrap();
        drop(listener);
        let error = connect_within(Duration::ZERO, 3, "127.0.0.1", port).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("rank 3") && message.contains(&format!("127.0.0.1:{port}")), "{message}");
        assert!(message.contains("--advertise-address"), "{message}");
    }

    #[test]
    fn an_unreachable_rank_fails_its_peers() {
        let host = Store::host("127.0.0.1", Duration::from_secs(20)).unwrap();
        let own = ProbeListener::open(&host, 0, &rank_config()).unwrap();
        // Simulates a rank on another machine that published its loopback address.
        host.set(&listener_key(1), b"1 127.0.0.1").unwrap();
        let peer = host.get(&listener_key(1)).unwrap();
        let (port, address) = parse(&peer).unwrap();
        assert!(matches!(
            connect_within(Duration::ZERO, 1, address, port),
            Err(CollectiveError::Unreachable { peer: 1, .. })
        ));
        drop(own);
    }
}
