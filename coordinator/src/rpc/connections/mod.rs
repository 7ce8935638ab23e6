//! Connections, none of which may cost the others anything: they are counted, must say something soon, must take what
//! they are sent, and go when they are idle.
//!
//! A connection is told of its requests and responses by [`follow`], a layer around all services; it looks at the clock
//! whenever it is polled, and ends itself with an error where it has been patient for long enough.

mod accept;
mod follow;
mod inflow;
mod peer;
mod registry;
mod stream;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub(super) use self::accept::incoming;
pub(super) use self::follow::follow;
pub(super) use self::registry::Registry;

/// What connections may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open at once. One more takes the place of the one that has been idle for longest.
    pub connections: usize,
    /// For the first request, from the moment that the connection is made.
    pub first_request: Duration,
    /// Without a request under way.
    pub idle: Duration,
    /// For a reader to take what it was sent, a message of 1 MiB at most or a page.
    pub unread: Duration,
    /// For a message to come whole, from its first byte on; of a call that is not a stream, from the call's beginning.
    pub message: Duration,
    /// Bytes of all messages that are not whole yet. Beyond it, the connection with most of them ends.
    pub inflow_bytes: usize,
    /// Bytes sent to all readers and not taken yet. Beyond it, the connection with most of them ends.
    pub unread_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            first_request: Duration::from_secs(10),
            idle: Duration::from_secs(300),
            unread: Duration::from_secs(60),
            message: Duration::from_secs(30),
            inflow_bytes: 256 << 20,
            unread_bytes: 512 << 20,
        }
    }
}
