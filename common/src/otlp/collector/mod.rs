//! Requests to a collector.

mod grpc;
mod http;

use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::metrics::v1::{Metric, ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use tonic::metadata::MetadataMap;

use self::grpc::GrpcClient;
use self::http::HttpClient;
use super::Span;
use super::config::{Protocol, Target};
use super::span::attribute;
use crate::version::VERSION;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum pause that a collector may request.
const MAX_PAUSE: Duration = Duration::from_secs(300);
/// Length of a word that is too short to be a secret.
const SHORT_WORD: usize = 6;

/// Items that a collector rejected, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rejected {
    pub(super) number: u64,
    pub(super) reason: String,
}

/// Why a collector did not accept a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// For a log line.
    pub(super) reason: String,
    /// Whether the same request may succeed later, according to OTLP's specification.
    pub(super) is_transient: bool,
    /// Time during which the collector wants no request.
    pause: Option<Duration>,
}

impl Failure {
    fn permanent(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_transient: false, pause: None }
    }

    fn timeout() -> Self {
        Self { reason: "it did not answer in time".to_owned(), is_transient: true, pause: None }
    }

    /// The minimum time until the next request.
    pub(super) fn pause(&self) -> Duration {
        self.pause.unwrap_or_default().min(MAX_PAUSE)
    }
}

/// A collector of one signal. The connection is opened at the first request, and again whenever it breaks.
pub(super) struct Collector {
    /// Its address, for messages.
    address: String,
    client: Client,
    resource: Resource,
    /// Words from header values, which no message may show.
    secrets: Vec<String>,
}

enum Client {
    Grpc(GrpcClient),
    Http(HttpClient),
}

impl Collector {
    /// Must be called within a tokio runtime.
    pub(super) fn new(target: Target, resource: &[(String, String)]) -> Result<Self, String> {
        let address = target.endpoint.to_string();
        let secrets = secrets(&target.headers);
        let client = match target.protocol {
            Protocol::Grpc => Client::Grpc(GrpcClient::new(target)?),
            Protocol::Http => Client::Http(HttpClient::new(target)?),
        };
        let attributes =
            resource.iter().map(|(name, value)| attribute(name, value.as_str().into())).collect();
        Ok(Self { address, client, resource: Resource { attributes, ..Default::default() }, secrets })
    }

    /// The collector's address, for messages.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// A message without the headers' values, which a server may quote.
    pub(super) fn shown(&self, message: String) -> String {
        self.secrets.iter().fold(message, |message, secret| message.replace(secret, "…"))
    }

    /// Sends spans; returns those that the collector rejected.
    pub(super) async fn send_spans(&self, spans: &[Span]) -> Result<Option<Rejected>, Failure> {
        let spans = ScopeSpans {
            scope: Some(scope()),
            spans: spans.iter().cloned().map(Into::into).collect(),
            ..Default::default()
        };
        let resource = Some(self.resource.clone());
        let resource_spans = vec![ResourceSpans { resource, scope_spans: vec![spans], ..Default::default() }];
        let request = ExportTraceServiceRequest { resource_spans };
        let answer: ExportTraceServiceResponse = match &self.client {
            Client::Grpc(client) => client.send_spans(request).await?,
            Client::Http(client) => client.send(&request).await?,
        };
        let partial = answer.partial_success;
        Ok(partial.and_then(|partial| rejected(partial.rejected_spans, partial.error_message)))
    }

    /// Sends metrics; returns the points that the collector rejected.
    pub(super) async fn send_metrics(&self, metrics: Vec<Metric>) -> Result<Option<Rejected>, Failure> {
        let metrics = ScopeMetrics { scope: Some(scope()), metrics, ..Default::default() };
        let resource = Some(self.resource.clone());
        let resource_metrics =
            vec![ResourceMetrics { resource, scope_metrics: vec![metrics], ..Default::default() }];
        let request = ExportMetricsServiceRequest { resource_metrics };
        let answer: ExportMetricsServiceResponse = match &self.client {
            Client::Grpc(client) => client.send_metrics(request).await?,
            Client::Http(client) => client.send(&request).await?,
        };
        let partial = answer.partial_success;
        Ok(partial.and_then(|partial| rejected(partial.rejected_data_points, partial.error_message)))
    }
}

/// The words of the headers' values, except short ones, which occur in any message and are not secret.
fn secrets(headers: &MetadataMap) -> Vec<String> {
    let headers = headers.clone().into_headers();
    let values = headers.values().filter_map(|value| value.to_str().ok());
    let words = values.flat_map(str::split_whitespace).filter(|word| word.len() > SHORT_WORD);
    words.map(str::to_owned).collect()
}

fn scope() -> InstrumentationScope {
    InstrumentationScope { name: "foil".to_owned(), version: VERSION.to_owned(), ..Default::default() }
}

/// The rejected items, if any: a message without them is a remark.
fn rejected(number: i64, reason: String) -> Option<Rejected> {
    let number = u64::try_from(number).ok().filter(|number| *number > 0)?;
    Some(Rejected { number, reason })
}
