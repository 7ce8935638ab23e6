//! Transfer slots. Each transfer occupies memory, so slots are few, and a stalled or slow transfer loses its
//! slot to the next one.

#![expect(clippy::disallowed_methods, reason = "slots have deadlines")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::status::busy;

/// Maximum number of waiting calls; further ones are rejected immediately, so that their data occupies no
/// memory.
const MAX_WAITING: usize = 64;

/// Bytes per second. A transfer with a slower peer loses its slot if others wait, so that callers cannot
/// occupy all slots at just the minimum rate.
const FAIR_RATE: f64 = (1 << 20) as f64;

/// Timeouts of slots; tests shorten them.
#[derive(Debug, Clone, Copy)]
struct Timeouts {
    /// Time that a call waits for a slot before it is rejected.
    turn: Duration,
    /// While others wait for the slot: how long a peer may stall, and how long before its rate counts.
    grace: Duration,
    /// Interval between two checks for slow transfers.
    poll: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { turn: Duration::from_secs(20), grace: Duration::from_secs(5), poll: Duration::from_secs(1) }
    }
}

/// A fixed number of slots. Cheap to clone; all clones share them.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    permits: Arc<Semaphore>,
    timeouts: Timeouts,
    waiting: AtomicUsize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    by_number: BTreeMap<u64, Holder>,
    next: u64,
}

#[derive(Debug)]
struct Holder {
    /// Start of the current wait for the peer; none while the transfer waits for the store.
    waits_since: Option<Instant>,
    /// Total time of earlier waits for the peer.
    waited: Duration,
    /// Bytes transferred.
    bytes: u64,
    evicted: CancellationToken,
}

