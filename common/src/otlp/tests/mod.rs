//! The exporter against a test collector.

mod http;

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::collector::Collector;
use super::exporter::{enqueue, send_metrics, send_spans};
use super::{Config, Span, SpanKind, TraceContext};
use crate::exposition;

const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(10);

/// Answers of a collector, the last of which repeats. Accepted requests go to `taken`.
#[derive(Clone)]
struct Fake {
    answers: Arc<Mutex<Vec<Answer>>>,
    taken: mpsc::UnboundedSender<Taken>,
}

#[derive(Clone, Debug)]
enum Answer {
    Take,
    Refuse(Status),
    Reject(i64),
    Hang,
}

#[derive(Debug)]
enum Taken {
    Spans { spans: Vec<String>, service: String, authorization: Option<String> },
    Metrics { names: Vec<String> },
}

impl Fake {
    async fn answer(&self) -> Result<i64, Status> {
        let answer = {
            let mut answers = self.answers.lock().unwrap();
            if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() }
        };
        match answer {
            Answer::Take => Ok(0),
            Answer::Refuse(status) => Err(status),
            Answer::Reject(number) => Ok(number),
            Answer::Hang => std::future::pending().await,
        }
    }
}

#[tonic::async_trait]
impl TraceService for Fake {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let rejected_spans = self.answer().await?;
        let header = |name| request.metadata().get(name).map(|value| value.to_str().unwrap().to_owned());
        let authorization = header("authorization");
        let [resource] = &request.get_ref().resource_spans[..] else { panic!("one resource") };
        let attributes = &resource.resource.as_ref().unwrap().attributes;
        let service = format!("{:?}", attributes.iter().find(|attribute| attribute.key == "service.name"));
        let spans = resource.scope_spans.iter().flat_map(|scope| &scope.spans);
        let spans = spans.map(|span| span.name.clone()).collect();
        self.taken.send(Taken::Spans { spans, service, authorization }).unwrap();
        let partial = ExportTracePartialSuccess { rejected_spans, error_message: "too old".into() };
        Ok(Response::new(ExportTraceServiceResponse { partial_success: Some(partial) }))
    }
}

#[tonic::async_trait]
impl MetricsService for Fake {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.answer().await?;
        let scopes = request.get_ref().resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
        let names = scopes.flat_map(|scope| &scope.metrics).map(|metric| metric.name.clone()).collect();
        self.taken.send(Taken::Metrics { names }).unwrap();
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// Starts a collector with these answers; returns its address and the requests it accepts.
async fn collector(answers: &[Answer]) -> (String, mpsc::UnboundedReceiver<Taken>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (taken, received) = mpsc::unbounded_channel();
    let fake = Fake { answers: Arc::new(Mutex::new(answers.to_vec())), taken };
    let traces = TraceServiceServer::new(fake.clone()).accept_compressed(CompressionEncoding::Gzip);
    let server = Server::builder().add_service(traces).add_service(MetricsServiceServer::new(fake));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (url, received)
}

fn config(url: &str, more: &[(&str, &str)]) -> Config {
    let mut variables: HashMap<&str, &str> = more.iter().copied().collect();
    variables.insert("OTEL_EXPORTER_OTLP_ENDPOINT", url);
    Config::read("foil-test", |name| variables.get(name).map(OsString::from)).unwrap().unwrap()
}

fn spans_to(url: &str, more: &[(&str, &str)]) -> Collector {
    let config = config(url, more);
    Collector::new(config.traces.unwrap(), &config.resource).unwrap()
}

fn span(name: &str) -> Span {
    Span {
        context: TraceContext::root(name),
        parent: None,
        name: name.to_owned(),
        kind: SpanKind::Internal,
        start: 1,
        end: 2,
        attributes: Vec::new(),
        error: None,
    }
}

/// Sends spans with these names to a collector, until all are sent or given up.
async fn sent(collector: Collector, names: &[&str]) {
    let (queue, received) = mpsc::channel(names.len());
    names.iter().for_each(|name| enqueue(&queue, span(name)));
    drop(queue);
    timeout(PATIENCE, send_spans(collector, received, PAUSE, CancellationToken::new())).await.unwrap();
}

/// The value of the counter of dropped items.
fn dropped(page: &str) -> u64 {
    let line = page.lines().find(|line| line.starts_with("foil_otlp_dropped_total{"));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |number| number.parse().unwrap())
}

