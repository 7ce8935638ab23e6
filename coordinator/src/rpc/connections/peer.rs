//! The state of one connection, and the deadlines after which it is closed.

#![expect(clippy::disallowed_methods, reason = "connections have deadlines")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::time::Instant;

use super::Limits;
use super::certificate::ClientCertificate;

/// Why the coordinator closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CloseReason {
    /// It sent no request in time.
    Silent,
    Idle,
    /// It does not read its responses.
    Unread,
    /// Another connection needs its permit.
    Evicted,
    /// It occupies the most memory for unread responses or incomplete requests.
    Memory,
}

impl CloseReason {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Idle => "idle",
            Self::Unread => "unread",
            Self::Evicted => "shed",
            Self::Memory => "memory",
        }
    }
}

/// Shared state of one connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    state: Mutex<State>,
    /// The certificate that the client presented, signed by the client CA.
    certificate: OnceLock<ClientCertificate>,
    /// Wakes the task that serves the connection.
    waker: AtomicWaker,
    /// The totals of all connections.
    totals: Arc<Totals>,
}

/// Memory occupied by all connections together.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// Unread bytes of responses.
    pub(super) unread: AtomicUsize,
    /// Bytes of incomplete messages.
    pub(super) incoming_bytes: AtomicUsize,
}

#[derive(Debug)]
pub(super) struct State {
    /// Time when a request last ended, or when the connection was opened.
    quiet_since: Instant,
    /// True once it has made a request.
    has_requested: bool,
    /// Number of requests in progress.
    open: usize,
    /// Unwritten responses by number: when they were queued, and their size.
    unread: BTreeMap<u64, (Instant, usize)>,
    queued: u64,
    /// Bytes of incomplete messages.
    incoming_bytes: usize,
    closing: Option<CloseReason>,
}

impl State {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            quiet_since: now,
            has_requested: false,
            open: 0,
            unread: BTreeMap::new(),
            queued: 0,
            incoming_bytes: 0,
            closing: None,
        }
    }

    /// The reason to close the connection immediately, if there is one.
    pub(super) fn overdue(&self, now: Instant, limits: &Limits) -> Option<CloseReason> {
        let quiet = now.saturating_duration_since(self.quiet_since);
        let is_quiet = self.open == 0 && self.unread.is_empty();
        // Numbers grow, so the first entry is the oldest.
        let oldest = self.unread.values().next();
        if self.closing.is_some() {
            self.closing
        } else if !self.has_requested && quiet >= limits.first_request {
            Some(CloseReason::Silent)
        } else if oldest.is_some_and(|(since, _)| now.saturating_duration_since(*since) >= limits.unread) {
            Some(CloseReason::Unread)
        } else if self.has_requested && is_quiet && quiet >= limits.idle {
            Some(CloseReason::Idle)
        } else {
            None
        }
    }

    fn begin(&mut self) {
        self.has_requested = true;
        self.open += 1;
    }

    fn end(&mut self, now: Instant) {
        self.open -= 1;
        self.quiet_since = now;
    }

    /// Records queued bytes; returns the number by which [`State::written`] refers to them.
    fn queue(&mut self, bytes: usize, now: Instant) -> u64 {
        let number = self.queued;
        self.queued += 1;
        self.unread.insert(number, (now, bytes));
        number
    }

    fn written(&mut self, number: u64, now: Instant) {
        self.unread.remove(&number);
        self.quiet_since = now;
    }

    fn unread_bytes(&self) -> usize {
        self.unread.values().map(|(_, bytes)| bytes).sum()
    }
}

/// Order in which idle connections are evicted: the smallest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EvictionRank {
    has_requested: bool,
    quiet_since: Instant,
}

impl EvictionRank {
    pub(super) fn quiet_for(&self) -> Duration {
        self.quiet_since.elapsed()
    }
}

