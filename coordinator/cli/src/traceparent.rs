//! The trace that a command is part of. If the environment's `TRACEPARENT` names a span, as set by tools that
//! trace scripts and pipelines, a submitted job's spans go below that span.

use foil_common::otlp::TraceContext;
use tonic::metadata::MetadataMap;

const VARIABLE: &str = "TRACEPARENT";
const KEY: &str = "traceparent";

/// Adds the environment's span to a request.
pub(crate) fn add_to(metadata: &mut MetadataMap) {
    add(std::env::var(VARIABLE).ok().as_deref(), metadata);
}

/// A value that W3C Trace Context does not allow is left out, as it requires.
fn add(text: Option<&str>, metadata: &mut MetadataMap) {
    let context: Option<TraceContext> = text.and_then(|text| text.trim().parse().ok());
    if let Some(Ok(value)) = context.map(|context| context.to_string().parse()) {
        metadata.insert(KEY, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_the_span_of_the_environment() {
        let added = |text| {
            let mut metadata = MetadataMap::new();
            add(text, &mut metadata);
            metadata.get(KEY).map(|value| value.to_str().unwrap().to_owned())
        };
        let span = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        assert_eq!(added(Some(span)).as_deref(), Some(span));
        assert_eq!((added(None), added(Some("")), added(Some("00-0-0-0"))), (None, None, None));
    }
}
