//! An OpenTelemetry collector that keeps everything it receives.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::io::Read;
use std::sync::{Arc, Mutex};

use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::{Certificate, HttpRequest, HttpServer};

/// A span as a process sent it, with ids in hex.
#[derive(Debug, Clone, PartialEq)]
pub struct SentSpan {
    pub trace: String,
    pub id: String,
    /// The parent's id, or empty if it has none.
    pub parent: String,
    pub name: String,
    /// Nanoseconds since the Unix epoch.
    pub start: u64,
    pub end: u64,
    pub attributes: BTreeMap<String, String>,
    /// `service.name` of the sender.
    pub service: String,
}

#[derive(Debug, Default)]
struct Received {
    spans: Vec<SentSpan>,
    /// Names of metrics, by service.
    metrics: BTreeMap<String, BTreeSet<String>>,
}

impl Received {
    fn take_spans(&mut self, request: ExportTraceServiceRequest) {
        for resource in request.resource_spans {
            let service = service(resource.resource.as_ref());
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.spans.extend(spans.map(|span| sent(span, &service)));
        }
    }

    fn take_metrics(&mut self, request: ExportMetricsServiceRequest) {
        for resource in request.resource_metrics {
            let names = self.metrics.entry(service(resource.resource.as_ref())).or_default();
            let metrics = resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics);
            names.extend(metrics.map(|metric| metric.name));
        }
    }

    /// Takes a gzip-compressed OTLP request over HTTP and returns the status of the answer.
    fn take_post(&mut self, request: &HttpRequest) -> u16 {
        let (kind, encoding) = (request.header("content-type"), request.header("content-encoding"));
        if (request.method.as_str(), kind, encoding) != ("POST", Some("application/x-protobuf"), Some("gzip"))
        {
            return 400;
        }
        let mut body = Vec::new();
        if GzDecoder::new(&request.body[..]).read_to_end(&mut body).is_err() {
            return 400;
        }
        let taken = match request.path.as_str() {
            "/v1/traces" => Message::decode(&body[..]).map(|request| self.take_spans(request)),
            "/v1/metrics" => Message::decode(&body[..]).map(|request| self.take_metrics(request)),
            _ => return 404,
        };
        if taken.is_ok() { 200 } else { 400 }
    }
}

#[derive(Clone)]
struct Services {
    received: Arc<Mutex<Received>>,
    hangs: bool,
}

/// A collector in this process that ends when it is dropped.
pub struct OtlpCollector {
    url: String,
    received: Arc<Mutex<Received>>,
    _server: Running,
}

/// The server, which ends when it is dropped.
enum Running {
    Grpc { _runtime: Runtime },
    Http { _server: HttpServer },
}

impl OtlpCollector {
    /// Starts a collector at `https://localhost` with a certificate for that name.
    pub fn start_with_tls(certificate: &Certificate) -> Self {
        Self::serve(false, Some(certificate))
    }

    /// Starts a collector of gzip-compressed OTLP over HTTP at `https://localhost`, with a certificate for
    /// that name.
    pub fn start_http_with_tls(certificate: &Certificate) -> Self {
        let received = Arc::<Mutex<Received>>::default();
        let shared = Arc::clone(&received);
        let server = HttpServer::start(Some(certificate), move |request| {
            // The protobuf answer to a fully accepted request is empty.
            (shared.lock().expect("no panic").take_post(&request), String::new())
        });
        let url = format!("https://localhost:{}", server.address().port());
        Self { url, received, _server: Running::Http { _server: server } }
    }

    /// Starts a collector that accepts connections and never answers.
    pub fn hanging() -> Self {
        Self::serve(true, None)
    }

    fn serve(hangs: bool, tls: Option<&Certificate>) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port is free");
        let address = listener.local_addr().expect("an address");
        let url = match tls {
            Some(_) => format!("https://localhost:{}", address.port()),
            None => format!("http://{address}"),
        };
        let received = Arc::<Mutex<Received>>::default();
        let services = Services { received: Arc::clone(&received), hangs };
        let mut server = Server::builder();
        if let Some(Certificate { certificate, key, .. }) = tls {
            // This process has two providers, and tonic would choose neither.
            let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
            let read = |path| std::fs::read(path).expect("a file of the certificate");
            let identity = Identity::from_pem(read(certificate), read(key));
            server = server.tls_config(ServerTlsConfig::new().identity(identity)).expect("a certificate");
        }
        let server = server
            .add_service(TraceServiceServer::new(services.clone()))
            .add_service(MetricsServiceServer::new(services));
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { url, received, _server: Running::Grpc { _runtime: runtime } }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The received spans, in order of arrival.
    pub fn spans(&self) -> Vec<SentSpan> {
        self.received.lock().expect("no panic").spans.clone()
    }

    /// The names of the metrics that a service has sent.
    pub fn metrics(&self, service: &str) -> BTreeSet<String> {
        self.received.lock().expect("no panic").metrics.get(service).cloned().unwrap_or_default()
    }
}

#[tonic::async_trait]
impl TraceService for Services {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if self.hangs {
            pending::<()>().await;
        }
        self.received.lock().expect("no panic").take_spans(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Services {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        if self.hangs {
            pending::<()>().await;
        }
        self.received.lock().expect("no panic").take_metrics(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn service(resource: Option<&Resource>) -> String {
    let attributes = resource.map(|resource| texts(&resource.attributes)).unwrap_or_default();
    attributes.get("service.name").cloned().unwrap_or_default()
}

fn sent(span: Span, service: &str) -> SentSpan {
    SentSpan {
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        name: span.name,
        start: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        attributes: texts(&span.attributes),
        service: service.to_owned(),
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(&attribute.value))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
