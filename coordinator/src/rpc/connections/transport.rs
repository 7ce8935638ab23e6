//! A connection, with or without encryption.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use foil_common::tls::{Changes, ServerTls};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::Accept;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::certificate::ClientCertificate;
use super::peer::Peer;
use super::socket::{Client, Connection};

/// A connection that performs its TLS handshake when first polled: in its own task, so that a slow handshake
/// delays no other connection, and within the time that every connection has for its first request.
pub(in crate::rpc) struct Transport {
    stream: Stream,
    client: Client,
}

enum Stream {
    Plain(Connection),
    Handshake(Box<Handshake>),
    Encrypted(Box<TlsStream<Connection>>),
    Failed,
}

/// A handshake in progress, and the TLS changes since it began.
struct Handshake {
    accept: Accept<Connection>,
    tls: ServerTls,
    changes: Changes,
}

impl Handshake {
    fn new(connection: Connection, tls: &ServerTls) -> Self {
        let changes = tls.changes();
        Self { accept: tls.acceptor().accept(connection), tls: tls.clone(), changes }
    }
}

impl Transport {
    pub(super) fn new(connection: Connection, tls: Option<&ServerTls>) -> Self {
        let client = connection.connect_info();
        let stream = match tls {
            Some(tls) => Stream::Handshake(Box::new(Handshake::new(connection, tls))),
            None => Stream::Plain(connection),
        };
        Self { stream, client }
    }

    /// The stream, after its handshake.
    fn poll_stream(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Pin<&mut dyn ReadWrite>>> {
        if let Stream::Handshake(handshake) = &mut self.stream {
            self.stream = match ready!(Pin::new(&mut handshake.accept).poll(context)) {
                Ok(stream) => {
                    // Verified by the handshake; empty without a client CA.
                    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                    let Handshake { tls, changes, .. } = handshake.as_ref();
                    if let Some(certificate) = ClientCertificate::new(chain, tls, changes.clone()) {
                        self.client.peer.set_certificate(certificate);
                    }
                    Stream::Encrypted(Box::new(stream))
                }
                Err(error) => {
                    report_failure(&self.client.peer, &error);
                    self.stream = Stream::Failed;
                    return Poll::Ready(Err(error));
                }
            };
        }
        Poll::Ready(match &mut self.stream {
            Stream::Plain(connection) => Ok(Pin::new(connection)),
            Stream::Encrypted(stream) => Ok(Pin::new(stream.as_mut())),
            Stream::Handshake(_) | Stream::Failed => Err(io::ErrorKind::BrokenPipe.into()),
        })
    }
}

trait ReadWrite: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ReadWrite for T {}

fn report_failure(peer: &Peer, error: &io::Error) {
    tracing::debug!(peer = %peer.address(), %error, "TLS handshake failed");
    // A connection closed by the coordinator has already been counted with its reason.
    if error.kind() == io::ErrorKind::InvalidData {
        metrics::counter!("foil_connections_closed_total", "reason" => "tls").increment(1);
    }
}

impl Connected for Transport {
    type ConnectInfo = Client;

    fn connect_info(&self) -> Client {
        self.client.clone()
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_stream(context))?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_stream(context))?.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_stream(context))?.poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        // Both kinds of stream support vectored writes.
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_stream(context))?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.stream {
            // Dropping it closes it.
            Stream::Handshake(_) | Stream::Failed => Poll::Ready(Ok(())),
            Stream::Plain(_) | Stream::Encrypted(_) => {
                ready!(self.poll_stream(context))?.poll_shutdown(context)
            }
        }
    }
}
