//! Connection limits, so that no connection can starve others. The number of connections is limited. Each
//! must complete a TLS handshake and send a request soon and must read its responses; idle connections are
//! closed.
//!
//! [`track`], a middleware around all services, informs a connection of its requests and responses. The
//! connection checks its deadlines whenever it is polled, and fails when one has passed.

mod accept;
mod certificate;
mod peer;
mod registry;
mod request_body;
mod socket;
#[cfg(test)]
mod tests;
mod track;
mod transport;

use std::time::Duration;

pub(super) use self::accept::incoming;
pub(super) use self::certificate::ClientCertificate;
pub(super) use self::registry::Registry;
pub(super) use self::socket::Client;
pub(super) use self::track::{is_grpc, track};

/// Resource limits of connections.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number of open connections. One more evicts the connection that has been idle longest.
    pub connections: usize,
    /// Timeout for the first request after connecting.
    pub first_request: Duration,
    /// Timeout of a connection without a request in progress.
    pub idle: Duration,
    /// Timeout for a reader to consume one message of at most 1 MiB, or one page.
    pub unread: Duration,
    /// Timeout for a message to arrive completely: from its first byte, or from the start of a unary call.
    pub message: Duration,
    /// Maximum total size of incomplete messages. Beyond it, the connection with the largest part is closed.
    pub incoming_bytes: usize,
    /// Maximum total size of unread responses. Beyond it, the connection with the largest part is closed.
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
            incoming_bytes: 256 << 20,
            unread_bytes: 512 << 20,
        }
    }
}
