//! Spans as Foil makes them, and as OTLP sends them.

use std::borrow::Cow;

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{self as wire, status::StatusCode};

use super::TraceContext;

/// Size limit of an error's message.
const MESSAGE_BYTES: usize = 1024;

pub use wire::span::SpanKind;

/// A finished piece of work.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub context: TraceContext,
    pub parent: Option<TraceContext>,
    pub name: String,
    pub kind: SpanKind,
    /// Nanoseconds since the Unix epoch.
    pub start: u64,
    pub end: u64,
    pub attributes: Vec<Attribute>,
    /// Why the work failed, if it did.
    pub error: Option<String>,
}

/// The name and value of a span's attribute.
pub type Attribute = (&'static str, AttributeValue);

#[derive(Debug, Clone, PartialEq)]
pub enum AttributeValue {
    Text(String),
    Number(i64),
}

impl From<&str> for AttributeValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u32> for AttributeValue {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u64> for AttributeValue {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<Span> for wire::Span {
    fn from(span: Span) -> Self {
        let Span { context, parent, name, kind, start, end, attributes, error } = span;
        let status = error.map(|error| wire::Status {
            message: truncated(&error).into_owned(),
            code: StatusCode::Error.into(),
        });
        Self {
            trace_id: context.trace_id(),
            span_id: context.span_id(),
            parent_span_id: parent.map(|parent| parent.span_id()).unwrap_or_default(),
            // W3C trace flags. The bits for a remote parent stay unset: it is unknown whether the parent is
            // remote.
            flags: u32::from(context.is_sampled()),
            name,
            kind: kind.into(),
            start_time_unix_nano: start,
            end_time_unix_nano: end.max(start),
            attributes: attributes.into_iter().map(|(name, value)| attribute(name, value)).collect(),
            status,
            ..Default::default()
        }
    }
}

fn truncated(text: &str) -> Cow<'_, str> {
    match text.char_indices().map(|(at, _)| at).take_while(|at| *at <= MESSAGE_BYTES).last() {
        Some(end) if text.len() > MESSAGE_BYTES => Cow::Owned(format!("{}…", &text[..end])),
        _ => Cow::Borrowed(text),
    }
}

/// A name and its value as OTLP sends them.
pub(super) fn attribute(name: &str, value: AttributeValue) -> KeyValue {
    let value = match value {
        AttributeValue::Text(text) => any_value::Value::StringValue(text),
        AttributeValue::Number(number) => any_value::Value::IntValue(number),
    };
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_in_bounded_length_and_no_span_ends_before_it_starts() {
        let context = TraceContext::root("job");
        let span = Span {
            context: context.child("phase"),
            parent: Some(context),
            name: "phase".into(),
            kind: SpanKind::Internal,
            start: 10,
            end: 9,
            attributes: vec![("foil.phase", "r01".into()), ("foil.rank", 3_u32.into())],
            error: Some("é".repeat(MESSAGE_BYTES)),
        };
        let wire = wire::Span::from(span);
        let status = wire.status.unwrap();
        assert_eq!(status.code(), StatusCode::Error);
        assert!(status.message.len() <= MESSAGE_BYTES + 3 && status.message.ends_with("é…"));
        assert_eq!((wire.start_time_unix_nano, wire.end_time_unix_nano), (10, 10));
        assert_eq!(wire.parent_span_id, context.span_id());
        assert_eq!(truncated("short"), "short");
    }
}
