//! Calls of a collector.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::metrics::v1::{Metric, ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use tonic::codec::CompressionEncoding;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::Span;
use super::config::Target;
use super::span::attribute;
use crate::rpc;
use crate::version::VERSION;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Items that a collector did not take, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rejected {
    pub(super) number: u64,
    pub(super) reason: String,
}

/// A collector of one signal. It is connected to at the first call, and again whenever the connection breaks.
pub(super) struct Collector {
    target: Target,
    channel: Channel,
    resource: Resource,
}

impl Collector {
    /// Must be called within a tokio runtime.
    pub(super) fn new(target: Target, resource: &[(String, String)]) -> Result<Self, String> {
        let mut endpoint = Endpoint::from_shared(target.endpoint.to_string())
            .and_then(|endpoint| endpoint.user_agent(format!("foil/{VERSION}")))
            .map_err(|problem| problem.to_string())?;
        if let Some(host) = target.endpoint.host_str().filter(|_| target.endpoint.scheme() == "https") {
            let tls = target.tls.config(host).map_err(|problem| problem.to_string())?;
            endpoint = endpoint.tls_config(tls).map_err(|problem| problem.to_string())?;
        }
        let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).connect_lazy();
        let attributes =
            resource.iter().map(|(name, value)| attribute(name, value.as_str().into())).collect();
        Ok(Self { target, channel, resource: Resource { attributes, ..Default::default() } })
    }

    /// The collector's address, for messages.
    pub(super) fn address(&self) -> &str {
        self.target.endpoint.as_str()
    }

    /// Sends spans; gives those that the collector rejected.
    pub(super) async fn send_spans(&self, spans: &[Span]) -> Result<Option<Rejected>, Status> {
        let spans = ScopeSpans {
            scope: Some(scope()),
            spans: spans.iter().cloned().map(Into::into).collect(),
            ..Default::default()
        };
        let resource = Some(self.resource.clone());
        let resource_spans = vec![ResourceSpans { resource, scope_spans: vec![spans], ..Default::default() }];
        let mut client = TraceServiceClient::new(self.channel.clone());
        if self.target.compress {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        let answer = client.export(self.request(ExportTraceServiceRequest { resource_spans })).await?;
        let partial = answer.into_inner().partial_success;
        Ok(partial.and_then(|partial| rejected(partial.rejected_spans, partial.error_message)))
    }

    /// Sends metrics; gives the points that the collector rejected.
    pub(super) async fn send_metrics(&self, metrics: Vec<Metric>) -> Result<Option<Rejected>, Status> {
        let metrics = ScopeMetrics { scope: Some(scope()), metrics, ..Default::default() };
        let resource = Some(self.resource.clone());
        let resource_metrics =
            vec![ResourceMetrics { resource, scope_metrics: vec![metrics], ..Default::default() }];
        let mut client = MetricsServiceClient::new(self.channel.clone());
        if self.target.compress {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        let answer = client.export(self.request(ExportMetricsServiceRequest { resource_metrics })).await?;
        let partial = answer.into_inner().partial_success;
        Ok(partial.and_then(|partial| rejected(partial.rejected_data_points, partial.error_message)))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.target.headers.clone();
        request.set_timeout(self.target.timeout);
        request
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope { name: "foil".to_owned(), version: VERSION.to_owned(), ..Default::default() }
}

/// A message without a rejection is a remark.
fn rejected(number: i64, reason: String) -> Option<Rejected> {
    let number = u64::try_from(number).ok().filter(|number| *number > 0)?;
    Some(Rejected { number, reason })
}

/// Whether a call may succeed when it is tried again, as OTLP's specification says.
pub(super) fn is_transient(status: &Status) -> bool {
    let is_listed = matches!(
        status.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    );
    is_listed || rpc::is_unavailable(status)
}

/// Why a call failed, for a log line.
pub(super) fn reason(status: &Status) -> String {
    match status.code() {
        _ if rpc::timed_out(status) => "it did not answer in time".to_owned(),
        _ if rpc::is_unavailable(status) => rpc::unreached(status),
        code => format!("{code:?}: {}", status.message()),
    }
}