impl Peer {
    pub(super) fn new(address: SocketAddr, totals: Arc<Totals>) -> Self {
        let state = Mutex::new(State::new(Instant::now()));
        let (certificate, waker) = (OnceLock::new(), AtomicWaker::new());
        Self { shared: Arc::new(Shared { address, state, certificate, waker, totals }) }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Records the certificate from the handshake, which happens only once.
    pub(super) fn set_certificate(&self, certificate: ClientCertificate) {
        self.shared.certificate.get_or_init(|| certificate);
    }

    pub(super) fn certificate(&self) -> Option<&ClientCertificate> {
        self.shared.certificate.get()
    }

    pub(super) fn waker(&self) -> &AtomicWaker {
        &self.shared.waker
    }

    pub(super) fn overdue(&self, limits: &Limits) -> Option<CloseReason> {
        self.state().overdue(Instant::now(), limits)
    }

    /// Records a request, which is in progress until the returned value is dropped.
    pub(super) fn request(&self) -> OpenRequest {
        self.state().begin();
        OpenRequest(self.clone())
    }

    /// Records queued bytes; they count as written when the returned value is dropped.
    pub(super) fn queue(&self, bytes: usize) -> Unread {
        let number = self.state().queue(bytes, Instant::now());
        self.shared.totals.unread.fetch_add(bytes, Ordering::Relaxed);
        Unread { peer: self.clone(), number, bytes }
    }

    /// Counter of the bytes of one request's incomplete message.
    pub(super) fn partial_message(&self) -> PartialMessage {
        PartialMessage { peer: self.clone(), bytes: 0 }
    }

    /// None if the connection is already being closed.
    pub(super) fn incoming_bytes(&self) -> Option<usize> {
        let state = self.state();
        state.closing.is_none().then_some(state.incoming_bytes)
    }

    /// None if a request is in progress or the connection is already being closed.
    pub(super) fn rank(&self) -> Option<EvictionRank> {
        let state = self.state();
        let is_quiet = state.open == 0 && state.unread.is_empty() && state.closing.is_none();
        is_quiet
            .then_some(EvictionRank { has_requested: state.has_requested, quiet_since: state.quiet_since })
    }

    /// None if the connection is already being closed.
    pub(super) fn unread_bytes(&self) -> Option<usize> {
        let state = self.state();
        state.closing.is_none().then(|| state.unread_bytes())
    }

    /// Closes the connection the next time its task is polled.
    pub(super) fn close(&self, reason: CloseReason) {
        self.state().closing.get_or_insert(reason);
        self.shared.waker.wake();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete in itself, so a panic elsewhere leaves no inconsistent state.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in progress.
#[derive(Debug)]
pub(super) struct OpenRequest(Peer);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.state().end(Instant::now());
    }
}

/// Counts the bytes of a request's incomplete message.
#[derive(Debug)]
pub(super) struct PartialMessage {
    peer: Peer,
    bytes: usize,
}

impl PartialMessage {
    pub(super) fn set(&mut self, bytes: usize) {
        if bytes == self.bytes {
            return;
        }
        let total = &self.peer.shared.totals.incoming_bytes;
        total.fetch_add(bytes, Ordering::Relaxed);
        total.fetch_sub(self.bytes, Ordering::Relaxed);
        let mut state = self.peer.state();
        state.incoming_bytes = state.incoming_bytes + bytes - self.bytes;
        drop(state);
        self.bytes = bytes;
    }
}

impl Drop for PartialMessage {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Queued bytes, until they are dropped.
#[derive(Debug)]
pub(super) struct Unread {
    peer: Peer,
    number: u64,
    bytes: usize,
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.peer.shared.totals.unread.fetch_sub(self.bytes, Ordering::Relaxed);
        self.peer.state().written(self.number, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn a_connection_must_make_a_request_soon_and_may_be_idle_for_a_while() {
        let (limits, mut now) = (Limits::default(), Instant::now());
        let mut state = State::new(now);
        now += limits.first_request - MOMENT;
        assert_eq!(state.overdue(now, &limits), None);
        assert_eq!(state.overdue(now + MOMENT, &limits), Some(CloseReason::Silent));
        state.begin();
        now += limits.idle * 10;
        assert_eq!(state.overdue(now, &limits), None, "a watch may last");
        state.end(now);
        now += limits.idle / 2;
        state.begin();
        state.end(now);
        now += limits.idle - MOMENT;
        assert_eq!(state.overdue(now, &limits), None);
        assert_eq!(state.overdue(now + MOMENT, &limits), Some(CloseReason::Idle));
    }

    #[test]
    fn an_unread_response_closes_the_connection_however_much_else_is_read() {
        let (limits, mut now) = (Limits::default(), Instant::now());
        let mut state = State::new(now);
        state.begin();
        let stuck = state.queue(100, now);
        for _ in 0..60 {
            let read = state.queue(1 << 20, now);
            state.written(read, now);
            assert_eq!(state.overdue(now, &limits), None);
            now += limits.unread / 60;
        }
        assert_eq!((state.overdue(now, &limits), state.unread_bytes()), (Some(CloseReason::Unread), 100));
        state.written(stuck, now);
        assert_eq!((state.overdue(now, &limits), state.unread_bytes()), (None, 0));
    }
}
