//! What is known of one connection, and when it has to go.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::time::Instant;

use super::Limits;

/// Why the coordinator closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// It made no request in time.
    Silent,
    Idle,
    /// It does not take what it was sent.
    Unread,
    /// Another one needs its place.
    Shed,
    /// It holds most of the memory that all unread responses, or all unfinished requests, may take.
    Memory,
}

impl Cut {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Idle => "idle",
            Self::Unread => "unread",
            Self::Shed => "shed",
            Self::Memory => "memory",
        }
    }
}

/// One connection, as all who deal with it share it.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    state: Mutex<State>,
    /// Of the task that serves the connection.
    waker: AtomicWaker,
    /// The totals of all connections.
    totals: Arc<Totals>,
}

/// Bytes that all connections together make the coordinator keep.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// Unread bytes of responses.
    pub(super) unread: AtomicUsize,
    /// Bytes of messages that have not arrived whole.
    pub(super) inflow: AtomicUsize,
}

#[derive(Debug)]
pub(super) struct State {
    /// The last moment at which a request ended, or that of the connection.
    quiet_since: Instant,
    /// It has made a request.
    spoke: bool,
    /// Requests under way.
    open: usize,
    /// What was handed to the connection and is not written out: since when, and how many bytes.
    unread: BTreeMap<u64, (Instant, usize)>,
    handed: u64,
    /// Bytes of messages that are not whole.
    inflow: usize,
    cut: Option<Cut>,
}

impl State {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            quiet_since: now,
            spoke: false,
            open: 0,
            unread: BTreeMap::new(),
            handed: 0,
            inflow: 0,
            cut: None,
        }
    }

    /// Why the connection must end now, where it must.
    pub(super) fn overdue(&self, now: Instant, limits: &Limits) -> Option<Cut> {
        let quiet = now.saturating_duration_since(self.quiet_since);
        let is_quiet = self.open == 0 && self.unread.is_empty();
        // What was handed out first is the oldest.
        let oldest = self.unread.values().next();
        if self.cut.is_some() {
            self.cut
        } else if !self.spoke && quiet >= limits.first_request {
            Some(Cut::Silent)
        } else if oldest.is_some_and(|(since, _)| now.saturating_duration_since(*since) >= limits.unread) {
            Some(Cut::Unread)
        } else if self.spoke && is_quiet && quiet >= limits.idle {
            Some(Cut::Idle)
        } else {
            None
        }
    }

    fn begin(&mut self) {
        self.spoke = true;
        self.open += 1;
    }

    fn end(&mut self, now: Instant) {
        self.open -= 1;
        self.quiet_since = now;
    }

    /// Gives the number by which the bytes are taken.
    fn hand(&mut self, bytes: usize, now: Instant) -> u64 {
        let number = self.handed;
        self.handed += 1;
        self.unread.insert(number, (now, bytes));
        number
    }

    fn taken(&mut self, number: u64, now: Instant) {
        self.unread.remove(&number);
        self.quiet_since = now;
    }

    fn unread_bytes(&self) -> usize {
        self.unread.values().map(|(_, bytes)| bytes).sum()
    }
}

/// How willingly a connection is closed for another one: the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    spoke: bool,
    quiet_since: Instant,
}

impl Rank {
    pub(super) fn quiet_for(&self) -> Duration {
        self.quiet_since.elapsed()
    }
}

impl Peer {
    pub(super) fn new(address: SocketAddr, totals: Arc<Totals>) -> Self {
        let state = Mutex::new(State::new(Instant::now()));
        Self { shared: Arc::new(Shared { address, state, waker: AtomicWaker::new(), totals }) }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.shared.address
    }

    pub(super) fn waker(&self) -> &AtomicWaker {
        &self.shared.waker
    }

    pub(super) fn overdue(&self, limits: &Limits) -> Option<Cut> {
        self.state().overdue(Instant::now(), limits)
    }

    /// A request begins; it ends with what this returns.
    pub(super) fn request(&self) -> OpenRequest {
        self.state().begin();
        OpenRequest(self.clone())
    }

