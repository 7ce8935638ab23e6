//! A socket that fails when its connection must be closed.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::transport::server::Connected;

use super::certificate::ClientCertificate;
use super::peer::Peer;
use super::registry::{Permit, Registry};

/// Interval at which a connection checks its deadlines.
const TICK: Duration = Duration::from_secs(1);

/// A TCP socket with the limits of its connection.
#[derive(Debug)]
pub(in crate::rpc) struct Connection {
    socket: TcpStream,
    permit: Permit,
    ticks: Interval,
}

/// The connection of a request.
#[derive(Debug, Clone)]
pub(in crate::rpc) struct Client {
    pub(super) peer: Peer,
    pub(super) registry: Registry,
}

impl Client {
    /// The peer's address.
    pub(in crate::rpc) fn address(&self) -> SocketAddr {
        self.peer.address()
    }

    /// The peer's verified certificate.
    pub(in crate::rpc) fn certificate(&self) -> Option<&ClientCertificate> {
        self.peer.certificate()
    }
}

impl Connection {
    pub(super) fn new(socket: TcpStream, permit: Permit) -> Self {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { socket, permit, ticks }
    }

    /// Fails if the connection must be closed. Otherwise schedules the task's wakeup for the next check.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.permit.peer.waker().register(context.waker());
        while self.ticks.poll_tick(context).is_ready() {}
        let Some(reason) = self.permit.peer.overdue(self.permit.registry().limits()) else { return Ok(()) };
        let (peer, reason) = (self.permit.peer.address(), reason.as_str());
        tracing::debug!(%peer, reason, "closing connection");
        metrics::counter!("foil_connections_closed_total", "reason" => reason).increment(1);
        Err(io::Error::new(io::ErrorKind::TimedOut, reason))
    }
}

impl Connected for Connection {
    type ConnectInfo = Client;

    fn connect_info(&self) -> Client {
        Client { peer: self.permit.peer.clone(), registry: self.permit.registry().clone() }
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