#[tokio::test]
async fn spans_arrive_with_the_names_and_headers_of_the_configuration() {
    let (url, mut taken) = collector(&[Answer::Take]).await;
    let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2");
    sent(spans_to(&url, &[headers, ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")]), &["a", "b"]).await;
    let Some(Taken::Spans { spans, service, authorization }) = taken.recv().await else { panic!("no spans") };
    assert_eq!(spans, ["a", "b"]);
    assert!(service.contains("foil-test"), "{service}");
    assert_eq!(authorization.as_deref(), Some("Bearer hunter2"));
}

#[tokio::test]
async fn a_collector_that_is_unavailable_for_a_while_gets_the_spans_once() {
    let recorder = exposition::builder().unwrap().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let away = Answer::Refuse(Status::unavailable("starting"));
    let (url, mut taken) = collector(&[away.clone(), away, Answer::Take]).await;
    sent(spans_to(&url, &[]), &["a"]).await;
    assert!(matches!(taken.recv().await, Some(Taken::Spans { spans, .. }) if spans == ["a"]));
    assert!(taken.try_recv().is_err());
    assert_eq!(dropped(&recorder.handle().render()), 0);
}

#[tokio::test]
async fn what_a_collector_does_not_take_is_counted() {
    let timeout = ("OTEL_EXPORTER_OTLP_TIMEOUT", "20");
    for (answer, lost) in [
        (Answer::Refuse(Status::invalid_argument("no")), 2),
        (Answer::Refuse(Status::unavailable("away")), 2),
        (Answer::Reject(1), 1),
        (Answer::Hang, 2),
    ] {
        let recorder = exposition::builder().unwrap().build_recorder();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let (url, _taken) = collector(std::slice::from_ref(&answer)).await;
        sent(spans_to(&url, &[timeout]), &["a", "b"]).await;
        assert_eq!(dropped(&recorder.handle().render()), lost, "{answer:?}");
    }
}

#[test]
fn a_full_queue_drops_spans_and_one_of_a_trace_that_is_not_recorded_is_not_sent() {
    let recorder = exposition::builder().unwrap().build_recorder();
    let (queue, mut received) = mpsc::channel(1);
    metrics::with_local_recorder(&recorder, || {
        let unrecorded = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00".parse().unwrap();
        enqueue(&queue, Span { context: unrecorded, ..span("unrecorded") });
        ["a", "b", "c"].iter().for_each(|name| enqueue(&queue, span(name)));
    });
    assert_eq!(received.try_recv().unwrap().name, "a");
    assert_eq!(dropped(&recorder.handle().render()), 2);
}

#[tokio::test]
async fn metrics_are_sent_every_period_and_at_the_end() {
    let (url, mut taken) = collector(&[Answer::Refuse(Status::unavailable("starting")), Answer::Take]).await;
    let config = config(&url, &[]);
    let collector = Collector::new(config.metrics.unwrap(), &config.resource).unwrap();
    let page = || "# TYPE foil_jobs gauge\nfoil_jobs{state=\"running\"} 1\n".to_owned();
    let stop = CancellationToken::new();
    let sending = tokio::spawn(send_metrics(collector, page, PAUSE, stop.clone()));
    let is_page =
        |taken: Option<Taken>| matches!(taken, Some(Taken::Metrics { names }) if names == ["foil_jobs"]);
    for _ in 0..2 {
        assert!(is_page(timeout(PATIENCE, taken.recv()).await.unwrap()));
    }
    stop.cancel();
    timeout(PATIENCE, sending).await.unwrap().unwrap();
}
