//! The web UI's files, metrics and health over plain HTTP, on the port of the gRPC services.

pub mod assets;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use foil_common::exposition;
use metrics_exporter_prometheus::PrometheusHandle;
use tonic::service::Routes;

/// Readiness of the coordinator, with the reason if it is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// The coordinator serves, but some requests cannot be completed, for this reason.
    Degraded(String),
    Waiting(String),
}

#[derive(Clone)]
struct Pages {
    metrics: PrometheusHandle,
    run_directory: Option<Arc<str>>,
    readiness: Arc<dyn Fn() -> Readiness + Send + Sync>,
}

/// The web UI, `/metrics` in Prometheus' text format, `/healthz` (succeeds if the process responds; checks
/// nothing else) and `/readyz` (503 with the reason until `readiness` reports ready; a second line names the
/// directory of a local run, which the pages show in their advice).
pub fn router(
    metrics: PrometheusHandle,
    run_directory: Option<String>,
    readiness: impl Fn() -> Readiness + Send + Sync + 'static,
) -> Router {
    let run_directory = run_directory.map(Arc::from);
    let pages = Pages { metrics, run_directory, readiness: Arc::new(readiness) };
    Router::new()
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(show_readiness))
        .with_state(pages)
        .merge(assets::router())
}

/// Combines the gRPC services and the pages, for a tonic server that accepts HTTP/1 (browsers, Prometheus,
/// probes).
pub fn merge(mut services: Routes, pages: Router) -> Routes {
    let router = services.axum_router_mut();
    *router = std::mem::take(router).layer(from_fn(grpc_only)).merge(pages);
    services
}

/// Answers non-gRPC requests with an HTTP status: 415 for a call of a service, 404 for any other path.
async fn grpc_only(request: Request, next: Next) -> Response {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(is_grpc) {
        return next.run(request).await;
    }
    let is_call = request.method() == Method::POST
        && SERVICES.iter().any(|service| request.uri().path().starts_with(service));
    match is_call {
        true => (
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "this is a gRPC service: the content type must be application/grpc\n",
        ),
        false => (
            StatusCode::NOT_FOUND,
            "there are /, /jobs/ID and /workers, /metrics, /healthz, /readyz, and gRPC services\n",
        ),
    }
    .into_response()
}

/// True for `application/grpc`, alone or with an encoding suffix, but not for `application/grpc-web`.
fn is_grpc(kind: &str) -> bool {
    let rest = kind.trim().to_ascii_lowercase();
    rest.strip_prefix("application/grpc")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';', ' ']))
}

/// The packages of the services.
const SERVICES: [&str; 3] = ["/foil.", "/grpc.health.", "/grpc.reflection."];

async fn show_metrics(State(pages): State<Pages>) -> Response {
    let kind = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    ([kind], exposition::render(&pages.metrics)).into_response()
}

async fn show_readiness(State(pages): State<Pages>) -> Response {
    let (status, told) = match (pages.readiness)() {
        Readiness::Ready => (StatusCode::OK, "ready".to_owned()),
        Readiness::Degraded(reason) => (StatusCode::OK, format!("ready, but {reason}")),
        Readiness::Waiting(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
    };
    let run = pages.run_directory.map(|directory| format!("run directory: {directory}\n"));
    (status, format!("{told}\n{}", run.unwrap_or_default())).into_response()
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
        ask(address, "GET", path).await
    }

    async fn ask(address: SocketAddr, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
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
            router(recorder.handle(), Some("/runs/letters".to_owned()), move || {
                match ready.load(Ordering::Relaxed) {
                    true => Readiness::Ready,
                    false => Readiness::Waiting("no leader yet".to_owned()),
                }
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
        for path in [
            "/jobs",
            "/jobs/",
            "/app.js.map",
            "/index.html",
            "/favicon.ico",
            "/health",
            "/ready",
            "/livez",
            "/metrics/",
            "/foil.v1.Jobs/List",
            "/grpc.health.v1.Health/Check",
        ] {
            let answer = fetch(address, path).await;
            assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("text/plain"), "{path}: {answer}");
        }
        for (path, kind) in [
            ("/", "text/html"),
            ("/jobs/01j-x", "text/html"),
            ("/jobs/01j-x/completions", "text/html"),
            ("/workers", "text/html"),
            ("/app.js", "text/javascript"),
            ("/app.css", "text/css"),
        ] {
            let answer = fetch(address, path).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(kind), "{path}: {answer}");
            for header in [
                "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self';",
                "x-content-type-options: nosniff",
                "referrer-policy: no-referrer",
                "cache-control: no-cache",
                "etag: \"",
            ] {
                assert!(answer.contains(header), "{path} lacks {header}: {answer}");
            }
            assert!(!answer.contains("access-control-"), "no other origin is admitted");
            assert!(ask(address, "POST", path).await.starts_with("HTTP/1.1 405"), "{path}");
        }
        let posted = ask(address, "POST", "/grpc.health.v1.Health/Check").await;
        assert!(posted.starts_with("HTTP/1.1 415"), "{posted}");
        assert!(ask(address, "POST", "/nothing").await.starts_with("HTTP/1.1 404"));
        let waiting = fetch(address, "/readyz").await;
        assert!(waiting.starts_with("HTTP/1.1 503") && waiting.contains("no leader yet"), "{waiting}");
        ready.store(true, Ordering::Relaxed);
        let ready = fetch(address, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        assert!(ready.ends_with("\r\n\r\nready\nrun directory: /runs/letters\n"), "{ready}");
        let channel = foil_common::rpc::connect(&format!("http://{address}")).unwrap();
        HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
    }
}
