//! Whether the ranks of a gang reach each other.
//!
//! Found out before they meet: a backend that cannot connect says so only after the time that its collectives may take,
//! and in the words of its sockets.

#![expect(clippy::disallowed_methods, reason = "connection attempts end by the clock")]

use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};
use std::{io, str};

use foil_torch::c10d::Store;

use super::{ASSEMBLY_PERIOD, CollectiveError, Result};

/// For a peer that listens already to be reached.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(250);

/// Tries to reach a peer that listens at `host` and `port`.
pub(super) fn reach(peer: usize, host: &str, port: u16) -> Result<()> {
    reach_within(PATIENCE, peer, host, port)
}

fn reach_within(patience: Duration, peer: usize, host: &str, port: u16) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(PAUSE);
        match connect(host, port, left) {
            Ok(()) => return Ok(()),
            Err(source) if Instant::now() >= deadline => {
                return Err(CollectiveError::Unreachable { peer, address: format!("{host}:{port}"), source });
            }
            Err(_) => thread::sleep(PAUSE),
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

/// A rank's door for its peers' tries, told of in the store they all reach.
pub(super) struct Door<'a> {
    store: &'a Store,
    rank: usize,
    listener: TcpListener,
}

impl<'a> Door<'a> {
    /// Opens it on the rank's own address. To be done before the rank says that it has come.
    pub(super) fn open(store: &'a Store, rank: usize, address: &str) -> Result<Self> {
        let refused = |source| CollectiveError::Listen { address: address.to_owned(), source };
        let listener = TcpListener::bind((address, 0)).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let port = listener.local_addr().map_err(refused)?.port();
        store.set(&door(rank), format!("{port} {address}").as_bytes())?;
        Ok(Self { store, rank, listener })
    }

    /// Tries to reach all others, and waits until each has reached all. To be done when all have come.
    pub(super) fn try_all(self, world: usize) -> Result<()> {
        for peer in (0..world).filter(|peer| *peer != self.rank) {
            let told = self.store.get(&door(peer))?;
            let (port, host) = parse(&told).ok_or_else(|| CollectiveError::Argument {
                operation: "reaching a peer",
                found: String::from_utf8_lossy(&told).into_owned(),
                expected: "a port and an address".to_owned(),
            })?;
            reach(peer, host, port)?;
        }
        const REACHED: &str = "reached";
        let mut reached = self.store.add(REACHED, 1)?;
        while reached < world as i64 {
            // Or the queue of tries would fill up.
            while self.listener.accept().is_ok() {}
            thread::sleep(ASSEMBLY_PERIOD);
            reached = self.store.add(REACHED, 0)?;
        }
        Ok(())
    }
}

fn door(rank: usize) -> String {
    format!("door/{rank}")
}

fn parse(told: &[u8]) -> Option<(u16, &str)> {
    let (port, host) = str::from_utf8(told).ok()?.split_once(' ')?;
    Some((port.parse().ok()?, host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_is_not_there_is_named_with_its_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        reach(0, "127.0.0.1", port).unwrap();
        drop(listener);
        let error = reach_within(Duration::ZERO, 3, "127.0.0.1", port).unwrap_err();
        let told = error.to_string();
        assert!(told.contains("rank 3") && told.contains(&format!("127.0.0.1:{port}")), "{told}");
        assert!(told.contains("--advertise-address"), "{told}");
    }

    #[test]
    fn a_rank_whose_own_address_nobody_reaches_fails_its_peers() {
        let host = Store::host("127.0.0.1", Duration::from_secs(20)).unwrap();
        let mine = Door::open(&host, 0, "127.0.0.1").unwrap();
        // As of a rank on another machine that told the others the loopback address of its own.
        host.set(&door(1), b"1 127.0.0.1").unwrap();
        let peer = host.get(&door(1)).unwrap();
        let (port, address) = parse(&peer).unwrap();
        assert!(matches!(
            reach_within(Duration::ZERO, 1, address, port),
            Err(CollectiveError::Unreachable { peer: 1, .. })
        ));
        drop(mine);
    }
}
