use foil_common::otlp::TraceContext;
use tonic::metadata::MetadataMap;

/// Metadata key for the client's span that a submission is part of.
const TRACEPARENT: &str = "traceparent";

/// The parts of a submission request other than the job.
pub(super) struct Submission {
    pub(super) request_id: String,
    pub(super) spec_hash: String,
    /// The client's span; empty if the client sent none.
    pub(super) traceparent: String,
    /// Milliseconds since the Unix epoch.
    pub(super) received_at: u64,
}

/// The client's span; empty if the request contains none, or one that W3C Trace Context does not allow.
pub(super) fn traceparent(metadata: &MetadataMap) -> String {
    let text = metadata.get(TRACEPARENT).and_then(|text| text.to_str().ok());
    let context: Option<TraceContext> = text.and_then(|text| text.parse().ok());
    context.map(|context| context.to_string()).unwrap_or_default()
}
