//! `/metrics`, `/healthz` and `/readyz` over plain HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

/// Whether this agent is registered with the coordinator.
pub(super) type Connected = Arc<AtomicBool>;

/// Serves until the runtime ends. Returns the bound address.
pub(super) async fn serve(
    listen: SocketAddr,
    metrics: impl Fn() -> String + Clone + Send + Sync + 'static,
    connected: Connected,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
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
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "the metrics server stopped");
        }
    });
    Ok(address)
}