    /// Bytes are handed to the connection; they are written out, or given up, when what this returns is dropped.
    pub(super) fn hand(&self, bytes: usize) -> Unread {
        let number = self.state().hand(bytes, Instant::now());
        self.shared.totals.unread.fetch_add(bytes, Ordering::Relaxed);
        Unread { peer: self.clone(), number, bytes }
    }

    /// An account of one request's bytes that are not a whole message.
    pub(super) fn unfinished(&self) -> Unfinished {
        Unfinished { peer: self.clone(), bytes: 0 }
    }

    /// None where it is being closed already.
    pub(super) fn inflow_bytes(&self) -> Option<usize> {
        let state = self.state();
        state.cut.is_none().then_some(state.inflow)
    }

    /// None where a request is under way, or it is being closed already.
    pub(super) fn rank(&self) -> Option<Rank> {
        let state = self.state();
        let is_quiet = state.open == 0 && state.unread.is_empty() && state.cut.is_none();
        is_quiet.then_some(Rank { spoke: state.spoke, quiet_since: state.quiet_since })
    }

    /// None where it is being closed already.
    pub(super) fn unread_bytes(&self) -> Option<usize> {
        let state = self.state();
        state.cut.is_none().then(|| state.unread_bytes())
    }

    /// Closes the connection as soon as its task hears of it.
    pub(super) fn cut(&self, cut: Cut) {
        self.state().cut.get_or_insert(cut);
        self.shared.waker.wake();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole by itself, so a panic elsewhere leaves nothing half done.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct OpenRequest(Peer);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.state().end(Instant::now());
    }
}

/// Bytes of a request that are not a whole message.
#[derive(Debug)]
pub(super) struct Unfinished {
    peer: Peer,
    bytes: usize,
}

impl Unfinished {
    pub(super) fn set(&mut self, bytes: usize) {
        if bytes == self.bytes {
            return;
        }
        let total = &self.peer.shared.totals.inflow;
        total.fetch_add(bytes, Ordering::Relaxed);
        total.fetch_sub(self.bytes, Ordering::Relaxed);
        let mut state = self.peer.state();
        state.inflow = state.inflow + bytes - self.bytes;
        drop(state);
        self.bytes = bytes;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Bytes on their way to a reader.
#[derive(Debug)]
pub(super) struct Unread {
    peer: Peer,
    number: u64,
    bytes: usize,
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.peer.shared.totals.unread.fetch_sub(self.bytes, Ordering::Relaxed);
        self.peer.state().taken(self.number, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn a_connection_must_speak_soon_and_may_be_idle_for_a_while() {
        let (limits, mut now) = (Limits::default(), Instant::now());
        let mut state = State::new(now);
        now += limits.first_request - MOMENT;
        assert_eq!(state.overdue(now, &limits), None);
        assert_eq!(state.overdue(now + MOMENT, &limits), Some(Cut::Silent));
        state.begin();
        now += limits.idle * 10;
        assert_eq!(state.overdue(now, &limits), None, "a watch may last");
        state.end(now);
        now += limits.idle / 2;
        state.begin();
        state.end(now);
        now += limits.idle - MOMENT;
        assert_eq!(state.overdue(now, &limits), None);
        assert_eq!(state.overdue(now + MOMENT, &limits), Some(Cut::Idle));
    }

    #[test]
    fn what_is_not_taken_ends_the_connection_however_much_else_is() {
        let (limits, mut now) = (Limits::default(), Instant::now());
        let mut state = State::new(now);
        state.begin();
        let stuck = state.hand(100, now);
        for _ in 0..60 {
            let read = state.hand(1 << 20, now);
            state.taken(read, now);
            assert_eq!(state.overdue(now, &limits), None);
            now += limits.unread / 60;
        }
        assert_eq!((state.overdue(now, &limits), state.unread_bytes()), (Some(Cut::Unread), 100));
        state.taken(stuck, now);
        assert_eq!((state.overdue(now, &limits), state.unread_bytes()), (None, 0));
    }
}
