//! A socket that ends itself where its connection has to go.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::transport::server::Connected;

use super::peer::Peer;
use super::registry::{Place, Registry};

/// How often a connection looks at the clock.
const TICK: Duration = Duration::from_secs(1);

/// Bytes in and out, as long as the connection behaves.
#[derive(Debug)]
pub(in crate::rpc) struct Connection {
    socket: TcpStream,
    place: Place,
    ticks: Interval,
}

/// What a request knows of its connection.
#[derive(Debug, Clone)]
pub(in crate::rpc) struct Client {
    pub(super) peer: Peer,
    pub(super) registry: Registry,
}

impl Connection {
    pub(super) fn new(socket: TcpStream, place: Place) -> Self {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { socket, place, ticks }
    }

    /// Fails where the connection must end now. Else its task is woken to look again.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.place.peer.waker().register(context.waker());
        while self.ticks.poll_tick(context).is_ready() {}
        let Some(cut) = self.place.peer.overdue(self.place.registry().limits()) else { return Ok(()) };
        let (peer, reason) = (self.place.peer.address(), cut.as_str());
        tracing::debug!(%peer, reason, "a connection is closed");
        metrics::counter!("foil_connections_closed_total", "reason" => reason).increment(1);
        Err(io::Error::new(io::ErrorKind::TimedOut, reason))
    }
}

impl Connected for Connection {
    type ConnectInfo = Client;

    fn connect_info(&self) -> Client {
        Client { peer: self.place.peer.clone(), registry: self.place.registry().clone() }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
