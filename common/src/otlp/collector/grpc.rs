//! OTLP over gRPC.

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tonic::codec::CompressionEncoding;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::{CONNECT_TIMEOUT, Failure};
use crate::otlp::config::Target;
use crate::rpc;
use crate::version::VERSION;

pub(super) struct GrpcClient {
    target: Target,
    channel: Channel,
}

impl GrpcClient {
    /// Must be called within a tokio runtime.
    pub(super) fn new(target: Target) -> Result<Self, String> {
        let mut endpoint = Endpoint::from_shared(target.endpoint.to_string())
            .and_then(|endpoint| endpoint.user_agent(format!("foil/{VERSION}")))
            .map_err(|problem| problem.to_string())?;
        if let Some(host) = target.endpoint.host_str().filter(|_| target.endpoint.scheme() == "https") {
            let tls = target.tls.config(host).map_err(|problem| problem.to_string())?;
            endpoint = endpoint.tls_config(tls).map_err(|problem| problem.to_string())?;
        }
        let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).connect_lazy();
        Ok(Self { target, channel })
    }

    pub(super) async fn send_spans(
        &self,
        request: ExportTraceServiceRequest,
    ) -> Result<ExportTraceServiceResponse, Failure> {
        let mut client = TraceServiceClient::new(self.channel.clone());
        if self.target.compress {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        Ok(client.export(self.request(request)).await?.into_inner())
    }

    pub(super) async fn send_metrics(
        &self,
        request: ExportMetricsServiceRequest,
    ) -> Result<ExportMetricsServiceResponse, Failure> {
        let mut client = MetricsServiceClient::new(self.channel.clone());
        if self.target.compress {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        Ok(client.export(self.request(request)).await?.into_inner())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.target.headers.clone();
        request.set_timeout(self.target.timeout);
        request
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if rpc::timed_out(&status) {
            return Self::timeout();
        }
        let retry = status.get_details_retry_info();
        let is_transient = match status.code() {
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss => true,
            Code::ResourceExhausted => retry.is_some(),
            _ => rpc::is_unavailable(&status),
        };
        let reason = match status.code() {
            _ if rpc::is_unavailable(&status) => rpc::unreached(&status),
            code => format!("{code:?}: {}", status.message()),
        };
        Self { reason, is_transient, pause: retry.and_then(|retry| retry.retry_delay) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic_types::ErrorDetails;

    use super::*;

    /// The table "Failures" of OTLP's specification.
    #[test]
    fn a_collector_that_has_no_room_now_says_when_to_ask_again() {
        let full =
            |details| Failure::from(Status::with_error_details(Code::ResourceExhausted, "full", details));
        let for_good = full(ErrorDetails::new());
        assert!(!for_good.is_transient && for_good.pause().is_zero(), "{for_good:?}");
        let for_now = full(ErrorDetails::with_retry_info(Some(Duration::from_secs(7))));
        assert!(for_now.is_transient && for_now.pause() == Duration::from_secs(7), "{for_now:?}");
        assert!(Failure::from(Status::aborted("")).is_transient);
        assert!(!Failure::from(Status::internal("")).is_transient);
    }
}