impl Holder {
    /// The peer's rate in bytes per second, if it is so low that the slot may go to another transfer.
    fn low_rate(&self, grace: Duration) -> Option<f64> {
        let waits = self.waits_since.map(|since| since.elapsed()).unwrap_or_default();
        let all = self.waited + waits;
        let rate = self.bytes as f64 / all.as_secs_f64().max(f64::MIN_POSITIVE);
        let is_low = waits >= grace || (all >= grace && rate < FAIR_RATE);
        (is_low && !self.evicted.is_cancelled()).then_some(rate)
    }
}

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        Self::with_timeouts(count, Timeouts::default())
    }

    fn with_timeouts(count: usize, timeouts: Timeouts) -> Self {
        let permits = Arc::new(Semaphore::new(count));
        let shared = Shared { permits, timeouts, waiting: AtomicUsize::new(0), held: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Takes a slot, in order of arrival.
    pub(super) async fn take(&self) -> Result<Slot, Status> {
        let Some(_waiting) = Waiting::among(&self.shared.waiting) else {
            return Err(busy("too many transfers are waiting"));
        };
        let permit = Arc::clone(&self.shared.permits).acquire_owned();
        tokio::pin!(permit);
        let Timeouts { turn, poll, .. } = self.shared.timeouts;
        let deadline = Instant::now() + turn;
        loop {
            tokio::select! {
                biased;
                permit = timeout_at(deadline, &mut permit) => match permit {
                    Ok(Ok(permit)) => return Ok(self.hold(permit)),
                    Ok(Err(_)) | Err(_) => return Err(busy("too many transfers at once")),
                },
                () = sleep(poll) => self.evict_slowest(),
            }
        }
    }

    fn hold(&self, permit: OwnedSemaphorePermit) -> Slot {
        let evicted = CancellationToken::new();
        let mut held = self.held();
        let number = held.next;
        held.next += 1;
        held.by_number.insert(
            number,
            Holder { waits_since: None, waited: Duration::ZERO, bytes: 0, evicted: evicted.clone() },
        );
        Slot { slots: self.clone(), number, evicted, _permit: permit }
    }

    fn evict_slowest(&self) {
        let (held, grace) = (self.held(), self.shared.timeouts.grace);
        let slow = held.by_number.values().filter_map(|holder| Some((holder.low_rate(grace)?, holder)));
        if let Some((_, slowest)) = slow.min_by(|(one, _), (other, _)| one.total_cmp(other)) {
            slowest.evicted.cancel();
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.shared.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A waiting call, counted until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn among(count: &'a AtomicUsize) -> Option<Self> {
        let waiting = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < MAX_WAITING).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A transfer's slot, released when it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Slots,
    number: u64,
    evicted: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    /// Waits for the transfer's peer for at most `limit`, and only while no other call needs the slot.
    pub(super) async fn wait_for<T>(
        &self,
        limit: Duration,
        peer: impl Future<Output = T>,
    ) -> Result<T, Interrupted> {
        self.mark(Some(Instant::now()));
        let moved = tokio::select! {
            biased;
            moved = peer => Ok(moved),
            () = self.evicted.cancelled() => Err(Interrupted::Evicted),
            () = sleep(limit) => Err(Interrupted::TimedOut),
        };
        self.mark(None);
        moved
    }

    fn mark(&self, waits_since: Option<Instant>) {
        if let Some(holder) = self.slots.held().by_number.get_mut(&self.number) {
            holder.waited += holder.waits_since.map(|since| since.elapsed()).unwrap_or_default();
            holder.waits_since = waits_since;
        }
    }

    /// Records transferred bytes.
    pub(super) fn moved(&self, bytes: usize) {
        if let Some(holder) = self.slots.held().by_number.get_mut(&self.number) {
            holder.bytes += bytes as u64;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.held().by_number.remove(&self.number);
    }
}

/// The reason why a transfer is aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interrupted {
    Evicted,
    TimedOut,
}

/// Time that a sender may still spend idle. It grows with the bytes sent, so that a transfer takes no longer
/// than its size would at the minimum rate.
#[derive(Debug)]
pub(super) struct Credit {
    left: Duration,
}

impl Credit {
    /// Initial credit, and the maximum that can be saved up.
    const MAX: Duration = Duration::from_secs(20);
    /// Minimum rate in bytes per second.
    pub(super) const MIN_RATE: u32 = 64 << 10;

    pub(super) fn new() -> Self {
        Self { left: Self::MAX }
    }

    pub(super) fn left(&self) -> Duration {
        self.left
    }

    /// Records bytes that arrived after waiting.
    pub(super) fn record(&mut self, waited: Duration, bytes: usize) {
        let earned = Duration::from_secs_f64(bytes as f64 / f64::from(Self::MIN_RATE));
        self.left = (self.left.saturating_sub(waited) + earned).min(Self::MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tonic::Code;

    use super::*;

    /// Timeouts short enough for a test, but long enough that even a busy machine preserves the order.
    fn slots(count: usize, turn: Duration) -> Slots {
        let (grace, poll) = (Duration::from_millis(500), Duration::from_millis(20));
        Slots::with_timeouts(count, Timeouts { turn, grace, poll })
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_waiting_call_takes_the_slot_of_a_stalled_peer_and_not_of_a_slow_store() {
        let slots = slots(2, LONG);
        let (grace, storing) = (slots.take().await.unwrap(), slots.take().await.unwrap());
        let grace = tokio::spawn(async move { grace.wait_for(LONG, pending::<()>()).await });
        let next = slots.take().await.unwrap();
        assert_eq!(grace.await.unwrap(), Err(Interrupted::Evicted));
        drop((next, storing));
    }

    #[tokio::test]
    async fn a_fast_peer_keeps_the_slot() {
        let slots = slots(1, Duration::from_secs(1));
        let held = slots.take().await.unwrap();
        let stopped = CancellationToken::new();
        let moving = tokio::spawn({
            let stopped = stopped.clone();
            async move {
                while !stopped.is_cancelled() {
                    held.wait_for(LONG, sleep(Duration::from_millis(20))).await.unwrap();
                    held.moved(1 << 20);
                }
            }
        });
        assert_eq!(slots.take().await.unwrap_err().code(), Code::Unavailable, "no slot became free in time");
        stopped.cancel();
        moving.await.unwrap();
        slots.take().await.unwrap();
    }

    #[tokio::test]
    async fn a_slow_peer_loses_the_slot_to_a_waiting_call() {
        let slots = slots(1, LONG);
        let held = slots.take().await.unwrap();
        let slow = tokio::spawn(async move {
            loop {
                if let Err(lost) = held.wait_for(LONG, sleep(Duration::from_millis(20))).await {
                    break lost;
                }
                held.moved(1000);
            }
        });
        slots.take().await.unwrap();
        assert_eq!(slow.await.unwrap(), Interrupted::Evicted);
    }

    #[tokio::test]
    async fn the_number_of_waiting_calls_is_bounded() {
        let slots = slots(1, LONG);
        let held = slots.take().await.unwrap();
        let waiting: Vec<_> = (0..MAX_WAITING)
            .map(|_| {
                let slots = slots.clone();
                tokio::spawn(async move { slots.take().await.map(drop) })
            })
            .collect();
        while slots.shared.waiting.load(Ordering::Relaxed) < MAX_WAITING {
            tokio::task::yield_now().await;
        }
        assert_eq!(slots.take().await.unwrap_err().code(), Code::Unavailable);
        drop(held);
        for waiter in waiting {
            waiter.await.unwrap().unwrap();
        }
        slots.take().await.unwrap();
    }

    #[test]
    fn a_transfer_takes_no_longer_than_its_size_at_the_minimum_rate() {
        let mut credit = Credit::new();
        let mut spent = Duration::ZERO;
        // One byte at a time, whenever the credit is almost used up.
        while !credit.left().is_zero() && spent < Duration::from_secs(60) {
            let waited = credit.left().min(Duration::from_secs(19));
            spent += waited;
            credit.record(waited, 1);
            if credit.left() < Duration::from_millis(1) {
                break;
            }
        }
        assert!(spent < Duration::from_secs(21), "{spent:?}");
        let mut credit = Credit::new();
        for _ in 0..1000 {
            credit.record(Duration::from_secs(15), 1 << 20);
            assert!(credit.left() > Duration::from_secs(1), "a slow link that makes progress is fine");
        }
    }
}
