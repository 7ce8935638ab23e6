use foil_common::otlp::TraceContext;
use tonic::metadata::MetadataMap;

/// Key of a request's metadata: the client's span that a submission is part of.
const TRACEPARENT: &str = "traceparent";

/// A request to submit a job, besides the job.
pub(super) struct Submission {
    pub(super) request_id: String,
    pub(super) spec_hash: String,
    /// The client's span; empty if it named none.
    pub(super) traceparent: String,
    /// Milliseconds since the Unix epoch.
    pub(super) received_at: u64,
}

/// The client's span; empty if the request names none, or what W3C Trace Context does not allow.
pub(super) fn traceparent(metadata: &MetadataMap) -> String {
    let text = metadata.get(TRACEPARENT).and_then(|text| text.to_str().ok());
    let context: Option<TraceContext> = text.and_then(|text| text.parse().ok());
    context.map(|context| context.to_string()).unwrap_or_default()
}
