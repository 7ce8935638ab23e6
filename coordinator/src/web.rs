//! Metrics and health over plain HTTP, on the port of the gRPC services.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use foil_common::exposition;
use metrics_exporter_prometheus::PrometheusHandle;
use tonic::service::Routes;

/// Whether the coordinator can serve, and else what it waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// It serves, though not all that is asked of it gets done; the text says why.
    Degraded(String),
    Waiting(String),
}

#[derive(Clone)]
struct Pages {
    metrics: PrometheusHandle,
    readiness: Arc<dyn Fn() -> Readiness + Send + Sync>,
}

/// `/metrics` in Prometheus' text format, `/healthz` (the process answers; it touches nothing else) and
/// `/readyz` (503 with the reason until `readiness` says ready).
pub fn router(
    metrics: PrometheusHandle,
    readiness: impl Fn() -> Readiness + Send + Sync + 'static,
) -> Router {
    let pages = Pages { metrics, readiness: Arc::new(readiness) };
    Router::new()
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(show_readiness))
        .with_state(pages)
}

/// The gRPC services and the pages as one, for a tonic server that accepts HTTP/1 (browsers, Prometheus, probes).
pub fn merge(mut services: Routes, pages: Router) -> Routes {
    let router = services.axum_router_mut();
    *router = std::mem::take(router).merge(pages);
    services
}

async fn show_metrics(State(pages): State<Pages>) -> Response {
    let kind = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    ([kind], exposition::render(&pages.metrics)).into_response()
}

async fn show_readiness(State(pages): State<Pages>) -> Response {
    match (pages.readiness)() {
        Readiness::Ready => "ready\n".into_response(),
        Readiness::Degraded(reason) => format!("ready, but {reason}\n").into_response(),
        Readiness::Waiting(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, Ordering};

    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;

    async fn fetch(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn pages_and_grpc_share_a_port() {
        let ready = Arc::new(AtomicBool::new(false));
        let recorder = PrometheusBuilder::new().build_recorder();
        let pages = {
            let ready = Arc::clone(&ready);
            router(recorder.handle(), move || match ready.load(Ordering::Relaxed) {
                true => Readiness::Ready,
                false => Readiness::Waiting("no leader yet".to_owned()),
            })
        };
        metrics::with_local_recorder(&recorder, || metrics::counter!("foil_test_total").increment(7));
        let (_, health) = tonic_health::server::health_reporter();
        let routes = merge(Routes::new(health), pages);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().accept_http1(true).add_routes(routes);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

        assert!(fetch(address, "/metrics").await.contains("foil_test_total 7"));
        assert!(fetch(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let waiting = fetch(address, "/readyz").await;
        assert!(waiting.starts_with("HTTP/1.1 503") && waiting.contains("no leader yet"), "{waiting}");
        ready.store(true, Ordering::Relaxed);
        assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let channel = foil_common::rpc::connect(&format!("http://{address}")).unwrap();
        HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
    }
}
