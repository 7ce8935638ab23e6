//! Slots of transfers: each holds memory, so they are few, and who lets his lie idle, or is slow, loses it to the next.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::status::busy;

/// Calls that wait; more are told to come again at once, so that what they have sent is held by nobody.
const WAITING: usize = 64;

/// Bytes a second. A transfer with a slower other side loses its slot while others wait: nobody can keep all slots by being
/// just as fast as a transfer must be.
const FAIR_RATE: f64 = (1 << 20) as f64;

/// How long is waited for what.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// For a call's turn, before it is told to come again.
    turn: Duration,
    /// For the other side of a transfer, while somebody waits for its slot: to move at all, and in all before its rate
    /// counts.
    lazy: Duration,
    /// Between two looks for such a transfer.
    look: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { turn: Duration::from_secs(20), lazy: Duration::from_secs(5), look: Duration::from_secs(1) }
    }
}

/// Cheap to clone; all clones share the slots.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    permits: Arc<Semaphore>,
    patience: Patience,
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
    /// Since when the transfer waits for its other side; none while it waits for the store.
    waits_since: Option<Instant>,
    /// How long it has waited for its other side before, and what has moved meanwhile.
    waited: Duration,
    bytes: u64,
    evicted: CancellationToken,
}

impl Holder {
    /// The rate of the transfer's other side in bytes a second, where it is so low that another may have the slot.
    fn low_rate(&self, lazy: Duration) -> Option<f64> {
        let waits = self.waits_since.map(|since| since.elapsed()).unwrap_or_default();
        let all = self.waited + waits;
        let rate = self.bytes as f64 / all.as_secs_f64().max(f64::MIN_POSITIVE);
        let is_low = waits >= lazy || (all >= lazy && rate < FAIR_RATE);
        (is_low && !self.evicted.is_cancelled()).then_some(rate)
    }
}

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        Self::with_patience(count, Patience::default())
    }

    fn with_patience(count: usize, patience: Patience) -> Self {
        let permits = Arc::new(Semaphore::new(count));
        let shared = Shared { permits, patience, waiting: AtomicUsize::new(0), held: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// A slot, in order of arrival.
    pub(super) async fn take(&self) -> Result<Slot, Status> {
        let Some(_waiting) = Waiting::among(&self.shared.waiting) else {
            return Err(busy("too many transfers wait already"));
        };
        let permit = Arc::clone(&self.shared.permits).acquire_owned();
        tokio::pin!(permit);
        let Patience { turn, look, .. } = self.shared.patience;
        let deadline = Instant::now() + turn;
        loop {
            tokio::select! {
                biased;
                permit = timeout_at(deadline, &mut permit) => match permit {
                    Ok(Ok(permit)) => return Ok(self.hold(permit)),
                    Ok(Err(_)) | Err(_) => return Err(busy("too many transfers at once")),
                },
                () = sleep(look) => self.evict_slowest(),
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
        let (held, lazy) = (self.held(), self.shared.patience.lazy);
        let slow = held.by_number.values().filter_map(|holder| Some((holder.low_rate(lazy)?, holder)));
        if let Some((_, slowest)) = slow.min_by(|(one, _), (other, _)| one.total_cmp(other)) {
            slowest.evicted.cancel();
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.shared.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of those that wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn among(count: &'a AtomicUsize) -> Option<Self> {
        let waiting = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < WAITING).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A transfer's slot, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Slots,
    number: u64,
    evicted: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    /// Waits for the transfer's other side, for as long as `limit` and nobody else needs the slot.
    pub(super) async fn wait_for<T>(
        &self,
        limit: Duration,
        other_side: impl Future<Output = T>,
    ) -> Result<T, Lost> {
        self.mark(Some(Instant::now()));
        let moved = tokio::select! {
            biased;
            moved = other_side => Ok(moved),
            () = self.evicted.cancelled() => Err(Lost::ToAnother),
            () = sleep(limit) => Err(Lost::InTime),
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

    /// So many bytes came from the other side, or went to it.
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

/// Why a transfer must end though its other side may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    ToAnother,
    InTime,
}

/// What a sender may still spend on waiting: it grows with what is sent, so that a transfer takes no longer than its size
/// and the least rate allow.
#[derive(Debug)]
pub(super) struct Credit {
    left: Duration,
}

impl Credit {
    /// What a sender has at first, and the most that it can save.
    const MOST: Duration = Duration::from_secs(20);
    /// Bytes a second.
    pub(super) const LEAST_RATE: u32 = 64 << 10;

    pub(super) fn new() -> Self {
        Self { left: Self::MOST }
    }

    pub(super) fn left(&self) -> Duration {
        self.left
    }

    /// So many bytes came, after so much waiting.
    pub(super) fn settle(&mut self, waited: Duration, bytes: usize) {
        let earned = Duration::from_secs_f64(bytes as f64 / f64::from(Self::LEAST_RATE));
        self.left = (self.left.saturating_sub(waited) + earned).min(Self::MOST);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tonic::Code;

    use super::*;

    /// So short that a test need not wait, and so long that a busy machine keeps the order.
    fn slots(count: usize, turn: Duration) -> Slots {
        let (lazy, look) = (Duration::from_millis(500), Duration::from_millis(20));
        Slots::with_patience(count, Patience { turn, lazy, look })
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn who_waits_takes_the_slot_of_the_laziest_and_not_of_one_whose_store_is_slow() {
        let slots = slots(2, LONG);
        let (lazy, storing) = (slots.take().await.unwrap(), slots.take().await.unwrap());
        let lazy = tokio::spawn(async move { lazy.wait_for(LONG, pending::<()>()).await });
        let next = slots.take().await.unwrap();
        assert_eq!(lazy.await.unwrap(), Err(Lost::ToAnother));
        drop((next, storing));
    }

    #[tokio::test]
    async fn who_moves_keeps_the_slot() {
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
        assert_eq!(slots.take().await.unwrap_err().code(), Code::Unavailable, "its turn did not come");
        stopped.cancel();
        moving.await.unwrap();
        slots.take().await.unwrap();
    }

    #[tokio::test]
    async fn who_moves_slowly_loses_the_slot_to_who_waits() {
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
        assert_eq!(slow.await.unwrap(), Lost::ToAnother);
    }

    #[tokio::test]
    async fn only_so_many_wait() {
        let slots = slots(1, LONG);
        let held = slots.take().await.unwrap();
        let waiting: Vec<_> = (0..WAITING)
            .map(|_| {
                let slots = slots.clone();
                tokio::spawn(async move { slots.take().await.map(drop) })
            })
            .collect();
        while slots.shared.waiting.load(Ordering::Relaxed) < WAITING {
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
    fn a_transfer_takes_no_longer_than_its_size_and_the_least_rate_allow() {
        let mut credit = Credit::new();
        let mut spent = Duration::ZERO;
        // A byte whenever the time is almost up.
        while !credit.left().is_zero() && spent < Duration::from_secs(60) {
            let waited = credit.left().min(Duration::from_secs(19));
            spent += waited;
            credit.settle(waited, 1);
            if credit.left() < Duration::from_millis(1) {
                break;
            }
        }
        assert!(spent < Duration::from_secs(21), "{spent:?}");
        let mut credit = Credit::new();
        for _ in 0..1000 {
            credit.settle(Duration::from_secs(15), 1 << 20);
            assert!(credit.left() > Duration::from_secs(1), "a slow line that moves is fine");
        }
    }
}
