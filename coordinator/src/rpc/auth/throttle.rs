//! Delays responses to peers that repeatedly present wrong tokens.
//!
//! Tokens cannot be guessed; this limits the work and the log lines that an attacker can cause. Correct
//! tokens are never delayed, so users behind one address do not affect each other.

#![expect(clippy::disallowed_methods, reason = "attempts are counted over time")]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Number of wrong tokens per peer that are answered without delay, to allow for mistakes.
const FREE: u32 = 4;
/// Delay of the first response after those; it doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(3);
/// Time without a wrong token after which a peer's count is reset.
const FORGET: Duration = Duration::from_secs(60);
/// Maximum number of tracked peers; the least recently seen one is dropped first.
const MAX_PEERS: usize = 4096;

#[derive(Debug, Clone, Default)]
pub(super) struct Throttle {
    peers: Arc<Mutex<Peers>>,
}

impl Throttle {
    /// Records a wrong token, and waits for the delay of its response.
    pub(super) async fn failed(&self, peer: IpAddr) {
        let delay = {
            // Each change is complete in itself, so a panic elsewhere leaves no inconsistent state.
            let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
            peers.failed(peer, Instant::now())
        };
        if delay > Duration::ZERO {
            sleep(delay).await;
        }
    }
}

#[derive(Debug, Default)]
struct Peers {
    failures: HashMap<IpAddr, Failures>,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Peers {
    /// Records a wrong token; returns the delay of its response.
    fn failed(&mut self, peer: IpAddr, now: Instant) -> Duration {
        let peer = network(peer);
        if self.failures.len() >= MAX_PEERS && !self.failures.contains_key(&peer) {
            self.forget(now);
        }
        let failures = self.failures.entry(peer).or_insert(Failures { count: 0, last: now });
        if now.duration_since(failures.last) >= FORGET {
            failures.count = 0;
        }
        *failures = Failures { count: failures.count.saturating_add(1), last: now };
        match failures.count.saturating_sub(FREE) {
            0 => Duration::ZERO,
            more => FIRST_DELAY.saturating_mul(1 << (more - 1).min(10)).min(MAX_DELAY),
        }
    }

    fn forget(&mut self, now: Instant) {
        self.failures.retain(|_, failures| now.duration_since(failures.last) < FORGET);
        if self.failures.len() >= MAX_PEERS {
            let oldest = self.failures.iter().min_by_key(|(_, failures)| failures.last);
            if let Some(peer) = oldest.map(|(peer, _)| *peer) {
                self.failures.remove(&peer);
            }
        }
    }
}

/// The address itself, or the network that a single holder of IPv6 addresses usually has.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_to_wrong_tokens_slow_down_for_that_peer_and_recover() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        let attacker: IpAddr = "192.0.2.1".parse().unwrap();
        let delays: Vec<u128> = (0..12).map(|_| peers.failed(attacker, now).as_millis()).collect();
        assert_eq!(delays, [0, 0, 0, 0, 100, 200, 400, 800, 1600, 3000, 3000, 3000]);
        assert_eq!(peers.failed("192.0.2.2".parse().unwrap(), now), Duration::ZERO);
        assert_eq!(peers.failed(attacker, now + FORGET - Duration::from_millis(1)), MAX_DELAY);
        assert_eq!(peers.failed(attacker, now + FORGET * 2), Duration::ZERO);
    }

    #[test]
    fn one_holder_of_a_network_is_one_peer_and_memory_is_bounded() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        let within = |host: u32| IpAddr::from(Ipv6Addr::from((0x2001_0db8_u128 << 96) | u128::from(host)));
        let delays: Vec<Duration> = (0..6).map(|host| peers.failed(within(host), now)).collect();
        assert_eq!(delays[4], FIRST_DELAY);
        for host in 0..10_000_u32 {
            peers.failed(IpAddr::from(host.to_be_bytes()), now + Duration::from_millis(u64::from(host)));
            assert!(peers.failures.len() <= MAX_PEERS);
        }
        assert!(peers.failures.contains_key(&IpAddr::from(9_999_u32.to_be_bytes())), "the latest is kept");
    }
}
