//! `/metrics`, `/healthz` and `/readyz`, over TLS if there are certificates.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use axum::serve::Listener;
use foil_common::tls::{ServerTls, ServerTlsFiles, TlsError};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// Time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of concurrent handshakes. Each runs in its own task, so a slow one does not delay others.
const HANDSHAKES: usize = 64;

/// Whether this agent is registered with the coordinator.
pub(super) type Connected = Arc<AtomicBool>;

/// The address and protocol of the pages.
#[derive(Clone, Debug)]
pub struct MetricsListen {
    pub address: SocketAddr,
    /// Plain HTTP if `None`.
    pub tls: Option<ServerTlsFiles>,
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen for metrics on {address}: {source}; give another address with --metrics-listen")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Serves until the runtime ends. Returns the bound address.
pub(super) async fn serve(
    listen: &MetricsListen,
    metrics: impl Fn() -> String + Clone + Send + Sync + 'static,
    connected: Connected,
) -> Result<SocketAddr, ListenError> {
    let failed = |source| ListenError::Bind { address: listen.address, source };
    // The files are read again whenever they change, until the process exits.
    let tls =
        listen.tls.clone().map(|files| ServerTls::start(files, CancellationToken::new())).transpose()?;
    let listener = TcpListener::bind(listen.address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let ready = move || async move {
        if connected.load(Ordering::Relaxed) {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not connected to the coordinator\n")
        }
    };
    let routes = Router::new()
        .route("/metrics", get(move || async move { metrics() }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready));
    tokio::spawn(async move {
        let served = match tls {
            Some(tls) => axum::serve(Encrypted::new(listener, tls, address), routes).await,
            None => axum::serve(listener, routes).await,
        };
        if let Err(error) = served {
            tracing::error!(%error, "the metrics server stopped");
        }
    });
    Ok(address)
}

/// Accepts connections and completes their handshakes.
struct Encrypted {
    connections: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl Encrypted {
    fn new(mut listener: TcpListener, tls: ServerTls, address: SocketAddr) -> Self {
        let (sender, connections) = mpsc::channel(1);
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        tokio::spawn(async move {
            // Both the task and its handshakes end with the server.
            while let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await
                && !sender.is_closed()
            {
                // Waits while the process is out of file descriptors.
                let (socket, peer) = Listener::accept(&mut listener).await;
                let (acceptor, sender) = (tls.acceptor(), sender.clone());
                tokio::spawn(async move {
                    let accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await;
                    match accepted {
                        Ok(Ok(stream)) => drop(sender.send((stream, peer)).await),
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                        Err(_) => tracing::debug!(%peer, "TLS handshake timed out"),
                    }
                    drop(permit);
                });
            }
        });
        Self { connections, address }
    }
}

impl Listener for Encrypted {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        match self.connections.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}
