//! Accepts connections, even when the process runs out of file descriptors.

#![expect(clippy::disallowed_methods, reason = "warnings are rate-limited")]

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use foil_common::tls::ServerTls;
use futures::stream::{self, Stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

use super::registry::{NoPermit, Permit, Registry};
use super::socket::Connection;
use super::transport::Transport;

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Interval at which a connection without a permit tries to get one.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// Interval at which an ongoing shortage is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A source of connections; tests replace the socket.
pub(in crate::rpc) trait Listen: Send + 'static {
    fn accept(&mut self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send;
}

impl Listen for TcpListener {
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        TcpListener::accept(self).await
    }
}

/// The stream of accepted connections that receive a permit.
pub(in crate::rpc) fn incoming(
    listener: impl Listen,
    registry: Registry,
    tls: Option<ServerTls>,
) -> impl Stream<Item = io::Result<Transport>> {
    let state = (listener, registry, tls, None);
    stream::unfold(state, |(mut listener, registry, tls, mut last_logged)| async move {
        loop {
            match listener.accept().await {
                Ok((socket, address)) => {
                    // Without this, small responses wait for the acknowledgment of earlier ones. Fails if the
                    // socket is already closed, which the first read reports.
                    let _ = socket.set_nodelay(true);
                    // A connection without a permit is dropped, and thereby closed.
                    if let Some(permit) = acquire(&registry, address).await {
                        let transport = Transport::new(Connection::new(socket, permit), tls.as_ref());
                        return Some((Ok(transport), (listener, registry, tls, last_logged)));
                    }
                }
                Err(error) if is_peer_error(&error) => {}
                Err(error) => {
                    log_shortage(&mut last_logged, &error);
                    // Fails if no connection is idle; some will end in time.
                    let _ = registry.evict_idle();
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// Waits for a permit; other connections wait in the kernel in the meantime. None if every connection is
/// busy.
pub(super) async fn acquire(registry: &Registry, address: SocketAddr) -> Option<Permit> {
    loop {
        match registry.admit(address) {
            Ok(permit) => return Some(permit),
            Err(NoPermit::NotYet) => sleep(RETRY_INTERVAL).await,
            Err(NoPermit::Busy) => {
                metrics::counter!("foil_connections_closed_total", "reason" => "refused").increment(1);
                return None;
            }
        }
    }
}

/// True if a connection broke before it was accepted, which does not affect others.
fn is_peer_error(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, Interrupted, TimedOut, WouldBlock};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | Interrupted | TimedOut | WouldBlock
    )
}

fn log_shortage(last_logged: &mut Option<Instant>, error: &io::Error) {
    if last_logged.is_none_or(|last_logged| last_logged.elapsed() >= LOG_INTERVAL) {
        *last_logged = Some(Instant::now());
        tracing::warn!(
            %error,
            "cannot accept connections; if file descriptors are exhausted, raise the limit (ulimit -n, LimitNOFILE)"
        );
    }
}
