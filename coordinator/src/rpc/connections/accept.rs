//! Taking connections from the kernel, also where it has no descriptor for another one.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::stream::{self, Stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

use super::registry::{NoPlace, Place, Registry};
use super::stream::Connection;

/// Before connections are taken again, after the kernel refused one.
const PAUSE: Duration = Duration::from_millis(200);
/// How often a connection without a place looks for one.
const LOOK: Duration = Duration::from_millis(10);
/// How often a lasting shortage is told of.
const REMINDER: Duration = Duration::from_secs(60);

/// Where connections come from.
pub(in crate::rpc) trait Listen: Send + 'static {
    fn accept(&mut self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send;
}

impl Listen for TcpListener {
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        TcpListener::accept(self).await
    }
}

/// Connections as they come, those that find a place.
pub(in crate::rpc) fn incoming(
    listener: impl Listen,
    registry: Registry,
) -> impl Stream<Item = io::Result<Connection>> {
    let state = (listener, registry, None);
    stream::unfold(state, |(mut listener, registry, mut told)| async move {
        loop {
            match listener.accept().await {
                Ok((socket, address)) => {
                    // Else small answers would wait for the acknowledgement of what went before; a socket that is gone
                    // already shows it when it is read.
                    let _ = socket.set_nodelay(true);
                    // One without a place is closed here.
                    if let Some(place) = place(&registry, address).await {
                        return Some((Ok(Connection::new(socket, place)), (listener, registry, told)));
                    }
                }
                Err(error) if is_of_the_peer(&error) => {}
                Err(error) => {
                    tell(&mut told, &error);
                    // Where none is idle, time will help.
                    let _ = registry.shed();
                    sleep(PAUSE).await;
                }
            }
        }
    })
}

/// Others wait in the kernel meanwhile.
pub(super) async fn place(registry: &Registry, address: SocketAddr) -> Option<Place> {
    loop {
        match registry.admit(address) {
            Ok(place) => return Some(place),
            Err(NoPlace::Yet) => sleep(LOOK).await,
            Err(NoPlace::AtAll) => {
                metrics::counter!("foil_connections_closed_total", "reason" => "refused").increment(1);
                return None;
            }
        }
    }
}

/// A connection that broke before it was taken says nothing of the others.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, Interrupted, TimedOut, WouldBlock};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | Interrupted | TimedOut | WouldBlock
    )
}

fn tell(told: &mut Option<Instant>, error: &io::Error) {
    if told.is_none_or(|told| told.elapsed() >= REMINDER) {
        *told = Some(Instant::now());
        tracing::warn!(
            %error,
            "no more connections can be taken; where file descriptors are too few, raise the limit (ulimit -n, LimitNOFILE)"
        );
    }
}
